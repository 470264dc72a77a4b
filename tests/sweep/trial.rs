//! One site in random trouble, by seed. The promises are checked at every simulated millisecond (`stage`, `promise`).
//! When the site's trouble is over and nobody's order keeps devices from owning, somebody must own within the bound. Then the
//! hub's trouble alone goes on, and the ownership must not move. When that is over too, all twins must say what the record says.

use std::time::Duration;

use quorate::{
    dice::Dice,
    timing::{Preset, Timing},
};

use super::{hub::HubTrouble, orders::Orders};
use crate::{
    promise::p4_owner_within_bound::limit,
    stage::{Setup, Stage, disk::Ailment, world::Freeze},
};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
/// For so long the hub alone is in trouble.
const HUB_ALONE: Duration = Duration::from_secs(10);
/// All twins are right at the latest so long after the end of all trouble: whoever was refused waits for up to a minute.
const FLAGS: Duration = Duration::from_secs(90);

/// What ends by itself.
enum Later {
    Thaw(usize),
    Mend(usize, usize),
    Start(usize),
}

/// A site in trouble.
pub struct Trial {
    pub stage: Stage,
    /// What was done to it, with the time.
    pub told: Vec<String>,
    pub(super) hub: HubTrouble,
    pub(super) orders: Orders,
    pub(super) dice: Dice,
    later: Vec<(Duration, Later)>,
    /// The one device whose disk may be emptied: of more than a minority nothing is promised.
    emptied: Option<usize>,
}

/// How a trial went.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// From the end of all trouble until somebody owned for good.
    pub recovery: Duration,
    /// The longest that a site which was able to have an owner was without.
    pub without: Duration,
    /// Ownerships in all.
    pub ownerships: usize,
    /// From the end of the hub's trouble until all twins said what the record says.
    pub flags: Duration,
    /// How often the hub went back.
    pub rollbacks: usize,
    /// Everything observable, as one number.
    pub hash: u64,
}

fn pick(dice: &mut Dice, below: usize) -> usize {
    usize::try_from(dice.throw() % below as u64).expect("small")
}

impl Trial {
    pub fn new(seed: u64) -> Trial {
        let mut dice = Dice::new(seed ^ 0x5eed);
        let preset = [Preset::Default, Preset::Default, Preset::Fast, Preset::Fastest][pick(&mut dice, 4)];
        let timing = preset.settings();
        // Two devices and a witness; two alone; three; five.
        let (devices, witnesses) = [
            (3, vec![]),
            (3, vec![]),
            (3, vec![]),
            (5, vec![]),
            (5, vec![]),
            (3, vec![2]),
            (2, vec![]),
            (5, vec![4]),
        ][pick(&mut dice, 8)]
        .clone();
        let spread = u64::from(timing.drift_ppm) - 100;
        // A LAN whose answers come within a heartbeat.
        let slowest = [MS, MS, MS * 2, timing.heartbeat / 5][pick(&mut dice, 4)];
        let setup = Setup {
            seed,
            devices,
            witnesses,
            rates_ppm: (0..devices).map(|_| dice.throw() % spread).collect(),
            latency: (MS / 5, slowest.max(MS)),
            refresh: S * 5,
            timing,
            edge: dice.throw().is_multiple_of(2),
            commands: vec!["all".into()],
            ..Setup::default()
        };
        let told = vec![format!(
            "{devices} devices, {} of them witnesses, timing {}, answers within {slowest:?} one way{}",
            setup.witnesses.len(),
            preset.name(),
            if setup.edge { ", edgeHubs" } else { "" }
        )];
        Trial { told, ..Trial::around(setup, dice) }
    }

    /// A site that nothing has been done to.
    pub(super) fn around(setup: Setup, dice: Dice) -> Trial {
        let hub = HubTrouble::new(setup.seed);
        let (told, later, orders) = (Vec::new(), Vec::new(), Orders::default());
        let stage = Stage::new(setup);
        stage.hub.memory.seed(stage.seed);
        Trial { stage, told, hub, orders, dice, later, emptied: None }
    }

    /// Within which somebody owns after the end of all trouble.
    pub fn bound(&self) -> Duration {
        limit(&self.stage.site.timing, self.stage.slowest)
    }

    fn timing(&self) -> Timing {
        self.stage.site.timing
    }

    fn device(&mut self) -> usize {
        pick(&mut self.dice, self.stage.devices.len())
    }

    pub(super) fn two(&mut self) -> (usize, usize) {
        let (count, a) = (self.stage.devices.len(), self.device());
        (a, (a + 1 + pick(&mut self.dice, count - 1)) % count)
    }

