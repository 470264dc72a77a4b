//! What a sidecar says of itself in its own module twin, under `properties.reported.quorate`.
//!
//! Written by `reconcile/`, read by `quorate fleet`. It is the flag of contract section 5 and, beside it, what an
//! operator far away wants to know. Every field is read leniently, because newer and older sidecars write beside each other. No name
//! of a device is ever a key: a twin's keys cannot hold dots, and names of devices can.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Flag, twin::Properties};

/// The key under `properties.reported`.
pub const KEY: &str = "quorate";

/// One sidecar's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reported {
    /// The ownership as this device knows it; `active` if this device owns.
    #[serde(flatten)]
    pub flag: Flag,
    /// Whether this life of the sidecar cannot tell yet that the flag is the newest. Never said itself.
    #[serde(skip)]
    pub doubtful: bool,
    /// This device.
    #[serde(default)]
    pub device: String,
    /// `owner`, `standby` or `witness`.
    #[serde(default)]
    pub role: String,
    /// The version of this sidecar.
    #[serde(default)]
    pub build: String,
    /// All devices of the site, as this one sees them.
    #[serde(default)]
    pub members: Vec<Member>,
    /// How many devices the site can still lose.
    #[serde(default)]
    pub may_fail: u32,
    /// Who asked for automatic changes to be paused, and why; absent while they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<String>,
    /// The devices that shall not own.
    #[serde(default)]
    pub drained: Vec<String>,
    /// The names of the conditions that hold on this device, without those that only say that the hub is away.
    #[serde(default)]
    pub conditions: Vec<String>,
    /// The device that writes the device twins for the site; absent where nobody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<String>,
    /// Seconds from the newest change to the moment of writing this.
    #[serde(default)]
    pub hub_lag_s: u64,
    /// When the earliest certificate in use ends, RFC 3339; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_expires: Option<String>,
    /// What became of the newest command of each kind that the cloud gave this sidecar.
    #[serde(default, skip_serializing_if = "Properties::is_empty")]
    pub commands: Properties,
    /// When this was written, by this device's wall clock, RFC 3339.
    #[serde(default)]
    pub reported: String,
}

impl Reported {
    /// Reads what stands under [`KEY`]; `None` if it is none. A sidecar that has just started says everything else before the flag:
    /// then the flag names no site ([`Reported::has_flag`]).
    pub fn read(said: &Value) -> Option<Reported> {
        let mut fields = said.as_object()?.clone();
        let without = [
            ("active", json!(false)),
            ("leader", json!("")),
            ("epoch", json!(0)),
            ("site", json!("")),
            ("since", json!("")),
            ("reason", json!("")),
        ];
        for (name, value) in without {
            fields.entry(name).or_insert(value);
        }
        serde_json::from_value(Value::Object(fields)).ok()
    }

    /// Whether it says anything about who owns.
    pub fn has_flag(&self) -> bool {
        !self.flag.site.is_empty()
    }
}

/// One device of the site, as another sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The device.
    pub device: String,
    /// `voter` or `witness`.
    #[serde(default)]
    pub role: String,
    /// The version of its sidecar; empty if it was never heard.
    #[serde(default)]
    pub build: String,
    /// Whether it is heard.
    #[serde(default)]
    pub reachable: bool,
}
