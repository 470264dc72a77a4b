//! One test binary with a table of contents.

// The command line as people meet it: help texts, configuration faults, exit codes.
#[cfg(test)]
mod cli;

// The HTTP and gRPC faces over real sockets, and the commands that ask them.
#[cfg(test)]
mod faces;
