//! Is it possible at all, what a member says? Asked before Raft or the vote guard hears of it.
//!
//! Raft trusts its members: numbers that no site can reach end its arithmetic, and a snapshot that cannot be read would
//! still lie on disk after the next start. A member with a fault, or somebody who only looks like a member, gets an
//! error here and changes nothing, whether it asks or answers. This is no defence against a member that tells plausible
//! lies.

use tonic::Status;

use crate::{
    id::NodeId,
    ownership::record::Record,
    raft::wire::proto::{
        AppendRequest, Ballot, LogId, Membership, SnapshotRequest, VoteRequest, entry::Payload,
    },
};

/// How far above this member's own term another's may be. Each election adds one, so no site gets as far even while
/// one of its devices lies in a drawer; and a fault that comes this far leaves room for many more terms.
const TERMS_AHEAD: u64 = 1 << 32;
/// The highest position in a log; one command each microsecond reaches it in two centuries.
const INDEX_MAX: u64 = 1 << 52;
/// The largest command: names, a reason and an actor, or an etag for each member.
const COMMAND_MAX: usize = 16 << 10;
/// The most members that a membership may speak of.
const MEMBERS_MAX: usize = 64;

fn wrong(what: &str) -> Status {
    Status::invalid_argument(what)
}

fn check(is: bool, what: &str) -> Result<(), Status> {
    if is { Ok(()) } else { Err(wrong(what)) }
}

/// The ballot of a caller that speaks for itself.
pub(super) fn ballot(ballot: Option<Ballot>, caller: NodeId, own_term: u64) -> Result<Ballot, Status> {
    let ballot = ballot.ok_or_else(|| wrong("the field ballot is missing"))?;
    check(ballot.node == caller.0, "the ballot is not the caller's")?;
    check(ballot.term <= own_term.saturating_add(TERMS_AHEAD), "the term is out of range")?;
    Ok(ballot)
}

/// The ballot that is answered to a member with the term `own_term`: anybody's, but one that some site can reach.
pub(super) fn answer(ballot: Option<Ballot>, own_term: u64) -> Result<Option<Ballot>, Status> {
    let term = ballot.as_ref().map_or(0, |ballot| ballot.term);
    check(term <= own_term.saturating_add(TERMS_AHEAD), "the term of the answer is out of range")?;
    Ok(ballot)
}

fn position(id: &LogId, term: u64) -> Result<(), Status> {
    check(id.index <= INDEX_MAX, "a log index is out of range")?;
    check(id.term <= term, "a log entry is from a later term than its leader's")
}

/// A request for a vote or a pre-vote.
pub(super) fn candidate(message: &VoteRequest, caller: NodeId, own_term: u64) -> Result<(), Status> {
    let ballot = ballot(message.ballot, caller, own_term)?;
    check(!ballot.committed, "a candidate's ballot cannot be committed yet")?;
    message.last_log_id.iter().try_for_each(|id| position(id, ballot.term))
}

/// Entries, or none, from a leader.
pub(super) fn append(message: &AppendRequest, caller: NodeId, own_term: u64) -> Result<(), Status> {
    let ballot = ballot(message.ballot, caller, own_term)?;
    check(ballot.committed, "nobody has elected this leader")?;
    message.prev.iter().chain(&message.committed).try_for_each(|id| position(id, ballot.term))?;
    let mut next = message.prev.map_or(0, |prev| prev.index + 1);
    let mut term = message.prev.map_or(0, |prev| prev.term);
    for entry in &message.entries {
        let id = entry.log_id.ok_or_else(|| wrong("the field log_id is missing"))?;
        position(&id, ballot.term)?;
        check(id.index == next && id.term >= term, "the entries are not consecutive")?;
        (next, term) = (next + 1, id.term);
        match &entry.payload {
            Some(Payload::Command(json)) => command(json)?,
            Some(Payload::Membership(members)) => membership(members)?,
            Some(Payload::Blank(_)) => {}
            None => return Err(wrong("the field payload is missing")),
        }
    }
    Ok(())
}

/// A snapshot from a leader. Its record can be read.
pub(super) fn snapshot(message: &SnapshotRequest, caller: NodeId, own_term: u64) -> Result<(), Status> {
    let ballot = ballot(message.ballot, caller, own_term)?;
    check(ballot.committed, "nobody has elected this leader")?;
    let meta = message.meta.as_ref().ok_or_else(|| wrong("the field meta is missing"))?;
    let last = meta.last_log_id.ok_or_else(|| wrong("the field last_log_id is missing"))?;
    position(&last, ballot.term)?;
    let joined = meta.membership_log_id.ok_or_else(|| wrong("the field membership_log_id is missing"))?;
    position(&joined, ballot.term)?;
    check(joined.index <= last.index, "the membership is newer than the snapshot")?;
    membership(meta.membership.as_ref().ok_or_else(|| wrong("the field membership is missing"))?)?;
    serde_json::from_slice::<Record>(&message.data)
        .map(|_| ())
        .map_err(|e| wrong(&format!("the snapshot holds no record: {e}")))
}

/// A command, by its size alone.
pub(in crate::raft) fn command(json: &[u8]) -> Result<(), Status> {
    check(json.len() <= COMMAND_MAX, "the command is too long")
}

