//! Where this member stands in the group, for everybody who watches.
//!
//! A Raft role is a rumour that may be stale. That nothing is done on a leader's record before it holds all that was
//! committed before is decided here, by [`standing`]; that nothing is done on the role alone is the business of
//! `ownership/decide.rs`.

use std::{collections::BTreeSet, sync::Arc};

use openraft::ServerState;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::{
    machine::{Applied, Machine},
    peer::Roster,
    types::{self, Raft},
    vote_guard::Ballot,
    words,
};
use crate::{id::NodeId, ownership::view::Standing};

/// Where this member stands, and who votes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Follower, new leader, or leader.
    pub standing: Standing,
    /// The ballot that this member leads or follows with.
    pub ballot: Ballot,
    /// The voters of the effective membership; two sets while it changes.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// The index of the last entry known to be applied here.
    pub applied: u64,
    /// Set once Raft has stopped for good, with the reason. Only a restart helps.
    pub fatal: Option<String>,
}

/// Turns openraft's metrics and the applied record into a [`Role`].
pub(super) fn follow(
    raft: &Raft,
    machine: &Machine,
    roster: &Arc<Roster>,
    tasks: &TaskTracker,
) -> watch::Receiver<Role> {
    let mut metrics = raft.metrics();
    let mut applied = machine.watch();
    let (me, roster) = (roster.node, roster.clone());
    let read = move |metrics: &types::Metrics, applied: &Applied| {
        let ballot = types::ballot(&metrics.vote);
        let leads = metrics.state == ServerState::Leader && metrics.vote.committed && ballot.node == me;
        let standing = standing(leads, ballot, applied.by);
        let members = types::members(metrics.membership_config.membership());
        roster.now_members(&members);
        Role {
            standing,
            ballot,
            voters: members.voters,
            applied: applied.index.unwrap_or(0),
            fatal: metrics.running_state.as_ref().err().map(words::stopped),
        }
    };
    let (sender, receiver) = watch::channel(read(&metrics.borrow(), &applied.borrow()));
    tasks.spawn(async move {
        loop {
            let ended = tokio::select! {
                changed = metrics.changed() => changed.is_err(),
                changed = applied.changed() => changed.is_err(),
                () = sender.closed() => return,
            };
            let fresh = read(&metrics.borrow_and_update(), &applied.borrow_and_update());
            sender.send_if_modified(|role| {
                let changed = *role != fresh;
                *role = fresh;
                changed
            });
            if ended {
                return;
            }
        }
    });
    receiver
}

/// What a member is that leads with `ballot`, or follows, and has applied an entry `by` this leader last.
fn standing(leads: bool, ballot: Ballot, by: (u64, u64)) -> Standing {
    match (leads, by == (ballot.term, ballot.node.0)) {
        (false, _) => Standing::Follower,
        (true, false) => Standing::NewLeader,
        (true, true) => Standing::Leader,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_new_until_an_entry_of_its_own_term_is_applied() {
        let ballot = Ballot { term: 5, node: NodeId(7) };
        for before in [(0, 0), (4, 7), (5, 6)] {
            assert_eq!(standing(true, ballot, before), Standing::NewLeader, "{before:?}");
        }
        assert_eq!(standing(true, ballot, (5, 7)), Standing::Leader);
        assert_eq!(standing(false, ballot, (5, 7)), Standing::Follower, "it led");
    }
}
