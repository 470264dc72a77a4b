//! Whether the owner gives way to a device that is better off, although it could go on.
//!
//! Three things speak for another device: the workload fails its own probes here, the other one sees more of the plant, or it
//! is the preferred one, is well for long, and the time of day is one at which failback is allowed. None is worth a
//! change each time it flickers: it has to last, and in any hour there are only so many changes that nobody ordered, whoever
//! owned. Then the owner goes on as it is, and somebody is told. Nothing moves while the site is paused, or when nobody
//! is better.
//!
//! It deliberately does not say who may act, and never ends an ownership that nobody would follow. The hour is counted on
//! this device's own boot clock, from the changes that it saw; only what lies before its start is taken from the history's
//! wall clock. The window of failback is wall time: a wrong clock moves the workload at a wrong hour, no more.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};

use super::record::{Cause, HISTORY_MAX, Record};
use crate::{clock::Moment, epoch::Epoch, id::DeviceId};

const HOUR: Duration = Duration::from_secs(3600);
const MINUTES_OF_A_DAY: u64 = 24 * 60;

/// How much of the plant a device sees: how many of its probes pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sight {
    /// The probes that pass.
    pub seen: u32,
    /// All of them.
    pub asked: u32,
}

impl Sight {
    /// Whether this is strictly more. Devices that were told of different probes cannot be compared.
    pub fn is_better_than(self, other: Sight) -> bool {
        self.asked == other.asked && self.seen > other.seen
    }
}

impl fmt::Display for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.seen, self.asked)
    }
}

/// A time of the day, by UTC, from a minute to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    from: u64,
    to: u64,
}

impl Window {
    /// From one minute of the day up to another, over midnight if that is earlier. `None` if there is no such minute, or the
    /// two are the same.
    pub fn new(from: u64, to: u64) -> Option<Window> {
        (from != to && from < MINUTES_OF_A_DAY && to < MINUTES_OF_A_DAY).then_some(Window { from, to })
    }

    /// Whether this moment lies in it.
    pub fn holds(self, unix_ms: u64) -> bool {
        let minute = unix_ms / 60_000 % MINUTES_OF_A_DAY;
        match self.from < self.to {
            true => (self.from..self.to).contains(&minute),
            false => minute >= self.from || minute < self.to,
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Window { from, to } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

/// How willingly the ownership moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// For how long another device has to see more of the plant.
    pub better_for: Duration,
    /// How many changes that nobody ordered there may be in an hour, until the owner gives way to nobody any more.
    pub changes_per_hour: u32,
    /// When the workload may go back to the preferred device; `None`: never by itself.
    pub failback: Option<Window>,
    /// For how long that device has to have been well.
    pub failback_after: Duration,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            better_for: Duration::from_secs(5),
            changes_per_hour: 6,
            failback: None,
            failback_after: Duration::from_secs(600),
        }
    }
}

/// What is known at one moment.
#[derive(Debug, Clone)]
pub struct Outlook<'a> {
    /// Now.
    pub now: Moment,
    /// Now, by the wall clock.
    pub unix_ms: u64,
    /// How willingly the ownership moves.
    pub policy: &'a Policy,
    /// The record.
    pub record: &'a Record,
    /// This device.
    pub me: &'a DeviceId,
    /// The epoch under which this device owns, if it does.
    pub owns: Option<Epoch>,
    /// What this device sees of the plant.
    pub sight: Sight,
    /// The other devices that could own now and were heard just now, and what they see.
    pub others: &'a BTreeMap<DeviceId, Sight>,
    /// What the workload fails here, if it does.
    pub failing: Option<&'a str>,
}

/// What follows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advice {
    /// The owner gives way, and why.
    pub gives_way: Option<String>,
    /// The owner would, if there had not been so many changes.
    pub held: Option<String>,
}

/// What was seen so far.
#[derive(Debug, Clone, Default)]
pub struct Moves {
    /// The ownership that the next is about.
    owned: Option<Epoch>,
    /// Since when others see more than this device.
    better: BTreeMap<DeviceId, Moment>,
    /// Since when the preferred device could own.
    well: Option<(DeviceId, Moment)>,
    /// The changes of the last hour that nobody ordered.
    changes: VecDeque<Moment>,
    /// The newest ownership that was looked at.
    newest: Option<Epoch>,
    /// Under which epoch this device gives way, and why: what was begun is not taken back half-way.
    begun: Option<(Epoch, String)>,
}

