//! The fencer: a tiny process of its own that holds the workload's deadline, so that a frozen or dead sidecar cannot
//! keep the workload alive.
//!
//! It is this same binary, run again as `quorate fencer`: one thread, one loop, no call that can block. Each turn of
//! the loop reads the boot clock, lets the pure rules of `fence.rs` decide, does what they say, and then waits in poll
//! for the sidecar, for the workload's end, and for a timer that counts suspend. That timer goes off at once after one,
//! which poll's own time-out would not; the time-out is the second line.
//!
//! What it stands on:
//! - Standard input is a socket to the sidecar. It never blocks; a sidecar that does not read loses only its events.
//!   Its end, a line that cannot be read, or another parent than at the start all mean: the sidecar is gone, stop.
//! - Standard output and error are the workload's, handed through untouched. The fencer itself never writes there
//!   (not even a panic's text), because a full pipe would hold it.
//! - It leads a session of its own, so a terminal's Ctrl-C or a signal to the sidecar's group does not reach it.
//! - It is the reaper of orphans (`PR_SET_CHILD_SUBREAPER`): whatever a workload forks, in whatever group or session,
//!   becomes its child when its parent ends. So "I have no child left" (ECHILD) proves that nothing of the workload
//!   runs, and killing only direct children, round after round, reaches all of them without ever hitting a reused pid.
//! - Where it can, it gives the workload a cgroup of its own (`cgroup.rs`), which only ever adds to that: nothing runs if no
//!   child is left *and* the cgroup is empty. Signals come first, for a write to a cgroup may wait for other cgroups.
//! - What the workload may leave behind that is no process is undone by a command (`undo.rs`) before its end is reported.
//! - It holds a lock on a file in the data folder for as long as it lives. No second fencer says `READY` before.
//! - It runs before others, and is killed after others (`footing.rs`).
//!
//! A supervisor that signals all processes of a service at once (systemd's `KillMode=control-group`) ends the fencer
//! too, and the workload loses its grace, not its safety: `KillMode=mixed` is the setting to use.
//!
//! What it does not do: it cannot outrun a process that forks faster than it kills unless there is a cgroup, cannot end a process that the
//! kernel holds in an uninterruptible wait (then it gives no receipt), and does not outlive a kill of itself. In the
//! last case the workload's main process dies with it (`fencer_exec.rs`), and the sidecar or the next fencer ends the
//! rest (`orphans.rs`). A frozen one is noticed by its sidecar (`pulse.rs`), or killed by the next fencer (`holder.rs`).

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    process::ExitCode,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::FlockOperation,
    io::Errno,
    process::{
        Signal, WaitOptions, WaitStatus, getpid, kill_process, kill_process_group, set_child_subreaper,
        setsid, wait, waitpid,
    },
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime},
};

use super::{
    cgroup::Cgroup,
    fence::{Deed, Fence, Input},
    footing::Footing,
    holder,
    limits::Rlimits,
    orders::Orders,
    orphans, receipt,
    shim::{Shim, Word},
    sidecar::Sidecar,
    undo::Undo,
    wire::{Event, Text},
};
use crate::{
    clock::{BootClock, Clock, Moment, boottime},
    epoch::Epoch,
    seal::Receipt,
};

/// The environment variable that marks every process of a workload with the data folder it belongs to.
pub(super) const MARK: &str = "QUORATE_FENCE";
/// Between how the main process ended by itself and the names of what it left running.
pub(super) const LEFT: &str = ", and it left running: ";
/// This binary, also after the file has been replaced by a newer one.
pub(super) const SELF: &str = "/proc/self/exe";

