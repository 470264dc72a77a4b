//! The one decision, with its sentence.
//!
//! [`decide`] is pure: the same [`View`] gives the same [`Decision`]. The log, the status page, the metric label, the
//! history and `quorate why` all print the [`Reason`] it returns. It deliberately knows nothing of how a workload is
//! stopped or a claim is committed; and it never says how to win an election, only what winning is good for.

use std::fmt;

use super::{
    command::Refusal,
    view::{Running, Standing, Unfit, View},
};
use crate::{clock::Moment, epoch::Epoch, id::DeviceId};

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing, until something changes.
    Wait,
    /// Propose a claim for the epoch after `base`.
    Claim {
        /// The record's epoch.
        base: Epoch,
    },
    /// Start the workload.
    Start {
        /// Its fencing token.
        epoch: Epoch,
        /// The end of the lease.
        until: Moment,
    },
    /// Let the running workload go on until then.
    Extend {
        /// The end of the lease.
        until: Moment,
    },
    /// Stop the workload.
    Stop,
    /// Propose the stop receipt: the workload is confirmed stopped.
    Release {
        /// The ownership that ends.
        epoch: Epoch,
        /// Who shall own next.
        successor: Option<DeviceId>,
    },
}

/// Why. The names are used as labels, the sentences are for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// This device owns, holds its lease and runs the workload.
    Owning {
        /// Its epoch.
        epoch: Epoch,
    },
    /// This device owns and holds its lease; the workload is being started.
    Starting {
        /// Its epoch.
        epoch: Epoch,
    },
    /// This device owns but no quorum has promised yet.
    AwaitingLease {
        /// Its epoch.
        epoch: Epoch,
    },
    /// This device owns, but its lease has run out.
    LeaseLapsed {
        /// Its epoch.
        epoch: Epoch,
    },
    /// This device owned, and is no longer the Raft leader.
    LeadershipLost {
        /// Its epoch.
        epoch: Epoch,
    },
    /// Somebody else owns, so what runs here must stop.
    Superseded {
        /// The record's epoch.
        epoch: Epoch,
    },
    /// The ownership is being handed over.
    HandingOver {
        /// To whom.
        to: DeviceId,
    },
    /// The workload is being stopped and its end is not confirmed yet.
    Stopping,
    /// This device stops owning because it is unfit.
    Unfit {
        /// Why.
        why: String,
    },
    /// To the others this epoch may be over already, so this device gives it up and claims anew.
    Burned {
        /// The burned epoch.
        epoch: Epoch,
    },
    /// Leader of the group, and the record has no owner that could go on: claim.
    Claiming {
        /// The record's epoch.
        base: Epoch,
    },
    /// Leader, waiting for the first entry of its term to commit.
    CatchingUp,
    /// The named successor has some time for itself.
    SuccessorFirst {
        /// Who.
        to: DeviceId,
    },
    /// Nobody takes over while the site is paused, this device neither.
    Paused {
        /// By whom and why.
        by: String,
    },
    /// Another device owns.
    StandingBy {
        /// Who owns.
        owner: DeviceId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// Nobody owns and this device does not lead.
    NoOwner,
}

impl Reason {
    /// The name used as label.
    pub fn name(&self) -> &'static str {
        match self {
            Reason::Owning { .. } => "owning",
            Reason::Starting { .. } => "starting",
            Reason::AwaitingLease { .. } => "lease.awaited",
            Reason::LeaseLapsed { .. } => "lease.lapsed",
            Reason::LeadershipLost { .. } => "leadership.lost",
            Reason::Superseded { .. } => "superseded",
            Reason::HandingOver { .. } => "handing_over",
            Reason::Stopping => "stopping",
            Reason::Unfit { .. } => "unfit",
            Reason::Burned { .. } => "epoch.burned",
            Reason::Claiming { .. } => "claiming",
            Reason::CatchingUp => "catching_up",
            Reason::SuccessorFirst { .. } => "successor.first",
            Reason::Paused { .. } => "paused",
            Reason::StandingBy { .. } => "standing_by",
            Reason::NoOwner => "no.owner",
        }
    }
}

