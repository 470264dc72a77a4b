//! What may be proposed to the replicated record, and what became of it.
//!
//! Commands carry everything that [`super::record::Record::apply`] needs, wall time for display included, because
//! applying must give the same result on every device. They are stored as JSON: unknown fields are ignored, so a
//! newer member's extra field does not stop an older one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::record::Declared;
use crate::{
    epoch::Epoch,
    id::{DeviceId, Incarnation},
    seal::{Seal, Secret},
};

/// A change to the record, proposed by a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// The leader wants to own. The only way to become owner.
    Claim(Claim),
    /// The owner's workload is confirmed stopped, for good, under this epoch.
    StopReceipt(StopReceipt),
    /// Somebody wants the ownership moved.
    Transfer(Transfer),
    /// The timing in use shall be another.
    SetTiming(SetTiming),
    /// No promise that counts is wider any more than the timing in use asks for.
    SettleTiming(SettleTiming),
    /// Nobody shall take over of its own accord.
    Pause(Order),
    /// The time of a pause is over.
    EndPause(EndPause),
    /// Everybody may take over again.
    Resume(Order),
    /// A device shall not own.
    Drain(Drain),
    /// It may again.
    Undrain(Drain),
    /// Exactly these devices shall not own.
    DrainExactly(DrainExactly),
    /// A device shall come first where one is chosen.
    SetPreferred(SetPreferred),
    /// The timing shall not be narrower than this.
    LimitTiming(LimitTiming),
    /// What the twins show is what was agreed.
    ConfirmMirror(ConfirmMirror),
    /// A twin shows an epoch that the site has not reached.
    RaiseFloor(RaiseFloor),
    /// A device says what it runs.
    DeclareBuild(DeclareBuild),
}

/// What makes a command of a person or a program be executed once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Once {
    pub(super) id: u64,
    pub(super) at_unix_ms: u64,
    pub(super) expires_unix_ms: u64,
}

impl Command {
    /// By what a repeat of this command is known, if it is of the kind that is executed once.
    pub(super) fn once(&self) -> Option<Once> {
        let order = match self {
            Command::Transfer(Transfer { id, at_unix_ms, expires_unix_ms, .. }) => {
                let (id, at_unix_ms, expires_unix_ms) = (*id, *at_unix_ms, *expires_unix_ms);
                return Some(Once { id, at_unix_ms, expires_unix_ms });
            }
            Command::Pause(order) | Command::Resume(order) => order,
            Command::Drain(Drain { order, .. }) | Command::Undrain(Drain { order, .. }) => order,
            Command::DrainExactly(DrainExactly { order, .. })
            | Command::SetPreferred(SetPreferred { order, .. })
            | Command::LimitTiming(LimitTiming { order, .. }) => order,
            Command::Claim(_)
            | Command::StopReceipt(_)
            | Command::EndPause(_)
            | Command::SetTiming(_)
            | Command::SettleTiming(_)
            | Command::ConfirmMirror(_)
            | Command::RaiseFloor(_)
            | Command::DeclareBuild(_) => return None,
        };
        let Order { id, at_unix_ms, expires_unix_ms, .. } = *order;
        Some(Once { id, at_unix_ms, expires_unix_ms })
    }

    /// Whether a member that does not lead may have the leader execute it. A claim is of use to who leads alone: from a
    /// leader that was deposed meanwhile it would end the ownership of whoever leads now, and begin none.
    pub fn travels(&self) -> bool {
        !matches!(self, Command::Claim(_))
    }
}

/// A claim for the epoch after `base`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Who claims.
    pub device: DeviceId,
    /// Which life of its sidecar. A restarted sidecar is somebody new and never resumes an epoch.
    pub incarnation: Incarnation,
    /// The record's epoch that the claimer saw. The claim fails if another came first.
    pub base: Epoch,
    /// The claimer's wall clock, for display.
    pub at_unix_ms: u64,
    /// What the receipt of the claimer's fencer will have to fit. Absent: it will give none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<Seal>,
    /// What the fencer of the owner before showed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Secret>,
}

