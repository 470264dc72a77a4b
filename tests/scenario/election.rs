//! Stories of elections in which the obvious winner is the wrong one, or dies.

use quorate::raft::log::{Disk as _, StoredVote};

use super::{MS, S, another_runs, bound, running};
use crate::stage::{Setup, Stage};

/// Two members with old logs must not keep out the only one that can be elected.
#[test]
fn members_with_old_logs_give_way_to_the_one_that_can_win() {
    let (mut stage, owner) = running(Setup::default());
    let (newest, late) = ((owner + 1) % 3, (owner + 2) % 3);
    // An ownership that one of the two standbys does not hear of.
    stage.crash(late);
    stage.transfer(newest);
    another_runs(&mut stage, bound(), owner);
    stage.pass(S);
    // The one with the newest log goes away; the other two campaign in vain for long.
    stage.crash(newest);
    stage.cut(owner, late);
    stage.start(late);
    stage.pass(12 * S);
    stage.crash(owner);
    stage.start(newest);
    stage.heal();
    stage.until(6 * S, "the one with the newest log owns", |s| s.running() == Some(newest));
}

#[test]
fn the_successor_dies_when_the_first_owner_comes_back() {
    // The first owner was cut off and still believes that it leads. The only other device that lives has voted for its
    // successor: it promises the old leader nothing, and the old leader must let it be elected.
    for seed in 1..=12 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        stage.isolate(owner);
        let second = another_runs(&mut stage, bound(), owner);
        stage.pass(5 * S);
        stage.crash(second);
        stage.heal();
        stage.until(10 * S, "one of the two owns", |s| s.running().is_some());
    }
}

#[test]
fn an_election_dies_with_its_candidate() {
    // The owner is silent for a moment; one standby gives its vote to the other, which loses power.
    for seed in 1..=6 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        let others: Vec<usize> = (0..3).filter(|n| *n != owner).collect();
        let vote = |stage: &Stage, n: usize| stage.devices[n].disk.contents().expect("reads").vote;
        let before = vote(&stage, owner);
        stage.isolate(owner);
        stage.until(2 * S, "both have voted", |s| others.iter().all(|n| vote(s, *n) > before));
        let voted = vote(&stage, others[0]).expect("voted");
        let candidate =
            *others.iter().find(|n| stage.devices[**n].id.first_node().0 == voted.node).expect("one of them");
        stage.crash(candidate);
        stage.heal();
        stage.until(10 * S, "one of the two owns", |s| s.running().is_some());
    }
}

#[test]
fn the_witness_knows_more_than_the_only_device_that_may_own() {
    let (mut stage, owner) = running(Setup { witnesses: vec![2], ..Setup::default() });
    let other = 1 - owner;
    stage.crash(other);
    stage.pass(S);
    // A new ownership, which only the owner and the witness have written.
    stage.kill_sidecar(owner);
    stage.start(owner);
    stage.until(4 * S, "the owner is back", |s| s.epochs().len() == 2);
    stage.pass(S);
    stage.crash(owner);
    stage.start(other);
    stage.until(20 * S, "the only device that may own does", |s| s.running() == Some(other));
}

/// After many elections in vain one device knows a late term, and another the newest entries of the log. Only the second
/// can be elected, and what it stands with is outdated.
#[test]
fn the_only_one_that_can_win_is_many_elections_behind() {
    let (mut stage, owner) = running(Setup::default());
    stage.pass(3 * S);
    let (newest, late) = ((owner + 1) % 3, (owner + 2) % 3);
    stage.crash(late);
    stage.transfer(newest);
    another_runs(&mut stage, 2 * bound(), owner);
    stage.pass(S);
    // Back again, so that it has led no more when it restarts.
    stage.transfer(owner);
    another_runs(&mut stage, 2 * bound(), newest);
    stage.pass(S);
    stage.crash(owner);
    stage.crash(newest);
    let mut contents = stage.devices[late].disk.contents().expect("reads");
    let node = stage.devices[late].id.first_node().0;
    contents.vote = Some(StoredVote { term: 5000, node, committed: false });
    stage.devices[late].disk.replace(contents);
    stage.start(newest);
    stage.start(late);
    // A restarted device votes for nobody at first.
    let limit = stage.site.timing.refusal() + bound();
    stage.until(limit, "the one with the newest log owns", |s| s.running() == Some(newest));
}

/// Only the witness can be elected, and its disk takes long. Once it has led, the others need not wait for its disk.
#[test]
fn nobody_waits_for_a_witness_that_has_led() {
    let (mut stage, owner) = running(Setup { devices: 5, witnesses: vec![4], ..Setup::default() });
    let others: Vec<usize> = (0..4).filter(|n| *n != owner).collect();
    let (knows, late) = (others[0], &others[1..]);
    late.iter().for_each(|n| stage.crash(*n));
    stage.slow_disk(4, 1500 * MS, false);
    stage.transfer(knows);
    another_runs(&mut stage, 20 * S, owner);
    stage.pass(S);
    stage.crash(owner);
    stage.crash(knows);
    let vote = |stage: &Stage| stage.devices[4].disk.contents().expect("reads").vote;
    let before = vote(&stage);
    late.iter().for_each(|n| stage.start(*n));
    stage.until(20 * S, "the witness has led", |s| vote(s) > before && vote(s).is_some_and(|v| v.committed));
    stage.start(knows);
    stage.until(3 * S, "another device owns", |s| s.running().is_some());
}
