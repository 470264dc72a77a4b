//! The only thing that faces need from the node, and the rule that all of them share: no answer after it lapsed.
//!
//! `node/` implements [`Door`]; tests implement a small one. An [`Answer`] and a [`Permit`] carry the moment at which
//! they stop being true, on the boot clock, and every face passes them through `at` before it shows them.

use std::sync::Arc;

use tokio::sync::watch;

use super::{events::Events, report::Report};
use crate::{
    clock::{Clock, Moment, millis},
    epoch::Epoch,
    id::DeviceId,
    reconcile::commands::Corridor,
};

/// The node behind a pointer.
pub type Handle = Arc<dyn Door>;

/// What a node shows to its faces. What they may order goes through the corridor that the cloud's commands take too.
pub trait Door: Corridor + 'static {
    /// The snapshot. Answers from memory; never waits.
    fn report(&self) -> Report;

    /// What happened here of late.
    fn events(&self) -> Events;

    /// This device.
    fn me(&self) -> &DeviceId;

    /// The boot clock that all moments below are on.
    fn clock(&self) -> Arc<dyn Clock>;

    /// Who owns, now and on every change. A renewal that only moves `until` is a change too. The sender lives as
    /// long as the node; when it is dropped, the answer is unknown.
    fn answers(&self) -> watch::Receiver<Answer>;

    /// Whether the workload on this device may act, now and on every change. As for [`Door::answers`].
    fn permits(&self) -> watch::Receiver<Permit>;
}

/// Who owns, as far as this sidecar can vouch for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Vouched for until a moment.
    Known {
        /// The owner; `None` if it is known that nobody owns.
        owner: Option<DeviceId>,
        /// The epoch of the newest ownership.
        epoch: Epoch,
        /// From here on it may be false.
        until: Moment,
        /// Why, in one sentence.
        reason: String,
    },
    /// This sidecar cannot vouch for anything.
    Unknown {
        /// Why not, in one sentence.
        reason: String,
    },
}

impl Answer {
    /// The answer as it may be given at `now`: with less than a millisecond left it is unknown.
    pub fn at(&self, now: Moment) -> Answer {
        match self {
            Answer::Known { until, .. } if millis(until.since(now)) == 0 => Answer::Unknown {
                reason: "the last answer has lapsed: no majority has confirmed an owner since".into(),
            },
            answer => answer.clone(),
        }
    }
}

/// Whether the workload on this device may act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    /// It may, until the moment below.
    pub active: bool,
    /// The fencing token.
    pub epoch: Epoch,
    /// The end of the lease; meaningless unless `active`.
    pub until: Moment,
    /// Why, in one sentence.
    pub reason: String,
}

impl Permit {
    /// The permit as it may be given at `now`: with less than a millisecond left it is none.
    pub fn at(&self, now: Moment) -> Permit {
        if self.active && millis(self.until.since(now)) == 0 {
            let reason = "the lease has lapsed".into();
            return Permit { active: false, reason, ..self.clone() };
        }
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_after_it_lapsed() {
        let until = Moment::from_nanos(5_000_000);
        let known = Answer::Known { owner: None, epoch: Epoch::ZERO, until, reason: "nobody owns".into() };
        assert_eq!(known.at(Moment::from_nanos(4_000_000)), known);
        assert!(matches!(known.at(Moment::from_nanos(4_000_001)), Answer::Unknown { .. }));
        assert!(matches!(known.at(Moment::from_nanos(9_000_000)), Answer::Unknown { .. }));
        let permit = Permit { active: true, epoch: Epoch::ZERO, until, reason: "owner".into() };
        assert!(permit.at(Moment::from_nanos(1)).active);
        assert!(!permit.at(until).active);
    }
}
