//! Stories of a site in trouble that is not dead: slow links, slow disks, stalls, power and links that come and go.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use quorate::{
    dice::Dice,
    ownership::{
        pace::Pace,
        record::{Cause, Record},
    },
    raft::log::Disk as _,
};

use super::{MS, S, another_runs, bound, running};
use crate::stage::{Setup, Stage, world::Freeze};

fn record(stage: &Stage, n: usize) -> Option<Arc<Record>> {
    let live = stage.devices[n].live.lock().unwrap_or_else(PoisonError::into_inner);
    live.as_ref().map(|live| live.record.borrow().record.clone())
}

fn pace(stage: &Stage, n: usize) -> Pace {
    record(stage, n).map_or_else(Pace::default, |r| r.pace.clone())
}

fn cause(stage: &Stage, n: usize) -> Option<Cause> {
    record(stage, n).and_then(|r| r.history.back().map(|change| change.cause))
}

/// One second in which the tasks of these devices stand still for a while.
fn stall(stage: &mut Stage, devices: &[usize]) {
    devices.iter().for_each(|n| stage.freeze(*n, Freeze::Sidecar));
    stage.pass(150 * MS);
    devices.iter().for_each(|n| stage.thaw(*n));
    stage.pass(850 * MS);
}

fn slow_everywhere(stage: &mut Stage, latency: Duration) {
    (0..stage.devices.len()).for_each(|n| stage.slow_links(n, latency));
}

/// A site whose timing is wider than configured, on links that are quick again.
fn widened(seed: u64) -> (Stage, usize) {
    let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
    slow_everywhere(&mut stage, 190 * MS);
    stage.until(60 * S, "the timing is four times as wide", |s| pace(s, owner).stretch >= 400);
    slow_everywhere(&mut stage, MS);
    stage.someone_runs(10 * S);
    stage.pass(2 * S);
    let owner = stage.running().expect("nothing is wrong");
    (stage, owner)
}

#[test]
fn slow_links_widen_the_timing_and_quick_ones_narrow_it() {
    let (mut stage, owner) = running(Setup::default());
    // An answer takes longer than the configured hold: no lease could be held.
    slow_everywhere(&mut stage, 150 * MS);
    let took =
        stage.until(60 * S, "it is wide enough", |s| pace(s, owner).stretch >= 200 && s.running().is_some());
    println!("a wider timing after {took:?}");
    stage.pass(15 * S);
    let (epochs, stretch) = (stage.epochs(), pace(&stage, owner).stretch);
    stage.pass(60 * S);
    assert_eq!((stage.epochs(), pace(&stage, owner).stretch), (epochs, stretch), "and then it is quiet");
    assert!(stage.running().is_some());
    slow_everywhere(&mut stage, MS);
    let configured = stage.site.timing.refusal();
    let took = stage.until(300 * S, "the configured timing is back, and has settled", |s| {
        (0..3).all(|n| pace(s, n).stretch == 100 && pace(s, n).widest() == configured)
    });
    println!("the configured timing after {took:?}");
    let runs = stage.running().expect("nothing is wrong");
    stage.crash(runs);
    another_runs(&mut stage, bound(), runs);
}

#[test]
fn a_site_on_slow_links_elects_from_the_beginning() {
    let mut stage = Stage::new(Setup::default());
    slow_everywhere(&mut stage, 150 * MS);
    let owner = stage.someone_runs(60 * S);
    println!("somebody owns after {:?}", stage.sim.elapsed());
    stage.pass(60 * S);
    let epochs = stage.epochs();
    stage.pass(30 * S);
    assert_eq!(stage.epochs(), epochs, "it stays, whatever it took");
    let owner = stage.running().unwrap_or(owner);
    stage.crash(owner);
    another_runs(&mut stage, 30 * S, owner);
}

#[test]
fn a_standby_restarts_inside_a_window_that_was_widened() {
    // The other standby has been free for long, so a voter that forgot how wide its promise was would elect it at once, while
    // the owner, cut off in that moment, goes on to the end of its wide lease.
    for seed in 1..=4 {
        let (mut stage, owner) = widened(seed);
        let (promised, cut_off) = ((owner + 1) % 3, (owner + 2) % 3);
        stage.cut(owner, cut_off);
        stage.pass(4 * S);
        stage.crash(promised);
        stage.cut(owner, promised);
        stage.start(promised);
        another_runs(&mut stage, 8 * S, owner);
        stage.heal();
        stage.someone_runs(8 * S);
    }
}

#[test]
fn the_owner_is_cut_off_while_the_timing_changes() {
    // Some of its questions ask for the old window and some for the new one, and it has to live by each.
    for seed in 1..=6 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        // The others elect quickly among themselves.
        stage.slow_links(owner, 90 * MS);
        stage.until(60 * S, "the timing is wider", |s| pace(s, owner).version == 1);
        stage.pass(MS * 40 * u32::try_from(seed).expect("small"));
        for other in (0..3).filter(|n| *n != owner) {
            stage.cut_one_way(owner, other);
        }
        another_runs(&mut stage, 20 * S, owner);
        stage.heal();
        stage.pass(5 * S);
    }
}

