//! One device of the simulated site: its clock, and one life of the real node on it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use quorate::{
    clock::{Clock, Moment},
    dice::Dice,
    id::{DeviceId, Incarnation, StoreId},
    node::{
        Environment, Node,
        door::{NodeDoor, Surroundings},
    },
    ownership::{
        command::{Command, Transfer},
        moves::Policy,
        probe::Thresholds,
        record::BuildPolicy,
    },
    probe::{self, Place, Probe, Target},
    raft::{Applied, Role, log::Contents, peer::Roster},
    reconcile::commands::{Corridor as _, Fulfilled, Refusal, Wish},
    seal::Receipt,
    site::Site,
    status::{
        door::{Answer, Door as _, Permit},
        events::Events,
    },
    workload::{self, BoxFuture, OwnershipOnly},
};
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    disk::SimDisk,
    hub::SimLine,
    module::SimModule,
    net::{Net, SimDialer},
    workload::{Fencer, SimWorkload},
    world::now,
};

/// For how long a sidecar whose disk has failed goes on, without a vote.
const LINGER: Duration = Duration::from_secs(60);

/// A device's boot clock: simulated time with an offset and a rate of its own. A reboot begins a new offset.
#[derive(Debug, Default)]
pub struct SimClock {
    pub offset_ns: AtomicU64,
    pub rate_ppm: u64,
    /// The wall clock is so much ahead of simulated time.
    pub wall_ms: AtomicU64,
}

impl Clock for SimClock {
    fn now(&self) -> Moment {
        let local = now().as_nanos() * u128::from(1_000_000 + self.rate_ppm) / 1_000_000;
        let offset = Duration::from_nanos(self.offset_ns.load(Ordering::Relaxed));
        Moment::from_nanos(u64::try_from(local).expect("a short simulation")) + offset
    }

    fn wall_ms(&self) -> u64 {
        self.wall_ms.load(Ordering::Relaxed) + u64::try_from(now().as_millis()).expect("short")
    }
}

/// What a person or a supervisor tells a sidecar.
pub enum Order {
    Transfer(DeviceId),
    /// A person's command, as a face proposes it.
    Propose(Command),
    /// A person's wish, by the corridor that gRPC and the cloud share.
    Wish(Wish),
    Leave,
    /// Another build is here now.
    Build(String),
    /// A fencer shows its receipt.
    Hear(Receipt),
    /// The workload cannot work here, or can again.
    Ail(Option<String>),
}

/// What can be seen of a life from outside.
pub struct Live {
    pub record: watch::Receiver<Applied>,
    pub answers: watch::Receiver<Answer>,
    /// What programs on the device are told of their right to act.
    pub permits: watch::Receiver<Permit>,
    pub elections: Arc<AtomicU64>,
    pub role: watch::Receiver<Role>,
    pub roster: Arc<Roster>,
}

/// What the probes of a device find.
#[derive(Clone, Debug)]
pub struct Senses {
    pub plant: Arc<AtomicBool>,
    /// Whether the workload works where it runs.
    pub workload: Arc<AtomicBool>,
}

impl Default for Senses {
    fn default() -> Senses {
        let right = || Arc::new(AtomicBool::new(true));
        Senses { plant: right(), workload: right() }
    }
}

struct SimProbe(Arc<AtomicBool>);

impl Probe for SimProbe {
    fn ask(&mut self) -> BoxFuture<'_, Result<(), String>> {
        let passes = self.0.load(Ordering::Relaxed);
        Box::pin(async move { if passes { Ok(()) } else { Err("it is off".into()) } })
    }
}

impl Senses {
    /// One probe of the plant and one of the workload, with the usual settings.
    fn probes(&self) -> Vec<(probe::Settings, Box<dyn Probe>)> {
        let probe = |name: &str, role, what: &Arc<AtomicBool>| {
            let place = Place { host: name.into(), port: 1 };
            let settings = probe::Settings {
                name: name.into(),
                role,
                target: Target::Tcp(place),
                every: Duration::from_secs(1),
                timeout: Duration::from_millis(500),
                thresholds: Thresholds { fail_after: 3, pass_after: 2, grace: Duration::ZERO },
            };
            (settings, Box::new(SimProbe(what.clone())) as Box<dyn Probe>)
        };
        vec![
            probe("plant", probe::Role::Plant, &self.plant),
            probe("workload", probe::Role::Workload, &self.workload),
        ]
    }
}

/// What survives a device's crash, and what the test may change.
#[derive(Clone)]
pub struct Device {
    pub id: DeviceId,
    pub disk: SimDisk,
    pub clock: Arc<SimClock>,
    pub line: SimLine,
    pub module: SimModule,
    pub fencer: Fencer,
    pub sees: Senses,
    /// What is installed; `None`: nobody can tell.
    pub build: Arc<Mutex<Option<String>>>,
    pub live: Arc<Mutex<Option<Live>>>,
    pub lives: Arc<AtomicU64>,
    pub orders: Arc<Mutex<Option<mpsc::UnboundedSender<Order>>>>,
    /// What came of the wishes, in the order in which that was known.
    pub came: Arc<Mutex<Vec<Result<Fulfilled, Refusal>>>>,
    /// Which store is on the disk.
    pub store: Arc<Mutex<StoreId>>,
}

