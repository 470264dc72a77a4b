//! The sidecar's side of a process workload: one task that owns the link to the fencer.
//!
//! It passes on what handles ask for, turns the fencer's events into what is observed, replaces a fencer that was lost,
//! and gives up one that shows no life or does not report the end in time: kills it, and what is left of its workload.
//! It never waits for the fencer while it should listen, and it never says `Stopped` without the word of a fencer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Context, Error, Grant, HeldBy, Observed, Settings,
    fence::{STEADY, pause_after},
    link::Link,
    pulse::Pulse,
    secrets::Secrets,
    wire::{Command, Event},
};
use crate::{
    clock::{Clock, Moment, sleep_until},
    condition::{Condition, Raised},
};

/// The pauses between tries to start a fencer.
const RESPAWN: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(5);
/// For how long `fencer.lost` stays raised.
const LOST_SHOWN: Duration = Duration::from_secs(300);
/// From this many failures in a row on, `workload.crashing` is raised.
const CRASHING: u32 = 3;
/// Together with the grace: how long leaving waits for the fencer.
const LEAVE_SLACK: Duration = Duration::from_secs(1);

pub(super) type Reply = oneshot::Sender<Result<(), Error>>;

/// What a handle wants.
#[derive(Debug)]
pub(super) enum Ask {
    Ready(Reply),
    Start(Grant, Reply),
    Extend(Moment),
    Stop(Reply),
}

/// What the driver has asked the fencer for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing.
    Idle,
    /// To run.
    Granted(Grant),
    /// To stop. It may take until the deadline's grace, or `patience` if that is sooner, is over.
    Ending {
        grant: Grant,
        patience: Moment,
        /// Whether the fencer has said that it is at it.
        heard: bool,
    },
}

/// The task behind a [`super::ProcessWorkload`].
pub(super) struct Driver {
    settings: Settings,
    context: Context,
    inbox: mpsc::UnboundedReceiver<Ask>,
    observed: watch::Sender<Observed>,
    conditions: watch::Sender<Vec<Raised>>,
    secrets: Arc<Mutex<Secrets>>,
    held_by: watch::Sender<Option<HeldBy>>,
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
    pulse: Pulse,
    /// Ends when the remains of a lost fencer have been killed. Until then no other is started.
    burial: Option<oneshot::Receiver<()>>,
    /// How many fencers in a row were lost soon after they were ready, and when the last one was ready.
    losses: u32,
    ready_since: Moment,
    /// A fencer is ready, but is not used before this moment.
    rest_until: Option<Moment>,
}

enum Next {
    Asked(Option<Ask>),
    Heard(Result<Event, String>),
    Buried,
    Time,
    Leave,
}

impl Driver {
    /// A driver without a fencer, which is the first thing it gets.
    pub(super) fn new(
        settings: Settings,
        context: Context,
        inbox: mpsc::UnboundedReceiver<Ask>,
        observed: watch::Sender<Observed>,
        conditions: watch::Sender<Vec<Raised>>,
        secrets: Arc<Mutex<Secrets>>,
        held_by: watch::Sender<Option<HeldBy>>,
    ) -> Driver {
        let pulse = Pulse::new(&context.timing);
        Driver {
            settings,
            context,
            inbox,
            observed,
            conditions,
            secrets,
            held_by,
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
            pulse,
            burial: None,
            losses: 0,
            ready_since: Moment::default(),
            rest_until: None,
        }
    }

    /// Serves until the sidecar leaves or every handle is dropped; then the workload is stopped.
    pub(super) async fn run(mut self) {
        let (clock, leave) = (self.context.clock.clone(), self.context.leave.clone());
        loop {
            if self.mind_the_clock() {
                // What the fencer said lies there unread. It is read before the fencer is judged.
                tokio::task::yield_now().await;
            }
            let alarm = self.alarm();
            let next = tokio::select! {
                biased;
                () = leave.cancelled() => Next::Leave,
                event = next_event(&mut self.link) => Next::Heard(event),
                () = buried(&mut self.burial) => Next::Buried,
                ask = self.inbox.recv() => Next::Asked(ask),
                () = wait_for(&*clock, alarm) => Next::Time,
            };
            match next {
                Next::Heard(Ok(event)) => self.hear(event),
                Next::Heard(Err(why)) => self.lost(why),
                Next::Asked(Some(ask)) => self.asked(ask),
                Next::Asked(None) | Next::Leave => break,
                Next::Buried => self.burial = None,
                Next::Time => {}
            }
        }
        self.leave().await;
    }

