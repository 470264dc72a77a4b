//! The mirror: what the site has agreed, written into the twins of its devices. Story C.
//!
//! One call is in flight at a time, and only the newest state is ever worth a call. What to do next is decided by a
//! pure planner (`mirror/plan.rs`); this loop carries it out, learns from the answer, and waits when it must. After an
//! outage only what differs is written. What another member has confirmed before is known without reading it, by the etag
//! that the twin had then. The twins are read and compared again one by one on a slow, jittered timer
//! (`mirror/rounds.rs`), because people write twins too and a hub may forget (`mirror/memory.rs`). Nothing here is a
//! heartbeat, and nothing on site ever waits for it.
//!
//! It deliberately does not decide who mirrors: while `published` holds `None`, it stays silent and forgets what it
//! knew. It never lowers an epoch in a twin: it compares before every write, and the write names the etag of the twin
//! that was compared, so an owner that is behind cannot overwrite one that is ahead, whatever its internet line.

pub(super) mod away;
mod knocks;
mod memory;
mod plan;
mod rounds;
mod state;

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

pub(crate) use away::window;
pub use plan::{Known, Step, plan, targets};
pub use state::{DeviceState, MirrorState, Settled};

use self::{away::Away, memory::Memory, rounds::Rounds};
use super::backoff::Backoff;
use crate::{
    clock::Clock,
    hub::{
        self, Confirmed, Error, Flag, Published, Retry, Settings, Spots, Target, Twin,
        error::{ANSWERED_CAP, UNREACHED_CAP},
        flag::Seen,
    },
};

/// Where chance comes from: a seeded generator of 64-bit numbers.
pub type Dice = Box<dyn FnMut() -> u64 + Send>;

/// This many writes in a row may find that the twin has changed before the mirror pauses.
const CONFLICTS: u32 = 3;
/// The longest pause between such writes.
const CONFLICT_CAP: Duration = Duration::from_secs(10);

/// The loop, with all that it needs.
pub struct Mirror {
    /// Where the twins are.
    pub hub: hub::Handle,
    /// What the site has agreed; `None` while this device does not mirror.
    pub published: watch::Receiver<Option<Published>>,
    /// What the twins were last confirmed to show, by whichever member.
    pub confirmed: watch::Receiver<Option<Confirmed>>,
    /// Where the loop says how it fares.
    pub state: watch::Sender<MirrorState>,
    /// The clock for moments that are shown. Waits run on tokio's timer.
    pub clock: Arc<dyn Clock>,
    /// Chance, for jitter only.
    pub dice: Dice,
    /// Where the flag stands, how often it is compared, and with how many sites the hub is shared.
    pub settings: Settings,
}

impl Mirror {
    /// Runs until `stop` is cancelled, or until nobody can publish any more. A call in flight is given up at once: the
    /// next mirror reads before it writes.
    pub async fn run(self, stop: CancellationToken) {
        let mut work = Work {
            spots: Spots::of(&self.settings),
            known: BTreeMap::new(),
            shown: BTreeMap::new(),
            memory: Memory::default(),
            last: None,
            targets: Vec::new(),
            progress: state::Progress::default(),
            backoff: Backoff::default(),
            conflicts: 0,
            contention: Backoff::default(),
            rounds: Rounds::default(),
            sweeping: false,
            away: None,
            answered: None,
            mirror: self,
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = work.run() => {}
        }
    }
}

struct Work {
    mirror: Mirror,
    spots: Spots,
    known: BTreeMap<Target, Known>,
    /// The same without doubt: while a twin is read again, the state goes on showing what was read before.
    shown: BTreeMap<Target, Known>,
    memory: Memory,
    /// What was published last.
    last: Option<Published>,
    /// The twins that it is about.
    targets: Vec<Target>,
    progress: state::Progress,
    /// Grows while the hub fails; a write that went through, or nothing left to do, ends it. A read does not: a hub
    /// that answers reads and fails writes must be left alone as well.
    backoff: Backoff,
    /// Writes in a row that found the twin changed.
    conflicts: u32,
    contention: Backoff,
    rounds: Rounds,
    /// All twins are being read because one was found to have gone back.
    sweeping: bool,
    /// The hub does not answer, or only that it cannot.
    away: Option<Away>,
    /// When it last did, since this device began to mirror.
    answered: Option<Instant>,
}

