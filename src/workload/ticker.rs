//! A workload to try things with: it writes a tick record every 5 ms for as long as it lives.
//!
//! `quorate tick-workload --file F` is what the demo runs and what tests run. Records are appended with one write
//! each and never synced: what counts is whether the process lived, not whether the disk kept it. Its flags turn it
//! into the workloads that are hard to stop. It is not made to be useful for anything else.

use std::{
    ffi::OsString,
    fs::File,
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior},
};

use super::{fencer::SELF, ticks::Tick};
use crate::{
    clock::{BootClock, Clock},
    epoch::Epoch,
};

/// The distance between two ticks.
pub const EVERY: Duration = Duration::from_millis(5);

const USAGE: &str = "usage: tick-workload --file FILE [--ignore-term] [--fork-child] [--escape] [--chatty] \
                     [--exit-after-ms N]";

#[derive(Debug, Default)]
struct Flags {
    file: PathBuf,
    ignore_term: bool,
    fork_child: bool,
    escape: bool,
    chatty: bool,
    exit_after: Option<Duration>,
}

fn flags(mut args: impl Iterator<Item = OsString>) -> Option<Flags> {
    let mut flags = Flags::default();
    while let Some(arg) = args.next() {
        match arg.to_str()? {
            "--file" => flags.file = args.next()?.into(),
            // TERM does nothing.
            "--ignore-term" => flags.ignore_term = true,
            // A child in the same process group ticks too, and outlives its parent if it is let.
            "--fork-child" => flags.fork_child = true,
            // The child leaves the process group.
            "--escape" => flags.escape = true,
            // Prints as fast as it can, from a thread of its own.
            "--chatty" => flags.chatty = true,
            // Ends by itself with exit code 3.
            "--exit-after-ms" => {
                flags.exit_after = Some(Duration::from_millis(args.next()?.to_str()?.parse().ok()?));
            }
            _ => return None,
        }
    }
    (!flags.file.as_os_str().is_empty()).then_some(flags)
}

/// Ticks until the end; `args` are those after the word `tick-workload`.
#[expect(clippy::print_stderr, reason = "a command line that is called by people and tests")]
pub(super) fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(flags) = flags(args) else {
        eprintln!("{USAGE}");
        return ExitCode::from(64);
    };
    match tick(&flags) {
        Ok(()) => ExitCode::from(3),
        Err(e) => {
            eprintln!("{}: {e}", flags.file.display());
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn tick(flags: &Flags) -> std::io::Result<()> {
    // A stream that nobody reads still takes the place of the default, which would be to end.
    let _deaf = if flags.ignore_term { Some(signal(SignalKind::terminate())?) } else { None };
    if flags.fork_child {
        fork_child(flags)?;
    }
    if flags.chatty {
        std::thread::spawn(|| while writeln!(std::io::stdout(), "{}", "chatter ".repeat(32)).is_ok() {});
    }
    let mut file = File::options().append(true).create(true).open(&flags.file)?;
    // A workload reads what the sidecar hands over; this is that contract seen from the other side.
    let text = |name| std::env::var_os(name).and_then(|v| v.into_string().ok()).unwrap_or_default();
    let epoch = text("QUORATE_EPOCH").parse().ok().and_then(Epoch::new).unwrap_or_default();
    let device = text("QUORATE_DEVICE");
    let pid = std::process::id();
    let begin = BootClock.now();
    let mut every = tokio::time::interval_at(Instant::now() + EVERY, EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let at = BootClock.now();
        if flags.exit_after.is_some_and(|after| at.since(begin) >= after) {
            return Ok(());
        }
        let mut record = Tick { at, pid, epoch, device: device.clone() }.to_string();
        record.push('\n');
        file.write_all(record.as_bytes())?;
        every.tick().await;
    }
}

#[expect(clippy::disallowed_methods, reason = "a workload that forks is part of what is tried")]
fn fork_child(flags: &Flags) -> std::io::Result<()> {
    let mut child = std::process::Command::new(SELF);
    child.args([Path::new("tick-workload"), Path::new("--file"), &flags.file]);
    if flags.ignore_term {
        child.arg("--ignore-term");
    }
    if flags.escape {
        child.process_group(0);
    }
    child.spawn().map(drop)
}
