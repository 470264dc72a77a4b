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
    ownership::{
        command::Refusal,
        view::{Standing, Unfit},
        vitals::COOL_DOWN,
    },
    raft::{
        Applied, Campaign, Courtesy, Group, Role,
        vote_guard::{Ballot, VoteRefusal},
    },
};

/// How often in a row a device stands back for an owner that answers. Each time the owner has three heartbeats to be promised
/// something again, which takes one if it can be done at all.
const STAND_BACK_MAX: u32 = 2;

/// For so long a device that could not claim leaves a leader alone that it hears, whatever that one does.
const LEFT_ALONE: Duration = Duration::from_secs(10);

/// Who was heard within this time is there; or within the refusal window, if that is longer. Standbys greet each other every second.
const PRESENT: Duration = Duration::from_secs(2);

/// Why a device goes last in elections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Last {
    /// It is strained.
    #[error("its own stalls would endanger its lease")]
    Strained,
    /// The workload failed on it.
    #[error("the workload failed on it")]
    Failed,
    /// Another device that is there sees more of the plant.
    #[error("another device sees more of the plant")]
    SeesLess,
    /// Its ownership has ended by itself a moment ago.
    #[error("it lost its lease less than 10 s ago")]
    LostItsLease,
    /// Somebody has drained it.
    #[error("it is drained")]
    Drained,
    /// It runs something else than the site does, and does not own meanwhile.
    #[error("it runs another build than the site")]
    BuildDiffers,
    /// The site is paused, and it is not the device that owned last.
    #[error("the site is paused")]
    Paused,
    /// An election of this device would wait for its disk several times.
    #[error("its disk is slow")]
    SlowDisk,
}

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
    /// Why this device goes last in elections, if so.
    pub last: watch::Sender<Option<Last>>,
    /// Counts elections that this device began.
    pub elections: Arc<std::sync::atomic::AtomicU64>,
}

/// What has been seen of others' turns to lead.
#[derive(Default)]
struct Turns {
    /// The receipt seen last, and until when its named successor goes first.
    release: Option<(Epoch, Moment)>,
    /// The epoch whose fencer has proven its end, and when this device's turn comes.
    proof: Option<(Epoch, Moment)>,
    /// The ownership seen last, and since when.
    owned: Option<(Epoch, Moment)>,
    /// No majority answered when this device asked last.
    alone: bool,
    /// How often in a row this device has stood back for an owner that answers.
    stood_back: u32,
    /// Votes lost in a row.
    losses: u32,
    /// The leader seen last, and since when.
    led: Option<(Ballot, Moment)>,
}

impl Turns {
    /// Since when this device knows the ownership of this epoch.
    fn owned_since(&mut self, epoch: Epoch, now: Moment) -> Moment {
        match self.owned {
            Some((known, since)) if known == epoch => since,
            _ => {
                self.owned = Some((epoch, now));
                now
            }
        }
    }
}

