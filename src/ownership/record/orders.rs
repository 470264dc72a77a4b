//! What people and programs have ordered, and what follows for who may claim.
//!
//! Each order is idempotent and stays in force, over restarts and changes of the owner, until another lifts it. None
//! changes the ownership: a drained owner is moved by its own decision ([`crate::ownership::decide`]), and a pause
//! only keeps others from claiming.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Record;
use crate::{
    epoch::Epoch,
    id::DeviceId,
    ownership::{
        command::{Drain, DrainExactly, EndPause, LimitTiming, Order, Refusal, SetPreferred},
        pace::{CONFIGURED, STRETCH_MAX},
    },
    site::Role,
};

/// Who ordered what is in force, when and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The id of the order.
    pub id: u64,
    /// Who asked.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When, by the asking device's wall clock.
    pub at_unix_ms: u64,
    /// When it ends by itself, by the wall clock of whoever leads then; absent: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_unix_ms: Option<u64>,
}

impl From<&Order> for Note {
    fn from(order: &Order) -> Note {
        let Order { id, actor, reason, at_unix_ms, until_unix_ms, .. } = order.clone();
        Note { id, actor, reason, at_unix_ms, until_unix_ms }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason.as_str() {
            "" => write!(f, "by {}", self.actor),
            reason => write!(f, "by {}: {reason}", self.actor),
        }
    }
}

impl Record {
    /// The devices that may be chosen to own, in the order in which they are: the preferred one, then by name.
    pub fn candidates(&self) -> Vec<&DeviceId> {
        let may = |device: &&DeviceId| {
            let barred = self.is_undrained(device).and_then(|()| self.is_unblocked(device));
            self.may_own(device).and(barred).is_ok()
        };
        let mut devices: Vec<&DeviceId> = self.roles.keys().filter(may).collect();
        devices.sort_by_key(|device| self.preferred.as_ref() != Some(*device));
        devices
    }

    /// May this device claim now, by what the record says? Who leads is not asked here.
    ///
    /// While the site is paused, only the device that owns or owned last may, and the one that was named to own next.
    /// A drained device may only go on with what it owns, or owned last while the site is paused. One that runs something else than
    /// the site does may not if it has said so, unless it was named.
    ///
    /// # Errors
    /// [`Refusal::NotAMember`], [`Refusal::Witness`], [`Refusal::Drained`], [`Refusal::BuildDiffers`] or [`Refusal::Paused`].
    pub fn may_claim(&self, device: &DeviceId) -> Result<(), Refusal> {
        self.may_own(device)?;
        if !self.goes_on(device) {
            self.is_undrained(device)?;
        }
        self.is_unblocked(device)?;
        let named = self.released.as_ref().and_then(|released| released.successor.as_ref());
        if self.paused.is_some() && named != Some(device) && !self.owned_last(device) {
            return Err(Refusal::Paused);
        }
        Ok(())
    }

    /// Whether a drain of this device waits: until another can follow, and while the site is paused for the end of that. It goes
    /// on with what it owns, also after a restart.
    pub fn goes_on(&self, device: &DeviceId) -> bool {
        self.is_held_by(device) || self.paused.is_some() && self.owned_last(device)
    }

    pub(super) fn owned_last(&self, device: &DeviceId) -> bool {
        self.history.back().is_some_and(|last| last.device == *device)
    }

    /// Whether the ownership is this device's, in whichever life.
    pub fn is_held_by(&self, device: &DeviceId) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.device == *device)
    }

    pub(super) fn is_undrained(&self, device: &DeviceId) -> Result<(), Refusal> {
        if self.drained.contains_key(device) {
            return Err(Refusal::Drained { device: device.clone() });
        }
        Ok(())
    }

    /// A pause never shortens another: the one that ends last, or not at all, counts.
    pub(super) fn pause(&mut self, order: &Order) -> Result<(), Refusal> {
        self.expect_if(order.base)?;
        let outlasts = |now: &Note| match (now.until_unix_ms, order.until_unix_ms) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(now), Some(then)) => then > now,
        };
        if self.paused.as_ref().is_none_or(outlasts) {
            self.paused = Some(order.into());
        }
        Ok(())
    }

    pub(super) fn end_pause(&mut self, end: &EndPause) -> Result<(), Refusal> {
        self.paused.take_if(|note| note.id == end.pause && note.until_unix_ms.is_some());
        Ok(())
    }

    pub(super) fn resume(&mut self, order: &Order) -> Result<(), Refusal> {
        self.expect_if(order.base)?;
        self.paused = None;
        Ok(())
    }

    pub(super) fn drain(&mut self, drain: &Drain) -> Result<(), Refusal> {
        let Drain { order, device } = drain;
        self.expect_if(order.base)?;
        self.may_own(device)?;
        self.leaves_one(|other| other == device || self.drained.contains_key(other))?;
        self.drained.entry(device.clone()).or_insert_with(|| order.into());
        Ok(())
    }

    pub(super) fn drain_exactly(&mut self, drain: &DrainExactly) -> Result<(), Refusal> {
        let DrainExactly { order, devices } = drain;
        self.expect_if(order.base)?;
        devices.iter().try_for_each(|device| self.may_own(device))?;
        self.leaves_one(|device| devices.contains(device))?;
        self.drained.retain(|device, _| devices.contains(device));
        for device in devices {
            self.drained.entry(device.clone()).or_insert_with(|| order.into());
        }
        Ok(())
    }

    /// Whether a device is left that may own.
    fn leaves_one(&self, drained: impl Fn(&DeviceId) -> bool) -> Result<(), Refusal> {
        let left = self.roles.iter().any(|(device, role)| *role == Role::Voter && !drained(device));
        if left { Ok(()) } else { Err(Refusal::NoneLeft) }
    }

    pub(super) fn undrain(&mut self, undrain: &Drain) -> Result<(), Refusal> {
        let Drain { order, device } = undrain;
        self.expect_if(order.base)?;
        if !self.roles.contains_key(device) {
            return Err(Refusal::NotAMember { device: device.clone() });
        }
        self.drained.remove(device);
        Ok(())
    }

    pub(super) fn prefer(&mut self, preferred: &SetPreferred) -> Result<(), Refusal> {
        let SetPreferred { order, device } = preferred;
        self.expect_if(order.base)?;
        device.as_ref().map_or(Ok(()), |device| self.may_own(device))?;
        self.preferred.clone_from(device);
        Ok(())
    }

    pub(super) fn limit_timing(&mut self, limit: &LimitTiming) -> Result<(), Refusal> {
        let LimitTiming { order, least } = limit;
        self.expect_if(order.base)?;
        if least.is_some_and(|least| !(CONFIGURED..=STRETCH_MAX).contains(&least)) {
            return Err(Refusal::ImpossibleTiming);
        }
        self.least_stretch = *least;
        Ok(())
    }

    fn expect_if(&self, base: Option<Epoch>) -> Result<(), Refusal> {
        base.map_or(Ok(()), |base| self.expect(base))
    }
}
