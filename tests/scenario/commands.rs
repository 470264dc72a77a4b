//! Stories of what people order: pause, drain, prefer. That a paused or drained site still keeps its promises, and has an
//! owner whenever it may have one, is checked at every millisecond, as in all stories.

use quorate::{
    clock::Clock as _,
    id::DeviceId,
    ownership::{
        command::{self, Command, RaiseFloor},
        record::Cause,
    },
    reconcile::commands::{Fulfilled, Order, Refusal, Wish},
};

use std::time::Duration;

use super::{MS, S, another_runs, bound, running};
use crate::stage::{Setup, Stage, world::Freeze};

fn other(stage: &Stage, than: usize) -> usize {
    (than + 1) % stage.devices.len()
}

/// A paused site of three; who owns.
fn paused(seed: u64) -> (Stage, usize) {
    let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
    stage.order(other(&stage, owner), Command::Pause);
    stage.until(S, "the site is paused", |s| s.record().is_some_and(|r| r.paused.is_some()));
    stage.pass(S);
    (stage, owner)
}

#[test]
fn while_paused_nobody_takes_over_until_somebody_resumes() {
    for seed in 1..=3 {
        let (mut stage, owner) = paused(seed);
        stage.crash(owner);
        stage.pass(60 * S);
        assert_eq!((stage.running(), stage.epochs()), (None, vec![1]));
        let at = other(&stage, owner);
        stage.order(at, Command::Resume);
        let took = stage.until(2 * S, "another runs", |s| s.running().is_some());
        assert!(took < 500 * MS, "everything else has long been waited for, but it took {took:?}");
    }
}

/// What a person at the command line wants.
fn wanted(order: Order) -> Wish {
    Wish {
        id: None,
        order,
        reason: "new switch".into(),
        actor: "anna".into(),
        base: None,
        expires_unix_ms: 0,
    }
}

/// Somebody at the command line orders something; what is said to that, and after how long.
fn asked(stage: &mut Stage, at: usize, order: Order) -> (Result<Fulfilled, Refusal>, Duration) {
    let came = stage.devices[at].came.clone();
    let said = || came.lock().expect("no panic").clone();
    let before = said().len();
    stage.wish(at, wanted(order));
    let took = stage.until(90 * S, "an answer", |_| said().len() > before);
    (said()[before].clone(), took)
}

/// Somebody pauses the site for a time, as at the command line.
fn pause_for(stage: &mut Stage, at: usize, lasts: Duration) {
    stage.wish(at, wanted(Order::Pause(Some(lasts))));
    stage.until(S, "the site is paused", |s| s.record().is_some_and(|r| r.paused.is_some()));
}

#[test]
fn a_pause_for_a_time_ends_by_itself_and_another_takes_over() {
    for seed in 1..=3 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        let at = other(&stage, owner);
        pause_for(&mut stage, at, 60 * S);
        stage.pass(10 * S);
        stage.crash(owner);
        stage.pass(45 * S);
        assert_eq!((stage.running(), stage.epochs()), (None, vec![1]), "it is still paused");
        let took = stage.until(8 * S, "another runs", |s| s.running().is_some());
        assert!(took > 3 * S, "a minute is not over yet: {took:?}");
        assert!(stage.record().is_some_and(|r| r.paused.is_none()));
    }
}

#[test]
fn a_pause_for_a_time_outlives_every_restart_and_ends() {
    let (mut stage, owner) = running(Setup::default());
    pause_for(&mut stage, owner, 60 * S);
    (0..3).for_each(|n| stage.crash(n));
    stage.pass(S);
    (0..3).for_each(|n| stage.start(n));
    assert_eq!(stage.someone_runs(bound() * 2 + S), owner);
    stage.pass(40 * S);
    assert!(stage.record().is_some_and(|r| r.paused.as_ref().is_some_and(|p| p.until_unix_ms.is_some())));
    stage.until(25 * S, "the pause ends", |s| s.record().is_some_and(|r| r.paused.is_none()));
    assert_eq!(stage.running(), Some(owner), "and nothing moves");
}

