//! What the emulator prints at start: for people, or as one line of JSON for programs.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde_json::json;

use super::{HubArgs, edge::Edge};
use crate::{emulator::Emulator, hub::Target, id::DeviceId};

/// What is printed at start.
pub(super) struct Shown<'a> {
    pub(super) emulator: &'a Emulator,
    pub(super) args: &'a HubArgs,
    pub(super) ca_file: &'a Path,
    pub(super) identity: Option<SocketAddr>,
    /// Where the directory is, and the file with the application's secret.
    pub(super) application: Option<(SocketAddr, PathBuf)>,
    pub(super) mqtt: Option<SocketAddr>,
    pub(super) edges: &'a [Edge],
}

pub(super) fn as_json(shown: &Shown<'_>) -> String {
    let Shown { emulator, args, ca_file, identity, application, mqtt, edges } = shown;
    let line = json!({
        "service_connection_string": emulator.service_connection_string(),
        "owner_connection_string": emulator.owner_connection_string(),
        "ca_file": ca_file,
        "address": emulator.address().to_string(),
        "admin_address": emulator.admin_address().to_string(),
        "identity_address": identity.map(|address| address.to_string()),
        "authority": application.as_ref().map(|(address, _)| url(address)),
        "tenant": application.as_ref().map(|_| emulator.application().tenant),
        "client_id": application.as_ref().map(|_| emulator.application().client_id),
        "client_secret_file": application.as_ref().map(|(_, file)| file),
        "mqtt_address": mqtt.map(|address| address.to_string()),
        "device_connection_strings": strings(shown).into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "edges": edges.iter().map(Edge::as_json).collect::<Vec<_>>(),
        "devices": args.devices,
    });
    format!("{line}\n")
}

pub(super) fn as_text(shown: &Shown<'_>) -> String {
    let Shown { emulator, args, ca_file, identity, application, mqtt, edges } = shown;
    let tokens = identity.map_or_else(String::new, |address| {
        format!(
            "\nTokens of Entra ID:\n\
             \x20 as Azure Arc gives them   IDENTITY_ENDPOINT=http://{address}/metadata/identity/oauth2/token \
             IMDS_ENDPOINT=http://{address}\n\
             \x20 as virtual machines do    AZURE_POD_IDENTITY_AUTHORITY_HOST=http://{address}\n"
        )
    });
    let application = application.as_ref().map_or_else(String::new, |(address, file)| {
        let known = emulator.application();
        format!(
            "\nA registered application:\n\
             \x20 authority          {}\n\x20 tenant             {}\n\x20 client_id          {}\n\
             \x20 client_secret_file {}\n",
            url(address),
            known.tenant,
            known.client_id,
            file.display()
        )
    });
    let mqtt = mqtt.map_or_else(String::new, |address| {
        let strings: String = strings(shown).iter().map(|(_, string)| format!("\x20 {string}\n")).collect();
        format!("\nDevices connect (MQTT over TLS) to {address}:\n{strings}")
    });
    let edges: String = edges.iter().map(Edge::as_text).collect();
    let devices = match args.devices.as_slice() {
        [] => "none yet: create them with --device, or over the registry API".to_owned(),
        devices => devices.iter().map(DeviceId::as_str).collect::<Vec<_>>().join(", "),
    };
    format!(
        "IoT Hub emulator. Everything is kept in memory; keys and certificates are new at each start.\n\n\
         \x20 hub        https://{}\n\
         \x20 page       http://{admin}/\n\
         \x20 switches   http://{admin}/emulator/trouble\n\
         \x20 ca_file    {}\n\
         \x20 devices    {devices}\n\n\
         \x20 service    {}\n\
         \x20 all rights {}\n\n\
         Make trouble:\n\
         \x20 curl -d '{{\"kind\":\"unreachable\"}}' http://{admin}/emulator/trouble\n\
         \x20 kinds: none, unreachable, slow (delay_ms), throttled (retry_after_s), failing (status), drop-answer, quota,\n\
         \x20        clock-skew (ahead_s), tokens-expired, stale-queries (lag_s); several at once: /emulator/troubles\n\
         \x20 curl -d '{{\"seconds\":120}}' http://{admin}/emulator/rollback\n\
         Look at the writes:\n\
         \x20 curl http://{admin}/emulator/log\n\
         {tokens}{application}{mqtt}{edges}\n\
         Ctrl-C ends it.\n",
        emulator.address(),
        ca_file.display(),
        emulator.service_connection_string(),
        emulator.owner_connection_string(),
        admin = emulator.admin_address(),
    )
}

fn url(address: &SocketAddr) -> String {
    format!("https://localhost:{}", address.port())
}

/// The connection strings of the devices themselves.
fn strings(shown: &Shown<'_>) -> Vec<(String, String)> {
    if shown.mqtt.is_none() {
        return Vec::new();
    }
    let own = |device: &DeviceId| {
        let target = Target::device(device.as_str());
        (device.to_string(), shown.emulator.device_connection_string(&target, None))
    };
    shown.args.devices.iter().map(own).collect()
}
