//! Stories of a simulated site, named by what a person at the plant would see. Every promise is checked at every
//! simulated millisecond (`stage`), so a story only says what should happen besides.

use std::time::Duration;

use quorate::{
    raft::log::Disk as _,
    timing::{Settings, Timing},
};

use crate::stage::{Setup, Stage};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// How long a takeover may take: the bound that is printed for the default timing.
fn bound() -> Duration {
    Timing::new(&Settings::default()).expect("consistent").takeover_bound()
}

/// A site on which somebody already owns; returns who.
fn running(setup: Setup) -> (Stage, usize) {
    let mut stage = Stage::new(setup);
    let owner = stage.someone_runs(4 * S);
    stage.pass(S);
    (stage, owner)
}

fn another_runs(stage: &mut Stage, limit: Duration, than: usize) -> usize {
    stage.until(limit, "another device runs the workload", |s| s.running().is_some_and(|n| n != than));
    stage.running().expect("just seen")
}

#[test]
fn a_fresh_site_elects_one_owner_and_stays_quiet() {
    let mut stage = Stage::new(Setup::default());
    stage.someone_runs(3 * S);
    let writes: Vec<u64> = stage.devices.iter().map(|d| d.disk.writes()).collect();
    stage.pass(2 * S);
    let settled: Vec<u64> = stage.devices.iter().map(|d| d.disk.writes()).collect();
    stage.pass(60 * S);
    let later: Vec<u64> = stage.devices.iter().map(|d| d.disk.writes()).collect();
    assert_eq!(stage.epochs(), [1], "a quiet site has one ownership");
    assert_eq!(settled, later, "an idle device writes nothing (first writes: {writes:?})");
}

#[test]
fn a_device_that_comes_an_hour_later_fits_in() {
    let mut stage = Stage::new(Setup { absent: vec![2], ..Setup::default() });
    let owner = stage.someone_runs(3 * S);
    stage.pass(120 * S);
    stage.start(2);
    stage.until(5 * S, "the late device knows the owner", |s| s.knows(2) == s.epoch() && s.epoch() > 0);
    stage.pass(20 * S);
    assert_eq!(stage.epochs(), [1], "its coming changes nothing");
    assert_eq!(stage.running(), Some(owner));
}

#[test]
fn a_first_start_in_which_everybody_is_killed_again_and_again() {
    for pause in [1u64, 40, 300, 630, 660, 700, 760, 900] {
        let mut stage = Stage::new(Setup { seed: pause, ..Setup::default() });
        for round in 0..4u64 {
            stage.pass(Duration::from_millis(pause + round * 7));
            for n in 0..3 {
                stage.crash(n);
            }
            for n in [2, 0, 1] {
                stage.start(n);
            }
        }
        stage.someone_runs(5 * S);
    }
}

#[test]
fn two_of_three_are_enough_to_begin() {
    let mut stage = Stage::new(Setup { absent: vec![0], ..Setup::default() });
    stage.someone_runs(3 * S);
}

#[test]
fn one_of_three_never_owns() {
    let mut stage = Stage::new(Setup { absent: vec![0, 1], ..Setup::default() });
    stage.pass(30 * S);
    assert!(stage.epochs().is_empty());
}

#[test]
fn the_owner_loses_power() {
    for seed in 1..=8 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        stage.crash(owner);
        let before = stage.sim.elapsed();
        another_runs(&mut stage, bound(), owner);
        assert!(stage.sim.elapsed() - before < S, "silent loss takes less than a second");
        stage.start(owner);
        stage.pass(10 * S);
        assert_eq!(stage.epochs(), [1, 2], "its return changes nothing");
    }
}

#[test]
fn only_the_sidecar_dies() {
    let (mut stage, owner) = running(Setup::default());
    stage.kill_sidecar(owner);
    another_runs(&mut stage, bound(), owner);
    stage.start(owner);
    stage.pass(5 * S);
    assert_eq!(stage.epochs(), [1, 2]);
}

#[test]
fn the_owners_sidecar_restarts_at_once() {
    let (mut stage, owner) = running(Setup::default());
    stage.kill_sidecar(owner);
    stage.start(owner);
    stage.until(bound() + S, "a new ownership", |s| s.epochs().len() == 2);
    assert_eq!(stage.epochs(), [1, 2], "a restarted sidecar never resumes its epoch");
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
fn a_planned_handover() {
    for seed in 1..=5 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        let target = (owner + 2) % 3;
        stage.transfer(target);
        let took = stage.until(S, "the target runs", |s| s.running() == Some(target));
        assert!(took < 200 * MS, "a planned handover waits for no timer, but it took {took:?}");
        stage.pass(5 * S);
        assert_eq!(stage.epochs(), [1, 2]);
    }
}

