//! What is undone once no process of the workload is left: a container that was started, an address that was taken.
//!
//! A workload can leave behind what no KILL reaches. The fencer runs the command that undoes it after each run and before it says
//! `READY` for the first time, again and again until it succeeds, and only then has the workload ended. So the stop receipt covers it,
//! and a device that cannot undo it votes for no other. The command must do no harm where there is nothing to undo.
//!
//! It deliberately has no say in when: the deadline and the pause before the next start are the fence's alone.

use std::{
    ffi::OsString,
    io::Read as _,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Command, Stdio},
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions, getpid, kill_process_group, wait},
};

use super::{
    fencer::{MARK, SELF, how},
    footing::Footing,
    orders::Orders,
    sidecar::Sidecar,
    undo_kept,
    wire::{Event, Text},
};
use crate::clock::{BootClock, Clock, Moment};

/// It is ended when it takes longer, and run again.
const UNDO_TIME: Duration = Duration::from_secs(10);
/// Between the first failure and the next try; doubles each time.
const AGAIN: Duration = Duration::from_millis(200);
/// The longest pause.
const AGAIN_MAX: Duration = Duration::from_secs(5);
/// How often its end is looked for while nothing else is going on.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Debug)]
enum State {
    Done,
    Due(Moment),
    /// `words`: why it could not be executed, if it could not.
    Runs {
        pid: Pid,
        give_up: Moment,
        words: UnixStream,
    },
}

/// Whether something is left to be undone, and the process that does it.
#[derive(Debug)]
pub(super) struct Undo {
    /// What it is called in the log.
    title: String,
    state: State,
    /// Failures in a row.
    failures: u32,
    /// The standing of what undoes: an ordinary process, unlike the fencer.
    footing: Footing,
}

impl Undo {
    /// Undoes what an earlier life may have left, before anything else: by its own command if that was another one, then by
    /// the present one, which is kept from here on. Waits as long as that takes.
    ///
    /// # Errors
    /// The sidecar is gone, or nobody knows what is to be undone, and the sidecar was told.
    pub(super) fn first(orders: &Orders, footing: Footing, sidecar: &mut Sidecar) -> Result<Undo, ()> {
        let give_up = |sidecar: &mut Sidecar, why: String| {
            sidecar.tell(&Event::Failed { reason: Text::new(why) });
        };
        if let Some(earlier) = undo_kept::earlier(orders).map_err(|why| give_up(sidecar, why))? {
            let title = title(&earlier.undo);
            let whose = format!("{title}, kept in {}", undo_kept::path(orders).display());
            Undo::at_once(&earlier, whose, footing, sidecar)?;
        }
        let undo = Undo::at_once(orders, title(&orders.undo), footing, sidecar)?;
        undo_kept::keep(orders).map_err(|why| give_up(sidecar, why))?;
        Ok(undo)
    }

    fn at_once(orders: &Orders, title: String, footing: Footing, sidecar: &mut Sidecar) -> Result<Undo, ()> {
        let mut undo = Undo { title, state: State::Due(BootClock.now()), failures: 0, footing };
        while !undo.is_done(orders, sidecar) {
            loop {
                match wait(WaitOptions::NOHANG) {
                    Ok(Some((pid, status))) => {
                        let failed = if status.exit_status() == Some(0) { None } else { Some(how(status)) };
                        undo.has_ended(pid, failed, sidecar);
                    }
                    Err(Errno::INTR) => {}
                    Ok(None) | Err(_) => break,
                }
            }
            sidecar.idle(LOOK)?;
        }
        Ok(undo)
    }

    /// Something of the workload may run from here on.
    pub(super) fn is_due(&mut self) {
        (self.state, self.failures) = (State::Due(Moment::default()), 0);
    }

    /// Whether all is undone. Otherwise sees to it; call it while no process of the workload is left, until it is. Never waits.
    pub(super) fn is_done(&mut self, orders: &Orders, sidecar: &mut Sidecar) -> bool {
        if orders.undo.is_empty() {
            return true;
        }
        let now = BootClock.now();
        match self.state {
            State::Done => return true,
            State::Due(at) if now >= at => match start(orders, self.footing) {
                Ok((pid, words)) => self.state = State::Runs { pid, give_up: now + UNDO_TIME, words },
                Err(why) => self.failed(why, sidecar),
            },
            State::Due(_) => {}
            // Its end comes as that of a child.
            State::Runs { pid, give_up, .. } if now >= give_up => {
                let _ = kill_process_group(pid, Signal::KILL);
            }
            State::Runs { .. } => {}
        }
        false
    }

    /// A child has ended, this way if it failed. Whether it was this one.
    pub(super) fn has_ended(&mut self, child: Pid, failed: Option<String>, sidecar: &mut Sidecar) -> bool {
        let State::Runs { pid, words, .. } = &mut self.state else { return false };
        if *pid != child {
            return false;
        }
        match failed {
            None => self.state = State::Done,
            Some(how) => {
                let mut why = [0; 300];
                // It never waits. A program that runs has closed its end, so there is nothing to read.
                let read = words.read(&mut why).unwrap_or(0);
                let why = String::from_utf8_lossy(why.get(..read).unwrap_or_default()).into_owned();
                self.failed(if why.is_empty() { how } else { why }, sidecar);
            }
        }
        true
    }

    /// The process that undoes, which is not to be killed with the workload.
    pub(super) fn pid(&self) -> Option<Pid> {
        match &self.state {
            State::Runs { pid, .. } => Some(*pid),
            State::Done | State::Due(_) => None,
        }
    }

    fn failed(&mut self, how: String, sidecar: &mut Sidecar) {
        sidecar.tell(&Event::NotUndone { how: Text::new(format!("{}: {how}", self.title)) });
        let pause = (AGAIN * (1 << self.failures.min(8))).min(AGAIN_MAX);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Due(BootClock.now() + pause);
    }
}

/// A command in words for everybody: what a site's own command is told is the site's business.
fn title(undo: &[OsString]) -> String {
    let shown = |words: &[OsString]| {
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    };
    match undo {
        [program, ..] if program == SELF => shown(undo),
        [program, ..] => shown(std::slice::from_ref(program)),
        [] => String::new(),
    }
}

/// Starts it, tied to this fencer, in a group of its own.
#[expect(clippy::disallowed_methods, reason = "the fencer is where the workload is ended")]
fn start(orders: &Orders, footing: Footing) -> Result<(Pid, UnixStream), String> {
    let (words, theirs) = UnixStream::pair().map_err(|e| e.to_string())?;
    words.set_nonblocking(true).map_err(|e| e.to_string())?;
    let child = Command::new(SELF)
        .arg("fencer-undo")
        .arg(footing.to_arg())
        .arg(getpid().to_string())
        .arg(orders.dir.clone().unwrap_or_default())
        .args(&orders.undo)
        .env(MARK, &orders.mark)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .process_group(0)
        .spawn()
        .map_err(|e| e.to_string())?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.map(|pid| (pid, words)).ok_or_else(|| "its process id is out of range".to_owned())
}