    /// The device that runs the workload, often: trouble there tells most.
    fn victim(&mut self) -> usize {
        let any = self.device();
        self.stage.running().filter(|_| self.dice.throw().is_multiple_of(2)).unwrap_or(any)
    }

    fn tell(&mut self, what: String) {
        self.told.push(format!("{:?}: {what}", self.stage.sim.elapsed()));
    }

    /// So long, or much longer, or shorter; in terms of what this site calls long.
    fn a_while(&mut self) -> Duration {
        let refusal = self.timing().refusal();
        let longest = [refusal / 8, refusal, refusal * 2, S * 3, S * 8][pick(&mut self.dice, 5)];
        self.dice.up_to(longest) + MS
    }

    fn soon(&mut self, later: Later) -> Duration {
        let time = self.a_while();
        self.later.push((self.stage.sim.elapsed() + time, later));
        time
    }

    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.stage.sim.elapsed() + time;
        loop {
            let due =
                self.later.iter().enumerate().min_by_key(|(_, (at, _))| *at).map(|(n, (at, _))| (n, *at));
            let hub = self.hub.due();
            if hub <= until && due.is_none_or(|(_, at)| hub <= at) {
                self.stage.pass(hub.saturating_sub(self.stage.sim.elapsed()));
                let what = self.hub.act(&self.stage);
                self.tell(what);
                continue;
            }
            let Some((number, at)) = due.filter(|(_, at)| *at <= until) else { break };
            self.stage.pass(at.saturating_sub(self.stage.sim.elapsed()));
            match self.later.swap_remove(number).1 {
                Later::Thaw(n) if self.stage.sim.frozen(n).is_some() => {
                    self.stage.thaw(n);
                    self.tell(format!("{n} is thawed"));
                }
                Later::Mend(a, b) => {
                    self.stage.mend(a, b);
                    self.tell(format!("mended between {a} and {b}"));
                }
                Later::Start(n) if !self.stage.sim.is_up(n) => {
                    self.stage.start(n);
                    self.tell(format!("{n} starts"));
                }
                Later::Thaw(_) | Later::Start(_) => {}
            }
        }
        self.stage.pass(until.saturating_sub(self.stage.sim.elapsed()));
    }

    /// One piece of trouble, or the end of one.
    fn trouble(&mut self) {
        let roll = pick(&mut self.dice, 136);
        let (a, b) = self.two();
        let n = self.victim();
        let up = self.stage.sim.is_up(n);
        let what = match roll {
            0..=59 if !up => return,
            0..=7 => {
                self.stage.crash(n);
                let time = self.soon(Later::Start(n));
                format!("{n} loses power for {time:?}")
            }
            8..=15 => {
                self.stage.kill_sidecar(n);
                let time = self.soon(Later::Start(n));
                format!("the sidecar of {n} dies for {time:?}")
            }
            16..=20 => {
                self.stage.crash(n);
                self.stage.start(n);
                format!("{n} restarts at once")
            }
            21..=24 => {
                self.stage.kill_sidecar(n);
                self.stage.start(n);
                format!("the sidecar of {n} restarts at once")
            }
            25..=34 => {
                self.stage.freeze(n, Freeze::Sidecar);
                let time = self.soon(Later::Thaw(n));
                format!("the sidecar of {n} is frozen for {time:?}")
            }
            35..=39 => {
                self.stage.freeze(n, Freeze::Machine);
                let time = self.soon(Later::Thaw(n));
                format!("all of {n} is frozen for {time:?}")
            }
            40..=42 => {
                self.stage.leave(n);
                format!("{n} is told to leave, {:?} before it starts again", self.soon(Later::Start(n)))
            }
            43..=45 => {
                let ailment = [Ailment::Eio, Ailment::Full][pick(&mut self.dice, 2)];
                self.stage.ail(n, ailment);
                format!("the disk of {n}: {ailment:?}")
            }
            46..=53 => {
                let delay = MS * [0, 5, 50, 400][pick(&mut self.dice, 4)];
                let tail = self.dice.throw().is_multiple_of(2);
                self.stage.slow_disk(n, delay, tail);
                format!(
                    "the disk of {n} takes {delay:?}{}",
                    if tail { " and sometimes much longer" } else { "" }
                )
            }
            54..=57 => {
                self.stage.ail(n, Ailment::None);
                self.stage.slow_disk(n, Duration::ZERO, false);
                format!("the disk of {n} is well")
            }
            58..=59 => {
                self.power_up_storm();
                "everybody loses power, and starts at once".into()
            }
            60..=65 => {
                self.stage.isolate(n);
                format!("{n} is cut off")
            }
            66..=71 => {
                self.stage.cut(a, b);
                format!("cut between {a} and {b} for {:?}", self.soon(Later::Mend(a, b)))
            }
            72..=77 => {
                self.stage.cut_one_way(a, b);
                format!("cut from {a} to {b}")
            }
            78..=80 => return self.flap(a, b),
            81..=85 => {
                let loss = [0.01, 0.1, 0.4][pick(&mut self.dice, 3)];
                self.stage.link(a, b, |link| link.loss = loss);
                format!(
                    "{loss} of all packets from {a} to {b} are lost, for {:?}",
                    self.soon(Later::Mend(a, b))
                )
            }
            86..=90 => {
                let most = MS * [20, 60, 300][pick(&mut self.dice, 3)];
                self.stage.link(a, b, |link| link.latency.1 = most);
                format!("from {a} to {b} takes up to {most:?}, for {:?}", self.soon(Later::Mend(a, b)))
            }
            91..=96 => {
                self.stage.heal();
                "all links mended".into()
            }
            97..=99 => {
                let forgets = self.dice.throw().is_multiple_of(2);
                self.stage.link(a, b, |link| link.forgets = forgets);
                format!("connections from {a} to {b} end when cut: {forgets}")
            }
            100..=104 => {
                self.stage.transfer(a);
                format!("handover to {a} wanted")
            }
            105..=106 => return self.transfer_storm(),
            107..=114 => self.order(),
            115..=118 => {
                let to = self.dice.throw() % 3_000_000_000_000;
                self.stage.set_wall_clock(n, to);
                format!("the wall clock of {n} is set")
            }
            119..=120 => return self.empty(a),
            121..=125 => return self.troubled_handover(a),
            _ => match (0..self.stage.devices.len()).find(|n| !self.stage.sim.is_up(*n)) {
                Some(down) => {
                    self.stage.start(down);
                    format!("{down} starts")
                }
                None => return,
            },
        };
        self.tell(what);
    }

    /// A device comes back with an empty disk, once or again and again. Never two of them, and not before the site has
    /// noted which store is whose (`deploy/README.md`).
    fn empty(&mut self, n: usize) {
        let n = self.emptied.unwrap_or(n);
        let count = self.stage.devices.len();
        let noted = |other: usize| self.stage.whole(other) && !self.stage.devices[other].disk.is_bad();
        let settled = self.emptied.is_some()
            || count > 2
                && self.stage.running().is_some()
                && (0..count).all(|other| other == n || noted(other));
        if !settled {
            return;
        }
        self.emptied = Some(n);
        self.stage.crash(n);
        self.stage.empty(n);
        let time = self.soon(Later::Start(n));
        self.tell(format!("{n} loses power and its disk, for {time:?}"));
    }

    /// A handover is wanted, and in the middle of it something happens to one of the two.
    fn troubled_handover(&mut self, to: usize) {
        let Some(from) = self.stage.running().filter(|from| *from != to && self.stage.sim.is_up(to)) else {
            return;
        };
        self.stage.transfer(to);
        let pause = self.dice.up_to(MS * 30);
        self.pass(pause);
        let hit = [from, to][pick(&mut self.dice, 2)];
        if !self.stage.sim.is_up(hit) {
            return;
        }
        let how = match pick(&mut self.dice, 4) {
            0 => {
                self.stage.crash(hit);
                format!("{hit} loses power for {:?}", self.soon(Later::Start(hit)))
            }
            1 => {
                self.stage.freeze(hit, Freeze::Sidecar);
                format!("the sidecar of {hit} is frozen for {:?}", self.soon(Later::Thaw(hit)))
            }
            2 => {
                self.stage.isolate(hit);
                format!("{hit} is cut off")
            }
            _ => {
                self.stage.cut_one_way(to, from);
                format!("cut from {to} to {from} for {:?}", self.soon(Later::Mend(to, from)))
            }
        };
        self.tell(format!("handover from {from} to {to} wanted, and {pause:?} later {how}"));
    }

    fn power_up_storm(&mut self) {
        for n in 0..self.stage.devices.len() {
            self.stage.crash(n);
        }
        for n in 0..self.stage.devices.len() {
            self.stage.start(n);
        }
    }

    fn flap(&mut self, a: usize, b: usize) {
        let times = 2 + pick(&mut self.dice, 8);
        let longest = self.timing().refusal();
        self.tell(format!("the link between {a} and {b} flaps {times} times"));
        for _ in 0..times {
            self.stage.cut(a, b);
            let down = self.dice.up_to(longest) + MS;
            self.pass(down);
            self.stage.mend(a, b);
            let up = self.dice.up_to(longest) + MS;
            self.pass(up);
        }
    }

    fn transfer_storm(&mut self) {
        let times = 2 + pick(&mut self.dice, 8);
        self.tell(format!("{times} handovers wanted"));
        for _ in 0..times {
            let to = self.device();
            self.stage.transfer(to);
            let pause = self.dice.up_to(MS * 60);
            self.pass(pause);
        }
    }

    fn pause(&mut self) {
        let refusal = self.timing().refusal();
        let longest = [MS * 20, refusal / 2, refusal * 2, S * 3][pick(&mut self.dice, 4)];
        let pause = self.dice.up_to(longest) + MS;
        self.pass(pause);
    }

    fn end_the_sites_trouble(&mut self) {
        self.tell("the site's trouble ends".into());
        self.later.clear();
        self.stage.heal();
        for n in 0..self.stage.devices.len() {
            if self.stage.devices[n].disk.has_failed() {
                self.stage.kill_sidecar(n);
            }
            self.stage.ail(n, Ailment::None);
            self.stage.slow_disk(n, Duration::ZERO, false);
            if self.stage.sim.frozen(n).is_some() {
                self.stage.thaw(n);
            }
            self.stage.start_if_down_or_leaving(n);
        }
    }

    /// As [`Stage::until`], and the hub's trouble goes on.
    pub(super) fn until(&mut self, limit: Duration, what: &str, mut holds: impl FnMut(&Stage) -> bool) {
        let end = self.stage.sim.elapsed() + limit;
        while !holds(&self.stage) {
            let tell = || format!("{what}\n{}", self.stage.ledger.tell());
            assert!(self.stage.sim.elapsed() < end, "not within {limit:?}: {}", tell());
            self.pass(MS);
        }
    }

    /// The hub's trouble ends, and all twins follow. Returns how long they took.
    pub(super) fn end_the_hubs_trouble(&mut self) -> Duration {
        self.tell("the hub's trouble ends".into());
        self.hub.end(&self.stage);
        let begun = self.stage.sim.elapsed();
        let (mut twins, mut modules) = (None, None);
        let right = |s: &Stage| {
            let took = s.sim.elapsed() - begun;
            twins = twins.or(s.twins_agree().then_some(took));
            modules = modules.or(s.modules_agree().then_some(took));
            s.twins_agree() && s.modules_agree()
        };
        let took = self.stage.until(FLAGS, "all twins say what the record says", right);
        self.tell(format!("the device twins are right after {twins:?}, the module twins after {modules:?}"));
        self.stage.pass(S);
        assert!(self.stage.twins_agree() && self.stage.modules_agree(), "and go on saying it");
        took
    }

    /// Trouble for so long, then recovery.
    pub fn run(&mut self, trouble: Duration) -> Outcome {
        while self.stage.sim.elapsed() < trouble {
            self.pause();
            self.trouble();
        }
        self.end_the_sites_trouble();
        self.lift_orders();
        let (begun, bound) = (self.stage.sim.elapsed(), self.bound());
        let mut recovery;
        loop {
            self.until(bound, "somebody owns after all trouble", |s| s.running().is_some());
            recovery = self.stage.sim.elapsed() - begun;
            let epochs = self.stage.epochs().len();
            self.pass(S * 3);
            if self.stage.epochs().len() == epochs && self.stage.running().is_some() {
                break;
            }
            assert!(recovery < bound, "no owner lasts: after {bound:?} another one has begun");
        }
        if self.emptied.is_some() {
            let back = |s: &Stage| s.running().is_some_and(|owner| s.whole(owner));
            self.until(S * 90, "who lost its disk is a member again", back);
        }
        let everybody = |s: &Stage| (0..s.devices.len()).all(|n| s.knows(n) == s.epoch());
        self.until(S * 10, "everybody knows the owner", everybody);
        let before = (self.stage.running(), self.stage.epochs());
        self.pass(HUB_ALONE);
        assert_eq!(before, (self.stage.running(), self.stage.epochs()), "the hub moved the ownership");
        let flags = self.end_the_hubs_trouble();
        assert_eq!(
            before,
            (self.stage.running(), self.stage.epochs()),
            "the hub's return moved the ownership"
        );
        Outcome {
            recovery,
            without: self.stage.longest_without_owner(),
            ownerships: self.stage.epochs().len(),
            flags,
            rollbacks: self.hub.rollbacks,
            hash: self.stage.hash(),
        }
    }
}