/// The longest wait: only a safety net, every real reason to wake has its own file descriptor or timer.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// What is left of a wait is waited for at once if it is no longer than this: a tenth of it makes no difference.
const ARMED_EXACTLY: Duration = Duration::from_millis(2);
/// How often is looked again while the rest of a workload is on its way out.
const EMPTYING_WAIT: Duration = Duration::from_millis(2);
/// The same after a second, for a process that the kernel does not let go.
const STUCK_WAIT: Duration = Duration::from_millis(50);
/// So many looks in a row must find nothing of an earlier life. One misses a process that forks and ends in the moment between
/// the list of all processes and the look at it.
const CLEAN_LOOKS: u32 = 5;
/// How often the end of the main process is looked for where the kernel has no pidfd (before Linux 5.3).
const NO_PIDFD_WAIT: Duration = Duration::from_millis(10);
/// How often, every millisecond, the end of a shim that is not needed any more is looked for.
const LAST_LOOKS: u32 = 20;
/// How often the lock is tried while an earlier fencer holds it.
const LOCK_WAIT: Duration = Duration::from_millis(5);

/// The whole life of a fencer; `args` are those after the word `fencer`.
pub(super) fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let Some(orders) = Orders::from_args(args) else {
        return ExitCode::from(64);
    };
    match Fencer::begin(orders) {
        Ok(fencer) => fencer.run(),
        Err(()) => ExitCode::FAILURE,
    }
}

struct Fencer {
    orders: Orders,
    sidecar: Sidecar,
    timer: OwnedFd,
    fence: Fence,
    footing: Footing,
    cgroup: Option<Cgroup>,
    /// What limits the workload besides its cgroup, or why its limits cannot be kept: then it is not started.
    rlimits: Result<Rlimits, Text>,
    main: Option<Shim>,
    /// Ready to become the main process. There is none while anything may run.
    waiting: Option<Shim>,
    /// A shim that waited has ended: the next one is not started before the next run.
    waits_in_vain: bool,
    undo: Undo,
    emptying_since: Option<Moment>,
    attests: Option<Receipt>,
    lock: File,
}

