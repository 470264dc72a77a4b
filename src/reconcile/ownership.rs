//! Observe, decide, act: the loop that makes [`decide`]'s decisions true on this device.
//!
//! It alone starts and stops the workload and proposes claims and receipts, one thing at a time. Whatever happens
//! outside only sets facts; this loop looks at all of them together, at its own pace. It tells the vote guard that the
//! workload runs before it is started, and that it does not only after its end is confirmed.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::lease::Held;
use crate::{
    clock::{Clock, Moment, sleep_until},
    epoch::Epoch,
    id::DeviceId,
    ownership::{
        command::{Claim, Command, Outcome, StopReceipt},
        decide::{Action, Decision, Reason, decide},
        moves::Sight,
        record::{Record, Released},
        view::{Running, Unfit, View},
    },
    raft::{Group, ProposeError},
    workload::{self, Grant, Observed},
};

/// The last decision, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// Its reason.
    pub reason: Reason,
    /// When it was first made, by the wall clock.
    pub unix_ms: u64,
}

/// The loop and what it needs.
pub struct OwnershipLoop {
    /// The group.
    pub group: Group,
    /// The workload.
    pub workload: workload::Handle,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The lease.
    pub held: watch::Receiver<Option<Held>>,
    /// Why this device must not own, if so.
    pub unfit: watch::Receiver<Option<Unfit>>,
    /// Where decisions are published.
    pub decided: watch::Sender<Option<Decided>>,
}

/// How long a claim or receipt may take: a quorum's disks have to write in that time.
const PROPOSE_LIMIT: Duration = Duration::from_secs(10);
/// The first pause after the workload could not be started.
const START_PAUSE: Duration = Duration::from_millis(200);
/// The longest such pause.
const START_PAUSE_MAX: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Memory {
    /// The receipt seen last, and until when its successor goes first.
    release: Option<(Epoch, Moment)>,
    /// After a failed start: when to try again, and the pause.
    start_again: Option<(Moment, Duration)>,
    /// The newest epoch whose receipt was proposed.
    proposed: Option<Epoch>,
}

impl OwnershipLoop {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut role = self.group.role();
        let mut record = self.group.record();
        let mut observed = self.workload.observe();
        let (mut held, mut unfit) = (self.held.clone(), self.unfit.clone());
        let mut proofs = self.group.proofs();
        let mut memory = Memory::default();
        loop {
            proofs.mark_unchanged();
            let decision = {
                let now = self.clock.now();
                let applied = record.borrow_and_update().clone();
                let seen = observed.borrow_and_update().clone();
                let unfit = unfit.borrow_and_update().clone();
                if seen == Observed::Stopped {
                    self.group.guard().workload(false);
                }
                let roster = self.group.roster();
                let successor = self.best_other(&applied.record, now);
                decide(&View {
                    now,
                    me: &roster.me,
                    incarnation: roster.incarnation,
                    standing: role.borrow_and_update().standing,
                    record: &applied.record,
                    lease: held.borrow_and_update().map(|h| (h.epoch, h.until)),
                    running: running(&seen),
                    burned: self.burned(&memory, applied.record.epoch),
                    unfit: unfit.as_ref(),
                    successor: successor.as_ref(),
                    successor_until: self.successor_until(&applied.record.released, now, &mut memory),
                })
            };
            self.publish(&decision);
            let wake = self.act(&decision, &mut memory).await;
            let sleep = async {
                match wake {
                    Wake::Now => {}
                    Wake::At(moment) => sleep_until(self.clock.as_ref(), moment).await,
                    Wake::OnChange => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sleep => {}
                Ok(()) = role.changed() => {}
                Ok(()) = record.changed() => {}
                Ok(()) = observed.changed() => {}
                Ok(()) = held.changed() => {}
                Ok(()) = unfit.changed() => {}
                Ok(()) = proofs.changed() => {}
                else => return,
            }
        }
    }

    fn publish(&self, decision: &Decision) {
        let reason = &decision.reason;
        let fresh = self.decided.borrow().as_ref().is_none_or(|old| old.reason != *reason);
        if fresh {
            tracing::info!(reason = reason.name(), "{reason}");
            let unix_ms = self.clock.wall_ms();
            self.decided.send_replace(Some(Decided { reason: reason.clone(), unix_ms }));
        }
    }

    async fn act(&self, decision: &Decision, memory: &mut Memory) -> Wake {
        match &decision.action {
            Action::Wait => match memory.release {
                Some((_, until)) if until > self.clock.now() => Wake::At(until),
                _ => Wake::OnChange,
            },
            Action::Claim { base } => {
                let roster = self.group.roster();
                let (device, incarnation) = (roster.me.clone(), roster.incarnation);
                let at_unix_ms = self.clock.wall_ms();
                let seal = self.workload.seal();
                let proof = self.group.proof().filter(|proof| proof.epoch == *base).map(|proof| proof.secret);
                let claim = Claim { device, incarnation, base: *base, at_unix_ms, seal, proof };
                self.propose(Command::Claim(claim)).await
            }
            Action::Start { epoch, until } => self.start(*epoch, *until, memory).await,
            Action::Extend { until } => {
                memory.start_again = None;
                self.workload.extend(*until);
                Wake::At(*until)
            }
            Action::Stop => self.stop(&decision.reason).await,
            Action::Release { epoch, successor } => {
                let roster = self.group.roster();
                let receipt = StopReceipt {
                    device: roster.me.clone(),
                    incarnation: roster.incarnation,
                    epoch: *epoch,
                    successor: successor.clone(),
                    reason: decision.reason.of(&roster.me),
                    at_unix_ms: self.clock.wall_ms(),
                };
                memory.proposed = Some(*epoch);
                self.propose(Command::StopReceipt(receipt)).await
            }
        }
    }

