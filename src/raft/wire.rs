//! Between openraft's types and the messages of `proto/peer.proto`, for the wire and for the disk.
//!
//! openraft's own serialisation is explicitly not a stable format, so nothing of it leaves the process. Decoding is
//! total: any bytes give a value or an [`Error`].

use std::collections::{BTreeMap, BTreeSet};

use openraft::{CommittedLeaderId, EntryPayload};

use super::types::{Device, Entry, LogId, Membership, SnapshotMeta, StoredMembership, Vote};
use crate::ownership::command::Command;

/// The generated messages.
#[expect(unreachable_pub, reason = "generated from proto/peer.proto")]
pub(crate) mod proto {
    tonic::include_proto!("quorate.peer.v1");
}

/// Why bytes are not what they should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A field that must be there is not.
    #[error("the field {0} is missing")]
    Missing(&'static str),
    /// Not a message at all.
    #[error("not a message: {0}")]
    Message(#[from] prost::DecodeError),
    /// A command that cannot be read.
    #[error("not a command: {0}")]
    Command(#[from] serde_json::Error),
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> tonic::Status {
        tonic::Status::invalid_argument(error.to_string())
    }
}

pub(crate) fn put_log_id(id: &LogId) -> proto::LogId {
    proto::LogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub(crate) fn take_log_id(id: proto::LogId) -> LogId {
    LogId::new(CommittedLeaderId::new(id.term, id.node), id.index)
}

pub(crate) fn put_vote(vote: &Vote) -> proto::Ballot {
    proto::Ballot { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub(crate) fn take_vote(ballot: Option<proto::Ballot>) -> Result<Vote, Error> {
    let ballot = ballot.ok_or(Error::Missing("ballot"))?;
    let mut vote = Vote::new(ballot.term, ballot.node);
    if ballot.committed {
        vote.commit();
    }
    Ok(vote)
}

fn put_membership(membership: &Membership) -> proto::Membership {
    proto::Membership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|voters| proto::membership::Config { voters: voters.iter().copied().collect() })
            .collect(),
        nodes: membership
            .nodes()
            .map(|(id, node)| proto::membership::Node {
                id: *id,
                device: node.device.clone(),
                address: String::new(),
                store: node.store,
            })
            .collect(),
    }
}

fn take_membership(membership: proto::Membership) -> Membership {
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.into_iter().map(|c| c.voters.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, Device> =
        membership.nodes.into_iter().map(|n| (n.id, Device { device: n.device, store: n.store })).collect();
    Membership::new(configs, nodes)
}

pub(crate) fn put_entry(entry: &Entry) -> Result<proto::Entry, Error> {
    use proto::entry::Payload;
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank(true),
        EntryPayload::Normal(command) => Payload::Command(serde_json::to_vec(command)?.into()),
        EntryPayload::Membership(membership) => Payload::Membership(put_membership(membership)),
    };
    Ok(proto::Entry { log_id: Some(put_log_id(&entry.log_id)), payload: Some(payload) })
}

pub(crate) fn take_entry(entry: proto::Entry) -> Result<Entry, Error> {
    use proto::entry::Payload;
    let log_id = take_log_id(entry.log_id.ok_or(Error::Missing("log_id"))?);
    let payload = match entry.payload.ok_or(Error::Missing("payload"))? {
        Payload::Blank(_) => EntryPayload::Blank,
        Payload::Command(json) => EntryPayload::Normal(serde_json::from_slice::<Command>(&json)?),
        Payload::Membership(membership) => EntryPayload::Membership(take_membership(membership)),
    };
    Ok(Entry { log_id, payload })
}

pub(crate) fn put_snapshot_meta(meta: &SnapshotMeta) -> proto::SnapshotMeta {
    proto::SnapshotMeta {
        last_log_id: meta.last_log_id.as_ref().map(put_log_id),
        membership_log_id: meta.last_membership.log_id().as_ref().map(put_log_id),
        membership: Some(put_membership(meta.last_membership.membership())),
        id: meta.snapshot_id.clone(),
    }
}

pub(crate) fn take_snapshot_meta(meta: Option<proto::SnapshotMeta>) -> Result<SnapshotMeta, Error> {
    let meta = meta.ok_or(Error::Missing("meta"))?;
    let membership = take_membership(meta.membership.ok_or(Error::Missing("membership"))?);
    Ok(SnapshotMeta {
        last_log_id: meta.last_log_id.map(take_log_id),
        last_membership: StoredMembership::new(meta.membership_log_id.map(take_log_id), membership),
        snapshot_id: meta.id,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(entry) = proto::Entry::decode(bytes.as_slice()) {
                let _ = take_entry(entry);
            }
            if let Ok(request) = proto::SnapshotRequest::decode(bytes.as_slice()) {
                let _ = take_snapshot_meta(request.meta);
                let _ = take_vote(request.ballot);
            }
        }
    }

    #[test]
    fn entries_survive_the_wire() {
        let configs = vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])];
        let nodes =
            BTreeMap::from([1, 2, 3, 4].map(|n| (n, Device { device: format!("edge-{n}"), store: n })));
        for payload in [EntryPayload::Blank, EntryPayload::Membership(Membership::new(configs, nodes))] {
            let entry = Entry { log_id: LogId::new(CommittedLeaderId::new(7, 8), 9), payload };
            let bytes = put_entry(&entry).expect("encodes").encode_to_vec();
            let back =
                take_entry(proto::Entry::decode(bytes.as_slice()).expect("decodes")).expect("an entry");
            assert_eq!(entry, back);
        }
    }
}
