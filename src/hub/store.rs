//! The hub's own side of the twins: which identities exist, and which change is accepted.
//!
//! A value without clock, network or locks, so that the hub in memory and the emulator share one set of rules. It keeps
//! everything in order of name, so that equal histories give equal answers. It remembers enough to go back some minutes, as
//! a hub does that fails over to another region ([`Store::rollback`]). It does not keep keys of devices, routes, jobs or
//! methods.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};

pub use super::target::Target;
use super::{
    twin::{Change, Malformed, Manner, Properties, Twin},
    wall,
};
use crate::{
    clock::{Clock, Moment},
    id::DeviceId,
};

/// How far back [`Store::rollback`] can go.
pub const HISTORY: Duration = Duration::from_secs(600);
/// The most changes that can be undone.
const HISTORY_MAX: usize = 50_000;

/// A moment of the hub's: on its boot clock, to go back by, and on its wall clock, to be shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stamp {
    /// On the boot clock.
    pub moment: Moment,
    /// Milliseconds since 1970.
    pub wall_ms: u64,
}

impl Stamp {
    /// Now.
    pub fn now(clock: &dyn Clock) -> Stamp {
        Stamp { moment: clock.now(), wall_ms: clock.wall_ms() }
    }

    /// RFC 3339.
    fn text(self) -> String {
        wall::rfc3339(self.wall_ms)
    }
}

/// An identity with its twin.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The twin.
    pub twin: Twin,
    /// Never used twice, not even by an identity of the same name created later.
    pub generation: u64,
    /// The registry entry's own etag, bare.
    pub identity_etag: String,
    /// Whether the identity may connect. (`status` in the registry.)
    pub enabled: bool,
    /// Whether it is an IoT Edge device.
    pub edge: bool,
}

/// Why the hub refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such device.
    #[error("{0}")]
    DeviceNotFound(String),
    /// The device exists, the module does not.
    #[error("{0}/{1}")]
    ModuleNotFound(String, String),
    /// The identity exists already.
    #[error("{0}")]
    Exists(String),
    /// The etag given is not the newest.
    #[error("Precondition failed: the etag is not the newest")]
    PreconditionFailed,
    /// The change breaks a rule.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The name breaks a rule.
    #[error("{0}")]
    Name(String),
}

/// Which etag a write demands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IfMatch {
    /// None: write in any case.
    Any,
    /// This one, bare.
    Etag(String),
}

impl IfMatch {
    /// Reads an `If-Match` header as the hub does: absent, `*`, `"*"` and any etag *without quotes* all mean "in any
    /// case". The last is a known trap of the real hub, kept here so that tests fall into it.
    pub fn from_header(header: Option<&str>) -> IfMatch {
        match header.map(str::trim).and_then(|text| text.strip_prefix('"')?.strip_suffix('"')) {
            None | Some("*") => IfMatch::Any,
            Some(etag) => IfMatch::Etag(etag.to_owned()),
        }
    }

    fn allows(&self, etag: &str) -> bool {
        match self {
            IfMatch::Any => true,
            IfMatch::Etag(wanted) => wanted == etag,
        }
    }
}

/// One accepted write, for tests and the demo to look at afterwards.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// When it was accepted, on the hub's boot clock.
    pub at: Moment,
    /// Whose twin.
    pub target: Target,
    /// What was sent.
    pub change: Change,
    /// The twin's new version.
    pub version: u64,
}

/// All identities with their twins.
#[derive(Debug, Clone, Default)]
pub struct Store {
    entries: BTreeMap<Target, Entry>,
    counter: u64,
    generations: u64,
    undo: VecDeque<Undo>,
}

/// What was before a change.
#[derive(Debug, Clone)]
struct Undo {
    at: Moment,
    target: Target,
    before: Option<Entry>,
    counter: u64,
}

impl Store {
    /// The entry of that name.
    ///
    /// # Errors
    /// [`Refusal::DeviceNotFound`] or [`Refusal::ModuleNotFound`].
    pub fn get(&self, target: &Target) -> Result<&Entry, Refusal> {
        self.entries.get(target).ok_or_else(|| self.missing(target))
    }

