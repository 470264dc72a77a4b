use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    clock::Moment,
    status::report::{Condition, Ordered, Orders, Owner},
};

const OLD: &str = "0.1.0+aaaaaa";
const NEW: &str = "0.1.0+bbbbbb";

fn member(device: &str, build: &str) -> Member {
    Member {
        device: device.into(),
        role: "voter".into(),
        reachable: true,
        votes: true,
        fit: true,
        build: build.into(),
        incarnation: "1".into(),
        ..Member::default()
    }
}

fn site(owner: &str, members: Vec<Member>) -> Report {
    let counted = members.iter().filter(|m| m.votes).count();
    let spare = counted.checked_sub(members.len() / 2 + 1);
    Report {
        site: "plant-7".into(),
        device: "edge-1".into(),
        owner: Owner { known: true, device: Some(owner.into()), epoch: 7, ..Owner::default() },
        epoch: 7,
        quorum: spare.is_some(),
        devices_may_fail: u32::try_from(spare.unwrap_or(0)).expect("small"),
        members,
        ..Report::default()
    }
}

fn three(owner: &str, builds: [&str; 3]) -> Report {
    let members = ["edge-1", "edge-2", "edge-3"].into_iter().zip(builds);
    site(owner, members.map(|(device, build)| member(device, build)).collect())
}

fn goal(expect: Expect) -> Goal {
    Goal { expect, only: BTreeSet::new(), settle: Duration::from_secs(5) }
}

fn only(devices: &[&str]) -> Goal {
    Goal { only: devices.iter().map(|d| (*d).to_owned()).collect(), ..goal(Expect::Changed) }
}

fn at(seconds: u64) -> Moment {
    Moment::from_nanos(seconds * 1_000_000_000)
}

/// What is due of a site that is seen for the first time.
fn first(report: &Report, goal: &Goal) -> Step {
    let mut memory = Memory::default();
    memory.note(report, goal, at(0));
    next_step(report, goal, &memory)
}

#[track_caller]
fn waits(step: &Step, words: &str) {
    let Step::Wait(why) = step else { panic!("{step:?}") };
    assert!(why.contains(words), "{why}");
}

#[track_caller]
fn stops(step: &Step, words: &str) {
    let Step::Stop(why) = step else { panic!("{step:?}") };
    assert!(why.contains(words), "{why}");
}

fn updates(device: &str) -> Step {
    Step::Update(device.into())
}

#[test]
fn the_standbys_then_one_handover_then_the_old_owner() {
    let goal = goal(Expect::Changed);
    let mut memory = Memory::default();
    let look = |memory: &mut Memory, s, report: &Report| {
        memory.note(report, &goal, at(s));
        next_step(report, &goal, memory)
    };
    let begin = three("edge-2", [OLD, OLD, OLD]);
    let hand_over = Step::HandOver { from: "edge-2".into(), to: "edge-1".into() };
    let mut expected = vec![updates("edge-1"), updates("edge-3"), hand_over.clone(), updates("edge-2")];
    assert_eq!(outline(&begin, &goal, &memory), expected);
    assert_eq!(look(&mut memory, 0, &begin), expected.remove(0));
    memory.touches("edge-1");
    waits(&look(&mut memory, 1, &begin), "edge-1 is not back: what it runs has not changed");
    let mut gone = begin.clone();
    gone.members[0] = Member { reachable: false, votes: false, fit: false, ..member("edge-1", OLD) };
    waits(&look(&mut memory, 2, &gone), "edge-1 is not back: it is not heard");
    let mut back = three("edge-2", [NEW, OLD, OLD]);
    back.members[0].votes = false;
    waits(&look(&mut memory, 3, &back), "its vote does not count yet");
    // A sidecar knows its version before its workload's fingerprint.
    waits(&look(&mut memory, 4, &three("edge-2", ["0.1.0", OLD, OLD])), "has not changed");
    let back = three("edge-2", [NEW, OLD, OLD]);
    waits(&look(&mut memory, 10, &back), "edge-1 is well, and is watched for 5.0 s");
    // A crash begins it anew.
    let mut crashed = back.clone();
    crashed.members[0].incarnation = "2".into();
    waits(&look(&mut memory, 14, &crashed), "watched");
    waits(&look(&mut memory, 18, &crashed), "watched");
    assert_eq!(look(&mut memory, 19, &crashed), updates("edge-3"));
    memory.touches("edge-3");
    let both = three("edge-2", [NEW, OLD, NEW]);
    waits(&look(&mut memory, 20, &both), "watched");
    assert_eq!(look(&mut memory, 25, &both), hand_over);
    memory.handed_over();
    let mut moved = Report {
        owner: Owner { known: true, device: Some("edge-1".into()), epoch: 8, ..Owner::default() },
        ..both
    };
    waits(&look(&mut memory, 26, &moved), "the new owner is well, and is watched");
    assert_eq!(look(&mut memory, 31, &moved), updates("edge-2"));
    memory.touches("edge-2");
    moved.members[1] = member("edge-2", NEW);
    waits(&look(&mut memory, 32, &moved), "watched");
    assert_eq!(look(&mut memory, 37, &moved), Step::Done);
    assert_eq!(memory.touched(), ["edge-1", "edge-3", "edge-2"]);
}

