//! Decides when this device campaigns to lead the group.
//!
//! Not at a random time: the moment at which a lost leader may be replaced is known, it is the end of the promise. So
//! every device waits for that, then for its rank, which keeps two from splitting the vote, and campaigns. The named
//! successor of a planned handover does not wait at all; the others give it some time first. Whether a vote may be
//! given or asked for is not decided here but by the vote guard.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{Clock, Moment, sleep_until},
    dice::Dice,
    epoch::Epoch,
    id::DeviceId,
    ownership::view::{Standing, Unfit},
    raft::{Applied, Campaign, Group},
};

/// openraft refuses votes for a millisecond after an append, so the append that brought the news must be past.
const AFTER_APPEND: Duration = Duration::from_millis(2);

/// The loop and what it needs.
pub struct CandidacyLoop {
    /// The group to lead.
    pub group: Group,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Chance, for jitter after a lost election.
    pub dice: Dice,
    /// Why this device must not own, if so.
    pub unfit: watch::Receiver<Option<Unfit>>,
    /// Counts elections that this device began.
    pub elections: Arc<std::sync::atomic::AtomicU64>,
}

/// What has been seen of others' turns to lead.
#[derive(Default)]
struct Turns {
    /// The receipt seen last, and until when its named successor goes first.
    release: Option<(Epoch, Moment)>,
    /// Votes lost in a row.
    losses: u32,
}

impl CandidacyLoop {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let (mut role, mut record, mut unfit) = (self.group.role(), self.group.record(), self.unfit.clone());
        let mut turns = Turns::default();
        loop {
            // A witness stands too: only it may know what the lost owner wrote, and others are elected once it has
            // passed that on. It asks for no promises, so it is in nobody's way.
            let stands = role.borrow_and_update().standing == Standing::Follower
                && *unfit.borrow_and_update() != Some(Unfit::Leaving);
            let wait_until = self.earliest(&record.borrow_and_update().clone(), &mut turns);
            let clock = self.clock.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sleep_until(clock.as_ref(), wait_until), if stands => {
                    // While it slept a promise may have been given.
                    let again = self.earliest(&record.borrow().clone(), &mut turns);
                    if again <= self.clock.now() {
                        self.campaign(&mut turns).await;
                    }
                }
                Ok(()) = role.changed() => {}
                Ok(()) = record.changed() => {}
                Ok(()) = unfit.changed() => {}
                else => return,
            }
        }
    }

    /// The earliest moment at which campaigning makes sense, as far as is known now.
    fn earliest(&self, applied: &Applied, turns: &mut Turns) -> Moment {
        let now = self.clock.now();
        let roster = self.group.roster();
        let timing = &roster.site.timing;
        let mut earliest = now;
        let mut rank = self.rank(applied);

        if let Some(released) = &applied.record.released {
            let window = match turns.release {
                Some((epoch, until)) if epoch == released.epoch => until,
                _ => {
                    let until = match &released.successor {
                        Some(to) if *to != roster.me => now + timing.handover_window(),
                        _ => now + AFTER_APPEND,
                    };
                    turns.release = Some((released.epoch, until));
                    until
                }
            };
            earliest = earliest.max(window);
            if released.successor.as_ref() == Some(&roster.me) {
                rank = 0;
            }
        }
        earliest = earliest.max(self.group.gives_way_until().unwrap_or(now));
        let guard = match self.group.guard().may_vote() {
            Ok(()) => now,
            Err(refusal) => now + refusal.left().unwrap_or(timing.heartbeat()) + timing.stagger() * rank,
        };
        earliest.max(guard)
    }

    /// This device's place among those that may follow the present owner: 0 goes first.
    fn rank(&self, applied: &Applied) -> u32 {
        let roster = self.group.roster();
        let owner = applied.record.owner.as_ref().map(|o| &o.device);
        let mut others: Vec<&DeviceId> = roster
            .site
            .members
            .iter()
            .filter(|m| m.role.may_own())
            .map(|m| &m.device)
            .filter(|d| Some(*d) != owner)
            .collect();
        others.sort_unstable();
        // Who never owns goes last, when those who may have had time to fail.
        let place = others.iter().position(|d| **d == roster.me).unwrap_or(others.len() + 2);
        u32::try_from(place).unwrap_or(u32::MAX)
    }

    async fn campaign(&mut self, turns: &mut Turns) {
        self.elections.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        match self.group.campaign(turns.losses).await {
            Campaign::Won => {
                tracing::info!("this device leads the group");
                turns.losses = 0;
            }
            Campaign::Hopeless { wait, reason } => {
                tracing::debug!(reason, "not worth campaigning");
                self.pause(wait, turns.losses).await;
            }
            Campaign::Lost { reason } => {
                tracing::debug!(reason, "not elected");
                turns.losses += 1;
                self.pause(Duration::ZERO, turns.losses).await;
            }
        }
    }

    async fn pause(&mut self, wait: Duration, losses: u32) {
        let spread = self.group.roster().site.timing.stagger() * (2 << losses.min(3));
        let pause = wait + self.dice.up_to(spread);
        tokio::time::sleep(pause).await;
    }
}
