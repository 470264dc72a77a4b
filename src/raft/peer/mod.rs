//! Member to member over gRPC: who is on the other end, how it is reached, when it was heard.
//!
//! Every call carries who is calling: site, device, and a digest of what all members must have been given alike. A
//! caller that does not fit is refused before anything else is looked at, and remembered as a [`Knock`] for the status.
//! One connection per peer is kept, and one more for the owner's renewals; every call has a deadline.
//!
//! This room deliberately does not encrypt yet: the member network must be one that strangers cannot reach.

pub mod client;
pub(crate) mod line;
pub(super) mod plausible;
mod porter;
pub mod probation;
pub mod server;
pub mod transport;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::sync::watch;

use super::members::Members;
use crate::{
    clock::{Clock, Moment},
    epoch::Epoch,
    id::{DeviceId, Incarnation, NodeId, StoreId},
    ownership::{
        moves::Sight,
        told::{Told, Work},
    },
    site::Site,
    timing::Timing,
};

/// The version of this sidecar.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The most knocks that are remembered.
const KNOCKS_MAX: usize = 16;

/// The most characters that are kept of what another says.
const WORDS_MAX: usize = 300;
/// When so many were refused within this time, the next are no news.
const CROWD: Duration = Duration::from_secs(60);

/// What this member says of itself, and what it has seen of the others. Shared by client and server.
#[derive(Debug)]
pub struct Roster {
    /// The site that this member belongs to.
    pub site: Site,
    /// This member.
    pub me: DeviceId,
    /// This life of its sidecar.
    pub incarnation: Incarnation,
    /// Its store.
    pub store: StoreId,
    /// The Raft node that it is with this store.
    pub node: NodeId,
    clock: Arc<dyn Clock>,
    seen: Mutex<Seen>,
    members: watch::Sender<Arc<Members>>,
    /// What the owner says of the way to the outside: this member itself, or as it was heard.
    word: watch::Sender<Option<OwnersWord>>,
    /// Who has told this member that its device had another store.
    told: watch::Sender<BTreeSet<DeviceId>>,
}

#[derive(Debug, Default)]
struct Seen {
    members: BTreeMap<NodeId, Contact>,
    knocks: VecDeque<Knock>,
    unfit: String,
    barred: bool,
    uplink: Option<bool>,
    sight: Sight,
    told: Told,
    /// Empty: only the sidecar's version is known.
    build: String,
    rejoining: BTreeMap<DeviceId, String>,
}

/// What is known of a member from its own words and from how its answers travel.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Contact {
    /// The device that this node is a store of; `None` before it was heard.
    pub device: Option<DeviceId>,
    /// Whether it asks to be taken in as a member, in its own words.
    pub joins: bool,
    /// When it was last heard.
    pub heard: Option<Moment>,
    /// How long its last answer took.
    pub round_trip: Option<Duration>,
    /// Why it must not own, in its own words; empty if it may.
    pub unfit: String,
    /// Whether it votes no more until its sidecar has started again.
    pub barred: bool,
    /// Whether it reaches the outside; `None` if it has not tried.
    pub uplink: Option<bool>,
    /// What it sees of the plant.
    pub sight: Sight,
    /// What it says is wrong with it. As old as `heard`, if that is recent: whoever is heard says at once what has changed.
    pub told: Told,
    /// The version it runs.
    pub version: String,
    /// Which life of its sidecar answered last.
    pub incarnation: Option<Incarnation>,
    /// The number of its store, as it was first heard in this life.
    pub store: Option<u64>,
    /// Why the last call to it failed; empty if it did not.
    pub error: String,
    /// Why it refuses this member, in its own words; empty if it does not, or has not been asked.
    pub refuses: String,
}

impl Contact {
    /// Whether it could own if this device gave up now: heard within the refusal window, and fit by its own words.
    pub fn may_take_over(&self, now: Moment, timing: &Timing) -> bool {
        let recent =
            self.heard.is_some_and(|heard| now.since(heard) < timing.refusal().max(Duration::from_secs(2)));
        recent && self.incarnation.is_some() && self.unfit.is_empty()
    }
}

