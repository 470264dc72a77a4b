//! Histories in which P5 is broken: its checks must notice each, and must not be fooled by a rollback beside it.

use std::time::Duration;

use quorate::clock::Moment;

use crate::{
    promise::p5_twin::{Shown, one_writer},
    stage::calls::Patch,
};

fn at(second: u64) -> Moment {
    Moment::from_nanos(second * 1_000_000_000)
}

fn shown(epochs: &[(u64, u64)]) -> Shown {
    let mut shown = Shown::default();
    for (second, epoch) in epochs {
        shown.shows(at(*second), "a", "edge-1", *epoch, false).expect("only grows");
    }
    shown
}

#[test]
fn an_epoch_that_goes_back_is_noticed() {
    assert!(shown(&[(1, 3), (2, 4)]).shows(at(3), "a", "edge-1", 3, false).is_err());
    assert!(shown(&[(1, 3), (2, 4)]).shows(at(3), "b", "edge-2", 3, false).is_ok(), "another twin");
}

#[test]
fn a_rollback_excuses_what_it_has_lost_and_nothing_else() {
    let history = [(1, 3), (5, 4), (9, 6)];
    let after = |to, epoch| {
        let mut shown = shown(&history);
        shown.rolled_back(at(to));
        shown.shows(at(10), "a", "edge-1", epoch, false)
    };
    assert!(after(6, 4).is_ok() && after(6, 5).is_ok(), "and it may be repaired at once");
    assert!(after(6, 3).is_err(), "it showed more at that moment");
    assert!(after(9, 4).is_err(), "nothing was lost");
    assert!(after(0, 0).is_ok(), "everything was lost");
    let mut shown = shown(&history);
    shown.rolled_back(at(6));
    shown.shows(at(11), "a", "edge-1", 6, false).expect("repaired");
    assert!(shown.shows(at(12), "a", "edge-1", 4, false).is_err(), "an old rollback excuses nothing new");
}

#[test]
fn two_that_are_active_under_one_epoch_are_noticed() {
    let mut shown = Shown::default();
    shown.shows(at(1), "a", "edge-1", 3, true).expect("one is");
    shown.shows(at(1), "a'", "edge-1", 3, true).expect("in its other twin too");
    shown.shows(at(2), "b", "edge-2", 4, true).expect("another epoch");
    assert!(shown.shows(at(3), "c", "edge-3", 4, true).is_err());
    shown.rolled_back(at(0));
    assert!(shown.shows(at(4), "b", "edge-2", 3, true).is_err(), "no rollback makes that right");
}

#[test]
fn two_writers_are_noticed() {
    let second = Duration::from_secs(1);
    let write = |n, epoch, begun| (n, Patch { epoch, begun: second * begun });
    let check = |writes: &[_]| one_writer(writes, second * 5);
    assert!(check(&[write(0, 3, 6), write(1, 3, 7)]).is_err());
    assert!(check(&[write(0, 3, 7), write(1, 4, 7), write(2, 3, 6)]).is_err());
    assert!(check(&[write(0, 3, 6), write(1, 4, 6)]).is_ok(), "one knows no better");
    assert!(check(&[write(0, 3, 4), write(1, 3, 7)]).is_ok(), "one began before it could know");
    assert!(check(&[write(0, 3, 6)]).is_ok());
}
