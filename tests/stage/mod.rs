//! A whole site in one deterministic simulation: the real node, the real gRPC between members, on a simulated LAN,
//! simulated disks and clocks, with a workload that writes down when it ran.
//!
//! What is simulated: sockets (turmoil), time (tokio's, paused), the boot clock of each device (offset and rate of its
//! own), the disk (`MemoryDisk`, survives a crash but for what was not yet written), the workload and its fencer, the
//! IoT Hub (`MemoryHub` behind a line of its own per device). Everything else is the product, the mirror included.
//! The same seed gives the same run.

pub mod hub;
pub mod ledger;
mod log;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hub::{SimLine, SiteHub};
use ledger::{Ledger, SimWorkload};
use quorate::{
    clock::{Clock, Moment},
    dice::Dice,
    id::{DeviceId, Incarnation, SiteId},
    node::{
        Environment, Node,
        door::{NodeDoor, Surroundings},
    },
    ownership::record::Record,
    raft::{
        log::{Contents, memory::MemoryDisk},
        peer::transport::{Connection, Dialer, Incoming},
    },
    site::{Member, Role, Site},
    status::door::{Answer, Door as _},
    timing::{Settings, Timing},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const PORT: u16 = 7600;

/// A device's boot clock: simulated time with an offset and a rate of its own.
#[derive(Debug)]
pub struct SimClock {
    offset: Duration,
    rate_ppm: u64,
    wall_ms: Arc<Mutex<u64>>,
}

impl Clock for SimClock {
    fn now(&self) -> Moment {
        let true_ns = turmoil::sim_elapsed().unwrap_or_default().as_nanos();
        let local = true_ns * u128::from(1_000_000 + self.rate_ppm) / 1_000_000;
        Moment::from_nanos(u64::try_from(local).expect("a short simulation")) + self.offset
    }

    fn wall_ms(&self) -> u64 {
        let base = *self.wall_ms.lock().unwrap_or_else(PoisonError::into_inner);
        base + u64::try_from(turmoil::sim_elapsed().unwrap_or_default().as_millis()).expect("short")
    }
}

struct SimDialer;

impl Dialer for SimDialer {
    fn dial(&self, address: String) -> Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>> {
        Box::pin(async move {
            let stream = turmoil::net::TcpStream::connect(address.clone()).await?;
            Ok(Connection::new(stream, address))
        })
    }
}

async fn listen() -> io::Result<Incoming> {
    let listener = turmoil::net::TcpListener::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), PORT)).await?;
    Ok(Box::pin(futures_util::stream::unfold(listener, |listener| async {
        let accepted =
            listener.accept().await.map(|(stream, from)| Connection::new(stream, from.to_string()));
        Some((accepted, listener))
    })))
}

/// What survives a device's crash, and what the test may change.
#[derive(Clone)]
pub struct Device {
    pub id: DeviceId,
    pub disk: MemoryDisk,
    pub clock: Arc<SimClock>,
    pub wall_ms: Arc<Mutex<u64>>,
    pub record: Arc<Mutex<Option<Arc<Record>>>>,
    pub elections: Arc<Mutex<u64>>,
    pub transfer_to: Arc<Mutex<Option<DeviceId>>>,
    pub leave: Arc<Mutex<bool>>,
    pub lives: Arc<Mutex<u64>>,
    pub line: SimLine,
}

/// A simulated site.
pub struct Stage {
    pub sim: turmoil::Sim<'static>,
    pub site: Site,
    pub devices: Vec<Device>,
    pub ledger: Ledger,
    pub hub: SiteHub,
    pub seed: u64,
    checked: Checked,
}

