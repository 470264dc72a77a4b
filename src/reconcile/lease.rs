//! Asks the members for promises, and publishes until when this device may act.
//!
//! While this device leads, it asks all members at the pace of the timing in use, sooner again while no quorum has
//! answered, and at once when there is a new ballot or ownership to ask for. Every answer counts from the moment before
//! its question. The loop publishes the lease; it stops nothing: when answers stay away the lease simply ends (stories A
//! and B of the map).
//!
//! A leader that reached no quorum for long stops asking and only greets, so that the few members it still reaches are
//! free to vote for somebody who reaches more. Nor does a leader under which nothing runs keep the others waiting: not at
//! all if it cannot claim because its workload is not confirmed stopped, and only for a while if its claim or its stop
//! receipt is not committed. Promises cost no disk, so a leader whose disk hangs could go on for ever, and the site would
//! have no owner.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::meter::Meter;
use crate::{
    clock::{Clock, Moment, sleep_until},
    epoch::Epoch,
    id::{DeviceId, NodeId},
    ownership::{
        lease::Lease,
        record::Record,
        view::{Standing, Unfit},
    },
    raft::{Applied, Echo, Group, Question, Renewed, Role, vote_guard::Ballot},
    timing::Timing,
    workload,
};

/// How long a leader under which nothing runs may keep the others from electing another, unless its disk is known to be
/// slow. What it has to commit until it owns takes twice as long as an append may.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// And however slow its disk is. A disk that hangs was slow before, and a write across a suspend took hours.
const IDLE_LIMIT_MAX: Duration = Duration::from_secs(60);

/// Who was heard within this time is there; or within the refusal window, if that is longer.
const PRESENT: Duration = Duration::from_secs(2);

/// A lease that is or was held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// For which ownership.
    pub epoch: Epoch,
    /// Until when the owner may act.
    pub until: Moment,
}

/// The loop and what it needs.
pub struct LeaseLoop {
    /// The group to ask.
    pub group: Group,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The workload, which knows whether it has stopped, and what its fencer may have told the others.
    pub workload: workload::Handle,
    /// Why this device must not own, if so.
    pub unfit: watch::Receiver<Option<Unfit>>,
    /// Where the lease is published.
    pub held: watch::Sender<Option<Held>>,
    /// Where it is noted how well this goes.
    pub meter: Meter,
}

/// What to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    ballot: Ballot,
    epoch: Epoch,
}

/// Since when nothing runs under what this leader asks for.
#[derive(Debug, Clone, Copy)]
struct Idle {
    of: Target,
    /// Whether it may claim.
    claims: bool,
    since: Moment,
}

struct State {
    target: Target,
    lease: Lease,
    echoes: BTreeMap<NodeId, Echo>,
    /// When a quorum was last known to have promised; at first, when this device became leader.
    good: Moment,
    nudged: Moment,
}

impl State {
    /// When to ask again, having asked last at `asked`.
    fn due(&self, asked: Moment, timing: &Timing) -> Moment {
        let pause = if self.is_hopeless(asked, timing) { timing.ask_next() } else { timing.ask_again() };
        (self.good + timing.ask_next()).max(asked + pause)
    }

    /// Whether no quorum has promised anything for long.
    fn is_hopeless(&self, now: Moment, timing: &Timing) -> bool {
        now.since(self.good) > timing.refusal() * 2
    }
}

