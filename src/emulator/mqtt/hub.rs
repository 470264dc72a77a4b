//! The hub itself behind its links: who may connect, and what becomes of what they ask for.
//!
//! Troubles and limits are asked once for each request, as REST asks them; a request that they turn away changes
//! nothing. The token's check is the real hub's: over the resource text exactly as received, in constant time, with the
//! identity's primary key and then its secondary, with five minutes of tolerance for clocks.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use ring::hmac;
use rustls::ServerConfig;
use serde_json::{Value, json};

use super::{
    super::{Emulator, Error, State, lock},
    Message,
    fate::Received,
    link::{Admitted, Answer, BAD_NAME, Backend, NOT_AUTHORISED, Request, UNAVAILABLE},
    links::Links,
    serve::serve,
    topic,
};
use crate::hub::{
    mqtt::packet::Connect,
    sas::Presented,
    store::{Entry, Refusal, Target},
    throttle::Operation,
    twin::{Manner, Properties, Section},
};

/// How far clocks may differ, in seconds.
const SKEW_S: u64 = 300;
/// The largest message.
pub(in crate::emulator) const MESSAGE_MAX: usize = 256 * 1024;

/// Serves devices and modules over MQTT until the state's stop token is cancelled.
fn serve_hub(
    listener: std::net::TcpListener,
    tls: &Arc<ServerConfig>,
    state: &Arc<State>,
) -> std::io::Result<SocketAddr> {
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let asked = state.clone();
    let gate = Box::new(move || (!asked.is_cut_off()).then(|| asked.line()));
    let backend = Arc::new(Hub { state: state.clone() });
    serve(listener, tls, backend, gate, &state.tasks, state.stop.clone());
    Ok(address)
}

impl Emulator {
    /// Serves devices and modules over MQTT with TLS on `listener`, and returns its address. Microsoft's SDKs connect to port
    /// 8883 and no other. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Listener`].
    pub fn serve_mqtt(&self, listener: std::net::TcpListener) -> Result<SocketAddr, Error> {
        Ok(serve_hub(listener, &self.tls, &self.state)?)
    }

    /// The connection string of a device or module with its own primary key. `gateway` is where it shall connect to, if not
    /// to the hub's own name.
    pub fn device_connection_string(&self, who: &Target, gateway: Option<&str>) -> String {
        let key = self.state.device_key(who, "primary").map(|key| STANDARD.encode(key)).unwrap_or_default();
        let module = who.module.as_ref().map(|module| format!(";ModuleId={module}")).unwrap_or_default();
        let gateway = gateway.map(|gateway| format!(";GatewayHostName={gateway}")).unwrap_or_default();
        format!("HostName={};DeviceId={}{module};SharedAccessKey={key}{gateway}", self.host, who.device)
    }

    /// Whether a device or module is connected, to the hub or to its gateway.
    pub fn is_connected(&self, who: &Target) -> bool {
        self.state.devices.is_present(who)
    }

    /// How many answers with this status there were, over REST and over links; 0 stands for none at all.
    pub fn answered(&self, status: u16) -> u64 {
        lock(&self.state.gate).answered(status)
    }

    /// The newest messages of devices and modules, oldest first.
    pub fn messages(&self) -> Vec<Message> {
        lock(&self.state.devices.messages).after(0).cloned().collect()
    }
}

struct Hub {
    state: Arc<State>,
}

impl Backend for Hub {
    fn links(&self) -> &Links {
        &self.state.devices.links
    }

    fn admit(&self, connect: &Connect) -> Result<Admitted, u8> {
        let who = introduced(connect, &self.state.devices.names)?;
        let ahead_s = match self.state.receive(Operation::Connection, &who, 0) {
            Received::Served { ahead_s, .. } => ahead_s,
            Received::Turned { status: 401, .. } => return Err(NOT_AUTHORISED),
            Received::Turned { .. } | Received::Never => return Err(UNAVAILABLE),
        };
        let now_s = (self.state.clock.wall_ms() / 1000).saturating_add_signed(ahead_s);
        let life = self.state.token_life(connect, &who, now_s).ok_or(NOT_AUTHORISED)?;
        Ok(Admitted { who, life })
    }

    fn present(&self, who: &Target, is: bool) {
        self.state.devices.present(who, is, &self.state.at());
    }

    fn take(&self, from: &Target, request: Request) -> Answer {
        self.state.devices.active(from, &self.state.at());
        self.state.take(from, request)
    }
}

/// Who a client says it is: its id, which its user name must bear too, at a hub of these names.
pub(in crate::emulator) fn introduced(connect: &Connect, names: &[String]) -> Result<Target, u8> {
    let username = connect.username.as_deref().ok_or(BAD_NAME)?;
    let (path, query) = username.split_once("/?").ok_or(BAD_NAME)?;
    let (host, client) = path.split_once('/').ok_or(BAD_NAME)?;
    if client != connect.client_id || !query.split('&').any(|part| part.starts_with("api-version=")) {
        return Err(BAD_NAME);
    }
    if !names.contains(&bare(host)) {
        return Err(NOT_AUTHORISED);
    }
    match client.split('/').collect::<Vec<_>>()[..] {
        [device] if !device.is_empty() => Ok(Target::device(device)),
        [device, module] if !device.is_empty() && !module.is_empty() => Ok(Target::module(device, module)),
        _ => Err(BAD_NAME),
    }
}