    /// Does what is due. Returns whether the fencer, which should be given up, has said something meanwhile.
    fn mind_the_clock(&mut self) -> bool {
        let now = self.context.clock.now();
        if self.rest_until.is_some_and(|until| now >= until) {
            self.use_fencer(now);
        }
        if self.link.is_none() && self.burial.is_none() && now >= self.spawn_at {
            self.spawn_fencer(now);
        }
        if self.starting.as_ref().is_some_and(|(grant, _)| !self.sent(grant) && now >= grant.until)
            && let Some((_, reply)) = self.starting.take()
        {
            let _ = reply.send(Err(Error::Late));
        }
        let silent = self.pulse.lost_at().is_some_and(|by| now >= by);
        let mut unread = false;
        if silent || self.overdue().is_some_and(|by| now >= by) {
            unread = self.link.as_ref().is_some_and(Link::has_word);
            if !unread {
                let failed = if silent { "gave no sign of life" } else { "has not reported the end" };
                self.lost(format!("it {failed} in time, so it was killed"));
            }
        }
        self.ask_for_life(now);
        let before = self.raised.len();
        self.raised.retain(|_, (_, until)| now < *until);
        if self.raised.len() != before {
            self.publish_conditions();
        }
        unread
    }

    fn ask_for_life(&mut self, now: Moment) {
        if let (Phase::Granted(grant) | Phase::Ending { grant, .. }, Some(link)) =
            (self.phase, &mut self.link)
            && self.pulse.ask(now, grant.until.since(now))
        {
            link.say(&Command::Ping);
        }
    }

    fn alarm(&self) -> Option<Moment> {
        let spawn = (self.link.is_none() && self.burial.is_none()).then_some(self.spawn_at);
        let start =
            self.starting.as_ref().filter(|(grant, _)| !self.sent(grant)).map(|(grant, _)| grant.until);
        let shown = self.raised.values().map(|(_, until)| *until).min();
        let (pulse, rest) = (self.pulse.wake_at(), self.rest_until);
        [spawn, start, shown, pulse, rest, self.overdue()].into_iter().flatten().min()
    }

