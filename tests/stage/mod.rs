//! A whole site in one deterministic simulation: the real node, the real gRPC between members, on a simulated LAN,
//! simulated disks and clocks, with a workload that writes down when it ran.
//!
//! What is simulated: connections (`net`), time and processes (`world`), the boot clock of each device (offset and rate
//! of its own), the disk (survives a crash but for what was not yet written), the workload and its fencer, the IoT Hub
//! (`MemoryHub` behind a line of its own per device). Everything else is the product, the mirror included. The same seed
//! gives the same run.

pub mod calls;
pub mod device;
pub mod disk;
pub mod hash;
pub mod hub;
pub mod ledger;
pub mod log;
pub mod module;
pub mod net;
mod verbs;
pub mod workload;
pub mod world;

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use device::{Device, Order, Senses, SimClock, Site1, first, life};
use disk::SimDisk;
use hash::EventHash;
use hub::SiteHub;
use ledger::Ledger;
use net::{Link, Net};
use quorate::{
    clock::{Clock as _, Moment},
    dice::Dice,
    epoch::Epoch,
    hub::{Flag, Published},
    id::{DeviceId, SiteId, StoreId},
    ownership::{
        moves::Policy,
        record::{BuildPolicy, Cause, Record},
        view::Standing,
    },
    raft::{log::Contents, peer::Roster},
    site::{Member, Role, Site},
    timing::{Settings, Timing},
};
use workload::Fencer;
use world::World;

use crate::promise::Promises;

/// A simulated site.
pub struct Stage {
    pub sim: World,
    pub net: Net,
    pub site: Site,
    pub devices: Vec<Device>,
    pub ledger: Ledger,
    pub hub: SiteHub,
    pub seed: u64,
    /// How a link is when nothing is wrong with it.
    pub usual: Link,
    /// When the last trouble was made or ended.
    pub calm_since: Duration,
    /// The slowest that any disk was made.
    pub slowest: Duration,
    leaving: Vec<bool>,
    rebooted: Vec<bool>,
    /// Whose disk was emptied at some time.
    emptied: Vec<bool>,
    dice: Dice,
    able: Option<bool>,
    /// Whether people have given orders that say who may own: then that is looked at again each time.
    ordered: bool,
    /// The highest epoch whose end a fencer has attested to the other members.
    pub proven: u64,
    promises: Box<Promises>,
    /// Where the workload runs everywhere and asks: the epoch under which each device's may act, and until when, by the longest word
    /// that anybody was told.
    told: Option<Vec<Option<(Epoch, Moment)>>>,
}

/// What a stage is set up with.
pub struct Setup {
    pub seed: u64,
    pub devices: usize,
    pub timing: Settings,
    /// Clock rates in ppm above true time, by device; missing ones run true.
    pub rates_ppm: Vec<u64>,
    pub latency: (Duration, Duration),
    pub loss: f64,
    /// Devices that are not started at first.
    pub absent: Vec<usize>,
    /// How often the mirror reads all twins again.
    pub refresh: Duration,
    /// Devices that vote and never own.
    pub witnesses: Vec<usize>,
    /// Each device has an edgeHub, through which its sidecar's module talks to the hub.
    pub edge: bool,
    /// What the cloud may order (`hub.commands`).
    pub commands: Vec<String>,
    /// Whether the plant and the workload are asked, and how willingly the ownership moves then.
    pub health: Option<Policy>,
    /// Whether the devices say what they run, and own by this policy. Each runs "1" until it is told otherwise.
    pub builds: Option<BuildPolicy>,
    /// Whether the workload runs everywhere and asks.
    pub gate: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            seed: 1,
            devices: 3,
            timing: Settings::default(),
            rates_ppm: Vec::new(),
            latency: (Duration::from_micros(200), Duration::from_millis(2)),
            loss: 0.0,
            absent: Vec::new(),
            refresh: Duration::from_secs(30),
            witnesses: Vec::new(),
            edge: false,
            commands: quorate::hub::Settings::default().commands,
            health: None,
            builds: None,
            gate: std::env::var_os("QUORATE_SWEEP_GATE").is_some(),
        }
    }
}

fn name(n: usize) -> String {
    format!("edge-{}", n + 1)
}

