//! How the module's own link fares, as status, metrics and conditions show it.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    clock::Moment,
    condition::{Condition, Raised},
    hub::Error,
};

/// For how long something that was found in the twin, and mended, is still told.
const TOLD: Duration = Duration::from_secs(600);

/// What the loop says of itself. Replaced as a whole at every change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModuleState {
    /// Whether the link stands.
    pub connected: bool,
    /// Whether the twin shows what this sidecar has to say, as far as the other side tells: an edgeHub says so as soon as it
    /// has stored it.
    pub in_sync: bool,
    /// When the other side last did what was asked, by the wall clock, in milliseconds since 1970.
    pub last_success_unix_ms: Option<u64>,
    /// Since when the twin has not shown who owns; `None` while it does.
    pub behind_since: Option<Moment>,
    /// When the hub is tried again, while it is left alone after a failure.
    pub next_attempt: Option<Moment>,
    /// The epoch that the twin shows; `None` if it was not read, or shows none.
    pub epoch_confirmed: Option<u64>,
    /// The highest epoch seen in the twin since this sidecar started; zero if none.
    pub highest_epoch_seen: u64,
    /// What an operator should know now.
    pub conditions: Vec<Raised>,
    /// Requests since the start, by status or word as `hub::Error::code` has it; `connect` counts links that stood.
    pub requests: BTreeMap<String, u64>,
}

impl ModuleState {
    /// How long the twin has been behind, at `now` on the boot clock; zero while it shows who owns.
    pub fn lag(&self, now: Moment) -> Duration {
        self.behind_since.map_or(Duration::ZERO, |since| now.since(since))
    }
}

/// What the loop notes on its way.
#[derive(Debug, Default)]
pub(super) struct Progress {
    state: ModuleState,
    trouble: Option<Error>,
    ahead: Option<(u64, u64)>,
    /// What was found wrong in the twin, until when it is told.
    found: Vec<(Raised, Moment)>,
}

impl Progress {
    /// The link stands, or not.
    pub(super) fn connected(&mut self, connected: bool) {
        self.state.connected = connected;
        if connected {
            *self.state.requests.entry("connect".to_owned()).or_default() += 1;
        } else {
            self.state.in_sync = false;
        }
    }

    /// A request was answered, with this error if it failed.
    pub(super) fn count(&mut self, error: Option<&Error>) {
        let code = error.map_or("200".into(), Error::code);
        *self.state.requests.entry(code.into_owned()).or_default() += 1;
    }

    /// The other side did what was asked.
    pub(super) fn answered(&mut self, wall_ms: u64) {
        self.state.last_success_unix_ms = Some(wall_ms);
        self.trouble = None;
    }

    /// The twin shows this epoch.
    pub(super) fn shows(&mut self, epoch: u64) {
        self.state.epoch_confirmed = (epoch > 0).then_some(epoch);
        self.state.highest_epoch_seen = self.state.highest_epoch_seen.max(epoch);
    }

    pub(super) fn trouble(&mut self, error: Error) {
        // One absence may be met with other words at each try: it is one, and told once.
        let same = matches!((&self.trouble, &error), (Some(Error::Unreachable(_)), Error::Unreachable(_)));
        if !same {
            self.trouble = Some(error);
        }
    }

    pub(super) fn next_attempt(&mut self, at: Option<Moment>) {
        self.state.next_attempt = at;
    }

    /// The twin does not show who owns.
    pub(super) fn behind(&mut self, now: Moment) {
        self.state.behind_since.get_or_insert(now);
        self.state.in_sync = false;
    }

    /// Whether the twin shows all there is to say, and whether it shows who owns.
    pub(super) fn compared(&mut self, all: bool, ownership: bool) {
        self.state.in_sync = all;
        if ownership {
            self.state.behind_since = None;
        }
    }

    /// The twin shows an epoch that this device has not reached, or not any more.
    pub(super) fn ahead(&mut self, ahead: Option<(u64, u64)>) {
        self.ahead = ahead;
    }

    /// Something was found wrong in the twin.
    pub(super) fn found(&mut self, raised: Raised, now: Moment) {
        self.found.retain(|(other, _)| other.name != raised.name);
        self.found.push((raised, now + TOLD));
    }

    /// When the next of what was found is no longer told.
    pub(super) fn told_until(&self) -> Option<Moment> {
        self.found.iter().map(|(_, until)| *until).min()
    }

    /// The whole picture. `who`: whose link, for the conditions.
    pub(super) fn state(&mut self, who: &str, now: Moment) -> ModuleState {
        self.found.retain(|(_, until)| *until > now);
        let mut state = self.state.clone();
        if let Some(trouble) = &self.trouble
            && let Some(condition) = trouble.condition()
        {
            state.conditions.push(Raised::new(condition, format!("{who}: {trouble}")));
        }
        // Before this sidecar knows any ownership it is behind whatever it said in an earlier life.
        if let Some((shown, reached)) = self.ahead.filter(|(_, reached)| *reached > 0) {
            let detail = format!("{who} shows epoch {shown}; this device is at {reached}");
            state.conditions.push(Raised::new(Condition::TwinAhead, detail));
        }
        state.conditions.extend(self.found.iter().map(|(raised, _)| raised.clone()));
        state
    }
}