impl Reason {
    /// The sentence as the other devices tell it of `device`.
    pub fn of(&self, device: &DeviceId) -> String {
        let (own, sidecar) = (device.to_string(), format!("{device}'s sidecar"));
        self.to_string().replacen("this device", &own, 1).replacen("this sidecar", &sidecar, 1)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Owning { epoch } => {
                write!(f, "this device owns under epoch {epoch} and its lease is held")
            }
            Reason::Starting { epoch } => {
                write!(f, "this device owns under epoch {epoch}: the workload is started")
            }
            Reason::AwaitingLease { epoch } => {
                write!(f, "this device owns under epoch {epoch} and waits until a quorum has promised")
            }
            Reason::LeaseLapsed { epoch } => {
                write!(f, "the lease for epoch {epoch} has run out: no quorum confirmed it in time")
            }
            Reason::LeadershipLost { epoch } => {
                write!(f, "this device owned under epoch {epoch} and no longer leads the group")
            }
            Reason::Superseded { epoch } => {
                write!(f, "the site is at epoch {epoch}, which is not this device's")
            }
            Reason::HandingOver { to } => write!(f, "the ownership is handed over to {to}"),
            Reason::Stopping => f.write_str("the workload is stopping and its end is not confirmed yet"),
            Reason::Unfit { why } => f.write_str(why),
            Reason::Burned { epoch } => {
                write!(
                    f,
                    "epoch {epoch} may count as over already (its fencer was lost, or its stop receipt is under way): this device \
                     gives it up and claims anew"
                )
            }
            Reason::Claiming { base } => {
                write!(f, "this device leads the group and claims the epoch after {base}")
            }
            Reason::CatchingUp => {
                f.write_str("this device leads the group and waits for its first entry to commit")
            }
            Reason::SuccessorFirst { to } => {
                write!(f, "{to} was named as the next owner and has some time to claim")
            }
            Reason::Paused { by } => {
                write!(f, "the site is paused {by}; this device leads the group and does not take over")
            }
            Reason::StandingBy { owner, epoch } => write!(f, "{owner} owns under epoch {epoch}"),
            Reason::NoOwner => f.write_str("nobody owns, and this device does not lead the group"),
        }
    }
}

/// An action with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// Why.
    pub reason: Reason,
}

/// Decides what this device does now.
pub fn decide(view: &View<'_>) -> Decision {
    let (action, reason) = match view.record.owned_by(view.me, view.incarnation) {
        Some(owner) => as_owner(view, owner.epoch),
        None => as_other(view),
    };
    Decision { action, reason }
}

/// The record says that this life of this device owns under `epoch`.
fn as_owner(view: &View<'_>, epoch: Epoch) -> (Action, Reason) {
    let leaves = leaving(view, epoch);
    let held = view.lease.filter(|(of, until)| *of == epoch && view.now < *until).map(|(_, until)| until);
    match (view.running, leaves, view.standing, held) {
        (Running::Under(old), ..) if old != epoch => (Action::Stop, Reason::Superseded { epoch }),
        (Running::Under(_), Some(Leaving { reason, .. }), ..) => (Action::Stop, reason),
        (Running::Under(_), None, Standing::Follower | Standing::NewLeader, _) => {
            (Action::Stop, Reason::LeadershipLost { epoch })
        }
        (Running::Under(_), None, Standing::Leader, None) => (Action::Stop, Reason::LeaseLapsed { epoch }),
        (Running::Under(_), None, Standing::Leader, Some(until)) => {
            (Action::Extend { until }, Reason::Owning { epoch })
        }
        (Running::Stopping, ..) => (Action::Wait, Reason::Stopping),
        (Running::Stopped, Some(Leaving { successor, reason }), ..) => {
            (Action::Release { epoch, successor }, reason)
        }
        (Running::Stopped, None, Standing::Follower, _) => (Action::Wait, Reason::LeadershipLost { epoch }),
        (Running::Stopped, None, Standing::NewLeader, _) => (Action::Wait, Reason::CatchingUp),
        (Running::Stopped, None, Standing::Leader, None) => (Action::Wait, Reason::AwaitingLease { epoch }),
        (Running::Stopped, None, Standing::Leader, Some(until)) => {
            (Action::Start { epoch, until }, Reason::Starting { epoch })
        }
    }
}