impl LeaseLoop {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let (sender, mut answers) = mpsc::unbounded_channel();
        let (mut role, mut record, mut unfit) = (self.group.role(), self.group.record(), self.unfit.clone());
        let mut state: Option<State> = None;
        let mut asked = self.clock.now();
        let mut idle: Option<Idle> = None;
        loop {
            let (applied, unfit_now) =
                (record.borrow_and_update().clone(), unfit.borrow_and_update().clone());
            let target = self.target(&role.borrow_and_update(), &applied, unfit_now.as_ref());
            let claims = self.may_claim(&applied.record, unfit_now.as_ref());
            let target = target.filter(|target| self.has_time(*target, claims, state.as_ref(), &mut idle));
            let fresh = match (&state, target) {
                (_, None) => {
                    if state.take().is_some() {
                        self.group.hang_up();
                    }
                    self.publish(None);
                    false
                }
                (Some(state), Some(target)) if state.target == target => false,
                (old, Some(target)) => {
                    let now = self.clock.now();
                    let same_ballot = old.as_ref().filter(|old| old.target.ballot == target.ballot);
                    state = Some(State {
                        target,
                        lease: Lease::new(target.epoch),
                        echoes: same_ballot.map(|old| old.echoes.clone()).unwrap_or_default(),
                        good: same_ballot.map_or(now, |old| old.good),
                        nudged: Moment::default(),
                    });
                    self.publish(None);
                    true
                }
            };
            if fresh && let Some(state) = &mut state {
                asked = self.ask(state, &sender);
            }
            let (now, timing) = (self.clock.now(), self.group.timing());
            // Who has nothing to ask for looks all the same how late it comes.
            let due = state.as_ref().map_or(asked + timing.ask_next(), |state| state.due(asked, &timing));
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.group.hang_up();
                    return;
                }
                () = sleep_until(self.clock.as_ref(), due) => {
                    asked = self.clock.now();
                    // A timing that has just become narrower makes nobody late.
                    self.meter.note(|v| v.late.note(asked, asked.since(due.max(now))));
                    if let Some(state) = &mut state {
                        asked = self.ask(state, &sender);
                    }
                }
                Some(answer) = answers.recv() => if let Some(state) = &mut state {
                    self.answered(state, &answer).await;
                },
                Ok(()) = role.changed() => {}
                Ok(()) = record.changed() => {}
                Ok(()) = unfit.changed() => {}
                else => return,
            }
        }
    }

    /// What this device has to ask for now, if anything.
    fn target(&self, role: &Role, applied: &Applied, unfit: Option<&Unfit>) -> Option<Target> {
        let roster = self.group.roster();
        let record: &Record = &applied.record;
        let own = record.owned_by(&roster.me, roster.incarnation).map(|o| o.epoch);
        let epoch = match (role.standing, own) {
            (Standing::Follower, _) => return None,
            // Its record may be behind, so no ownership that it shows is one to ask for.
            (Standing::NewLeader, _) | (Standing::Leader, None) => Epoch::ZERO,
            // Its fencer may have told the others that this ownership has ended.
            (Standing::Leader, Some(epoch)) if self.is_void(epoch) => return None,
            (Standing::Leader, Some(epoch)) => epoch,
        };
        if epoch == Epoch::ZERO {
            // Promises would only keep the named successor from being elected.
            let other =
                record.released.as_ref().and_then(|r| r.successor.as_ref()).is_some_and(|s| *s != roster.me);
            // Nor does it claim before that is certain, which may be never: its fencer is lost, and there is no other.
            let stopped = self.has_stopped();
            if other || !stopped || self.steps_aside(record, unfit) {
                return None;
            }
        }
        Some(Target { ballot: role.ballot, epoch })
    }

    fn may_claim(&self, record: &Record, unfit: Option<&Unfit>) -> bool {
        unfit.is_none() && record.may_claim(&self.group.roster().me).is_ok()
    }

    /// Whether this leader, under which nothing runs, leaves the group to others: it may not claim, and another that is
    /// there may. If there is none, it keeps the group together, for somebody has to take in what people order.
    fn steps_aside(&self, record: &Record, unfit: Option<&Unfit>) -> bool {
        if self.may_claim(record, unfit) {
            return false;
        }
        let (roster, now) = (self.group.roster(), self.clock.now());
        let recent = self.group.timing().refusal().max(PRESENT);
        let there = |device: &DeviceId| {
            let heard = roster.contact(device).and_then(|contact| contact.heard);
            *device != roster.me && heard.is_some_and(|heard| now.since(heard) < recent)
        };
        let could = |device: &&DeviceId| record.may_claim(device).is_ok() && there(device);
        matches!(unfit, Some(Unfit::Leaving | Unfit::DiskFailed)) || record.roles.keys().any(|d| could(&d))
    }

    fn has_stopped(&self) -> bool {
        *self.workload.observe().borrow() == workload::Observed::Stopped
    }

    /// Whether the others shall still wait for this leader. `idle` says since when nothing runs under what it asks for.
    fn has_time(&self, target: Target, claims: bool, asks: Option<&State>, idle: &mut Option<Idle>) -> bool {
        let (now, timing) = (self.clock.now(), self.group.timing());
        // Whom no quorum promises anything keeps nobody waiting.
        if !self.has_stopped() || asks.is_some_and(|state| state.is_hopeless(now, &timing)) {
            *idle = None;
            return true;
        }
        let since =
            idle.filter(|idle| (idle.of, idle.claims) == (target, claims)).map_or(now, |idle| idle.since);
        *idle = Some(Idle { of: target, claims, since });
        // Who waits for a person, or for another device, has nothing to commit.
        let limit = match claims {
            true => (self.group.slowest_write() * 8).clamp(IDLE_LIMIT, IDLE_LIMIT_MAX),
            false => IDLE_LIMIT_MAX,
        };
        now.since(since) < limit
    }

    fn is_void(&self, epoch: Epoch) -> bool {
        self.workload.burned() == Some(epoch) || self.group.proof().is_some_and(|proof| proof.epoch == epoch)
    }

    /// Asks everybody; says when.
    fn ask(&self, state: &State, answers: &mpsc::UnboundedSender<Renewed>) -> Moment {
        let roster = self.group.roster();
        let timing = self.group.timing();
        let asked = self.clock.now();
        if state.is_hopeless(asked, &timing) && !roster.hears_a_quorum(asked, timing.hold()) {
            for member in &roster.site.members {
                let (group, device) = (self.group.clone(), member.device.clone());
                self.group.spawn(async move {
                    group.greet(&device, group.timing().hold()).await;
                });
            }
            return asked;
        }
        let role = self.group.role().borrow().clone();
        // The members answer questions about the owner with this. An owner that is about to give up promises nothing
        // more, so that a workload which others only ask for can be handed over once all answers have lapsed.
        let gives_up = self.unfit.borrow().is_some() || self.group.record().borrow().record.is_handing_over();
        let act_until = state.lease.act_until(&role.voters).filter(|_| !gives_up);
        let Target { ballot, epoch } = state.target;
        let question = Question { ballot, epoch, asked, timing, act_until, applied: role.applied };
        let others = u32::try_from(roster.site.members.len() - 1).unwrap_or(u32::MAX);
        self.meter.note(|v| v.questions(asked, others, 0));
        self.group.renew(question, &state.echoes, answers);
        asked
    }

    async fn answered(&self, state: &mut State, answer: &Renewed) {
        let now = self.clock.now();
        if answer.node != self.group.roster().node {
            self.meter.note(|v| {
                v.questions(now, 0, 1);
                v.round_trip.note(now, now.since(answer.asked));
            });
        }
        if let Some(echo) = answer.echo {
            state.echoes.insert(answer.node, echo);
        }
        if (Target { ballot: answer.ballot, epoch: answer.epoch }) != state.target {
            return;
        }
        if let Err(reason) = &answer.promised {
            tracing::debug!(node = %answer.node, reason, "no promise");
            // It has voted for somebody else. While a quorum promises regardless, that member can wait; but without
            // a lease this device must hear of the higher ballot, or its promise to itself keeps the group headless.
            if self.clock.now().since(state.good) > self.group.timing().hold() {
                self.nudge(state).await;
            }
            return;
        }
        let timing = self.group.timing();
        state.lease.promised(answer.node, answer.until);
        let role = self.group.role().borrow().clone();
        if let Some(until) = state.lease.act_until(&role.voters) {
            let good = until.before(timing.hold());
            if good > state.good {
                let eaten = now.since(state.good).saturating_sub(timing.ask_next());
                self.meter.note(|v| v.eaten.note(now, eaten));
                state.good = good;
            }
            if state.target.epoch != Epoch::ZERO {
                self.publish(Some(Held { epoch: state.target.epoch, until }));
            }
        }
        if answer.applied < role.applied {
            self.nudge(state).await;
        }
    }

    /// Has Raft send an append, which tells a member what it missed, or this device that it was deposed.
    async fn nudge(&self, state: &mut State) {
        let now = self.clock.now();
        let pause = self.group.timing().heartbeat().max(Duration::from_millis(100));
        if now.since(state.nudged) > pause {
            state.nudged = now;
            self.group.nudge().await;
        }
    }

    fn publish(&self, held: Option<Held>) {
        self.held.send_if_modified(|old| {
            let changed = *old != held;
            *old = held;
            changed
        });
    }
}
