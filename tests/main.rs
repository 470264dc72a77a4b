//! One test binary with a table of contents.
