//! Attacks on what is promised of moves between devices.

use quorate::ownership::{
    command::{self, Command},
    moves::Policy,
    record::Cause,
};

use super::{MS, S, another_runs, bound, running};
use crate::stage::{Setup, Stage};

fn setup(seed: u64) -> Setup {
    Setup { seed, health: Some(Policy::default()), ..Setup::default() }
}

/// Changes of epoch and the time that nobody ran, over `minutes`.
fn watch(stage: &mut Stage, seconds: u32) -> (usize, u32) {
    let (before, mut without) = (stage.epochs().len(), 0);
    for _ in 0..seconds * 100 {
        stage.pass(10 * MS);
        without += u32::from(stage.running().is_none()) * 10;
    }
    (stage.epochs().len() - before, without)
}

/// The only device that could follow has lost its fencer, and the owner is worse off from here on.
fn stays_with_the_owner(worse: fn(&Stage, usize)) {
    let (mut stage, owner) = running(Setup { witnesses: vec![2], ..setup(1) });
    stage.devices[1 - owner].fencer.lose();
    stage.pass(2 * S);
    worse(&stage, owner);
    let (changes, without) = watch(&mut stage, 120);
    assert_eq!(changes, 0, "in two minutes, {without} ms without an owner: {:?}", stage.epochs());
}

/// A standby whose workload is not confirmed stopped cannot claim, yet passes for fit: the owner that sees less of the plant gives
/// way to it, takes over again when it does not follow, and so on.
#[test]
fn nobody_gives_way_again_and_again_to_a_device_that_cannot_take_over() {
    stays_with_the_owner(|stage, owner| stage.plant(owner, false));
}

/// The same with a workload that fails its probe.
#[test]
fn a_failing_workload_is_not_stopped_again_and_again_for_a_device_that_cannot_take_over() {
    stays_with_the_owner(|stage, owner| stage.works(owner, false));
}

/// Drained, the owner goes on while nobody can follow.
#[test]
fn a_drained_owner_goes_on_while_the_only_other_cannot_take_over() {
    let (mut stage, owner) = running(Setup { witnesses: vec![2], ..Setup::default() });
    let other = 1 - owner;
    stage.devices[other].fencer.lose();
    stage.pass(2 * S);
    let id = stage.devices[owner].id.clone();
    stage.order(owner, |order| {
        quorate::ownership::command::Command::Drain(quorate::ownership::command::Drain {
            order,
            device: id.clone(),
        })
    });
    stage.pass(20 * S);
    assert_eq!(stage.running(), Some(owner));
}

/// A workload that asks: who was told that it may act is over before the next is, through handovers at every moment of a renewal.
#[test]
fn a_gate_is_handed_over_only_when_all_that_was_told_is_over() {
    for seed in 1..=2 {
        let (mut stage, mut owner) = running(Setup { gate: true, ..Setup::default() });
        for n in 0..8u32 {
            stage.pass(S + MS * (seed * 7 + n * 3));
            let to = (owner + 1) % 3;
            stage.transfer(to);
            stage.until(10 * S, "it is handed over", |s| s.running() == Some(to));
            owner = to;
        }
    }
}

/// The same with an owner whose sidecar stands still for a while again and again, so that it is renewed late and gives way.
#[test]
fn a_gate_of_a_device_that_stands_still_is_over_before_the_next() {
    for seed in 1..=3u32 {
        let (mut stage, _) = running(Setup { gate: true, seed: seed.into(), ..Setup::default() });
        for n in 0..30u32 {
            let Some(owner) = stage.running() else {
                stage.pass(S);
                continue;
            };
            stage.freeze(owner, crate::stage::world::Freeze::Sidecar);
            stage.pass(MS * (40 + (n * 17 + seed * 5) % 140));
            stage.thaw(owner);
            if n % 3 == 0 {
                stage.transfer((owner + 1) % 3);
            }
            stage.pass(MS * (100 + (n * 131 + seed * 29) % 900));
        }
    }
}