#[test]
fn nothing_is_touched_that_the_site_cannot_spare() {
    let well = three("edge-2", [OLD, OLD, OLD]);
    let changed = goal(Expect::Changed);
    let silent = |n: usize| {
        let mut members = well.members.clone();
        members[n] = Member { reachable: false, votes: false, fit: false, ..members[n].clone() };
        site("edge-2", members)
    };
    waits(
        &first(&silent(2), &changed),
        "edge-1 cannot be spared: edge-2 stops the workload: no majority would be left",
    );
    let mut report = silent(2);
    report.members[0] = Member { reachable: false, votes: false, ..report.members[0].clone() };
    waits(&first(&site("edge-2", report.members), &changed), "edge-1 does not hear a majority");
    let paused = Some(Ordered { actor: "ann".into(), reason: "crane".into(), ..Ordered::default() });
    let mut report = well.clone();
    report.orders = Orders { paused, ..Orders::default() };
    waits(&first(&report, &changed), "the site is paused by ann (crane)");
    let mut report = well.clone();
    let rejoining = Condition {
        name: "member.rejoining".into(),
        detail: "edge-3: catches up".into(),
        ..Condition::default()
    };
    report.conditions = vec![rejoining];
    waits(&first(&report, &changed), "a member is being taken in: edge-3");
    let mut report = well.clone();
    report.owner = Owner { reason: "an election".into(), ..Owner::default() };
    waits(&first(&report, &changed), "nobody is known to own now: an election");
    let five = ["edge-1", "edge-2", "edge-3", "edge-4"].map(|d| member(d, OLD));
    let dead = Member { reachable: false, votes: false, ..member("edge-5", OLD) };
    let mut five = site("edge-2", five.into_iter().chain([dead]).collect());
    assert_eq!(first(&five, &changed), updates("edge-1"), "five can spare another");
    waits(&first(&five, &only(&["edge-5"])), "edge-5 cannot be spared: it is not heard");
    five.devices_may_fail = 0;
    waits(&first(&five, &changed), "the site can lose no device now");
    let two = site("edge-2", vec![member("edge-1", OLD), member("edge-2", OLD)]);
    stops(&first(&two, &changed), "a site of 2 cannot lose any device");
}