/// Who speaks to the outside for the site, as the owner says with each renewal. What is outside is not known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnersWord {
    /// Who says so.
    pub from: NodeId,
    /// As the owner under this epoch.
    pub epoch: Epoch,
    /// Whether it cannot reach the outside and wants to know who can.
    pub wanted: bool,
    /// Who is asked to speak in its place.
    pub through: Option<NodeId>,
}

/// Somebody who was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Knock {
    /// What it called itself.
    pub device: String,
    /// Where it called from.
    pub address: String,
    /// Why it was refused, in one sentence.
    pub reason: String,
    /// When it last knocked.
    #[serde(skip)]
    pub last: Moment,
    /// The same by this device's wall clock, for display.
    pub last_unix_ms: u64,
    /// How often.
    pub times: u64,
}

impl Roster {
    /// A roster on which nobody has been seen yet.
    pub fn new(
        site: Site,
        me: DeviceId,
        incarnation: Incarnation,
        store: StoreId,
        clock: Arc<dyn Clock>,
    ) -> Roster {
        let node = store.node(&me);
        let (members, word, told) =
            (watch::Sender::default(), watch::Sender::default(), watch::Sender::default());
        Roster { site, me, incarnation, store, node, clock, seen: Mutex::default(), members, word, told }
    }

    /// The membership in force, as far as this member has it.
    pub fn members(&self) -> Arc<Members> {
        self.members.borrow().clone()
    }

