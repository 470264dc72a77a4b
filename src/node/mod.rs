//! Puts the rooms together into one running sidecar. The only place that knows them all.
//!
//! [`Node::start`] is handed everything that touches the world ([`Environment`]), so that the same node runs on a real
//! device and in a simulated site. The loops meet only through the watch channels made here.

pub mod door;
mod mirror;
mod report;
pub mod run;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::{Clock, Moment, sleep_until},
    dice::Dice,
    id::{DeviceId, Incarnation},
    ownership::view::Unfit,
    raft::{
        Group, Parts,
        log::Disk,
        peer::{
            Roster,
            transport::{DialerHandle, Incoming},
        },
    },
    reconcile::{
        candidacy::CandidacyLoop,
        contact::ContactLoop,
        lease::{Held, LeaseLoop},
        ownership::{Decided, OwnershipLoop},
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
    /// The number of the store on `disk`.
    pub store: u64,
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
    /// When it started.
    pub started: Moment,
    unfit: watch::Sender<Option<Unfit>>,
    clock: Arc<dyn Clock>,
    workload: workload::Handle,
    tasks: TaskTracker,
    loops: CancellationToken,
    serving: CancellationToken,
}

/// How long leaving may take to hand over before it is abandoned.
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
        let node = Node {
            group: group.clone(),
            held: held.subscribe(),
            decided: decided.subscribe(),
            observed: workload.observe(),
            elections: elections.clone(),
            started,
            clock: clock.clone(),
            workload: workload.clone(),
            tasks,
            loops,
            serving,
            unfit,
        };
        let lease =
            LeaseLoop { group: group.clone(), clock: clock.clone(), unfit: node.unfit.subscribe(), held };
        node.spawn(lease.run(node.loops.clone()));
        let candidacy = CandidacyLoop {
            group: group.clone(),
            clock: clock.clone(),
            dice: dice.split(),
            unfit: node.unfit.subscribe(),
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
        node.spawn(ContactLoop { group, clock }.run(node.loops.clone()));
        node.come_of_age(boot_refusal);
        Ok(node)
    }

    /// A device that has just started may not even vote for itself, so until then it is nobody to hand over to.
    fn come_of_age(&self, boot_refusal: Duration) {
        let (roster, unfit) = (self.group.roster().clone(), self.unfit.subscribe());
        let (clock, loops) = (self.clock.clone(), self.loops.clone());
        let until = clock.now() + boot_refusal;
        roster.declare_unfit("it has just started and may not vote yet");
        self.spawn(async move {
            tokio::select! {
                biased;
                () = loops.cancelled() => return,
                () = sleep_until(clock.as_ref(), until) => {}
            }
            let why = unfit.borrow().as_ref().map(ToString::to_string).unwrap_or_default();
            roster.declare_unfit(&why);
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

    /// Leaves in good order: gives up the ownership (the workload is stopped, the receipt committed, the next device
    /// named), then stops the loops, the workload whatever happened, and Raft.
    pub async fn leave(&self) {
        self.unfit.send_replace(Some(Unfit::Leaving));
        self.group.roster().declare_unfit("its sidecar is shutting down");
        let mut record = self.group.record();
        let roster = self.group.roster().clone();
        let released = record.wait_for(|a| a.record.owned_by(&roster.me, roster.incarnation).is_none());
        if tokio::time::timeout(LEAVE_LIMIT, released).await.is_err() {
            tracing::warn!("left without handing over: the site did not commit the stop receipt in time");
        }
        // Whoever follows needs this member's vote and its log; a moment later it needs neither.
        let followed = record.wait_for(|a| a.record.owner.is_some());
        let _ = tokio::time::timeout(roster.site.timing.refusal(), followed).await;
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

    /// The clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }
}
