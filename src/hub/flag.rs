//! The flag in a twin: where it stands, how it is read back, and the change that writes it.
//!
//! The flag is what the cloud knows of the site's ownership (contract section 5). It is read leniently, because a person
//! may have written anything into a twin, and written exactly. Nothing here decides whether to write.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Published,
    twin::{Change, Properties, key_is_allowed},
    wall,
};
use crate::{epoch::Epoch, id::DeviceId};

/// The longest reason that is written into a twin, in bytes. The full text stays in the site's history.
const REASON_MAX: usize = 512;

/// The flag as it stands in one device's twin (contract section 5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flag {
    /// Whether this device owns the workload.
    pub active: bool,
    /// The device that owns; empty while nobody does.
    pub leader: String,
    /// The epoch of the newest ownership.
    pub epoch: u64,
    /// The site.
    pub site: String,
    /// Since when, RFC 3339 in UTC.
    pub since: String,
    /// Why, in one sentence.
    pub reason: String,
}

/// What stands where the flag belongs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// The whole flag, if it is one.
    pub flag: Option<Flag>,
    /// Its epoch; zero if there is none. Read even from a flag that is otherwise spoilt, so that a spoilt flag of a
    /// higher epoch is not overwritten.
    pub epoch: u64,
    /// Whether it says that the device owns. Read even from a flag that is otherwise spoilt.
    pub active: bool,
    /// Whether something stands there that is no flag.
    pub foreign: bool,
}

/// In which part of a twin the flag stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Place {
    /// Under `properties.desired`: the device's modules see it.
    #[default]
    Desired,
    /// Under `tags`: deployments and routes select by it, devices do not see it.
    Tags,
    /// In both, written by one request.
    Both,
}

impl Seen {
    /// What stands there after `flag` was written.
    pub fn of(flag: Flag) -> Seen {
        Seen { epoch: flag.epoch, active: flag.active, flag: Some(flag), foreign: false }
    }
}

impl Flag {
    pub(super) fn to_properties(&self) -> Properties {
        let mut inner = Properties::new();
        inner.insert("active".into(), self.active.into());
        inner.insert("leader".into(), self.leader.clone().into());
        inner.insert("epoch".into(), self.epoch.into());
        inner.insert("site".into(), self.site.clone().into());
        inner.insert("since".into(), self.since.clone().into());
        inner.insert("reason".into(), self.reason.clone().into());
        inner
    }

    /// The flag that `device`'s twin should show.
    pub fn wanted(published: &Published, device: &DeviceId) -> Flag {
        Flag::wanted_on(published, device.as_str())
    }

    /// The flag that the twins of a device and its modules should show.
    pub fn wanted_on(published: &Published, device: &str) -> Flag {
        let mut reason = published.reason.clone();
        if reason.len() > REASON_MAX {
            let end = (0..=REASON_MAX).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
            reason.truncate(end);
        }
        Flag {
            active: published.owner.as_ref().is_some_and(|owner| owner.as_str() == device),
            leader: published.owner.as_ref().map(|owner| owner.as_str().to_owned()).unwrap_or_default(),
            epoch: published.epoch,
            site: published.site.as_str().to_owned(),
            since: wall::rfc3339(published.since_unix_ms),
            reason,
        }
    }
}

/// Where the flag stands under `properties.desired`: keys joined by dots, such as `quorate` or `ha.owner`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlagPath(Vec<String>);

impl Default for FlagPath {
    fn default() -> Self {
        FlagPath(vec!["quorate".into()])
    }
}

impl TryFrom<String> for FlagPath {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let keys: Vec<String> = text.split('.').map(str::to_owned).collect();
        for key in &keys {
            key_is_allowed(key).map_err(|why| format!("a part of the flag path {text:?} {why}"))?;
        }
        // The flag's own fields need a level below the last key.
        if keys.len() > 8 {
            return Err(format!("the flag path {text:?} has more than 8 parts"));
        }
        Ok(FlagPath(keys))
    }
}

impl fmt::Display for FlagPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

impl FlagPath {
    /// Whether one of the two stands at or inside the other.
    pub fn meets(&self, other: &FlagPath) -> bool {
        self.0.iter().zip(&other.0).all(|(one, other)| one == other)
    }