    /// The membership, now and on every change.
    pub fn watch_members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.subscribe()
    }

    /// The membership has changed. Who was a node before and is none now is forgotten.
    pub(crate) fn now_members(&self, fresh: &Members) {
        let old = self.members();
        if *old == *fresh {
            return;
        }
        self.seen().members.retain(|node, _| fresh.nodes.contains_key(node) || !old.nodes.contains_key(node));
        self.members.send_replace(Arc::new(fresh.clone()));
    }

    /// The device of a node: by the membership, else by its own words, else if it is a device's first.
    pub fn device_of(&self, node: NodeId) -> Option<DeviceId> {
        if node == self.node {
            return Some(self.me.clone());
        }
        let by_membership = self.members().nodes.get(&node).map(|n| n.device.clone());
        by_membership.or_else(|| self.seen().members.get(&node)?.device.clone()).or_else(|| {
            Some(self.site.members.iter().find(|m| m.device.first_node() == node)?.device.clone())
        })
    }

    /// The node of a device: the one that votes, else the one heard last, else its first.
    pub fn node_of(&self, device: &DeviceId) -> NodeId {
        if *device == self.me {
            return self.node;
        }
        let heard = || {
            let seen = self.seen();
            let of_it = seen.members.iter().filter(|(_, c)| c.device.as_ref() == Some(device));
            of_it.max_by_key(|(_, c)| c.heard).map(|(node, _)| *node)
        };
        self.members().voter_of(device).or_else(heard).unwrap_or_else(|| device.first_node())
    }

    /// What is known of the node of another device.
    pub fn contact(&self, device: &DeviceId) -> Option<Contact> {
        let node = self.node_of(device);
        self.seen().members.get(&node).cloned()
    }

    /// Somebody knows another store of this device.
    fn told_of_another_store(&self, by: &DeviceId) {
        self.told.send_if_modified(|told| told.insert(by.clone()));
    }

    /// Who knows another store of this device, now and on every change.
    pub fn told(&self) -> watch::Receiver<BTreeSet<DeviceId>> {
        self.told.subscribe()
    }

    /// Devices that came back with another store and are being taken in, each with what is waited for.
    pub fn rejoining(&self) -> BTreeMap<DeviceId, String> {
        self.seen().rejoining.clone()
    }

    /// Says which devices are being taken in. Only a leader knows.
    pub fn now_rejoining(&self, fresh: BTreeMap<DeviceId, String>) {
        self.seen().rejoining = fresh;
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Declares why this member must not own; empty: it may. Told to the others with every answer.
    pub fn declare_unfit(&self, why: &str) {
        self.seen().unfit = why.to_owned();
    }

    /// Declares that this member votes no more in this life.
    pub fn declare_barred(&self) {
        self.seen().barred = true;
    }

    /// Declares whether this member reaches the outside. Told to the others with the next answer.
    pub fn declare_uplink(&self, reaches: Option<bool>) {
        self.seen().uplink = reaches;
    }

    /// Declares what this member sees of the plant, told to the others with the next answer. Whether that is new.
    pub fn declare_sight(&self, sight: Sight) -> bool {
        std::mem::replace(&mut self.seen().sight, sight) != sight
    }

    /// Declares what this member observes of its workload, told to the others with the next answer or question.
    pub fn declare_work(&self, work: Option<Work>) {
        self.seen().told.work = work;
    }

    /// Declares which conditions this member raises, told to the others with the next answer or question.
    pub fn declare_conditions(&self, names: Vec<String>) {
        self.seen().told.conditions = names;
    }

    /// What this member sees of the plant, as it has declared.
    pub fn sight(&self) -> Sight {
        self.seen().sight
    }

    /// Says, as the owner, who speaks to the outside. Told to the others with every renewal for that epoch.
    pub fn say(&self, epoch: Epoch, wanted: bool, through: Option<NodeId>) {
        self.now_word(OwnersWord { from: self.node, epoch, wanted, through });
    }

    /// What this member says as the owner under `epoch`, if it does.
    pub(crate) fn own_word(&self, epoch: Epoch) -> Option<OwnersWord> {
        self.word.borrow().filter(|word| word.from == self.node && word.epoch == epoch)
    }

    /// The owner's word has arrived. An earlier owner's is worth nothing.
    pub(crate) fn heard_word(&self, word: OwnersWord) {
        if word.epoch != Epoch::ZERO {
            self.now_word(word);
        }
    }

    fn now_word(&self, fresh: OwnersWord) {
        self.word.send_if_modified(|word| {
            let newer = word.is_none_or(|old| old.epoch <= fresh.epoch && old != fresh);
            if newer {
                *word = Some(fresh);
            }
            newer
        });
    }

    /// The newest owner's word, now and on every change. It holds only as long as that owner is vouched for.
    pub fn word(&self) -> watch::Receiver<Option<OwnersWord>> {
        self.word.subscribe()
    }

    /// Whether the vote of this node can be counted on, as far as its own words say.
    pub fn has_vote(&self, node: NodeId) -> bool {
        let seen = self.seen();
        if node == self.node { !seen.barred } else { seen.members.get(&node).is_none_or(|c| !c.barred) }
    }

    /// Whether this member may own, as far as it has declared.
    fn is_fit(&self) -> bool {
        self.seen().unfit.is_empty()
    }

    /// What runs on this device: the sidecar's version, and `+` with the workload's fingerprint once that is known.
    pub fn build(&self) -> String {
        let build = self.seen().build.clone();
        if build.is_empty() { VERSION.to_owned() } else { format!("{VERSION}+{build}") }
    }

    /// The workload has this fingerprint from now on.
    pub fn declare_build(&self, fingerprint: &str) {
        fingerprint.clone_into(&mut self.seen().build);
    }

    pub(super) fn health(&self) -> super::wire::proto::Health {
        let (unfit, barred, uplink, sight, told) = {
            let seen = self.seen();
            (seen.unfit.clone(), seen.barred, seen.uplink, seen.sight, seen.told.clone())
        };
        let version = self.build();
        super::wire::proto::Health {
            unfit,
            barred,
            version,
            incarnation: self.incarnation.0,
            store: self.store.number,
            node: self.node.0,
            joins: self.store.later && !self.members().nodes.contains_key(&self.node),
            uplink: uplink.map_or(0, |reaches| if reaches { 1 } else { 2 }),
            plant_seen: sight.seen,
            plant_asked: sight.asked,
            workload: told.work.map_or(0, Work::number),
            conditions: told.conditions,
        }
    }

    /// What is known of each other node that was heard or called.
    pub fn contacts(&self) -> BTreeMap<NodeId, Contact> {
        self.seen().members.clone()
    }

    /// Whether a majority was heard at most `recent` before `now`, this member included.
    pub fn hears_a_quorum(&self, now: Moment, recent: Duration) -> bool {
        let contacts = self.contacts();
        let heard = |node: &NodeId| contacts.get(node)?.heard;
        self.members().is_quorum(|node| {
            *node == self.node || heard(node).is_some_and(|heard| now.since(heard) < recent)
        })
    }

    /// Who was refused lately.
    pub fn knocks(&self) -> Vec<Knock> {
        self.seen().knocks.iter().cloned().collect()
    }

    fn heard(&self, node: NodeId, device: &DeviceId, health: Option<super::wire::proto::Health>) {
        let now = self.clock.now();
        let members = self.members();
        let mut seen = self.seen();
        // Whatever calls itself a device: of nodes that are no members, only the newest is remembered.
        if !members.nodes.contains_key(&node) {
            seen.members.retain(|other, contact| {
                *other == node || contact.device.as_ref() != Some(device) || members.nodes.contains_key(other)
            });
        }
        let contact = seen.members.entry(node).or_default();
        contact.device = Some(device.clone());
        contact.heard = Some(now);
        if let Some(health) = health {
            contact.unfit = shown(&health.unfit);
            contact.barred = health.barred;
            contact.version = shown(&health.version);
            contact.incarnation = Some(Incarnation(health.incarnation));
            contact.store.get_or_insert(health.store);
            contact.joins = health.joins;
            contact.uplink = match health.uplink {
                1 => Some(true),
                2 => Some(false),
                _ => None,
            };
            contact.sight =
                Sight { seen: health.plant_seen.min(health.plant_asked), asked: health.plant_asked };
            contact.told = Told::heard(health.workload, health.conditions);
        }
    }

    /// The store that a member is known to have; the first one that it shows is taken at its word. Whoever shows
    /// another has lost its votes and its log, and counting on either could elect two leaders.
    fn known_store(&self, node: NodeId, shown: Option<u64>) -> Option<u64> {
        // What the site has agreed on, before what this sidecar happens to remember.
        if let Some(noted) = self.members().nodes.get(&node).and_then(|n| n.store) {
            return Some(noted);
        }
        let mut seen = self.seen();
        let contact = seen.members.entry(node).or_default();
        contact.store = contact.store.or(shown);
        contact.store
    }

    /// A call to a member was answered, or failed; `refused`: because it does not want to hear from this member.
    fn answered(&self, node: NodeId, asked: Moment, result: Result<(), String>, refused: bool) {
        let now = self.clock.now();
        let mut seen = self.seen();
        let contact = seen.members.entry(node).or_default();
        match result {
            Ok(()) => {
                contact.heard = Some(now);
                contact.round_trip = Some(now.since(asked));
                contact.error.clear();
                contact.refuses.clear();
            }
            Err(error) => {
                let error = shown(&error);
                if refused && contact.refuses != error {
                    tracing::warn!(condition = "peer.refused", "{error}");
                    contact.refuses.clone_from(&error);
                }
                contact.error = error;
            }
        }
    }

    fn refused(&self, device: &str, address: &str, reason: String) {
        let (now, unix_ms) = (self.clock.now(), self.clock.wall_ms());
        let mut seen = self.seen();
        if let Some(known) = seen.knocks.iter_mut().find(|k| k.device == device && k.reason == reason) {
            known.last = now;
            known.last_unix_ms = unix_ms;
            known.times = known.times.saturating_add(1);
            known.address = address.to_owned();
            return;
        }
        // Somebody who has a new name each time shall not fill the log.
        let crowd = seen.knocks.len() == KNOCKS_MAX
            && seen.knocks.front().is_some_and(|oldest| now.since(oldest.last) < CROWD);
        if crowd {
            tracing::debug!(device, address, "refused one more sidecar: {reason}");
        } else {
            tracing::warn!(condition = "peer.refused", device, address, "refused a sidecar: {reason}");
        }
        if seen.knocks.len() == KNOCKS_MAX {
            seen.knocks.pop_front();
        }
        let (device, address) = (device.to_owned(), address.to_owned());
        seen.knocks.push_back(Knock { device, address, reason, last: now, last_unix_ms: unix_ms, times: 1 });
    }
}

