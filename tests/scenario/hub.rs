//! Stories of the IoT Hub: out of reach, back again, told by two at once.

use quorate::hub::memory::Trouble;

use super::{S, another_runs, bound, running};
use crate::stage::{Setup, Stage, hub::SimLine};

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

/// Each takeover and each handover costs the hub one update for each twin, and at most one request more.
#[test]
fn a_move_of_the_ownership_costs_the_hub_four_requests_at_most() {
    let (mut stage, mut owner) = running(Setup { refresh: 3600 * S, ..Setup::default() });
    stage.twins_follow(5 * S);
    let asked = |stage: &Stage| stage.hub.lines.iter().map(SimLine::asked).sum::<u64>();
    for round in 0..6 {
        // The site notes what the twins show.
        stage.pass(3 * S);
        let before = asked(&stage);
        if round % 2 == 0 {
            stage.crash(owner);
            let next = another_runs(&mut stage, bound(), owner);
            stage.twins_follow(5 * S);
            stage.start(owner);
            owner = next;
        } else {
            stage.transfer((owner + 1) % 3);
            owner = another_runs(&mut stage, 2 * S, owner);
            stage.twins_follow(5 * S);
        }
        stage.pass(3 * S);
        let requests = asked(&stage) - before;
        assert!((3..=4).contains(&requests), "round {round}: {requests} requests");
    }
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
fn a_new_owner_without_internet_is_shown_by_another_member() {
    let (mut stage, owner) = running(Setup::default());
    stage.twins_follow(5 * S);
    let target = (owner + 1) % 3;
    stage.hub.lines[target].cut(true);
    stage.transfer(target);
    another_runs(&mut stage, 2 * S, owner);
    stage.twins_follow(15 * S);
    // Handed back without a word more to the twins.
    let told = stage.hub.memory.log().len();
    stage.hub.lines[target].cut(false);
    stage.pass(60 * S);
    assert_eq!(stage.hub.memory.log().len(), told);
    stage.transfer(owner);
    another_runs(&mut stage, 2 * S, target);
    stage.twins_follow(5 * S);
    assert_eq!(stage.epochs(), [1, 2, 3]);
}

/// Two that mirror at once could only waste requests; still, one waits for the other.
#[test]
fn an_owner_that_has_asked_another_to_mirror_keeps_silent_until_it_takes_that_back() {
    for seed in 1..=3 {
        let (mut stage, owner) = running(Setup { seed, refresh: 2 * S, ..Setup::default() });
        stage.twins_follow(5 * S);
        stage.hub.lines[owner].cut(true);
        stage.until(20 * S, "another mirrors", |s| s.mirrors_for(owner).is_some());
        stage.hub.lines[owner].cut(false);
        let asked = stage.hub.lines[owner].asked();
        // There is something to write, and both could.
        stage.hub.memory.rollback(60 * S);
        assert!(!stage.twins_agree());
        stage.twins_follow(4 * S);
        assert!(stage.mirrors_for(owner).is_some(), "its line is not trusted yet");
        assert_eq!(stage.hub.lines[owner].asked(), asked);
        stage.until(20 * S, "it mirrors itself again", |s| s.mirrors_for(owner).is_none());
        stage.until(10 * S, "and looks after the twins", |s| s.hub.lines[owner].asked() > asked);
        assert_eq!(stage.epochs(), [1]);
    }
}

#[test]
fn a_hub_that_went_back_is_repaired_within_the_time_of_a_comparison() {
    for edge in [false, true] {
        let (mut stage, owner) = running(Setup { edge, refresh: 5 * S, ..Setup::default() });
        stage.pass(8 * S);
        stage.transfer((owner + 1) % 3);
        another_runs(&mut stage, 2 * S, owner);
        let right = |s: &Stage| s.twins_agree() && s.modules_agree();
        stage.until(10 * S, "all twins follow", right);
        for back in [S, 5 * S, 60 * S] {
            stage.hub.memory.rollback(back);
            stage.until(15 * S, "all twins are right again", right);
            stage.pass(S);
        }
        assert!(stage.hub.memory.rollbacks().iter().any(|rollback| rollback.lost > 3));
        assert_eq!(stage.epochs(), [1, 2], "on site nothing moved");
    }
}

/// The owner's own line fails and comes back again and again, and the ownership moves meanwhile.
#[test]
fn a_flapping_line_leaves_the_twins_right() {
    let (mut stage, owner) = running(Setup::default());
    stage.twins_follow(5 * S);
    for round in 0..6 {
        stage.hub.lines[owner].cut(round % 2 == 0);
        stage.pass(3 * S);
    }
    stage.hub.lines[owner].cut(true);
    stage.crash(owner);
    let second = another_runs(&mut stage, bound(), owner);
    stage.hub.lines[second].cut(true);
    stage.twins_follow(30 * S);
    assert_eq!(stage.epochs(), [1, 2], "no line of anybody's moves the ownership");
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