#[test]
fn who_runs_the_wanted_build_is_left_out() {
    for wanted in [NEW, "bbbbbb"] {
        let wanted = goal(Expect::Build(wanted.into()));
        assert_eq!(first(&three("edge-2", [NEW, OLD, OLD]), &wanted), updates("edge-3"));
        let step = first(&three("edge-2", [NEW, OLD, NEW]), &wanted);
        assert_eq!(step, Step::HandOver { from: "edge-2".into(), to: "edge-1".into() });
        assert_eq!(first(&three("edge-1", [NEW, OLD, NEW]), &wanted), updates("edge-2"));
        assert_eq!(first(&three("edge-1", [NEW, NEW, NEW]), &wanted), Step::Done);
        let mut unwell = three("edge-2", [NEW, OLD, OLD]);
        unwell.members[0].fit = false;
        unwell.members[0].unfit_reason = Some("its program is gone".into());
        waits(&first(&unwell, &wanted), "edge-1 is updated, and it may not own: its program is gone");
    }
    let version = goal(Expect::Build("0.2.0".into()));
    assert_eq!(first(&three("edge-2", ["0.2.0+aaaaaa", OLD, OLD]), &version), updates("edge-3"));
    // Which of two is the new one, nobody can know.
    stops(
        &first(&three("edge-2", [NEW, OLD, OLD]), &goal(Expect::Changed)),
        &format!("{OLD} and {NEW} already"),
    );
    assert_eq!(first(&three("edge-2", [NEW, OLD, OLD]), &goal(Expect::Any)), updates("edge-1"));
    // One that has just started may run it already.
    for expect in [Expect::Changed, Expect::Build(NEW.into())] {
        waits(
            &first(&three("edge-2", ["0.1.0", OLD, OLD]), &goal(expect)),
            "the fingerprint of what edge-1 runs",
        );
    }
    assert_eq!(first(&three("edge-2", ["0.1.0", OLD, OLD]), &goal(Expect::Any)), updates("edge-1"));
}

#[test]
fn witnesses_and_strangers() {
    let mut report = three("edge-2", [OLD, OLD, OLD]);
    report.members[0].role = "witness".into();
    report.members[0].fit = false;
    assert_eq!(first(&report, &goal(Expect::Changed)), updates("edge-3"));
    assert_eq!(first(&report, &only(&["edge-1"])), updates("edge-1"));
    assert_eq!(only(&["edge-9", "edge-1"]).strangers(&report), ["edge-9"]);
    // The owner alone: any other may have it, but no witness.
    let step = first(&report, &only(&["edge-2"]));
    assert_eq!(step, Step::HandOver { from: "edge-2".into(), to: "edge-3".into() });
    report.orders.drained.insert("edge-3".into(), Ordered::default());
    waits(&first(&report, &only(&["edge-2"])), "no updated device can take over from edge-2");
}

#[test]
fn the_preferred_device_takes_over_and_one_that_its_build_bars_may() {
    let wanted = goal(Expect::Build(NEW.into()));
    let mut report = three("edge-2", [NEW, OLD, NEW]);
    report.orders.preferred = Some("edge-3".into());
    report.members[2].fit = false;
    report.members[2].build_blocks = true;
    assert_eq!(first(&report, &wanted), Step::HandOver { from: "edge-2".into(), to: "edge-3".into() });
}

#[test]
fn a_workload_that_comes_back_to_the_old_owner_ends_the_update() {
    let wanted = goal(Expect::Build(NEW.into()));
    let report = three("edge-2", [NEW, OLD, NEW]);
    let mut memory = Memory::default();
    memory.note(&report, &wanted, at(0));
    memory.handed_over();
    stops(&next_step(&report, &wanted, &memory), "edge-2 owns again, and is not updated");
}

#[test]
fn the_old_owner_is_left_alone_until_the_new_one_has_a_workload_that_works() {
    let goal = goal(Expect::Build(NEW.into()));
    let mut memory = Memory::default();
    let moved = three("edge-1", [NEW, OLD, NEW]);
    memory.note(&moved, &goal, at(0));
    memory.handed_over();
    let mut crashing = moved.clone();
    crashing.owner.workload_wrong = Some("backing off, workload.crashing".into());
    for s in [1, 60] {
        memory.note(&crashing, &goal, at(s));
        waits(&next_step(&crashing, &goal, &memory), "its workload does not work: backing off");
    }
    // Also when the update is begun anew.
    waits(&first(&crashing, &goal), "edge-1 is updated, and its workload does not work");
    memory.note(&moved, &goal, at(61));
    waits(&next_step(&moved, &goal, &memory), "watched");
    memory.note(&moved, &goal, at(66));
    assert_eq!(next_step(&moved, &goal, &memory), updates("edge-2"));
    // One that an update is to mend is no obstacle.
    let broken = Report { owner: crashing.owner, ..three("edge-1", [OLD, OLD, OLD]) };
    assert_eq!(first(&broken, &goal), updates("edge-2"));
}

