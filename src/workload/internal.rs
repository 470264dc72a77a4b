//! The hidden commands of this binary, which only the binary itself calls (and `tick-workload`, the demo's workload).
//!
//! They are looked for before anything else happens in the process: no argument parser, no runtime, no logging.

use std::process::ExitCode;

use super::{fencer, fencer_exec, runner, ticker};

/// Carries out a hidden command if the process was started with one; `None` otherwise. First thing in `main`.
pub fn internal_command() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    match args.next()?.to_str()? {
        "fencer" => Some(fencer::main(args)),
        "fencer-exec" => Some(fencer_exec::main(args)),
        "fencer-undo" => Some(fencer_exec::undo(args)),
        "fencer-shim" | "fencer-wait" => Some(fencer_exec::shim(args)),
        "workload-runner" => Some(runner::run(args)),
        "workload-undo" => Some(runner::undo(args)),
        "workload-hold" => Some(runner::hold(args)),
        "tick-workload" => Some(ticker::main(args)),
        _ => None,
    }
}
