//! The command that updates one device: a child of this process that ends before it, with all that it has started.
//!
//! It stays in this process's group, because `ssh` may ask a person something. What it leaves running when it ends by itself is its own
//! business. Whatever it prints goes to stderr, so that stdout stays the steps' own.

use std::{io, os::fd::AsFd as _, process::Stdio, time::Duration};

use rustix::process::Signal;
use tokio::process::{Child, Command};

use super::Interrupts;
use crate::workload::{adopt, signal_children};

/// What a command that is told to end is given, before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// How often is looked meanwhile whether something of it is left.
const LOOK: Duration = Duration::from_millis(50);

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
    // What its children leave running comes here.
    adopt();
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
    tokio::select! {
        () = end(&mut child, Signal::TERM) => {}
        () = interrupts.next() => {}
        () = tokio::time::sleep(GRACE) => {}
    }
    // What the kernel does not let go is not waited for.
    let _ = tokio::time::timeout(GRACE, end(&mut child, Signal::KILL)).await;
    early
}

/// Sends `signal` to the command and to whatever it leaves behind, until nothing is left. Cancel-safe.
async fn end(child: &mut Child, signal: Signal) {
    while signal_children(signal) > 0 {
        tokio::time::sleep(LOOK).await;
        // So that it does not stay as one that has ended.
        let _ = child.try_wait();
    }
}
