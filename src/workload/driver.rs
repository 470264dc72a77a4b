//! The sidecar's side of a process workload: one task that owns the link to the fencer.
//!
//! It passes on what handles ask for, turns the fencer's events into what is observed, replaces a fencer that was lost,
//! and gives up one that shows no life or does not report the end in time: kills it, and what is left of its workload.
//! It never waits for the fencer while it should listen, and it never says `Stopped` without the word of a fencer.

mod asks;
mod hear;
mod succession;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicI32},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Context, Error, Grant, HeldBy, Observed, Settings, Words,
    fence::{STEADY, pause_after},
    link::{self, Link},
    notify,
    pulse::Pulse,
    readiness::{Readiness, Ready, Said},
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

/// What handles see.
pub(super) struct Shown {
    pub(super) observed: watch::Sender<Observed>,
    pub(super) conditions: watch::Sender<Vec<Raised>>,
    pub(super) held_by: watch::Sender<Option<HeldBy>>,
    pub(super) words: watch::Sender<Words>,
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
    words: watch::Sender<Words>,
    /// What the workload's words come to; `None` if none are asked for.
    readiness: Option<Readiness>,
    said: watch::Receiver<Said>,
    /// The session of the present fencer, by which its workload is known.
    session: Arc<AtomicI32>,
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
        secrets: Arc<Mutex<Secrets>>,
        shown: Shown,
    ) -> Driver {
        let Shown { observed, conditions, held_by, words } = shown;
        let pulse = Pulse::new(&context.timing);
        let (session, said) = (Arc::<AtomicI32>::default(), watch::Sender::new(Said::default()));
        let heard = said.subscribe();
        let readiness = settings.ready.and_then(|demand| {
            let opened = listen(&settings, &context, session.clone(), said);
            // Nobody is blamed for a word that cannot be heard, but the device is not well.
            opened
                .map_err(|why| words.send_replace(Words { ready: Ready::Fails(why), status: None }))
                .ok()?;
            Some(Readiness::new(demand))
        });
        Driver {
            words,
            readiness,
            said: heard,
            session,
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
                Ok(()) = self.said.changed() => Next::Time,
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
        self.mind_its_words(now);
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
        let now = self.context.clock.now();
        let words = self.readiness.as_ref().and_then(|r| r.wake_at(now, &self.said.borrow()));
        [spawn, start, shown, pulse, rest, words, self.overdue()].into_iter().flatten().min()
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

    fn secrets(&self) -> MutexGuard<'_, Secrets> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Begins to hear the workload, until the sidecar leaves.
fn listen(
    settings: &Settings,
    context: &Context,
    session: Arc<AtomicI32>,
    said: watch::Sender<Said>,
) -> Result<(), String> {
    let mark = std::fs::canonicalize(&context.data).and_then(|data| link::mark(&data));
    let mark = mark.map_err(|e| format!("{}: {e}", context.data.display()))?;
    let socket = notify::open(&context.notify, settings.user)?;
    let heard = notify::listen(socket, mark, session, context.clock.clone(), said);
    let (leave, path) = (context.leave.clone(), context.notify.clone());
    context.tracker.spawn(async move {
        leave.run_until_cancelled(heard).await;
        let _ = std::fs::remove_file(path);
    });
    Ok(())
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
