//! Who mirrors for the site when the owner's own line to the hub is cut.
//!
//! The owner says with its renewals that it cannot reach the hub; then the others knock there, and say with their answers
//! whether something opens. The owner asks the first of them that gets through to mirror in its place, and takes it
//! back once its own line is good again (`uplink/appoint.rs`). Nothing of this is written anywhere: it ends with the
//! owner's renewals. Whoever mirrors, the flags are guarded by etag and epoch, so two at once could only waste requests.
//!
//! It deliberately knows nothing of twins, and it is idle while the owner reaches the hub.

mod appoint;

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::appoint::Appointer;
use super::{
    backoff::jittered,
    mirror::{MirrorState, away::interval},
};
use crate::{
    clock::{Clock, Moment},
    dice::Dice,
    epoch::Epoch,
    hub,
    id::NodeId,
    ownership::view::Standing,
    raft::{Group, peer::OwnersWord},
};

/// Between two looks while the owner needs help.
const LOOK: Duration = Duration::from_millis(250);
/// A member that was not heard for this long is asked for nothing.
const HEARD: Duration = Duration::from_secs(2);
/// Between two knocks of a member that gets through.
const STEADY: Duration = Duration::from_secs(3);

/// The loop and what it needs.
pub struct UplinkLoop {
    /// The group.
    pub group: Group,
    /// The hub, to knock at.
    pub hub: hub::Handle,
    /// How this device's own mirror fares.
    pub state: watch::Receiver<MirrorState>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Chance, for jitter only.
    pub dice: Dice,
}

/// What a member is to do about the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Nothing: another mirrors.
    None,
    /// It mirrors, as the owner under this epoch.
    Owner(Epoch),
    /// It mirrors in the place of the owner under this epoch, until the owner is vouched for no longer.
    Stead(Epoch, Moment),
}

/// What `group`'s member is to do at `now`.
pub fn part(group: &Group, now: Moment) -> Part {
    let roster = group.roster();
    let word = *roster.word().borrow();
    if let Some(epoch) = leading(group) {
        let elsewhere = word.filter(|w| w.from == roster.node && w.epoch == epoch).and_then(|w| w.through);
        return if elsewhere.is_some() { Part::None } else { Part::Owner(epoch) };
    }
    match vouched(group, word, now) {
        Some((word, until)) if word.through == Some(roster.node) => Part::Stead(word.epoch, until),
        _ => Part::None,
    }
}

/// The node that mirrors, as far as this member knows.
pub fn mirrors(group: &Group, now: Moment) -> Option<NodeId> {
    let roster = group.roster();
    let word = *roster.word().borrow();
    if let Some(epoch) = leading(group) {
        let elsewhere = word.filter(|w| w.from == roster.node && w.epoch == epoch).and_then(|w| w.through);
        return Some(elsewhere.unwrap_or(roster.node));
    }
    vouched(group, word, now).map(|(word, _)| word.through.unwrap_or(word.from))
}

/// The epoch under which this member owns and leads.
fn leading(group: &Group) -> Option<Epoch> {
    let roster = group.roster();
    let leads = group.role().borrow().standing == Standing::Leader;
    let applied = group.record();
    let applied = applied.borrow();
    applied.record.owned_by(&roster.me, roster.incarnation).filter(|_| leads).map(|own| own.epoch)
}

/// The owner's word and until when it holds here, if it does.
fn vouched(group: &Group, word: Option<OwnersWord>, now: Moment) -> Option<(OwnersWord, Moment)> {
    let (word, vouched) = (word?, (*group.vouched().borrow())?);
    let holds = vouched.node == word.from && vouched.epoch == word.epoch && now < vouched.until;
    holds.then_some((word, vouched.until))
}

/// Knocks, and what came of it.
#[derive(Debug, Default)]
struct Knocks {
    /// When the hub was last found closed after it had been open, or first.
    closed: Option<Moment>,
    next: Option<Moment>,
    open: Option<bool>,
}