impl Work {
    async fn run(&mut self) {
        loop {
            self.look();
            let Some(wanted) = self.last.clone() else {
                if self.mirror.published.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let step = plan(&wanted, &self.targets, &self.known);
            self.sweeping &= matches!(step, Step::Read(_));
            let next = match step {
                Step::Read(target) => self.read(&target).await,
                Step::Write { target, flag, etag } => self.write(&target, &flag, &etag).await,
                Step::Ahead(_) => {
                    self.progress.behind(self.mirror.clock.now());
                    self.rest().await
                }
                Step::Done => {
                    let all = self.known.values().all(|known| match known {
                        Known::Refused(_) => false,
                        Known::Twin { seen, .. } => seen.epoch <= wanted.epoch,
                        Known::Missing | Known::Unread => true,
                    });
                    self.progress.compared(all);
                    self.rest().await
                }
            };
            match next {
                Next::Go => {}
                Next::Pause(length) => self.pause(length).await,
                Next::Knock => self.knock().await,
                Next::End => return,
            }
        }
    }

    async fn read(&mut self, target: &Target) -> Next {
        let hub = self.mirror.hub.clone();
        let result = self.attend(hub.get_twin(target)).await;
        if let Ok(twin) = &result
            && let Some(odd) = self.memory.judge(target, twin, &self.spots.read(twin))
        {
            tracing::warn!(condition = %odd.condition, "{}", odd.detail);
            // What happened to one may have happened to all.
            if !std::mem::replace(&mut self.sweeping, true) {
                self.known.clear();
            }
            self.progress.odd(target, odd);
        }
        self.learn(target, result)
    }

    async fn write(&mut self, target: &Target, flag: &Flag, etag: &str) -> Next {
        self.progress.behind(self.mirror.clock.now());
        self.show();
        let hub = self.mirror.hub.clone();
        let change = self.spots.write(flag);
        let result = self.attend(hub.patch_twin(target, &change, Some(etag))).await;
        // Whatever else went wrong, the write may have been applied: only a read can tell.
        if !matches!(result, Err(Error::Throttled { .. })) {
            self.known.insert(target.clone(), Known::Unread);
        }
        let result = match result {
            Ok(twin) if self.spots.read(&twin).flag.as_ref() != Some(flag) => {
                Err(Error::NotTheHub("it accepted a flag and answered with a twin without it".into()))
            }
            Ok(twin) => {
                tracing::info!(%target, epoch = flag.epoch, active = flag.active, "flag written to the twin");
                self.calm();
                self.memory.wrote(target, &twin, flag.epoch);
                self.rounds.wrote(target, Instant::now(), (self.mirror.dice)());
                Ok(twin)
            }
            Err(error) => Err(error),
        };
        self.progress.wrote(result.as_ref().err());
        self.learn(target, result)
    }

    /// Takes an answer in and says how to go on.
    fn learn(&mut self, target: &Target, result: Result<Twin, Error>) -> Next {
        self.progress.count(result.as_ref().err());
        let next = match result {
            Ok(twin) => {
                let seen = self.spots.read(&twin);
                self.progress.answered(self.mirror.clock.wall_ms(), target, seen.epoch);
                let right = self.last.as_ref().is_some_and(|published| {
                    seen.flag.as_ref() == Some(&Flag::wanted_on(published, &target.device))
                });
                if right {
                    self.progress.repaired(target, self.mirror.clock.now());
                }
                self.know(target, Known::Twin { etag: twin.etag, seen, disabled: twin.disabled });
                let turn = self.our_turn();
                self.answered = Some(Instant::now());
                turn.map_or(Next::Go, Next::Pause)
            }
            Err(error) => self.fail(target, &error),
        };
        self.show();
        next
    }

    fn fail(&mut self, target: &Target, error: &Error) -> Next {
        tracing::debug!(%target, %error, "the hub did not do it");
        let retry = error.retry();
        if let Retry::BackOff { cap, at_least } = retry {
            self.progress.trouble(Some(error.clone()));
            if !error.answered() || matches!(error, Error::Unavailable { .. }) {
                self.away.get_or_insert_with(|| Away::since(Instant::now()));
            }
            if matches!(error, Error::Unreachable(_)) {
                return Next::Knock;
            }
            let settings = &self.mirror.settings;
            let cap = match cap {
                ANSWERED_CAP => away::patience(settings.sites, settings.updates_per_second, cap),
                cap => cap,
            };
            let mut pause = self.backoff.next(cap, at_least, (self.mirror.dice)());
            if self.away.is_some() && at_least.is_none() {
                pause = away::fitting(self.window(), pause);
            }
            if let Some(away) = &mut self.away {
                away.interval = pause;
            }
            return Next::Pause(pause);
        }
        self.away = None;
        self.progress.trouble(None);
        if retry == Retry::Reread {
            self.known.insert(target.clone(), Known::Unread);
            self.conflicts += 1;
            if self.conflicts < CONFLICTS {
                return Next::Go;
            }
            return Next::Pause(self.contention.next(CONFLICT_CAP, None, (self.mirror.dice)()));
        }
        let known = match error {
            Error::DeviceMissing { .. } => Known::Missing,
            other => Known::Refused(other.to_string()),
        };
        self.know(target, known);
        Next::Go
    }

    /// The hub answers: how long to wait because all the other sites come back to it as well.
    fn our_turn(&mut self) -> Option<Duration> {
        let mut away = self.away.take()?;
        self.wait_for_others(&mut away)
    }

    fn wait_for_others(&mut self, away: &mut Away) -> Option<Duration> {
        let window = self.window();
        if self.mirror.settings.sites <= 1 || self.last.is_none() {
            return None;
        }
        away.turn(Instant::now(), self.answered, window, (self.mirror.dice)())
    }

    /// The time in which the hub takes the updates of all sites, if they have as much to say as this one.
    fn window(&self) -> Duration {
        let Some(published) = &self.last else { return Duration::ZERO };
        let unread = self.targets.iter().filter(|t| matches!(self.known.get(*t), None | Some(Known::Unread)));
        let modules = if self.mirror.settings.modules_beside() { published.devices.len() } else { 0 };
        let updates = unread.count() + plan::wrong(published, &self.targets, &self.known) + modules;
        let Settings { sites, updates_per_second, .. } = self.mirror.settings;
        away::window(sites, updates, updates_per_second)
    }

    fn know(&mut self, target: &Target, known: Known) {
        self.shown.insert(target.clone(), known.clone());
        self.known.insert(target.clone(), known);
    }

    fn calm(&mut self) {
        self.backoff.reset();
        self.contention.reset();
        self.conflicts = 0;
    }

    /// Nothing to do until something is published or a timer says to look again.
    async fn rest(&mut self) -> Next {
        self.calm();
        let forgets = self.progress.forget(self.mirror.clock.now());
        self.show();
        let now = Instant::now();
        let epoch = self.last.as_ref().map_or(0, |published| published.epoch);
        let odd = |known: &Known| match known {
            Known::Missing | Known::Refused(_) => true,
            Known::Twin { seen, disabled, .. } => seen.epoch > epoch || *disabled,
            Known::Unread => false,
        };
        let any_odd = self.known.values().any(odd);
        let dice = &mut self.mirror.dice;
        let refresh = self.mirror.settings.refresh;
        let at = self.rounds.at(now, refresh, self.targets.len(), any_odd, dice);
        let at = forgets.map_or(at, |forgets| at.min(now + forgets));
        tokio::select! {
            biased;
            changed = self.mirror.published.changed() => {
                if changed.is_err() {
                    return Next::End;
                }
            }
            () = tokio::time::sleep_until(at) => {
                let (due, odd_too) = self.rounds.due(Instant::now(), &self.targets);
                for (target, known) in &mut self.known {
                    if due.contains(target) || odd_too && odd(known) {
                        *known = Known::Unread;
                    }
                }
            }
        }
        Next::Go
    }

    /// Waits until something answers at the hub's address, or this device has stopped mirroring.
    async fn knock(&mut self) {
        let Some(mut away) = self.away else { return };
        let now = Instant::now();
        // Something answers, but not as a hub does: that is no reason to call at once, again and again.
        let roll = (self.mirror.dice)();
        let first =
            if away.opened { self.backoff.next(UNREACHED_CAP, None, roll) } else { away.knock(now, roll) };
        away.interval = first;
        self.progress.next_attempt(Some(self.mirror.clock.now() + first));
        self.show();
        {
            let opens = knocks::opens(self.mirror.hub.clone(), away, first, roll);
            tokio::pin!(opens);
            while self.last.is_some() {
                tokio::select! {
                    biased;
                    () = &mut opens => break,
                    changed = self.mirror.published.changed() => match changed {
                        Ok(()) => self.look(),
                        Err(_) => {
                            opens.await;
                            break;
                        }
                    },
                }
            }
        }
        self.progress.next_attempt(None);
        away.opened = true;
        let wait = self.wait_for_others(&mut away);
        self.away = Some(away);
        if let Some(length) = wait {
            // It would answer: nobody needs to speak to it in this device's place.
            self.progress.opened();
            self.pause(length).await;
        }
    }

    /// Waits, but not once this device has stopped mirroring. A newer state does not shorten the wait: the hub has
    /// asked, or needs, to be left alone.
    async fn pause(&mut self, length: Duration) {
        let end = Instant::now() + length;
        self.progress.next_attempt(Some(self.mirror.clock.now() + length));
        self.show();
        while self.last.is_some() {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(end) => break,
                changed = self.mirror.published.changed() => match changed {
                    Ok(()) => self.look(),
                    Err(_) => {
                        tokio::time::sleep_until(end).await;
                        break;
                    }
                },
            }
        }
        self.progress.next_attempt(None);
    }

