//! What the site has agreed: the replicated state machine, small enough to keep in memory and send whole.
//!
//! [`Record::apply`] is pure and total: the same commands in the same order give the same record on every device, and
//! a command that does not fit is refused with its reason, never with a panic. The record says who *owns*. It
//! deliberately does not say who may act now (that is the lease) or what runs (that is observed).

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

mod builds;
mod handled;
mod mirrored;
mod orders;

pub use self::builds::{BUILD_MAX, BuildPolicy, Declared};
use self::handled::Handled;
pub use self::handled::{HANDLED_MAX, HANDLED_SPARE};
pub use self::mirrored::{FLOOR_AHEAD, Mirrored};
pub use self::orders::Note;

use super::{
    command::{Claim, Command, Outcome, Refusal, StopReceipt, Transfer},
    pace::Pace,
};
use crate::{
    epoch::Epoch,
    id::{DeviceId, Incarnation, SiteId},
    seal::{Receipt, Seal},
    site::{Role, Site},
};

/// How many past ownerships are kept to answer `why`.
pub const HISTORY_MAX: usize = 64;

/// Why an ownership began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The site had no owner before.
    FirstStart,
    /// The owner was no longer heard, and its lease had run out.
    OwnerLost,
    /// The owner's sidecar ended, and its fencer confirmed that the workload has stopped.
    OwnerStopped,
    /// The owner's own sidecar restarted and claimed anew.
    OwnerRestarted,
    /// The owner stopped its workload and named this device.
    HandedOver,
    /// The owner stopped its workload and left without naming anyone.
    OwnerLeft,
    /// The device that was named did not take over in time.
    HandoverFailed,
    /// The owner's fencer was lost, so it gave its epoch up and claimed anew.
    FencerLost,
}

impl Cause {
    /// The name used in the metric label, the status and the history.
    pub fn name(self) -> &'static str {
        match self {
            Cause::FirstStart => "first_start",
            Cause::OwnerLost => "owner_lost",
            Cause::OwnerStopped => "owner_stopped",
            Cause::OwnerRestarted => "owner_restarted",
            Cause::HandedOver => "handed_over",
            Cause::OwnerLeft => "owner_left",
            Cause::HandoverFailed => "handover_failed",
            Cause::FencerLost => "fencer_lost",
        }
    }

    /// One sentence for people and the twin.
    pub fn sentence(self) -> &'static str {
        match self {
            Cause::FirstStart => "first owner of the site",
            Cause::OwnerLost => "the owner was lost",
            Cause::OwnerStopped => "the owner's sidecar ended and its fencer confirmed the stop",
            Cause::OwnerRestarted => "the owner's sidecar restarted",
            Cause::HandedOver => "planned handover",
            Cause::OwnerLeft => "the owner left",
            Cause::HandoverFailed => "the chosen successor did not take over",
            Cause::FencerLost => "the owner's fencer was lost, so the owner began anew",
        }
    }
}

/// An ownership: the committed fact that `device` owns under `epoch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// Who owns.
    pub device: DeviceId,
    /// Which life of its sidecar.
    pub incarnation: Incarnation,
    /// The fencing token.
    pub epoch: Epoch,
    /// Why it began.
    pub cause: Cause,
    /// When, by the claimer's wall clock; for display.
    pub since_unix_ms: u64,
    /// What a receipt of its fencer has to fit. Absent: it will give none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<Seal>,
}

/// The end of an ownership by receipt: nothing runs under `epoch` any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// The ownership that ended.
    pub epoch: Epoch,
    /// Who shall own next.
    pub successor: Option<DeviceId>,
    /// Why the owner gave up, in one sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// A handover that was asked for and is not done yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// The id of the command that asked.
    pub id: u64,
    /// Who shall own next.
    pub to: DeviceId,
    /// Why.
    pub reason: String,
    /// Who asked.
    pub actor: String,
}

/// One past or present ownership, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The ownership's epoch.
    pub epoch: Epoch,
    /// Who owned.
    pub device: DeviceId,
    /// Why it began.
    pub cause: Cause,
    /// Who asked for it, where somebody did.
    pub actor: String,
    /// Why somebody asked, or why the one before ended.
    pub reason: String,
    /// When it began, by the claimer's wall clock.
    pub since_unix_ms: u64,
    /// When it ended, by the wall clock of whoever ended it; `None` while it lasts.
    pub until_unix_ms: Option<u64>,
    /// What the device ran as it took over; empty if it had not said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub build: String,
}

