//! Real processes: real binaries, signals and the boot clock. What counts is what the workload itself recorded.

mod demo;
mod fencer;
mod folders;
mod lifecycle;
mod listeners;
mod mirror;
mod site;
mod stage;
mod strangers;
mod workload;