impl Stage {
    /// Builds the site; no time passes yet.
    pub fn new(setup: Setup) -> Stage {
        log::if_asked();
        let timing = Timing::new(&setup.timing).expect("consistent");
        let member = |n| Member {
            device: DeviceId::new(name(n)).expect("a name"),
            address: format!("{}:7600", name(n)),
            role: if setup.witnesses.contains(&n) { Role::Witness } else { Role::Voter },
        };
        let site = Site {
            id: SiteId::new("plant-7").expect("a name"),
            members: (0..setup.devices).map(member).collect(),
            timing,
        };
        let mut sim = World::new();
        let ledger = Ledger::default();
        let mut dice = Dice::new(setup.seed);
        let usual = Link { cut: false, forgets: true, latency: setup.latency, loss: setup.loss };
        let net = Net::new(setup.devices, dice.split(), usual);
        let ids: Vec<DeviceId> = site.members.iter().map(|m| m.device.clone()).collect();
        let hub_clock = SimClock { wall_ms: 1_800_000_000_000.into(), ..SimClock::default() };
        let hub =
            SiteHub::new(Arc::new(hub_clock), &site, setup.edge, &mut Dice::new(setup.seed ^ 0x0068_7562));
        let mut devices = Vec::new();
        for (n, id) in ids.into_iter().enumerate() {
            let contents = Contents { entries: [first(&site)].into(), ..Contents::default() };
            let clock = Arc::new(SimClock {
                offset_ns: (dice.throw() % 1_000_000_000_000_000).into(),
                rate_ppm: setup.rates_ppm.get(n).copied().unwrap_or(0),
                wall_ms: 1_800_000_000_000.into(),
            });
            let store = StoreId { number: id.first_node().0, later: false };
            let store = Arc::new(Mutex::new(store));
            let fencer = Fencer::new(id.clone(), clock.clone(), timing.kill_after(), ledger.clone());
            let device = Device {
                id,
                disk: SimDisk::with(contents, dice.split()),
                clock,
                line: hub.lines[n].clone(),
                module: hub.modules[n].clone(),
                fencer,
                sees: Senses::default(),
                build: Arc::default(),
                live: Arc::default(),
                lives: Arc::default(),
                orders: Arc::default(),
                came: Arc::default(),
                store,
            };
            let own = device.clone();
            let hub = quorate::hub::Settings {
                refresh: setup.refresh,
                commands: setup.commands.clone(),
                ..quorate::hub::Settings::default()
            };
            let on = Site1 {
                site: site.clone(),
                net: net.clone(),
                n,
                hub,
                health: setup.health.clone(),
                builds: setup.builds,
                gate: setup.gate,
                seed: dice.throw(),
            };
            sim.host(dice.throw(), move || Box::pin(life(own.clone(), on.clone())));
            devices.push(device);
        }
        let count = setup.devices;
        let mut stage = Stage {
            sim,
            net,
            site,
            devices,
            ledger,
            hub,
            seed: setup.seed,
            usual,
            calm_since: Duration::ZERO,
            slowest: Duration::ZERO,
            leaving: vec![false; count],
            rebooted: vec![false; count],
            emptied: vec![false; count],
            dice,
            able: None,
            ordered: false,
            proven: 0,
            promises: Box::default(),
            told: setup.gate.then(|| vec![None; count]),
        };
        for n in setup.absent {
            stage.crash(n);
        }
        stage
    }

    /// Lets simulated time pass, checking every promise after every millisecond.
    pub fn pass(&mut self, time: Duration) {
        let until = self.sim.elapsed() + time;
        while self.sim.elapsed() < until {
            if let Err(broken) = self.step() {
                panic!("seed {}, at {:?}: {broken}\n{}", self.seed, self.sim.elapsed(), self.ledger.tell());
            }
        }
    }

    fn step(&mut self) -> Result<(), String> {
        self.sim.tick();
        self.net.deliver(self.sim.elapsed());
        for n in 0..self.devices.len() {
            let was_up = self.sim.is_up(n);
            self.sim.turn(n)?;
            if was_up && !self.sim.is_up(n) {
                self.exited(n);
            }
        }
        for device in &self.devices {
            device.fencer.mind_the_clock();
        }
        self.show_receipts();
        self.ask();
        let mut promises = std::mem::take(&mut self.promises);
        let kept = promises.check(self);
        self.promises = promises;
        kept
    }

    /// Every device's workload asks whether it may act, and acts until the longest word that it was told is over.
    fn ask(&mut self) {
        let Some(told) = &mut self.told else { return };
        for (n, held) in told.iter_mut().enumerate() {
            let device = &self.devices[n];
            let now = device.clock.now();
            if held.is_some_and(|(_, until)| now >= until) {
                *held = None;
                self.ledger.end(&device.id);
            }
            if self.sim.frozen(n).is_some() {
                continue;
            }
            let live = device.live.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(permit) = live.as_ref().map(|live| live.permits.borrow().at(now)) else { continue };
            if !permit.active {
                continue;
            }
            match held {
                Some((epoch, until)) if *epoch == permit.epoch => *until = (*until).max(permit.until),
                _ => {
                    self.ledger.end(&device.id);
                    self.ledger.begin(&device.id, permit.epoch, false);
                    *held = Some((permit.epoch, permit.until));
                }
            }
        }
    }