    /// All entries, devices before their modules.
    pub fn all(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Creates an identity with an empty twin.
    ///
    /// # Errors
    /// [`Refusal::Exists`], [`Refusal::Name`], or [`Refusal::DeviceNotFound`] for a module of no device.
    pub fn create(&mut self, target: &Target, edge: bool, at: Stamp) -> Result<&Entry, Refusal> {
        for name in [Some(&target.device), target.module.as_ref()].into_iter().flatten() {
            DeviceId::new(name.as_str()).map_err(|why| Refusal::Name(format!("the id {name:?} {why}")))?;
        }
        if self.entries.contains_key(target) {
            return Err(Refusal::Exists(target.module.clone().unwrap_or_else(|| target.device.clone())));
        }
        if target.module.is_some() {
            self.get(&Target::device(&target.device))?;
        }
        self.remember(at.moment, target);
        self.generations += 1;
        let entry = Entry {
            twin: Twin::new(&target.device, target.module.as_deref(), etag(self.tick()), &at.text()),
            generation: self.generations,
            identity_etag: etag(self.tick()),
            enabled: true,
            edge: edge && target.module.is_none(),
        };
        Ok(self.entries.entry(target.clone()).or_insert(entry))
    }

    /// Updates what a registry PUT can change of an existing identity.
    ///
    /// # Errors
    /// Not found, or [`Refusal::PreconditionFailed`].
    pub fn update(
        &mut self,
        target: &Target,
        enabled: bool,
        edge: bool,
        if_match: &IfMatch,
        at: Stamp,
    ) -> Result<&Entry, Refusal> {
        if !if_match.allows(&self.get(target)?.identity_etag) {
            return Err(Refusal::PreconditionFailed);
        }
        self.remember(at.moment, target);
        let new_etag = etag(self.tick());
        let missing = self.missing(target);
        let entry = self.entries.get_mut(target).ok_or(missing)?;
        entry.enabled = enabled;
        entry.edge = edge && target.module.is_none();
        entry.identity_etag = new_etag;
        Ok(entry)
    }

    /// Deletes an identity, its twin, and a device's modules.
    ///
    /// # Errors
    /// Not found, or [`Refusal::PreconditionFailed`].
    pub fn delete(&mut self, target: &Target, if_match: &IfMatch, at: Stamp) -> Result<(), Refusal> {
        if !if_match.allows(&self.get(target)?.identity_etag) {
            return Err(Refusal::PreconditionFailed);
        }
        let goes =
            |name: &Target| name == target || (target.module.is_none() && name.device == target.device);
        // Modules first, so that going back brings the device before them.
        let gone: Vec<Target> = self.entries.keys().filter(|name| goes(name)).rev().cloned().collect();
        for name in gone {
            self.remember(at.moment, &name);
            self.entries.remove(&name);
        }
        Ok(())
    }

    /// Applies a change from the cloud's side if the etag allows.
    ///
    /// # Errors
    /// Any [`Refusal`] but [`Refusal::Exists`]; then nothing is changed.
    pub fn change(
        &mut self,
        target: &Target,
        change: &Change,
        manner: Manner,
        if_match: &IfMatch,
        at: Stamp,
    ) -> Result<&Entry, Refusal> {
        let mut entry = self.get(target)?.clone();
        if !if_match.allows(&entry.twin.etag) {
            return Err(Refusal::PreconditionFailed);
        }
        entry.twin.change(change, manner, &at.text())?;
        Ok(self.put(target, entry, at))
    }

    /// Applies what a device or module says of itself.
    ///
    /// # Errors
    /// Not found, or a broken limit; then nothing is changed.
    pub fn report(&mut self, target: &Target, patch: &Properties, at: Stamp) -> Result<&Entry, Refusal> {
        let mut entry = self.get(target)?.clone();
        entry.twin.report(patch, &at.text())?;
        Ok(self.put(target, entry, at))
    }

    /// Loses the changes of the last while, as a failover to another region does: twins, versions, etags and identities
    /// are as they were then. Like the real hub it may then give an etag out again that somebody still holds for
    /// what is lost. Returns how many changes are lost.
    pub fn rollback(&mut self, by: Duration, now: Moment) -> usize {
        let then = now.before(by);
        let mut lost = 0;
        while let Some(undo) = self.undo.pop_back_if(|undo| undo.at > then) {
            match undo.before {
                Some(entry) => self.entries.insert(undo.target, entry),
                None => self.entries.remove(&undo.target),
            };
            self.counter = undo.counter;
            lost += 1;
        }
        lost
    }

    /// Puts a changed twin in its place, under a new etag.
    fn put(&mut self, target: &Target, mut entry: Entry, at: Stamp) -> &Entry {
        self.remember(at.moment, target);
        entry.twin.etag = etag(self.tick());
        let place = self.entries.entry(target.clone()).or_insert_with(|| entry.clone());
        *place = entry;
        place
    }

    /// Notes what is about to be changed.
    fn remember(&mut self, at: Moment, target: &Target) {
        let oldest = at.before(HISTORY);
        while self.undo.len() >= HISTORY_MAX || self.undo.front().is_some_and(|undo| undo.at < oldest) {
            self.undo.pop_front();
        }
        let before = self.entries.get(target).cloned();
        self.undo.push_back(Undo { at, target: target.clone(), before, counter: self.counter });
    }

    fn missing(&self, target: &Target) -> Refusal {
        match &target.module {
            Some(module) if self.entries.contains_key(&Target::device(&target.device)) => {
                Refusal::ModuleNotFound(target.device.clone(), module.clone())
            }
            _ => Refusal::DeviceNotFound(target.device.clone()),
        }
    }

    /// One counter for the whole hub: an etag is never used twice, also not by an identity that was created again. Only a
    /// rollback sets it back.
    fn tick(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }
}

/// An etag as the hub writes them: base64 of eight bytes.
fn etag(number: u64) -> String {
    STANDARD.encode(number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(s: u64) -> Stamp {
        Stamp { moment: Moment::default() + Duration::from_secs(s), wall_ms: s * 1000 }
    }

    #[test]
    fn the_traps_of_if_match() {
        for any in [None, Some("*"), Some("\"*\""), Some("AAA="), Some("\"AAA="), Some("")] {
            assert_eq!(IfMatch::from_header(any), IfMatch::Any, "{any:?}");
        }
        assert_eq!(IfMatch::from_header(Some("\"AAA=\"")), IfMatch::Etag("AAA=".into()));
    }

    #[test]
    fn an_etag_is_never_used_twice() {
        let mut store = Store::default();
        let target = Target::device("d");
        let first = store.create(&target, true, at(1)).expect("creates").clone();
        store.delete(&target, &IfMatch::Any, at(2)).expect("deletes");
        let second = store.create(&target, true, at(1)).expect("creates").clone();
        assert_ne!(first.twin.etag, second.twin.etag);
        assert_ne!(first.generation, second.generation);
        let change = Change::from_json(&json!({"tags": {"a": 1}})).expect("a change");
        let stale = IfMatch::Etag(first.twin.etag);
        let refused = store.change(&target, &change, Manner::Merge, &stale, at(1)).expect_err("is stale");
        assert_eq!(refused, Refusal::PreconditionFailed);
        assert_eq!(store.get(&target).expect("exists").twin, second.twin);
    }

    #[test]
    fn modules_live_and_die_with_their_device() {
        let mut store = Store::default();
        let module = Target::module("d", "$edgeHub");
        assert_eq!(store.create(&module, false, at(1)).err(), Some(Refusal::DeviceNotFound("d".into())));
        store.create(&Target::device("d"), true, at(1)).expect("creates");
        assert!(matches!(store.get(&module), Err(Refusal::ModuleNotFound(..))));
        store.create(&module, true, at(1)).expect("creates");
        assert!(!store.get(&module).expect("exists").edge);
        assert!(matches!(store.create(&module, false, at(1)), Err(Refusal::Exists(_))));
        store.delete(&Target::device("d"), &IfMatch::Any, at(2)).expect("deletes");
        assert_eq!(store.all().count(), 0);
        assert!(matches!(store.create(&Target::device("a b"), false, at(1)), Err(Refusal::Name(_))));
    }

    #[test]
    fn a_rollback_brings_back_what_was_with_its_etags() {
        let mut store = Store::default();
        let (device, module) = (Target::device("d"), Target::module("d", "m"));
        let change = |n: u64| Change::from_json(&json!({"tags": {"n": n}})).expect("a change");
        store.create(&device, true, at(1)).expect("creates");
        let first =
            store.change(&device, &change(1), Manner::Merge, &IfMatch::Any, at(10)).expect("ok").clone();
        let second =
            store.change(&device, &change(2), Manner::Merge, &IfMatch::Any, at(20)).expect("ok").clone();
        store.create(&module, true, at(21)).expect("creates");
        store.delete(&device, &IfMatch::Any, at(22)).expect("deletes");
        store.create(&device, true, at(23)).expect("creates");
        let generation = store.get(&device).expect("exists").generation;
        // Module, device and the new device, the module that is younger, and the second change.
        assert_eq!(store.rollback(Duration::from_secs(10), at(29).moment), 5);
        assert_eq!(store.get(&device).expect("exists"), &first);
        assert!(store.get(&module).is_err());
        // The lost write's etag is given out again, for something else.
        let other = store.change(&device, &change(3), Manner::Merge, &IfMatch::Any, at(30)).expect("ok");
        assert_eq!(other.twin.etag, second.twin.etag);
        assert_eq!(other.twin.version, second.twin.version);
        store.delete(&device, &IfMatch::Any, at(31)).expect("deletes");
        assert!(store.create(&device, true, at(32)).expect("creates").generation > generation);
        // Nothing is remembered for longer than can be gone back.
        let late = at(32 + HISTORY.as_secs() + 1);
        store.change(&device, &change(4), Manner::Merge, &IfMatch::Any, late).expect("ok");
        assert_eq!(store.rollback(Duration::from_secs(99_999), late.moment), 1);
        assert_eq!(store.rollback(Duration::from_secs(99_999), late.moment), 0);
    }

    #[test]
    fn what_is_refused_leaves_no_trace() {
        let mut store = Store::default();
        store.create(&Target::device("d"), true, at(1)).expect("creates");
        let before = store.clone();
        let change = Change::from_json(&json!({"tags": {"a": "x".repeat(5000)}})).expect("a change");
        let refused = store.change(&Target::device("d"), &change, Manner::Merge, &IfMatch::Any, at(2));
        assert!(matches!(refused, Err(Refusal::Malformed(_))));
        assert_eq!(store.get(&Target::device("d")), before.get(&Target::device("d")));
        assert_eq!(store.undo.len(), before.undo.len());
    }
}
