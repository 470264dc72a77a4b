//! The identity registry: devices and modules, one by one and many at once.
//!
//! Keys that a client brings along are ignored: this hub makes its own, and shows them.

use std::collections::BTreeSet;

use axum::{
    http::{Method, request::Parts},
    response::Response,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    State,
    answer::{Failure, empty, json_response},
    lock,
    routes::{NEVER, json, text},
};
use crate::hub::{
    store::{Entry, IfMatch, Refusal, Target},
    twin::{Change, Manner},
};

/// The most identities in one bulk request.
const BULK_MAX: usize = 100;

pub(super) fn status(entry: &Entry) -> &'static str {
    if entry.enabled { "enabled" } else { "disabled" }
}

pub(super) fn scope(entry: &Entry) -> String {
    format!("ms-azure-iot-edge://{}-{}", entry.twin.device, generation(entry))
}

pub(super) fn generation(entry: &Entry) -> String {
    (638_000_000_000_000_000 + entry.generation).to_string()
}

/// The registry's view of an entry, with its keys.
fn identity_json(state: &State, entry: &Entry) -> Value {
    let name = format!("{}\n{}", entry.twin.device, entry.twin.module.as_deref().unwrap_or_default());
    let mut json = json!({
        "deviceId": entry.twin.device,
        "generationId": generation(entry),
        "etag": entry.identity_etag,
        "cloudToDeviceMessageCount": 0,
        "authentication": {
            "type": "sas",
            "symmetricKey": {
                "primaryKey": state.policies.device_key_base64(&name, "primary"),
                "secondaryKey": state.policies.device_key_base64(&name, "secondary"),
            },
            "x509Thumbprint": { "primaryThumbprint": null, "secondaryThumbprint": null },
        },
    });
    if let Some(map) = json.as_object_mut() {
        state.devices.show(&entry.twin, true, map);
        if let Some(module) = &entry.twin.module {
            map.insert("moduleId".into(), json!(module));
            map.insert("managedBy".into(), json!("IotEdge"));
        } else {
            map.insert("status".into(), json!(status(entry)));
            map.insert("statusReason".into(), Value::Null);
            map.insert("statusUpdatedTime".into(), json!(NEVER));
            map.insert("capabilities".into(), json!({ "iotEdge": entry.edge }));
            if entry.edge {
                map.insert("deviceScope".into(), json!(scope(entry)));
                map.insert("parentScopes".into(), json!([]));
            }
        }
    }
    json
}

pub(super) fn identity(
    state: &State,
    method: &Method,
    target: &Target,
    parts: &Parts,
    body: &[u8],
) -> Result<Response, Failure> {
    let header = text(&parts.headers, "if-match");
    let if_match = IfMatch::from_header(header);
    let shown = |entry: &Entry| {
        json_response(200, &identity_json(state, entry), &[("etag", format!("\"{}\"", entry.identity_etag))])
    };
    match *method {
        Method::GET => Ok(shown(lock(&state.store).get(target)?)),
        Method::DELETE => {
            lock(&state.store).delete(target, &if_match, state.stamp())?;
            state.registry_changed();
            Ok(empty(204))
        }
        Method::PUT => {
            let json = json(body)?;
            let edge = json.pointer("/capabilities/iotEdge").and_then(Value::as_bool).unwrap_or(false);
            let enabled = json.get("status").and_then(Value::as_str) != Some("disabled");
            let at = state.stamp();
            let mut store = lock(&state.store);
            // With If-Match a PUT updates what exists; without, it creates.
            if header.is_some() {
                let entry = store.update(target, enabled, edge, &if_match, at)?.clone();
                drop(store);
                state.registry_changed();
                return Ok(shown(&entry));
            }
            store.create(target, edge, at).map_err(|refusal| match refusal {
                Refusal::Exists(name) if target.module.is_some() => {
                    Failure::new(409, "ModuleAlreadyExistsOnDevice", name)
                }
                other => other.into(),
            })?;
            Ok(shown(store.update(target, enabled, edge, &IfMatch::Any, at)?))
        }
        _ => Err(Failure::new(405, "InvalidOperation", "Method not allowed.")),
    }
}

pub(super) fn list(state: &State, parts: &Parts, device: Option<&str>) -> Result<Response, Failure> {
    let top = top(parts)?;
    let store = lock(&state.store);
    let wanted = |entry: &&Entry| match device {
        Some(device) => entry.twin.device == device && entry.twin.module.is_some(),
        None => entry.twin.module.is_none(),
    };
    let found = store.all().filter(wanted).take(top).map(|entry| identity_json(state, entry)).collect();
    Ok(json_response(200, &Value::Array(found), &[]))
}

