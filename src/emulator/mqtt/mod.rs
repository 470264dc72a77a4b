//! The device side of the emulated hub: devices and modules over MQTT, as Microsoft's own SDKs speak it.
//!
//! How it is unlike the real hub: no certificates of devices, no file uploads, no messages from the cloud to devices, no
//! MQTT over WebSocket. A filter that is none of the hub's is refused and the link stays; a topic that is none of the hub's
//! ends the link. (The real hub's choice is not documented.) A token that expires ends its link at that moment.

mod fate;
mod hub;
mod link;
mod links;
mod messages;
mod serve;
pub(super) mod topic;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, Weak},
};

use bytes::Bytes;

use serde_json::{Map, Value, json};

pub use self::messages::Message;
pub(super) use self::{
    fate::Received,
    hub::{MESSAGE_MAX, difference, introduced, own_twin, reported, status},
    link::{Admitted, Answer, Backend, NOT_AUTHORISED, Request},
    links::{Links, NoReply},
    messages::{Ring, list as list_messages},
    serve::{Gate, serve},
    topic::Bag,
};
use super::{edge::Gateway, lock, methods::Call};
use crate::hub::{store::Target, twin::Twin};

/// "Never", as the registry writes it.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// When an identity was last heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Presence {
    connected: bool,
    since: String,
    active: String,
}

/// Everything about the device side that outlives a link.
pub(super) struct Devices {
    /// Who is connected to the hub itself.
    pub(super) links: Links,
    /// What devices have sent.
    pub(super) messages: Mutex<Ring>,
    presence: Mutex<BTreeMap<Target, Presence>>,
    /// The edgeHubs, by their devices.
    pub(super) gateways: Mutex<BTreeMap<String, Weak<Gateway>>>,
    /// The names this hub goes by, in lower case.
    pub(super) names: Vec<String>,
}

impl Devices {
    pub(super) fn new(names: &[String]) -> Devices {
        Devices {
            links: Links::new(),
            messages: Mutex::default(),
            presence: Mutex::default(),
            gateways: Mutex::default(),
            names: names.iter().map(|name| name.to_lowercase()).collect(),
        }
    }

    /// `who` has connected or gone; `at` is the hub's time.
    pub(super) fn present(&self, who: &Target, connected: bool, at: &str) {
        let at = at.to_owned();
        let presence = Presence { connected, since: at.clone(), active: at };
        lock(&self.presence).insert(who.clone(), presence);
    }

    /// `who` has asked or said something.
    pub(super) fn active(&self, who: &Target, at: &str) {
        if let Some(presence) = lock(&self.presence).get_mut(who) {
            at.clone_into(&mut presence.active);
        }
    }

    /// Whether `who` is connected, by whatever way.
    pub(super) fn is_present(&self, who: &Target) -> bool {
        lock(&self.presence).get(who).is_some_and(|presence| presence.connected)
    }

    /// Fills in what the registry and a twin show about the connection; `since` is the registry's alone.
    pub(super) fn show(&self, twin: &Twin, with_since: bool, map: &mut Map<String, Value>) {
        let who = Target { device: twin.device.clone(), module: twin.module.clone() };
        let presence = lock(&self.presence).get(&who).cloned();
        let connected = presence.as_ref().is_some_and(|presence| presence.connected);
        let state = if connected { "Connected" } else { "Disconnected" };
        map.insert("connectionState".into(), json!(state));
        let active = presence.as_ref().map_or(NEVER, |presence| &presence.active);
        map.insert("lastActivityTime".into(), json!(active));
        if with_since {
            let since = presence.as_ref().map_or(NEVER, |presence| &presence.since);
            map.insert("connectionStateUpdatedTime".into(), json!(since));
        }
    }

    /// Calls a method of whoever it is, by whatever way it is connected. Cancel-safe.
    pub(super) async fn call(&self, who: &Target, call: &Call) -> Result<(i64, Bytes), NoReply> {
        let gateway = self.gateway(&who.device).filter(|gateway| gateway.is_online());
        let links = match &gateway {
            Some(gateway) if !self.links.connected(who) => gateway.links(),
            _ => &self.links,
        };
        links.call(who, &call.name, call.payload.clone(), call.connect, call.answer).await
    }

    /// The edgeHub of a device, if one runs.
    pub(super) fn gateway(&self, device: &str) -> Option<Arc<Gateway>> {
        lock(&self.gateways).get(device)?.upgrade()
    }

    /// All edgeHubs that run.
    pub(super) fn all_gateways(&self) -> Vec<Arc<Gateway>> {
        lock(&self.gateways).values().filter_map(Weak::upgrade).collect()
    }

    /// How many are connected, by whatever way.
    pub(super) fn connected(&self) -> usize {
        lock(&self.presence).values().filter(|presence| presence.connected).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_shows_who_is_connected() {
        let devices = Devices::new(&["Hub.Local".into()]);
        let shown = |who: &Target| {
            let mut map = Map::new();
            let twin = Twin::new(&who.device, who.module.as_deref(), "e".into(), "t0");
            devices.show(&twin, true, &mut map);
            Value::Object(map)
        };
        let who = Target::module("d", "m");
        let never = json!({ "connectionState": "Disconnected", "lastActivityTime": NEVER,
            "connectionStateUpdatedTime": NEVER });
        assert_eq!(shown(&who), never);
        devices.present(&who, true, "t1");
        devices.active(&who, "t2");
        let there = json!({ "connectionState": "Connected", "lastActivityTime": "t2",
            "connectionStateUpdatedTime": "t1" });
        assert_eq!(shown(&who), there);
        // The device itself does not count as connected because a module of it is.
        assert_eq!((shown(&Target::device("d")), devices.connected()), (never, 1));
        devices.present(&who, false, "t3");
        assert_eq!((shown(&who)["connectionState"].clone(), devices.connected()), (json!("Disconnected"), 0));
        assert_eq!(devices.names, ["hub.local"]);
    }
}