/// The record says that somebody else owns, or nobody.
fn as_other(view: &View<'_>) -> (Action, Reason) {
    let record = view.record;
    match (view.running, view.standing, view.unfit) {
        (Running::Under(_), ..) => (Action::Stop, Reason::Superseded { epoch: record.epoch }),
        (Running::Stopping, ..) => (Action::Wait, Reason::Stopping),
        (Running::Stopped, Standing::Leader, None) => match named_successor(view) {
            Some(to) => (Action::Wait, Reason::SuccessorFirst { to }),
            None => match (record.may_claim(view.me), &record.paused) {
                (Ok(()), _) => {
                    (Action::Claim { base: record.epoch }, Reason::Claiming { base: record.epoch })
                }
                (Err(Refusal::Paused), Some(by)) => (Action::Wait, Reason::Paused { by: by.to_string() }),
                (Err(why), _) => (Action::Wait, Reason::Unfit { why: why.to_string() }),
            },
        },
        (Running::Stopped, Standing::NewLeader, None) => (Action::Wait, Reason::CatchingUp),
        (Running::Stopped, Standing::Leader | Standing::NewLeader, Some(why)) => {
            (Action::Wait, Reason::Unfit { why: why.to_string() })
        }
        (Running::Stopped, Standing::Follower, _) => match &record.owner {
            Some(owner) => {
                (Action::Wait, Reason::StandingBy { owner: owner.device.clone(), epoch: owner.epoch })
            }
            None => (Action::Wait, Reason::NoOwner),
        },
    }
}

/// A successor other than this device that still has time for itself.
fn named_successor(view: &View<'_>) -> Option<DeviceId> {
    let released = view.record.released.as_ref()?;
    let to = released.successor.as_ref().filter(|to| *to != view.me)?;
    view.successor_until.filter(|until| view.now < *until).map(|_| to.clone())
}

struct Leaving {
    successor: Option<DeviceId>,
    reason: Reason,
}

/// Whether the owner shall give up its ownership of its own accord, and to whom. Who has burned its epoch names itself.
fn leaving(view: &View<'_>, epoch: Epoch) -> Option<Leaving> {
    let paused = view.record.paused.is_some();
    let leaves = view.unfit.filter(|why| match why {
        // It can go on, and does where nobody would follow.
        Unfit::Drained(_) | Unfit::GivesWay(_) => !paused && view.successor.is_some(),
        Unfit::Strained(_) | Unfit::Unwell(_) => !paused,
        Unfit::Witness | Unfit::Leaving | Unfit::DiskFailed => true,
    });
    if let Some(why) = leaves {
        let reason = Reason::Unfit { why: why.to_string() };
        // While the site is paused nobody follows of its own accord, so nobody is named.
        return Some(Leaving { successor: view.successor.filter(|_| !paused).cloned(), reason });
    }
    if let Some(handover) = &view.record.handover {
        let to = handover.to.clone();
        return Some(Leaving { successor: Some(to.clone()), reason: Reason::HandingOver { to } });
    }
    let burned = view.burned.filter(|burned| *burned == epoch)?;
    Some(Leaving { successor: Some(view.me.clone()), reason: Reason::Burned { epoch: burned } })
}

#[cfg(test)]
mod tests;