/// The replicated record of one site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The site that this record is of.
    pub site: SiteId,
    /// Who belongs to the site, and as what.
    pub roles: BTreeMap<DeviceId, Role>,
    /// The epoch of the newest ownership; never goes back.
    pub epoch: Epoch,
    /// Who owns now.
    pub owner: Option<Ownership>,
    /// Set while nobody owns because the last owner left a receipt.
    pub released: Option<Released>,
    /// Asked for and not done yet.
    pub handover: Option<Handover>,
    /// Newest last.
    pub history: VecDeque<Change>,
    /// The timing in use.
    #[serde(default)]
    pub pace: Pace,
    /// Set while nobody shall take over of its own accord.
    #[serde(default)]
    pub paused: Option<Note>,
    /// The devices that shall not own.
    #[serde(default)]
    pub drained: BTreeMap<DeviceId, Note>,
    /// Who comes first where a device is chosen.
    #[serde(default)]
    pub preferred: Option<DeviceId>,
    /// The least stretch of the timing that a person allows, in hundredths.
    #[serde(default)]
    pub least_stretch: Option<u32>,
    /// What each device runs, as far as it has said.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub builds: BTreeMap<DeviceId, Declared>,
    /// What the twins were last known to show.
    #[serde(default)]
    pub mirrored: Option<Mirrored>,
    /// The next ownership is newer than this too.
    #[serde(default)]
    pub floor: Epoch,
    #[serde(default)]
    once: Handled,
}

impl Record {
    /// The record before the first command, from the member list that all devices share.
    pub fn new(site: &Site) -> Record {
        Record {
            site: site.id.clone(),
            roles: site.members.iter().map(|m| (m.device.clone(), m.role)).collect(),
            epoch: Epoch::ZERO,
            owner: None,
            released: None,
            handover: None,
            history: VecDeque::new(),
            pace: Pace::default(),
            paused: None,
            drained: BTreeMap::new(),
            preferred: None,
            least_stretch: None,
            builds: BTreeMap::new(),
            mirrored: None,
            floor: Epoch::ZERO,
            once: Handled::default(),
        }
    }