impl Fencer {
    /// Takes its place: session, reaper, lock, and an end to whatever an earlier life left behind.
    fn begin(mut orders: Orders) -> Result<Fencer, ()> {
        let mut sidecar = Sidecar::at_stdin(orders.parent).map_err(drop)?;
        let (timer, lock) = match take_place(&orders) {
            Ok(place) => place,
            Err(reason) => {
                sidecar.tell(&Event::Failed { reason });
                return Err(());
            }
        };
        // Nothing runs under this fencer yet, so these two waits may take as long as they need.
        let mut evict_at = BootClock.now() + orders.outlives;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK | Errno::INTR) => {
                    let now = BootClock.now();
                    if now >= evict_at {
                        evict_at = now + orders.outlives;
                        if let Some((event, killed)) = holder::evict(&lock, &orders.mark) {
                            sidecar.tell(&event);
                            orders.after_session = killed.or(orders.after_session);
                        }
                    }
                    sidecar.idle(LOCK_WAIT)?;
                }
                Err(e) => {
                    let reason = Text::new(format!("cannot lock {}: {e}", orders.lock.display()));
                    sidecar.tell(&Event::Failed { reason });
                    return Err(());
                }
            }
        }
        let cgroup = if orders.cgroup { Cgroup::make(&orders.mark) } else { Err("none is wanted".into()) };
        let empty = || {
            let cgroup = cgroup.as_ref().ok();
            cgroup.inspect(|cgroup| cgroup.kill());
            orphans::kill(&orders.mark, orders.after_session) == 0 && !cgroup.is_some_and(Cgroup::populated)
        };
        let (mut pause, mut clean) = (EMPTYING_WAIT, 0);
        while clean < CLEAN_LOOKS {
            if empty() {
                (pause, clean) = (EMPTYING_WAIT, clean + 1);
            } else {
                (pause, clean) = ((pause * 2).min(STUCK_WAIT), 0);
            }
            sidecar.idle(pause)?;
        }
        let within = cgroup.as_ref().map_err(String::as_str);
        let rlimits = orders.limits.apply(within, orders.user).map_err(Text::new);
        let footing = Footing::take();
        let cgroup = cgroup.map_err(|why| sidecar.tell(&Event::Loose { why: Text::new(why) })).ok();
        let undo = Undo::first(&orders, footing, &mut sidecar)?;
        sidecar.tell(&Event::Ready);
        let fence = Fence::new(orders.kill_after, orders.stop_timeout);
        Ok(Fencer {
            orders,
            sidecar,
            timer,
            fence,
            footing,
            cgroup,
            rlimits,
            main: None,
            waiting: None,
            waits_in_vain: false,
            undo,
            emptying_since: None,
            attests: None,
            lock,
        })
    }

    fn run(mut self) -> ExitCode {
        loop {
            let mut inputs = vec![Input::Tick];
            self.hear_shims(&mut inputs);
            self.reap(&mut inputs);
            for input in inputs {
                if self.step(input) {
                    return self.leave();
                }
            }
            for command in self.sidecar.commands() {
                if self.step(Input::Said(command)) {
                    return self.leave();
                }
            }
            self.sidecar.flush();
            if self.sidecar.gone && self.step(Input::SidecarGone) {
                return self.leave();
            }
            if self.fence.killing() {
                self.kill_children();
            }
            self.have_one_wait();
            self.wait();
        }
    }

    /// Nothing runs any more. With a receipt to show, lock and socket go first: who waits for them need not wait for the
    /// other members, and the members not for the cgroup. That is taken away under the lock, for the next fencer uses the same.
    fn leave(mut self) -> ExitCode {
        if let Some(attests) = self.attests.take() {
            let _ = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
            drop(self.sidecar);
            receipt::send(&attests, self.orders.site, &self.orders.members);
            if rustix::fs::flock(&self.lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                return ExitCode::SUCCESS;
            }
        }
        if let Some(shim) = self.waiting.take() {
            let _ = kill_process(shim.pid, Signal::KILL);
            for _ in 0..LAST_LOOKS {
                if !matches!(waitpid(Some(shim.pid), WaitOptions::NOHANG), Ok(None)) {
                    break;
                }
                let _ = poll(&mut [], Some(&timespec(Duration::from_millis(1))));
            }
        }
        self.cgroup.iter().for_each(Cgroup::remove);
        ExitCode::SUCCESS
    }

    /// One fact through the rules; whether the fencer has to leave. The clock is read for each.
    fn step(&mut self, input: Input) -> bool {
        let mut inputs = std::collections::VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for deed in self.fence.step(BootClock.now(), input) {
                match deed {
                    Deed::Spawn(epoch) => inputs.push_back(self.spawn(epoch)),
                    Deed::Term => self.signal(Signal::TERM),
                    Deed::Kill => self.kill_children(),
                    Deed::Tell(event) => self.sidecar.tell(&event),
                    Deed::Attest(receipt) => self.attests = Some(receipt),
                    Deed::Leave => return true,
                }
            }
        }
        false
    }

    /// Lets the shim that waits become the workload, or starts one that does so at once.
    fn spawn(&mut self, epoch: Epoch) -> Input {
        self.waits_in_vain = false;
        self.undo.is_due();
        let mut ready = self.waiting.take();
        if let Some(ended) = ready.take_if(|shim| !shim.go(epoch)) {
            let _ = kill_process(ended.pid, Signal::KILL);
        }
        let started = match ready {
            Some(shim) => Ok(shim),
            None => self.shim(false).map(|mut shim| {
                // If it is not heard, it has ended, which is found out like the end of any other.
                let _ = shim.go(epoch);
                shim
            }),
        };
        match started {
            Ok(shim) => {
                let pid = shim.pid.as_raw_nonzero().get().unsigned_abs();
                self.main = Some(shim);
                Input::Spawned { pid }
            }
            Err(reason) => Input::CannotStart { reason, spawned: false },
        }
    }

    fn shim(&self, waits: bool) -> Result<Shim, Text> {
        let rlimits = self.rlimits.clone()?;
        self.cgroup.as_ref().inspect(|cgroup| cgroup.thaw());
        Shim::start(&self.orders, self.cgroup.as_ref().map(Cgroup::dir), self.footing, rlimits, waits)
    }

    /// While nothing runs, has a shim move into the cgroup, so that a start need not wait for that.
    fn have_one_wait(&mut self) {
        let wanted = self.cgroup.is_some() && !self.orders.command.is_empty() && !self.waits_in_vain;
        if wanted && self.fence.idle() && self.waiting.is_none() {
            match self.shim(true) {
                Ok(shim) => self.waiting = Some(shim),
                Err(_) => self.waits_in_vain = true,
            }
        }
    }

    /// Hears whether the shims are in the cgroup, and whether the main one has become the program.
    fn hear_shims(&mut self, inputs: &mut Vec<Input>) {
        let waiting = self.waiting.iter_mut().map(|shim| (shim, false));
        for (shim, is_main) in self.main.iter_mut().map(|shim| (shim, true)).chain(waiting) {
            loop {
                match shim.hear() {
                    Word::Nothing => break,
                    Word::Place(Ok(())) => {
                        let dir = self.cgroup.as_ref().map(|cgroup| cgroup.dir().display().to_string());
                        self.sidecar.tell(&Event::Confined { dir: Text::new(dir.unwrap_or_default()) });
                    }
                    Word::Place(Err(why)) => self.sidecar.tell(&Event::Loose { why }),
                    Word::Executed if is_main => inputs.push(Input::Executed),
                    Word::Cannot(reason) if is_main => {
                        inputs.push(Input::CannotStart { reason, spawned: true });
                    }
                    Word::Executed | Word::Cannot(_) => {}
                }
            }
        }
    }

    /// Buries the dead, own children and adopted ones, and notes when none is left.
    fn reap(&mut self, inputs: &mut Vec<Input>) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if self.waiting.take_if(|shim| shim.pid == pid).is_some() {
                        self.waits_in_vain = true;
                    } else if self.undo.pid() == Some(pid) {
                        let failed = (status.exit_status() != Some(0)).then(|| how(status));
                        self.undo.has_ended(pid, failed, &mut self.sidecar);
                    } else if self.main.as_ref().is_some_and(|main| main.pid == pid) {
                        // What the shim wrote before it ended must be heard before its end.
                        self.hear_shims(inputs);
                        self.main = None;
                        inputs.push(Input::MainEnded { how: Text::new(how(status)) });
                    }
                }
                Ok(None) => {
                    if self.undo.pid().is_some() {
                        self.undo.is_done(&self.orders, &mut self.sidecar);
                    }
                    self.name_left(inputs);
                    return;
                }
                Err(Errno::INTR) => {}
                Err(_) => {
                    let empty = !self.cgroup.as_ref().is_some_and(Cgroup::populated);
                    if self.fence.occupied() && empty && self.undo.is_done(&self.orders, &mut self.sidecar) {
                        inputs.push(Input::NothingLeft);
                    }
                    return;
                }
            }
        }
    }

    /// Says, if the main process has just ended by itself, what it has left running. That will be killed now, and whoever wonders
    /// why a program that goes into the background does not stay reads it there.
    fn name_left(&self, inputs: &mut [Input]) {
        let ended = inputs.iter_mut().find_map(|input| match input {
            Input::MainEnded { how } => Some(how),
            _ => None,
        });
        if let Some(how) = ended.filter(|_| !self.fence.emptying()) {
            let left = orphans::children_of(getpid());
            let names: Vec<String> = left.into_iter().filter_map(orphans::name).collect();
            if !names.is_empty() {
                *how = Text::new(format!("{how}{LEFT}{}", names.join(", ")));
            }
        }
    }

    /// Signals the workload's group. As long as its leader is not reaped, the group's number cannot be anybody
    /// else's; afterwards only our own children are signalled.
    fn signal(&self, signal: Signal) {
        match &self.main {
            Some(main) => {
                let _ = kill_process_group(main.pid, signal);
            }
            None => self.signal_children(signal),
        }
    }

    /// A child that has not been reaped keeps its process id, so none of these can be anybody else.
    fn signal_children(&self, signal: Signal) {
        let undo = self.undo.pid();
        for pid in orphans::children_of(getpid()).into_iter().filter(|pid| Some(*pid) != undo) {
            let _ = kill_process(pid, signal);
        }
    }

    /// One round: kills all direct children, and the whole cgroup. The children of others become ours and fall in the
    /// next round.
    fn kill_children(&self) {
        self.signal(Signal::KILL);
        if let Some(cgroup) = self.cgroup.as_ref().filter(|cgroup| cgroup.populated()) {
            cgroup.kill();
        }
        if self.main.is_some() {
            self.signal_children(Signal::KILL);
        }
    }

    /// Waits until something happens or the fence wants to be asked again.
    fn wait(&mut self) {
        // Read first, so that the timer goes off at once if the machine sleeps from here on.
        let timers = boottime();
        let now = BootClock.now();
        self.emptying_since = self.fence.emptying().then(|| self.emptying_since.unwrap_or(now));
        let mut longest = LONGEST_WAIT;
        if let Some(since) = self.emptying_since {
            longest = if now.since(since) < LONGEST_WAIT { EMPTYING_WAIT } else { STUCK_WAIT };
        } else if self.main.as_ref().is_some_and(|main| main.pidfd.is_none()) {
            longest = NO_PIDFD_WAIT;
        }
        let wake = self.fence.wake_at().map(|wake| wake.since(now));
        arm(&self.timer, wake.map(|left| timers + early(left)));
        longest = longest.min(wake.unwrap_or(longest));
        let mut sidecar = PollFlags::IN;
        sidecar.set(PollFlags::OUT, self.sidecar.unsent());
        let mut fds = vec![PollFd::new(&self.timer, PollFlags::IN)];
        if !self.sidecar.gone {
            fds.push(PollFd::new(&self.sidecar, sidecar));
        }
        if let Some(pidfd) = self.main.as_ref().and_then(|main| main.pidfd.as_ref()) {
            fds.push(PollFd::new(pidfd, PollFlags::IN));
        }
        for socket in self.main.iter().chain(&self.waiting).filter_map(Shim::socket) {
            fds.push(PollFd::new(socket, PollFlags::IN));
        }
        // An error here (a signal) only means that the loop turns once more.
        let _ = poll(&mut fds, Some(&timespec(longest)));
    }
}

