//! Connects the mirror to the record: what the twins shall show, which device says so, and what came of it.
//!
//! The owner says so, for as long as it leads, or the member that it has asked to (`reconcile/uplink.rs`). A device that leads
//! without knowing that it was replaced may go on saying what it last knew; that is harmless, because the mirror compares
//! epochs before every write (`reconcile/mirror.rs`). Nothing here decides anything about the ownership itself: all that comes
//! back from the hub is a note of what it shows, and an epoch that the next one has to be above.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Node;
use crate::{
    clock::{Clock, sleep_until},
    condition::{Condition, Raised},
    dice::Dice,
    epoch::Epoch,
    hub::{self, Confirmed, Published},
    id::DeviceId,
    ownership::{
        command::{Command, ConfirmMirror, Outcome, RaiseFloor},
        record::{FLOOR_AHEAD, Record},
    },
    raft::Group,
    reconcile::{
        mirror::{Mirror, MirrorState},
        uplink::{Part, UplinkLoop, mirrors, part},
    },
};

/// How long the site may take to note what the hub shows.
const NOTE: Duration = Duration::from_secs(5);
/// What could not be noted is tried again after this long.
const NOTE_AGAIN: Duration = Duration::from_secs(10);

/// A mirror that runs.
#[derive(Clone)]
pub struct Mirroring {
    /// How it fares on this device.
    pub state: watch::Receiver<MirrorState>,
    /// The hub's name.
    pub name: String,
}

impl Node {
    /// Mirrors the ownership into the hub while this device owns or is asked to by the owner, until it leaves.
    pub fn mirror(&self, hub: hub::Handle, settings: hub::Settings, mut dice: Dice) -> Mirroring {
        let (publish, published) = watch::channel(None);
        let (confirm, confirmed) = watch::channel(None);
        let state = watch::Sender::new(MirrorState::default());
        let shown = Mirroring { state: state.subscribe(), name: hub.name().to_owned() };
        let uplink = UplinkLoop {
            group: self.group.clone(),
            hub: hub.clone(),
            state: state.subscribe(),
            clock: self.clock.clone(),
            dice: dice.split(),
        };
        self.spawn(uplink.run(self.loops.clone()));
        self.spawn(note(self.group.clone(), self.clock.clone(), state.subscribe(), self.loops.clone()));
        let dice = Box::new(move || dice.throw());
        let mirror = Mirror { hub, published, confirmed, state, clock: self.clock.clone(), dice, settings };
        self.spawn(mirror.run(self.loops.clone()));
        let (group, clock, stop) = (self.group.clone(), self.clock.clone(), self.loops.clone());
        self.spawn(async move {
            let (mut record, mut role) = (group.record(), group.role());
            let (mut word, mut vouched) = (group.roster().word(), group.vouched());
            loop {
                let part = part(&group, clock.now());
                // First, so that whoever begins to mirror finds it.
                let seen = confirmed_in(&group);
                renew(&confirm, seen);
                let fresh = to_publish(&group, part);
                renew(&publish, fresh);
                let until = match part {
                    Part::Stead(_, until) => Some(until),
                    Part::None | Part::Owner(_) => None,
                };
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    Ok(()) = record.changed() => {}
                    Ok(()) = role.changed() => {}
                    Ok(()) = word.changed() => {}
                    // Only in the owner's stead does it matter how long the owner is vouched for.
                    Ok(()) = vouched.changed(), if until.is_some() => {}
                    () = sleep_until(&*clock, until.unwrap_or_default()), if until.is_some() => {}
                    else => return,
                }
            }
        });
        shown
    }

    /// The device that mirrors for the site, as far as this one knows.
    pub(super) fn mirrored_by(&self) -> Option<DeviceId> {
        mirrors(&self.group, self.clock.now()).and_then(|node| self.group.roster().device_of(node))
    }
}

impl Node {
    /// The condition of an owner that has asked another to mirror in its place.
    pub(super) fn mirrored_elsewhere(&self) -> Option<Raised> {
        let roster = self.group.roster();
        let through = (*roster.word().borrow()).filter(|word| word.from == roster.node)?.through?;
        let elsewhere = mirrors(&self.group, self.clock.now()) == Some(through);
        let device = roster.device_of(through).filter(|_| elsewhere)?;
        let detail = format!("this device cannot reach the hub; {device} mirrors in its place");
        Some(Raised::new(Condition::HubUnreachable, detail))
    }
}