/// What was looked at last, so that only what is new is looked at again.
#[derive(Default)]
struct Checked {
    ledger: u64,
    owners: BTreeMap<u64, (DeviceId, Incarnation)>,
    /// Each device's life, and the epoch that it has last known.
    epochs: BTreeMap<usize, (u64, u64)>,
    reached: u64,
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
            address: format!("{}:{PORT}", name(n)),
            role: if setup.witnesses.contains(&n) { Role::Witness } else { Role::Voter },
        };
        let site = Site {
            id: SiteId::new("plant-7").expect("a name"),
            members: (0..setup.devices).map(member).collect(),
            timing,
        };
        let mut sim = turmoil::Builder::new()
            .rng_seed(setup.seed)
            .simulation_duration(Duration::from_secs(24 * 3600))
            .tick_duration(Duration::from_millis(1))
            .min_message_latency(setup.latency.0)
            .max_message_latency(setup.latency.1)
            .tcp_capacity(4096)
            .fail_rate(setup.loss)
            .repair_rate(if setup.loss > 0.0 { 0.5 } else { 1.0 })
            .build();
        let ledger = Ledger::default();
        let mut dice = Dice::new(setup.seed);
        let mut devices = Vec::new();
        let ids: Vec<DeviceId> = site.members.iter().map(|m| m.device.clone()).collect();
        let hub_clock = SimClock {
            offset: Duration::ZERO,
            rate_ppm: 0,
            wall_ms: Arc::new(Mutex::new(1_800_000_000_000)),
        };
        let hub = SiteHub::new(Arc::new(hub_clock), &ids, &mut Dice::new(setup.seed ^ 0x0068_7562));
        let refresh = setup.refresh;
        for n in 0..setup.devices {
            let wall_ms = Arc::new(Mutex::new(1_800_000_000_000));
            let contents = Contents { entries: [first(&site)].into(), ..Contents::default() };
            let device = Device {
                id: site.members[n].device.clone(),
                disk: MemoryDisk::with(contents),
                clock: Arc::new(SimClock {
                    offset: Duration::from_millis(dice.throw() % 1_000_000),
                    rate_ppm: setup.rates_ppm.get(n).copied().unwrap_or(0),
                    wall_ms: wall_ms.clone(),
                }),
                wall_ms,
                record: Arc::default(),
                elections: Arc::default(),
                transfer_to: Arc::default(),
                leave: Arc::default(),
                lives: Arc::default(),
                line: hub.lines[n].clone(),
            };
            let (site, ledger, own) = (site.clone(), ledger.clone(), device.clone());
            let seed = dice.throw();
            let run = Rc::new(move || life(site.clone(), own.clone(), ledger.clone(), refresh, seed));
            sim.host(name(n), move || {
                let run = run.clone();
                async move { run().await }
            });
            devices.push(device);
        }
        let mut stage =
            Stage { sim, site, devices, ledger, hub, seed: setup.seed, checked: Checked::default() };
        for n in setup.absent {
            stage.crash(n);
        }
        stage
    }

    /// Lets simulated time pass, checking every promise after every millisecond.
    pub fn pass(&mut self, time: Duration) {
        let until = self.sim.elapsed() + time;
        while self.sim.elapsed() < until {
            self.sim.step().unwrap_or_else(|e| panic!("seed {}: {e}", self.seed));
            self.ledger.tick(self.sim.elapsed());
            self.check();
        }
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
            self.pass(Duration::from_millis(1));
        }
        self.sim.elapsed() - begun
    }

    /// The promises that hold at every instant.
    fn check(&mut self) {
        let version = self.ledger.version();
        if std::mem::replace(&mut self.checked.ledger, version) != version
            && let Some(broken) = self.ledger.broken()
        {
            panic!(
                "seed {}: two workloads overlap, or an epoch came back: {broken}\n{}",
                self.seed,
                self.ledger.tell()
            );
        }
        for n in 0..self.devices.len() {
            self.check_record(n);
        }
        if let Err(broken) = self.hub.check(self.checked.reached) {
            panic!("seed {}: {broken}\n{}", self.seed, self.ledger.tell());
        }
    }

    /// One owner per epoch, and no device's epoch goes back.
    fn check_record(&mut self, n: usize) {
        let record = self.devices[n].record.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = record.as_ref() else { return };
        let epoch = record.epoch.get();
        let life = *self.devices[n].lives.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.checked.epochs.entry(n).or_default();
        if (life, epoch) == *known {
            return;
        }
        // A restart applies the log again from its snapshot on, so this holds within one life.
        assert!(known.0 != life || known.1 < epoch, "seed {}: an epoch went back: {known:?}", self.seed);
        *known = (life, epoch);
        self.checked.reached = self.checked.reached.max(epoch);
        if let Some(owner) = &record.owner {
            let this = (owner.device.clone(), owner.incarnation);
            let first = self.checked.owners.entry(owner.epoch.get()).or_insert_with(|| this.clone());
            assert_eq!(*first, this, "seed {}: one epoch, two owners", self.seed);
        }
    }

    /// The device on which the workload runs now.
    pub fn running(&self) -> Option<usize> {
        self.ledger.running().first().map(|(device, _)| self.index(device))
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

    /// The power of a device goes: the sidecar and the workload end at once.
    pub fn crash(&mut self, n: usize) {
        self.sim.crash(name(n));
        self.ledger.power_off(&self.devices[n].id);
    }

    /// The sidecar alone is killed: its fencer stops the workload, within the grace.
    pub fn kill_sidecar(&mut self, n: usize) {
        self.sim.crash(name(n));
        self.ledger.orphan(&self.devices[n].id, self.site.timing);
    }

    /// The device starts again, with the disk it had.
    pub fn start(&mut self, n: usize) {
        *self.devices[n].leave.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.sim.bounce(name(n));
    }

    /// The device starts again, unless it is up.
    pub fn start_if_down(&mut self, n: usize) {
        if !self.sim.is_host_running(name(n)) {
            self.start(n);
        }
    }

    /// Cuts both directions between two devices.
    pub fn cut(&mut self, a: usize, b: usize) {
        self.sim.partition(name(a), name(b));
    }

    /// Cuts one direction.
    pub fn cut_one_way(&mut self, from: usize, to: usize) {
        self.sim.partition_oneway(name(from), name(to));
    }

    /// Mends both directions.
    pub fn mend(&mut self, a: usize, b: usize) {
        self.sim.repair(name(a), name(b));
    }

    /// Cuts a device off from all others.
    pub fn isolate(&mut self, n: usize) {
        for other in (0..self.devices.len()).filter(|o| *o != n) {
            self.cut(n, other);
        }
    }

    /// Makes messages between a device and all others slow.
    pub fn slow_links(&mut self, n: usize, latency: Duration) {
        for other in (0..self.devices.len()).filter(|o| *o != n) {
            self.sim.set_link_latency(name(n), name(other), latency);
        }
    }

    /// Mends all links.
    pub fn heal(&mut self) {
        for a in 0..self.devices.len() {
            for b in 0..a {
                self.mend(a, b);
            }
        }
    }

    /// The epoch that a device knows.
    pub fn knows(&self, n: usize) -> u64 {
        let record = self.devices[n].record.lock().unwrap_or_else(PoisonError::into_inner);
        record.as_ref().map_or(0, |r| r.epoch.get())
    }

    /// Asks for a planned handover, at a device that is not the owner.
    pub fn transfer(&mut self, to: usize) {
        let owner = self.running().unwrap_or(to);
        let at = (0..self.devices.len()).find(|n| *n != owner).unwrap_or(to);
        let mut wish = self.devices[at].transfer_to.lock().unwrap_or_else(PoisonError::into_inner);
        *wish = Some(self.devices[to].id.clone());
    }

    /// SIGTERM to a sidecar.
    pub fn leave(&mut self, n: usize) {
        *self.devices[n].leave.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Steps a device's wall clock.
    pub fn set_wall_clock(&mut self, n: usize, unix_ms: u64) {
        *self.devices[n].wall_ms.lock().unwrap_or_else(PoisonError::into_inner) = unix_ms;
    }

    /// Whether the twins show the present owner.
    pub fn twins_agree(&self) -> bool {
        self.running().is_some_and(|n| self.hub.shows(&self.devices[n].id, self.epoch()))
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

fn first(site: &Site) -> (u64, bytes::Bytes) {
    let (id, bytes) = quorate::raft::log::first_entry(site).expect("encodes");
    (id.index, bytes)
}

/// One life of one device.
async fn life(site: Site, device: Device, ledger: Ledger, refresh: Duration, seed: u64) -> turmoil::Result {
    let lives = {
        let mut lives = device.lives.lock().unwrap_or_else(PoisonError::into_inner);
        *lives += 1;
        *lives
    };
    // What the life before knew is on its disk, if anywhere.
    *device.record.lock().unwrap_or_else(PoisonError::into_inner) = None;
    let mut dice = Dice::new(seed ^ lives.wrapping_mul(0x9e37_79b9));
    let clock: Arc<dyn Clock> = device.clock.clone();
    let workload = SimWorkload::new(device.id.clone(), clock.clone(), site.timing, ledger.clone());
    // A sidecar waits for whatever its predecessor left running before it takes part.
    workload.none_left().await;
    let environment = Environment {
        clock: clock.clone(),
        dice: dice.split(),
        incarnation: Incarnation(dice.throw()),
        store: device.id.node_id().0,
        disk: Arc::new(device.disk.clone()),
        boot_refusal: site.timing.refusal(),
        dialer: Arc::new(SimDialer),
        incoming: listen().await?,
        workload: Arc::new(workload),
    };
    let node = Node::start(site.clone(), device.id.clone(), environment).await.map_err(|e| e.to_string())?;
    let settings = quorate::hub::Settings { refresh, ..quorate::hub::Settings::default() };
    let _state = node.mirror(Arc::new(device.line.clone()), settings, dice.split());
    let node = Arc::new(node);
    let surroundings = Surroundings {
        mirror: None,
        workload_kind: "process",
        workload_conditions: watch::channel(Vec::new()).1,
    };
    let (faces, stop) = (TaskTracker::new(), CancellationToken::new());
    let door = NodeDoor::open(node.clone(), surroundings, dice.split(), &faces, stop.clone());
    let _stop = stop.drop_guard();
    let mut record = node.group.record();
    let mut poll = tokio::time::interval(Duration::from_millis(1));
    loop {
        tokio::select! {
            biased;
            _ = poll.tick() => {}
            Ok(()) = record.changed() => {}
        }
        let moment = clock.now();
        if let Answer::Known { owner: Some(owner), epoch, until, .. } = door.answers().borrow().at(moment) {
            ledger.told(&device.id, &owner, epoch.get(), until.since(moment));
        }
        let now = record.borrow_and_update().record.clone();
        *device.record.lock().unwrap_or_else(PoisonError::into_inner) = Some(now.clone());
        *device.elections.lock().unwrap_or_else(PoisonError::into_inner) =
            node.elections.load(std::sync::atomic::Ordering::Relaxed);
        let to = device.transfer_to.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(to) = to {
            let command =
                quorate::ownership::command::Command::Transfer(quorate::ownership::command::Transfer {
                    id: dice.throw(),
                    to,
                    base: now.epoch,
                    reason: "the test wants it".into(),
                    actor: "test".into(),
                    at_unix_ms: 0,
                });
            let group = node.group.clone();
            node.spawn(async move {
                let _ = group.propose(command, Duration::from_secs(5)).await;
            });
        }
        if *device.leave.lock().unwrap_or_else(PoisonError::into_inner) {
            node.leave().await;
            return Ok(());
        }
        if let Some(reason) = &node.group.role().borrow().fatal {
            return Err(format!("{}: {reason}", device.id).into());
        }
    }
}