#[test]
fn a_handover_to_a_device_that_dies_on_the_way() {
    let (mut stage, owner) = running(Setup::default());
    let target = (owner + 1) % 3;
    stage.transfer(target);
    stage.pass(3 * MS);
    stage.crash(target);
    stage.until(4 * S, "somebody else owns", |s| s.running().is_some_and(|n| n != target) && s.epoch() > 1);
}

#[test]
fn the_owner_dies_in_the_middle_of_a_handover() {
    for delay in [2u32, 6, 10, 14, 18, 22, 30] {
        let (mut stage, owner) = running(Setup { seed: u64::from(delay), ..Setup::default() });
        let target = (owner + 1) % 3;
        stage.transfer(target);
        stage.pass(MS * delay);
        stage.crash(owner);
        another_runs(&mut stage, bound() + S, owner);
    }
}

#[test]
fn the_owner_leaves_in_good_order() {
    let (mut stage, owner) = running(Setup::default());
    stage.leave(owner);
    let took = stage.until(S, "another runs", |s| s.running().is_some_and(|n| n != owner));
    assert!(took < 300 * MS, "leaving hands over, but it took {took:?}");
    stage.pass(5 * S);
}

#[test]
fn a_standby_restarts_inside_the_window_of_its_promise() {
    // With the owner silent towards the rest, a voter that forgot its promise would elect a rival at once.
    for seed in 1..=6 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        let (promised, cut_off) = ((owner + 1) % 3, (owner + 2) % 3);
        stage.cut(owner, cut_off);
        stage.pass(2 * S);
        stage.crash(promised);
        stage.start(promised);
        stage.pass(5 * S);
        stage.heal();
        stage.someone_runs(3 * S);
    }
}

#[test]
fn standbys_restart_one_after_the_other() {
    let (mut stage, owner) = running(Setup::default());
    for n in (0..3).filter(|n| *n != owner) {
        stage.crash(n);
        stage.start(n);
        stage.pass(3 * S);
    }
    assert_eq!(stage.epochs(), [1], "restarts of standbys change nothing");
}

#[test]
fn both_standbys_restart_at_once() {
    let (mut stage, owner) = running(Setup::default());
    for n in (0..3).filter(|n| *n != owner) {
        stage.crash(n);
        stage.start(n);
    }
    stage.pass(10 * S);
    stage.someone_runs(3 * S);
}

#[test]
fn the_whole_site_loses_power() {
    let (mut stage, _) = running(Setup::default());
    for n in 0..3 {
        stage.crash(n);
    }
    stage.pass(5 * S);
    for n in 0..3 {
        stage.start(n);
        stage.pass(37 * MS);
    }
    stage.someone_runs(4 * S);
    assert_eq!(stage.epochs(), [1, 2], "epochs go on where they were");
}

#[test]
fn two_of_three_lose_power_and_return() {
    let (mut stage, owner) = running(Setup::default());
    let (a, b) = ((owner + 1) % 3, (owner + 2) % 3);
    stage.crash(a);
    stage.crash(b);
    let timing = stage.site.timing;
    stage.pass(timing.hold() + timing.stop_grace() + 50 * MS);
    assert_eq!(stage.running(), None, "the last one stops");
    stage.start(a);
    stage.someone_runs(4 * S);
}

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
    for device in &stage.devices {
        device.disk.delay(500 * MS);
    }
    let owner = stage.someone_runs(20 * S);
    stage.pass(10 * S);
    assert_eq!(stage.epochs(), [1], "a slow disk does not shake a held lease");
    stage.crash(owner);
    another_runs(&mut stage, 20 * S, owner);
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
fn five_devices_lose_two() {
    let (mut stage, owner) = running(Setup { devices: 5, ..Setup::default() });
    stage.crash(owner);
    let second = another_runs(&mut stage, bound(), owner);
    stage.pass(S);
    stage.crash(second);
    let third = another_runs(&mut stage, bound(), second);
    assert_ne!(third, owner);
    stage.pass(S);
    assert_eq!(stage.epochs(), [1, 2, 3]);
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
            *others.iter().find(|n| stage.devices[**n].id.node_id().0 == voted.node).expect("one of them");
        stage.crash(candidate);
        stage.heal();
        stage.until(10 * S, "one of the two owns", |s| s.running().is_some());
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
        assert_eq!(stage.ledger.lies(), Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
#[ignore = "finding: a planned handover makes answers false before their valid_for_ms is over"]
fn no_answer_outlives_its_truth_in_a_handover() {
    let (mut stage, owner) = running(Setup::default());
    stage.transfer((owner + 1) % 3);
    another_runs(&mut stage, 4 * S, owner);
    stage.pass(S);
    assert_eq!(stage.ledger.lies(), Vec::<String>::new());
}

#[test]
#[ignore = "finding: a witness never leads, so it cannot pass on what only it and the lost owner knew"]
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