/// Where no device can run the workload (its program is missing everywhere, its socket is gone), there is nothing to elect anybody for.
#[test]
fn a_site_on_which_nobody_is_well_is_at_rest() {
    // Nobody can tell what it runs, so all ail.
    let builds = Some(quorate::ownership::record::BuildPolicy::Block);
    let mut stage = Stage::new(Setup { builds, ..Setup::default() });
    for _ in 0..10 {
        stage.disturbed();
        stage.pass(S);
    }
    let writes = |s: &Stage| s.devices.iter().map(|device| device.disk.writes()).sum::<u64>();
    let elections = |s: &Stage| (0..3).map(|n| s.elections(n)).sum::<u64>();
    let before = (writes(&stage), elections(&stage));
    for _ in 0..60 {
        // Nothing is owed.
        stage.disturbed();
        stage.pass(S);
    }
    let after = (writes(&stage), elections(&stage));
    assert!(
        after.0 - before.0 < 60,
        "{} writes and {} elections in a minute",
        after.0 - before.0,
        after.1 - before.1
    );
}

/// What keeps devices from working comes and goes on all of them: each gives way when it cannot go on, but the workload does not go round and round.
#[test]
fn devices_that_are_unwell_again_and_again_do_not_pass_the_workload_round() {
    let (mut stage, _) = running(Setup::default());
    stage.disturbed();
    for second in 0..72 {
        for n in 0..3 {
            // Never two at once.
            stage.ails(n, (second % 6 == 2 * n).then_some("its disk is full"));
        }
        stage.pass(S);
        // Nothing is owed while the owner changes.
        stage.disturbed();
    }
    let changes = stage.epochs().len();
    assert!((4..=8).contains(&changes), "{changes} in little more than a minute");
    (0..3).for_each(|n| stage.ails(n, None));
    stage.pass(bound() + S);
    let owner = stage.running().expect("all are well");
    // What lasts is another matter.
    stage.ails(owner, Some("its disk is full"));
    another_runs(&mut stage, 12 * S, owner);
}

/// The same for a site that is well and loses the owner's wellness alone: another takes over.
#[test]
fn one_that_is_well_owns_among_those_that_are_not() {
    let builds = Some(quorate::ownership::record::BuildPolicy::Block);
    for well in 0..3 {
        let mut stage = Stage::new(Setup { builds, ..Setup::default() });
        stage.disturbed();
        stage.pass(2 * S);
        stage.disturbed();
        stage.install(well, "1");
        stage.until(10 * S, "it owns", |s| s.running() == Some(well));
    }
}

/// Writes in a minute of a site on which nothing is owed.
fn writes_in_a_minute(stage: &mut Stage) -> (u64, u64) {
    let count = |s: &Stage| {
        let writes = s.devices.iter().map(|device| device.disk.writes()).sum::<u64>();
        (writes, (0..s.devices.len()).map(|n| s.elections(n)).sum::<u64>())
    };
    let calm = |s: &mut Stage, seconds: u32| {
        for _ in 0..seconds {
            s.disturbed();
            s.pass(S);
        }
    };
    calm(stage, 10);
    let before = count(stage);
    calm(stage, 60);
    let after = count(stage);
    (after.0 - before.0, after.1 - before.1)
}

/// The owner is lost, and the two that are left run something else each: both stay away.
#[test]
fn a_site_on_which_all_that_are_left_are_blocked_is_at_rest() {
    let builds = Some(quorate::ownership::record::BuildPolicy::Block);
    let mut stage = Stage::new(Setup { builds, ..Setup::default() });
    (0..3).for_each(|n| stage.install(n, "1"));
    let owner = stage.someone_runs(4 * S);
    stage.pass(2 * S);
    stage.install((owner + 1) % 3, "2");
    stage.pass(S);
    stage.install((owner + 2) % 3, "3");
    stage.pass(2 * S);
    stage.crash(owner);
    let (writes, elections) = writes_in_a_minute(&mut stage);
    assert!(writes < 60, "{writes} writes and {elections} elections in a minute");
}

/// The owner is lost while the site is paused.
#[test]
fn a_paused_site_without_its_owner_is_at_rest() {
    let (mut stage, owner) = running(Setup::default());
    stage.order(owner, quorate::ownership::command::Command::Pause);
    stage.pass(S);
    stage.crash(owner);
    let (writes, elections) = writes_in_a_minute(&mut stage);
    assert!(writes < 60, "{writes} writes and {elections} elections in a minute");
}

