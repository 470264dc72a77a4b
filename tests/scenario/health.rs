//! Stories of devices that are up, and of which one is better off than another: who sees the plant owns, and nothing moves for a
//! flicker, or when nobody is better.

use quorate::{
    dice::Dice,
    ownership::{
        moves::{Policy, Window},
        record::Cause,
        told::{Told, Work},
    },
};

use super::{MS, S, another_runs, bound, running};
use crate::stage::{Setup, Stage};

fn setup(seed: u64) -> Setup {
    Setup { seed, health: Some(Policy::default()), ..Setup::default() }
}

#[test]
fn a_device_that_does_not_see_the_plant_does_not_own_while_another_does() {
    for seed in 1..=2 {
        for sees in 0..3 {
            let mut stage = Stage::new(setup(seed));
            (0..3).for_each(|n| stage.plant(n, n == sees));
            assert_eq!(stage.someone_runs(4 * S), sees, "it is the first owner, seed {seed}");
            stage.pass(7 * S);
            assert_eq!(stage.epochs(), [1]);
            stage.crash(sees);
            let next = another_runs(&mut stage, bound() + S, sees);
            stage.pass(7 * S);
            assert_eq!(stage.running(), Some(next), "it is as good as the other");
            stage.start(sees);
            stage.until(15 * S, "the one that sees the plant owns", |s| s.running() == Some(sees));
            assert_eq!(stage.cause(), Some(Cause::HandedOver));
            stage.pass(8 * S);
            assert_eq!(stage.epochs(), [1, 2, 3]);
        }
    }
}

#[test]
fn the_owner_that_loses_sight_of_the_plant_hands_over_once() {
    for seed in 1..=2 {
        let (mut stage, owner) = running(setup(seed));
        stage.pass(3 * S);
        stage.plant(owner, false);
        stage.pass(6 * S);
        assert_eq!(stage.epochs(), [1], "it has to last");
        let next = another_runs(&mut stage, 4 * S, owner);
        assert_eq!(stage.cause(), Some(Cause::HandedOver));
        stage.plant(owner, true);
        stage.pass(30 * S);
        assert_eq!(
            (stage.running(), stage.epochs()),
            (Some(next), vec![1, 2]),
            "it does not come back by itself"
        );
    }
}

#[test]
fn nothing_moves_when_all_are_equally_badly_off() {
    for seed in 1..=2 {
        let (mut stage, owner) = running(setup(seed));
        for n in [owner, (owner + 1) % 3, (owner + 2) % 3] {
            stage.plant(n, false);
            stage.pass(300 * MS);
        }
        stage.pass(20 * S);
        assert_eq!((stage.running(), stage.epochs()), (Some(owner), vec![1]));
    }
}

#[test]
fn a_workload_that_fails_everywhere_is_tried_everywhere_once_and_goes_on() {
    for seed in 1..=2 {
        let (mut stage, _) = running(setup(seed));
        (0..3).for_each(|n| stage.works(n, false));
        stage.pass(30 * S);
        let owner = stage.running().expect("one that hangs is better than none");
        assert_eq!(stage.epochs(), [1, 2, 3]);
        stage.pass(20 * S);
        assert_eq!((stage.running(), stage.epochs()), (Some(owner), vec![1, 2, 3]));
    }
}

#[test]
fn nothing_moves_while_the_site_is_paused() {
    let (mut stage, owner) = running(setup(1));
    stage.order(owner, quorate::ownership::command::Command::Pause);
    stage.pass(S);
    stage.plant(owner, false);
    stage.works(owner, false);
    stage.pass(12 * S);
    assert_eq!((stage.running(), stage.epochs()), (Some(owner), vec![1]));
    stage.order(owner, quorate::ownership::command::Command::Resume);
    another_runs(&mut stage, 2 * S, owner);
}

#[test]
fn a_workload_that_fails_its_probe_is_given_to_another_device() {
    for seed in 1..=2 {
        let (mut stage, owner) = running(setup(seed));
        stage.works(owner, false);
        let second = another_runs(&mut stage, 5 * S, owner);
        assert_eq!(stage.cause(), Some(Cause::HandedOver));
        stage.crash(second);
        let third = another_runs(&mut stage, bound() + S, second);
        assert_ne!(third, owner, "it failed there a moment ago");
        stage.crash(third);
        stage.start(second);
        stage.until(20 * S, "somebody runs it, and a workload that hangs is better than none", |s| {
            s.running().is_some()
        });
    }
}

