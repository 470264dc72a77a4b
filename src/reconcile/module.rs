//! The sidecar's own module twin: what this device says of its site, and what the cloud has to say to it.
//!
//! It holds the one link that the module has, connects anew when it ends, and says only what the twin lacks
//! (`module/plan.rs`), one patch at a time. Who owns is said at once; everything else is gathered, and what changes again and
//! again is said ever more seldom. The twin is read and compared on a slow, jittered timer as well: an edgeHub takes a patch long
//! before the cloud has it, and may lose it; a hub may fall back to an older twin.
//!
//! What comes in goes out again: desired properties as they are known, calls of methods, messages for inputs. What they mean is
//! other loops' business, and nothing here moves any ownership. Nothing on site ever waits for this loop.

mod plan;
mod session;
mod state;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub use plan::{Step, plan};
pub use state::ModuleState;

use super::{
    backoff::{Backoff, jittered, share},
    mirror::away,
};
use crate::{
    clock::Clock,
    condition::{Condition, Raised},
    hub::{
        Error, Retry,
        error::{ANSWERED_CAP, UNREACHED_CAP},
        link::{self, Connected, Module, OwnTwin},
        reported::{KEY, Reported},
        twin::Properties,
        wall,
    },
};
use session::{Ended, Session};

/// Where chance comes from: a seeded generator of 64-bit numbers.
pub type Dice = Box<dyn FnMut() -> u64 + Send>;

/// The least time between two patches that are not about who owns.
const SPACING: Duration = Duration::from_secs(2);
/// The most, when they come one after the other.
const SPACING_MAX: Duration = Duration::from_secs(300);
/// A link that stood for less than this may have been ended by a rival of the same name: the next waits longer.
const STABLE: Duration = Duration::from_secs(30);
/// A link that is replaced within this time was ended for reasons of its own: the others' need not be replaced.
const ALONE: Duration = Duration::from_secs(1);
/// After a patch an edgeHub has this long to bring it to the cloud; it tries every five seconds.
const FORWARDED: Duration = Duration::from_secs(12);
/// A hub that fails over to another region loses at most its last five minutes.
const ROLLED_BACK: Duration = Duration::from_secs(360);
/// How long leaving in good order may take.
const LEAVE: Duration = Duration::from_millis(500);

/// The loop, with all that it needs.
pub struct ModuleLoop {
    /// The line to the hub.
    pub module: Arc<dyn Module>,
    /// What this sidecar has to say; the moment of saying and the lag are filled in here. `None` until it knows.
    pub wanted: watch::Receiver<Option<Reported>>,
    /// Where the loop says how it fares.
    pub state: watch::Sender<ModuleState>,
    /// What comes in.
    pub inbox: Inbox,
    /// The clock for moments that are shown. Waits run on tokio's timer.
    pub clock: Arc<dyn Clock>,
    /// Chance, for jitter only.
    pub dice: Dice,
    /// How often the twin is read and compared while nothing happens, jittered.
    pub refresh: Duration,
    /// Over which time the sites of a hub return after an outage; zero where they need not wait for each other.
    pub spread: Duration,
}

/// Where what comes in goes. Whoever does not listen drops the other end.
pub struct Inbox {
    /// The desired properties, as they are known since the last connection.
    pub desired: watch::Sender<Option<Desired>>,
    /// Direct methods. If they are too many, one is dropped, and the hub tells its caller that nobody answered.
    pub calls: mpsc::Sender<link::Call>,
    /// Messages for inputs. If they are too many, the link ends, and they come again.
    pub inputs: mpsc::Sender<link::Input>,
}

/// What the cloud wants, and what it was told about it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Desired {
    /// All desired properties.
    pub properties: Properties,
    /// Their version.
    pub version: u64,
    /// What the twin says became of earlier commands.
    pub commands: Properties,
}

