//! Kind `process`: the workload is a process of this device, started and ended by a fencer.
//!
//! [`ProcessWorkload`] is a handle; behind it one task owns the link to the fencer (`link.rs`), passes commands on and
//! turns the fencer's events into what is observed. The task never waits for the fencer while it should listen.
//!
//! **Orphans first, then claim anew.** From its making on, a `ProcessWorkload` has a fencer take the lock in the data
//! folder; the fencer of an earlier life holds that lock until nothing of its workload runs, and whatever a killed
//! fencer left behind is ended before the new one reports ready. Until then [`Observed::Stopping`] with epoch zero is
//! shown, and nothing starts. A restarted sidecar must await [`ProcessWorkload::ensure_none_running`] before it takes
//! part in anything that could make it owner; the stop receipts of its earlier life are sound only because of that.
//!
//! If the fencer is lost, the workload's main process dies with it; the next fencer ends the rest, and only its
//! readiness makes `Stopped` true again. As a second line, a fencer that has not reported the end by deadline plus
//! grace is killed from here.
//!
//! Deliberately not here: the deadline and the restarts (`fence.rs`). A sidecar that hangs must not matter to them.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    BoxFuture, Error, Grant, Observed, Settings, Workload,
    link::Link,
    wire::{Command, Event},
};
use crate::{
    clock::{Clock, Moment, sleep_until},
    condition::{Condition, Raised},
    epoch::Epoch,
    id::{DeviceId, SiteId},
    timing::Timing,
};

/// The lock's name inside the data folder.
pub const LOCK_FILE: &str = "fencer.lock";
/// The pauses between tries to start a fencer.
const RESPAWN: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(5);
/// For how long `fencer.lost` stays raised.
const LOST_SHOWN: Duration = Duration::from_secs(300);
/// From this many failures in a row on, `workload.crashing` is raised.
const CRASHING: u32 = 3;
/// Together with the grace: how long leaving waits for the fencer.
const LEAVE_SLACK: Duration = Duration::from_secs(1);

/// What a process workload needs from its surroundings.
#[derive(Debug, Clone)]
pub struct Context {
    /// The binary that contains the fencer. `None`: this very binary, also if its file has been replaced since.
    pub program: Option<PathBuf>,
    /// The sidecar's data folder, which must exist. No two sidecars share one.
    pub data: PathBuf,
    /// This device; the workload sees it as `QUORATE_DEVICE`.
    pub device: DeviceId,
    /// This site; the workload sees it as `QUORATE_SITE`.
    pub site: SiteId,
    /// The control socket; the workload sees it as `QUORATE_CONTROL_SOCKET`.
    pub control_socket: Option<PathBuf>,
    /// Where the grace comes from.
    pub timing: Timing,
    /// The boot clock. The fencer reads the real one, so only that one makes sense outside of tests.
    pub clock: Arc<dyn Clock>,
    /// Where tasks are spawned.
    pub tracker: TaskTracker,
    /// Cancelled when the sidecar leaves: the workload is stopped then.
    pub leave: CancellationToken,
}

/// A workload that is a process. Dropping it stops the workload.
#[derive(Debug)]
pub struct ProcessWorkload {
    asks: mpsc::UnboundedSender<Ask>,
    observed: watch::Receiver<Observed>,
    conditions: watch::Receiver<Vec<Raised>>,
    clock: Arc<dyn Clock>,
}

type Reply = oneshot::Sender<Result<(), Error>>;

#[derive(Debug)]
enum Ask {
    Ready(Reply),
    Start(Grant, Reply),
    Extend(Moment),
    Stop(Reply),
}

impl ProcessWorkload {
    /// Begins to make sure that nothing of an earlier life runs; starts no workload. `settings` must have no faults.
    /// Must be called inside a tokio runtime.
    pub fn new(settings: &Settings, context: Context) -> ProcessWorkload {
        let (asks, inbox) = mpsc::unbounded_channel();
        // Until the first fencer is ready nobody knows what an earlier life left running.
        let observed = watch::Sender::new(Observed::Stopping { epoch: Epoch::ZERO });
        let conditions = watch::Sender::new(Vec::new());
        let workload = ProcessWorkload {
            asks,
            observed: observed.subscribe(),
            conditions: conditions.subscribe(),
            clock: context.clock.clone(),
        };
        let driver = Driver {
            settings: settings.clone(),
            inbox,
            observed,
            conditions,
            raised: BTreeMap::new(),
            link: None,
            ready: false,
            phase: Phase::Idle,
            starting: None,
            waiting_ready: Vec::new(),
            waiting_stop: Vec::new(),
            spawn_at: Moment::default(),
            spawn_pause: *RESPAWN.start(),
            trouble: None,
            lost_session: None,
            context: context.clone(),
        };
        context.tracker.spawn(driver.run());
        workload
    }