impl Moves {
    /// Looks at everything once.
    pub fn look(&mut self, o: &Outlook<'_>) -> Advice {
        self.count_changes(o);
        // What was seen as a standby is older than what an owner hears, and somebody may just have been lost.
        if self.owned != o.owns {
            (self.owned, self.better) = (o.owns, BTreeMap::new());
        }
        self.better.retain(|device, _| o.others.get(device).is_some_and(|s| s.is_better_than(o.sight)));
        for (device, _) in o.others.iter().filter(|(_, sight)| sight.is_better_than(o.sight)) {
            self.better.entry(device.clone()).or_insert(o.now);
        }
        let preferred = o.record.preferred.as_ref().filter(|device| o.others.contains_key(*device));
        match (preferred, &self.well) {
            (Some(device), Some((known, _))) if device == known => {}
            (device, _) => self.well = device.map(|device| (device.clone(), o.now)),
        }

        let (Some(epoch), None) = (o.owns, &o.record.paused) else {
            self.begun = None;
            return Advice::default();
        };
        if o.others.is_empty() {
            self.begun = None;
            return Advice::default();
        }
        if let Some((of, why)) = &self.begun
            && *of == epoch
        {
            return Advice { gives_way: Some(why.clone()), held: None };
        }
        let Some(why) = self.wish(o) else { return Advice::default() };
        let limit = o.policy.changes_per_hour;
        if self.changes.len() >= usize::try_from(limit).unwrap_or(usize::MAX) {
            let done = self.changes.len();
            let held = format!("{why}; but there were {done} changes in an hour, and {limit} are allowed");
            return Advice { gives_way: None, held: Some(held) };
        }
        self.begun = Some((epoch, why.clone()));
        Advice { gives_way: Some(why), held: None }
    }

    /// Whether there were so many changes that the owner gives way to nobody who is only better off.
    pub fn spent(&self, policy: &Policy) -> bool {
        let limit = usize::try_from(policy.changes_per_hour).unwrap_or(usize::MAX);
        limit > 0 && self.changes.len() >= limit
    }

    /// Why another had better own, if so.
    fn wish(&self, o: &Outlook<'_>) -> Option<String> {
        if let Some(why) = o.failing {
            return Some(why.to_owned());
        }
        let lasting = self.better.iter().filter(|(_, since)| o.now.since(**since) >= o.policy.better_for);
        let sights = lasting.filter_map(|(device, _)| Some((device, *o.others.get(device)?)));
        if let Some((device, sight)) = sights.max_by_key(|(_, sight)| sight.seen) {
            return Some(format!("{device} sees {sight} of the plant, and this device {}", o.sight.seen));
        }
        let window = o.policy.failback.filter(|window| window.holds(o.unix_ms))?;
        let (device, since) = self.well.as_ref()?;
        let sight = *o.others.get(device)?;
        // Whoever sees more than it would have the workload next, and then it would go back again.
        let equal = sight.asked == o.sight.asked && sight.seen >= o.sight.seen;
        let best = equal && !o.others.values().any(|other| other.is_better_than(sight));
        (best && o.now.since(*since) >= o.policy.failback_after)
            .then(|| format!("{device} is preferred and well, and it is the time for it ({window} UTC)"))
    }

    /// Notes the changes since the last look, and forgets those of more than an hour ago.
    fn count_changes(&mut self, o: &Outlook<'_>) {
        let history: Vec<_> = o.record.history.iter().collect();
        for pair in history.windows(2) {
            let [before, change] = pair else { continue };
            let known = self.newest.is_some_and(|newest| change.epoch <= newest);
            // One that came to nothing has stopped the workload as well.
            let moved = change.device != before.device || change.cause == Cause::HandoverFailed;
            let moved = moved && change.actor.is_empty() && change.cause != Cause::OwnerRestarted;
            if known || !moved {
                continue;
            }
            let at = match self.newest {
                Some(_) => Some(o.now),
                // The boot clock may be younger than that.
                None => {
                    let age = o.unix_ms.checked_sub(change.since_unix_ms).map(millis);
                    age.filter(|age| *age < HOUR).map(|age| o.now.before(age))
                }
            };
            self.changes.extend(at);
        }
        self.newest = Some(o.record.epoch);
        self.changes.retain(|at| o.now.since(*at) < HOUR);
        while self.changes.len() > HISTORY_MAX {
            self.changes.pop_front();
        }
    }
}

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[cfg(test)]
mod tests;
