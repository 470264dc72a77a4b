//! Real processes: real binaries, signals and the boot clock. What counts is what the workload itself recorded.

mod fencer;
mod stage;