    /// Waits until nothing of an earlier life runs and a fencer of this life is ready. Await this before the sidecar
    /// takes part in anything that could make it owner. Cancel-safe; can be called again.
    ///
    /// # Errors
    /// [`Error::Fencer`] if that is not certain by the moment `by`, with what stands in the way.
    pub async fn ensure_none_running(&self, by: Moment) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Ready(reply), answer, by).await
    }

    /// `fencer.lost`, `workload.crashing` and `workload.cannot_start`, as far as they hold now.
    pub fn conditions(&self) -> watch::Receiver<Vec<Raised>> {
        self.conditions.clone()
    }

    async fn ask(
        &self,
        ask: Ask,
        answer: oneshot::Receiver<Result<(), Error>>,
        by: Moment,
    ) -> Result<(), Error> {
        self.asks.send(ask).map_err(|_| left())?;
        tokio::select! {
            answer = answer => answer.unwrap_or_else(|_| Err(left())),
            () = sleep_until(&*self.clock, by) => Err(Error::Fencer(
                "is not ready: it waits for the remains of an earlier life to end".into(),
            )),
        }
    }
}

fn left() -> Error {
    Error::Fencer("is not asked any more: the sidecar is leaving".into())
}

impl Workload for ProcessWorkload {
    fn start(&self, grant: Grant) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            self.asks.send(Ask::Start(grant, reply)).map_err(|_| left())?;
            answer.await.unwrap_or_else(|_| Err(left()))
        })
    }

    fn extend(&self, until: Moment) {
        // A driver that has left has stopped the workload: there is nothing to extend.
        let _ = self.asks.send(Ask::Extend(until));
    }

    fn stop(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            if self.asks.send(Ask::Stop(reply)).is_err() {
                let stopped = *self.observed.borrow() == Observed::Stopped;
                return if stopped { Ok(()) } else { Err(left()) };
            }
            answer.await.unwrap_or_else(|_| Err(left()))
        })
    }

    fn observe(&self) -> watch::Receiver<Observed> {
        self.observed.clone()
    }
}

/// What the driver has asked the fencer for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing.
    Idle,
    /// To run.
    Granted(Grant),
    /// To stop; `by` is when the end must have been reported.
    Ending { epoch: Epoch, by: Moment },
}

struct Driver {
    settings: Settings,
    context: Context,
    inbox: mpsc::UnboundedReceiver<Ask>,
    observed: watch::Sender<Observed>,
    conditions: watch::Sender<Vec<Raised>>,
    /// What is raised, and until when.
    raised: BTreeMap<Condition, (String, Moment)>,
    link: Option<Link>,
    ready: bool,
    phase: Phase,
    /// A start that has not been answered. Kept back until the fencer is ready.
    starting: Option<(Grant, Reply)>,
    waiting_ready: Vec<Reply>,
    waiting_stop: Vec<Reply>,
    spawn_at: Moment,
    spawn_pause: Duration,
    /// Why the fencer could not be started, while it could not.
    trouble: Option<String>,
    lost_session: Option<i32>,
}

enum Next {
    Asked(Option<Ask>),
    Heard(Result<Event, String>),
    Time,
    Leave,
}

impl Driver {
    async fn run(mut self) {
        let (clock, leave) = (self.context.clock.clone(), self.context.leave.clone());
        loop {
            self.mind_the_clock();
            let alarm = self.alarm();
            let next = tokio::select! {
                biased;
                () = leave.cancelled() => Next::Leave,
                event = next_event(&mut self.link) => Next::Heard(event),
                ask = self.inbox.recv() => Next::Asked(ask),
                () = wait_for(&*clock, alarm) => Next::Time,
            };
            match next {
                Next::Heard(Ok(event)) => self.hear(event),
                Next::Heard(Err(why)) => self.lost(why),
                Next::Asked(Some(ask)) => self.asked(ask),
                Next::Asked(None) | Next::Leave => break,
                Next::Time => {}
            }
        }
        self.leave().await;
    }

