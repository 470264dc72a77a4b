//! Parses the command line, hands over to the command, and turns its result into the exit code.

fn main() {}