/// Nobody is there to hand over: that is said at once, and what to do.
#[test]
fn a_handover_in_a_paused_site_without_owner_is_refused_at_once() {
    for leaves in [false, true] {
        let (mut stage, owner) = paused(1);
        match leaves {
            true => stage.leave(owner),
            false => stage.crash(owner),
        }
        // Also right after the loss, when it was heard a moment ago.
        for pass in [200 * MS, 20 * S] {
            stage.pass(pass);
            let target = other(&stage, owner);
            for to in [None, Some(stage.devices[target].id.clone())] {
                let (said, took) = asked(&mut stage, target, Order::Transfer(to));
                let Err(Refusal::NotNow(why)) = said else { panic!("{said:?}") };
                let named = why.contains(stage.devices[owner].id.as_str()) && why.contains("by anna");
                assert!(named && why.contains("`quorate resume`"), "{why}");
                assert!(took <= 2 * S, "{took:?}");
            }
        }
        assert_eq!((stage.running(), stage.epochs()), (None, vec![1]));
        let at = other(&stage, owner);
        let (said, _) = asked(&mut stage, at, Order::Resume);
        said.expect("is done");
        assert_ne!(stage.someone_runs(bound() + S), owner, "the advice helps");
    }
}

/// As above, and the owner's device is back, where its workload cannot work.
#[test]
fn a_handover_from_an_owner_that_came_back_sick_is_refused_at_once() {
    let (mut stage, owner) = paused(1);
    stage.kill_sidecar(owner);
    stage.start(owner);
    // It is up, and does not vote yet.
    stage.pass(50 * MS);
    stage.ails(owner, Some("its disk is gone"));
    stage.pass(S);
    assert_eq!(stage.running(), None);
    for at in [owner, other(&stage, owner)] {
        let (said, took) = asked(&mut stage, at, Order::Transfer(None));
        let Err(Refusal::NotNow(why)) = said else { panic!("{said:?}") };
        assert!(why.contains("its disk is gone") && took <= S, "{why}, {took:?}");
    }
    stage.ails(owner, None);
    assert_eq!(stage.someone_runs(bound() * 2 + S), owner);
}

#[test]
fn a_handover_to_whoever_owns_is_done_already() {
    for is_paused in [false, true] {
        let (mut stage, owner) = if is_paused { paused(1) } else { running(Setup::default()) };
        let to = stage.devices[owner].id.clone();
        for at in [owner, other(&stage, owner)] {
            let (said, _) = asked(&mut stage, at, Order::Transfer(Some(to.clone())));
            let epoch = stage.record().expect("somebody is up").epoch;
            assert_eq!(said, Ok(Fulfilled { repeated: true, epoch, owner: Some(to.clone()) }));
        }
        stage.pass(10 * S);
        assert_eq!((stage.running(), stage.epochs()), (Some(owner), vec![1]));
        let (said, took) = asked(&mut stage, owner, Order::Transfer(None));
        let next = said.expect("is done");
        assert!(!next.repeated && next.owner.is_some_and(|next| next != to) && took < 2 * S, "{took:?}");
    }
}

/// A wall clock that is wrong ends a pause early or late, and that is all.
#[test]
fn a_pause_ends_by_the_wall_clock_of_whoever_leads() {
    let (mut stage, owner) = running(Setup::default());
    let now = stage.devices[owner].clock.wall_ms();
    stage.order(owner, |order| Command::Pause(command::Order { until_unix_ms: Some(now + 20_000), ..order }));
    stage.until(S, "the site is paused", |s| s.record().is_some_and(|r| r.paused.is_some()));
    (0..3).for_each(|n| stage.set_wall_clock(n, 0));
    stage.pass(60 * S);
    assert!(stage.record().is_some_and(|r| r.paused.is_some()), "no clock shows its end");
    // Set right again, some minutes late.
    (0..3).for_each(|n| stage.set_wall_clock(n, now + 300_000));
    stage.until(3 * S, "the pause ends", |s| s.record().is_some_and(|r| r.paused.is_none()));
    assert_eq!((stage.running(), stage.epochs()), (Some(owner), vec![1]));
}

#[test]
fn while_paused_the_owners_device_comes_back_as_owner() {
    for seed in 1..=3 {
        for away in [MS, S, 30 * S] {
            let (mut stage, owner) = paused(seed);
            stage.crash(owner);
            stage.pass(away);
            stage.start(owner);
            assert_eq!(stage.someone_runs(bound() * 2 + S), owner);
            assert_eq!(stage.cause(), Some(Cause::OwnerRestarted));
            stage.pass(10 * S);
            assert_eq!(stage.epochs(), [1, 2], "it stays");
        }
    }
}

#[test]
fn while_paused_an_owner_that_leaves_names_nobody_and_comes_back() {
    let (mut stage, owner) = paused(1);
    stage.leave(owner);
    stage.pass(20 * S);
    assert_eq!(stage.running(), None);
    stage.start(owner);
    assert_eq!(stage.someone_runs(bound() * 2 + S), owner);
}

