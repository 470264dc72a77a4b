//! What the module's own twin lacks: a pure function of what this sidecar has to say and what the twin shows.
//!
//! Four rules. While the twin shows a higher epoch than this device has reached, nothing is said: whoever is behind must not
//! speak. The flag is said whole or not at all: a hub that has gone back unnoticed would make an old half and a new one into a
//! flag that nobody said. And it is not said by a sidecar that has just started and cannot tell yet whether it knows the newest: what
//! an edgeHub gives out as the twin may be older than what an earlier life has said, or nothing. What is equal is not said again, and the moment of writing is no difference. What the twin holds beside what is
//! wanted goes: only this sidecar writes here, and an older one may have said more. What became of commands stays: an earlier
//! life of this sidecar has said it, and by it a command is known that was executed already.

use serde_json::{Map, Value};

use crate::hub::{
    FlagPath,
    reported::{KEY, Reported},
    twin::Properties,
};

/// Fields that are always new, and never a reason to write.
const VOLATILE: [&str; 2] = ["reported", "hub_lag_s"];
/// What became of commands.
const COMMANDS: &str = "commands";
/// Fields that cannot wait: who owns.
const URGENT: [&str; 3] = ["active", "leader", "epoch"];
/// Fields that mean nothing without each other.
const FLAG: [&str; 6] = ["active", "leader", "epoch", "site", "since", "reason"];

/// What to do about the twin.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// It shows this epoch, which this device has not reached. Say nothing.
    Ahead(u64),
    /// It lacks this.
    Report {
        /// What is to be merged into the reported properties.
        patch: Properties,
        /// Whether the ownership itself differs.
        urgent: bool,
    },
    /// It shows what it should.
    Done,
}

/// Decides.
pub fn plan(wanted: &Reported, reported: &Properties) -> Step {
    let shown = FlagPath::default().read(reported).epoch;
    if shown > wanted.flag.epoch {
        return Step::Ahead(shown);
    }
    let mut target = match serde_json::to_value(wanted) {
        Ok(Value::Object(map)) => map,
        // A plain struct becomes an object; there is nothing to say otherwise.
        _ => return Step::Done,
    };
    let volatile: Vec<(String, Value)> =
        VOLATILE.iter().filter_map(|name| target.remove_entry(*name)).collect();
    if wanted.doubtful {
        target.retain(|name, _| !FLAG.contains(&name.as_str()));
    }
    let besides = if wanted.doubtful { FLAG.as_slice() } else { &[] };
    let empty = Map::new();
    let (present, is_object) = match reported.get(KEY) {
        Some(Value::Object(map)) => (map, true),
        _ => (&empty, false),
    };
    let commands = target.remove(COMMANDS);
    let mut patch = difference(&target, present, &[VOLATILE.as_slice(), &[COMMANDS], besides].concat());
    if let Some(Value::Object(wanted)) = commands {
        let outcomes = match present.get(COMMANDS) {
            Some(Value::Object(found)) => {
                let keep: Vec<&str> = found.keys().map(String::as_str).collect();
                difference(&wanted, found, &keep)
            }
            _ => wanted,
        };
        if !outcomes.is_empty() {
            patch.insert(COMMANDS.to_owned(), Value::Object(outcomes));
        }
    }
    if patch.is_empty() && is_object {
        return Step::Done;
    }
    let urgent = URGENT.iter().any(|name| patch.contains_key(*name));
    if FLAG.iter().any(|name| patch.contains_key(*name)) {
        patch.extend(FLAG.iter().filter_map(|name| target.remove_entry(*name)));
    }
    patch.extend(volatile);
    let mut outer = Properties::new();
    outer.insert(KEY.to_owned(), Value::Object(patch));
    Step::Report { patch: outer, urgent }
}

