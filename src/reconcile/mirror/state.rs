//! How the mirror fares, as status, metrics and conditions show it.

use std::{collections::BTreeMap, time::Duration};

use super::plan::Known;
use crate::{
    clock::Moment,
    condition::{Condition, Raised},
    hub::{Error, Published},
    id::DeviceId,
};

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
    /// What an operator should know now.
    pub conditions: Vec<Raised>,
    /// Requests since the start, by HTTP status or, where there was none, by a word (`timeout`, `unreachable`,
    /// `untrusted`, `bad_answer`).
    pub requests: BTreeMap<String, u64>,
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
    highest: u64,
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
        }
    }

    /// This device no longer mirrors.
    pub(super) fn silent(&mut self) {
        self.in_sync = false;
        self.behind_since = None;
        self.trouble = None;
        self.highest = 0;
    }

    /// A call came back, with this error if it failed.
    pub(super) fn count(&mut self, error: Option<&Error>) {
        let code = error.map_or("200".into(), Error::code);
        *self.requests.entry(code.into_owned()).or_default() += 1;
    }

    /// The hub did what was asked, and a twin showed this epoch.
    pub(super) fn answered(&mut self, wall_ms: u64, epoch: u64) {
        self.last_success_unix_ms = Some(wall_ms);
        self.highest = self.highest.max(epoch);
        self.trouble = None;
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
        known: &BTreeMap<DeviceId, Known>,
    ) -> MirrorState {
        let epoch = published.map_or(0, |published| published.epoch);
        let mut conditions = Vec::new();
        if let Some(trouble) = &self.trouble
            && let Some(condition) = trouble.condition()
        {
            conditions.push(Raised::new(condition, trouble.to_string()));
        }
        let mut devices = BTreeMap::new();
        for device in published.into_iter().flat_map(|published| &published.devices) {
            let mut state = DeviceState::default();
            match known.get(device) {
                None | Some(Known::Unread) => {}
                Some(Known::Missing) => {
                    conditions.push(Raised::new(Condition::HubDeviceMissing, device.as_str()));
                    state.error = Some("the hub does not know this device".into());
                }
                Some(Known::Refused(why)) => {
                    conditions.push(Raised::new(Condition::HubBadAnswer, format!("{device}: {why}")));
                    state.error = Some(why.clone());
                }
                Some(Known::Twin { seen, .. }) => {
                    state.epoch_confirmed = (seen.epoch > 0).then_some(seen.epoch);
                    if seen.epoch > epoch {
                        let detail = format!("{device} shows epoch {}; the site is at {epoch}", seen.epoch);
                        state.error = Some(detail.clone());
                        conditions.push(Raised::new(Condition::TwinAhead, detail));
                    }
                }
            }
            devices.insert(device.clone(), state);
        }
        MirrorState {
            mirroring: published.is_some(),
            in_sync: self.in_sync && published.is_some(),
            last_success_unix_ms: self.last_success_unix_ms,
            newest_change: self.newest_change,
            behind_since: self.behind_since.filter(|_| published.is_some()),
            next_attempt: self.next_attempt,
            devices,
            highest_epoch_seen: self.highest,
            conditions,
            requests: self.requests.clone(),
        }
    }
}
