//! The modules of a device as real processes: what a container engine does for the runtime, without the containers.
//!
//! One turn at a time for every operation, as in the real runtime: a stop that takes its grace holds up whoever asks meanwhile.
//! A stop sends TERM to the module's main process alone, and after its grace KILL; whatever else is left of its process group is
//! killed when the main process has ended, as a container's would be. How it is unlike the real one: a module sees the whole
//! machine, an image is a command line, and a process that leaves its group is no longer the module's.

use std::{
    collections::BTreeMap,
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::{
    process::{Child, Command},
    sync::{MutexGuard, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::super::lock;
use crate::clock::{Clock, Moment};

/// Docker's own grace.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// What a module is started from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Variables beside those that the runtime sets and the deployment names; nothing is inherited.
    pub environment: BTreeMap<String, String>,
}

/// A module as it is created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spec {
    /// The image's name, to show.
    pub(super) image: String,
    pub(super) command: Vec<String>,
    pub(super) environment: BTreeMap<String, String>,
    /// From TERM to KILL.
    pub(super) grace: Duration,
}

/// What is known of a module's process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Status {
    /// The main process, while it runs.
    pub(super) pid: Option<i32>,
    /// When it was last started, in milliseconds since 1970.
    pub(super) started_ms: Option<u64>,
    /// When it last ended, and with which code; 128 and the signal's number if by one.
    pub(super) ended: Option<(u64, i32)>,
    /// When it was last started or ended, by the clock that decisions read.
    pub(super) since: Moment,
}

struct Module {
    spec: Spec,
    status: watch::Sender<Status>,
}

/// Why something cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("No such container: {0}")]
    Unknown(String),
    #[error("{0}")]
    CannotStart(String),
}

/// All modules of a device.
pub(super) struct Processes {
    modules: Mutex<BTreeMap<String, Module>>,
    turn: tokio::sync::Mutex<()>,
    clock: Arc<dyn Clock>,
    tasks: TaskTracker,
    /// Ends every module at once.
    stop: CancellationToken,
}

impl Processes {
    pub(super) fn new(clock: Arc<dyn Clock>, tasks: TaskTracker, stop: CancellationToken) -> Processes {
        Processes { modules: Mutex::default(), turn: tokio::sync::Mutex::new(()), clock, tasks, stop }
    }

    /// Waits for the turn. Cancel-safe.
    pub(super) async fn turn(&self) -> Turn<'_> {
        Turn { processes: self, _held: self.turn.lock().await }
    }

    /// What is known of a module, in whoever's turn it is.
    pub(super) fn status(&self, name: &str) -> Option<Status> {
        lock(&self.modules).get(name).map(|module| module.status.borrow().clone())
    }

    /// Whether a process belongs to a module: it is in the group of its main process, or came from it.
    pub(super) fn owns(&self, name: &str, pid: i32) -> bool {
        let Some(main) = self.status(name).and_then(|status| status.pid) else { return false };
        if family(pid).is_some_and(|(_, group)| group == main) {
            return true;
        }
        // Bounded, since parents may change while they are followed.
        let parent = |pid: &i32| family(*pid).map(|(parent, _)| parent).filter(|parent| *parent > 1);
        std::iter::successors(Some(pid), parent).take(64).any(|pid| pid == main)
    }
}

/// The right to change something, or to have it stay while it is looked at.
pub(super) struct Turn<'a> {
    processes: &'a Processes,
    _held: MutexGuard<'a, ()>,
}

impl Turn<'_> {
    pub(super) fn names(&self) -> Vec<String> {
        lock(&self.processes.modules).keys().cloned().collect()
    }

    pub(super) fn look(&self, name: &str) -> Result<(Spec, Status), Refused> {
        let modules = lock(&self.processes.modules);
        let module = modules.get(name).ok_or_else(|| Refused::Unknown(name.to_owned()))?;
        Ok((module.spec.clone(), module.status.borrow().clone()))
    }

    /// Makes a module, stopped. One that is there is stopped and made anew.
    pub(super) async fn create(&self, name: &str, spec: Spec) {
        let _was_there = self.remove(name).await.is_ok();
        let module = Module { spec, status: watch::Sender::default() };
        lock(&self.processes.modules).insert(name.to_owned(), module);
    }

    /// Stops a module and forgets it.
    pub(super) async fn remove(&self, name: &str) -> Result<(), Refused> {
        self.stop(name).await?;
        lock(&self.processes.modules).remove(name);
        Ok(())
    }

    /// Starts a module; one that runs goes on.
    pub(super) fn start(&self, name: &str) -> Result<(), Refused> {
        let (spec, status) = self.look(name)?;
        if status.pid.is_some() {
            return Ok(());
        }
        let child = spawn(&spec).map_err(|why| Refused::CannotStart(why.to_string()))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let Some(pid) = pid else { return Err(Refused::CannotStart("it has ended already".into())) };
        let modules = lock(&self.processes.modules);
        let module = modules.get(name).ok_or_else(|| Refused::Unknown(name.to_owned()))?;
        let clock = &self.processes.clock;
        let (started_ms, since) = (Some(clock.wall_ms()), clock.now());
        module.status.send_modify(|status| {
            status.pid = Some(pid);
            status.started_ms = started_ms;
            status.since = since;
        });
        let (clock, stop) = (self.processes.clock.clone(), self.processes.stop.clone());
        self.processes.tasks.spawn(watched(child, pid, module.status.clone(), clock, stop));
        Ok(())
    }

    /// Stops a module and waits for its end, which takes its grace at most; one that does not run stays as it is.
    pub(super) async fn stop(&self, name: &str) -> Result<(), Refused> {
        let (grace, mut status) = {
            let modules = lock(&self.processes.modules);
            let module = modules.get(name).ok_or_else(|| Refused::Unknown(name.to_owned()))?;
            (module.spec.grace, module.status.subscribe())
        };
        let Some(pid) = status.borrow().pid.and_then(Pid::from_raw) else { return Ok(()) };
        // Whoever has ended meanwhile needs no signal.
        let _told = kill_process(pid, Signal::TERM).is_ok();
        let ended = |status: &Status| status.pid.is_none();
        if tokio::time::timeout(grace, status.wait_for(ended)).await.is_err() {
            let _killed = kill_process_group(pid, Signal::KILL).is_ok();
            let _ended = status.wait_for(ended).await.is_ok();
        }
        Ok(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the emulated runtime starts modules as the real one starts containers"
)]
fn spawn(spec: &Spec) -> std::io::Result<Child> {
    let Some((program, arguments)) = spec.command.split_first() else {
        return Err(std::io::Error::other("the image has no command"));
    };
    Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(&spec.environment)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// Waits for the end of a module's main process, and ends what it leaves behind.
async fn watched(
    mut child: Child,
    pid: i32,
    status: watch::Sender<Status>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) {
    let group = Pid::from_raw(pid);
    let ended = tokio::select! {
        ended = child.wait() => ended,
        () = stop.cancelled() => {
            let _killed = group.is_some_and(|group| kill_process_group(group, Signal::KILL).is_ok());
            child.wait().await
        }
    };
    // Its number is its group's as long as anybody is left in that.
    let _left = group.is_some_and(|group| kill_process_group(group, Signal::KILL).is_ok());
    let code = ended.map_or(-1, code);
    status.send_modify(|status| {
        status.pid = None;
        status.ended = Some((clock.wall_ms(), code));
        status.since = clock.now();
    });
}

fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// Who started a process, and the group that it is in, as the kernel has it now; 0 for one outside of this process id namespace.
fn family(pid: i32) -> Option<(i32, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before them may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(1);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}
