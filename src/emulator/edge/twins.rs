//! The twins that an edgeHub keeps: the last copy of each, and what has not reached the hub yet.
//!
//! A value without clock and network. What a module reports is taken at once, merged with what waits already, and pushed
//! later; a push that fails stays, and is tried again only when something asks for it. What cannot be merged is pushed one after
//! the other: no one patch says that an object goes and another of the same name comes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::Value;

use super::super::mqtt::difference;
use crate::{
    clock::Moment,
    hub::twin::{Malformed, Properties, Twin},
};

#[derive(Debug, Default)]
struct Stored {
    /// The last copy, with what the module has reported since.
    twin: Option<Twin>,
    /// Reported and not known to have reached the hub; `null` deletes.
    pending: Vec<Properties>,
    /// When the copy was last compared with the hub's after an absence.
    synced: Option<Moment>,
}

/// The twins of a device's modules, by the modules' names.
#[derive(Debug, Default)]
pub(super) struct Twins {
    stored: BTreeMap<String, Stored>,
    due: BTreeSet<String>,
}

impl Twins {
    /// The last copy.
    pub(super) fn copy(&self, module: &str) -> Option<&Twin> {
        self.stored.get(module)?.twin.as_ref()
    }

    /// Puts the hub's twin in the place of the copy.
    pub(super) fn refresh(&mut self, module: &str, twin: &Twin) {
        self.stored.entry(module.to_owned()).or_default().twin = Some(twin.clone());
    }

    /// Puts the hub's desired properties in the place of the copy's.
    pub(super) fn refresh_desired(&mut self, module: &str, twin: &Twin) {
        match &mut self.stored.entry(module.to_owned()).or_default().twin {
            Some(copy) => copy.desired = twin.desired.clone(),
            none => *none = Some(twin.clone()),
        }
    }

    /// A module reports: it is stored, and a push is due.
    ///
    /// # Errors
    /// A broken limit of the hub; then nothing is stored.
    pub(super) fn report(
        &mut self,
        device: &str,
        module: &str,
        patch: &Properties,
        at: &str,
    ) -> Result<(), Malformed> {
        let stored = self.stored.entry(module.to_owned()).or_default();
        let mut twin =
            stored.twin.clone().unwrap_or_else(|| Twin::new(device, Some(module), String::new(), at));
        twin.report(patch, at)?;
        stored.twin = Some(twin);
        add(&mut stored.pending, patch);
        self.due.insert(module.to_owned());
        Ok(())
    }

    /// Asks again for what waits, if anything does.
    pub(super) fn ask_again(&mut self, module: &str) {
        if self.stored.get(module).is_some_and(|stored| !stored.pending.is_empty()) {
            self.due.insert(module.to_owned());
        }
    }

    /// Whether any push is due.
    pub(super) fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Whether something of this module waits, due or not.
    pub(super) fn waits(&self, module: &str) -> bool {
        self.stored.get(module).is_some_and(|stored| !stored.pending.is_empty())
    }

    /// What is due, to be pushed now, each module's in this order. What is not taken has to be given back.
    pub(super) fn take_due(&mut self) -> Vec<(String, Vec<Properties>)> {
        let due = std::mem::take(&mut self.due);
        due.into_iter()
            .filter_map(|module| {
                let pending = std::mem::take(&mut self.stored.get_mut(&module)?.pending);
                (!pending.is_empty()).then_some((module, pending))
            })
            .collect()
    }

    /// A push has failed: it and those after it wait, under what was reported since.
    pub(super) fn failed(&mut self, module: &str, patches: Vec<Properties>) {
        let stored = self.stored.entry(module.to_owned()).or_default();
        for newer in std::mem::replace(&mut stored.pending, patches) {
            add(&mut stored.pending, &newer);
        }
    }

    /// Compares the copy with the hub's twin after an absence, unless that was done within `floor`. Returns the patch that a
    /// module that listens needs, and the version that it leads to.
    pub(super) fn sync(
        &mut self,
        module: &str,
        twin: &Twin,
        now: Moment,
        floor: Duration,
    ) -> Option<(Properties, u64)> {
        let stored = self.stored.entry(module.to_owned()).or_default();
        if stored.synced.is_some_and(|synced| now.since(synced) < floor) {
            return None;
        }
        stored.synced = Some(now);
        let before = stored.twin.replace(twin.clone())?;
        if before.desired.version == twin.desired.version && before.desired.values == twin.desired.values {
            return None;
        }
        Some((difference(&before.desired.values, &twin.desired.values), twin.desired.version))
    }
}

/// Puts a patch after those that wait.
fn add(pending: &mut Vec<Properties>, patch: &Properties) {
    match pending.last_mut() {
        Some(last) if merges(last, patch) => overlay(last, patch),
        _ => pending.push(patch.clone()),
    }
}

/// Whether both can be one: nowhere does the second add to an object that the first has deleted or replaced.
fn merges(first: &Properties, second: &Properties) -> bool {
    second.iter().all(|(key, value)| match (first.get(key), value) {
        (Some(Value::Object(below)), Value::Object(inner)) => merges(below, inner),
        (Some(_), Value::Object(_)) => false,
        _ => true,
    })
}