    /// A fencer whose sidecar is dead shows its receipt to every member that it can reach.
    fn show_receipts(&mut self) {
        for (n, device) in self.devices.iter().enumerate() {
            let Some(receipt) = device.fencer.receipt() else { continue };
            self.proven = self.proven.max(receipt.epoch.get());
            // A connection needs both directions.
            let reaches = |to: &usize| !self.net.link(n, *to).cut && !self.net.link(*to, n).cut;
            for to in (0..self.devices.len()).filter(|to| *to != n).filter(reaches) {
                self.devices[to].tell(Order::Hear(receipt));
            }
        }
    }

    /// Why the newest ownership that any device knows began.
    pub fn cause(&self) -> Option<Cause> {
        self.record().and_then(|record| record.history.back().map(|change| change.cause))
    }

    /// Something was done to the site, so nothing is owed for a while.
    pub fn disturbed(&mut self) {
        self.calm_since = self.sim.elapsed();
        self.able = None;
    }

    /// Whether a majority that can own is well and connected.
    pub fn able(&mut self) -> bool {
        if self.able.is_none() {
            self.able = Some(self.judge());
        } else if self.ordered {
            let able = self.judge();
            if self.able == Some(false) && able {
                self.calm_since = self.sim.elapsed();
            }
            self.able = Some(able);
        }
        self.able == Some(true)
    }

    /// The newest record that any device has applied.
    pub fn record(&self) -> Option<Arc<Record>> {
        let known = |device: &Device| {
            let live = device.live.lock().unwrap_or_else(PoisonError::into_inner);
            live.as_ref().map(|live| live.record.borrow().clone())
        };
        self.devices
            .iter()
            .filter_map(known)
            .max_by_key(|applied| applied.index)
            .map(|applied| applied.record)
    }

    fn judge(&self) -> bool {
        let count = self.devices.len();
        let well = |n: usize| {
            let device = &self.devices[n];
            self.sim.is_up(n)
                && self.sim.frozen(n).is_none()
                && !self.leaving[n]
                && !device.disk.is_bad()
                && !device.fencer.is_stuck()
                // Whoever has lost its store is no help until the others have taken it in.
                && !self.emptied[n]
        };
        let record = self.record();
        let may_own = |n: usize| match &record {
            Some(record) => record.may_claim(&self.devices[n].id).is_ok(),
            None => self.site.members[n].role.may_own(),
        };
        let usual = |a: usize, b: usize| {
            let link = self.net.link(a, b);
            !link.cut && link.latency <= self.usual.latency && link.loss <= self.usual.loss
        };
        (0u32..1 << count).any(|set| {
            let members: Vec<usize> = (0..count).filter(|n| set >> n & 1 == 1).collect();
            members.len() > count / 2
                && members.iter().all(|n| well(*n))
                && members.iter().any(|n| may_own(*n))
                && members.iter().all(|a| members.iter().all(|b| a == b || usual(*a, *b)))
        })
    }

    /// The longest that the site was without an owner while it was able to have one.
    pub fn longest_without_owner(&self) -> Duration {
        self.promises.longest_without_owner()
    }

    /// Everything observable so far, as one number.
    pub fn hash(&self) -> u64 {
        let mut hash = EventHash::default();
        hash.word(self.net.hash());
        hash.bytes(self.ledger.tell().as_bytes());
        hash.bytes(format!("{:?}", self.hub.memory.log()).as_bytes());
        for n in 0..self.devices.len() {
            hash.word(self.knows(n));
            hash.word(self.devices[n].disk.writes());
        }
        hash.word(log::hash());
        hash.get()
    }

    /// Lets time pass until the condition holds; fails after `limit`. Returns how long it took.
    pub fn until(&mut self, limit: Duration, what: &str, mut holds: impl FnMut(&Stage) -> bool) -> Duration {
        let begun = self.sim.elapsed();
        while !holds(self) {
            assert!(
                self.sim.elapsed() - begun < limit,
                "seed {}: not within {limit:?}: {what}\n{}",
                self.seed,
                self.ledger.tell()
            );
            self.pass(world::TICK);
        }
        self.sim.elapsed() - begun
    }