impl Device {
    /// Tells the sidecar, if there is one.
    pub fn tell(&self, order: Order) {
        if let Some(orders) = &*self.orders.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = orders.send(order);
        }
    }

    /// Which store is on the disk.
    pub fn store(&self) -> StoreId {
        *self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another store is on the disk now.
    pub fn make_store(&self, contents: Contents, store: StoreId) {
        self.disk.replace(contents);
        *self.store.lock().unwrap_or_else(PoisonError::into_inner) = store;
    }

    /// The sidecar is gone.
    pub fn gone(&self) {
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.orders.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

pub(super) fn first(site: &Site) -> (u64, bytes::Bytes) {
    let (id, bytes) = quorate::raft::log::first_entry(site).expect("encodes");
    (id.index, bytes)
}

/// What a life is made of, besides its device.
#[derive(Clone)]
pub(super) struct Site1 {
    pub site: Site,
    pub net: Net,
    pub n: usize,
    pub hub: quorate::hub::Settings,
    /// Whether the plant and the workload are asked, and how willingly the ownership moves then.
    pub health: Option<Policy>,
    /// Whether it says what it runs, and owns by this policy.
    pub builds: Option<BuildPolicy>,
    /// The workload runs everywhere and asks.
    pub gate: bool,
    pub seed: u64,
}

/// One life of one device. Ends well after leaving, and with a disk that cannot be trusted any more. Begins anew if the
/// device finds out that it has lost its store.
pub(super) async fn life(device: Device, on: Site1) -> Result<(), String> {
    while one_life(&device, on.clone()).await? {
        on.net.unlisten(on.n);
        let number = device.store().number.wrapping_add(1);
        device.make_store(Contents::default(), StoreId { number, later: true });
    }
    Ok(())
}

/// Returns whether it is to start over with a later store.
async fn one_life(device: &Device, on: Site1) -> Result<bool, String> {
    let lives = device.lives.fetch_add(1, Ordering::Relaxed) + 1;
    let (sender, mut orders) = mpsc::unbounded_channel();
    *device.orders.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
    let mut dice = Dice::new(on.seed ^ lives.wrapping_mul(0x9e37_79b9));
    let clock: Arc<dyn Clock> = device.clock.clone();
    let workload = SimWorkload::new(device.fencer.clone(), lives);
    // A sidecar waits for whatever its predecessor left running before it takes part.
    workload.none_left().await;
    device.disk.reopen();
    let (faces, stop) = (TaskTracker::new(), CancellationToken::new());
    let workload: workload::Handle = match on.gate {
        true => Arc::new(OwnershipOnly::new(clock.clone(), &faces, stop.clone())),
        false => Arc::new(workload),
    };
    let environment = Environment {
        clock: clock.clone(),
        dice: dice.split(),
        incarnation: Incarnation(dice.throw()),
        store: device.store(),
        disk: Arc::new(device.disk.clone()),
        boot_refusal: on.site.timing.refusal(),
        dialer: Arc::new(SimDialer { net: on.net.clone(), from: on.n }),
        incoming: on.net.listen(on.n),
        workload,
    };
    let node =
        Node::start(on.site.clone(), device.id.clone(), environment).await.map_err(|e| e.to_string())?;
    if let Some(policy) = on.health {
        node.look_after(device.sees.probes(), policy);
    }
    let _state = node.mirror(Arc::new(device.line.clone()), on.hub.clone(), dice.split());
    let (face, ends) = node.module(Arc::new(device.module.clone()), &on.hub, dice.split());
    let node = Arc::new(node);
    if let Some(policy) = on.builds {
        node.compare_builds(policy);
        let build = device.build.lock().unwrap_or_else(PoisonError::into_inner).clone();
        build.inspect(|build| node.declare_build(build));
    }
    let surroundings = Surroundings {
        mirror: None,
        module: Some(face),
        workload_kind: "process",
        workload_conditions: watch::channel(Vec::new()).1,
        events: Events::default(),
    };
    let door = NodeDoor::open(node.clone(), surroundings, dice.split(), &faces, stop.clone());
    door.speak(ends);
    let _stop = stop.drop_guard();
    let live = Live {
        record: node.group.record(),
        answers: door.answers(),
        permits: door.permits(),
        elections: node.elections.clone(),
        role: node.group.role(),
        roster: node.group.roster().clone(),
    };
    *device.live.lock().unwrap_or_else(PoisonError::into_inner) = Some(live);
    loop {
        tokio::select! {
            biased;
            reason = node.failed() => {
                if node.group.disk_failed().borrow().is_none() && !device.disk.is_bad() {
                    return Err(format!("{}: {reason}", device.id));
                }
                // It stays for a while, to be seen.
                tokio::time::sleep(LINGER).await;
                return Ok(false);
            }
            () = node.starts_over() => {
                node.leave().await;
                return Ok(true);
            }
            Some(order) = orders.recv() => match order {
                Order::Leave => {
                    node.leave().await;
                    return Ok(false);
                }
                Order::Build(build) => node.declare_build(&build),
                Order::Hear(receipt) => node.group.attested(receipt),
                Order::Ail(why) => node.ails("test", why),
                Order::Wish(wish) => {
                    let (door, came) = (door.clone(), device.came.clone());
                    node.spawn(async move {
                        let outcome = door.order(wish).await;
                        came.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                    });
                }
                Order::Propose(command) => {
                    let group = node.group.clone();
                    node.spawn(async move {
                        let _ = group.propose(command, Duration::from_secs(5)).await;
                    });
                }
                Order::Transfer(to) => {
                    let base = node.group.record().borrow().record.epoch;
                    let transfer = Transfer {
                        id: dice.throw(),
                        to,
                        base,
                        reason: "the test wants it".into(),
                        actor: "test".into(),
                        at_unix_ms: 0,
                        expires_unix_ms: 0,
                    };
                    let group = node.group.clone();
                    node.spawn(async move {
                        let _ = group.propose(Command::Transfer(transfer), Duration::from_secs(5)).await;
                    });
                }
            }
        }
    }
}