/// Merges `patch` over `target` and keeps what it deletes as `null`.
fn overlay(target: &mut Properties, patch: &Properties) {
    for (key, value) in patch {
        match (target.get_mut(key), value) {
            (Some(Value::Object(below)), Value::Object(inner)) => overlay(below, inner),
            _ => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::hub::twin::merge;

    fn map(json: Value) -> Properties {
        let Value::Object(map) = json else { panic!("an object") };
        map
    }

    fn s(s: u64) -> Moment {
        Moment::default() + Duration::from_secs(s)
    }

    #[test]
    fn reports_wait_merged_and_a_failed_push_stays_until_asked_for() {
        let mut twins = Twins::default();
        let report = |twins: &mut Twins, patch| twins.report("d", "m", &map(patch), "t");
        report(&mut twins, json!({"a": {"x": 1, "y": 1}, "b": 1})).expect("is taken");
        report(&mut twins, json!({"a": {"x": null}, "b": 2})).expect("is taken");
        assert!(report(&mut twins, json!({"a b": 1})).is_err());
        assert_eq!(twins.copy("m").expect("a copy").reported.values, map(json!({"a": {"y": 1}, "b": 2})));
        let due = twins.take_due();
        assert_eq!(due, [("m".to_owned(), vec![map(json!({"a": {"x": null, "y": 1}, "b": 2}))])]);
        assert!(!twins.waits("m"));
        report(&mut twins, json!({"b": 3})).expect("is taken");
        twins.take_due();
        twins.failed("m", vec![map(json!({"a": 1, "b": 2}))]);
        assert!(twins.waits("m") && !twins.is_due(), "it is not tried again by itself");
        report(&mut twins, json!({"b": 3, "c": 1})).expect("is taken");
        assert_eq!(twins.take_due(), [("m".to_owned(), vec![map(json!({"a": 1, "b": 3, "c": 1}))])]);
        twins.ask_again("m");
        assert!(!twins.is_due(), "nothing waits");
    }

    #[test]
    fn a_push_that_fails_does_not_undo_what_came_after() {
        let mut twins = Twins::default();
        twins.report("d", "m", &map(json!({"a": 1, "b": 1})), "t").expect("is taken");
        let (module, patches) = twins.take_due().remove(0);
        twins.report("d", "m", &map(json!({"a": 2})), "t").expect("is taken");
        twins.failed(&module, patches);
        assert_eq!(twins.take_due(), [("m".to_owned(), vec![map(json!({"a": 2, "b": 1}))])]);
    }

    #[test]
    fn an_absence_is_made_up_for_but_not_too_often() {
        let mut twins = Twins::default();
        let mut twin = Twin::new("d", Some("m"), "e".into(), "t");
        let floor = Duration::from_secs(120);
        twins.refresh("m", &twin);
        twin.desired.version = 4;
        twin.desired.values = map(json!({"a": 1}));
        assert_eq!(twins.sync("m", &twin, s(0), floor), Some((map(json!({"a": 1})), 4)));
        twin.desired.version = 5;
        twin.desired.values = map(json!({}));
        assert_eq!(twins.sync("m", &twin, s(119), floor), None);
        assert_eq!(twins.sync("m", &twin, s(120), floor), Some((map(json!({"a": null})), 5)));
        assert_eq!(twins.sync("m", &twin, s(240), floor), None, "nothing is new");
        assert_eq!(twins.sync("never seen", &twin, s(0), floor), None, "nobody missed anything");
    }

    #[test]
    fn an_object_that_went_and_came_again_keeps_nothing_of_the_old_one() {
        let mut twins = Twins::default();
        let mut hub = map(json!({"a": {"old": 1}}));
        for patch in [json!({"b": 1}), json!({"a": null}), json!({"a": {"x": 1}}), json!({"b": 2})] {
            twins.report("d", "m", &map(patch), "t").expect("is taken");
        }
        let (module, patches) = twins.take_due().remove(0);
        assert_eq!(patches.len(), 2, "{patches:?}");
        // The second push fails, and comes again with what was reported since.
        merge(&mut hub, &patches[0]);
        twins.failed(&module, patches[1..].to_vec());
        twins.report("d", "m", &map(json!({"c": 1})), "t").expect("is taken");
        for patch in twins.take_due().remove(0).1 {
            merge(&mut hub, &patch);
        }
        assert_eq!(hub, map(json!({"a": {"x": 1}, "b": 2, "c": 1})));
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(Value::Null), (0..3_u8).prop_map(|n| json!(n))];
        leaf.prop_recursive(2, 6, 2, |inner| {
            proptest::collection::btree_map("[ab]", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
        })
    }

    proptest! {
        #[test]
        fn waiting_patches_do_what_they_did_one_by_one(
            start in proptest::collection::btree_map("[ab]", any_value(), 0..3),
            patches in proptest::collection::vec(proptest::collection::btree_map("[ab]", any_value(), 0..3), 0..5)
        ) {
            let mut one_by_one = Properties::new();
            merge(&mut one_by_one, &start.into_iter().collect());
            let mut at_once = one_by_one.clone();
            let mut pending = Vec::new();
            for patch in patches {
                let patch = patch.into_iter().collect();
                merge(&mut one_by_one, &patch);
                add(&mut pending, &patch);
            }
            for patch in &pending {
                merge(&mut at_once, patch);
            }
            prop_assert_eq!(at_once, one_by_one);
        }
    }
}