impl ModuleLoop {
    /// Runs until `stop` is cancelled, or until nobody can say any more what is wanted.
    pub async fn run(self, stop: CancellationToken) {
        let who = self.module.target().to_string();
        let mut work = Work {
            this: self,
            who,
            wanted: None,
            progress: state::Progress::default(),
            backoff: Backoff::default(),
            rivals: Backoff::default(),
            suspected: false,
            away_since: None,
            drawn: false,
            confirmed: None,
            reported_at: None,
            spacing: SPACING,
        };
        let (link, runs) = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = work.ready() => loop {
                let Some(connected) = work.connect(&stop).await else { return };
                let mut session = Session::new(&mut work, connected);
                let ended = tokio::select! {
                    biased;
                    () = stop.cancelled() => break (session.link, session.runs),
                    ended = session.run() => ended,
                };
                drop(session);
                let pause = work.ended(ended);
                if !pause.is_zero() {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                    work.look();
                }
            },
        };
        // Without users the link says good-bye.
        drop(link);
        let _ = tokio::time::timeout(LEAVE, runs).await;
    }
}

struct Work {
    this: ModuleLoop,
    who: String,
    wanted: Option<Reported>,
    progress: state::Progress,
    /// Grows while the hub answers with errors; a twin that was read on a link that lasts ends it.
    backoff: Backoff,
    /// Grows with each link that ended young although the hub was there.
    rivals: Backoff,
    /// The last link ended young, and it is not known yet whether the hub was there.
    suspected: bool,
    /// Since when there has been no link.
    away_since: Option<Instant>,
    /// The moment for this module's return was drawn already.
    drawn: bool,
    /// The epoch and the version that the twin has certainly shown at the hub.
    confirmed: Option<(u64, u64)>,
    reported_at: Option<Instant>,
    /// The least time from one patch to the next.
    spacing: Duration,
}

impl Work {
    /// Waits until there is something to say.
    async fn ready(&mut self) {
        if self.this.wanted.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
        self.look();
    }