    /// What stands at the path, whatever it is.
    pub fn find<'a>(&self, properties: &'a Properties) -> Option<&'a Value> {
        let mut keys = self.0.iter();
        let first = keys.next().and_then(|key| properties.get(key));
        keys.fold(first, |at, key| at.and_then(|value| value.get(key)))
    }

    /// Reads what stands at the path.
    pub fn read(&self, properties: &Properties) -> Seen {
        let Some(value) = self.find(properties) else { return Seen::default() };
        let epoch = value.get("epoch").and_then(number).unwrap_or(0);
        let active = value.get("active").and_then(Value::as_bool).unwrap_or(false);
        let flag: Option<Flag> = Flag::deserialize(value).ok();
        Seen { foreign: flag.is_none(), flag, epoch, active }
    }

    /// The change that writes `flag` at the path below `properties.desired`.
    pub fn write(&self, flag: &Flag) -> Change {
        Change { tags: None, desired: Some(self.put(Value::Object(flag.to_properties()))) }
    }

    /// An object with `value` at the path.
    pub(super) fn put(&self, value: Value) -> Properties {
        let wrap = |inner: Value, key: &String| {
            let mut outer = Properties::new();
            outer.insert(key.clone(), inner);
            Value::Object(outer)
        };
        match self.0.iter().rev().fold(value, wrap) {
            Value::Object(outer) => outer,
            // A path has at least one key.
            _ => Properties::new(),
        }
    }
}

/// An epoch as people and tools may have left it: `17`, `17.0` or `"17"`. Numbers too large for an epoch stay large, so
/// that they are seen as ahead, not as nothing.
fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64().or_else(|| {
            // A float that is a whole number within 2^53 converts without loss; beyond, any huge value will do.
            number.as_f64().filter(|f| *f >= 0.0).map(|f| {
                if f > 9_007_199_254_740_992.0 {
                    Epoch::MAX.get()
                } else {
                    format!("{f:.0}").parse().unwrap_or(0)
                }
            })
        }),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{hub::twin::merge, id::SiteId};

    fn published() -> Published {
        Published {
            site: SiteId::new("plant-7").expect("a name"),
            devices: vec![],
            owner: Some(DeviceId::new("edge-2").expect("a name")),
            epoch: 17,
            since_unix_ms: 0,
            reason: "é".repeat(400),
        }
    }

    #[test]
    fn the_flag_is_what_the_contract_says() {
        let device = DeviceId::new("edge-2").expect("a name");
        let flag = Flag { reason: "x".into(), ..Flag::wanted(&published(), &device) };
        let path = FlagPath::default();
        assert_eq!(
            path.write(&flag).to_json(),
            json!({"properties": {"desired": {"quorate": {"active": true, "leader": "edge-2", "epoch": 17,
                "site": "plant-7", "since": "1970-01-01T00:00:00.000Z", "reason": "x"}}}})
        );
        assert!(Flag::wanted(&published(), &device).reason.len() <= REASON_MAX);
    }

    #[test]
    fn a_spoilt_flag_still_shows_its_epoch() {
        let read = |json: Value| match json!({ "quorate": json }) {
            Value::Object(desired) => FlagPath::default().read(&desired),
            _ => Seen::default(),
        };
        assert_eq!(read(json!(true)), Seen { foreign: true, ..Seen::default() });
        assert_eq!(read(json!({"epoch": 9})).epoch, 9);
        assert_eq!(read(json!({"epoch": "9", "active": true})).epoch, 9);
        assert_eq!(read(json!({"epoch": 9.0})).epoch, 9);
        assert_eq!(read(json!({"epoch": 1e300})).epoch, Epoch::MAX.get());
        assert_eq!(read(json!({"epoch": -4})).epoch, 0);
        assert_eq!(read(json!({"epoch": [1]})).epoch, 0);
        assert!(read(json!({"active": true})).active);
    }

    #[test]
    fn paths_are_checked() {
        assert!(FlagPath::try_from("ha.owner".to_owned()).is_ok());
        for bad in ["", ".", "a..b", "$a", "a b", "a.b.c.d.e.f.g.h.i"] {
            assert!(FlagPath::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(path in "[a-z]{1,3}(\\.[a-z]{1,3}){0,3}", active: bool, epoch in 0..=Epoch::MAX.get(), text in "\\PC{0,20}") {
            let path = FlagPath::try_from(path).expect("a path");
            let flag = Flag { active, leader: text.clone(), epoch, site: text.clone(), since: text.clone(), reason: text };
            let mut desired = Properties::new();
            merge(&mut desired, &path.write(&flag).desired.expect("desired"));
            let seen = path.read(&desired);
            prop_assert_eq!(seen, Seen::of(flag));
        }
    }
}
