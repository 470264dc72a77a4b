//! Stories of what a device is made of: clocks that drift or jump, disks that are slow, fail or forget.

use quorate::raft::log::{Amnesia, Disk as _};

use super::{MS, S, another_runs, bound, running};
use crate::stage::{Setup, Stage, disk::Ailment};

#[test]
fn clocks_run_at_different_rates() {
    for rates_ppm in [vec![0, 9_900, 9_900], vec![9_900, 0, 0], vec![9_900, 0, 9_900]] {
        let (mut stage, owner) = running(Setup { rates_ppm, ..Setup::default() });
        stage.isolate(owner);
        another_runs(&mut stage, 2 * S, owner);
    }
}

#[test]
fn the_wall_clock_jumps_by_ten_years() {
    let (mut stage, owner) = running(Setup::default());
    for n in 0..3 {
        stage.set_wall_clock(n, 1_500_000_000_000);
    }
    stage.pass(20 * S);
    assert_eq!(stage.epochs(), [1], "wall time decides nothing");
    stage.crash(owner);
    another_runs(&mut stage, bound(), owner);
}

#[test]
fn every_disk_takes_half_a_second() {
    let mut stage = Stage::new(Setup::default());
    for n in 0..3 {
        stage.slow_disk(n, 500 * MS, false);
    }
    let owner = stage.someone_runs(20 * S);
    stage.pass(10 * S);
    assert_eq!(stage.epochs(), [1], "a slow disk does not shake a held lease");
    stage.crash(owner);
    another_runs(&mut stage, 20 * S, owner);
}

#[test]
fn the_owners_disk_fails() {
    let (mut stage, owner) = running(Setup::default());
    // What a new leader has to note is written by then.
    stage.pass(3 * S);
    stage.ail(owner, Ailment::Eio);
    stage.pass(5 * S);
    assert_eq!(stage.running(), Some(owner), "nothing is written, so nobody knows");
    stage.transfer((owner + 1) % 3);
    let second = another_runs(&mut stage, 2 * bound(), owner);
    // It is up, and no vote any more: with one more device gone nobody is elected.
    let third = 3 - owner - second;
    stage.crash(second);
    stage.pass(5 * S);
    assert_eq!(stage.running(), None);
    // A fresh start on a disk that works again.
    stage.crash(owner);
    stage.ail(owner, Ailment::None);
    stage.start(owner);
    stage.until(3 * bound(), "somebody runs", |s| s.running().is_some_and(|n| n == owner || n == third));
}

#[test]
fn a_standbys_disk_fails_and_the_owner_keeps_its_lease() {
    let (mut stage, owner) = running(Setup::default());
    let (broken, gone) = ((owner + 1) % 3, (owner + 2) % 3);
    stage.ail(broken, Ailment::Eio);
    stage.transfer(gone);
    let owner = another_runs(&mut stage, 2 * bound(), owner);
    assert_eq!(owner, gone);
    let third = 3 - owner - broken;
    stage.pass(S);
    // Its promises are kept in memory and are as good as ever.
    stage.crash(third);
    stage.pass(5 * S);
    assert_eq!(stage.running(), Some(owner));
}

#[test]
fn a_device_that_lost_its_store_does_not_vote() {
    let (mut stage, owner) = running(Setup::default());
    let (lost, other) = ((owner + 1) % 3, (owner + 2) % 3);
    stage.crash(owner);
    stage.crash(lost);
    let first = stage.devices[lost].disk.contents().expect("reads").entries[&0].clone();
    let amnesia = Amnesia { found: "the test took it".into(), ..Amnesia::default() };
    stage.lose(lost, (0, first), amnesia);
    stage.start(lost);
    stage.pass(10 * S);
    assert_eq!(stage.running(), None, "the two of them are no majority");
    assert!(stage.knows(other) <= 1);
    stage.start(owner);
    stage.until(3 * bound(), "a majority that remembers", |s| s.running().is_some());
}

#[test]
fn the_disk_of_a_newly_elected_leader_hangs() {
    for seed in 1..=4 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        stage.pass(3 * S);
        // Slow enough that the vote and what comes after it can be told apart.
        for n in 0..3 {
            stage.slow_disk(n, 20 * MS, false);
        }
        stage.crash(owner);
        let leads = |s: &Stage| (0..3).filter(|n| *n != owner).find(|n| s.leads(*n));
        stage.until(2 * S, "somebody is elected", |s| leads(s).is_some());
        let elected = leads(&stage).expect("just seen");
        assert_eq!(stage.running(), None, "it has not claimed yet");
        // No error: fsync just does not come back. It goes on answering from memory.
        stage.slow_disk(elected, 3600 * S, false);
        stage.start(owner);
        another_runs(&mut stage, 20 * S, elected);
    }
}

#[test]
fn the_owners_disk_hangs_in_the_middle_of_a_handover() {
    for seed in 1..=4 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        stage.pass(3 * S);
        stage.transfer((owner + 1) % 3);
        stage.until(2 * S, "it stops its workload", |s| s.running().is_none());
        // The stop receipt never gets onto its disk, and so to nobody.
        stage.slow_disk(owner, 3600 * S, false);
        another_runs(&mut stage, 20 * S, owner);
    }
}

#[test]
fn the_fencer_of_the_next_in_rank_is_lost_for_good() {
    for seed in 1..=4 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        let next = (0..3).find(|n| *n != owner).expect("three devices");
        stage.devices[next].fencer.lose();
        stage.pass(S);
        stage.crash(owner);
        another_runs(&mut stage, 2 * bound(), owner);
    }
}
