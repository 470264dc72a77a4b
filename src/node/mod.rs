//! Puts the rooms together into one running sidecar. The only place that knows them all.
//!
//! [`Node::start`] is handed everything that touches the world ([`Environment`]), so that the same node runs on a real
//! device and in a simulated site. The loops meet only through the watch channels made here.

mod builds;
mod care;
mod corridor;
pub mod door;
pub mod events;
mod health;
mod mirror;
pub mod module;
mod report;
pub mod run;
mod told;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::{Clock, Moment},
    condition::{Condition, Raised},
    dice::Dice,
    id::{DeviceId, Incarnation, StoreId},
    ownership::{view::Unfit, vitals::Strain},
    raft::{
        Applied, Group, Parts,
        log::Disk,
        peer::{
            Roster,
            transport::{DialerHandle, Incoming},
        },
    },
    reconcile::{
        candidacy::{CandidacyLoop, Last},
        contact::ContactLoop,
        lease::{Held, LeaseLoop},
        members::MembersLoop,
        meter::Meter,
        ownership::{Decided, OwnershipLoop},
        pace::{Ailments, PaceLoop},
        pauses::PauseLoop,
    },
    site::Site,
    workload,
};

/// Everything that touches the world.
pub struct Environment {
    /// The clock that decisions read.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub dice: Dice,
    /// Drawn at random for this life of the sidecar.
    pub incarnation: Incarnation,
    /// Which store is on `disk`.
    pub store: StoreId,
    /// The disk, opened and checked.
    pub disk: Arc<dyn Disk>,
    /// How long not to vote after this start.
    pub boot_refusal: Duration,
    /// How other members are reached.
    pub dialer: DialerHandle,
    /// How other members reach this one.
    pub incoming: Incoming,
    /// The workload.
    pub workload: workload::Handle,
}

/// One running sidecar.
pub struct Node {
    /// The group; for faces and tests.
    pub group: Group,
    /// The lease.
    pub held: watch::Receiver<Option<Held>>,
    /// The last decision.
    pub decided: watch::Receiver<Option<Decided>>,
    /// What is observed of the workload.
    pub observed: watch::Receiver<workload::Observed>,
    /// Elections that this device began.
    pub elections: Arc<AtomicU64>,
    /// What was measured of this device and its network.
    pub meter: Meter,
    /// Whether this device is strained.
    pub strain: watch::Receiver<Option<Strain>>,
    /// Why it goes last in elections, if so.
    pub last: watch::Receiver<Option<Last>>,
    /// When it started.
    pub started: Moment,
    starts_over: watch::Receiver<bool>,
    unfit: watch::Sender<Option<Unfit>>,
    folder: watch::Sender<Vec<Raised>>,
    health: health::Health,
    builds: builds::Builds,
    ailments: watch::Sender<Ailments>,
    clock: Arc<dyn Clock>,
    workload: workload::Handle,
    tasks: TaskTracker,
    loops: CancellationToken,
    serving: CancellationToken,
}

/// How long leaving may take to hand over, once the workload has stopped, before it is abandoned.
const LEAVE_LIMIT: Duration = Duration::from_secs(3);

impl Node {
    /// Starts the member and its loops.
    ///
    /// # Errors
    /// If the disk holds something that does not fit.
    pub async fn start(site: Site, me: DeviceId, environment: Environment) -> anyhow::Result<Node> {
        let Environment {
            clock,
            mut dice,
            incarnation,
            store,
            disk,
            boot_refusal,
            dialer,
            incoming,
            workload,
        } = environment;
        let tasks = TaskTracker::new();
        let (loops, serving) = (CancellationToken::new(), CancellationToken::new());
        let started = clock.now();
        let role = site.member(&me).map(|m| m.role);
        let roster = Arc::new(Roster::new(site, me, incarnation, store, clock.clone()));
        let unfit = watch::Sender::new(role.filter(|r| !r.may_own()).map(|_| Unfit::Witness));
        let parts = Parts {
            roster: roster.clone(),
            disk,
            boot_refusal,
            dialer,
            clock: clock.clone(),
            tasks: tasks.clone(),
        };
        let group = Group::start(parts).await?;
        let serve = group.clone();
        let until = serving.clone();
        tasks.spawn(async move {
            if let Err(e) = serve.serve(incoming, until).await {
                tracing::error!("the listener for other members has ended: {e}");
            }
        });

        let held = watch::Sender::new(None);
        let decided = watch::Sender::new(None);
        let elections = Arc::new(AtomicU64::new(0));
        let (meter, strain, last) = (Meter::default(), watch::Sender::new(None), watch::Sender::new(None));
        let starts_over = watch::Sender::new(false);
        let node = Node {
            group: group.clone(),
            held: held.subscribe(),
            decided: decided.subscribe(),
            observed: workload.observe(),
            elections: elections.clone(),
            meter: meter.clone(),
            strain: strain.subscribe(),
            last: last.subscribe(),
            started,
            starts_over: starts_over.subscribe(),
            clock: clock.clone(),
            workload: workload.clone(),
            tasks,
            loops,
            serving,
            unfit,
            folder: watch::Sender::default(),
            health: health::Health::new(),
            builds: builds::Builds::default(),
            ailments: watch::Sender::default(),
        };
        let lease = LeaseLoop {
            group: group.clone(),
            clock: clock.clone(),
            workload: workload.clone(),
            unfit: node.unfit.subscribe(),
            held,
            meter: meter.clone(),
        };
        node.spawn(lease.run(node.loops.clone()));
        let candidacy = CandidacyLoop {
            group: group.clone(),
            clock: clock.clone(),
            dice: dice.split(),
            unfit: node.unfit.subscribe(),
            last,
            elections,
        };
        node.spawn(candidacy.run(node.loops.clone()));
        let ownership = OwnershipLoop {
            group: group.clone(),
            workload,
            clock: clock.clone(),
            held: node.held.clone(),
            unfit: node.unfit.subscribe(),
            decided,
        };
        node.spawn(ownership.run(node.loops.clone()));
        let pace = PaceLoop {
            group: group.clone(),
            clock: clock.clone(),
            meter,
            unfit: node.unfit.clone(),
            ailments: node.ailments.subscribe(),
            observed: node.observed.clone(),
            failing: node.health.failing.subscribe(),
            policy: node.health.policy.subscribe(),
            held: node.health.held.clone(),
            strain,
        };
        node.spawn(pace.run(node.loops.clone()));
        let members = MembersLoop { group: group.clone(), clock: clock.clone(), starts_over };
        node.spawn(members.run(node.loops.clone()));
        let pauses = PauseLoop { group: group.clone(), clock: clock.clone() };
        node.spawn(pauses.run(node.loops.clone()));
        node.spawn(ContactLoop { group, clock }.run(node.loops.clone()));
        node.mind_the_disk();
        Ok(node)
    }