/// Drained, the owner hands over to a device that was lost a moment ago, and may not come back when that does not follow.
#[test]
fn a_drained_owner_does_not_give_up_for_a_device_that_was_just_lost() {
    let (mut stage, owner) = running(Setup { witnesses: vec![2], ..Setup::default() });
    stage.crash(1 - owner);
    stage.pass(S);
    stage.drain(owner, owner);
    stage.pass(20 * S);
    assert_eq!(stage.running(), Some(owner));
}

/// Everything that makes a device better or worse off, at random, beside losses and cuts; then all is well for a while, and somebody
/// has to own. Every promise is checked all along.
fn random(seed: u64, gate: bool, orders: bool) {
    use crate::stage::device::Order;
    let mut dice = quorate::dice::Dice::new(seed ^ 0xa77ac4);
    let devices = [3, 3, 5, 3][seed as usize % 4];
    let witnesses = if seed % 4 == 3 { vec![2] } else { vec![] };
    let builds = seed.is_multiple_of(2).then_some(quorate::ownership::record::BuildPolicy::Block);
    let policy = Policy { changes_per_hour: [0, 6, 60][seed as usize % 3], ..Policy::default() };
    let mut stage = Stage::new(Setup {
        seed,
        devices,
        witnesses: witnesses.clone(),
        builds,
        gate,
        health: Some(policy),
        ..Setup::default()
    });
    (0..devices).for_each(|n| stage.install(n, "1"));
    stage.someone_runs(6 * S);
    for _round in 0..4 {
        for _ in 0..14 {
            let n = (dice.throw() % devices as u64) as usize;
            let m = (n + 1 + (dice.throw() % (devices as u64 - 1)) as usize) % devices;
            let what = dice.throw() % if orders { 18 } else { 13 };
            match what {
                0 | 1 => stage.plant(n, dice.throw().is_multiple_of(2)),
                2 => stage.works(n, dice.throw().is_multiple_of(2)),
                3 | 4 => stage.devices[n].tell(Order::Ail(Some("it ails".into()))),
                5 => stage.devices[n].tell(Order::Ail(None)),
                6 => stage.crash(n),
                7 => stage.start_if_down(n),
                8 => stage.cut(n, m),
                9 => stage.heal(),
                10 if stage.sim.is_up(n) => stage.kill_sidecar(n),
                11 => stage.transfer(n),
                13 => {
                    let wall = 1_800_000_000_000 + stage.sim.elapsed().as_millis() as u64;
                    let until = dice.throw().is_multiple_of(2).then(|| wall + dice.throw() % 8000);
                    stage.order(n, |order| Command::Pause(command::Order { until_unix_ms: until, ..order }));
                }
                14 => stage.order(n, Command::Resume),
                15 => stage.drain(n, m),
                16 => stage.undrain(n, m),
                17 => stage.prefer(n, m),
                _ => stage.install(n, ["1", "2"][(dice.throw() % 2) as usize]),
            }
            let length = dice.up_to(3 * S);
            let until = stage.sim.elapsed() + length;
            while stage.sim.elapsed() < until {
                // Who ails is not known to the stage, so nothing is owed.
                stage.disturbed();
                stage.pass(100 * MS);
            }
        }
        for n in 0..devices {
            stage.plant(n, true);
            stage.works(n, true);
            stage.devices[n].tell(Order::Ail(None));
            stage.start_if_down(n);
        }
        stage.heal();
        (0..devices).for_each(|n| stage.install(n, "1"));
        if orders {
            // Somebody leads in any case, and takes it in.
            for _ in 0..40 {
                stage.disturbed();
                stage.pass(100 * MS);
            }
            for n in 0..devices {
                stage.undrain(n, n);
            }
            stage.order(0, Command::Resume);
        }
        // The record says so, and the probes pass.
        for _ in 0..20 {
            stage.disturbed();
            stage.pass(100 * MS);
        }
        stage.pass(20 * S);
    }
}

#[test]
fn whatever_makes_devices_better_or_worse_off_breaks_no_promise() {
    for seed in 1..=2 {
        random(seed, false, false);
        random(seed, true, true);
        random(seed, false, true);
    }
}

