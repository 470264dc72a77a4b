//! What faces get to see of the node: answers that lapse, permits, and the report.
//!
//! An answer about ownership is the owner's own lease, or what the owner said of it to this member, counted so that it
//! can only be too short. Nothing here guesses: without either, the answer is unknown.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Node;
use crate::{
    clock::{Clock, Moment},
    condition::{Condition, Raised},
    dice::Dice,
    epoch::Epoch,
    id::DeviceId,
    ownership::{
        command::{self, Command, Outcome},
        decide::Reason,
        record::Record,
        view::Standing,
    },
    raft::{ProposeError, Vouched, peer::VERSION},
    reconcile::{lease::Held, mirror::MirrorState},
    status::{
        door::{Answer, BoxFuture, Door, Permit, Refusal, Transfer, Transferred},
        report,
    },
    workload::Observed,
};

/// For how long a refused sidecar stays a condition.
const KNOCK_SHOWN_MS: u64 = 60_000;
/// After this long without a word a member is silent.
const SILENT: Duration = Duration::from_secs(3);
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
    node: Arc<Node>,
    surroundings: Surroundings,
    answers: watch::Receiver<Answer>,
    permits: watch::Receiver<Permit>,
    dice: Mutex<Dice>,
    /// Since when nobody could be vouched for.
    ownerless: Mutex<Option<Moment>>,
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
        let contacts = roster.contacts();
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
            match contacts.get(&member.node_id()) {
                None => Err(format!("{device} has not been heard")),
                Some(c) if !c.unfit.is_empty() => Err(format!("{device} says: {}", c.unfit)),
                Some(c) if c.may_take_over(now, &roster.site.timing) => Ok(()),
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
        let (owner, epoch) = match tokio::time::timeout(TRANSFER_LIMIT, next).await {
            Ok(Ok(applied)) => {
                (applied.record.owner.as_ref().map(|o| o.device.clone()), applied.record.epoch)
            }
            _ => return Err(Refusal::Unconfirmed(format!("{to} has not claimed yet"))),
        };
        match owner {
            Some(device) if device == to => Ok(Transferred { device, epoch }),
            Some(device) => {
                Err(Refusal::NotNow(format!("{to} did not take over in time; {device} owns now")))
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
fn own(node: &Node, now: Moment) -> Option<Held> {
    let roster = node.group.roster();
    let epoch = node.group.record().borrow().record.owned_by(&roster.me, roster.incarnation)?.epoch;
    node.held.borrow().filter(|held| held.epoch == epoch && now < held.until)
}

fn answer(node: &Node) -> Answer {
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
    match vouched {
        Some(v) if v.until > now && v.epoch >= record.epoch && over != Some(v.epoch) => {
            let owner = roster.site.member_by_node(v.node).map(|m| m.device.clone());
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

impl NodeDoor {
    fn make_report(&self) -> report::Report {
        let node = &self.node;
        let now = node.clock().now();
        let roster = node.group.roster();
        let role = node.group.role().borrow().clone();
        let record = node.group.record().borrow().record.clone();
        let members = self.members(now);
        let heard = members.iter().filter(|m| m.reachable).count();
        let quorum = heard >= roster.site.quorum();
        let may_fail = heard.saturating_sub(roster.site.quorum());
        let answer = answer(node).at(now);
        let owner = match &answer {
            Answer::Known { owner, epoch, until, reason } => report::Owner {
                known: true,
                device: owner.as_ref().map(ToString::to_string),
                epoch: epoch.get(),
                valid_for_ms: crate::status::door::millis(until.since(now)),
                reason: reason.clone(),
            },
            Answer::Unknown { reason } => {
                report::Owner { reason: reason.clone(), ..report::Owner::default() }
            }
        };
        let booting = node.group.guard().may_vote().is_err() && role.standing == Standing::Follower;
        let role = match role.standing {
            Standing::Leader | Standing::NewLeader => report::Role::Leader,
            Standing::Follower if booting && !owner.known => report::Role::Starting,
            Standing::Follower if role.ballot.node == roster.me.node_id() => report::Role::Candidate,
            Standing::Follower => report::Role::Follower,
        };
        let mut conditions = self.conditions(now, quorum, may_fail, owner.known, &members);
        conditions.sort();
        conditions.dedup();
        report::Report {
            site: roster.site.id.to_string(),
            device: roster.me.to_string(),
            version: VERSION.into(),
            incarnation: roster.incarnation.to_string(),
            uptime_ms: crate::status::door::millis(now.since(node.started)),
            epoch: record.epoch.get(),
            role,
            lease_left_ms: own(node, now).map(|held| crate::status::door::millis(held.until.since(now))),
            quorum,
            devices_may_fail: u32::try_from(may_fail).unwrap_or(u32::MAX),
            workload: self.workload(),
            hub: self.hub(now),
            conditions: conditions.iter().map(report::Condition::from).collect(),
            last_decision: node
                .decided
                .borrow()
                .as_ref()
                .map(|d| report::Decision { reason: d.reason.to_string(), unix_ms: d.unix_ms }),
            timing: roster.site.timing.to_string(),
            history: history(&record),
            knocks: self.knocks(),
            members,
            owner,
        }
    }

    fn members(&self, now: Moment) -> Vec<report::Member> {
        let roster = self.node.group.roster();
        let contacts = roster.contacts();
        let member = |m: &crate::site::Member| {
            let me = m.device == roster.me;
            let contact = contacts.get(&m.node_id()).cloned().unwrap_or_default();
            let silence = if me { Some(Duration::ZERO) } else { contact.heard.map(|h| now.since(h)) };
            let unfit =
                if m.role.may_own() { contact.unfit } else { "a witness votes and never owns".into() };
            report::Member {
                device: m.device.to_string(),
                address: m.address.clone(),
                role: m.role.to_string(),
                reachable: silence.is_some_and(|s| s < SILENT),
                last_heard_ms: silence.map(crate::status::door::millis),
                build: if me { VERSION.into() } else { contact.version },
                fit: unfit.is_empty(),
                unfit_reason: (!unfit.is_empty()).then_some(unfit),
            }
        };
        roster.site.members.iter().map(member).collect()
    }

    fn workload(&self) -> report::Workload {
        let observed = self.node.observed.borrow().clone();
        let (text, pid, failures) = match &observed {
            Observed::Stopped => ("stopped".to_owned(), None, 0),
            Observed::Running { pid, .. } => ("running".to_owned(), *pid, 0),
            Observed::BackingOff { failures, last, .. } => (format!("backing off: {last}"), None, *failures),
            Observed::Stopping { .. } => ("stopping".to_owned(), None, 0),
        };
        report::Workload {
            kind: self.surroundings.workload_kind.into(),
            observed: text,
            epoch: observed.epoch().map(Epoch::get),
            pid,
            failures,
        }
    }

    fn hub(&self, now: Moment) -> report::Hub {
        let Some((state, name)) = &self.surroundings.mirror else {
            return report::Hub { mirror: "off".into(), ..report::Hub::default() };
        };
        let state = state.borrow().clone();
        report::Hub {
            mirror: "device-twin".into(),
            name: name.clone(),
            in_sync: state.in_sync,
            lag_ms: crate::status::door::millis(state.lag(now)),
            last_success_unix_ms: state.last_success_unix_ms,
            devices: state
                .devices
                .iter()
                .map(|(device, d)| report::HubDevice {
                    device: device.to_string(),
                    epoch: d.epoch_confirmed,
                    error: d.error.clone(),
                })
                .collect(),
            requests: state.requests.clone(),
        }
    }

    fn knocks(&self) -> Vec<report::Knock> {
        let knocks = self.node.group.roster().knocks();
        let shown = |k: crate::raft::peer::Knock| report::Knock {
            address: k.address,
            device: k.device,
            reason: k.reason,
            count: k.times,
            last_unix_ms: k.last_unix_ms,
        };
        knocks.into_iter().map(shown).collect()
    }

    fn conditions(
        &self,
        now: Moment,
        quorum: bool,
        may_fail: usize,
        owner_known: bool,
        members: &[report::Member],
    ) -> Vec<Raised> {
        let node = &self.node;
        let mut raised = Vec::new();
        let silent: BTreeMap<&str, Option<u64>> =
            members.iter().filter(|m| !m.reachable).map(|m| (m.device.as_str(), m.last_heard_ms)).collect();
        let names = || silent.keys().copied().collect::<Vec<_>>().join(", ");
        // Right after a start nobody can have been heard yet.
        let settled = now.since(node.started) > SILENT;
        if settled {
            if !quorum {
                raised.push(Raised::new(Condition::QuorumLost, format!("not heard: {}", names())));
            } else if may_fail == 0 {
                let detail = if silent.is_empty() {
                    "the site has too few devices".into()
                } else {
                    format!("not heard: {}", names())
                };
                raised.push(Raised::new(Condition::NoSpare, detail));
            }
            for (device, heard) in &silent {
                let detail = match heard {
                    Some(ms) => format!("{device}: for {} s", ms / 1000),
                    None => format!("{device}: never since this sidecar started"),
                };
                raised.push(Raised::new(Condition::MemberSilent, detail));
            }
        }
        let mut ownerless = self.ownerless.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *if owner_known {
            *ownerless = None;
            &None
        } else {
            ownerless.get_or_insert(now);
            &*ownerless
        };
        drop(ownerless);
        if settled && since.is_some_and(|s| now.since(s) > node.group.roster().site.timing.takeover_bound()) {
            let why = node.decided.borrow().as_ref().map_or_else(String::new, |d| d.reason.to_string());
            raised.push(Raised::new(Condition::NoOwner, why));
        }
        if let Some(Reason::LeaseLapsed { epoch }) = node.decided.borrow().as_ref().map(|d| d.reason.clone())
        {
            raised.push(Raised::new(Condition::LeaseLapsed, format!("epoch {epoch}")));
        }
        raised.extend(self.surroundings.workload_conditions.borrow().iter().cloned());
        let wall = node.clock().wall_ms();
        for knock in node.group.roster().knocks() {
            if wall.abs_diff(knock.last_unix_ms) < KNOCK_SHOWN_MS {
                let name = if knock.device.is_empty() {
                    knock.address.clone()
                } else {
                    format!("{} at {}", knock.device, knock.address)
                };
                raised.push(Raised::new(Condition::PeerRefused, format!("{name}: {}", knock.reason)));
            }
        }
        if let Some((mirror, _)) = &self.surroundings.mirror {
            raised.extend(mirror.borrow().conditions.iter().cloned());
        }
        raised
    }
}

fn history(record: &Record) -> Vec<report::Change> {
    let shown = |c: &crate::ownership::record::Change| report::Change {
        epoch: c.epoch.get(),
        device: c.device.to_string(),
        cause: c.cause.name().into(),
        actor: c.actor.clone(),
        reason: c.reason.clone(),
        since_unix_ms: c.since_unix_ms,
        until_unix_ms: c.until_unix_ms,
    };
    record.history.iter().rev().map(shown).collect()
}
