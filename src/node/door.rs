//! What faces get to see of the node: answers that lapse, permits, and the report.
//!
//! An answer about ownership is the owner's own lease, or what the owner said of it to this member, counted so that it
//! can only be too short. Nothing here guesses: without either, the answer is unknown.

use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Node, module::ModuleFace};
use crate::{
    clock::{Clock, Moment},
    condition::Raised,
    dice::Dice,
    epoch::Epoch,
    id::DeviceId,
    ownership::decide::Reason,
    raft::Vouched,
    reconcile::lease::Held,
    status::{
        door::{Answer, Door, Permit},
        events::Events,
        report,
    },
    workload::Observed,
};

/// What the report needs besides the node itself.
pub struct Surroundings {
    /// The mirror into device twins; `None` without one.
    pub mirror: Option<super::mirror::Mirroring>,
    /// The sidecar's own module twin; `None` where it is not written.
    pub module: Option<ModuleFace>,
    /// The workload's kind.
    pub workload_kind: &'static str,
    /// The workload's conditions.
    pub workload_conditions: watch::Receiver<Vec<Raised>>,
    /// Where it is noted what happens.
    pub events: Events,
}

/// The node as its faces see it.
pub struct NodeDoor {
    pub(super) node: Arc<Node>,
    pub(super) surroundings: Surroundings,
    answers: watch::Receiver<Answer>,
    permits: watch::Receiver<Permit>,
    pub(super) dice: Mutex<Dice>,
    /// Since when nobody could be vouched for.
    pub(super) ownerless: Mutex<Option<Moment>>,
}

impl NodeDoor {
    /// Opens the door; its answers are kept fresh on `tasks` until `stop`.
    pub fn open(
        node: Arc<Node>,
        surroundings: Surroundings,
        dice: Dice,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Arc<NodeDoor> {
        let (answers, permits) = (watch::Sender::new(answer(&node)), watch::Sender::new(permit(&node)));
        let door = NodeDoor {
            node: node.clone(),
            surroundings,
            answers: answers.subscribe(),
            permits: permits.subscribe(),
            dice: Mutex::new(dice),
            ownerless: Mutex::default(),
        };
        let (watched, until) = (node.clone(), stop.clone());
        tasks.spawn(async move {
            let node = watched;
            let (mut held, mut decided, mut observed) =
                (node.held.clone(), node.decided.clone(), node.observed.clone());
            let (mut record, mut vouched) = (node.group.record(), node.group.vouched());
            let mut granted = node.workload.granted();
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    Ok(()) = held.changed() => {}
                    Ok(()) = decided.changed() => {}
                    Ok(()) = observed.changed() => {}
                    Ok(()) = record.changed() => {}
                    Ok(()) = vouched.changed() => {}
                    Some(()) = changes(&mut granted) => {}
                    else => return,
                }
                replace(&answers, answer(&node));
                replace(&permits, permit(&node));
            }
        });
        let door = Arc::new(door);
        let teller = door.clone();
        tasks.spawn(async move { teller.tell_work(until).await });
        door
    }
}

/// Ends at the next change, if there is anything to change.
pub(super) async fn changes<T>(watched: &mut Option<watch::Receiver<T>>) -> Option<()> {
    watched.as_mut()?.changed().await.ok()
}

fn replace<T: PartialEq>(sender: &watch::Sender<T>, fresh: T) {
    sender.send_if_modified(|old| {
        let changed = *old != fresh;
        *old = fresh;
        changed
    });
}

/// This device's own ownership, if its lease is held now.
pub(super) fn own(node: &Node, now: Moment) -> Option<Held> {
    // The lease first: who gives up stops no sooner than the lease that is held when it begins to. Read the other way
    // round, a lease could be told that was renewed in between.
    let held = *node.held.borrow();
    let roster = node.group.roster();
    let record = node.group.record().borrow().record.clone();
    let epoch = record.owned_by(&roster.me, roster.incarnation)?.epoch;
    // What is about to be given up is not told any more.
    if node.unfit.borrow().is_some() || record.is_handing_over() {
        return None;
    }
    // Renewed at the last moment, a lease is known here before the loop has passed it on; if that finds the one before lapsed, it stops
    // without waiting for this one.
    let granted = node.workload.granted().map(|granted| *granted.borrow());
    let held = match granted {
        None => held?,
        Some(grant) => {
            let (held, grant) = (held?, grant?);
            let until = if grant.epoch == epoch { held.until.min(grant.until) } else { now };
            Held { until, ..held }
        }
    };
    Some(held).filter(|held| held.epoch == epoch && now < held.until)
}

pub(super) fn answer(node: &Node) -> Answer {
    let now = node.clock().now();
    let roster = node.group.roster();
    let record = node.group.record().borrow().record.clone();
    let reason = |epoch: Epoch| {
        let change = record.history.iter().rfind(|c| c.epoch == epoch);
        change.map_or_else(String::new, |c| c.reason.clone())
    };
    if let Some(held) = own(node, now) {
        let (owner, until) = (Some(roster.me.clone()), held.until);
        return Answer::Known { owner, epoch: held.epoch, until, reason: reason(held.epoch) };
    }
    let vouched: Option<Vouched> = *node.group.vouched().borrow();
    let over = record.released.as_ref().map(|r| r.epoch);
    let over = over.or(record.is_handing_over().then_some(record.epoch));
    match vouched {
        Some(v) if v.until > now && v.epoch >= record.epoch && over != Some(v.epoch) => {
            let owner = roster.device_of(v.node);
            Answer::Known { owner, epoch: v.epoch, until: v.until, reason: reason(v.epoch) }
        }
        _ => {
            let why = node.decided.borrow().as_ref().map_or_else(String::new, |d| format!(": {}", d.reason));
            Answer::Unknown { reason: format!("no owner is vouched for now{why}") }
        }
    }
}

fn permit(node: &Node) -> Permit {
    let now = node.clock().now();
    let roster = node.group.roster();
    // The lease first: if the decision still says "owning" after that, a stop waits for this lease too.
    let own = own(node, now);
    let reason = node.decided.borrow().as_ref().map(|d| d.reason.clone());
    let running = match *node.observed.borrow() {
        Observed::Running { epoch, .. } => Some(epoch),
        _ => None,
    };
    let told = reason.as_ref().map_or_else(|| "this sidecar is starting".to_owned(), ToString::to_string);
    match own {
        Some(held)
            if running == Some(held.epoch)
                && matches!(reason, Some(Reason::Owning { .. } | Reason::Starting { .. })) =>
        {
            Permit { active: true, epoch: held.epoch, until: held.until, reason: told }
        }
        _ => {
            let record = node.group.record().borrow().record.clone();
            let other = record.owner.as_ref().filter(|owner| owner.device != roster.me);
            let reason = match other {
                Some(owner) if !told.contains(owner.device.as_str()) => {
                    format!("{} owns under epoch {}; {told}", owner.device, owner.epoch)
                }
                _ => told,
            };
            Permit { active: false, epoch: record.epoch, until: now, reason }
        }
    }
}

impl Door for NodeDoor {
    fn report(&self) -> report::Report {
        self.make_report()
    }

    fn events(&self) -> Events {
        self.surroundings.events.clone()
    }

    fn me(&self) -> &DeviceId {
        &self.node.group.roster().me
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.node.clock().clone()
    }

    fn answers(&self) -> watch::Receiver<Answer> {
        self.answers.clone()
    }

    fn permits(&self) -> watch::Receiver<Permit> {
        self.permits.clone()
    }
}