/// Proof that nothing of the workload runs under `epoch`, and never will again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopReceipt {
    /// Whose workload.
    pub device: DeviceId,
    /// Which life of its sidecar.
    pub incarnation: Incarnation,
    /// The ownership that ended.
    pub epoch: Epoch,
    /// Who shall own next; `None` lets the others race.
    pub successor: Option<DeviceId>,
    /// Why it ended, in one sentence.
    pub reason: String,
    /// The owner's wall clock, for display.
    pub at_unix_ms: u64,
}

/// A request for a planned handover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Unique to this request; a repeat is answered, not executed again.
    pub id: u64,
    /// Who shall own next.
    pub to: DeviceId,
    /// The epoch that the request is about. It is void once another ownership began.
    pub base: Epoch,
    /// Why, as the person or program put it.
    pub reason: String,
    /// Who asked.
    pub actor: String,
    /// The asking device's wall clock, for display.
    pub at_unix_ms: u64,
    /// Until when a repeat may come, by wall clocks; 0 for a command that nobody keeps.
    #[serde(default)]
    pub expires_unix_ms: u64,
}

/// Who ordered something, when and why. Part of every command that stays in force until another lifts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Unique to this order; a repeat is answered, not executed again.
    pub id: u64,
    /// Who asked.
    pub actor: String,
    /// Why, as the person or program put it.
    pub reason: String,
    /// The asking device's wall clock, for display.
    pub at_unix_ms: u64,
    /// The epoch that the order is about, if it is void once another ownership began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Epoch>,
    /// Until when a repeat may come, by wall clocks; 0 for an order that nobody keeps.
    #[serde(default)]
    pub expires_unix_ms: u64,
    /// When what is ordered ends by itself, by the wall clock of whoever leads then; absent: it does not. Of use to a pause alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_unix_ms: Option<u64>,
}

/// Proof of nothing but a wall clock: the pause that is in force by this very order shall end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndPause {
    /// The id of the order. Another pause, or none, stays as it is.
    pub pause: u64,
}

/// An order about one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Who asks and why.
    pub order: Order,
    /// Which device.
    pub device: DeviceId,
}

/// An order about all devices: these are drained, and no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainExactly {
    /// Who asks and why.
    pub order: Order,
    /// Which devices.
    pub devices: BTreeSet<DeviceId>,
}

/// Which device comes first where one is chosen. Moves nothing by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetPreferred {
    /// Who asks and why.
    pub order: Order,
    /// Which device; `None` for no preference.
    pub device: Option<DeviceId>,
}

/// The least stretch of the timing that a person allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitTiming {
    /// Who asks and why.
    pub order: Order,
    /// Hundredths of the configured timing, 100 to 6400; `None` lifts the limit.
    pub least: Option<u32>,
}

/// The twins were read back, or their writes answered: they show this epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmMirror {
    /// The epoch that they show.
    pub epoch: Epoch,
    /// Which device wrote or read them.
    pub by: DeviceId,
    /// The etag of each device's twin, as it was then.
    pub etags: BTreeMap<DeviceId, String>,
    /// The mirroring device's wall clock, for display.
    pub at_unix_ms: u64,
}

/// A twin shows `above`, which is more than the site has reached: its next ownership shall be newer than that. It says
/// nothing about who owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaiseFloor {
    /// The epoch that the twin shows.
    pub above: Epoch,
    /// Whose twin.
    pub seen_in: String,
}

/// What a device runs from now on, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclareBuild {
    /// The device.
    pub device: DeviceId,
    /// What it says.
    pub declared: Declared,
}

/// A change of the timing in use. Members promise for longer once they have this on disk, and the owner asks for longer
/// once it has applied it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetTiming {
    /// The version of the timing that the proposer saw.
    pub base: u64,
    /// Hundredths of the configured heartbeat and hold, 100 to 6400.
    pub stretch: u32,
    /// The refusal window that goes with it, in microseconds.
    pub refusal_us: u64,
    /// Why, in one sentence.
    pub reason: String,
    /// The proposer's wall clock, for display.
    pub at_unix_ms: u64,
}

