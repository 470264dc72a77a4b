//! Takes devices in again that have lost their store, and notices when this device is one of them.
//!
//! The leader notes which store each node is, and exchanges the old node of a device for its new one, one step at a time;
//! which step, and whether yet, is decided by the pure [`plan`]. Whatever another leader left unfinished is read from the
//! membership, so nothing is remembered from one leader to the next. The argument why that is safe stands in `raft/mod.rs`.
//!
//! It deliberately never removes a device, nor the leader's own node: so no leader ever steps down for a change of members,
//! and an owner still gives up by a stop receipt, or by its lease alone.

pub mod plan;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{Clock, Moment},
    ownership::view::Standing,
    raft::{Group, members::Step, vote_guard::Bar},
};

/// How often it is looked whether there is anything to do.
const LOOK: Duration = Duration::from_secs(1);
/// How long one step may take until it is looked at anew.
const STEP_LIMIT: Duration = Duration::from_secs(10);

/// The loop and what it needs.
pub struct MembersLoop {
    /// The group.
    pub group: Group,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Told when this device is to start over with a later store.
    pub starts_over: watch::Sender<bool>,
}

impl MembersLoop {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let roster = self.group.roster().clone();
        let (mut told, mut role) = (roster.told(), self.group.role());
        let mut members = roster.watch_members();
        // Since when this device leads, and since when the same nodes vote.
        let mut leads: Option<Moment> = None;
        let (mut voters, mut changed) = (members.borrow().voters.clone(), self.clock.now());
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = self.clock.now();
            if role.borrow_and_update().standing == Standing::Leader {
                leads.get_or_insert(now);
            } else {
                leads = None;
            }
            let in_force = members.borrow_and_update().clone();
            if in_force.voters != voters {
                (voters, changed) = (in_force.voters.clone(), now);
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Ok(()) = told.changed() => {
                    let told = told.borrow_and_update().clone();
                    let unused = self.group.is_unused();
                    if plan::doubts(roster.store, unused, &told) {
                        self.group.guard().bar(Bar::Amnesia);
                    }
                    if plan::starts_over(roster.store, unused, &told, &roster.site) {
                        self.starts_over.send_replace(true);
                    }
                }
                Ok(()) = role.changed() => {}
                Ok(()) = members.changed() => {}
                _ = tick.tick() => match leads {
                    Some(since) => self.lead(since, changed).await,
                    None => roster.now_rejoining(BTreeMap::new()),
                },
                else => return,
            }
        }
    }

    async fn lead(&self, leads_since: Moment, changed: Moment) {
        let roster = self.group.roster();
        let (members, contacts) = (roster.members(), roster.contacts());
        let caught_up = self.group.caught_up();
        let timing = self.group.timing();
        let agreed = self.group.record().borrow().record.pace.widest();
        let view = plan::View {
            now: self.clock.now(),
            me: roster.node,
            store: roster.store.number,
            site: &roster.site,
            widest: agreed.max(timing.refusal()).max(roster.site.timing.refusal()),
            hold: timing.hold(),
            members: &members,
            contacts: &contacts,
            caught_up: &caught_up,
            leads_since,
            changed,
        };
        let plan::Plan { step, rejoining } = plan::plan(&view);
        roster.now_rejoining(rejoining);
        let Some(step) = step else { return };
        match &step {
            Step::Note { .. } => tracing::debug!(?step, "noting which store a member has"),
            Step::Admit { device, node, .. } => {
                tracing::info!(
                    condition = "member.rejoining",
                    "{device} came back with a new store and learns as {node}"
                );
            }
            Step::Drop { node } => {
                tracing::info!(condition = "member.rejoining", "{node} has gone before it could vote")
            }
            Step::Exchange { voters } => {
                for device in
                    voters.iter().filter(|n| !members.is_voter(**n)).filter_map(|n| roster.device_of(*n))
                {
                    tracing::info!(
                        condition = "member.rejoining",
                        "{device} has caught up with its new store and votes again"
                    );
                }
            }
            Step::Finish => {
                tracing::info!(condition = "member.rejoining", "ending a change of members that was begun")
            }
        }
        if let Err(e) = self.group.change_members(step, STEP_LIMIT).await {
            tracing::warn!(condition = "member.rejoining", "the members did not change: {e}");
        }
    }
}
