//! The owner's lease: from the moments of asking to the moment until which it may act.
//!
//! The moment that counts is read *before* asking. A slow answer therefore shortens the lease instead of stretching
//! it, and an answer that comes late is still worth what its question was worth. Nothing here reads a clock.

use std::collections::{BTreeMap, BTreeSet};

use crate::{clock::Moment, epoch::Epoch, id::NodeId, timing::Timing};

/// The promises that the members gave for one ownership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    epoch: Epoch,
    /// The newest question that each member has answered with a promise.
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

    /// Records that `member` promised, in answer to a question prepared at `asked`.
    pub fn promised(&mut self, member: NodeId, asked: Moment) {
        let newest = self.promised.entry(member).or_insert(asked);
        *newest = (*newest).max(asked);
    }

    /// Until when the owner may act: `hold` after the newest moment at which it asked a quorum that promised.
    ///
    /// `configs` are the voters of the effective membership: one set, or two while it changes; then both need a
    /// quorum. `None` without a quorum, and for an empty set, which nobody can promise for.
    pub fn act_until(&self, configs: &[BTreeSet<NodeId>], timing: &Timing) -> Option<Moment> {
        let asked = configs.iter().map(|voters| self.quorum_asked(voters)).collect::<Option<Vec<_>>>()?;
        asked.into_iter().min().map(|asked| asked + timing.hold())
    }

    /// The newest moment such that a majority of `voters` answered a question prepared then or later.
    fn quorum_asked(&self, voters: &BTreeSet<NodeId>) -> Option<Moment> {
        let mut asked: Vec<Moment> = voters.iter().filter_map(|v| self.promised.get(v).copied()).collect();
        asked.sort_unstable_by(|a, b| b.cmp(a));
        asked.get(voters.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {

    use proptest::prelude::*;

    use super::*;
    use crate::timing::Settings;

    fn timing() -> Timing {
        Timing::new(&Settings::default()).expect("defaults hold")
    }

    fn at(ms: u64) -> Moment {
        Moment::from_nanos(ms * 1_000_000)
    }

    fn voters(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().map(|id| NodeId(*id)).collect()
    }

    #[test]
    fn counts_from_before_asking() {
        let mut lease = Lease::new(Epoch::ZERO);
        lease.promised(NodeId(1), at(1000));
        lease.promised(NodeId(2), at(1000));
        // However late the answers came, the lease runs from the question.
        assert_eq!(lease.act_until(&[voters(&[1, 2, 3])], &timing()), Some(at(1000) + timing().hold()));
    }

    #[test]
    fn a_minority_gives_no_lease() {
        let mut lease = Lease::new(Epoch::ZERO);
        lease.promised(NodeId(1), at(1000));
        assert_eq!(lease.act_until(&[voters(&[1, 2, 3])], &timing()), None);
        assert_eq!(lease.act_until(&[voters(&[1, 2])], &timing()), None);
        assert_eq!(lease.act_until(&[voters(&[])], &timing()), None);
    }

    #[test]
    fn strangers_do_not_count() {
        let mut lease = Lease::new(Epoch::ZERO);
        lease.promised(NodeId(1), at(1000));
        lease.promised(NodeId(9), at(1000));
        assert_eq!(lease.act_until(&[voters(&[1, 2, 3])], &timing()), None);
    }

    #[test]
    fn a_joint_membership_needs_both_quorums() {
        let mut lease = Lease::new(Epoch::ZERO);
        for id in [1, 2] {
            lease.promised(NodeId(id), at(1000));
        }
        let joint = [voters(&[1, 2, 3]), voters(&[3, 4, 5])];
        assert_eq!(lease.act_until(&joint, &timing()), None);
        lease.promised(NodeId(4), at(900));
        lease.promised(NodeId(5), at(900));
        assert_eq!(lease.act_until(&joint, &timing()), Some(at(900) + timing().hold()));
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
            let expected = (0..1000).rev().find(|ms| majority_at(*ms)).map(|ms| at(ms) + timing().hold());
            prop_assert_eq!(lease.act_until(&[everyone], &timing()), expected);
        }
    }
}