    /// Connects, again and again. `None` when told to stop.
    async fn connect(&mut self, stop: &CancellationToken) -> Option<Connected> {
        loop {
            let attempt = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                attempt = self.attempt() => attempt,
            };
            let (error, length) = match attempt {
                Ok(connected) => return Some(connected),
                Err(failed) => failed,
            };
            tracing::debug!(who = self.who, %error, "no link to the hub");
            self.progress.trouble(error);
            self.progress.next_attempt(Some(self.this.clock.now() + length));
            self.show();
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(length) => {}
            }
            self.progress.next_attempt(None);
            self.look();
        }
    }

    /// One attempt; or why it failed, and how long to wait.
    async fn attempt(&mut self) -> Result<Connected, (Error, Duration)> {
        let since = *self.away_since.get_or_insert_with(Instant::now);
        let module = self.this.module.clone();
        let failed = |work: &mut Work, error: Error| {
            let length = work.pause_after(&error, since);
            (error, length)
        };
        if let Err(error) = module.knock().await {
            return Err(failed(self, error));
        }
        // Whoever was away with all others does not return with all others.
        let together = !self.this.spread.is_zero() && since.elapsed() > ALONE;
        if together && !std::mem::replace(&mut self.drawn, true) {
            let share = share(self.this.spread, (self.this.dice)());
            self.progress.next_attempt(Some(self.this.clock.now() + share));
            self.show();
            tokio::time::sleep(share).await;
            self.progress.next_attempt(None);
        }
        match module.connect().await {
            Ok(connected) => {
                self.progress.connected(true);
                self.suspected = false;
                Ok(connected)
            }
            Err(error) => {
                self.progress.count(Some(&error));
                Err(failed(self, error))
            }
        }
    }

    fn pause_after(&mut self, error: &Error, away_since: Instant) -> Duration {
        let roll = (self.this.dice)();
        match error.retry() {
            // Knocking costs the hub nothing.
            Retry::BackOff { cap: UNREACHED_CAP, .. } => {
                if std::mem::take(&mut self.suspected) {
                    self.rivals.forgive();
                }
                jittered(away::interval(away_since.elapsed()), roll)
            }
            Retry::BackOff { cap, at_least } => self.backoff.next(cap, at_least, roll),
            Retry::Reread | Retry::SkipDevice => self.backoff.next(ANSWERED_CAP, None, roll),
        }
    }

    /// The link has ended. Returns how long to wait: one that stood for a while is replaced at once, one that did not may
    /// have been ended by a rival of the same name.
    fn ended(&mut self, ended: Ended) -> Duration {
        self.progress.connected(false);
        let now = Instant::now();
        (self.away_since, self.drawn) = (Some(now), false);
        self.suspected = false;
        if ended.lasted >= STABLE {
            self.backoff.reset();
            self.rivals.reset();
        }
        let pause = match ended.why {
            // Its time was over.
            Ok(()) => Duration::ZERO,
            Err(error) => {
                tracing::debug!(who = self.who, %error, "the link to the hub has ended");
                self.progress.trouble(error);
                match ended.lasted >= STABLE {
                    true => Duration::ZERO,
                    false => {
                        self.suspected = true;
                        self.rivals.next(ANSWERED_CAP, None, (self.this.dice)())
                    }
                }
            }
        };
        self.show();
        pause
    }

    /// Takes note of what is wanted now.
    fn look(&mut self) {
        let wanted = self.this.wanted.borrow_and_update().clone();
        let Some(wanted) = wanted else { return };
        let ownership = |it: &Reported| (it.flag.active, it.flag.leader.clone(), it.flag.epoch);
        if self.wanted.as_ref().map(ownership) != Some(ownership(&wanted)) {
            self.progress.behind(self.this.clock.now());
        }
        self.wanted = Some(wanted);
        self.show();
    }

    fn show(&mut self) {
        let state = self.progress.state(&self.who, self.this.clock.now());
        self.this.state.send_if_modified(|shown| {
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

impl Work {
    /// The moment of writing, and how late it is.
    fn stamp(&self, patch: &mut Properties) {
        let Some(serde_json::Value::Object(said)) = patch.get_mut(KEY) else { return };
        let lag = self.this.state.borrow().lag(self.this.clock.now());
        said.insert("hub_lag_s".into(), lag.as_secs().into());
        said.insert("reported".into(), wall::rfc3339(self.this.clock.wall_ms()).into());
    }

    /// What keeps changing is said ever more seldom.
    fn space(&mut self, urgent: bool, now: Instant) {
        let idle = self.reported_at.map(|at| now - at);
        self.reported_at = Some(now);
        if urgent {
            return;
        }
        self.spacing = match idle {
            Some(idle) if idle < self.spacing * 4 => (self.spacing * 2).min(SPACING_MAX),
            _ => SPACING,
        };
    }

    /// Whether the hub has lost what it certainly had.
    fn compare_with_before(&mut self, twin: &OwnTwin, epoch: u64) {
        let now = self.this.clock.now();
        let said = twin.reported.contains_key(KEY);
        if let Some((epoch_then, version_then)) = self.confirmed {
            // What an edgeHub answers may be what it has stored or what the cloud had before its next push: no proof of anything.
            let lost = !self.this.module.stores_and_forwards() && twin.reported_version < version_then;
            if lost && said {
                let detail = format!(
                    "{}: back from epoch {epoch_then}, version {version_then}, to epoch {epoch}, version {}",
                    self.who, twin.reported_version
                );
                self.progress.found(Raised::new(Condition::TwinRolledBack, detail), now);
            } else if lost {
                let detail = format!("{}: its twin is empty; it showed epoch {epoch_then}", self.who);
                self.progress.found(Raised::new(Condition::HubDeviceRecreated, detail), now);
            }
        }
        if said {
            self.confirmed = Some((epoch, twin.reported_version));
        }
    }
}

#[cfg(test)]
mod tests;