    /// Applies one command. Pure: depends on nothing but the record and the command. What is refused changes nothing, and
    /// is not remembered: its repeat is looked at again.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        let once = command.once();
        if let Some(epoch) = once.and_then(|once| self.executed(once.id)) {
            return Outcome::Repeated { epoch };
        }
        match once.map_or(Ok(()), |once| self.once.has_room(once)).and_then(|()| self.execute(command)) {
            Ok(()) => {
                if let Some(once) = once {
                    self.once.note(once, self.epoch);
                }
                Outcome::Done { epoch: self.epoch }
            }
            Err(refusal) => Outcome::Refused(refusal),
        }
    }

    fn execute(&mut self, command: &Command) -> Result<(), Refusal> {
        match command {
            Command::Claim(claim) => self.claim(claim),
            Command::StopReceipt(receipt) => self.stop_receipt(receipt),
            Command::Transfer(transfer) => self.transfer(transfer),
            Command::SetTiming(_) | Command::SettleTiming(_) => self.pace.apply(command),
            Command::Pause(order) => self.pause(order),
            Command::EndPause(end) => self.end_pause(end),
            Command::Resume(order) => self.resume(order),
            Command::Drain(drain) => self.drain(drain),
            Command::Undrain(undrain) => self.undrain(undrain),
            Command::DrainExactly(drain) => self.drain_exactly(drain),
            Command::SetPreferred(preferred) => self.prefer(preferred),
            Command::LimitTiming(limit) => self.limit_timing(limit),
            Command::ConfirmMirror(confirmed) => self.confirm_mirror(confirmed),
            Command::RaiseFloor(raise) => self.raise_floor(raise),
            Command::DeclareBuild(declare) => self.declare_build(declare),
        }
    }

    /// The epoch after which the command with this id was executed, if it was and is still remembered.
    pub fn executed(&self, id: u64) -> Option<Epoch> {
        self.once.first(id)
    }

    /// May this device own at all, by what the record says of it?
    ///
    /// # Errors
    /// [`Refusal::NotAMember`] or [`Refusal::Witness`].
    pub fn may_own(&self, device: &DeviceId) -> Result<(), Refusal> {
        match self.roles.get(device) {
            None => Err(Refusal::NotAMember { device: device.clone() }),
            Some(Role::Witness) => Err(Refusal::Witness { device: device.clone() }),
            Some(Role::Voter) => Ok(()),
        }
    }

    /// The present ownership if it is `device`'s in this very life.
    pub fn owned_by(&self, device: &DeviceId, incarnation: Incarnation) -> Option<&Ownership> {
        self.owner.as_ref().filter(|o| o.device == *device && o.incarnation == incarnation)
    }

    /// Whether this is the word of the present owner's fencer that the ownership has ended.
    pub fn is_proof(&self, receipt: &Receipt) -> bool {
        let seal = self.owner.as_ref().filter(|o| o.epoch == receipt.epoch).and_then(|o| o.seal);
        receipt.epoch == self.epoch && seal == Some(receipt.secret.seal())
    }

    /// Who lost the ownership before the present one: its lease ended, and another was elected.
    pub fn lost(&self) -> Option<&DeviceId> {
        let mut newest = self.history.iter().rev();
        newest.next().filter(|change| change.cause == Cause::OwnerLost)?;
        newest.next().map(|change| &change.device)
    }

    /// Whether the present owner has been asked to hand over. From then on its lease is worth nothing to others.
    pub fn is_handing_over(&self) -> bool {
        self.owner.is_some() && self.handover.is_some()
    }

    fn claim(&mut self, claim: &Claim) -> Result<(), Refusal> {
        self.may_claim(&claim.device)?;
        self.expect(claim.base)?;
        if let Some(owner) = self.owned_by(&claim.device, claim.incarnation) {
            return Err(Refusal::OwnsAlready { device: claim.device.clone(), epoch: owner.epoch });
        }
        let epoch = self.epoch.max(self.floor).next().ok_or(Refusal::EpochsUsedUp)?;
        let proof = claim.proof.map(|secret| Receipt { epoch: claim.base, secret });
        let stopped = proof.is_some_and(|proof| self.is_proof(&proof));
        // Who names itself as its own successor has burned its epoch.
        let last = self.history.back().is_some_and(|last| last.device == claim.device);
        let cause = match (&self.owner, &self.released) {
            (Some(owner), _) if owner.device == claim.device => Cause::OwnerRestarted,
            (Some(_), _) if stopped => Cause::OwnerStopped,
            (Some(_), _) => Cause::OwnerLost,
            (None, Some(Released { successor: Some(next), .. })) if *next == claim.device && last => {
                Cause::FencerLost
            }
            (None, Some(Released { successor: Some(next), .. })) if *next == claim.device => {
                Cause::HandedOver
            }
            (None, Some(Released { successor: Some(_), .. })) => Cause::HandoverFailed,
            (None, Some(_)) => Cause::OwnerLeft,
            (None, None) => Cause::FirstStart,
        };
        // What the owner gave up for of its own accord. Who was asked to says no more than that.
        let own = self.released.take().map(|released| released.reason).filter(|reason| !reason.is_empty());
        let (actor, reason) = match (cause, self.handover.take()) {
            (Cause::HandedOver | Cause::HandoverFailed, Some(handover)) if handover.reason.is_empty() => {
                (handover.actor, cause.sentence().to_owned())
            }
            (Cause::HandedOver | Cause::HandoverFailed, Some(handover)) => (handover.actor, handover.reason),
            (Cause::HandedOver, None) => (String::new(), own.unwrap_or_else(|| cause.sentence().to_owned())),
            // Nobody else was there to name, or it did not come: why the owner gave up is true all the same.
            (Cause::HandoverFailed | Cause::OwnerLeft, _) if own.is_some() => {
                (String::new(), format!("{}: {}", cause.sentence(), own.unwrap_or_default()))
            }
            _ => (String::new(), cause.sentence().to_owned()),
        };
        self.close_history(claim.at_unix_ms);
        self.history.push_back(Change {
            epoch,
            device: claim.device.clone(),
            cause,
            actor,
            reason,
            since_unix_ms: claim.at_unix_ms,
            until_unix_ms: None,
            build: self.builds.get(&claim.device).map(|it| it.build.clone()).unwrap_or_default(),
        });
        if self.history.len() > HISTORY_MAX {
            self.history.pop_front();
        }
        self.epoch = epoch;
        self.owner = Some(Ownership {
            device: claim.device.clone(),
            incarnation: claim.incarnation,
            epoch,
            cause,
            since_unix_ms: claim.at_unix_ms,
            seal: claim.seal,
        });
        Ok(())
    }

    fn stop_receipt(&mut self, receipt: &StopReceipt) -> Result<(), Refusal> {
        self.expect(receipt.epoch)?;
        if self.owned_by(&receipt.device, receipt.incarnation).is_none() {
            return Err(Refusal::Superseded { now: self.epoch, base: receipt.epoch });
        }
        self.close_history(receipt.at_unix_ms);
        self.owner = None;
        self.released = Some(Released {
            epoch: receipt.epoch,
            successor: receipt.successor.clone(),
            reason: receipt.reason.clone(),
        });
        Ok(())
    }

    fn transfer(&mut self, transfer: &Transfer) -> Result<(), Refusal> {
        self.expect(transfer.base)?;
        let owner = self.owner.as_ref().ok_or(Refusal::NoOwner)?;
        self.may_own(&transfer.to)?;
        self.is_undrained(&transfer.to)?;
        if owner.device == transfer.to {
            return Err(Refusal::OwnsAlready { device: owner.device.clone(), epoch: owner.epoch });
        }
        self.handover = Some(Handover {
            id: transfer.id,
            to: transfer.to.clone(),
            reason: transfer.reason.clone(),
            actor: transfer.actor.clone(),
        });
        Ok(())
    }

    fn expect(&self, base: Epoch) -> Result<(), Refusal> {
        if base == self.epoch { Ok(()) } else { Err(Refusal::Superseded { now: self.epoch, base }) }
    }

    fn close_history(&mut self, at_unix_ms: u64) {
        if let Some(last) = self.history.back_mut() {
            last.until_unix_ms.get_or_insert(at_unix_ms);
        }
    }
}

#[cfg(test)]
mod tests;