/// Tells only what is new.
fn renew<T: PartialEq>(sender: &watch::Sender<T>, fresh: T) {
    sender.send_if_modified(|old| {
        let changed = *old != fresh;
        *old = fresh;
        changed
    });
}

/// What the twins shall show, if it is this device that says so.
fn to_publish(group: &Group, part: Part) -> Option<Published> {
    let epoch = match part {
        Part::None => return None,
        Part::Owner(epoch) | Part::Stead(epoch, _) => epoch,
    };
    let applied = group.record();
    let applied = applied.borrow();
    // Whoever mirrors in the owner's stead may not have heard yet what was agreed.
    applied.record.owner.as_ref().filter(|owner| owner.epoch == epoch)?;
    published_at(group, &applied.record, epoch)
}

/// What the twins had to show at an epoch, as far as the history goes back.
fn published_at(group: &Group, record: &Record, epoch: Epoch) -> Option<Published> {
    let site = &group.roster().site;
    let change = record.history.iter().rev().find(|change| change.epoch == epoch)?;
    Some(Published {
        site: site.id.clone(),
        devices: site.members.iter().filter(|m| m.role.may_own()).map(|m| m.device.clone()).collect(),
        owner: Some(change.device.clone()),
        epoch: epoch.get(),
        since_unix_ms: change.since_unix_ms,
        reason: change.reason.clone(),
    })
}

/// What the site has noted of the twins.
fn confirmed_in(group: &Group) -> Option<Confirmed> {
    let applied = group.record();
    let applied = applied.borrow();
    let mirrored = applied.record.mirrored.as_ref()?;
    let shown = published_at(group, &applied.record, mirrored.epoch)?;
    Some(Confirmed { shown, etags: mirrored.etags.clone() })
}

/// Has the site note what the twins show, once per ownership; and an epoch that is above its own, once.
async fn note(
    group: Group,
    clock: Arc<dyn Clock>,
    mut state: watch::Receiver<MirrorState>,
    stop: CancellationToken,
) {
    loop {
        let command = {
            let state = state.borrow_and_update();
            let applied = group.record();
            let applied = applied.borrow();
            to_note(&state, &applied.record, &group.roster().me, clock.wall_ms())
        };
        let mut failed = false;
        if let Some(command) = command {
            failed = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                outcome = group.propose(command, NOTE) => match outcome {
                    Ok(outcome) => {
                        tracing::debug!(?outcome, "what the hub shows is noted");
                        matches!(outcome, Outcome::Refused(_))
                    }
                    Err(error) => {
                        tracing::debug!(%error, "what the hub shows could not be noted");
                        true
                    }
                },
            };
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(NOTE_AGAIN), if failed => {}
            changed = state.changed(), if !failed => if changed.is_err() {
                return;
            },
        }
    }
}

/// The longest etag that is kept, in bytes.
const ETAG_MAX: usize = 128;

/// What is worth an entry in the log: never anything while nothing has changed.
fn to_note(state: &MirrorState, record: &Record, me: &DeviceId, wall_ms: u64) -> Option<Command> {
    let believed = record.epoch.get().saturating_add(FLOOR_AHEAD);
    let (highest, floor) = (state.highest_epoch_seen, record.floor.max(record.epoch).get());
    if state.mirroring && highest > floor && highest <= believed {
        let seen_in = state.highest_epoch_in.as_ref().map(ToString::to_string).unwrap_or_default();
        return Some(Command::RaiseFloor(RaiseFloor { above: Epoch::new(highest)?, seen_in }));
    }
    let settled = state.settled.as_ref()?;
    let cloned = |(device, etag): (&DeviceId, &String)| (device.clone(), etag.clone());
    let epoch = Epoch::new(settled.epoch)?;
    let before = record.mirrored.as_ref().map_or(Epoch::ZERO, |mirrored| mirrored.epoch);
    (epoch > before && epoch <= record.epoch).then(|| {
        Command::ConfirmMirror(ConfirmMirror {
            epoch,
            by: me.clone(),
            // The hub's have a dozen bytes. A twin whose etag is not kept is read by whoever mirrors next.
            etags: settled.etags.iter().filter(|(_, etag)| etag.len() <= ETAG_MAX).map(cloned).collect(),
            at_unix_ms: wall_ms,
        })
    })
}
