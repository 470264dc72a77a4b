//! Stories of devices and sidecars that are lost, and of what is there when they return.

use quorate::ownership::record::Cause;

use super::{MS, S, another_runs, bound, running};
use crate::stage::{Setup, Stage};

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
    for seed in 1..=8 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        let killed = stage.sim.elapsed();
        stage.kill_sidecar(owner);
        another_runs(&mut stage, bound(), owner);
        // The workload is deaf to TERM; from its end on, only an election and a claim are waited for.
        let took = stage.sim.elapsed() - killed - stage.site.timing.kill_after();
        assert!(took < 60 * MS, "seed {seed}: {took:?}");
        assert_eq!(stage.cause(), Some(Cause::OwnerStopped));
        stage.start(owner);
        stage.pass(5 * S);
        assert_eq!(stage.epochs(), [1, 2]);
    }
}

#[test]
fn one_member_alone_hears_the_fencer_of_a_dead_sidecar() {
    for seed in 1..=8 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        let deaf = (owner + 1 + usize::try_from(seed % 2).expect("small")) % 3;
        let killed = stage.sim.elapsed();
        stage.kill_sidecar(owner);
        stage.cut(owner, deaf);
        another_runs(&mut stage, bound(), owner);
        // The other one must be shown the receipt, and may be the first in rank.
        let took = stage.sim.elapsed() - killed - stage.site.timing.kill_after();
        assert!(took < 120 * MS, "seed {seed}: {took:?}");
        assert_eq!(stage.cause(), Some(Cause::OwnerStopped));
    }
}

#[test]
fn nobody_hears_the_fencer_of_a_dead_sidecar() {
    let (mut stage, owner) = running(Setup::default());
    stage.kill_sidecar(owner);
    stage.isolate(owner);
    another_runs(&mut stage, bound(), owner);
    assert_eq!(stage.cause(), Some(Cause::OwnerLost), "the promise was waited out, as ever");
}

#[test]
fn the_owners_sidecar_restarts_at_once() {
    let (mut stage, owner) = running(Setup::default());
    stage.kill_sidecar(owner);
    stage.start(owner);
    stage.until(bound() + S, "a new ownership", |s| s.epochs().len() == 2);
    // Its claim and that of another member, who has heard its fencer, may come one after the other.
    assert!(stage.epochs()[1] > 1, "a restarted sidecar never resumes its epoch");
}

/// Nobody has taken over meanwhile, so the record still names the owner of before the power cut.
#[test]
fn an_owner_that_was_switched_off_never_resumes_its_epoch() {
    for seed in 1..=4 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        stage.pass(3 * S);
        (0..3).for_each(|n| stage.crash(n));
        stage.pass(S);
        stage.start(owner);
        stage.start((owner + 1) % 3);
        stage.someone_runs(bound() + S);
        assert_eq!(stage.epoch(), 2, "an epoch has one life");
    }
}

/// In the term in which it led it may have sent an entry that it has lost itself.
#[test]
fn a_leader_that_restarts_leads_no_more() {
    let (mut stage, owner) = running(Setup::default());
    stage.pass(3 * S);
    assert!(stage.leads(owner));
    (0..3).for_each(|n| stage.crash(n));
    stage.start(owner);
    for _ in 0..100 {
        stage.pass(10 * MS);
        assert!(!stage.leads(owner), "nobody has elected it in this life");
    }
    (0..3).for_each(|n| stage.start_if_down(n));
    stage.someone_runs(4 * S);
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

/// A workload that not even KILL ends: its fencer gives no receipt, and its device must not help to elect another owner. It
/// was deposed by a leader that died before it could claim, so it asks for no promises any more, and its vote decides.
#[test]
fn a_workload_that_cannot_be_ended_keeps_its_device_from_voting() {
    for seed in 1..=4 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        stage.pass(3 * S);
        // Slow enough that the vote and the claim can be told apart.
        for n in 0..3 {
            stage.slow_disk(n, 20 * MS, false);
        }
        stage.devices[owner].fencer.stick(true);
        stage.isolate(owner);
        let leads = |s: &Stage| (0..3).filter(|n| *n != owner).find(|n| s.leads(*n));
        stage.until(2 * S, "another is elected", |s| leads(s).is_some());
        let elected = leads(&stage).expect("just seen");
        stage.crash(elected);
        stage.heal();
        stage.pass(5 * S);
        assert_eq!(stage.running(), Some(owner));
        assert_eq!(stage.epochs(), [1]);
        stage.devices[owner].fencer.stick(false);
        stage.someone_runs(3 * S);
    }
}
