//! Asks the members for promises, and publishes until when this device may act.
//!
//! While this device leads, it asks all members every heartbeat, and at once when there is a new ballot or ownership to
//! ask for. Every answer counts from the moment before its question. The loop publishes the lease; it stops nothing:
//! when answers stay away the lease simply ends (stories A and B of the map).
//!
//! A leader that reached no quorum for long stops asking and only greets, so that the few members it still reaches are
//! free to vote for somebody who reaches more.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{Clock, Moment},
    epoch::Epoch,
    id::NodeId,
    ownership::{
        lease::Lease,
        record::Record,
        view::{Standing, Unfit},
    },
    raft::{Applied, Group, Question, Renewed, Role, vote_guard::Ballot},
};

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
    /// Why this device must not own, if so.
    pub unfit: watch::Receiver<Option<Unfit>>,
    /// Where the lease is published.
    pub held: watch::Sender<Option<Held>>,
}

/// What to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    ballot: Ballot,
    epoch: Epoch,
}

struct State {
    target: Target,
    lease: Lease,
    echoes: BTreeMap<NodeId, Moment>,
    /// When a quorum was last known to have promised; at first, when this device became leader.
    good: Moment,
    nudged: Moment,
}

impl LeaseLoop {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let timing = self.group.roster().site.timing;
        let (sender, mut answers) = mpsc::unbounded_channel();
        let (mut role, mut record, mut unfit) = (self.group.role(), self.group.record(), self.unfit.clone());
        let mut state: Option<State> = None;
        let mut tick = tokio::time::interval(timing.heartbeat());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let target = self.target(
                &role.borrow_and_update(),
                &record.borrow_and_update(),
                unfit.borrow_and_update().as_ref(),
            );
            let fresh = match (&state, target) {
                (_, None) => {
                    state = None;
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
                self.ask(state, &sender);
                tick.reset();
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = tick.tick() => if let Some(state) = &mut state {
                    self.ask(state, &sender);
                },
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
            (Standing::Leader, Some(epoch)) => epoch,
        };
        if epoch == Epoch::ZERO {
            // Promises would only keep the named successor from being elected.
            let other =
                record.released.as_ref().and_then(|r| r.successor.as_ref()).is_some_and(|s| *s != roster.me);
            if other || unfit.is_some() {
                return None;
            }
        }
        Some(Target { ballot: role.ballot, epoch })
    }

    fn ask(&self, state: &mut State, answers: &mpsc::UnboundedSender<Renewed>) {
        let roster = self.group.roster();
        let timing = &roster.site.timing;
        let asked = self.clock.now();
        if asked.since(state.good) > timing.refusal() * 2 && !self.hears_a_quorum(asked) {
            for node in roster.site.node_ids() {
                let group = self.group.clone();
                self.group.spawn(async move {
                    group.greet(node, group.roster().site.timing.hold()).await;
                });
            }
            return;
        }
        let role = self.group.role().borrow().clone();
        // The members answer questions about the owner with this. An owner that is about to give up promises nothing
        // more, so that a workload which others only ask for can be handed over once all answers have lapsed.
        let gives_up = self.unfit.borrow().is_some() || self.group.record().borrow().record.is_handing_over();
        let act_until = state.lease.act_until(&role.voters, timing).filter(|_| !gives_up);
        let Target { ballot, epoch } = state.target;
        let question = Question { ballot, epoch, asked, act_until, applied: role.applied };
        self.group.renew(question, &state.echoes, answers);
    }

    fn hears_a_quorum(&self, now: Moment) -> bool {
        let roster = self.group.roster();
        let recent = roster.site.timing.hold();
        let heard =
            roster.contacts().values().filter(|c| c.heard.is_some_and(|h| now.since(h) < recent)).count();
        heard + 1 >= roster.site.quorum()
    }

    async fn answered(&self, state: &mut State, answer: &Renewed) {
        if answer.echo != Moment::default() {
            state.echoes.insert(answer.node, answer.echo);
        }
        if (Target { ballot: answer.ballot, epoch: answer.epoch }) != state.target {
            return;
        }
        if let Err(reason) = &answer.promised {
            tracing::debug!(node = %answer.node, reason, "no promise");
            // It has voted for somebody else. While a quorum promises regardless, that member can wait; but without
            // a lease this device must hear of the higher ballot, or its promise to itself keeps the group headless.
            if self.clock.now().since(state.good) > self.group.roster().site.timing.hold() {
                self.nudge(state).await;
            }
            return;
        }
        let timing = &self.group.roster().site.timing;
        state.lease.promised(answer.node, answer.asked);
        let role = self.group.role().borrow().clone();
        if let Some(until) = state.lease.act_until(&role.voters, timing) {
            state.good = state.good.max(until.before(timing.hold()));
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
        let pause = self.group.roster().site.timing.heartbeat().max(Duration::from_millis(100));
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
