//! Streams that say something at once, on every change, and again before what they said lapses.
//!
//! The node renews its answer many times a second; a listener hears it again only when half of what it was told is
//! used up. When nothing newer came, it is told the moment the answer lapses. A client that hears nothing needs no
//! message at all: it counts for itself.

use std::{sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use super::door::{Answer, Permit};
use crate::clock::{Clock, Moment, sleep_until};

/// Something that is true until a moment.
pub(crate) trait Lapsing: Clone + Send + Sync + 'static {
    /// What may be said of it at `now`.
    fn at(&self, now: Moment) -> Self;
    /// When it lapses; `None` for "unknown" and "no", which do not.
    fn until(&self) -> Option<Moment>;
    /// Whether a client that was told `self` need not hear of `other` at once.
    fn says_the_same_as(&self, other: &Self) -> bool;
}

impl Lapsing for Answer {
    fn at(&self, now: Moment) -> Answer {
        Answer::at(self, now)
    }

    fn until(&self) -> Option<Moment> {
        match self {
            Answer::Known { until, .. } => Some(*until),
            Answer::Unknown { .. } => None,
        }
    }

    fn says_the_same_as(&self, other: &Answer) -> bool {
        match (self, other) {
            (Answer::Known { owner: a, epoch: e, .. }, Answer::Known { owner: b, epoch: f, .. }) => {
                a == b && e == f
            }
            (Answer::Unknown { reason: a }, Answer::Unknown { reason: b }) => a == b,
            _ => false,
        }
    }
}

impl Lapsing for Permit {
    fn at(&self, now: Moment) -> Permit {
        Permit::at(self, now)
    }

    fn until(&self) -> Option<Moment> {
        self.active.then_some(self.until)
    }

    fn says_the_same_as(&self, other: &Permit) -> bool {
        self.active == other.active
            && self.epoch == other.epoch
            && (self.active || self.reason == other.reason)
    }
}

struct Told<T> {
    source: watch::Receiver<T>,
    clock: Arc<dyn Clock>,
    /// What the client was told last, and when.
    last: Option<(T, Moment)>,
    ended: bool,
    _slot: OwnedSemaphorePermit,
}

/// The stream for one client; each item comes with the moment it was made. Ends when the node does, after a last word,
/// or when `stop` is cancelled.
pub(crate) fn tell<T: Lapsing>(
    source: watch::Receiver<T>,
    clock: Arc<dyn Clock>,
    slot: OwnedSemaphorePermit,
    stop: CancellationToken,
) -> impl Stream<Item = (T, Moment)> + Send + 'static {
    let told = Told { source, clock, last: None, ended: false, _slot: slot };
    stream::unfold(told, |mut told| async move { told.next().await.map(|item| (item, told)) })
        .take_until(stop.cancelled_owned())
}

impl<T: Lapsing> Told<T> {
    async fn next(&mut self) -> Option<(T, Moment)> {
        if self.ended {
            return None;
        }
        loop {
            let now = self.clock.now();
            let current = self.source.borrow_and_update().at(now);
            if self.worth_telling(&current, now) {
                self.last = Some((current.clone(), now));
                return Some((current, now));
            }
            let wake = self.wake(now);
            let changed = tokio::select! {
                changed = self.source.changed() => changed,
                () = wait(&*self.clock, wake) => Ok(()),
            };
            if changed.is_err() {
                // The node is gone: what it said last stands until it lapses, and that is said.
                self.ended = true;
                let until = self.last.as_ref().and_then(|(last, _)| last.until())?;
                sleep_until(&*self.clock, until).await;
                let now = self.clock.now();
                return Some((self.source.borrow().at(now), now));
            }
        }
    }

    fn worth_telling(&self, current: &T, now: Moment) -> bool {
        let Some((last, told_at)) = &self.last else { return true };
        if !last.says_the_same_as(current) {
            return true;
        }
        // A promise that was shortened is told at once: the client would count too far.
        if current.until() < last.until() {
            return true;
        }
        // The same, only longer: told when half of what the client has is used up.
        last.until() < current.until() && now >= half(last, *told_at).unwrap_or(now)
    }

    /// When to look again although nothing changed.
    fn wake(&self, now: Moment) -> Option<Moment> {
        let (last, told_at) = self.last.as_ref()?;
        let half = half(last, *told_at)?;
        // Past the half there was nothing longer to tell: then the end is what remains. An answer counts as lapsed
        // one millisecond early.
        if now < half {
            Some(half)
        } else {
            last.until().map(|until| until.before(Duration::from_nanos(999_999)))
        }
    }
}

fn half<T: Lapsing>(last: &T, told_at: Moment) -> Option<Moment> {
    last.until().map(|until| told_at + until.since(told_at) / 2)
}

async fn wait(clock: &dyn Clock, moment: Option<Moment>) {
    match moment {
        Some(moment) => sleep_until(clock, moment).await,
        None => std::future::pending().await,
    }
}
