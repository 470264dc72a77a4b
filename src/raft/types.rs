//! What openraft is made of here: ids, commands, entries, snapshots, and the runtime it runs on.
//!
//! The runtime differs from openraft's own in two things. Its random numbers are fixed, because openraft 0.9 draws
//! only election timeouts and elections are driven by `reconcile/candidacy.rs`. And its time-outs are never shorter
//! than [`CALL_LIMIT`]: openraft derives them from the election timers, which are set to a millisecond to switch its own
//! vote lease off (the vote guard holds the lease), while the real deadline of each call is set in `peer/client.rs`.

use std::{future::Future, time::Duration};

use openraft::{AsyncRuntime, OptionalSend, TokioInstant, TokioRuntime};
use rand::{SeedableRng, rngs::StdRng};

use crate::{
    id::{DeviceId, NodeId},
    ownership::command::{Command, Outcome},
    raft::{
        members::{Members, Node},
        vote_guard::Ballot,
    },
};

openraft::declare_raft_types!(
    /// openraft's type parameters for this product.
    pub(crate) Types:
        D = Command,
        R = Outcome,
        NodeId = u64,
        Node = Device,
        Entry = openraft::Entry<Types>,
        SnapshotData = Vec<u8>,
        AsyncRuntime = Runtime,
);

/// The longest that any call between members may take before openraft gives up on it by itself.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(60);

/// What the membership says of a node: which store of which device it is. Addresses are hints and live in the
/// configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Device {
    /// The device id.
    pub(crate) device: String,
    /// The number of the store; 0 until a leader has noted it.
    pub(crate) store: u64,
}

pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type Entry = openraft::Entry<Types>;
pub(crate) type Membership = openraft::Membership<u64, Device>;
pub(crate) type StoredMembership = openraft::StoredMembership<u64, Device>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, Device>;
pub(crate) type Snapshot = openraft::Snapshot<Types>;
pub(crate) type Raft = openraft::Raft<Types>;
pub(crate) type StorageError = openraft::StorageError<u64>;
pub(crate) type Metrics = openraft::RaftMetrics<u64, Device>;

/// A membership in this product's words. Nodes without a device's name, which nobody writes, are left out of `nodes`.
pub(crate) fn members(membership: &Membership) -> Members {
    let node = |id: &u64, device: &Device| {
        let store = (device.store != 0).then_some(device.store);
        let device = DeviceId::new(device.device.as_str()).ok()?;
        Some((NodeId(*id), Node { device, store }))
    };
    Members {
        voters: membership
            .get_joint_config()
            .iter()
            .map(|set| set.iter().map(|id| NodeId(*id)).collect())
            .collect(),
        nodes: membership.nodes().filter_map(|(id, device)| node(id, device)).collect(),
    }
}

/// A vote as the vote guard orders it.
pub(crate) fn ballot(vote: &Vote) -> Ballot {
    Ballot { term: vote.leader_id.term, node: NodeId(vote.leader_id.node_id) }
}

/// tokio, with fixed dice and long time-outs; see the file's head.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Runtime;

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = StdRng;
    type OneshotSender<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiver<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotReceiver<T>;
    type OneshotReceiverError = <TokioRuntime as AsyncRuntime>::OneshotReceiverError;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        tokio::time::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        tokio::time::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        tokio::time::timeout(duration.max(CALL_LIMIT), future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        tokio::time::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        join_error.is_panic()
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        StdRng::seed_from_u64(0)
    }

    fn oneshot<T>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>)
    where
        T: OptionalSend,
    {
        TokioRuntime::oneshot()
    }
}

/// openraft's settings: everything timed is off, because lease, guard and candidacy are ours; logs are kept short.
pub(crate) fn config(site: &str) -> openraft::Config {
    openraft::Config {
        cluster_name: site.to_owned(),
        // One millisecond: a vote is refused by openraft itself only directly after an append (see above).
        election_timeout_min: 0,
        election_timeout_max: 1,
        // The tick's period and an upper bound for an append; neither is wanted, so both are far away.
        heartbeat_interval: 24 * 3600 * 1000,
        enable_tick: false,
        enable_heartbeat: false,
        enable_elect: false,
        install_snapshot_timeout: 10_000,
        max_payload_entries: 64,
        snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(256),
        max_in_snapshot_log_to_keep: 64,
        purge_batch_size: 32,
        ..openraft::Config::default()
    }
}
