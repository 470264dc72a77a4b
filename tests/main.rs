//! One test binary with a table of contents.

/// Real processes, signals and clocks: what the fencer promises, seen from the workload's own tick records.
#[cfg(test)]
mod process;
