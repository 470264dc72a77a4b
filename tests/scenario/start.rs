//! Stories of beginnings: who starts first, who comes late, who is killed again and again.

use std::time::Duration;

use super::S;
use crate::stage::{Setup, Stage};

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