#[test]
fn while_paused_the_lease_is_as_strict_as_ever() {
    let (mut stage, owner) = paused(1);
    stage.isolate(owner);
    stage.until(bound(), "the workload stops", |s| s.running().is_none());
    stage.pass(10 * S);
    stage.heal();
    assert_eq!(stage.someone_runs(bound() * 2 + S), owner, "and it goes on once it is heard again");
}

#[test]
fn while_paused_a_person_may_hand_over() {
    let (mut stage, owner) = paused(1);
    let target = other(&stage, owner);
    stage.transfer(target);
    stage.until(S, "the target runs", |s| s.running() == Some(target));
    stage.crash(target);
    stage.pass(10 * S);
    assert_eq!(stage.running(), None, "the pause goes on");
}

#[test]
fn a_handover_that_fails_while_paused_comes_back_to_the_owner() {
    let (mut stage, owner) = paused(1);
    let target = other(&stage, owner);
    stage.transfer(target);
    stage.pass(3 * MS);
    stage.crash(target);
    stage.until(4 * S, "the old owner runs again", |s| s.running() == Some(owner) && s.epoch() > 1);
    stage.pass(5 * S);
}

#[test]
fn a_paused_site_without_owner_elects_now_and_then_at_most() {
    let (mut stage, owner) = paused(2);
    stage.crash(owner);
    stage.pass(10 * S);
    let begun = |s: &Stage| (0..3).filter(|n| *n != owner).map(|n| s.elections(n)).sum::<u64>();
    let before = begun(&stage);
    stage.pass(300 * S);
    assert!(begun(&stage) - before <= 12, "{} elections in five minutes", begun(&stage) - before);
}

#[test]
fn a_drained_owner_hands_over_and_owns_no_more() {
    for seed in 1..=3 {
        let (mut stage, owner) = running(Setup { seed, ..Setup::default() });
        stage.drain(other(&stage, owner), owner);
        let next = another_runs(&mut stage, S, owner);
        assert_eq!(stage.cause(), Some(Cause::HandedOver), "planned");
        stage.crash(next);
        let third = another_runs(&mut stage, bound() + S, next);
        assert_ne!(third, owner);
        stage.start(next);
        stage.pass(10 * S);
        stage.drain(next, next);
        stage.pass(2 * S);
        stage.crash(third);
        stage.pass(20 * S);
        assert_eq!(stage.running(), None, "both others are drained");
        stage.undrain(next, owner);
        stage.until(2 * S, "the one that may again", |s| s.running() == Some(owner));
    }
}

#[test]
fn a_drained_owner_goes_on_while_nobody_could_follow() {
    let (mut stage, owner) = running(Setup { devices: 3, witnesses: vec![2], ..Setup::default() });
    stage.crash(1 - owner);
    stage.pass(5 * S);
    let before = stage.epochs();
    stage.drain(owner, owner);
    stage.pass(10 * S);
    assert_eq!((stage.running(), stage.epochs()), (Some(owner), before));
    stage.kill_sidecar(owner);
    stage.start(owner);
    stage.until(bound() * 2, "its restarted sidecar runs", |s| s.running() == Some(owner));
    stage.start(1 - owner);
    stage.until(bound() * 3, "the other one runs", |s| s.running() == Some(1 - owner));
}

#[test]
fn a_drain_of_the_owner_waits_for_the_end_of_a_pause() {
    let (mut stage, owner) = paused(1);
    stage.drain(owner, owner);
    stage.pass(10 * S);
    assert_eq!((stage.running(), stage.epochs()), (Some(owner), vec![1]));
    stage.order(owner, Command::Resume);
    another_runs(&mut stage, S, owner);
}

#[test]
fn a_paused_owner_that_was_drained_comes_back_as_owner_however_its_sidecar_ended() {
    for orderly in [true, false] {
        let (mut stage, owner) = paused(1);
        stage.drain(owner, owner);
        stage.pass(S);
        match orderly {
            true => stage.leave(owner),
            false => stage.kill_sidecar(owner),
        }
        stage.pass(10 * S);
        assert_eq!(stage.running(), None, "nobody follows while the site is paused");
        stage.start(owner);
        stage.until(bound() * 2 + S, "it goes on", |s| s.running() == Some(owner));
        stage.order(owner, Command::Resume);
        another_runs(&mut stage, bound() + S, owner);
    }
}