/// How many the client wants at most, for a list that has no pages.
pub(super) fn top(parts: &Parts) -> Result<usize, Failure> {
    let query = parts.uri.query().unwrap_or_default();
    let top = query
        .split('&')
        .find_map(|part| part.strip_prefix("top=").or_else(|| part.strip_prefix("maxCount=")));
    match top.map(str::parse::<usize>) {
        None => Ok(1000),
        Some(Ok(top)) if (1..=1000).contains(&top) => Ok(top),
        Some(_) => Err(Failure::argument("top must be 1 to 1000.")),
    }
}

pub(super) fn statistics(state: &State) -> Response {
    let store = lock(&state.store);
    let devices = || store.all().filter(|entry| entry.twin.module.is_none());
    let (total, enabled) = (devices().count(), devices().filter(|entry| entry.enabled).count());
    let body = json!({ "totalDeviceCount": total, "enabledDeviceCount": enabled,
        "disabledDeviceCount": total - enabled });
    json_response(200, &body, &[])
}

/// One line of a bulk request.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    id: String,
    #[serde(default)]
    module_id: Option<String>,
    #[serde(default, rename = "eTag")]
    etag: Option<String>,
    #[serde(default, rename = "twinETag")]
    twin_etag: Option<String>,
    #[serde(default)]
    import_mode: Option<String>,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    capabilities: Option<Value>,
    #[serde(default)]
    tags: Option<Value>,
    #[serde(default)]
    properties: Option<Value>,
}

/// Creates, updates or deletes up to a hundred identities; each succeeds or fails for itself.
pub(super) fn bulk(state: &State, body: &[u8]) -> Result<Response, Failure> {
    let items: Vec<Item> = serde_json::from_slice(body).map_err(|why| {
        Failure::new(400, "FormatError", format!("The body is no list of identities: {why}"))
    })?;
    if items.len() > BULK_MAX {
        return Err(Failure::argument(format!("There are more than {BULK_MAX} identities.")));
    }
    let mut seen = BTreeSet::new();
    let mut errors = Vec::new();
    for item in &items {
        let target = Target { device: item.id.clone(), module: item.module_id.clone() };
        let done = match seen.insert(target.clone()) {
            true => one_of_many(state, &target, item),
            false => Err(Failure::new(400, "DeviceDefinedMultipleTimes", target.to_string())),
        };
        if let Err(failure) = done {
            errors.push(json!({ "deviceId": item.id, "moduleId": item.module_id,
                "errorCode": failure.code, "errorStatus": failure.text }));
        }
    }
    state.registry_changed();
    let status = if errors.is_empty() { 200 } else { 400 };
    let body = json!({ "isSuccessful": errors.is_empty(), "errors": errors, "warnings": [] });
    Ok(json_response(status, &body, &[]))
}

fn one_of_many(state: &State, target: &Target, item: &Item) -> Result<(), Failure> {
    let mode = item.import_mode.as_deref().unwrap_or("create");
    let strict = mode.ends_with("IfMatchETag");
    let wanted = |etag: &Option<String>| match etag {
        Some(etag) if strict => IfMatch::Etag(etag.trim_matches('"').to_owned()),
        _ => IfMatch::Any,
    };
    let (if_match, twin_match) = (wanted(&item.etag), wanted(&item.twin_etag));
    let at = state.stamp();
    let edge = item.capabilities.as_ref().and_then(|c| c.get("iotEdge")).and_then(Value::as_bool);
    let (edge, enabled) = (edge.unwrap_or(false), item.status.as_deref() != Some("disabled"));
    let mut store = lock(&state.store);
    let exists = store.get(target).is_ok();
    match mode.trim_end_matches("IfMatchETag") {
        "delete" => return Ok(store.delete(target, &if_match, at)?),
        "create" | "createOrUpdate" if !exists || mode == "create" => {
            store.create(target, edge, at)?;
            store.update(target, enabled, edge, &IfMatch::Any, at)?;
        }
        "update" | "createOrUpdate" => {
            store.update(target, enabled, edge, &if_match, at)?;
        }
        "updateTwin" => {}
        other => return Err(Failure::argument(format!("importMode {other:?} is unknown."))),
    }
    drop(store);
    let change = json!({ "tags": item.tags, "properties": item.properties });
    let change = Change::from_json(&change).map_err(|why| Failure::argument(why.to_string()))?;
    if change.tags.is_some() || change.desired.is_some() {
        state.change(target, &change, Manner::Merge, &twin_match)?;
    }
    Ok(())
}