#[test]
fn an_answer_for_another_site_is_none() {
    let wanted = goal(Expect::Any);
    let report = three("edge-2", [OLD, OLD, OLD]);
    let mut memory = Memory::default();
    memory.note(&report, &wanted, at(0));
    let other = Report { site: "plant-8".into(), ..report };
    stops(&next_step(&other, &wanted, &memory), "for the site plant-8, not plant-7");
}

/// A site that is played at random: devices fall silent and come back, owners are lost, somebody pauses.
struct World {
    devices: Vec<(String, Device)>,
    owner: Option<usize>,
    epoch: u64,
    paused: bool,
    seconds: u64,
}

#[derive(Clone)]
struct Device {
    build: &'static str,
    life: u32,
    /// Heard again at that second.
    away_until: u64,
    touched: u32,
}

impl World {
    fn new(devices: usize, owner: usize) -> World {
        let device = Device { build: OLD, life: 1, away_until: 0, touched: 0 };
        let devices = (1..=devices).map(|n| (format!("edge-{n}"), device.clone())).collect();
        World { devices, owner: Some(owner), epoch: 1, paused: false, seconds: 0 }
    }

    fn is_up(&self, n: usize) -> bool {
        self.devices[n].1.away_until <= self.seconds
    }

    fn has_quorum(&self) -> bool {
        (0..self.devices.len()).filter(|n| self.is_up(*n)).count() > self.devices.len() / 2
    }

    fn report(&self) -> Report {
        let members = self.devices.iter().enumerate().map(|(n, (name, device))| {
            let up = self.is_up(n);
            Member {
                reachable: up,
                votes: up,
                fit: up,
                incarnation: device.life.to_string(),
                ..member(name, device.build)
            }
        });
        let mut report = site("", members.collect());
        report.owner = Owner {
            known: self.has_quorum(),
            device: self.owner.map(|n| self.devices[n].0.clone()),
            epoch: self.epoch,
            ..Owner::default()
        };
        report.orders.paused = self.paused.then(Ordered::default);
        report
    }

    /// A second goes by, in which something may happen.
    fn pass(&mut self, chance: u8) {
        self.seconds += 1;
        let n = usize::from(chance) % self.devices.len();
        match chance / 16 {
            0 => self.devices[n].1.away_until = self.seconds + 12,
            1 => {
                (self.devices[n].1.away_until, self.devices[n].1.life) =
                    (self.seconds + 4, self.devices[n].1.life + 1)
            }
            2 => self.paused = !self.paused,
            3 if self.is_up(n) && self.has_quorum() => (self.owner, self.epoch) = (Some(n), self.epoch + 1),
            _ => {}
        }
        let lost = self.owner.is_none_or(|owner| !self.is_up(owner));
        if lost && self.has_quorum() && !self.paused {
            self.owner = (0..self.devices.len()).find(|n| self.is_up(*n));
            self.epoch += 1;
        }
    }

    fn number(&self, device: &str) -> usize {
        self.devices.iter().position(|(name, _)| name == device).expect("a member")
    }
}

fn expected() -> impl Strategy<Value = Expect> {
    prop_oneof![
        Just(Expect::Changed),
        Just(Expect::Restarted),
        Just(Expect::Any),
        Just(Expect::Build(NEW.into()))
    ]
}

