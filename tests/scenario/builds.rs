//! Stories of devices that do not run the same, where that is forbidden (`site.differing_builds = "block"`).

use quorate::ownership::record::{BuildPolicy, Cause};

use super::{MS, S, another_runs, bound, running};
use crate::stage::{Setup, Stage};

/// A site of so many devices that all run "1", and who owns.
fn strict(seed: u64, devices: usize) -> (Stage, usize) {
    let setup = Setup { seed, devices, builds: Some(BuildPolicy::Block), ..Setup::default() };
    let mut stage = Stage::new(setup);
    for n in 0..devices {
        stage.install(n, "1");
    }
    let owner = stage.someone_runs(4 * S);
    stage.until(3 * S, "all have said what they run", |s| {
        s.record().is_some_and(|record| record.builds.len() == devices)
    });
    (stage, owner)
}

fn standbys(stage: &Stage, owner: usize) -> Vec<usize> {
    (0..stage.devices.len()).filter(|n| *n != owner).collect()
}

/// Another build is put on a device, and its sidecar starts again with it.
fn update(stage: &mut Stage, n: usize, build: &str) {
    stage.leave(n);
    stage.until(10 * S, "it has left", |s| !s.sim.is_up(n));
    stage.install(n, build);
    stage.start(n);
    let id = stage.devices[n].id.clone();
    let build = format!("+{build}");
    stage.until(10 * S, "the site knows", |s| {
        s.record().is_some_and(|r| r.builds.get(&id).is_some_and(|said| said.build.ends_with(&build)))
    });
    stage.pass(S);
}

#[test]
fn a_device_that_runs_something_else_does_not_take_over() {
    for seed in 1..=4 {
        let (mut stage, owner) = strict(seed, 3);
        let rest = standbys(&stage, owner);
        // The one that would come first by its name.
        stage.install(rest[0], "2");
        stage.pass(2 * S);
        stage.crash(owner);
        assert_eq!(another_runs(&mut stage, bound() + S, owner), rest[1]);
    }
}

#[test]
fn the_only_one_that_is_left_does_not_own_if_it_differs() {
    let setup = Setup { builds: Some(BuildPolicy::Block), witnesses: vec![2], ..Setup::default() };
    let mut stage = Stage::new(setup);
    (0..3).for_each(|n| stage.install(n, "1"));
    let owner = stage.someone_runs(4 * S);
    stage.pass(2 * S);
    stage.install(1 - owner, "2");
    stage.pass(2 * S);
    stage.crash(owner);
    stage.pass(20 * S);
    assert_eq!(stage.running(), None);
    stage.install(1 - owner, "1");
    another_runs(&mut stage, bound() + S, owner);
}

#[test]
fn an_owner_that_changes_goes_on_and_does_not_come_back() {
    let (mut stage, owner) = strict(1, 3);
    stage.install(owner, "2");
    stage.pass(20 * S);
    assert_eq!((stage.running(), stage.epochs()), (Some(owner), vec![1]), "it is not ended for that");
    stage.kill_sidecar(owner);
    stage.start(owner);
    another_runs(&mut stage, bound() + S, owner);
}

#[test]
fn whoever_is_named_owns_whatever_it_runs() {
    let (mut stage, owner) = strict(1, 3);
    let to = standbys(&stage, owner)[1];
    stage.install(to, "2");
    stage.pass(2 * S);
    stage.transfer(to);
    stage.until(S, "it runs", |s| s.running() == Some(to));
    assert_eq!(stage.cause(), Some(Cause::HandedOver));
}

#[test]
fn a_device_that_cannot_tell_what_it_runs_does_not_own() {
    let (mut stage, owner) = strict(1, 3);
    let rest = standbys(&stage, owner);
    stage.kill_sidecar(rest[0]);
    *stage.devices[rest[0]].build.lock().expect("no panic") = None;
    stage.start(rest[0]);
    stage.pass(3 * S);
    stage.crash(owner);
    assert_eq!(another_runs(&mut stage, bound() + S, owner), rest[1]);
    // Once it can, it does.
    stage.install(rest[0], "1");
    stage.start(owner);
    stage.pass(2 * S);
    stage.transfer(rest[0]);
    stage.until(2 * S, "it runs", |s| s.running() == Some(rest[0]));
}

/// The whole way of `quorate update`, with the owner lost at any of its steps.
#[test]
fn at_every_step_of_an_update_in_turn_another_follows_a_lost_owner() {
    for devices in [3, 4, 5] {
        for lost_after in 0..devices {
            let (mut stage, owner) = strict(7, devices);
            let rest = standbys(&stage, owner);
            // Those that come first by their names are updated last.
            for n in rest.iter().rev().take(lost_after) {
                update(&mut stage, *n, "2");
                assert_eq!((stage.running(), stage.epochs()), (Some(owner), vec![1]));
            }
            stage.crash(owner);
            let follows = another_runs(&mut stage, bound() + S, owner);
            let updated = rest.iter().rev().take(lost_after).any(|n| *n == follows);
            assert_eq!(updated, 2 * lost_after > devices, "the site runs what most of its devices do");
        }
    }
}

#[test]
fn an_update_in_turn_changes_the_owner_once() {
    let (mut stage, owner) = strict(3, 3);
    let rest = standbys(&stage, owner);
    rest.iter().for_each(|n| update(&mut stage, *n, "2"));
    stage.transfer(rest[0]);
    stage.until(500 * MS, "it is handed over", |s| s.running() == Some(rest[0]));
    update(&mut stage, owner, "2");
    stage.pass(10 * S);
    assert_eq!((stage.running(), stage.epochs()), (Some(rest[0]), vec![1, 2]));
}

#[test]
fn a_site_at_rest_says_what_it_runs_once() {
    let (mut stage, owner) = strict(1, 3);
    stage.pass(2 * S);
    let before: Vec<u64> = stage.devices.iter().map(|device| device.disk.writes()).collect();
    stage.pass(60 * S);
    let after: Vec<u64> = stage.devices.iter().map(|device| device.disk.writes()).collect();
    assert_eq!((before, stage.running()), (after, Some(owner)));
}

#[test]
fn where_people_are_only_told_every_device_may_follow() {
    let setup = Setup { builds: Some(BuildPolicy::Warn), ..Setup::default() };
    let (mut stage, owner) = running(setup);
    standbys(&stage, owner)
        .into_iter()
        .enumerate()
        .for_each(|(i, n)| stage.install(n, &format!("{}", i + 2)));
    stage.pass(2 * S);
    stage.crash(owner);
    another_runs(&mut stage, bound() + S, owner);
}