    /// When the fencer is given up, early enough that what it leaves is killed within the grace: half of it after the
    /// deadline if it has not said by then that it is stopping the workload, else when it should have killed it.
    fn overdue(&self) -> Option<Moment> {
        let grace = self.context.timing.stop_grace();
        match self.phase {
            Phase::Idle => None,
            Phase::Granted(grant) | Phase::Ending { grant, heard: false, .. } => {
                Some(grant.until + grace / 2)
            }
            Phase::Ending { grant, patience, heard: true } => {
                // What has to be undone may take as long as it needs while the lease is renewed: a device that cannot end its workload
                // goes on as the owner, and says so. Its fencer is well; it is minded by its signs of life.
                let end = if self.settings.undo.is_empty() { grant.until.min(patience) } else { grant.until };
                Some(end + grace * 7 / 8)
            }
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
            _ if self.secrets().burned() == Some(grant.epoch) => Err(Error::Burned(grant.epoch)),
            Phase::Granted(held) if held.epoch == grant.epoch && self.starting.is_none() => {
                self.extend(grant.until);
                Ok(())
            }
            Phase::Granted(Grant { epoch, .. }) | Phase::Ending { grant: Grant { epoch, .. }, .. } => {
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
            let Grant { epoch, until } = *grant;
            let secret = self.secrets.lock().unwrap_or_else(PoisonError::into_inner).hand_over(epoch);
            link.say(&Command::Start { epoch, until, secret });
            link.say(&Command::Ping);
            self.pulse.begin(self.context.clock.now());
            self.phase = Phase::Granted(*grant);
            // From here on it may run, whatever is or is not heard.
            self.observed.send_replace(Observed::Running { epoch: grant.epoch, pid: None });
        }
    }

    fn secrets(&self) -> MutexGuard<'_, Secrets> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn extend(&mut self, to: Moment) {
        let now = self.context.clock.now();
        if let (Phase::Granted(grant) | Phase::Ending { grant, .. }, Some(link)) =
            (&mut self.phase, &mut self.link)
            && to > grant.until
            && now < grant.until
        {
            grant.until = to;
            link.extend(grant.epoch, to);
            if self.pulse.ask(now, to.since(now)) {
                link.say(&Command::Ping);
            }
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
                self.phase =
                    Phase::Ending { grant, patience: now + self.settings.stop_timeout, heard: false };
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
        let now = self.context.clock.now();
        self.pulse.heard(now);
        match event {
            Event::Alive => {}
            Event::Held { pid, what } => {
                let folder = self.context.data.display();
                tracing::warn!(%folder, pid, %what, "another process holds fencer.lock");
            }
            Event::Confined { dir } => {
                if self.held_by.send_replace(Some(HeldBy::Cgroup)) != Some(HeldBy::Cgroup) {
                    tracing::info!(%dir, "the workload gets a cgroup of its own");
                }
            }
            Event::Loose { why } => {
                if self.held_by.send_replace(Some(HeldBy::Reaper)) != Some(HeldBy::Reaper) {
                    tracing::info!(%why, "the workload gets no cgroup of its own; the fencer holds it as the reaper of its orphans");
                }
            }
            Event::Ready => {
                (self.trouble, self.lost_session) = (None, None);
                self.spawn_pause = *RESPAWN.start();
                self.rest_until = Some(now + self.rest());
                self.use_fencer(now);
            }
            Event::Running { epoch, pid } => {
                tracing::info!(%epoch, pid, "the workload runs");
                self.lower(Condition::WorkloadCannotStart);
                self.lower(Condition::WorkloadCannotStop);
                self.observed.send_replace(Observed::Running { epoch, pid: Some(pid) });
                if let Some((_, reply)) = self.starting.take() {
                    let _ = reply.send(Ok(()));
                }
            }
            Event::Exited { epoch, failures, how } => {
                self.lower(Condition::WorkloadCannotStop);
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
                    self.phase = Phase::Ending { grant, patience: grant.until, heard: true };
                } else if let Phase::Ending { heard, .. } = &mut self.phase {
                    *heard = true;
                }
                self.fail_start(|| Error::Late);
            }
            Event::NotUndone { how } => {
                let detail = format!("{}: {how}", self.settings.undo.join(" "));
                let known = self.raised.get(&Condition::WorkloadCannotStop);
                if known.is_none_or(|(known, _)| *known != detail) {
                    tracing::error!("what ends the workload has failed, and is tried again: {detail}");
                }
                self.raise(Condition::WorkloadCannotStop, detail);
                // It has ended by itself, and is not started again before the rest of it is gone.
                self.observed.send_if_modified(|observed| {
                    let Observed::Running { epoch, .. } = *observed else { return false };
                    let last = format!("it ended, and what it left cannot be undone: {how}");
                    *observed = Observed::BackingOff { epoch, failures: 1, last };
                    true
                });
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

    /// How long a fencer that is ready is not used, because those before it were lost one after the other. Meanwhile
    /// this device confirms nothing and claims nothing, and another one becomes owner.
    fn rest(&self) -> Duration {
        if self.losses < 2 { Duration::ZERO } else { pause_after(self.losses - 1).min(*RESPAWN.end()) }
    }

    /// From here on the fencer that reported ready counts, if its rest is over.
    fn use_fencer(&mut self, now: Moment) {
        if self.rest_until.take_if(|until| now >= *until).is_none() {
            return;
        }
        (self.ready, self.ready_since) = (true, now);
        self.stopped();
        for reply in self.waiting_ready.drain(..) {
            let _ = reply.send(Ok(()));
        }
        self.send_start();
    }

    /// Nothing runs, and that is certain.
    fn stopped(&mut self) {
        self.phase = Phase::Idle;
        self.pulse.rest();
        self.lower(Condition::WorkloadCannotStart);
        self.lower(Condition::WorkloadCrashing);
        self.lower(Condition::WorkloadCannotStop);
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

    /// The link broke, or the fencer is given up. Whatever ran is killed; the next fencer makes sure of it.
    fn lost(&mut self, why: String) {
        let Some(link) = self.link.take() else { return };
        self.lost_session = link.session();
        // Before anybody can see that it is gone.
        self.secrets().lost();
        self.pulse.rest();
        let rested = self.rest_until.take().is_some();
        self.phase = Phase::Idle;
        if std::mem::take(&mut self.ready) || rested {
            let now = self.context.clock.now();
            let short = rested || now.since(self.ready_since) < STEADY;
            self.losses = if short { self.losses.saturating_add(1) } else { 1 };
            let epoch = self.observed.borrow().epoch().unwrap_or_default();
            tracing::error!("the fencer was lost ({why}); its workload dies with it");
            self.observed.send_replace(Observed::Stopping { epoch });
            self.raise(Condition::FencerLost, format!("the fencer was lost: {why}"));
            self.fail_start(|| Error::Fencer(format!("was lost: {why}")));
            // The first try comes at once: the remains must be ended.
            self.spawn_at = Moment::default();
            self.burial = Some(link.bury(&self.context));
        } else {
            let trouble = self.trouble.take().unwrap_or_else(|| format!("did not get ready: {why}"));
            tracing::error!("the fencer {trouble}");
            self.in_trouble(trouble);
            link.abandon(&self.context.tracker);
        }
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

async fn buried(burial: &mut Option<oneshot::Receiver<()>>) {
    match burial {
        // It ends with an error, for nothing is said.
        Some(burial) => drop(burial.await),
        None => std::future::pending().await,
    }
}

async fn wait_for(clock: &dyn Clock, alarm: Option<Moment>) {
    match alarm {
        Some(at) => sleep_until(clock, at).await,
        None => std::future::pending().await,
    }
}
