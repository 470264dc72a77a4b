//! The command that updates one device: a child of this process that ends before it.
//!
//! Whatever it prints goes to stderr, so that stdout stays the steps' own.

use std::{io, os::fd::AsFd as _, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use super::Interrupts;

/// What a command that is told to end is given, before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// How the command ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Well,
    Badly(String),
    /// Not within the limit.
    Late,
    /// Told to, because this process was.
    Interrupted,
}

/// Runs it with `QUORATE_DEVICE` in its environment. It is killed if this is dropped.
pub(super) async fn run(
    words: &[String],
    device: &str,
    limit: Duration,
    interrupts: &mut Interrupts,
) -> Ended {
    let Some((program, arguments)) = words.split_first() else { return Ended::Badly("there is none".into()) };
    let stdout = match io::stderr().as_fd().try_clone_to_owned() {
        Ok(stderr) => Stdio::from(stderr),
        Err(e) => return Ended::Badly(format!("its output has no place to go: {e}")),
    };
    #[expect(clippy::disallowed_methods, reason = "the operator's own command, which is no workload")]
    let mut command = Command::new(program);
    command.args(arguments).env("QUORATE_DEVICE", device).stdin(Stdio::null()).stdout(stdout);
    let mut child = match command.kill_on_drop(true).spawn() {
        Ok(child) => child,
        Err(e) => return Ended::Badly(format!("cannot start {program}: {e}")),
    };
    let early = tokio::select! {
        status = child.wait() => {
            return match status {
                Ok(status) if status.success() => Ended::Well,
                Ok(status) => Ended::Badly(status.to_string()),
                Err(e) => Ended::Badly(e.to_string()),
            };
        }
        () = interrupts.next() => Ended::Interrupted,
        () = tokio::time::sleep(limit) => Ended::Late,
    };
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    if let Some(pid) = pid {
        // It may have ended meanwhile.
        let _ = kill_process(pid, Signal::TERM);
    }
    tokio::select! {
        _ = child.wait() => {}
        () = interrupts.next() => {}
        () = tokio::time::sleep(GRACE) => {}
    }
    early
}
