//! What faces get to see of the node: answers that lapse, permits, and the report.
//!
//! An answer about ownership is the owner's own lease, or what the owner said of it to this member, counted so that it
//! can only be too short. Nothing here guesses: without either, the answer is unknown.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Node;
use crate::{
    clock::{Clock, Moment},
    condition::Raised,
    dice::Dice,
    epoch::Epoch,
    id::DeviceId,
    ownership::{
        command::{self, Command, Outcome},
        decide::Reason,
    },
    raft::{ProposeError, Vouched},
    reconcile::{lease::Held, mirror::MirrorState},
    status::{
        door::{Answer, BoxFuture, Door, Permit, Refusal, Transfer, Transferred},
        report,
    },
    workload::{self, Observed},
};

/// How long a transfer may take until its caller is told that it is not known what became of it.
const TRANSFER_LIMIT: Duration = Duration::from_secs(10);

/// What the report needs besides the node itself.
pub struct Surroundings {
    /// How the mirror fares, and its kind and hub's name; `None` without a mirror.
    pub mirror: Option<(watch::Receiver<MirrorState>, String)>,
    /// The workload's kind.
    pub workload_kind: &'static str,
    /// The workload's conditions.
    pub workload_conditions: watch::Receiver<Vec<Raised>>,
}

/// The node as its faces see it.
pub struct NodeDoor {
    pub(super) node: Arc<Node>,
    pub(super) surroundings: Surroundings,
    answers: watch::Receiver<Answer>,
    permits: watch::Receiver<Permit>,
    dice: Mutex<Dice>,
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
        let watched = node.clone();
        tasks.spawn(async move {
            let node = watched;
            let (mut held, mut decided, mut observed) =
                (node.held.clone(), node.decided.clone(), node.observed.clone());
            let (mut record, mut vouched) = (node.group.record(), node.group.vouched());
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    Ok(()) = held.changed() => {}
                    Ok(()) = decided.changed() => {}
                    Ok(()) = observed.changed() => {}
                    Ok(()) = record.changed() => {}
                    Ok(()) = vouched.changed() => {}
                    else => return,
                }
                replace(&answers, answer(&node));
                replace(&permits, permit(&node));
            }
        });
        Arc::new(door)
    }

    fn choose(&self, to: Option<DeviceId>) -> Result<DeviceId, Refusal> {
        let roster = self.node.group.roster();
        let now = self.node.clock().now();
        let owner = self.node.group.record().borrow().record.owner.as_ref().map(|o| o.device.clone());
        let fit = |device: &DeviceId| -> Result<(), String> {
            let member =
                roster.site.member(device).ok_or(format!("{device} is not a member of this site"))?;
            if !member.role.may_own() {
                return Err(format!("{device} is a {}: it votes and never owns", member.role));
            }
            if *device == roster.me {
                return Ok(());
            }
            match roster.contact(&member.device) {
                None => Err(format!("{device} has not been heard")),
                Some(c) if !c.unfit.is_empty() => Err(format!("{device} says: {}", c.unfit)),
                Some(c) if c.may_take_over(now, &self.node.group.timing()) => Ok(()),
                Some(c) => {
                    let silent =
                        c.heard.map_or_else(String::new, |h| format!(" for {} ms", now.since(h).as_millis()));
                    Err(format!("{device} has not been heard{silent}"))
                }
            }
        };
        match to {
            Some(to) if roster.site.member(&to).is_none() => {
                let known: Vec<_> = roster.site.members.iter().map(|m| m.device.to_string()).collect();
                Err(Refusal::NoSuchDevice(format!(
                    "{to} is not a member of this site ({})",
                    known.join(", ")
                )))
            }
            Some(to) => fit(&to).map(|()| to).map_err(Refusal::Unfit),
            None => {
                let mut others: Vec<_> = roster.site.members.iter().map(|m| m.device.clone()).collect();
                others.sort_unstable();
                let mut refusals = Vec::new();
                for device in others.into_iter().filter(|d| Some(d) != owner.as_ref()) {
                    match fit(&device) {
                        Ok(()) => return Ok(device),
                        Err(why) => refusals.push(why),
                    }
                }
                Err(Refusal::Unfit(format!("no other device can take over: {}", refusals.join("; "))))
            }
        }
    }

    async fn hand_over(&self, transfer: Transfer) -> Result<Transferred, Refusal> {
        let mut record = self.node.group.record();
        let before = record.borrow_and_update().record.clone();
        let to = self.choose(transfer.to)?;
        let id = self.dice.lock().unwrap_or_else(PoisonError::into_inner).throw();
        let command = Command::Transfer(command::Transfer {
            id,
            to: to.clone(),
            base: before.epoch,
            reason: transfer.reason,
            actor: transfer.actor,
            at_unix_ms: self.node.clock().wall_ms(),
        });
        match self.node.group.propose(command, TRANSFER_LIMIT).await {
            Ok(Outcome::Refused(why @ command::Refusal::NotAMember { .. })) => {
                return Err(Refusal::NoSuchDevice(why.to_string()));
            }
            Ok(Outcome::Refused(why @ (command::Refusal::Superseded { .. } | command::Refusal::NoOwner))) => {
                return Err(Refusal::NotNow(why.to_string()));
            }
            Ok(Outcome::Refused(why)) => return Err(Refusal::Unfit(why.to_string())),
            Ok(_) => {}
            Err(e @ ProposeError::NoAnswer) => return Err(Refusal::Unconfirmed(e.to_string())),
            Err(e) => return Err(Refusal::NotNow(e.to_string())),
        }
        let next = record.wait_for(|a| a.record.epoch > before.epoch && a.record.owner.is_some());
        let (owner, epoch) =
            match tokio::time::timeout(TRANSFER_LIMIT + *workload::STOP_TIMEOUT.end(), next).await {
                Ok(Ok(applied)) => {
                    (applied.record.owner.as_ref().map(|o| o.device.clone()), applied.record.epoch)
                }
                _ => return Err(Refusal::Unconfirmed(format!("{to} has not claimed yet"))),
            };
        match owner {
            Some(device) if device == to => Ok(Transferred { device, epoch }),
            Some(device) => {
                let why = "it did not take over in time, or another handover came between";
                Err(Refusal::NotNow(format!("{device} owns now, not {to}: {why}")))
            }
            None => Err(Refusal::Unconfirmed("nobody owns now".into())),
        }
    }
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
    held.filter(|held| held.epoch == epoch && now < held.until)
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
            let epoch = node.group.record().borrow().record.epoch;
            Permit { active: false, epoch, until: now, reason: told }
        }
    }
}

impl Door for NodeDoor {
    fn report(&self) -> report::Report {
        self.make_report()
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

    fn transfer(&self, transfer: Transfer) -> BoxFuture<'_, Result<Transferred, Refusal>> {
        Box::pin(self.hand_over(transfer))
    }
}