    /// `epoch`, if it must not be started here again: its fencer was lost, or has already said so to the others, or its
    /// receipt was proposed. A receipt that was not committed in time may still be, whatever became of its cause. Each
    /// is asked about this very epoch, for a proof may be of one that is newer than what the decision is made of.
    fn burned(&self, memory: &Memory, epoch: Epoch) -> Option<Epoch> {
        let proven = self.group.proof().map(|proof| proof.epoch);
        [self.workload.burned(), proven, memory.proposed].contains(&Some(epoch)).then_some(epoch)
    }

    async fn stop(&self, reason: &Reason) -> Wake {
        let planned = matches!(reason, Reason::HandingOver { .. } | Reason::Unfit { .. });
        // Others were told of the whole lease. A workload of kind none ends when all of them know better.
        let epoch = self.workload.observe().borrow().epoch();
        if let Some(held) = self.held.borrow().filter(|held| planned && Some(held.epoch) == epoch) {
            self.workload.extend(held.until);
        }
        let mut held = self.held.clone();
        let stop = self.workload.stop();
        tokio::pin!(stop);
        let stopped = loop {
            tokio::select! {
                biased;
                stopped = &mut stop => break stopped,
                // It may take its time as long as the lease is renewed.
                Ok(()) = held.changed() => {
                    if let Some(held) = held.borrow_and_update().filter(|held| Some(held.epoch) == epoch) {
                        self.workload.extend(held.until);
                    }
                }
            }
        };
        match stopped {
            Ok(()) => Wake::OnChange,
            Err(e) => {
                tracing::error!("the workload's end is not confirmed: {e}");
                Wake::At(self.clock.now() + START_PAUSE)
            }
        }
    }

    async fn start(&self, epoch: Epoch, until: Moment, memory: &mut Memory) -> Wake {
        if let Some((again, _)) = memory.start_again
            && again > self.clock.now()
        {
            return Wake::At(again);
        }
        self.group.guard().workload(true);
        match self.workload.start(Grant { epoch, until }).await {
            Ok(()) => Wake::OnChange,
            // Looked at again at once: only that tells the guard that nothing runs.
            Err(workload::Error::Late | workload::Error::Burned(_)) => Wake::Now,
            Err(e) => {
                tracing::error!(condition = "workload.cannot_start", "{e}");
                let pause =
                    memory.start_again.map_or(START_PAUSE, |(_, pause)| (pause * 2).min(START_PAUSE_MAX));
                let again = self.clock.now() + pause;
                memory.start_again = Some((again, pause));
                Wake::At(again)
            }
        }
    }

    async fn propose(&self, command: Command) -> Wake {
        match self.group.propose(command, PROPOSE_LIMIT).await {
            // The record's watch fires, and with it the next decision.
            Ok(Outcome::Done { .. }) => Wake::OnChange,
            // The record has moved on meanwhile; look again.
            Ok(outcome) => {
                tracing::debug!(?outcome, "the record has moved on");
                Wake::Now
            }
            Err(e @ (ProposeError::NoLeader | ProposeError::NoAnswer | ProposeError::Refused(_))) => {
                tracing::debug!("not committed: {e}");
                Wake::At(self.clock.now() + self.group.timing().heartbeat())
            }
            Err(ProposeError::Stopped(_)) => Wake::OnChange,
        }
    }

    /// The member to hand over to if this device has to give up: of the candidates that are reachable and fit, the first that sees
    /// no less of the plant than another.
    fn best_other(&self, record: &Record, now: Moment) -> Option<DeviceId> {
        let (roster, timing) = (self.group.roster(), self.group.timing());
        let mut best: Option<(&DeviceId, Sight)> = None;
        for device in record.candidates().into_iter().filter(|device| **device != roster.me) {
            let Some(contact) = roster.contact(device).filter(|c| c.may_take_over(now, &timing)) else {
                continue;
            };
            // An owner hears the others all the time: who was not heard just now may have been lost a moment ago.
            let there = contact.heard.is_some_and(|heard| now.since(heard) < timing.refusal());
            if there && best.is_none_or(|(_, sight)| contact.sight.is_better_than(sight)) {
                best = Some((device, contact.sight));
            }
        }
        best.map(|(device, ..)| device.clone())
    }

    fn successor_until(
        &self,
        released: &Option<Released>,
        now: Moment,
        memory: &mut Memory,
    ) -> Option<Moment> {
        let epoch = match released {
            None => {
                memory.release = None;
                return None;
            }
            Some(released) => released.epoch,
        };
        match memory.release {
            Some((seen, until)) if seen == epoch => Some(until),
            _ => {
                let until = now + self.group.timing().handover_window();
                memory.release = Some((epoch, until));
                Some(until)
            }
        }
    }
}

enum Wake {
    Now,
    At(Moment),
    OnChange,
}

fn running(observed: &Observed) -> Running {
    match observed {
        Observed::Stopped => Running::Stopped,
        Observed::Running { epoch, .. } | Observed::BackingOff { epoch, .. } => Running::Under(*epoch),
        Observed::Stopping { .. } => Running::Stopping,
    }
}
