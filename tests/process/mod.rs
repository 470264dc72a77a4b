//! Real processes: real binaries, signals and the boot clock. What counts is what the workload itself recorded.

mod attack;
mod browser;
mod cgroup;
mod container;
mod demo;
mod disk;
#[cfg(feature = "emulator")]
mod edge_cli;
mod exam;
mod fencer;
mod floating;
mod folders;
mod footing;
mod forgery;
mod gate;
mod health;
#[cfg(feature = "emulator")]
mod hostile_broker;
#[cfg(feature = "emulator")]
mod hub;
#[cfg(feature = "emulator")]
mod hub_trouble;
#[cfg(feature = "emulator")]
mod identity;
mod last_line;
mod lifecycle;
mod listeners;
mod memory;
mod mirror;
#[cfg(feature = "emulator")]
mod module;
mod page;
mod prometheus;
mod ready;
mod receipt;
#[cfg(feature = "emulator")]
mod secrets;
mod site;
mod stage;
mod strangers;
mod update;
#[cfg(feature = "emulator")]
mod update_deployed;
mod workload;

/// Says that a part of a test needs something that this machine lacks.
#[expect(clippy::print_stderr, reason = "the only place where a test can say so")]
pub(super) fn not_tested(why: &str) {
    eprintln!("not tested: {why}");
}
