//! The mirror: what the site has agreed, written into the twins of its devices. Story C.
//!
//! One call is in flight at a time, and only the newest state is ever worth a call. What to do next is decided by a
//! pure planner (`mirror/plan.rs`); this loop carries it out, learns from the answer, and waits when it must. After an
//! outage only what differs is written. All twins are read and compared again on a slow, jittered timer, because people
//! write twins too. Nothing here is a heartbeat, and nothing on site ever waits for it.
//!
//! It deliberately does not decide who mirrors: while `published` holds `None`, it stays silent and forgets what it
//! knew. It never lowers an epoch in a twin: it compares before every write, and the write names the etag of the twin
//! that was compared, so an owner that is behind cannot overwrite one that is ahead, whatever its internet line.

mod plan;
mod state;

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

pub use plan::{Known, Step, plan};
pub use state::{DeviceState, MirrorState};

use super::backoff::{Backoff, jittered};
use crate::{
    clock::Clock,
    hub::{self, Error, Flag, Published, Retry, Settings, Twin},
    id::DeviceId,
};

/// Where chance comes from: a seeded generator of 64-bit numbers.
pub type Dice = Box<dyn FnMut() -> u64 + Send>;

/// A device that is missing, refused or ahead is looked at again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
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
    /// Where the loop says how it fares.
    pub state: watch::Sender<MirrorState>,
    /// The clock for moments that are shown. Waits run on tokio's timer.
    pub clock: Arc<dyn Clock>,
    /// Chance, for jitter only.
    pub dice: Dice,
    /// `flag` and `refresh` are used here.
    pub settings: Settings,
}

impl Mirror {
    /// Runs until `stop` is cancelled, or until nobody can publish any more. A call in flight is given up at once: the
    /// next mirror reads before it writes.
    pub async fn run(self, stop: CancellationToken) {
        let mut work = Work {
            known: BTreeMap::new(),
            shown: BTreeMap::new(),
            last: None,
            progress: state::Progress::default(),
            backoff: Backoff::default(),
            conflicts: 0,
            contention: Backoff::default(),
            compare_all: None,
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
    known: BTreeMap<DeviceId, Known>,
    /// The same without doubt: while a twin is read again, the state goes on showing what was read before.
    shown: BTreeMap<DeviceId, Known>,
    /// What was published last.
    last: Option<Published>,
    progress: state::Progress,
    /// Grows while the hub fails; a write that went through, or nothing left to do, ends it. A read does not: a hub
    /// that answers reads and fails writes must be left alone as well.
    backoff: Backoff,
    /// Writes in a row that found the twin changed.
    conflicts: u32,
    contention: Backoff,
    /// When all twins are read again; set once they all have been.
    compare_all: Option<Instant>,
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
            self.known.retain(|device, _| wanted.devices.contains(device));
            let pause = match plan(&wanted, &self.known) {
                Step::Read(device) => self.read(&device).await,
                Step::Write { device, flag, etag } => self.write(&device, &flag, &etag).await,
                Step::Ahead(_) => {
                    self.progress.behind(self.mirror.clock.now());
                    self.rest().await
                }
                Step::Done => {
                    let refused = self.known.values().any(|known| matches!(known, Known::Refused(_)));
                    self.progress.compared(!refused);
                    self.rest().await
                }
            };
            match pause {
                Next::Go => {}
                Next::Pause(length) => self.pause(length).await,
                Next::End => return,
            }
        }
    }

    async fn read(&mut self, device: &DeviceId) -> Next {
        let hub = self.mirror.hub.clone();
        let result = self.attend(hub.get_twin(device)).await;
        self.learn(device, result)
    }

