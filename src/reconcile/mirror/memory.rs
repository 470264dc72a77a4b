//! What the twins have shown before, so that one that goes back, was made anew or was meddled with is told from one that
//! was merely never written.
//!
//! It judges only what a read brought; what a write of our own brought is noted. It decides nothing: whatever the
//! verdict, the plan repairs the twin if its epoch is not above the site's.

use std::collections::BTreeMap;

use crate::{
    condition::Condition,
    hub::{Target, Twin, flag::Seen},
};

/// A twin that nobody has changed since its identity was made has this version.
const NEW_TWIN: u64 = 2;

/// What each twin has shown.
#[derive(Debug, Default)]
pub(super) struct Memory(BTreeMap<Target, Shown>);

#[derive(Debug, Default, Clone, Copy)]
struct Shown {
    epoch: u64,
    /// Zero if it is not known.
    version: u64,
}

/// What is odd about a twin, and the words for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Odd {
    pub(super) condition: Condition,
    pub(super) detail: String,
}

impl Memory {
    /// A twin was confirmed to show this epoch.
    pub(super) fn confirmed(&mut self, target: &Target, epoch: u64) {
        let shown = self.0.entry(target.clone()).or_default();
        shown.epoch = shown.epoch.max(epoch);
    }

    /// A write of our own was answered with this twin.
    pub(super) fn wrote(&mut self, target: &Target, twin: &Twin, epoch: u64) {
        self.0.insert(target.clone(), Shown { epoch, version: twin.version });
    }

    /// A read brought this twin. The same is not odd a second time.
    pub(super) fn judge(&mut self, target: &Target, twin: &Twin, seen: &Seen) -> Option<Odd> {
        let now = Shown { epoch: seen.epoch, version: twin.version };
        let before = self.0.insert(target.clone(), now).unwrap_or_default();
        let odd = |condition, detail| Some(Odd { condition, detail });
        let empty = seen.flag.is_none() && !seen.foreign;
        let younger = twin.version < before.version || twin.version <= NEW_TWIN;
        if before.epoch > 0 && empty && younger {
            return odd(
                Condition::HubDeviceRecreated,
                format!("{target}, which showed epoch {}", before.epoch),
            );
        }
        if seen.foreign {
            let same = before.version == twin.version;
            let detail = format!("{target}, at epoch {}", seen.epoch);
            return (!same).then_some(Odd { condition: Condition::TwinForeign, detail });
        }
        if seen.epoch < before.epoch {
            let detail = format!("{target}, from epoch {} to {}", before.epoch, seen.epoch);
            return odd(Condition::TwinRolledBack, detail);
        }
        None
    }

    /// Somebody else writes from here on.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::hub::{
        FlagPath,
        twin::{Change, Manner},
    };

    const AT: &str = "2026-01-01T00:00:00Z";

    fn fresh() -> Twin {
        Twin::new("edge-1", None, "e".into(), AT)
    }

    fn shows(twin: &Twin, value: serde_json::Value) -> Twin {
        let mut twin = twin.clone();
        let change =
            Change::from_json(&json!({"properties": {"desired": {"quorate": value}}})).expect("a change");
        twin.change(&change, Manner::Merge, AT).expect("fits");
        twin
    }

    fn flag(epoch: u64) -> serde_json::Value {
        json!({"active": true, "leader": "x", "epoch": epoch, "site": "s", "since": "", "reason": ""})
    }

    fn judge(memory: &mut Memory, twin: &Twin) -> Option<Condition> {
        let seen = FlagPath::default().read(&twin.desired.values);
        memory.judge(&Target::device("edge-1"), twin, &seen).map(|odd| odd.condition)
    }

    #[test]
    fn what_goes_back_is_told_once_and_from_what_was_made_anew() {
        let target = Target::device("edge-1");
        let (three, mut memory) = (shows(&fresh(), flag(3)), Memory::default());
        assert_eq!(judge(&mut memory, &fresh()), None, "never written is not odd");
        let five = shows(&three, flag(5));
        memory.wrote(&target, &five, 5);
        assert_eq!(judge(&mut memory, &five), None);
        assert_eq!(judge(&mut memory, &three), Some(Condition::TwinRolledBack));
        assert_eq!(judge(&mut memory, &three), None);
        memory.wrote(&target, &five, 5);
        assert_eq!(judge(&mut memory, &fresh()), Some(Condition::HubDeviceRecreated));
        // Nothing but the record knows of it: another member mirrored before.
        for (twin, expected) in [
            (three.clone(), Some(Condition::TwinRolledBack)),
            (fresh(), Some(Condition::HubDeviceRecreated)),
            (five.clone(), None),
            // A person took the flag away; the twin is the same one.
            (shows(&five, json!(null)), Some(Condition::TwinRolledBack)),
            (shows(&five, json!({"epoch": "high"})), Some(Condition::TwinForeign)),
            (shows(&shows(&five, json!(null)), json!(true)), Some(Condition::TwinForeign)),
        ] {
            let mut memory = Memory::default();
            memory.confirmed(&target, 5);
            assert_eq!(judge(&mut memory, &twin), expected, "{twin:?}");
            assert_eq!(judge(&mut memory, &twin), None, "told twice: {twin:?}");
        }
    }
}
