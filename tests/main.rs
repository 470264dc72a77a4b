//! One test binary with a table of contents.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests may")]

/// A whole site in one deterministic simulation.
mod stage;
/// Stories of a simulated site.
mod scenario;
