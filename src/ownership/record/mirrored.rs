//! What the record knows of the hub: what the twins were last confirmed to show, and the epochs seen there.
//!
//! Neither says who owns, and neither can change it: the hub is a mirror. All that a twin can do is make the next
//! epoch larger, and only by so much that a broken one does not use the epochs up.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Record;
use crate::{
    epoch::Epoch,
    id::DeviceId,
    ownership::command::{ConfirmMirror, RaiseFloor, Refusal},
};

/// How far above the site's epoch a twin's may be to be believed. A site that is restored from an old backup is not as
/// far behind, and the epochs last for four thousand million such steps.
pub const FLOOR_AHEAD: u64 = 1_000_000;

/// What the twins were last confirmed to show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirrored {
    /// The epoch that they show.
    pub epoch: Epoch,
    /// Which device confirmed it.
    pub by: DeviceId,
    /// The etag of each member's twin, as it was then.
    pub etags: BTreeMap<DeviceId, String>,
    /// When, by the confirming device's wall clock.
    pub at_unix_ms: u64,
}

impl Record {
    pub(super) fn confirm_mirror(&mut self, confirmed: &ConfirmMirror) -> Result<(), Refusal> {
        let ConfirmMirror { epoch, by, etags, at_unix_ms } = confirmed;
        let before = self.mirrored.as_ref().map_or(Epoch::ZERO, |mirrored| mirrored.epoch);
        if *epoch > self.epoch || *epoch < before {
            return Err(Refusal::Superseded {
                now: if *epoch < before { before } else { self.epoch },
                base: *epoch,
            });
        }
        if !self.roles.contains_key(by) {
            return Err(Refusal::NotAMember { device: by.clone() });
        }
        let mut etags = etags.clone();
        etags.retain(|device, _| self.roles.contains_key(device));
        self.mirrored = Some(Mirrored { epoch: *epoch, by: by.clone(), etags, at_unix_ms: *at_unix_ms });
        Ok(())
    }

    pub(super) fn raise_floor(&mut self, raise: &RaiseFloor) -> Result<(), Refusal> {
        let RaiseFloor { above, .. } = raise;
        let believed = self.epoch.get().saturating_add(FLOOR_AHEAD).min(Epoch::MAX.get() - 1);
        if above.get() > believed {
            return Err(Refusal::EpochTooFar { now: self.epoch, above: *above });
        }
        if *above > self.epoch {
            self.floor = self.floor.max(*above);
        }
        Ok(())
    }
}
