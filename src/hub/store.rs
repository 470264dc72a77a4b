//! The hub's own side of the twins: which identities exist, and which change is accepted.
//!
//! A value without clock, network or locks, so that the hub in memory and the emulator share one set of rules. It keeps
//! everything in order of name, so that equal histories give equal answers. It does not keep keys of devices, routes,
//! jobs or methods.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};

use super::twin::{Change, Malformed, Manner, Properties, Twin};
use crate::{clock::Moment, id::DeviceId};

/// The name of a twin: a device, or a module of a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The device.
    pub device: String,
    /// The module, if the twin is a module's.
    pub module: Option<String>,
}

impl Target {
    /// A device's twin.
    pub fn device(device: &str) -> Target {
        Target { device: device.to_owned(), module: None }
    }

    /// A module's twin.
    pub fn module(device: &str, module: &str) -> Target {
        Target { device: device.to_owned(), module: Some(module.to_owned()) }
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

    /// Creates an identity with an empty twin; `at` is the hub's time, RFC 3339.
    ///
    /// # Errors
    /// [`Refusal::Exists`], [`Refusal::Name`], or [`Refusal::DeviceNotFound`] for a module of no device.
    pub fn create(&mut self, target: &Target, edge: bool, at: &str) -> Result<&Entry, Refusal> {
        for name in [Some(&target.device), target.module.as_ref()].into_iter().flatten() {
            DeviceId::new(name.as_str()).map_err(|why| Refusal::Name(format!("the id {name:?} {why}")))?;
        }
        if self.entries.contains_key(target) {
            return Err(Refusal::Exists(target.module.clone().unwrap_or_else(|| target.device.clone())));
        }
        if target.module.is_some() {
            self.get(&Target::device(&target.device))?;
        }
        let generation = self.tick();
        let entry = Entry {
            twin: Twin::new(&target.device, target.module.as_deref(), etag(self.tick()), at),
            generation,
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
    ) -> Result<&Entry, Refusal> {
        let new_etag = etag(self.tick());
        let missing = self.missing(target);
        let entry = self.entries.get_mut(target).ok_or(missing)?;
        if !if_match.allows(&entry.identity_etag) {
            return Err(Refusal::PreconditionFailed);
        }
        entry.enabled = enabled;
        entry.edge = edge && target.module.is_none();
        entry.identity_etag = new_etag;
        Ok(entry)
    }

    /// Deletes an identity, its twin, and a device's modules.
    ///
    /// # Errors
    /// Not found, or [`Refusal::PreconditionFailed`].
    pub fn delete(&mut self, target: &Target, if_match: &IfMatch) -> Result<(), Refusal> {
        if !if_match.allows(&self.get(target)?.identity_etag) {
            return Err(Refusal::PreconditionFailed);
        }
        self.entries.remove(target);
        if target.module.is_none() {
            self.entries.retain(|name, _| name.device != target.device);
        }
        Ok(())
    }

    /// Applies a change from the cloud's side if the etag allows; `at` is the hub's time, RFC 3339.
    ///
    /// # Errors
    /// Any [`Refusal`] but [`Refusal::Exists`]; then nothing is changed.
    pub fn change(
        &mut self,
        target: &Target,
        change: &Change,
        manner: Manner,
        if_match: &IfMatch,
        at: &str,
    ) -> Result<&Entry, Refusal> {
        let next = etag(self.tick());
        let missing = self.missing(target);
        let entry = self.entries.get_mut(target).ok_or(missing)?;
        if !if_match.allows(&entry.twin.etag) {
            return Err(Refusal::PreconditionFailed);
        }
        entry.twin.change(change, manner, at)?;
        entry.twin.etag = next;
        Ok(entry)
    }

    /// Applies what a device or module says of itself; `at` is the hub's time, RFC 3339.
    ///
    /// # Errors
    /// Not found, or a broken limit; then nothing is changed.
    pub fn report(&mut self, target: &Target, patch: &Properties, at: &str) -> Result<&Entry, Refusal> {
        let next = etag(self.tick());
        let missing = self.missing(target);
        let entry = self.entries.get_mut(target).ok_or(missing)?;
        entry.twin.report(patch, at)?;
        entry.twin.etag = next;
        Ok(entry)
    }

    fn missing(&self, target: &Target) -> Refusal {
        match &target.module {
            Some(module) if self.entries.contains_key(&Target::device(&target.device)) => {
                Refusal::ModuleNotFound(target.device.clone(), module.clone())
            }
            _ => Refusal::DeviceNotFound(target.device.clone()),
        }
    }

    /// One counter for the whole hub: an etag is never used twice, also not by an identity that was created again.
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
        let first = store.create(&target, true, "t").expect("creates").clone();
        store.delete(&target, &IfMatch::Any).expect("deletes");
        let second = store.create(&target, true, "t").expect("creates").clone();
        assert_ne!(first.twin.etag, second.twin.etag);
        assert_ne!(first.generation, second.generation);
        let change = Change::from_json(&json!({"tags": {"a": 1}})).expect("a change");
        let stale = IfMatch::Etag(first.twin.etag);
        let refused = store.change(&target, &change, Manner::Merge, &stale, "t").expect_err("is stale");
        assert_eq!(refused, Refusal::PreconditionFailed);
        assert_eq!(store.get(&target).expect("exists").twin, second.twin);
    }

    #[test]
    fn modules_live_and_die_with_their_device() {
        let mut store = Store::default();
        let module = Target::module("d", "$edgeHub");
        assert_eq!(store.create(&module, false, "t").err(), Some(Refusal::DeviceNotFound("d".into())));
        store.create(&Target::device("d"), true, "t").expect("creates");
        assert!(matches!(store.get(&module), Err(Refusal::ModuleNotFound(..))));
        store.create(&module, true, "t").expect("creates");
        assert!(!store.get(&module).expect("exists").edge);
        assert!(matches!(store.create(&module, false, "t"), Err(Refusal::Exists(_))));
        store.delete(&Target::device("d"), &IfMatch::Any).expect("deletes");
        assert_eq!(store.all().count(), 0);
        assert!(matches!(store.create(&Target::device("a b"), false, "t"), Err(Refusal::Name(_))));
    }
}