/// A host's name in lower case, without its port.
fn bare(host: &str) -> String {
    host.split(':').next().unwrap_or_default().to_lowercase()
}

/// What a device or module sees of its twin.
pub(in crate::emulator) fn own_twin(desired: &Section, reported: &Section) -> Bytes {
    let shown = |section: &Section| {
        let mut values = section.values.clone();
        // An empty copy of a gateway's has none.
        if section.version > 0 {
            values.insert("$version".into(), section.version.into());
        }
        Value::Object(values)
    };
    Bytes::from(json!({ "desired": shown(desired), "reported": shown(reported) }).to_string())
}

/// The properties in the body of a report.
pub(in crate::emulator) fn reported(body: &[u8]) -> Result<Properties, Refusal> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(patch)) => Ok(patch),
        _ => Err(Refusal::Malformed(crate::hub::twin::Malformed::Part("the body"))),
    }
}

/// The status that a refusal has on a link.
pub(in crate::emulator) fn status(refusal: &Refusal) -> u16 {
    match refusal {
        Refusal::DeviceNotFound(_) | Refusal::ModuleNotFound(..) => 404,
        Refusal::Exists(_) => 409,
        Refusal::PreconditionFailed => 412,
        Refusal::Malformed(_) | Refusal::Name(_) => 400,
    }
}

impl State {
    /// How long the token in `connect` is good for as a token of `who`; `None` if it is not, or `who` may not connect.
    pub(in crate::emulator) fn token_life(
        &self,
        connect: &Connect,
        who: &Target,
        now_s: u64,
    ) -> Option<Duration> {
        let token = std::str::from_utf8(connect.password.as_deref()?).ok()?;
        self.signed(token, who, now_s).filter(|_| self.may_connect(who))
    }

    /// How long `token` is good for as a token of `who`; `None` if it is none.
    pub(in crate::emulator) fn signed(&self, token: &str, who: &Target, now_s: u64) -> Option<Duration> {
        let token = Presented::parse(token)?;
        let key = |which| {
            let key = self.device_key(who, which)?;
            Some(token.signed_by(&hmac::Key::new(hmac::HMAC_SHA256, &key)))
        };
        if !(key("primary")? || key("secondary")?) {
            return None;
        }
        let resource = percent_decode_str(&token.raw_resource).decode_utf8().ok()?.into_owned();
        let (host, path) = resource.split_once('/')?;
        if !self.devices.names.contains(&bare(host)) {
            return None;
        }
        let own = match &who.module {
            None => format!("devices/{}", who.device),
            Some(module) => format!("devices/{}/modules/{module}", who.device),
        };
        if path.trim_end_matches('/') != own {
            return None;
        }
        // One that has expired is still taken for as long as clocks may differ.
        let end = if token.expiry > now_s { token.expiry } else { token.expiry.saturating_add(SKEW_S) };
        let left = end.checked_sub(now_s).filter(|left| *left > 0)?;
        // A year is for ever.
        Some(Duration::from_secs(left.min(366 * 86_400)))
    }

    /// Whether the identity exists and is enabled, and its device is.
    pub(in crate::emulator) fn may_connect(&self, who: &Target) -> bool {
        let store = lock(&self.store);
        let enabled = |who: &Target| store.get(who).is_ok_and(|entry| entry.enabled);
        enabled(who) && enabled(&Target::device(&who.device))
    }

    /// Cuts the links of all who may no longer connect. To be called after every change of the registry.
    pub(in crate::emulator) fn registry_changed(&self) {
        self.devices.links.cut(|who| !self.may_connect(who));
        for gateway in self.devices.all_gateways() {
            gateway.registry_changed();
        }
    }

    /// The cloud has changed the desired properties of `entry`. Those who listen hear of it, in the order of the changes if
    /// the caller holds a lock on them.
    pub(in crate::emulator) fn desired_changed(
        &self,
        entry: &Entry,
        before: &Properties,
        change: &Properties,
        manner: Manner,
    ) {
        let target = Target { device: entry.twin.device.clone(), module: entry.twin.module.clone() };
        let mut patch: Properties = match manner {
            Manner::Merge => change.clone(),
            Manner::Replace => difference(before, &entry.twin.desired.values),
        };
        patch.remove("$metadata");
        patch.remove("$version");
        if let Some(gateway) = self.devices.gateway(&target.device) {
            gateway.desired(entry, &patch);
        }
        let version = entry.twin.desired.version;
        patch.insert("$version".into(), version.into());
        let body = Bytes::from(Value::Object(patch).to_string());
        let _heard = self.devices.links.push(&target, topic::desired(version), body, None);
    }