    fn mind_the_clock(&mut self) {
        let now = self.context.clock.now();
        if self.link.is_none() && now >= self.spawn_at {
            self.spawn_fencer(now);
        }
        if self.starting.as_ref().is_some_and(|(grant, _)| !self.sent(grant) && now >= grant.until)
            && let Some((_, reply)) = self.starting.take()
        {
            let _ = reply.send(Err(Error::Late));
        }
        if self.overdue().is_some_and(|by| now >= by)
            && let Some(link) = &mut self.link
        {
            tracing::error!("the fencer has not reported the workload's end in time: killing the fencer");
            self.phase = Phase::Idle;
            link.kill();
        }
        let before = self.raised.len();
        self.raised.retain(|_, (_, until)| now < *until);
        if self.raised.len() != before {
            self.publish_conditions();
        }
    }

    fn alarm(&self) -> Option<Moment> {
        let spawn = self.link.is_none().then_some(self.spawn_at);
        let start =
            self.starting.as_ref().filter(|(grant, _)| !self.sent(grant)).map(|(grant, _)| grant.until);
        let shown = self.raised.values().map(|(_, until)| *until).min();
        [spawn, start, shown, self.overdue()].into_iter().flatten().min()
    }

    /// When the fencer must have reported the end.
    fn overdue(&self) -> Option<Moment> {
        match self.phase {
            Phase::Idle => None,
            Phase::Granted(grant) => Some(grant.until + self.context.timing.stop_grace()),
            Phase::Ending { by, .. } => Some(by),
        }
    }

    fn sent(&self, grant: &Grant) -> bool {
        matches!(self.phase, Phase::Granted(held) if held.epoch == grant.epoch)
    }

    fn asked(&mut self, ask: Ask) {
        match ask {
            Ask::Ready(reply) if self.ready => drop(reply.send(Ok(()))),
            Ask::Ready(reply) => self.waiting_ready.push(reply),
            Ask::Start(grant, reply) => self.asked_to_start(grant, reply),
            Ask::Extend(until) => self.extend(until),
            Ask::Stop(reply) => self.asked_to_stop(reply),
        }
        // Nobody who has gone away needs an answer.
        self.waiting_ready.retain(|reply| !reply.is_closed());
        self.waiting_stop.retain(|reply| !reply.is_closed());
    }

    fn asked_to_start(&mut self, grant: Grant, reply: Reply) {
        let answer = match self.phase {
            _ if self.context.clock.now() >= grant.until => Err(Error::Late),
            Phase::Granted(held) if held.epoch == grant.epoch && self.starting.is_none() => {
                self.extend(grant.until);
                Ok(())
            }
            Phase::Granted(Grant { epoch, .. }) | Phase::Ending { epoch, .. } => {
                Err(Error::Fencer(format!("has not ended the workload of epoch {epoch}; stop it first")))
            }
            Phase::Idle if self.starting.is_some() => Err(Error::Fencer("is starting it already".into())),
            Phase::Idle => match (&self.trouble, &self.link) {
                (Some(trouble), None) => Err(Error::Fencer(trouble.clone())),
                _ => {
                    self.starting = Some((grant, reply));
                    self.send_start();
                    return;
                }
            },
        };
        let _ = reply.send(answer);
    }

    fn send_start(&mut self) {
        if let (true, Phase::Idle, Some((grant, _)), Some(link)) =
            (self.ready, self.phase, &self.starting, &mut self.link)
        {
            link.say(&Command::Start { epoch: grant.epoch, until: grant.until });
            self.phase = Phase::Granted(*grant);
            // From here on it may run, whatever is or is not heard.
            self.observed.send_replace(Observed::Running { epoch: grant.epoch, pid: None });
        }
    }

    fn extend(&mut self, to: Moment) {
        if let (Phase::Granted(grant), Some(link)) = (&mut self.phase, &mut self.link)
            && to > grant.until
        {
            grant.until = to;
            link.extend(grant.epoch, to);
        }
        if let Some((grant, _)) = &mut self.starting {
            grant.until = grant.until.max(to);
        }
    }