    /// The device on which the workload runs now.
    pub fn running(&self) -> Option<usize> {
        self.ledger.first().map(|device| self.index(&device))
    }

    pub fn index(&self, device: &DeviceId) -> usize {
        self.devices.iter().position(|d| d.id == *device).expect("a device of this site")
    }

    /// Waits until somebody runs the workload.
    pub fn someone_runs(&mut self, limit: Duration) -> usize {
        self.until(limit, "somebody runs the workload", |s| s.running().is_some());
        self.running().expect("just seen")
    }

    /// The epochs that were started so far, in order.
    pub fn epochs(&self) -> Vec<u64> {
        self.ledger.epochs()
    }

    /// The epoch that a device knows.
    pub fn knows(&self, n: usize) -> u64 {
        let live = self.devices[n].live.lock().unwrap_or_else(PoisonError::into_inner);
        live.as_ref().map_or(0, |live| live.record.borrow().record.epoch.get())
    }

    /// What a device's sidecar knows of the others, if there is one.
    pub fn roster(&self, n: usize) -> Option<Arc<Roster>> {
        let live = self.devices[n].live.lock().unwrap_or_else(PoisonError::into_inner);
        live.as_ref().map(|live| live.roster.clone())
    }

    /// Whether device `n` votes, with the store that it has, in every set of voters that device `at` knows.
    pub fn votes(&self, at: usize, n: usize) -> bool {
        let Some(members) = self.roster(at).map(|r| r.members()) else { return false };
        let (device, store) = (&self.devices[n].id, self.devices[n].store());
        let node = store.node(device);
        let noted = members.nodes.get(&node).is_some_and(|it| it.store == Some(store.number));
        noted && members.voters.iter().all(|set| set.contains(&node))
    }

    /// Whether a device knows all devices as voters with the stores that they have now, and nobody else.
    pub fn whole(&self, at: usize) -> bool {
        let nodes = self.roster(at).map_or(0, |r| r.members().nodes.len());
        nodes == self.devices.len() && (0..self.devices.len()).all(|n| self.votes(at, n))
    }

    /// Whether a device leads the group, by what its own Raft says.
    pub fn leads(&self, n: usize) -> bool {
        let live = self.devices[n].live.lock().unwrap_or_else(PoisonError::into_inner);
        live.as_ref().is_some_and(|live| live.role.borrow().standing != Standing::Follower)
    }

    /// Elections that a device has begun in this life.
    pub fn elections(&self, n: usize) -> u64 {
        let live = self.devices[n].live.lock().unwrap_or_else(PoisonError::into_inner);
        live.as_ref().map_or(0, |live| live.elections.load(Ordering::Relaxed))
    }

    /// What the newest record has all twins show, once somebody has owned.
    fn published(&self) -> Option<Published> {
        let record = self.record()?;
        let newest = record.history.back()?;
        Some(Published {
            site: self.site.id.clone(),
            devices: Vec::new(),
            owner: Some(newest.device.clone()),
            epoch: newest.epoch.get(),
            since_unix_ms: newest.since_unix_ms,
            reason: newest.reason.clone(),
        })
    }

    /// Whether the device twins show the present owner, word for word as the record has it.
    pub fn twins_agree(&self) -> bool {
        self.running().is_some() && self.published().is_some_and(|published| self.hub.shows(&published))
    }

    /// Whether the module twin of every device that is up does.
    pub fn modules_agree(&self) -> bool {
        let Some(published) = self.published().filter(|_| self.running().is_some()) else { return false };
        (0..self.devices.len()).filter(|n| self.sim.is_up(*n)).all(|n| {
            let device = &self.devices[n].id;
            self.hub.said(device).flag == Some(Flag::wanted(&published, device))
        })
    }

    /// Whom a device has asked, as the owner, to mirror in its place.
    pub fn mirrors_for(&self, n: usize) -> Option<usize> {
        let roster = self.roster(n)?;
        let through = (*roster.word().borrow()).filter(|word| word.from == roster.node)?.through?;
        roster.device_of(through).map(|device| self.index(&device))
    }

    /// Waits until the twins show the present owner.
    pub fn twins_follow(&mut self, limit: Duration) -> Duration {
        self.until(limit, "the twins show the owner", Stage::twins_agree)
    }

    /// The newest epoch that any device has applied.
    pub fn epoch(&self) -> u64 {
        (0..self.devices.len()).map(|n| self.knows(n)).max().unwrap_or(0)
    }
}