/// Plays an update until it ends or `chances` and a quiet time after them are over.
fn play(mut world: World, goal: &Goal, chances: &[u8], away: &[u64]) -> (World, Step) {
    let mut memory = Memory::default();
    let (mut handed_over, mut deeds): (_, Vec<String>) = (0, Vec::new());
    let in_scope = |world: &World| goal.scope(&world.report()).map(|m| m.device.clone()).collect::<Vec<_>>();
    for chance in chances.iter().copied().chain([255; 400]) {
        let report = world.report();
        memory.note(&report, goal, at(world.seconds));
        let step = next_step(&report, goal, &memory);
        match &step {
            Step::Wait(why) => assert!(!why.is_empty()),
            Step::Done | Step::Stop(_) => return (world, step),
            Step::Update(device) => {
                let n = world.number(device);
                assert!(in_scope(&world).contains(device), "{device} is not meant");
                assert_ne!(world.owner, Some(n), "the owner is never touched");
                assert!(world.is_up(n) && !world.paused, "{device} is there and nothing is paused");
                let left =
                    (0..world.devices.len()).filter(|other| *other != n && world.is_up(*other)).count();
                assert!(left > world.devices.len() / 2, "a majority is left");
                let others = deeds.iter().all(|other| world.is_up(world.number(other)));
                assert!(others, "never two at a time: {deeds:?} and {device}");
                let away = away.get(deeds.len()).copied().unwrap_or(3);
                let touched = &mut world.devices[n].1;
                *touched = Device {
                    build: NEW,
                    life: touched.life + 1,
                    away_until: world.seconds + away,
                    touched: touched.touched + 1,
                };
                assert_eq!(touched.touched, 1, "{device} is touched once");
                memory.touches(device);
                deeds.push(device.clone());
            }
            Step::HandOver { from, to } => {
                handed_over += 1;
                assert_eq!(handed_over, 1, "the ownership is moved once");
                let (from, to) = (world.number(from), world.number(to));
                assert_eq!(world.owner, Some(from));
                assert!(world.is_up(to) && !world.paused);
                for device in in_scope(&world).iter().map(|device| world.number(device)) {
                    assert!(
                        device == from || world.devices[device].1.build == NEW,
                        "the owner's turn is last"
                    );
                }
                (world.owner, world.epoch) = (Some(to), world.epoch + 1);
                memory.handed_over();
            }
        }
        world.pass(chance);
    }
    (world, Step::Wait(format!("after {deeds:?}")))
}

proptest! {
    #[test]
    fn no_step_is_more_than_the_site_can_bear(
        devices in 3..7_usize,
        owner in 0..3_usize,
        expect in expected(),
        named in any::<u8>(),
        chances in proptest::collection::vec(any::<u8>(), 0..300),
        away in proptest::collection::vec(0..30_u64, 0..7),
    ) {
        let named = (0..devices).filter(|n| named & 0x80 != 0 && named & 1 << n != 0);
        let goal = Goal { only: named.map(|n| format!("edge-{}", n + 1)).collect(), ..goal(expect) };
        // Whatever happens, it comes to its end, or to a stop that says why: nothing waits for ever in a site that is well.
        // Only somebody who has paused it and goes home is waited for.
        let (world, end) = play(World::new(devices, owner), &goal, &chances, &away);
        prop_assert!(world.paused || matches!(end, Step::Done | Step::Stop(_)), "{:?}", end);
    }

    #[test]
    fn in_a_quiet_site_all_are_updated_and_the_ownership_moves_once(
        devices in 3..7_usize,
        owner in 0..3_usize,
        expect in expected(),
        away in proptest::collection::vec(0..30_u64, 0..7),
    ) {
        let (world, end) = play(World::new(devices, owner), &goal(expect), &[], &away);
        prop_assert_eq!(end, Step::Done);
        prop_assert_eq!(world.epoch, 2);
        let counts: BTreeMap<u32, usize> = world.devices.iter().fold(BTreeMap::new(), |mut counts, (_, device)| {
            *counts.entry(device.touched).or_default() += 1;
            counts
        });
        prop_assert_eq!(counts, BTreeMap::from([(1, devices)]));
    }
}
