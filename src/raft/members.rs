//! The membership in force: who votes, and which device each Raft node is.
//!
//! A Raft node is one store of a device, not the device: whoever lost its store is somebody new ([`NodeId`]). So the map
//! between nodes and devices is what the log says, as far as this member has it, and never the configured list. The list
//! only says which devices belong to the site, in which role.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{DeviceId, NodeId};

/// One Raft node, as the membership describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The device that it is a store of.
    pub device: DeviceId,
    /// The number of that store; `None` until a leader has noted it.
    pub store: Option<u64>,
}

/// Who votes, and who is who. The effective membership: it counts from when it is in the log, committed or not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// The voters; two sets while they change. Then every decision needs a majority of both.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// Voters and learners.
    pub nodes: BTreeMap<NodeId, Node>,
}

impl Members {
    /// Whether those for whom `present` holds are a majority of every set of voters. Never without voters.
    pub fn is_quorum(&self, present: impl Fn(&NodeId) -> bool) -> bool {
        self.spare(present).is_some()
    }

    /// How many of those for whom `present` holds can be lost until they are no quorum; `None` if they are none already.
    pub fn spare(&self, present: impl Fn(&NodeId) -> bool) -> Option<usize> {
        let spare = |set: &BTreeSet<NodeId>| {
            set.iter().filter(|node| present(node)).count().checked_sub(set.len() / 2 + 1)
        };
        self.voters.iter().map(spare).collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    /// Whether a node votes, in either set.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.iter().any(|set| set.contains(&node))
    }

    /// All voters, of both sets.
    pub fn all_voters(&self) -> BTreeSet<NodeId> {
        self.voters.iter().flatten().copied().collect()
    }

    /// The node that votes for a device; while it is being replaced, the new one.
    pub fn voter_of(&self, device: &DeviceId) -> Option<NodeId> {
        let is = |node: &&NodeId| self.nodes.get(*node).is_some_and(|n| n.device == *device);
        self.voters.iter().rev().find_map(|set| set.iter().find(is)).copied()
    }
}

/// One step of a change of the members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Note which stores nodes are.
    Note {
        /// The device of each, and the number of its store.
        stores: BTreeMap<NodeId, (DeviceId, u64)>,
    },
    /// Have a node learn what the others know. It does not vote.
    Admit {
        /// The node.
        node: NodeId,
        /// Its device.
        device: DeviceId,
        /// The number of its store.
        store: u64,
    },
    /// Forget a node that does not vote.
    Drop {
        /// The node.
        node: NodeId,
    },
    /// Change who votes: by way of both sets, to these.
    Exchange {
        /// The voters from then on.
        voters: BTreeSet<NodeId>,
    },
    /// End what another leader began: from both sets to the newer.
    Finish,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().map(|id| NodeId(*id)).collect()
    }

    #[test]
    fn a_quorum_is_a_majority_of_every_set() {
        let mut members = Members { voters: vec![set(&[1, 2, 3])], ..Members::default() };
        let quorum = |members: &Members, ids: &[u64]| members.is_quorum(|n| ids.contains(&n.0));
        assert!(quorum(&members, &[1, 2]) && !quorum(&members, &[1, 4, 5]));
        assert_eq!(members.spare(|_| true), Some(1));
        members.voters.push(set(&[2, 3, 4, 5, 6]));
        assert!(!quorum(&members, &[1, 2, 4]), "two of the second set");
        assert!(!quorum(&members, &[2, 4, 5]), "one of the first");
        assert!(quorum(&members, &[2, 3, 4]));
        assert!(!Members::default().is_quorum(|_| true), "nobody is no majority of nobody");
    }

    #[test]
    fn while_it_is_replaced_a_device_is_its_new_node() {
        let device = DeviceId::new("edge-1").expect("a name");
        let node = Node { device: device.clone(), store: None };
        let members = Members {
            voters: vec![set(&[1]), set(&[7])],
            nodes: [1, 7].map(|n| (NodeId(n), node.clone())).into(),
        };
        assert_eq!(members.voter_of(&device), Some(NodeId(7)));
        assert!(members.is_voter(NodeId(1)) && members.is_voter(NodeId(7)));
    }
}