    /// A device whose disk has failed owns no more; that it votes no more is the guard's business.
    fn mind_the_disk(&self) {
        let (mut failed, unfit) = (self.group.disk_failed(), self.unfit.clone());
        let (roster, loops) = (self.group.roster().clone(), self.loops.clone());
        self.spawn(async move {
            let failure = tokio::select! {
                biased;
                () = loops.cancelled() => return,
                failed = failed.wait_for(Option::is_some) => match failed {
                    Ok(failure) => failure.as_ref().map(|f| f.error.clone()).unwrap_or_default(),
                    Err(_) => return,
                },
            };
            tracing::error!(
                condition = Condition::DiskFailed.name(),
                "a write to the store failed: {failure}"
            );
            unfit.send_if_modified(|unfit| {
                let stays = *unfit != Some(Unfit::Leaving);
                if stays {
                    *unfit = Some(Unfit::DiskFailed);
                }
                stays
            });
            roster.declare_unfit(&Unfit::DiskFailed.to_string());
            roster.declare_barred();
        });
    }

    /// What a person should know of the data folder from now on.
    pub fn tell_of_folder(&self, raised: Vec<Raised>) {
        self.folder.send_replace(raised);
    }

    /// The workload cannot work on this device because of `what`, or can as far as that goes. Until it can, this device does not
    /// own.
    pub fn ails(&self, what: &'static str, why: Option<String>) {
        self.ailments.send_if_modified(|ailments| {
            let before = ailments.get(what).cloned();
            match &why {
                Some(why) => ailments.insert(what, why.clone()),
                None => ailments.remove(what),
            };
            before != why
        });
    }

    /// Spawns a task that leaving waits for.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Ends when consensus has stopped for good, with the reason.
    pub async fn failed(&self) -> String {
        let mut role = self.group.role();
        loop {
            if let Some(reason) = &role.borrow_and_update().fatal {
                return reason.clone();
            }
            if role.changed().await.is_err() {
                return "consensus has ended".into();
            }
        }
    }

    /// Ends when the store, which was never of use, is to be made anew as a later one: this device has lost another.
    pub async fn starts_over(&self) {
        let mut starts_over = self.starts_over.clone();
        if starts_over.wait_for(|it| *it).await.is_err() {
            std::future::pending().await
        }
    }

    /// Leaves in good order: gives up the ownership (the workload is stopped, the receipt committed, the next device
    /// named), then stops the loops, the workload whatever happened, and Raft.
    pub async fn leave(&self) {
        self.unfit.send_replace(Some(Unfit::Leaving));
        self.group.roster().declare_unfit("its sidecar is shutting down");
        let mut record = self.group.record();
        // A member whose Raft has stopped commits nothing any more, and votes for nobody.
        if self.group.role().borrow().fatal.is_none() {
            self.hand_over(&mut record).await;
        }
        self.loops.cancel();
        if let Err(e) = self.workload.stop().await {
            tracing::error!("the workload's end is not confirmed: {e}");
        }
        self.serving.cancel();
        self.group.shutdown().await;
        self.tasks.close();
        if tokio::time::timeout(LEAVE_LIMIT, self.tasks.wait()).await.is_err() {
            tracing::debug!("some tasks were still running at the end");
        }
    }

    async fn hand_over(&self, record: &mut watch::Receiver<Applied>) {
        let roster = self.group.roster();
        let released = record.wait_for(|a| a.record.owned_by(&roster.me, roster.incarnation).is_none());
        let mut observed = self.observed.clone();
        let in_time = async {
            let stopped = observed.wait_for(|o| *o == workload::Observed::Stopped);
            let _ = tokio::time::timeout(*workload::STOP_TIMEOUT.end(), stopped).await;
            tokio::time::sleep(LEAVE_LIMIT).await;
        };
        let released = tokio::select! {
            biased;
            _ = released => true,
            () = in_time => false,
        };
        if !released {
            tracing::warn!("left without handing over: the site did not commit the stop receipt in time");
        }
        // Whoever follows needs this member's vote and its log; a moment later it needs neither.
        let followed = record.wait_for(|a| a.record.owner.is_some());
        let _ = tokio::time::timeout(self.group.timing().refusal(), followed).await;
    }

    /// The clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }
}