impl UplinkLoop {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.work() => {}
        }
    }

    async fn work(&mut self) {
        let (mut word, mut role) = (self.group.roster().word(), self.group.role());
        let (mut appointer, mut knocks, mut of) = (Appointer::default(), Knocks::default(), None);
        loop {
            let now = self.clock.now();
            let active = match leading(&self.group) {
                Some(epoch) => {
                    if of.replace(epoch) != Some(epoch) {
                        (appointer, knocks) = (Appointer::default(), Knocks::default());
                    }
                    self.own(&mut appointer, &mut knocks, epoch).await
                }
                None => {
                    of = None;
                    self.stand_by(&mut knocks, now).await
                }
            };
            tokio::select! {
                biased;
                Ok(()) = word.changed() => {}
                Ok(()) = role.changed() => {}
                Ok(()) = self.state.changed() => {}
                () = tokio::time::sleep(LOOK), if active => {}
                else => return,
            }
        }
    }

    /// The owner: does it need somebody? Returns whether this must be asked again soon.
    async fn own(&mut self, appointer: &mut Appointer, knocks: &mut Knocks, epoch: Epoch) -> bool {
        let own = if appointer.appointed().is_some() {
            self.knock(knocks).await
        } else {
            *knocks = Knocks::default();
            self.state.borrow_and_update().reached
        };
        let now = self.clock.now();
        let appointed = appointer.step(now, own, &self.others(now));
        let wanted = appointer.wants(now);
        let roster = self.group.roster();
        let said = *roster.word().borrow();
        let fresh = OwnersWord { from: roster.node, epoch, wanted, through: appointed };
        if said != Some(fresh) {
            let name = appointed.and_then(|node| roster.device_of(node));
            match (said.filter(|s| s.from == roster.node).and_then(|s| s.through), &name) {
                (before, Some(device)) if before != appointed => {
                    tracing::info!(%device, "mirrors into the hub in this device's place");
                }
                (Some(_), None) => tracing::info!("this device mirrors into the hub itself again"),
                _ => {}
            }
            roster.say(epoch, wanted, appointed);
        }
        roster.declare_uplink(own);
        appointer.is_busy()
    }

    /// Everybody else: knocks while the owner wants to know.
    async fn stand_by(&mut self, knocks: &mut Knocks, now: Moment) -> bool {
        let roster = self.group.roster().clone();
        let word = *roster.word().borrow();
        self.state.mark_unchanged();
        let Some((word, _)) = vouched(&self.group, word, now).filter(|(word, _)| word.wanted) else {
            *knocks = Knocks::default();
            roster.declare_uplink(None);
            return word.is_some_and(|word| word.wanted);
        };
        let opens = self.knock(knocks).await;
        // What opens may still not be a hub that answers.
        let fails = word.through == Some(roster.node) && self.state.borrow().reached == Some(false);
        roster.declare_uplink(opens.map(|opens| opens && !fails));
        true
    }

    /// Knocks if it is time to.
    async fn knock(&mut self, knocks: &mut Knocks) -> Option<bool> {
        let now = self.clock.now();
        if knocks.next.is_some_and(|next| now < next) {
            return knocks.open;
        }
        let open = self.hub.knock().await.is_ok();
        let now = self.clock.now();
        let pause = match open {
            true => {
                knocks.closed = None;
                STEADY
            }
            false => interval(now.since(*knocks.closed.get_or_insert(now))),
        };
        knocks.next = Some(now + jittered(pause, self.dice.throw()));
        knocks.open = Some(open);
        knocks.open
    }

    /// The other members, in their order, and whether each reaches the hub.
    fn others(&self, now: Moment) -> Vec<(NodeId, Option<bool>)> {
        let roster = self.group.roster();
        let others = roster.site.members.iter().filter(|m| m.device != roster.me);
        others
            .map(|member| {
                let contact = roster.contact(&member.device);
                let heard = contact.filter(|c| c.heard.is_some_and(|heard| now.since(heard) < HEARD));
                (roster.node_of(&member.device), heard.map_or(Some(false), |c| c.uplink))
            })
            .collect()
    }
}
