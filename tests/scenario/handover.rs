//! Stories of planned handovers, and of what may come between.

use super::{MS, S, another_runs, bound, running};
use crate::stage::Setup;

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