    /// Lets a call finish and notes meanwhile when something newer is published.
    async fn attend<T>(&mut self, call: impl Future<Output = T>) -> T {
        tokio::pin!(call);
        loop {
            tokio::select! {
                biased;
                result = &mut call => return result,
                changed = self.mirror.published.changed() => match changed {
                    Ok(()) => self.look(),
                    Err(_) => return call.await,
                },
            }
        }
    }

    /// Takes note of what is published now.
    fn look(&mut self) {
        let published = self.mirror.published.borrow_and_update().clone();
        if published == self.last {
            return;
        }
        match &published {
            Some(published) => {
                self.progress.changed(self.mirror.clock.now());
                self.targets = targets(published, self.mirror.settings.workload_module.as_deref());
                let begins = self.last.is_none();
                self.known.retain(|target, _| self.targets.contains(target));
                if begins {
                    self.begin(published);
                }
            }
            None => {
                // Somebody else writes from here on, so what is known grows stale.
                self.known.clear();
                self.shown.clear();
                self.memory.clear();
                self.rounds = Rounds::default();
                (self.away, self.answered) = (None, None);
                self.progress.silent();
                self.calm();
            }
        }
        self.last = published;
        self.show();
    }

    /// This device mirrors from now on. What the site has confirmed need not be read: should a twin have changed since, it
    /// has another etag.
    fn begin(&mut self, published: &Published) {
        let Some(Confirmed { shown, etags }) = self.mirror.confirmed.borrow().clone() else { return };
        if shown.epoch > published.epoch {
            return;
        }
        for (device, etag) in etags.iter().filter(|(device, _)| published.devices.contains(device)) {
            let target = Target::from(device);
            self.memory.confirmed(&target, shown.epoch);
            self.rounds.wrote(&target, Instant::now(), (self.mirror.dice)());
            let seen = Seen::of(Flag::wanted(&shown, device));
            self.know(&target, Known::Twin { etag: etag.clone(), seen, disabled: false });
        }
    }

    fn show(&self) {
        let state = self.progress.state(self.last.as_ref(), &self.targets, &self.shown);
        self.mirror.state.send_if_modified(|shown| {
            if *shown == state {
                return false;
            }
            for raised in state.conditions.iter().filter(|raised| !shown.conditions.contains(raised)) {
                tracing::warn!(condition = %raised.name, "{}", raised.detail);
            }
            for over in shown.conditions.iter().filter(|raised| !state.conditions.contains(raised)) {
                tracing::info!(condition = %over.name, "over: {}", over.detail);
            }
            *shown = state;
            true
        });
    }
}

/// How the loop goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Go,
    Pause(Duration),
    Knock,
    End,
}

#[cfg(test)]
mod tests;
