//! One test binary with a table of contents.

// One suite per door, against each implementation of it.
#[cfg(test)]
mod conformance;