/// Another's words, as far as they are kept: one line of bounded length.
fn shown(words: &str) -> String {
    words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(WORDS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::BootClock,
        id::SiteId,
        site::{Member, Role},
    };

    fn roster() -> Roster {
        let me = DeviceId::new("edge-1").expect("a name");
        let member = Member { device: me.clone(), address: "10.0.0.1:7600".into(), role: Role::Voter };
        let timing = Timing::new(&crate::timing::Settings::default()).expect("consistent");
        let site = Site { id: SiteId::new("plant-7").expect("a name"), members: vec![member], timing };
        Roster::new(site, me, Incarnation(1), StoreId { number: 1, later: false }, Arc::new(BootClock))
    }

    #[test]
    fn knocks_are_counted_and_never_pile_up() {
        let roster = roster();
        for n in 0..1000 {
            roster.refused(&format!("stranger-{n}"), "10.9.9.9:1", "it belongs elsewhere".into());
        }
        assert_eq!(roster.knocks().len(), KNOCKS_MAX);
        assert_eq!(roster.knocks()[0].device, "stranger-984", "the newest are kept");
        roster.refused("stranger-999", "10.9.9.9:2", "it belongs elsewhere".into());
        let last = roster.knocks().pop().expect("not empty");
        assert_eq!((last.times, last.address.as_str()), (2, "10.9.9.9:2"));
    }

    #[test]
    fn anothers_words_are_kept_short_and_in_one_line() {
        let roster = roster();
        let node = NodeId(9);
        let health = super::super::wire::proto::Health {
            unfit: "x\n\u{1b}[2J".repeat(100_000),
            version: "v".repeat(100_000),
            incarnation: 1,
            store: 1,
            node: 9,
            joins: false,
            barred: true,
            uplink: 7,
            plant_seen: 9,
            plant_asked: 2,
            workload: 99,
            conditions: vec!["\u{1b}[2J".into(), "x".repeat(100_000), "no.spare".into()],
        };
        assert!(roster.has_vote(node), "nothing else was heard");
        roster.heard(node, &DeviceId::new("edge-2").expect("a name"), Some(health));
        let contact = roster.contacts()[&node].clone();
        assert_eq!((contact.unfit.len(), contact.version.len()), (WORDS_MAX, WORDS_MAX));
        assert!(!contact.unfit.contains(char::is_control));
        assert!(!roster.has_vote(node));
        assert_eq!(contact.uplink, None, "a word of a later version says nothing");
        assert_eq!(contact.sight, Sight { seen: 2, asked: 2 }, "nobody sees more than there is");
        assert_eq!(contact.told, Told { work: None, conditions: vec!["no.spare".into()] });
    }

    #[test]
    fn an_earlier_owners_word_does_not_replace_a_later_ones() {
        let roster = roster();
        let word = |node, epoch| OwnersWord {
            from: NodeId(node),
            epoch: Epoch::new(epoch).expect("small"),
            wanted: true,
            through: None,
        };
        roster.heard_word(word(8, 0));
        assert_eq!(*roster.word().borrow(), None);
        roster.heard_word(word(8, 5));
        roster.heard_word(word(9, 4));
        assert_eq!(*roster.word().borrow(), Some(word(8, 5)));
        roster.say(Epoch::new(6).expect("small"), false, Some(NodeId(8)));
        assert_eq!(roster.own_word(Epoch::new(5).expect("small")), None);
        assert!(roster.own_word(Epoch::new(6).expect("small")).is_some());
    }
}
