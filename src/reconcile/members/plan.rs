//! The pure decisions about a lost store: may this member be replaced now, and is this device to start over.
//!
//! Every rule that the argument in `raft/mod.rs` rests on stands here, and is tested here. Nothing here reads a clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    clock::Moment,
    id::{DeviceId, NodeId, StoreId},
    raft::{
        members::{Members, Step},
        peer::Contact,
    },
    site::Site,
};

/// A node that was heard within this time is present, so it is not replaced. Longer than a link that flaps, shorter than it
/// takes a person to change a disk.
pub const PRESENT: Duration = Duration::from_secs(20);
/// Who asks to be taken in asks about once a second.
const ASKS: Duration = Duration::from_secs(5);
/// What comes first after an election is the claim.
const SETTLED: Duration = Duration::from_secs(1);

/// What the leader goes by.
pub struct View<'a> {
    /// This moment.
    pub now: Moment,
    /// The leader's own node.
    pub me: NodeId,
    /// The number of the leader's own store.
    pub store: u64,
    /// The configured site.
    pub site: &'a Site,
    /// The longest refusal window that a promise which still counts may have. More than the configured one while the
    /// timing is stretched, and until it has settled after that.
    pub widest: Duration,
    /// How long ago a member may have been heard that is there now: the hold of the timing in use.
    pub hold: Duration,
    /// The membership in force.
    pub members: &'a Members,
    /// What is known of each other node.
    pub contacts: &'a BTreeMap<NodeId, Contact>,
    /// The nodes that have everything that the leader has applied.
    pub caught_up: &'a BTreeSet<NodeId>,
    /// Since when it leads.
    pub leads_since: Moment,
    /// Since when the same nodes vote, as far as it knows.
    pub changed: Moment,
}

/// What the leader does.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The next step, if one is due.
    pub step: Option<Step>,
    /// The devices that are being taken in, and what is waited for.
    pub rejoining: BTreeMap<DeviceId, String>,
}

/// The leader's next step.
pub fn plan(view: &View<'_>) -> Plan {
    let mut plan = Plan::default();
    // Both sets have the same devices; the old node is out already, and only the newer set goes on.
    if view.members.voters.len() > 1 {
        plan.step = Some(Step::Finish);
        return plan;
    }
    let learners = view.members.nodes.iter().filter(|(node, _)| !view.members.is_voter(**node));
    let mut learning = BTreeSet::new();
    for (node, of) in learners {
        learning.insert(&of.device);
        let (device, old) = (of.device.clone(), view.members.voter_of(&of.device));
        if view.silent(*node) >= PRESENT {
            plan.step.get_or_insert(Step::Drop { node: *node });
            continue;
        }
        let why = match view.may_be_replaced(old) {
            Err(why) => why,
            Ok(()) if !view.caught_up.contains(node) => "it learns what the others know".into(),
            Ok(()) => {
                let mut voters = view.members.all_voters();
                voters.retain(|voter| Some(*voter) != old);
                voters.insert(*node);
                plan.step.get_or_insert(Step::Exchange { voters });
                "it is about to vote again".into()
            }
        };
        plan.rejoining.insert(device, why);
    }
    for (node, contact) in view.contacts {
        let Some(device) = contact.device.as_ref().filter(|d| view.site.member(d).is_some()) else {
            continue;
        };
        let known = view.members.nodes.contains_key(node) || learning.contains(device);
        if known || !contact.joins || view.silent(*node) >= ASKS {
            continue;
        }
        let (Some(store), old) = (contact.store, view.members.voter_of(device)) else { continue };
        let why = match view.may_be_replaced(old) {
            Err(why) => why,
            Ok(()) => {
                let admit = Step::Admit { node: *node, device: device.clone(), store };
                plan.step.get_or_insert(admit);
                "it is about to learn what the others know".into()
            }
        };
        plan.rejoining.insert(device.clone(), why);
    }
    if view.now.since(view.leads_since) >= SETTLED {
        plan.step = plan.step.or_else(|| view.to_note());
    }
    plan
}

impl View<'_> {
    /// How long nothing was heard from a node; at most since this device leads.
    fn silent(&self, node: NodeId) -> Duration {
        let heard = self.contacts.get(&node).and_then(|c| c.heard).unwrap_or_default();
        self.now.since(heard.max(self.leads_since))
    }

    /// Whether the node that votes for a device may be replaced by another store of that device now.
    ///
    /// # Errors
    /// Why not yet, in one sentence.
    pub fn may_be_replaced(&self, old: Option<NodeId>) -> Result<(), String> {
        if old == Some(self.me) {
            return Err("the device that leads cannot be replaced".into());
        }
        if let Some(old) = old
            && self.silent(old) < PRESENT.max(self.widest * 2)
        {
            let seconds = self.silent(old).as_secs();
            return Err(format!("its former store was heard {seconds} s ago and may still be there"));
        }
        if self.now.since(self.changed) < self.widest {
            return Err("the members have changed just now".into());
        }
        let heard = |node: NodeId| node == self.me || self.silent(node) < self.hold;
        if !self.members.is_quorum(|node| Some(*node) != old && heard(*node)) {
            return Err("there is no majority without it".into());
        }
        Ok(())
    }

    /// The members whose stores are known here and not noted yet.
    fn to_note(&self) -> Option<Step> {
        let shown = |id: &NodeId| match *id == self.me {
            true => Some(self.store),
            false => self.contacts.get(id)?.store,
        };
        let unnoted = self.members.nodes.iter().filter(|(_, node)| node.store.is_none());
        let stores: BTreeMap<_, _> =
            unnoted.filter_map(|(id, node)| Some((*id, (node.device.clone(), shown(id)?)))).collect();
        (!stores.is_empty()).then_some(Step::Note { stores })
    }
}

/// Whether this device must take it that it has forgotten what it promised: somebody knows another store of it, and its
/// own has never been of use.
pub fn doubts(store: StoreId, unused: bool, told: &BTreeSet<DeviceId>) -> bool {
    !store.later && unused && !told.is_empty()
}

/// Whether this device throws its unused store away and comes back as a later one: so many know another store of it that
/// they are a majority without it, and can take it in.
pub fn starts_over(store: StoreId, unused: bool, told: &BTreeSet<DeviceId>, site: &Site) -> bool {
    let others = site.members.iter().filter(|m| told.contains(&m.device)).count();
    doubts(store, unused, told) && others >= site.quorum()
}

#[cfg(test)]
mod tests;