/// What the kernel must grant before anything is started: a session, the orphans, a timer, the lock's file.
fn take_place(orders: &Orders) -> Result<(OwnedFd, File), Text> {
    let not = |what: &str, why: &dyn std::fmt::Display| Text::new(format!("cannot {what}: {why}"));
    setsid().map_err(|e| not("lead a session", &e))?;
    set_child_subreaper(Some(getpid())).map_err(|e| not("become the reaper of orphans", &e))?;
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
        .map_err(|e| not("get a timer on the boot clock", &e))?;
    let lock = OpenOptions::new()
        .append(true)
        .create(true)
        // Who may open it may also hold its lock, and then nothing starts here.
        .mode(0o600)
        .open(&orders.lock)
        .map_err(|e| not(&format!("open {}", orders.lock.display()), &e))?;
    Ok((timer, lock))
}

/// The kernel's timers count suspend, as our clock does, but may be slewed by a tenth, as our clock is not: so they go off
/// early, and are armed again for the rest.
fn early(left: Duration) -> Duration {
    if left > ARMED_EXACTLY { left * 9 / 10 } else { left }
}

/// Arms the timer for a moment of the kernel's boot time, or disarms it.
fn arm(timer: &OwnedFd, at: Option<Moment>) {
    let it_value = timespec(Duration::from_nanos(at.unwrap_or_default().as_nanos()));
    let it_interval = timespec(Duration::ZERO);
    let _ = timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &Itimerspec { it_interval, it_value });
}

pub(super) fn timespec(d: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX), tv_nsec: d.subsec_nanos().into() }
}

pub(super) fn how(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}
