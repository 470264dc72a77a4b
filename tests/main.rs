//! One test binary with a table of contents.

// The command line as people meet it: help texts, configuration faults, exit codes.
mod cli;