/// A device has booted a minute ago; all changes of its site are days old. None of them is one of the last hour.
#[test]
fn old_changes_do_not_spend_the_budget_of_a_device_that_has_just_booted() {
    use quorate::{
        clock::Moment,
        epoch::Epoch,
        id::{DeviceId, SiteId},
        ownership::{
            moves::{Moves, Outlook, Sight},
            record::{Change, Record},
        },
        site::{Member, Role, Site},
        timing::{Settings, Timing},
    };
    const DAY_MS: u64 = 24 * 3600 * 1000;
    let device = |n: u64| DeviceId::new(format!("edge-{n}")).expect("a name");
    let member = |n| Member { device: device(n), address: format!("10.0.0.{n}:7600"), role: Role::Voter };
    let timing = Timing::new(&Settings::default()).expect("holds");
    let mut record = Record::new(&Site {
        id: SiteId::new("plant-7").expect("a name"),
        members: (1..=3).map(member).collect(),
        timing,
    });
    let wall = 1_800_000_000_000;
    for epoch in 1..=8 {
        record.history.push_back(Change {
            epoch: Epoch::new(epoch).expect("small"),
            device: device(1 + epoch % 2),
            cause: Cause::OwnerLost,
            actor: String::new(),
            reason: String::new(),
            since_unix_ms: wall - (30 - epoch) * DAY_MS,
            until_unix_ms: None,
            build: String::new(),
        });
    }
    record.epoch = Epoch::new(8).expect("small");
    let (me, policy) = (device(1), Policy::default());
    let others = [(device(2), Sight::default())].into();
    let advice = Moves::default().look(&Outlook {
        now: Moment::default() + 60 * S,
        unix_ms: wall,
        policy: &policy,
        record: &record,
        me: &me,
        owns: Some(record.epoch),
        sight: Sight::default(),
        others: &others,
        failing: Some("its workload fails the probe web"),
    });
    assert!(advice.gives_way.is_some(), "{advice:?}");
}

/// The budget is spent; from then on the owner cannot work for nine seconds in ten, and two other devices always could.
#[test]
fn an_owner_that_can_hardly_ever_work_does_not_hold_on_for_an_hour() {
    let (mut stage, _) = running(Setup::default());
    stage.disturbed();
    // Six changes: each time the owner ails until another owns.
    for _ in 0..7 {
        let Some(owner) = stage.running() else { panic!("somebody runs") };
        stage.ails(owner, Some("its disk is full"));
        for _ in 0..14 {
            stage.disturbed();
            stage.pass(S);
        }
        stage.ails(owner, None);
        stage.disturbed();
        stage.pass(S);
    }
    let owner = stage.running().expect("somebody runs");
    let epochs = stage.epochs().len();
    let mut unwell = 0;
    for second in 0..600 {
        if stage.running() != Some(owner) {
            break;
        }
        stage.ails(owner, (second % 10 != 0).then_some("its disk is full"));
        unwell += u32::from(second % 10 != 0);
        stage.disturbed();
        stage.pass(S);
    }
    eprintln!("epochs before {epochs}; unwell for {unwell} s as the owner; runs now: {:?}", stage.running());
    assert!(
        unwell < 60,
        "it could not work for {unwell} s of ten minutes and held on, although two others could"
    );
}

/// What a device runs is looked at every five seconds; here something of it changes all the time (a data base named in
/// workload.fingerprint_files, a log in a covered place).
#[test]
fn a_fingerprint_that_never_rests_does_not_wear_out_every_disk_of_the_site() {
    let setup = Setup { builds: Some(quorate::ownership::record::BuildPolicy::Warn), ..Setup::default() };
    let (mut stage, owner) = running(setup);
    let n = (owner + 1) % 3;
    stage.pass(5 * S);
    let count = |s: &Stage| s.devices.iter().map(|device| device.disk.writes()).collect::<Vec<u64>>();
    let before = count(&stage);
    for round in 0..60 {
        stage.install(n, &format!("b{round}"));
        stage.pass(5 * S);
    }
    let after = count(&stage);
    let writes: Vec<u64> = before.iter().zip(&after).map(|(b, a)| a - b).collect();
    eprintln!("writes in five minutes: {writes:?}");
    assert!(writes.iter().all(|w| *w < 30), "writes in five minutes: {writes:?}");
}