    async fn write(&mut self, device: &DeviceId, flag: &Flag, etag: &str) -> Next {
        self.progress.behind(self.mirror.clock.now());
        self.show();
        let hub = self.mirror.hub.clone();
        let change = self.mirror.settings.flag.write(flag);
        let result = self.attend(hub.patch_twin(device, &change, Some(etag))).await;
        // Whatever went wrong, the write may have been applied: only a read can tell.
        self.known.insert(device.clone(), Known::Unread);
        let result = match result {
            Ok(twin) if self.mirror.settings.flag.read(&twin.desired.values).flag.as_ref() != Some(flag) => {
                Err(Error::NotTheHub("it accepted a flag and answered with a twin without it".into()))
            }
            Ok(twin) => {
                tracing::info!(%device, epoch = flag.epoch, active = flag.active, "flag written to the twin");
                self.calm();
                Ok(twin)
            }
            Err(error) => Err(error),
        };
        self.learn(device, result)
    }

    /// Takes an answer in and says how to go on.
    fn learn(&mut self, device: &DeviceId, result: Result<Twin, Error>) -> Next {
        self.progress.count(result.as_ref().err());
        let next = match result {
            Ok(twin) => {
                let seen = self.mirror.settings.flag.read(&twin.desired.values);
                self.progress.answered(self.mirror.clock.wall_ms(), seen.epoch);
                self.know(device, Known::Twin { etag: twin.etag, seen });
                Next::Go
            }
            Err(error) => self.fail(device, &error),
        };
        self.show();
        next
    }

    fn fail(&mut self, device: &DeviceId, error: &Error) -> Next {
        tracing::debug!(%device, %error, "the hub did not do it");
        match error.retry() {
            Retry::Reread => {
                self.known.insert(device.clone(), Known::Unread);
                self.progress.trouble(None);
                self.conflicts += 1;
                if self.conflicts < CONFLICTS {
                    return Next::Go;
                }
                Next::Pause(self.contention.next(CONFLICT_CAP, None, (self.mirror.dice)()))
            }
            Retry::SkipDevice => {
                let known = match error {
                    Error::DeviceMissing { .. } => Known::Missing,
                    other => Known::Refused(other.to_string()),
                };
                self.know(device, known);
                self.progress.trouble(None);
                Next::Go
            }
            Retry::BackOff { cap, at_least } => {
                self.progress.trouble(Some(error.clone()));
                Next::Pause(self.backoff.next(cap, at_least, (self.mirror.dice)()))
            }
        }
    }

    fn know(&mut self, device: &DeviceId, known: Known) {
        self.shown.insert(device.clone(), known.clone());
        self.known.insert(device.clone(), known);
    }

    fn calm(&mut self) {
        self.backoff.reset();
        self.contention.reset();
        self.conflicts = 0;
    }

    /// Nothing to do until something is published or a timer says to look again.
    async fn rest(&mut self) -> Next {
        self.calm();
        self.show();
        let now = Instant::now();
        let refresh = self.mirror.settings.refresh;
        let all = match self.compare_all {
            Some(at) => at,
            None => now + jittered(refresh, (self.mirror.dice)()),
        };
        self.compare_all = Some(all);
        let epoch = self.last.as_ref().map_or(0, |published| published.epoch);
        let odd = |known: &Known| match known {
            Known::Missing | Known::Refused(_) => true,
            Known::Twin { seen, .. } => seen.epoch > epoch,
            Known::Unread => false,
        };
        let some = self
            .known
            .values()
            .any(odd)
            .then(|| now + jittered(LOOK_AGAIN.min(refresh), (self.mirror.dice)()));
        let at = some.map_or(all, |some| some.min(all));
        tokio::select! {
            biased;
            changed = self.mirror.published.changed() => {
                if changed.is_err() {
                    return Next::End;
                }
            }
            () = tokio::time::sleep_until(at) => {
                for known in self.known.values_mut().filter(|known| at == all || odd(known)) {
                    *known = Known::Unread;
                }
                if at == all {
                    self.compare_all = None;
                }
            }
        }
        Next::Go
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
            Some(_) => self.progress.changed(self.mirror.clock.now()),
            None => {
                // Somebody else writes from here on, so what is known grows stale.
                self.known.clear();
                self.shown.clear();
                self.progress.silent();
                self.calm();
                self.compare_all = None;
            }
        }
        self.last = published;
        self.show();
    }

    fn show(&self) {
        let state = self.progress.state(self.last.as_ref(), &self.shown);
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
    End,
}

#[cfg(test)]
mod tests;