#[test]
fn the_preferred_device_follows_and_nothing_moves_before() {
    for seed in 1..=3 {
        for leaves in [false, true] {
            let setup = Setup { seed, devices: 5, ..Setup::default() };
            let (mut stage, owner) = running(setup);
            let preferred = if owner == 4 { 3 } else { 4 };
            stage.prefer(preferred, preferred);
            stage.pass(20 * S);
            assert_eq!(stage.epochs(), [1], "no failback");
            match leaves {
                true => stage.leave(owner),
                false => stage.crash(owner),
            }
            assert_eq!(another_runs(&mut stage, bound() + S, owner), preferred);
        }
    }
}

#[test]
fn orders_outlive_every_restart() {
    let (mut stage, owner) = paused(1);
    stage.drain(owner, other(&stage, owner));
    stage.prefer(owner, owner);
    stage.pass(S);
    (0..3).for_each(|n| stage.crash(n));
    stage.pass(S);
    (0..3).for_each(|n| stage.start(n));
    assert_eq!(stage.someone_runs(bound() * 2 + S), owner);
    let record = stage.record().expect("somebody is up");
    assert!(record.paused.is_some() && record.drained.len() == 1 && record.preferred.is_some());
}

#[test]
fn an_epoch_seen_in_a_twin_raises_the_next_and_moves_nothing() {
    let (mut stage, owner) = running(Setup::default());
    let above = quorate::epoch::Epoch::new(500).expect("small");
    let seen_in = stage.devices[0].id.to_string();
    stage.order(owner, |_| Command::RaiseFloor(RaiseFloor { above, seen_in }));
    stage.pass(10 * S);
    assert_eq!((stage.running(), stage.epochs()), (Some(owner), vec![1]));
    stage.crash(owner);
    another_runs(&mut stage, bound() + S, owner);
    assert_eq!(stage.epochs(), [1, 501]);
}

#[test]
fn an_order_for_a_stranger_changes_nothing() {
    let (mut stage, owner) = running(Setup::default());
    let before = stage.record();
    let device = DeviceId::new("edge-99").expect("a name");
    stage.order(owner, |order| {
        Command::Drain(quorate::ownership::command::Drain { order, device: device.clone() })
    });
    stage.pass(2 * S);
    assert_eq!(stage.record(), before);
}

/// Whoever froze while it owned thaws into a paused site: it stops, and owns again by itself.
#[test]
fn a_frozen_owner_of_a_paused_site() {
    let (mut stage, owner) = paused(3);
    stage.freeze(owner, Freeze::Sidecar);
    stage.pass(5 * S);
    assert_eq!(stage.running(), None);
    stage.thaw(owner);
    assert_eq!(stage.someone_runs(bound() * 2 + S), owner);
}

/// A hub that gives its twins etags of six kilobytes. Whatever it says, the site goes on agreeing.
#[test]
fn no_etag_keeps_the_site_from_agreeing() {
    let (mut stage, owner) = running(Setup::default());
    let by = stage.devices[owner].id.clone();
    let etags = stage.devices.iter().map(|d| (d.id.clone(), "A".repeat(6_000))).collect();
    let epoch = quorate::epoch::Epoch::new(1).expect("small");
    stage.order(owner, |_| {
        Command::ConfirmMirror(quorate::ownership::command::ConfirmMirror { epoch, by, etags, at_unix_ms: 0 })
    });
    stage.pass(5 * S);
    stage.order(owner, Command::Pause);
    stage.until(20 * S, "the site is paused", |s| s.record().is_some_and(|r| r.paused.is_some()));
}

/// The same, and then one of three is away and the owner's sidecar restarts: two are a majority.
#[test]
fn no_etag_keeps_a_majority_from_having_an_owner() {
    for length in [12, 6_000] {
        let (mut stage, owner) = running(Setup::default());
        let by = stage.devices[owner].id.clone();
        let etags = stage.devices.iter().map(|d| (d.id.clone(), "A".repeat(length))).collect();
        let epoch = quorate::epoch::Epoch::new(1).expect("small");
        let at_unix_ms = 0;
        let confirm = quorate::ownership::command::ConfirmMirror { epoch, by, etags, at_unix_ms };
        stage.order(owner, |_| Command::ConfirmMirror(confirm));
        stage.pass(5 * S);
        let third = other(&stage, other(&stage, owner));
        stage.crash(third);
        stage.pass(S);
        stage.kill_sidecar(owner);
        stage.start(owner);
        let took = stage.until(60 * S, "it runs anew", |s| s.epoch() > 1 && s.running().is_some());
        println!("etags of {length}: {took:?}");
    }
}