/// Proof that every lease asked for with a wider timing has ended: the leader has used version `base` for longer than
/// the widest window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettleTiming {
    /// The version of the timing that has settled.
    pub base: u64,
}

/// What applying a command did. The same on every device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The record changed; this is its epoch now.
    Done {
        /// The record's epoch after the change.
        epoch: Epoch,
    },
    /// A repeat of a command that was already executed. Nothing changed.
    Repeated {
        /// The record's epoch after the first time.
        #[serde(default)]
        epoch: Epoch,
    },
    /// The record did not change, and why.
    Refused(Refusal),
    /// Not a command of ours: Raft's own entries.
    Nothing,
}

/// Why a command was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "refusal", rename_all = "snake_case")]
pub enum Refusal {
    /// Another claim, receipt or ownership came first.
    #[error("the record is at epoch {now}, the command was made for epoch {base}")]
    Superseded {
        /// The record's epoch.
        now: Epoch,
        /// The command's.
        base: Epoch,
    },
    /// The device is not a member of this site.
    #[error("{device} is not a member of this site")]
    NotAMember {
        /// The unknown device.
        device: DeviceId,
    },
    /// The device votes but never owns.
    #[error("{device} is a witness: it votes and never owns")]
    Witness {
        /// The witness.
        device: DeviceId,
    },
    /// The device owns already.
    #[error("{device} owns already, epoch {epoch}")]
    OwnsAlready {
        /// The owner.
        device: DeviceId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// There is no owner whose ownership could be moved.
    #[error("nobody owns now, so there is nothing to hand over")]
    NoOwner,
    /// The timing was changed by another command first.
    #[error("the timing is at version {now}, the command was made for version {base}")]
    OtherTiming {
        /// The record's version.
        now: u64,
        /// The command's.
        base: u64,
    },
    /// No timing can be like this.
    #[error("no timing can be like this")]
    ImpossibleTiming,
    /// The last epoch that a twin can hold has been used.
    #[error("the last epoch has been used")]
    EpochsUsedUp,
    /// Nobody takes over of its own accord while the site is paused.
    #[error(
        "the site is paused: only the device that owned last may own, until somebody resumes or transfers"
    )]
    Paused,
    /// Somebody drained the device.
    #[error("{device} is drained: it does not own until somebody undrains it")]
    Drained {
        /// The drained device.
        device: DeviceId,
    },
    /// The device runs something else than the site does, and does not own meanwhile.
    #[error(
        "{device} runs {build} and the site {site}: it does not own until they are the same, or somebody transfers to it"
    )]
    BuildDiffers {
        /// The device.
        device: DeviceId,
        /// What it runs.
        build: String,
        /// What the site runs.
        site: String,
    },
    /// A build without a name, or with one that is too long.
    #[error("a build has a name of 1 to 128 bytes")]
    NoBuild,
    /// No device would be left that may own.
    #[error("no device would be left that may own")]
    NoneLeft,
    /// So many commands are remembered that one more could not be executed just once.
    #[error("{held} commands are remembered until they expire, and that is the most: try again later")]
    TooManyCommands {
        /// How many are remembered.
        held: u32,
    },
    /// An epoch that is too far from the site's own to be believed.
    #[error("epoch {above} is too far beyond this site's epoch {now} to be believed")]
    EpochTooFar {
        /// The record's epoch.
        now: Epoch,
        /// The other.
        above: Epoch,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_its_leaders_own() {
        let device = DeviceId::new("edge-1").expect("a name");
        let (incarnation, epoch) = (Incarnation(1), Epoch::ZERO);
        let claim = Claim {
            device: device.clone(),
            incarnation,
            base: epoch,
            at_unix_ms: 0,
            seal: None,
            proof: None,
        };
        assert!(!Command::Claim(claim).travels());
        let receipt =
            StopReceipt { device, incarnation, epoch, successor: None, reason: String::new(), at_unix_ms: 0 };
        assert!(Command::StopReceipt(receipt).travels(), "who was deposed gives up all the same");
    }
}