    fn asked_to_stop(&mut self, reply: Reply) {
        let now = self.context.clock.now();
        match (&mut self.link, self.phase) {
            (Some(link), Phase::Granted(grant)) => {
                link.say(&Command::Stop);
                let by = now.min(grant.until) + self.context.timing.stop_grace();
                self.phase = Phase::Ending { epoch: grant.epoch, by };
                self.waiting_stop.push(reply);
            }
            (Some(_), Phase::Ending { .. }) => self.waiting_stop.push(reply),
            _ if self.ready => {
                let _ = reply.send(Ok(()));
            }
            (None, _) if self.trouble.is_some() => {
                let _ = reply.send(Err(Error::Fencer(self.trouble.clone().unwrap_or_default())));
            }
            _ => self.waiting_stop.push(reply),
        }
        // A start that was kept back must not happen after the stop.
        if !matches!(self.phase, Phase::Granted(_)) {
            self.fail_start(|| Error::Fencer("was told to stop before the start".into()));
        }
    }

    fn hear(&mut self, event: Event) {
        tracing::debug!(%event, "fencer");
        match event {
            Event::Ready => {
                (self.ready, self.trouble, self.lost_session) = (true, None, None);
                self.spawn_pause = *RESPAWN.start();
                self.stopped();
                for reply in self.waiting_ready.drain(..) {
                    let _ = reply.send(Ok(()));
                }
                self.send_start();
            }
            Event::Running { epoch, pid } => {
                tracing::info!(%epoch, pid, "the workload runs");
                self.lower(Condition::WorkloadCannotStart);
                self.observed.send_replace(Observed::Running { epoch, pid: Some(pid) });
                if let Some((_, reply)) = self.starting.take() {
                    let _ = reply.send(Ok(()));
                }
            }
            Event::Exited { epoch, failures, how } => {
                tracing::warn!(%epoch, failures, %how, "the workload ended by itself; it is started again");
                if failures >= CRASHING {
                    self.raise(
                        Condition::WorkloadCrashing,
                        format!("{failures} times in a row; last: {how}"),
                    );
                }
                let last = how.as_str().to_owned();
                self.observed.send_replace(Observed::BackingOff { epoch, failures, last });
                // It was started, and is gone again: the start itself was carried out.
                if let Some((_, reply)) = self.starting.take() {
                    let _ = reply.send(Ok(()));
                }
            }
            Event::CannotStart { epoch, failures, reason } => {
                let program = self.settings.command.first().cloned().unwrap_or_default();
                let reason = reason.as_str().to_owned();
                tracing::error!(%epoch, failures, program, reason, "the workload cannot be started");
                self.raise(Condition::WorkloadCannotStart, format!("{program}: {reason}"));
                let last = format!("cannot start: {reason}");
                self.observed.send_replace(Observed::BackingOff { epoch, failures, last });
                self.fail_start(|| Error::CannotStart { program, reason });
            }
            Event::Stopping { epoch } => {
                self.observed.send_replace(Observed::Stopping { epoch });
                if let Phase::Granted(grant) = self.phase {
                    // Its own deadline made the fencer stop: no later extension can be meant for this run.
                    let by = grant.until + self.context.timing.stop_grace();
                    self.phase = Phase::Ending { epoch, by };
                }
                self.fail_start(|| Error::Late);
            }
            Event::Stopped { epoch, at } => {
                tracing::info!(%epoch, %at, "the workload is stopped");
                self.fail_start(|| Error::Late);
                self.stopped();
            }
            Event::Late { .. } => {
                self.fail_start(|| Error::Late);
                self.stopped();
            }
            Event::Busy { epoch } => self.lost(format!("and the sidecar disagree: busy at epoch {epoch}")),
            Event::Failed { reason } => self.trouble = Some(reason.as_str().to_owned()),
        }
    }

    /// Nothing runs, and that is certain.
    fn stopped(&mut self) {
        self.phase = Phase::Idle;
        self.lower(Condition::WorkloadCannotStart);
        self.lower(Condition::WorkloadCrashing);
        self.observed.send_replace(Observed::Stopped);
        for reply in self.waiting_stop.drain(..) {
            let _ = reply.send(Ok(()));
        }
    }

    fn fail_start(&mut self, error: impl FnOnce() -> Error) {
        if let Some((_, reply)) = self.starting.take() {
            let _ = reply.send(Err(error()));
        }
    }