/// The patch (RFC 7396) that makes `present` into `target`, except for the names in `besides`.
fn difference(target: &Properties, present: &Properties, besides: &[&str]) -> Properties {
    let mut patch = Properties::new();
    for (name, wanted) in target {
        match (wanted, present.get(name)) {
            (Value::Object(wanted), Some(Value::Object(found))) => {
                let inner = difference(wanted, found, &[]);
                if !inner.is_empty() {
                    patch.insert(name.clone(), Value::Object(inner));
                }
            }
            // A twin keeps no nulls, so they are never wanted.
            (wanted, found) if found != Some(wanted) && !wanted.is_null() => {
                patch.insert(name.clone(), wanted.clone());
            }
            _ => {}
        }
    }
    let gone =
        |name: &&String| target.get(*name).is_none_or(Value::is_null) && !besides.contains(&name.as_str());
    for name in present.keys().filter(gone) {
        patch.insert(name.clone(), Value::Null);
    }
    patch
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::hub::{Flag, reported::Member, twin::merge};

    fn said(epoch: u64, active: bool, members: usize, paused: Option<String>, commands: Value) -> Reported {
        let flag = Flag {
            active,
            leader: "edge-1".into(),
            epoch,
            site: "s".into(),
            since: "2026-11-02T08:15:30.123Z".into(),
            reason: "first".into(),
        };
        let member = |n| Member {
            device: format!("edge.{n}"),
            role: "voter".into(),
            build: "0.1.0".into(),
            reachable: true,
        };
        Reported {
            flag,
            doubtful: false,
            device: "edge-1".into(),
            role: "owner".into(),
            build: "0.1.0".into(),
            members: (0..members).map(member).collect(),
            may_fail: 1,
            paused,
            drained: Vec::new(),
            conditions: Vec::new(),
            mirror: None,
            hub_lag_s: 3,
            certificate_expires: None,
            commands: match commands {
                Value::Object(map) => map,
                _ => Properties::new(),
            },
            reported: "2026-11-02T08:15:31.000Z".into(),
        }
    }

    fn reported() -> impl Strategy<Value = Reported> {
        let commands = prop_oneof![
            Just(json!({})),
            Just(json!({"pause": {"id": "a", "outcome": "done"}})),
            Just(json!({"pause": {"id": "b"}, "drain": {"id": "c"}})),
        ];
        (0..5_u64, any::<bool>(), 0..4_usize, proptest::option::of("[a-z]{0,5}"), commands).prop_map(
            |(epoch, active, members, paused, commands)| said(epoch, active, members, paused, commands),
        )
    }

    /// Whatever may stand in a twin: ours, somebody else's, or nonsense.
    fn found() -> impl Strategy<Value = Properties> {
        let odd = prop_oneof![
            Just(json!(null)),
            Just(json!(true)),
            Just(json!("17")),
            Just(json!({"epoch": "x", "members": 3})),
            Just(json!({"epoch": 1, "extra": {"deep": {"er": 1}}, "commands": {"x": 1}})),
        ];
        let value = prop_oneof![odd, reported().prop_map(|it| json!(it))];
        value.prop_map(|value| {
            let mut map = Properties::new();
            map.insert("other".into(), json!(1));
            if !value.is_null() {
                map.insert(KEY.into(), value);
            }
            map
        })
    }

    proptest! {
        #[test]
        fn one_patch_is_enough_and_nothing_is_said_twice(wanted in reported(), mut twin in found()) {
            match plan(&wanted, &twin) {
                Step::Ahead(shown) => prop_assert!(shown > wanted.flag.epoch),
                Step::Done => {}
                Step::Report { patch, urgent } => {
                    let before = FlagPath::default().read(&twin);
                    merge(&mut twin, &patch);
                    let after = FlagPath::default().read(&twin);
                    prop_assert!(after.epoch >= before.epoch, "no epoch goes back");
                    prop_assert_eq!(urgent, before.flag.as_ref().is_none_or(|flag| {
                        (flag.active, &flag.leader, flag.epoch)
                            != (wanted.flag.active, &wanted.flag.leader, wanted.flag.epoch)
                    }));
                    let read: Reported = serde_json::from_value(twin[KEY].clone()).expect("reads");
                    let kept = read.commands.clone();
                    prop_assert!(wanted.commands.iter().all(|(name, said)| kept.get(name) == Some(said)));
                    prop_assert_eq!(&Reported { commands: wanted.commands.clone(), ..read.clone() }, &wanted);
                    prop_assert_eq!(&json!(read), &twin[KEY], "and nothing beside it");
                    prop_assert_eq!(plan(&wanted, &twin), Step::Done);
                }
            }
            prop_assert_eq!(&twin["other"], &json!(1), "what is not ours stays");
        }

        #[test]
        fn a_hub_that_went_back_unnoticed_shows_no_flag_that_nobody_said(
            wanted in reported(), read in reported(), there in reported(),
        ) {
            let twin = |it: &Reported| Properties::from_iter([(KEY.to_owned(), json!(it))]);
            if let Step::Report { patch, .. } = plan(&wanted, &twin(&read)) {
                let mut twin = twin(&there);
                merge(&mut twin, &patch);
                let flag = FlagPath::default().read(&twin).flag;
                prop_assert!(flag == Some(wanted.flag) || flag == Some(there.flag), "{twin:?}");
            }
        }

        #[test]
        fn who_cannot_tell_says_no_flag(wanted in reported(), read in reported(), there in reported()) {
            let wanted = Reported { doubtful: true, ..wanted };
            let twin = |it: &Reported| Properties::from_iter([(KEY.to_owned(), json!(it))]);
            for read in [twin(&read), Properties::new()] {
                if let Step::Report { patch, urgent } = plan(&wanted, &read) {
                    let mut twin = twin(&there);
                    merge(&mut twin, &patch);
                    prop_assert!(!urgent && FlagPath::default().read(&twin).flag.as_ref() == Some(&there.flag));
                }
            }
        }

        #[test]
        fn a_later_moment_is_no_reason(mut wanted in reported(), lag: u32) {
            let mut twin = Properties::new();
            let Step::Report { patch, .. } = plan(&wanted, &twin) else { panic!("nothing to say") };
            merge(&mut twin, &patch);
            wanted.hub_lag_s = lag.into();
            wanted.reported = "2027-01-01T00:00:00.000Z".into();
            prop_assert_eq!(plan(&wanted, &twin), Step::Done);
        }
    }

    #[test]
    fn only_what_differs_is_said() {
        let mut twin = Properties::new();
        let wanted = said(3, true, 3, None, json!({"pause": {"id": "a"}}));
        let Step::Report { patch, urgent: true } = plan(&wanted, &twin) else { panic!("nothing to say") };
        merge(&mut twin, &patch);
        let mut later = wanted.clone();
        later.paused = Some("by a person".into());
        later.commands = Properties::new();
        let Step::Report { patch, urgent: false } = plan(&later, &twin) else { panic!("nothing to say") };
        assert_eq!(
            json!(patch),
            json!({"quorate": {
                "paused": "by a person",
                "hub_lag_s": 3,
                "reported": "2026-11-02T08:15:31.000Z",
            }})
        );
        later.flag.epoch = 2;
        assert_eq!(plan(&later, &twin), Step::Ahead(3));
    }

    /// An edgeHub may answer a reading with what the cloud had before its next push. Whatever it pushes then, a flag of one
    /// epoch is never made of parts of two.
    #[test]
    fn no_flag_is_mixed_of_what_was_stored_and_what_was_read() {
        let report = |wanted: &Reported, twin: &Properties| match plan(wanted, twin) {
            Step::Report { patch, .. } => patch,
            other => panic!("{other:?}"),
        };
        let owns = |epoch| said(epoch, true, 3, None, json!({}));
        let mut cloud = Properties::new();
        merge(&mut cloud, &report(&owns(5), &Properties::new()));
        let mut released = said(5, false, 3, None, json!({}));
        released.flag.leader = String::new();
        let stored = report(&released, &cloud);
        // The sidecar restarts, reads what the cloud has, and owns again.
        let next = report(&owns(6), &cloud);
        merge(&mut cloud, &stored);
        merge(&mut cloud, &next);
        let seen = FlagPath::default().read(&cloud);
        assert_eq!((seen.epoch, seen.active), (6, true), "{cloud:?}");
    }
}
