//! The step between the fencer and the workload: `quorate fencer-exec` ties its own life to the fencer's, then becomes
//! the workload's program.
//!
//! The tie (`PR_SET_PDEATHSIG`) survives exec and lets the kernel kill the workload's main process when the fencer
//! dies, however it dies. The parent is looked at again after tying, because a fencer that died before would send no
//! signal. Processes that the workload forks are not tied; see `orphans.rs` for them. The kernel drops the tie for
//! a set-user-id program or one with file capabilities: such a program is only held by the fencer being alive.
//!
//! Standard input is a socket to the fencer: its end without a word says that the program runs, a text says why not.

use std::{
    ffi::OsString,
    io::Write,
    os::{fd::AsFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// Becomes the workload; `args` are those after the word `fencer-exec`: the fencer's process id, the folder to run
/// in (empty for the current one), the program, its arguments. Returns only if that failed.
pub(super) fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let Ok(report) = std::io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::from(126);
    };
    let why = become_workload(args);
    let mut report = std::os::unix::net::UnixStream::from(report);
    drop(report.write_all(why.as_bytes()));
    ExitCode::from(127)
}

#[expect(clippy::disallowed_methods, reason = "this is the process that becomes the workload")]
fn become_workload(mut args: impl Iterator<Item = OsString>) -> String {
    let fencer: Option<i32> = args.next().and_then(|pid| pid.to_str()?.parse().ok());
    let (Some(fencer), Some(dir), Some(program)) = (fencer, args.next().map(PathBuf::from), args.next())
    else {
        return "fencer-exec was called by hand".into();
    };
    if let Err(e) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return format!("cannot tie the workload to its fencer: {e}");
    }
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(fencer) {
        return "the fencer is gone".into();
    }
    if !dir.as_os_str().is_empty()
        && let Err(e) = std::env::set_current_dir(&dir)
    {
        return format!("working_dir {}: {e}", dir.display());
    }
    Command::new(program).args(args).stdin(Stdio::null()).exec().to_string()
}
