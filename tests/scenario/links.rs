//! Stories of the site LAN: cut, cut in one direction, slow, lossy.

use std::{sync::PoisonError, time::Duration};

use quorate::{clock::Clock as _, status::door::Answer};

use super::{MS, S, another_runs, bound, running};
use crate::stage::{Setup, Stage};

/// For how long a device says that it still knows who owns.
fn vouches(stage: &Stage, n: usize) -> Duration {
    let device = &stage.devices[n];
    let live = device.live.lock().unwrap_or_else(PoisonError::into_inner);
    let answer = live.as_ref().map(|live| live.answers.borrow().clone());
    match answer {
        Some(Answer::Known { owner: Some(_), until, .. }) => until.since(device.clock.now()),
        _ => Duration::ZERO,
    }
}

#[test]
fn the_owner_is_cut_off() {
    for seed in 1..=4 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        stage.isolate(owner);
        another_runs(&mut stage, bound(), owner);
        stage.pass(10 * S);
        stage.heal();
        stage.pass(10 * S);
        assert_eq!(stage.epochs(), [1, 2], "the old owner comes back as a standby");
        assert_eq!(stage.knows(owner), 2);
    }
}

#[test]
fn a_standby_is_cut_off_and_returns() {
    let (mut stage, owner) = running(Setup::default());
    let standby = (owner + 1) % 3;
    stage.isolate(standby);
    stage.pass(30 * S);
    stage.heal();
    stage.pass(10 * S);
    assert_eq!(stage.epochs(), [1], "a returning device deposes nobody");
    assert_eq!(stage.running(), Some(owner));
}

#[test]
fn everybody_is_cut_off_from_everybody() {
    let (mut stage, _) = running(Setup::default());
    for n in 0..3 {
        stage.isolate(n);
    }
    let timing = stage.site.timing;
    stage.pass(timing.hold() + timing.stop_grace() + 50 * MS);
    assert_eq!(stage.running(), None, "without a quorum nobody runs");
    stage.pass(10 * S);
    stage.heal();
    stage.someone_runs(3 * S);
}

#[test]
fn the_owner_hears_but_is_not_heard() {
    let (mut stage, owner) = running(Setup::default());
    for other in (0..3).filter(|n| *n != owner) {
        stage.cut_one_way(owner, other);
    }
    another_runs(&mut stage, bound() + S, owner);
    stage.heal();
    stage.pass(10 * S);
    assert_eq!(stage.epochs(), [1, 2]);
}

#[test]
fn the_owner_is_heard_but_hears_nothing() {
    let (mut stage, owner) = running(Setup::default());
    for other in (0..3).filter(|n| *n != owner) {
        stage.cut_one_way(other, owner);
    }
    // What it still sends keeps the others from electing until it notices that nobody answers.
    another_runs(&mut stage, 6 * S, owner);
}

#[test]
fn one_link_between_owner_and_standby_breaks() {
    let (mut stage, owner) = running(Setup::default());
    stage.cut(owner, (owner + 1) % 3);
    stage.pass(30 * S);
    assert_eq!(stage.epochs(), [1], "the owner still has a quorum");
}

#[test]
fn one_direction_of_one_link_breaks() {
    for (from, to) in [(0, 1), (1, 0)] {
        let (mut stage, owner) = running(Setup::default());
        let standby = (owner + 1) % 3;
        let end = [owner, standby];
        stage.cut_one_way(end[from], end[to]);
        stage.pass(20 * S);
        assert_eq!(stage.epochs(), [1]);
    }
}

#[test]
fn a_lan_that_loses_packets() {
    for seed in 1..=3 {
        let setup = Setup { seed, loss: 0.0005, ..Setup::default() };
        let mut stage = Stage::new(setup);
        stage.someone_runs(20 * S);
        stage.pass(60 * S);
    }
}

#[test]
fn a_leader_that_reaches_too_few_lets_the_others_go() {
    // Five devices, one without power. The owner still reaches one other, which alone could not elect, but whose vote
    // the remaining two need.
    let (mut stage, owner) = running(Setup { devices: 5, ..Setup::default() });
    let others: Vec<usize> = (0..5).filter(|n| *n != owner).collect();
    stage.crash(others[3]);
    stage.cut(owner, others[1]);
    stage.cut(owner, others[2]);
    another_runs(&mut stage, 10 * S, owner);
}

/// The simulated network sends nothing again: what is lost in these moments leaves both connections silent for good.
#[test]
fn lost_segments_cost_no_lease() {
    let (mut stage, owner) = running(Setup::default());
    for round in 0..12 {
        stage.isolate(owner);
        stage.pass(60 * MS);
        stage.heal();
        stage.pass(450 * MS + 13 * MS * round);
        assert_eq!((stage.running(), stage.epochs()), (Some(owner), vec![1]), "round {round}");
    }
}

/// Answers that travel for long are worth what their questions were worth.
#[test]
fn the_owners_links_are_slow_and_then_cut() {
    for seed in 1..=6 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        // So that an answer which counts from its own moment, or from another question, is worth more than the promise, and
        // nothing else shows it: the lease never lapses, for the next answer comes in time.
        stage.slow_links(owner, 60 * MS);
        stage.pass(3 * S + MS * 17 * u32::try_from(seed).expect("small"));
        assert_eq!(stage.running(), Some(owner), "a slow network is no reason to move");
        // Its questions are no longer heard; the answers to the last ones still travel.
        for other in (0..3).filter(|n| *n != owner) {
            stage.cut_one_way(owner, other);
        }
        another_runs(&mut stage, bound() + S, owner);
        stage.pass(S);
    }
}

#[test]
fn what_standbys_are_told_of_the_lease_ends_with_it() {
    for latency in [MS, 30 * MS] {
        let (mut stage, owner) = running(Setup::default());
        stage.slow_links(owner, latency);
        stage.pass(2 * S);
        for _ in 0..500 {
            stage.pass(MS);
            let lease = vouches(&stage, owner);
            for standby in (0..3).filter(|n| *n != owner) {
                let told = vouches(&stage, standby);
                // Two clocks of different rates, looked at within a millisecond.
                assert!(told <= lease + 4 * MS, "{standby} was told of {told:?}, the owner has {lease:?}");
                assert!(latency > MS || !told.is_zero(), "{standby} knew no owner for a moment");
            }
        }
    }
}

#[test]
fn no_answer_about_a_lost_owner_outlives_its_truth() {
    for seed in 1..=4 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        match seed % 2 {
            0 => stage.crash(owner),
            _ => stage.isolate(owner),
        }
        another_runs(&mut stage, bound(), owner);
        stage.pass(2 * S);
    }
}
