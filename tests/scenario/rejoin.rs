//! Devices that have lost their store, and how they come back.

use super::*;
/// Longer than a store must be silent until it is replaced, and all that follows.
const BACK: Duration = Duration::from_secs(40);

/// A site in which every member knows every store, and its owner.
fn settled(setup: Setup) -> (Stage, usize) {
    let (mut stage, owner) = running(setup);
    stage.until(10 * S, "all stores are noted", |s| (0..s.devices.len()).all(|n| s.whole(n)));
    (stage, owner)
}

/// The device loses power and its disk, and starts with an empty one.
fn comes_back_empty(stage: &mut Stage, n: usize) {
    stage.crash(n);
    stage.empty(n);
    stage.pass(2 * S);
    stage.start(n);
}

fn others(n: usize) -> [usize; 2] {
    [(n + 1) % 3, (n + 2) % 3]
}

/// How many nodes the membership has, as a device knows it.
fn nodes(stage: &Stage, n: usize) -> usize {
    stage.roster(n).map_or(0, |r| r.members().nodes.len())
}

/// What is waited for, as the leader knows.
fn rejoining(stage: &Stage, n: usize) -> String {
    stage.roster(n).map_or_else(String::new, |r| r.rejoining().into_values().collect())
}

#[test]
fn an_emptied_standby_votes_again_and_its_vote_counts() {
    for seed in 1..=2 {
        let (mut stage, owner) = settled(Setup { seed, ..Setup::default() });
        let [emptied, third] = others(owner);
        let elections = |s: &Stage| (0..3).map(|n| s.elections(n)).sum::<u64>();
        let before = elections(&stage);
        comes_back_empty(&mut stage, emptied);
        stage.until(BACK, "all three vote", |s| (0..3).all(|n| s.whole(n)));
        stage.pass(5 * S);
        assert_eq!(stage.epochs(), [1], "no ownership change");
        assert_eq!(elections(&stage), before, "no election");
        assert_eq!(nodes(&stage, owner), 3, "the old node is forgotten");
        assert_eq!(rejoining(&stage, owner), "");
        stage.crash(third);
        stage.pass(10 * S);
        assert_eq!(stage.running(), Some(owner), "the site survives the loss of another device");
        stage.start(third);
        stage.pass(5 * S);
        stage.crash(owner);
        another_runs(&mut stage, bound(), owner);
    }
}

#[test]
fn the_emptied_device_is_the_owner() {
    for seed in 1..=2 {
        let (mut stage, owner) = settled(Setup { seed, ..Setup::default() });
        comes_back_empty(&mut stage, owner);
        stage.until(bound() + S, "another owns", |s| s.epochs().len() == 2);
        stage.until(BACK, "all three vote", |s| (0..3).all(|n| s.whole(n)));
        assert_eq!(stage.epochs(), [1, 2]);
        // It is an owner like any other.
        stage.transfer(owner);
        stage.until(5 * S, "it owns again", |s| s.running() == Some(owner));
    }
}

#[test]
fn an_emptied_witness_is_a_witness_again() {
    let (mut stage, owner) = settled(Setup { witnesses: vec![2], ..Setup::default() });
    comes_back_empty(&mut stage, 2);
    stage.until(BACK, "all three vote", |s| (0..3).all(|n| s.whole(n)));
    stage.crash(owner);
    another_runs(&mut stage, bound() + S, owner);
    assert_ne!(stage.running(), Some(2));
}

#[test]
fn it_loses_its_store_again_and_again() {
    let (mut stage, owner) = settled(Setup::default());
    let emptied = others(owner)[0];
    for seconds in [1, 22, 40] {
        comes_back_empty(&mut stage, emptied);
        stage.pass(seconds * S);
    }
    stage.until(2 * BACK, "all three vote", |s| (0..3).all(|n| s.whole(n)));
    stage.pass(30 * S);
    assert_eq!(nodes(&stage, owner), 3, "nothing of the others is left");
    assert_eq!(stage.epochs(), [1]);
}

#[test]
fn the_leader_dies_in_the_middle_of_each_step() {
    // Before the newcomer learns, while it does, between the two sets of voters, and right after.
    type When = fn(&Stage, usize, usize) -> bool;
    let steps: [(&str, When); 4] = [
        ("it asks", |s, leader, _| !rejoining(s, leader).is_empty()),
        ("it learns", |s, leader, _| nodes(s, leader) == 4),
        ("two sets of voters", |s, leader, _| {
            s.roster(leader).is_some_and(|r| r.members().voters.len() == 2)
        }),
        ("it votes", |s, leader, _| s.whole(leader)),
    ];
    for (seed, (step, reached)) in (1..).zip(steps.into_iter().cycle().take(4)) {
        let (mut stage, owner) = settled(Setup { seed, ..Setup::default() });
        let [emptied, third] = others(owner);
        comes_back_empty(&mut stage, emptied);
        stage.until(BACK, step, |s| reached(s, owner, emptied));
        stage.crash(owner);
        stage.pass(5 * S);
        stage.start(owner);
        stage.until(2 * BACK, "all three vote", |s| (0..3).all(|n| s.whole(n)));
        stage.someone_runs(5 * S);
        stage.crash(third);
        stage.someone_runs(5 * S);
        assert!(stage.epochs().len() <= 4, "seed {seed}, {step}: {:?}", stage.epochs());
    }
}

#[test]
fn two_emptied_devices_at_once_are_no_site_of_their_own() {
    for seed in 1..=2 {
        let (mut stage, owner) = settled(Setup { seed, ..Setup::default() });
        let [a, b] = others(owner);
        for n in [a, b] {
            stage.crash(n);
            stage.empty(n);
        }
        stage.pass(S);
        stage.start(a);
        stage.start(b);
        stage.pass(40 * S);
        // Without a majority that remembers there is nobody who could say how it went on.
        assert_eq!((stage.epochs(), stage.running()), (vec![1], None), "seed {seed}");
        for n in [a, b] {
            assert_eq!(stage.knows(n), 0, "they found no site of their own");
            let contacts = stage.roster(n).expect("is up").contacts();
            assert!(contacts.values().any(|c| c.refuses.contains("another store")), "{contacts:?}");
        }
    }
}

#[test]
fn a_restart_of_all_others_does_not_make_the_forgetful_one_welcome() {
    let (mut stage, owner) = settled(Setup::default());
    let [emptied, third] = others(owner);
    stage.crash(emptied);
    stage.empty(emptied);
    stage.crash(third);
    // The owner writes what nobody else has.
    stage.crash(owner);
    stage.pass(S);
    // Its sidecar remembers nobody's store; its log does.
    stage.start(third);
    stage.start(emptied);
    stage.pass(20 * S);
    assert_eq!((stage.epochs(), stage.running()), (vec![1], None), "one that remembers is no majority");
    stage.start(owner);
    stage.someone_runs(5 * S);
    stage.until(2 * BACK, "all three vote", |s| (0..3).all(|n| s.whole(n)));
}

#[test]
fn five_devices_lose_two_stores_one_after_the_other() {
    let (mut stage, owner) = settled(Setup { devices: 5, ..Setup::default() });
    let [a, b] = [(owner + 1) % 5, (owner + 2) % 5];
    for n in [a, b] {
        stage.crash(n);
        stage.empty(n);
    }
    stage.pass(S);
    stage.start(a);
    stage.start(b);
    stage.until(2 * BACK, "all five vote", |s| (0..5).all(|n| s.whole(n)));
    assert_eq!(stage.epochs(), [1]);
}