    /// Does what a connected device or module asks for.
    pub(in crate::emulator) fn take(&self, from: &Target, request: Request) -> Answer {
        match request {
            Request::Get { rid } => match self.receive(Operation::TwinRead, from, 0) {
                Received::Never => Answer::Cut,
                Received::Turned { after, status } => answered(after, status, &rid, None, Bytes::new()),
                Received::Served { after, .. } => match lock(&self.store).get(from) {
                    Ok(entry) => {
                        let twin = own_twin(&entry.twin.desired, &entry.twin.reported);
                        answered(after, 200, &rid, None, twin)
                    }
                    Err(refusal) => answered(after, status(&refusal), &rid, None, text(&refusal)),
                },
            },
            Request::Report { rid, body } => match self.receive(Operation::TwinUpdate, from, body.len()) {
                Received::Never => Answer::Cut,
                Received::Turned { after, status } => answered(after, status, &rid, None, Bytes::new()),
                Received::Served { after, lost, .. } => match reported(&body)
                    .and_then(|patch| self.report(from, &patch))
                {
                    Ok(_) if lost => Answer::Cut,
                    Ok(entry) => answered(after, 204, &rid, Some(entry.twin.reported.version), Bytes::new()),
                    Err(refusal) => answered(after, status(&refusal), &rid, None, text(&refusal)),
                },
            },
            Request::Event { properties, body } => {
                if body.len() > MESSAGE_MAX {
                    return Answer::Cut;
                }
                match self.receive(Operation::Telemetry, from, body.len()) {
                    Received::Never | Received::Turned { .. } => Answer::Cut,
                    Received::Served { after, lost, .. } => {
                        lock(&self.devices.messages).keep(self.at(), from, properties, body);
                        if lost { Answer::Cut } else { Answer::Given { after, message: None } }
                    }
                }
            }
        }
    }
}

fn text(refusal: &Refusal) -> Bytes {
    Bytes::from(refusal.to_string())
}

fn answered(after: Duration, status: u16, rid: &str, version: Option<u64>, body: Bytes) -> Answer {
    Answer::Given { after, message: Some((topic::twin_answer(status, rid, version), body)) }
}

/// The patch that makes `after` of `before`.
pub(in crate::emulator) fn difference(before: &Properties, after: &Properties) -> Properties {
    let mut patch = Properties::new();
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, new) in after {
        match (before.get(key), new) {
            (Some(old), new) if old == new => {}
            (Some(Value::Object(old)), Value::Object(new)) => {
                patch.insert(key.clone(), Value::Object(difference(old, new)));
            }
            _ => {
                patch.insert(key.clone(), new.clone());
            }
        }
    }
    patch
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hub::twin::merge;

    fn connect(client_id: &str, username: &str) -> Connect {
        Connect {
            client_id: client_id.into(),
            keep_alive: 60,
            clean_session: false,
            username: Some(username.into()),
            password: None,
        }
    }

    #[test]
    fn a_client_introduces_itself_twice_the_same() {
        let names = ["hub1.azure-devices.net".to_owned()];
        let who = |id: &str, name: &str| introduced(&connect(id, name), &names);
        let module =
            "hub1.azure-devices.net/edge-a/ha/?api-version=2019-10-01&DeviceClientType=py%2F2.14.0%28x%29";
        assert_eq!(who("edge-a/ha", module), Ok(Target::module("edge-a", "ha")));
        assert_eq!(
            who("d", "HUB1.azure-devices.net:8883/d/?api-version=2021-04-12"),
            Ok(Target::device("d"))
        );
        for (id, name) in [
            ("edge-a/other", module),
            ("d", "hub1.azure-devices.net/d/"),
            ("d", "hub1.azure-devices.net/d/?DeviceClientType=x"),
            ("d", "d/?api-version=2021-04-12"),
            ("a/b/c", "hub1.azure-devices.net/a/b/c/?api-version=2021-04-12"),
            ("", "hub1.azure-devices.net//?api-version=2021-04-12"),
            ("", ""),
        ] {
            assert_eq!(who(id, name), Err(BAD_NAME), "{id} {name}");
        }
        assert_eq!(who("d", "hub2.azure-devices.net/d/?api-version=2021-04-12"), Err(NOT_AUTHORISED));
    }

    fn properties(depth: u32) -> impl Strategy<Value = Properties> {
        let leaf = prop_oneof![any::<bool>().prop_map(Value::from), (0..9_u64).prop_map(Value::from)];
        let value = leaf.prop_recursive(depth, 16, 4, |inner| {
            proptest::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
        });
        proptest::collection::btree_map("[a-d]", value, 0..4).prop_map(|map| map.into_iter().collect())
    }

    proptest! {
        #[test]
        fn a_difference_leads_from_one_to_the_other(before in properties(3), after in properties(3)) {
            let mut patched = before.clone();
            merge(&mut patched, &difference(&before, &after));
            prop_assert_eq!(patched, after);
        }
    }
}