#[test]
fn an_owner_that_stalls_hands_over_before_its_lease_ends() {
    let (mut stage, owner) = running(Setup::default());
    stage.pass(10 * S);
    while stage.epoch() == 1 {
        assert!(stage.sim.elapsed() < 30 * S, "it has not handed over");
        stall(&mut stage, &[owner]);
    }
    let next = stage.running().expect("somebody runs it");
    assert_ne!(next, owner);
    assert_eq!(cause(&stage, next), Some(Cause::HandedOver), "it was planned, nothing was lost");
    (0..10).for_each(|_| stall(&mut stage, &[owner]));
    stage.pass(40 * S);
    assert_eq!(stage.epochs(), [1, 2], "it wants nothing back, and is well again");
    stage.crash(next);
    another_runs(&mut stage, bound(), next);
}

#[test]
fn everybody_stalls_and_somebody_owns() {
    let (mut stage, _) = running(Setup::default());
    stage.pass(10 * S);
    (0..15).for_each(|_| stall(&mut stage, &[0, 1, 2]));
    stage.pass(S);
    let owner = stage.running().expect("a strained owner is better than none");
    println!("ownerships: {:?}", stage.epochs());
    stage.crash(owner);
    another_runs(&mut stage, bound() * 8 + 3 * S, owner);
}

#[test]
fn the_only_device_left_owns_although_it_stalls() {
    let (mut stage, owner) = running(Setup { witnesses: vec![2], ..Setup::default() });
    let other = 1 - owner;
    (0..5).for_each(|_| stall(&mut stage, &[other]));
    stage.crash(owner);
    let took = stage.until(bound() + 4 * S, "the other owns", |s| s.running() == Some(other));
    println!("a strained device took over after {took:?}");
}

#[test]
fn a_device_with_a_slow_disk_lets_others_go_first() {
    for seed in 1..=4 {
        let (mut stage, owner) = running(Setup { seed, devices: 5, ..Setup::default() });
        let slow = (0..5).find(|n| *n != owner).expect("others");
        stage.slow_disk(slow, 500 * MS, false);
        // It learns how slow its disk is when it has to write.
        stage.transfer((0..5).find(|n| *n != owner && *n != slow).expect("one more"));
        let second = another_runs(&mut stage, 5 * S, owner);
        stage.pass(3 * S);
        stage.crash(second);
        let third = another_runs(&mut stage, bound() + S, second);
        assert_ne!(third, slow, "one with a quick disk");
    }
}

#[test]
fn half_a_second_for_each_write_on_all_disks() {
    for seed in 1..=4 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        (0..3).for_each(|n| stage.slow_disk(n, 500 * MS, false));
        stage.crash(owner);
        let begun = stage.sim.elapsed();
        another_runs(&mut stage, 5 * S, owner);
        println!("seed {seed}: another owner after {:?}", stage.sim.elapsed() - begun);
    }
}

#[test]
fn the_owners_links_come_and_go() {
    for seed in 1..=3 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        for _ in 0..20 {
            stage.isolate(owner);
            stage.pass(S);
            stage.heal();
            stage.pass(S);
        }
        assert_eq!(stage.epochs(), [1, 2], "it is replaced once, and asks for nothing back");
    }
}

#[test]
fn all_links_come_and_go() {
    for seed in 1..=10 {
        let mut dice = Dice::new(seed);
        let (mut stage, _) = running(Setup { seed, ..Setup::default() });
        for _ in 0..8 {
            (0..3).for_each(|n| stage.isolate(n));
            stage.pass(200 * MS + dice.up_to(S));
            stage.heal();
            stage.pass(200 * MS + dice.up_to(2 * S));
        }
        // At most one change in any cool-down of ten seconds, whatever the links do.
        let (changes, spans) = (stage.epochs().len() - 1, stage.sim.elapsed().as_secs().div_ceil(10));
        assert!(changes as u64 <= spans, "seed {seed}: {changes} changes in {:?}", stage.sim.elapsed());
        stage.someone_runs(bound() + 3 * S);
    }
}

#[test]
fn power_comes_and_goes_on_the_whole_site() {
    let mut dice = Dice::new(7);
    for seed in 1..=4 {
        let (mut stage, _) = running(Setup { seed, ..Setup::default() });
        for _ in 0..6 {
            for n in 0..3 {
                stage.crash(n);
                stage.pass(dice.up_to(50 * MS));
            }
            for n in [2, 0, 1] {
                stage.start(n);
                stage.pass(dice.up_to(400 * MS));
            }
        }
        let limit = stage.site.timing.refusal() + bound() + S;
        stage.someone_runs(limit);
    }
}

#[test]
fn a_device_that_was_away_returns_without_an_election() {
    let (mut stage, owner) = running(Setup::default());
    let standby = (owner + 1) % 3;
    let terms = |s: &Stage| -> Vec<_> {
        s.devices.iter().map(|d| d.disk.contents().expect("reads").vote.map(|v| v.term)).collect()
    };
    let before = terms(&stage);
    for _ in 0..3 {
        stage.isolate(standby);
        stage.pass(20 * S);
        stage.heal();
        stage.pass(5 * S);
        stage.crash(standby);
        stage.pass(10 * S);
        stage.start(standby);
        stage.pass(5 * S);
    }
    assert_eq!((terms(&stage), stage.epochs()), (before, vec![1]));
}
