//! Stories of a simulated site, named by what a person at the plant would see. Every promise is checked at every
//! simulated millisecond (`stage`), so a story only says what should happen besides.

use std::time::Duration;

use quorate::{
    hub::memory::Trouble,
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
fn the_twins_follow_every_change_of_ownership() {
    let (mut stage, owner) = running(Setup::default());
    stage.twins_follow(5 * S);
    stage.crash(owner);
    let second = another_runs(&mut stage, bound(), owner);
    stage.twins_follow(5 * S);
    stage.start(owner);
    stage.pass(2 * S);
    stage.transfer(owner);
    another_runs(&mut stage, 2 * S, second);
    stage.twins_follow(5 * S);
}

#[test]
fn the_hub_is_away_for_an_hour_and_two_failovers() {
    let (mut stage, owner) = running(Setup::default());
    stage.twins_follow(5 * S);
    let shown = stage.devices.iter().map(|d| stage.hub.seen(&d.id)).collect::<Vec<_>>();
    stage.hub.memory.trouble(Trouble::Unreachable);
    stage.pass(20 * S);
    stage.crash(owner);
    let second = another_runs(&mut stage, bound(), owner);
    stage.pass(20 * S);
    stage.start(owner);
    stage.pass(2 * S);
    stage.crash(second);
    another_runs(&mut stage, bound(), second);
    // The rest of the hour: long enough for the pauses between tries to have grown to their longest.
    stage.pass(80 * S);
    let later = stage.devices.iter().map(|d| stage.hub.seen(&d.id)).collect::<Vec<_>>();
    assert_eq!(shown, later, "the twins show what they were last told");
    let before = stage.hub.memory.log().len();
    stage.hub.memory.trouble(Trouble::None);
    let took = stage.twins_follow(90 * S);
    assert!(took < 10 * S, "the twins follow within seconds of the hub's return, not {took:?}");
    assert_eq!(stage.epochs(), [1, 2, 3], "the hub's absence and return change nothing on site");
    assert_eq!(stage.hub.memory.log().len() - before, 3, "only the newest state is told, once per twin");
}

#[test]
fn the_owners_internet_line_is_cut() {
    let (mut stage, owner) = running(Setup::default());
    stage.twins_follow(5 * S);
    stage.hub.lines[owner].cut(true);
    stage.pass(20 * S);
    assert_eq!(stage.running(), Some(owner), "the site does not need the hub");
    stage.crash(owner);
    another_runs(&mut stage, bound(), owner);
    stage.twins_follow(5 * S);
    assert_eq!(stage.epochs(), [1, 2]);
}

#[test]
fn a_new_owner_without_internet_is_shown_once_its_line_is_back() {
    let (mut stage, owner) = running(Setup::default());
    stage.twins_follow(5 * S);
    let target = (owner + 1) % 3;
    stage.hub.lines[target].cut(true);
    stage.transfer(target);
    another_runs(&mut stage, 2 * S, owner);
    stage.pass(20 * S);
    // The old owner is in good order and knows that it is not its business any more.
    assert!(stage.devices.iter().all(|d| stage.hub.seen(&d.id).epoch == 1));
    stage.hub.lines[target].cut(false);
    stage.twins_follow(90 * S);
}

/// The owner loses the LAN but keeps its internet line, and goes on believing that it leads. A write that it has made
/// up its mind to do waits on the way until its successor has told the twins; then it reads and compares again.
#[test]
fn a_stale_owner_with_a_good_line_cannot_overwrite() {
    for seed in 1..=3 {
        let mut stage = Stage::new(Setup { seed, refresh: 2 * S, ..Setup::default() });
        for line in &stage.hub.lines {
            line.hold_writes(true);
        }
        let owner = stage.someone_runs(4 * S);
        stage.until(5 * S, "the owner is about to write", |s| s.hub.lines[owner].waiting() == 1);
        stage.isolate(owner);
        let second = another_runs(&mut stage, bound(), owner);
        stage.hub.lines[second].hold_writes(false);
        stage.twins_follow(10 * S);
        let (told, asked) = (stage.hub.memory.log().len(), stage.hub.lines[owner].asked());
        stage.hub.lines[owner].hold_writes(false);
        // `stage` checks at every step that no twin goes back.
        stage.until(S, "the old write is refused", |s| s.hub.lines[owner].overtaken() == 1);
        stage.pass(8 * S);
        assert!(stage.hub.lines[owner].asked() > asked + 3, "the stale owner looked at the twins again");
        assert_eq!((stage.running(), stage.knows(owner)), (Some(second), 1), "it knows nothing better");
        assert!(stage.twins_agree());
        stage.heal();
        stage.pass(8 * S);
        assert!(stage.twins_agree());
        assert_eq!(stage.hub.memory.log().len(), told, "nothing more was written by anybody");
    }
}

#[test]
fn after_any_trouble_somebody_owns_again_within_the_bound() {
    // Each kind of trouble by itself, longer than any time-out but those of calls in flight; `sweep` mixes them.
    type Trouble = fn(&mut Stage, usize);
    let troubles: [(&str, Trouble); 5] = [
        ("all links cut", |s, _| (0..3).for_each(|n| s.isolate(n))),
        ("the owner and a standby lose power", |s, owner| {
            s.crash(owner);
            s.crash((owner + 1) % 3);
        }),
        ("everybody loses power", |s, _| (0..3).for_each(|n| s.crash(n))),
        ("all sidecars die", |s, _| (0..3).for_each(|n| s.kill_sidecar(n))),
        ("one-way cuts in a ring", |s, _| (0..3).for_each(|n| s.cut_one_way(n, (n + 1) % 3))),
    ];
    for (what, trouble) in troubles {
        let (mut stage, owner) = running(Setup::default());
        trouble(&mut stage, owner);
        stage.pass(8 * S);
        stage.heal();
        for n in 0..3 {
            stage.start_if_down(n);
        }
        let limit = stage.site.timing.refusal() + bound() + 2 * S;
        let took = stage.until(limit, what, |s| s.running().is_some());
        println!("{what}: an owner after {took:?}");
    }
}

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

/// Answers that travel for long are worth what their questions were worth.
#[test]
fn the_owners_links_are_slow_and_then_cut() {
    for seed in 1..=6 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        stage.slow_links(owner, 140 * MS);
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

/// A workload that not even KILL ends: its fencer gives no receipt, and its device must not help to elect another owner.
#[test]
fn a_workload_that_cannot_be_ended_keeps_its_device_from_voting() {
    let (mut stage, owner) = running(Setup::default());
    let (other, dead) = ((owner + 1) % 3, (owner + 2) % 3);
    stage.ledger.stick(&stage.devices[owner].id, true);
    stage.crash(dead);
    // The other is alone and needs the vote of the device on which the workload still runs. Each time the link is mended
    // it asks for it, sometimes before the old owner asks for promises again.
    for round in 0..12 {
        stage.cut(owner, other);
        stage.pass(1700 * MS + 23 * MS * round);
        stage.heal();
        stage.pass(600 * MS);
        assert_eq!(stage.running(), Some(owner));
        assert_eq!(stage.epochs(), [1]);
    }
    stage.ledger.stick(&stage.devices[owner].id, false);
    stage.pass(5 * S);
    stage.someone_runs(3 * S);
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
