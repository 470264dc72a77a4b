//! Member to member over gRPC: who is on the other end, how it is reached, when it was heard.
//!
//! Every call carries who is calling: site, device, and a digest of what all members must have been given alike. A
//! caller that does not fit is refused before anything else is looked at, and remembered as a [`Knock`] for the status.
//! One connection per peer is kept; every call has a deadline.
//!
//! This room deliberately does not encrypt yet: the member network must be one that strangers cannot reach.

pub mod client;
pub mod server;
pub mod transport;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;

use crate::{
    clock::{Clock, Moment},
    id::{DeviceId, Incarnation, NodeId},
    site::Site,
    timing::Timing,
};

/// The version of this sidecar.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The most knocks that are remembered.
const KNOCKS_MAX: usize = 16;

/// What this member says of itself, and what it has seen of the others. Shared by client and server.
#[derive(Debug)]
pub struct Roster {
    /// The site that this member belongs to.
    pub site: Site,
    /// This member.
    pub me: DeviceId,
    /// This life of its sidecar.
    pub incarnation: Incarnation,
    /// The number of its store.
    pub store: u64,
    clock: Arc<dyn Clock>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    members: BTreeMap<NodeId, Contact>,
    knocks: VecDeque<Knock>,
    unfit: String,
}

/// What is known of a member from its own words and from how its answers travel.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Contact {
    /// When it was last heard.
    pub heard: Option<Moment>,
    /// How long its last answer took.
    pub round_trip: Option<Duration>,
    /// Why it must not own, in its own words; empty if it may.
    pub unfit: String,
    /// The version it runs.
    pub version: String,
    /// Which life of its sidecar answered last.
    pub incarnation: Option<Incarnation>,
    /// The number of its store, as it was first heard in this life.
    pub store: Option<u64>,
    /// Why the last call to it failed; empty if it did not.
    pub error: String,
}

impl Contact {
    /// Whether it could own if this device gave up now: heard within the refusal window, and fit by its own words.
    pub fn may_take_over(&self, now: Moment, timing: &Timing) -> bool {
        let recent =
            self.heard.is_some_and(|heard| now.since(heard) < timing.refusal().max(Duration::from_secs(2)));
        recent && self.incarnation.is_some() && self.unfit.is_empty()
    }
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
    /// When it last knocked, by this device's wall clock.
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
        store: u64,
        clock: Arc<dyn Clock>,
    ) -> Roster {
        Roster { site, me, incarnation, store, clock, seen: Mutex::default() }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Declares why this member must not own; empty: it may. Told to the others with every answer.
    pub fn declare_unfit(&self, why: &str) {
        self.seen().unfit = why.to_owned();
    }

    fn health(&self) -> super::wire::proto::Health {
        super::wire::proto::Health {
            unfit: self.seen().unfit.clone(),
            version: VERSION.to_owned(),
            incarnation: self.incarnation.0,
            store: self.store,
        }
    }

    /// What is known of each other member.
    pub fn contacts(&self) -> BTreeMap<NodeId, Contact> {
        self.seen().members.clone()
    }

    /// Who was refused lately.
    pub fn knocks(&self) -> Vec<Knock> {
        self.seen().knocks.iter().cloned().collect()
    }

    fn heard(&self, node: NodeId, health: Option<super::wire::proto::Health>) {
        let now = self.clock.now();
        let mut seen = self.seen();
        let contact = seen.members.entry(node).or_default();
        contact.heard = Some(now);
        if let Some(health) = health {
            contact.unfit = health.unfit;
            contact.version = health.version;
            contact.incarnation = Some(Incarnation(health.incarnation));
            contact.store.get_or_insert(health.store);
        }
    }

    /// The store that a member is known to have; the first one that it shows is taken at its word. Whoever shows
    /// another has lost its votes and its log, and counting on either could elect two leaders.
    fn known_store(&self, node: NodeId, shown: Option<u64>) -> Option<u64> {
        let mut seen = self.seen();
        let contact = seen.members.entry(node).or_default();
        contact.store = contact.store.or(shown);
        contact.store
    }

    fn answered(&self, node: NodeId, asked: Moment, result: Result<(), String>) {
        let now = self.clock.now();
        let mut seen = self.seen();
        let contact = seen.members.entry(node).or_default();
        match result {
            Ok(()) => {
                contact.heard = Some(now);
                contact.round_trip = Some(now.since(asked));
                contact.error.clear();
            }
            Err(error) => contact.error = error,
        }
    }

    fn refused(&self, device: &str, address: &str, reason: String) {
        let now = self.clock.wall_ms();
        let mut seen = self.seen();
        if let Some(known) = seen.knocks.iter_mut().find(|k| k.device == device && k.reason == reason) {
            known.last_unix_ms = now;
            known.times += 1;
            known.address = address.to_owned();
            return;
        }
        tracing::warn!(condition = "peer.refused", device, address, "refused a sidecar: {reason}");
        if seen.knocks.len() == KNOCKS_MAX {
            seen.knocks.pop_front();
        }
        let (device, address) = (device.to_owned(), address.to_owned());
        seen.knocks.push_back(Knock { device, address, reason, last_unix_ms: now, times: 1 });
    }
}