impl CandidacyLoop {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let (mut role, mut record, mut unfit) = (self.group.role(), self.group.record(), self.unfit.clone());
        let mut turns = Turns::default();
        let mut proofs = self.group.proofs();
        loop {
            proofs.mark_unchanged();
            // A witness stands too: only it may know what the lost owner wrote, and others are elected once it has
            // passed that on. It asks for no promises, so it is in nobody's way.
            let own = self.group.roster().node;
            let votes = |role: &Role| role.voters.iter().any(|set| set.contains(&own));
            let stands = {
                let role = role.borrow_and_update();
                role.standing == Standing::Follower && votes(&role)
            };
            let stands = stands && *unfit.borrow_and_update() != Some(Unfit::Leaving);
            let wait_until = self.earliest(&record.borrow_and_update().clone(), &mut turns);
            let wait_until = self.last_look().map_or(wait_until, |look| look.min(wait_until));
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
                Ok(()) = proofs.changed() => {}
                else => return,
            }
        }
    }

    /// The earliest moment at which campaigning makes sense, as far as is known now.
    fn earliest(&self, applied: &Applied, turns: &mut Turns) -> Moment {
        let now = self.clock.now();
        let roster = self.group.roster();
        let timing = self.group.timing();
        let mut earliest = now;
        let mut rank = self.rank(applied, turns);

        if let Some(released) = &applied.record.released {
            let window = match turns.release {
                Some((epoch, until)) if epoch == released.epoch => until,
                _ => {
                    let until = match &released.successor {
                        Some(to) if *to != roster.me => now + timing.handover_window(),
                        _ => now,
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
        if let Some(proof) = self.group.proof() {
            let turn = match turns.proof {
                Some((epoch, turn)) if epoch == proof.epoch => turn,
                _ => now + timing.stagger() * rank,
            };
            turns.proof = Some((proof.epoch, turn));
            earliest = earliest.max(turn);
        }
        // Looked at again now and then: a turn may be given back.
        let gives_way = self.group.gives_way_until().map(|until| until.min(now + timing.hold()));
        earliest = earliest.max(gives_way.unwrap_or(now));
        earliest = earliest.max(self.left_alone(applied, turns, now).unwrap_or(now));
        let guard = match self.group.guard().may_vote() {
            Ok(()) => now,
            Err(refusal) => {
                if matches!(refusal, VoteRefusal::Promised { .. }) {
                    // It has gone on.
                    turns.stood_back = 0;
                }
                // Promises end at different moments, up to a heartbeat apart. Who goes last lets all others have theirs.
                let behind =
                    if self.last.borrow().is_some() { timing.heartbeat() * 2 } else { Duration::ZERO };
                now + refusal.left().unwrap_or(timing.heartbeat()) + timing.stagger() * rank + behind
            }
        };
        earliest.max(guard)
    }

    /// A moment before the guard lets this device vote, if that is still ahead. Who had better go first may have been heard since
    /// it was looked at.
    fn last_look(&self) -> Option<Moment> {
        let left = self.group.guard().may_vote().err()?.left()?;
        let ahead = left.checked_sub(self.group.timing().stagger())?;
        (ahead > Duration::from_millis(1)).then(|| self.clock.now() + ahead)
    }

    /// Until when this device leaves a leader alone that it hears, since it could not claim itself. Two devices that may
    /// not own would depose each other for nothing.
    fn left_alone(&self, applied: &Applied, turns: &mut Turns, now: Moment) -> Option<Moment> {
        let (roster, ballot) = (self.group.roster(), self.group.role().borrow().ballot);
        let since = match turns.led {
            Some((known, since)) if known == ballot => since,
            _ => now,
        };
        turns.led = Some((ballot, since));
        let unwell = matches!(*self.unfit.borrow(), Some(Unfit::Unwell(_)));
        let barren = roster.site.member(&roster.me).is_some_and(|m| m.role.may_own())
            && (unwell || applied.record.may_claim(&roster.me).is_err());
        // A leader that is not well itself asks for no promises, so no more than greetings may come from it.
        let recent = self.group.timing().refusal().max(if unwell { PRESENT } else { Duration::ZERO });
        let heard = roster.contacts().get(&ballot.node).and_then(|contact| contact.heard);
        let there = ballot.node != roster.node && heard.is_some_and(|heard| now.since(heard) < recent);
        // Looked at again now and then: it may go.
        (barren && there).then(|| (since + LEFT_ALONE).min(now + self.group.timing().hold()))
    }

    /// This device's place among those that may follow the present owner: 0 goes first.
    fn rank(&self, applied: &Applied, turns: &mut Turns) -> u32 {
        let roster = self.group.roster();
        let last = self.goes_last(applied, turns);
        self.last.send_if_modified(|old| {
            let changed = *old != last;
            *old = last;
            changed
        });
        let owner = applied.record.owner.as_ref().map(|o| &o.device);
        let mut others = applied.record.candidates();
        others.retain(|device| Some(*device) != owner);
        // An owner that was deposed by an election which nobody won goes on, if it can: its promise to itself ends first.
        let own = applied.record.owned_by(&roster.me, roster.incarnation).is_some();
        // While the site is paused, whoever owned goes on, and nobody else could.
        let own = own || applied.record.paused.is_some() && applied.record.may_claim(&roster.me).is_ok();
        // Who never owns goes last, when those who may have had time to fail.
        let place = others.iter().position(|d| **d == roster.me).unwrap_or(others.len() + 2);
        let place = if own { 0 } else { place };
        let place = if last.is_some() { place.max(others.len() + 1) } else { place };
        u32::try_from(place).unwrap_or(u32::MAX)
    }

    /// Whether others had better go first, although this device could own.
    fn goes_last(&self, applied: &Applied, turns: &mut Turns) -> Option<Last> {
        let (now, me) = (self.clock.now(), &self.group.roster().me);
        let record = &applied.record;
        let since = turns.owned_since(record.epoch, now);
        let barred = record.may_claim(me);
        if matches!(barred, Err(Refusal::Drained { .. })) {
            Some(Last::Drained)
        } else if matches!(barred, Err(Refusal::BuildDiffers { .. })) {
            Some(Last::BuildDiffers)
        } else if barred == Err(Refusal::Paused) {
            Some(Last::Paused)
        } else if matches!(*self.unfit.borrow(), Some(Unfit::Strained(_))) {
            Some(Last::Strained)
        } else if matches!(*self.unfit.borrow(), Some(Unfit::GivesWay(_))) {
            Some(Last::Failed)
        } else if self.sees_less(applied, now) {
            Some(Last::SeesLess)
        } else if record.lost() == Some(me) && now.since(since) < COOL_DOWN {
            Some(Last::LostItsLease)
        } else if self.group.slowest_write() > self.group.timing().hold() / 2 {
            Some(Last::SlowDisk)
        } else {
            None
        }
    }

    /// Whether another device that may follow sees more of the plant. How fit it is otherwise is not asked: right after a start
    /// nobody is, and who waits for nothing waits for a moment only.
    fn sees_less(&self, applied: &Applied, now: Moment) -> bool {
        let roster = self.group.roster();
        let (sight, recent) = (roster.sight(), self.group.timing().refusal().max(PRESENT));
        let owner = applied.record.owner.as_ref().map(|owner| &owner.device);
        let mut others = applied.record.candidates().into_iter();
        others.any(|device| {
            let there = *device != roster.me && Some(device) != owner;
            let contact = roster.contact(device).filter(|_| there);
            contact.is_some_and(|c| {
                c.sight.is_better_than(sight) && c.heard.is_some_and(|heard| now.since(heard) < recent)
            })
        })
    }

    async fn campaign(&mut self, turns: &mut Turns) {
        self.elections.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let courtesy = self.courtesy(turns);
        match self.group.campaign(turns.losses, courtesy).await {
            Campaign::Alone => {
                tracing::debug!("no majority answers");
                turns.alone = true;
                self.pause(Duration::ZERO, turns.losses).await;
            }
            Campaign::OwnerAnswers => {
                tracing::debug!("the owner took over a moment ago, answers, and may go on");
                turns.stood_back += 1;
                self.pause(self.group.timing().heartbeat() * 3, turns.losses).await;
            }
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

    /// Whom to let go on. An owner that has itself taken over a moment ago is not replaced while it can be talked to: links that
    /// come and go would otherwise move the ownership each time.
    fn courtesy(&self, turns: &mut Turns) -> Courtesy {
        let alone = std::mem::take(&mut turns.alone);
        let record = self.group.record().borrow().record.clone();
        let since = turns.owned_since(record.epoch, self.clock.now());
        let fresh = record.lost().is_some() && self.clock.now().since(since) < COOL_DOWN;
        let owner = record.owner.as_ref().filter(|_| fresh && turns.stood_back < STAND_BACK_MAX);
        let roster = self.group.roster();
        Courtesy {
            alone,
            owner: owner.map(|o| roster.node_of(&o.device)).filter(|node| *node != roster.node),
        }
    }

    async fn pause(&mut self, wait: Duration, losses: u32) {
        let spread = self.group.timing().stagger() * (2 << losses.min(3));
        // A promise ends by then, and a turn may be given back before.
        let pause = wait.min(self.group.timing().refusal()) + self.dice.up_to(spread);
        // A fencer that proves the owner's end makes hopeless what is worth trying.
        let mut proofs = self.group.proofs();
        let _ = tokio::time::timeout(pause, proofs.changed()).await;
    }
}
