//! All that one device knows at one moment, as the single input of [`super::decide::decide`].
//!
//! A view is put together by the ownership loop and never kept: decisions are always made on fresh facts.

use crate::{
    clock::Moment,
    epoch::Epoch,
    id::{DeviceId, Incarnation},
    ownership::{record::Record, vitals::Strain},
};

/// Where this device stands in the Raft group. A rumour: it may be stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Not the leader, as far as it knows.
    Follower,
    /// Leader, but its first entry is not committed yet, so its record may lack what others committed before.
    NewLeader,
    /// Leader, and its record holds everything that was committed before.
    Leader,
}

/// What was observed of the workload on this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Running {
    /// Nothing of it runs, confirmed.
    Stopped,
    /// It runs or may run under this epoch, or waits to be started again.
    Under(Epoch),
    /// It is being stopped; parts of it may still run.
    Stopping,
}

/// Why this device shall not own although it could.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It votes and never owns.
    #[error("this device is a witness")]
    Witness,
    /// It is shutting down.
    #[error("this sidecar is shutting down")]
    Leaving,
    /// Its disk has failed.
    #[error("this device's disk has failed")]
    DiskFailed,
    /// The workload, or what it needs, cannot work on this device.
    #[error("this device is not well: {0}")]
    Unwell(String),
    /// Somebody has drained it. If it owns, another device is fit.
    #[error("this device is drained {0}")]
    Drained(String),
    /// Another fit device is better off, or the workload fails here and another device is fit.
    #[error("{0}")]
    GivesWay(String),
    /// Its own stalls endanger its lease, and another device is fit.
    #[error("this device is strained: {0}")]
    Strained(Strain),
}

/// All that this device knows at one moment.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// The moment, on this device's boot clock.
    pub now: Moment,
    /// This device.
    pub me: &'a DeviceId,
    /// This life of its sidecar.
    pub incarnation: Incarnation,
    /// Its Raft role.
    pub standing: Standing,
    /// The record, as far as it has been applied here.
    pub record: &'a Record,
    /// The lease held for an epoch: until when the owner may act.
    pub lease: Option<(Epoch, Moment)>,
    /// What was observed of the workload.
    pub running: Running,
    /// The epoch under which nothing may be started here any more: its fencer was lost, or its stop receipt proposed.
    pub burned: Option<Epoch>,
    /// Why this device shall not own, if so.
    pub unfit: Option<&'a Unfit>,
    /// A fit member that could take over now if this device gives up of its own accord.
    pub successor: Option<&'a DeviceId>,
    /// Since when this device has seen the present release, and how long the named successor has for itself.
    pub successor_until: Option<Moment>,
}