/// Plant and workload flicker on every device, at random. The site changes its owner as often as it is allowed, and no more.
fn flicker(minutes: u64, changes_per_hour: u32) {
    let mut dice = Dice::new(9);
    let policy = Policy { changes_per_hour, ..Policy::default() };
    let (mut stage, _) = running(Setup { refresh: 3600 * S, health: Some(policy), ..setup(5) });
    for _ in 0..minutes * 4 {
        for n in 0..3 {
            stage.plant(n, dice.throw().is_multiple_of(2));
            stage.works(n, !dice.throw().is_multiple_of(3));
        }
        stage.pass(15 * S);
    }
    assert_eq!(stage.epochs().len() - 1, changes_per_hour as usize, "{:?}", stage.epochs());
    // Whoever is lost is replaced all the same.
    let owner = stage.running().expect("somebody owns");
    stage.crash(owner);
    another_runs(&mut stage, bound() + S, owner);
}

#[test]
fn some_minutes_of_flicker_stay_inside_the_budget() {
    flicker(4, 2);
}

#[test]
#[ignore = "an hour, millisecond by millisecond, takes some minutes"]
fn an_hour_of_flicker_stays_inside_the_budget() {
    flicker(60, 6);
}

#[test]
fn it_goes_back_to_the_preferred_device_in_the_window_only() {
    // The stage's wall clocks begin at 08:00 UTC.
    for (window, back) in [(Window::new(8 * 60, 9 * 60), true), (Window::new(20 * 60, 21 * 60), false)] {
        let policy = Policy { failback: window, failback_after: 15 * S, ..Policy::default() };
        let (mut stage, owner) = running(Setup { health: Some(policy), ..setup(2) });
        let other = (owner + 1) % 3;
        stage.prefer(owner, other);
        stage.pass(10 * S);
        assert_eq!(stage.epochs(), [1], "not before it was well for long");
        stage.pass(10 * S);
        let expected = if back { (Some(other), vec![1, 2]) } else { (Some(owner), vec![1]) };
        assert_eq!((stage.running(), stage.epochs()), expected, "{window:?}");
        stage.pass(30 * S);
        assert_eq!((stage.running(), stage.epochs()), expected, "{window:?}");
    }
}

/// What device `at` knows of what `of` says of itself.
fn told(stage: &Stage, at: usize, of: usize) -> Told {
    let roster = stage.roster(at).expect("is up");
    roster.contact(&stage.devices[of].id).unwrap_or_default().told
}

#[test]
fn every_device_knows_what_is_wrong_with_any_other_and_what_the_owners_workload_does() {
    let name = |name: &str| vec![name.to_owned()];
    for seed in 1..=2 {
        let (mut stage, owner) = running(setup(seed));
        let (next, third) = ((owner + 1) % 3, (owner + 2) % 3);
        let knows = move |s: &Stage, of: usize, work, names: &[String]| {
            let others = (0..3).filter(|at| *at != of);
            let wanted = Told { work: Some(work), conditions: names.to_vec() };
            others.map(|at| told(s, at, of)).all(|told| told == wanted)
        };
        let says = |s: &Stage, n: usize, names| s.roster(n).expect("is up").declare_conditions(names);
        assert!(knows(&stage, owner, Work::Running, &[]) && knows(&stage, third, Work::Stopped, &[]));
        // An owner says it with its next questions, a standby with its next answer, and to the other standby when they next speak.
        says(&stage, owner, name("workload.crashing"));
        stage.until(300 * MS, "the owner's trouble is known", |s| {
            knows(s, owner, Work::Running, &name("workload.crashing"))
        });
        says(&stage, third, name("plant.unseen"));
        stage.until(2200 * MS, "a standby's trouble is known", |s| {
            knows(s, third, Work::Stopped, &name("plant.unseen"))
        });
        // What a link that fails has swallowed is said again once it is mended, and what is over is over.
        stage.isolate(third);
        stage.pass(2 * S);
        says(&stage, owner, Vec::new());
        stage.pass(2 * S);
        assert_eq!(told(&stage, third, owner).conditions, name("workload.crashing"), "it cannot have heard");
        stage.heal();
        stage.until(4 * S, "the end of it is known", |s| knows(s, owner, Work::Running, &[]));
        stage.transfer(next);
        stage.until(2 * S, "the other runs it", |s| s.running() == Some(next));
        stage.until(300 * MS, "that is known everywhere", |s| knows(s, next, Work::Running, &[]));
        stage.until(2200 * MS, "and that it has ended before", |s| knows(s, owner, Work::Stopped, &[]));
    }
}
