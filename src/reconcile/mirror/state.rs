//! How the mirror fares, as status, metrics and conditions show it.

use std::{collections::BTreeMap, time::Duration};

use super::{
    memory::Odd,
    plan::{Known, plausible},
};
use crate::{
    clock::Moment,
    condition::{Condition, Raised},
    hub::{Error, Published, Target},
    id::DeviceId,
};

/// What was found odd and repaired stays visible for so long.
const SHOWN: Duration = Duration::from_secs(600);

/// What the mirror says of itself. Replaced as a whole at every change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MirrorState {
    /// Whether this device mirrors now.
    pub mirroring: bool,
    /// Whether every twin that exists shows what the site has agreed, as far as is known. A device that the hub does not
    /// know has its own condition and does not count here.
    pub in_sync: bool,
    /// When the hub last did what was asked, by the wall clock, in milliseconds since 1970.
    pub last_success_unix_ms: Option<u64>,
    /// When the newest change was published, on the boot clock; `None` before the first.
    pub newest_change: Option<Moment>,
    /// Since when the twins have not shown what the site has agreed; `None` while in sync, or not mirroring.
    pub behind_since: Option<Moment>,
    /// When the hub is tried again, while it is left alone after a failure.
    pub next_attempt: Option<Moment>,
    /// Each device's twin.
    pub devices: BTreeMap<DeviceId, DeviceState>,
    /// The highest epoch seen in any twin since this device began to mirror; zero if none. An epoch to come must be
    /// above it.
    pub highest_epoch_seen: u64,
    /// The twin that showed it.
    pub highest_epoch_in: Option<Target>,
    /// Whether the hub was reached last time, whatever it said; `None` before the first call since this device began to
    /// mirror.
    pub reached: Option<bool>,
    /// What every twin that exists is known to show, once they all show the same.
    pub settled: Option<Settled>,
    /// Twins that went back to an earlier epoch, since the start.
    pub rolled_back: u64,
    /// What an operator should know now.
    pub conditions: Vec<Raised>,
    /// Requests since the start, by HTTP status or, where there was none, by a word (`timeout`, `unreachable`,
    /// `untrusted`, `bad_answer`).
    pub requests: BTreeMap<String, u64>,
}

/// An epoch that all twins show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Which one.
    pub epoch: u64,
    /// The etag of each device's twin.
    pub etags: BTreeMap<DeviceId, String>,
}

impl MirrorState {
    /// How long the twins have been behind the site, at `now` on the boot clock; zero while in sync.
    pub fn lag(&self, now: Moment) -> Duration {
        self.behind_since.map_or(Duration::ZERO, |since| now.since(since))
    }
}

/// One device's twin, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceState {
    /// The epoch that its flag shows; `None` if it has not been read, or shows none.
    pub epoch_confirmed: Option<u64>,
    /// Why its flag cannot be mirrored, if it cannot.
    pub error: Option<String>,
}

/// What the loop notes on its way.
#[derive(Debug, Default)]
pub(super) struct Progress {
    in_sync: bool,
    last_success_unix_ms: Option<u64>,
    newest_change: Option<Moment>,
    behind_since: Option<Moment>,
    next_attempt: Option<Moment>,
    trouble: Option<Error>,
    /// Why the hub takes no writes, although it may answer reads.
    writes_refused: Option<Error>,
    highest: Option<(u64, Target)>,
    reached: Option<bool>,
    /// What was odd about a twin, and when it was right again.
    odd: BTreeMap<(Target, Condition), (String, Option<Moment>)>,
    rolled_back: u64,
    requests: BTreeMap<String, u64>,
}

impl Progress {
    /// Something newer was published.
    pub(super) fn changed(&mut self, now: Moment) {
        self.newest_change = Some(now);
        self.behind(now);
    }

    /// The twins were found to differ.
    pub(super) fn behind(&mut self, now: Moment) {
        self.in_sync = false;
        self.behind_since.get_or_insert(now);
    }

    /// Every twin that can be compared has been, and is as it should be.
    pub(super) fn compared(&mut self, all: bool) {
        self.in_sync = all;
        if all {
            self.behind_since = None;
            self.writes_refused = None;
        }
    }

    /// How a write ended: a credential that may only read is refused at each write, and reads between them change nothing
    /// about that.
    pub(super) fn wrote(&mut self, error: Option<&Error>) {
        match error {
            None => self.writes_refused = None,
            Some(refused @ Error::Unauthorized { .. }) => self.writes_refused = Some(refused.clone()),
            Some(_) => {}
        }
    }

    /// This device no longer mirrors.
    pub(super) fn silent(&mut self) {
        self.in_sync = false;
        self.behind_since = None;
        (self.trouble, self.writes_refused) = (None, None);
        self.highest = None;
        self.reached = None;
    }

    /// A call came back, with this error if it failed.
    pub(super) fn count(&mut self, error: Option<&Error>) {
        let code = error.map_or("200".into(), Error::code);
        *self.requests.entry(code.into_owned()).or_default() += 1;
        self.reached = Some(error.is_none_or(Error::answered));
    }

