//! One test binary with a table of contents.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests may")]
#![expect(unreachable_pub, reason = "the modules of one binary")]

/// Stories of a simulated site.
mod scenario;
/// A whole site in one deterministic simulation.
mod stage;
