//! Connects the mirror to the record: what the twins shall show, and which device says so.
//!
//! The owner says so, for as long as it leads. A device that leads without knowing that it was replaced may go on saying
//! what it last knew; that is harmless, because the mirror compares epochs before every write (`reconcile/mirror.rs`).
//! Nothing here decides anything about the ownership itself.

use tokio::sync::watch;

use super::Node;
use crate::{
    dice::Dice,
    hub::{self, Published},
    ownership::view::Standing,
    raft::Group,
    reconcile::mirror::{Mirror, MirrorState},
};

impl Node {
    /// Mirrors the ownership into the hub while this device owns, until it leaves. Returns how the mirror fares, and
    /// the hub's name.
    pub fn mirror(
        &self,
        hub: hub::Handle,
        settings: hub::Settings,
        mut dice: Dice,
    ) -> (watch::Receiver<MirrorState>, String) {
        let (publish, published) = watch::channel(None);
        let state = watch::Sender::new(MirrorState::default());
        let (shown, name) = (state.subscribe(), hub.name().to_owned());
        let dice = Box::new(move || dice.throw());
        let mirror = Mirror { hub, published, state, clock: self.clock.clone(), dice, settings };
        self.spawn(mirror.run(self.loops.clone()));
        let (group, stop) = (self.group.clone(), self.loops.clone());
        self.spawn(async move {
            let (mut record, mut role) = (group.record(), group.role());
            loop {
                let fresh = to_publish(&group);
                publish.send_if_modified(|old: &mut Option<Published>| {
                    let changed = *old != fresh;
                    *old = fresh;
                    changed
                });
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    Ok(()) = record.changed() => {}
                    Ok(()) = role.changed() => {}
                    else => return,
                }
            }
        });
        (shown, name)
    }
}

/// What the twins shall show, if it is this device that says so: the owner, as long as it leads.
fn to_publish(group: &Group) -> Option<Published> {
    let roster = group.roster();
    let leads = group.role().borrow().standing == Standing::Leader;
    let record = group.record().borrow().record.clone();
    let own = record.owned_by(&roster.me, roster.incarnation).filter(|_| leads)?;
    let reason = record.history.back().map_or_else(String::new, |c| c.reason.clone());
    Some(Published {
        site: roster.site.id.clone(),
        devices: roster.site.members.iter().filter(|m| m.role.may_own()).map(|m| m.device.clone()).collect(),
        owner: Some(own.device.clone()),
        epoch: own.epoch.get(),
        since_unix_ms: own.since_unix_ms,
        reason,
    })
}