    /// The hub did what was asked, and a twin showed this epoch.
    pub(super) fn answered(&mut self, wall_ms: u64, target: &Target, epoch: u64) {
        self.last_success_unix_ms = Some(wall_ms);
        if self.highest.as_ref().is_none_or(|(highest, _)| *highest < epoch) {
            self.highest = Some((epoch, target.clone()));
        }
        self.trouble = None;
    }

    /// Something answers at the hub's address.
    pub(super) fn opened(&mut self) {
        self.reached = Some(true);
    }

    /// A twin is not as it was.
    pub(super) fn odd(&mut self, target: &Target, odd: Odd) {
        self.rolled_back += u64::from(odd.condition == Condition::TwinRolledBack);
        self.odd.insert((target.clone(), odd.condition), (odd.detail, None));
    }

    /// A twin shows what it should.
    pub(super) fn repaired(&mut self, target: &Target, now: Moment) {
        for ((_, _), (_, at)) in self.odd.iter_mut().filter(|((of, _), _)| of == target) {
            at.get_or_insert(now);
        }
    }

    /// Forgets what was shown for long enough. Returns when the next is to be forgotten.
    pub(super) fn forget(&mut self, now: Moment) -> Option<Duration> {
        self.odd.retain(|_, (_, at)| at.is_none_or(|at| now.since(at) < SHOWN));
        self.odd.values().filter_map(|(_, at)| Some(SHOWN.saturating_sub(now.since((*at)?)))).min()
    }

    /// The hub as a whole has this trouble, or none.
    pub(super) fn trouble(&mut self, trouble: Option<Error>) {
        self.trouble = trouble;
    }

    pub(super) fn next_attempt(&mut self, at: Option<Moment>) {
        self.next_attempt = at;
    }

    /// The whole picture.
    pub(super) fn state(
        &self,
        published: Option<&Published>,
        targets: &[Target],
        known: &BTreeMap<Target, Known>,
    ) -> MirrorState {
        let mut conditions = Vec::new();
        if let Some(trouble) = self.trouble.as_ref().or(self.writes_refused.as_ref())
            && let Some(condition) = trouble.condition()
        {
            conditions.push(Raised::new(condition, trouble.to_string()));
        }
        let mut devices = BTreeMap::new();
        let mut etags = BTreeMap::new();
        for (published, target) in published.into_iter().flat_map(|p| targets.iter().map(move |t| (p, t))) {
            let Some(device) = published.devices.iter().find(|d| d.as_str() == target.device) else {
                continue;
            };
            let state: &mut DeviceState = devices.entry(device.clone()).or_default();
            let known = known.get(target);
            let error = trouble_of(published, target, known, &mut conditions);
            state.error = state.error.take().or(error);
            if let Some(Known::Twin { etag, seen, .. }) = known
                && target.module.is_none()
            {
                state.epoch_confirmed = (seen.epoch > 0).then_some(seen.epoch);
                etags.insert(device.clone(), etag.clone());
            }
        }
        let held =
            self.odd.iter().map(|((_, condition), (detail, _))| Raised::new(*condition, detail.clone()));
        conditions.extend(held);
        let in_sync = self.in_sync && published.is_some();
        MirrorState {
            mirroring: published.is_some(),
            in_sync,
            last_success_unix_ms: self.last_success_unix_ms,
            newest_change: self.newest_change,
            behind_since: self.behind_since.filter(|_| published.is_some()),
            next_attempt: self.next_attempt,
            devices,
            highest_epoch_seen: self.highest.as_ref().map_or(0, |(epoch, _)| *epoch),
            highest_epoch_in: self.highest.as_ref().map(|(_, target)| target.clone()),
            reached: self.reached,
            settled: published.filter(|_| in_sync).map(|p| Settled { epoch: p.epoch, etags }),
            rolled_back: self.rolled_back,
            conditions,
            requests: self.requests.clone(),
        }
    }
}

/// What is wrong with one twin, if anything, and the conditions that say so.
fn trouble_of(
    published: &Published,
    target: &Target,
    known: Option<&Known>,
    conditions: &mut Vec<Raised>,
) -> Option<String> {
    let epoch = published.epoch;
    match known? {
        Known::Unread => None,
        Known::Missing => {
            conditions.push(Raised::new(Condition::HubDeviceMissing, target.to_string()));
            Some("the hub does not know it".into())
        }
        Known::Refused(why) => {
            conditions.push(Raised::new(Condition::HubBadAnswer, format!("{target}: {why}")));
            Some(why.clone())
        }
        Known::Twin { seen, disabled, .. } => {
            if *disabled {
                conditions.push(Raised::new(Condition::HubDeviceDisabled, target.to_string()));
            }
            let detail = format!("{target} shows epoch {}; the site is at {epoch}", seen.epoch);
            let condition = match seen.epoch {
                shown if shown <= epoch => return disabled.then(|| "it is disabled in the hub".into()),
                shown if plausible(published, shown) => Condition::TwinAhead,
                _ => Condition::TwinImplausible,
            };
            conditions.push(Raised::new(condition, detail.clone()));
            Some(detail)
        }
    }
}
