//! The owner's lease: from the moments of asking to the moment until which it may act.
//!
//! The moment that counts is read *before* asking. A slow answer therefore shortens the lease instead of stretching
//! it, and an answer that comes late is still worth what its question was worth: the hold of the timing that it was asked
//! with, whatever has been agreed since. Nothing here reads a clock.

use std::collections::{BTreeMap, BTreeSet};

use crate::{clock::Moment, epoch::Epoch, id::NodeId};

/// The promises that the members gave for one ownership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    epoch: Epoch,
    /// Until when each member's promises let the owner act.
    promised: BTreeMap<NodeId, Moment>,
}

impl Lease {
    /// A lease for `epoch` that nobody has promised anything for yet.
    pub fn new(epoch: Epoch) -> Lease {
        Lease { epoch, promised: BTreeMap::new() }
    }

    /// The ownership that this lease is for. Promises for another say nothing about it.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Records that `member` promised in answer to a question that lets the owner act `until` then: from before it was
    /// asked, for the hold that goes with the refusal that it asked for.
    pub fn promised(&mut self, member: NodeId, until: Moment) {
        let latest = self.promised.entry(member).or_insert(until);
        *latest = (*latest).max(until);
    }

    /// Until when the owner may act: the latest moment that the promises of a quorum reach.
    ///
    /// `configs` are the voters of the effective membership: one set, or two while it changes; then both need a
    /// quorum. `None` without a quorum, and for an empty set, which nobody can promise for.
    pub fn act_until(&self, configs: &[BTreeSet<NodeId>]) -> Option<Moment> {
        let until = configs.iter().map(|voters| self.quorum_until(voters)).collect::<Option<Vec<_>>>()?;
        until.into_iter().min()
    }

    /// The latest moment that the promises of a majority of `voters` reach.
    fn quorum_until(&self, voters: &BTreeSet<NodeId>) -> Option<Moment> {
        let mut until: Vec<Moment> = voters.iter().filter_map(|v| self.promised.get(v).copied()).collect();
        until.sort_unstable_by(|a, b| b.cmp(a));
        until.get(voters.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_nanos(ms * 1_000_000)
    }

    fn voters(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().map(|id| NodeId(*id)).collect()
    }

    #[test]
    fn each_promise_is_worth_what_its_question_was_worth() {
        let mut lease = Lease::new(Epoch::ZERO);
        lease.promised(NodeId(1), at(1000));
        lease.promised(NodeId(2), at(1000));
        assert_eq!(lease.act_until(&[voters(&[1, 2, 3])]), Some(at(1000)));
        // One member has promised for longer since; that alone is no quorum.
        lease.promised(NodeId(1), at(5000));
        assert_eq!(lease.act_until(&[voters(&[1, 2, 3])]), Some(at(1000)));
        // What was promised for longer stays promised when less is asked for.
        lease.promised(NodeId(2), at(4000));
        lease.promised(NodeId(2), at(2000));
        assert_eq!(lease.act_until(&[voters(&[1, 2, 3])]), Some(at(4000)));
    }

    #[test]
    fn a_minority_gives_no_lease() {
        let mut lease = Lease::new(Epoch::ZERO);
        lease.promised(NodeId(1), at(1000));
        assert_eq!(lease.act_until(&[voters(&[1, 2, 3])]), None);
        assert_eq!(lease.act_until(&[voters(&[1, 2])]), None);
        assert_eq!(lease.act_until(&[voters(&[])]), None);
    }

    #[test]
    fn strangers_do_not_count() {
        let mut lease = Lease::new(Epoch::ZERO);
        lease.promised(NodeId(1), at(1000));
        lease.promised(NodeId(9), at(1000));
        assert_eq!(lease.act_until(&[voters(&[1, 2, 3])]), None);
    }

    #[test]
    fn a_joint_membership_needs_both_quorums() {
        let mut lease = Lease::new(Epoch::ZERO);
        for id in [1, 2] {
            lease.promised(NodeId(id), at(1000));
        }
        let joint = [voters(&[1, 2, 3]), voters(&[3, 4, 5])];
        assert_eq!(lease.act_until(&joint), None);
        lease.promised(NodeId(4), at(900));
        lease.promised(NodeId(5), at(900));
        assert_eq!(lease.act_until(&joint), Some(at(900)));
    }

    proptest! {
        /// The definition, checked by brute force: a majority must have promised for the moment given, and no later
        /// moment has a majority.
        #[test]
        fn is_the_newest_moment_with_a_majority(answers in proptest::collection::vec((0u64..5, 0u64..1000), 0..30)) {
            let everyone = voters(&[0, 1, 2, 3, 4]);
            let mut lease = Lease::new(Epoch::ZERO);
            let mut newest = BTreeMap::new();
            for (id, ms) in &answers {
                lease.promised(NodeId(*id), at(*ms));
                let e = newest.entry(*id).or_insert(*ms);
                *e = (*e).max(*ms);
            }
            let majority_at = |ms: u64| newest.values().filter(|m| **m >= ms).count() >= 3;
            let expected = (0..1000).rev().find(|ms| majority_at(*ms)).map(at);
            prop_assert_eq!(lease.act_until(&[everyone]), expected);
        }
    }
}