fn membership(membership: &Membership) -> Result<(), Status> {
    let voters = || membership.configs.iter().flat_map(|config| &config.voters);
    check(matches!(membership.configs.len(), 1 | 2), "a membership has one or two groups of voters")?;
    check(membership.configs.iter().all(|config| !config.voters.is_empty()), "a group has no voters")?;
    check(
        voters().count() <= MEMBERS_MAX && membership.nodes.len() <= MEMBERS_MAX,
        "the membership is too large",
    )?;
    check(
        voters().all(|voter| membership.nodes.iter().any(|node| node.id == *voter)),
        "a voter is not among the nodes",
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::raft::wire::proto::{Entry, SnapshotMeta, membership};

    const ME: NodeId = NodeId(7);

    fn at(term: u64, index: u64) -> LogId {
        LogId { term, node: 7, index }
    }

    fn led(term: u64) -> Option<Ballot> {
        Some(Ballot { term, node: 7, committed: true })
    }

    fn entry(term: u64, index: u64) -> Entry {
        Entry { log_id: Some(at(term, index)), payload: Some(Payload::Blank(true)) }
    }

    #[test]
    fn ballots_are_the_callers_own_and_within_reach() {
        assert!(ballot(led(5), ME, 3).is_ok());
        for (bad, why) in [
            (None, "missing"),
            (Some(Ballot { node: 8, ..Ballot::default() }), "not the caller's"),
            (led(4 + TERMS_AHEAD), "out of range"),
            (led(u64::MAX), "out of range"),
        ] {
            let error = ballot(bad, ME, 3).expect_err(why);
            assert!(error.message().contains(why), "{error}");
        }
        assert!(ballot(led(u64::MAX), ME, u64::MAX).is_ok(), "no overflow at the end either");
    }

    #[test]
    fn an_answer_with_an_impossible_term_is_none() {
        let of_another = |term| Some(Ballot { term, node: 8, committed: false });
        assert!(answer(of_another(3 + TERMS_AHEAD), 3).is_ok());
        assert!(answer(None, 3).is_ok(), "what is missing is found missing later");
        for term in [4 + TERMS_AHEAD, u64::MAX] {
            let error = answer(of_another(term), 3).expect_err("no site gets as far");
            assert!(error.message().contains("out of range"), "{error}");
        }
    }

    #[test]
    fn candidates_are_not_leaders_and_their_logs_are_not_from_the_future() {
        let ask = |ballot: Ballot, last| VoteRequest {
            ballot: Some(ballot),
            last_log_id: last,
            ..VoteRequest::default()
        };
        let stands = Ballot { term: 5, node: 7, committed: false };
        assert!(candidate(&ask(stands, Some(at(4, 9))), ME, 4).is_ok());
        assert!(candidate(&ask(Ballot { committed: true, ..stands }, None), ME, 4).is_err());
        assert!(candidate(&ask(stands, Some(at(6, 9))), ME, 4).is_err());
        assert!(candidate(&ask(stands, Some(at(4, u64::MAX))), ME, 4).is_err());
    }

    #[test]
    fn entries_follow_each_other() {
        let send = |prev, entries| AppendRequest { ballot: led(5), prev, committed: None, entries };
        let ok = |message: AppendRequest| append(&message, ME, 5).is_ok();
        assert!(ok(send(Some(at(4, 8)), vec![entry(4, 9), entry(5, 10)])));
        assert!(ok(send(None, vec![entry(0, 0)])));
        assert!(!ok(send(Some(at(4, 8)), vec![entry(5, 10)])), "a gap");
        assert!(!ok(send(Some(at(4, 8)), vec![entry(3, 9)])), "an older term");
        assert!(!ok(send(Some(at(4, 8)), vec![entry(6, 9)])), "a later term than the leader's");
        assert!(!ok(send(Some(at(4, u64::MAX)), vec![])));
        assert!(!ok(AppendRequest {
            ballot: Some(Ballot { committed: false, ..led(5).expect("some") }),
            ..send(None, vec![])
        }));
        let nobody = Payload::Membership(Membership::default());
        let foreign = Payload::Membership(Membership {
            configs: vec![membership::Config { voters: vec![1] }],
            nodes: vec![],
        });
        let long = Payload::Command(vec![b' '; COMMAND_MAX + 1].into());
        for bad in [nobody, foreign, long] {
            assert!(!ok(send(None, vec![Entry { log_id: Some(at(0, 0)), payload: Some(bad) }])));
        }
    }

    #[test]
    fn a_snapshot_that_cannot_be_read_is_refused() {
        let members = Membership {
            configs: vec![membership::Config { voters: vec![7] }],
            nodes: vec![membership::Node { id: 7, ..membership::Node::default() }],
        };
        let meta = SnapshotMeta {
            last_log_id: Some(at(4, 9)),
            membership_log_id: Some(at(0, 0)),
            membership: Some(members),
            id: String::new(),
        };
        let garbage = SnapshotRequest { ballot: led(5), meta: Some(meta), data: b"{}".as_slice().into() };
        let error = snapshot(&garbage, ME, 5).expect_err("is no record");
        assert!(error.message().contains("holds no record"), "{error}");
    }

    proptest! {
        #[test]
        fn no_message_upsets_the_checks(bytes in proptest::collection::vec(any::<u8>(), 0..300), term: u64) {
            use prost::Message as _;
            let node = NodeId(7);
            let _ = VoteRequest::decode(bytes.as_slice()).map(|m| candidate(&m, node, term).is_ok());
            let _ = AppendRequest::decode(bytes.as_slice()).map(|m| append(&m, node, term).is_ok());
            let _ = SnapshotRequest::decode(bytes.as_slice()).map(|m| snapshot(&m, node, term).is_ok());
        }
    }
}