    fn spawn_fencer(&mut self, now: Moment) {
        self.spawn_pause = (self.spawn_pause * 2).min(*RESPAWN.end());
        self.spawn_at = now + self.spawn_pause;
        match Link::spawn(&self.settings, &self.context, self.lost_session) {
            Ok(link) => self.link = Some(link),
            Err(e) => {
                let trouble = format!("cannot be started: {e}");
                tracing::error!("the fencer {trouble}");
                self.in_trouble(trouble);
            }
        }
    }

    /// The link broke. Whatever ran is dying; the next fencer makes sure of it.
    fn lost(&mut self, why: String) {
        let Some(link) = self.link.take() else { return };
        self.lost_session = link.session();
        if std::mem::take(&mut self.ready) {
            let epoch = self.observed.borrow().epoch().unwrap_or_default();
            tracing::error!("the fencer was lost ({why}); its workload dies with it");
            self.observed.send_replace(Observed::Stopping { epoch });
            self.raise(Condition::FencerLost, format!("the fencer was lost: {why}"));
            self.fail_start(|| Error::Fencer(format!("was lost: {why}")));
            // The first try comes at once: the remains must be ended.
            self.spawn_at = Moment::default();
        } else {
            let trouble = self.trouble.take().unwrap_or_else(|| format!("did not get ready: {why}"));
            tracing::error!("the fencer {trouble}");
            self.in_trouble(trouble);
        }
        self.phase = Phase::Idle;
        link.abandon(&self.context.tracker);
    }

    fn in_trouble(&mut self, trouble: String) {
        let replies = self.waiting_ready.drain(..).chain(self.waiting_stop.drain(..));
        for reply in replies.chain(self.starting.take().map(|(_, reply)| reply)) {
            let _ = reply.send(Err(Error::Fencer(trouble.clone())));
        }
        self.trouble = Some(trouble);
    }

    fn raise(&mut self, name: Condition, detail: String) {
        self.raised.insert(name, (detail, self.context.clock.now() + LOST_SHOWN));
        self.publish_conditions();
    }

    fn lower(&mut self, name: Condition) {
        if self.raised.remove(&name).is_some() {
            self.publish_conditions();
        }
    }

    fn publish_conditions(&self) {
        let raised = self.raised.iter().map(|(name, (detail, _))| Raised::new(*name, detail.clone()));
        self.conditions.send_replace(raised.collect());
    }

    /// Lets go of the fencer, which then stops the workload and ends, and stays to see it for at most the grace.
    async fn leave(mut self) {
        self.inbox.close();
        let Some(mut link) = self.link.take() else { return };
        let by = self.context.clock.now() + self.context.timing.stop_grace() + LEAVE_SLACK;
        link.hang_up();
        let ended = tokio::select! {
            ended = link.ended() => ended,
            () = sleep_until(&*self.context.clock, by) => false,
        };
        if ended && self.ready {
            self.stopped();
        } else {
            tracing::error!("the fencer has not reported the workload's end; it goes on trying by itself");
        }
    }
}

async fn next_event(link: &mut Option<Link>) -> Result<Event, String> {
    match link {
        Some(link) => link.next().await,
        None => std::future::pending().await,
    }
}

async fn wait_for(clock: &dyn Clock, alarm: Option<Moment>) {
    match alarm {
        Some(at) => sleep_until(clock, at).await,
        None => std::future::pending().await,
    }
}

/// The environment of the fencer, and so of the workload: the sidecar's own without its settings, which may hold
/// secrets, plus what the configuration and the contract say.
pub(super) fn environment(settings: &Settings, context: &Context) -> BTreeMap<OsString, OsString> {
    let mut environment: BTreeMap<OsString, OsString> = std::env::vars_os()
        .filter(|(name, _)| !name.as_encoded_bytes().starts_with(b"QUORATE_"))
        .chain(settings.env.iter().map(|(name, value)| (name.into(), value.into())))
        .collect();
    environment.insert("QUORATE_DEVICE".into(), context.device.as_str().into());
    environment.insert("QUORATE_SITE".into(), context.site.as_str().into());
    if let Some(socket) = &context.control_socket {
        environment.insert("QUORATE_CONTROL_SOCKET".into(), socket.into());
    }
    environment
}
