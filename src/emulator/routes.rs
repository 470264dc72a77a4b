//! The requests of the service REST API, one by one.
//!
//! Paths are matched by hand, because ids hold percent-encoded characters that must be decoded per segment. Bodies are
//! read as bytes: Microsoft's clients do not always name a content type.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::to_bytes,
    extract::{ConnectInfo, Request, State as Shared},
    http::{HeaderMap, Method, header, request::Parts},
    response::Response,
};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::{
    State,
    answer::{Failure, empty, json_response},
    lock,
    policies::{Denied, Right},
    query,
    wire::Peer,
};
use crate::hub::{
    memory::Trouble,
    store::{Entry, IfMatch, Refusal, Target},
    twin::{Change, Manner},
};

const BODY_MAX: usize = 256 * 1024;
const NEVER: &str = "0001-01-01T00:00:00Z";

pub(super) fn router(state: Arc<State>) -> Router {
    Router::new().fallback(handle).with_state(state)
}

async fn handle(
    Shared(state): Shared<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let fail = |failure: Failure| failure.into_response(&state.at());
    let trouble = state.trouble();
    match trouble {
        Trouble::Throttled { retry_after_s } => {
            let failure = Failure::new(429, "ThrottlingException", "Throttling: too many requests.");
            return fail(Failure { retry_after_s, ..failure });
        }
        Trouble::Failing { status: 503 } => {
            return fail(Failure::new(503, "ServiceUnavailable", "The service is unavailable."));
        }
        Trouble::Failing { status } => {
            return fail(Failure::new(status, "ServerError", "An internal error occurred."));
        }
        Trouble::None | Trouble::Unreachable | Trouble::Slow { .. } | Trouble::DropAnswer => {}
    }
    let result = match to_bytes(body, BODY_MAX).await {
        Ok(body) => answer(&state, &parts, &body),
        Err(_) => Err(Failure::new(413, "MessageTooLarge", "The request is too large.")),
    };
    let response = result.unwrap_or_else(fail);
    match trouble {
        Trouble::Slow { delay_ms } => tokio::time::sleep(Duration::from_millis(delay_ms)).await,
        Trouble::DropAnswer if matches!(parts.method, Method::PATCH | Method::PUT | Method::DELETE) => {
            peer.cut()
        }
        _ => {}
    }
    response
}

fn answer(state: &State, parts: &Parts, body: &[u8]) -> Result<Response, Failure> {
    let segments: Vec<String> = parts
        .uri
        .path()
        .trim_matches('/')
        .split('/')
        .map(|segment| percent_decode_str(segment).decode_utf8_lossy().into_owned())
        .collect();
    let path: Vec<&str> = segments.iter().map(String::as_str).collect();
    let right = match (&parts.method, path.as_slice()) {
        (_, ["twins", ..]) | (_, ["devices", "query"]) | (_, ["statistics", "service"]) => {
            Right::ServiceConnect
        }
        (&Method::GET, _) => Right::RegistryRead,
        _ => Right::RegistryWrite,
    };
    authorize(state, &parts.headers, right)?;
    api_version(parts.uri.query().unwrap_or_default())?;
    let if_match = IfMatch::from_header(text(&parts.headers, "if-match"));
    match (&parts.method, path.as_slice()) {
        (method, ["twins", device]) => twin(state, method, &Target::device(device), &if_match, body),
        (method, ["twins", device, "modules", module]) => {
            twin(state, method, &Target::module(device, module), &if_match, body)
        }
        (&Method::POST, ["devices", "query"]) => run_query(state, &parts.headers, body),
        (&Method::GET, ["devices"]) => list(state, parts, None),
        (&Method::GET, ["devices", device, "modules"]) => {
            lock(&state.store).get(&Target::device(device))?;
            list(state, parts, Some(device))
        }
        (method, ["devices", device]) => identity(state, method, &Target::device(device), parts, body),
        (method, ["devices", device, "modules", module]) => {
            identity(state, method, &Target::module(device, module), parts, body)
        }
        (&Method::GET, ["statistics", "devices"]) => {
            let store = lock(&state.store);
            let devices = || store.all().filter(|entry| entry.twin.module.is_none());
            let (total, enabled) = (devices().count(), devices().filter(|entry| entry.enabled).count());
            let body = json!({ "totalDeviceCount": total, "enabledDeviceCount": enabled,
                "disabledDeviceCount": total - enabled });
            Ok(json_response(200, &body, &[]))
        }
        (&Method::GET, ["statistics", "service"]) => {
            Ok(json_response(200, &json!({ "connectedDeviceCount": 0 }), &[]))
        }
        (method, _) => Err(Failure::new(
            404,
            "InvalidOperation",
            format!("The emulator does not serve {method} {}.", parts.uri.path()),
        )),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn authorize(state: &State, headers: &HeaderMap, right: Right) -> Result<(), Failure> {
    let host = text(headers, "host").unwrap_or_default();
    let token = text(headers, header::AUTHORIZATION.as_str());
    let unauthorized = |why: &str| Failure::new(401, "IotHubUnauthorizedAccess", why);
    state.policies.check(token, right, host, state.clock.wall_ms() / 1000).map_err(|denied| match denied {
        Denied::Unknown => unauthorized("Unauthorized"),
        Denied::Expired => unauthorized("The token has expired."),
        Denied::Right => unauthorized("The policy lacks the right for this operation."),
    })
}

/// Any version since 2018-06-30, dated, possibly a preview.
fn api_version(query: &str) -> Result<(), Failure> {
    let version = query.split('&').find_map(|part| part.strip_prefix("api-version="));
    let date = version.map(|v| v.strip_suffix("-preview").unwrap_or(v));
    let dated = |date: &str| {
        date.len() == 10
            && date
                .bytes()
                .enumerate()
                .all(|(at, b)| if at == 4 || at == 7 { b == b'-' } else { b.is_ascii_digit() })
    };
    match date {
        Some(date) if dated(date) && date >= "2018-06-30" => Ok(()),
        Some(_) => Err(Failure::argument("The api-version is not supported.")),
        None => Err(Failure::argument("The api-version query parameter is missing.")),
    }
}

fn json(body: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(body)
        .map_err(|why| Failure::new(400, "FormatError", format!("The body is not JSON: {why}")))
}

fn twin(
    state: &State,
    method: &Method,
    target: &Target,
    if_match: &IfMatch,
    body: &[u8],
) -> Result<Response, Failure> {
    let manner = match *method {
        Method::GET => {
            let entry = lock(&state.store).get(target)?.clone();
            return Ok(twin_response(&entry));
        }
        Method::PATCH => Manner::Merge,
        Method::PUT => Manner::Replace,
        _ => return Err(Failure::new(405, "InvalidOperation", "Method not allowed.")),
    };
    let change = Change::from_json(&json(body)?).map_err(|why| Failure::argument(why.to_string()))?;
    Ok(twin_response(&state.change(target, &change, manner, if_match)?))
}

fn twin_response(entry: &Entry) -> Response {
    json_response(200, &twin_json(entry), &[("etag", format!("\"{}\"", entry.twin.etag))])
}

/// The twin as the hub shows it, with what the registry adds.
pub(super) fn twin_json(entry: &Entry) -> Value {
    let mut json = entry.twin.to_json();
    if let Some(map) = json.as_object_mut() {
        let mut add = |key: &str, value: Value| map.insert(key.to_owned(), value);
        add("deviceEtag", json!(entry.identity_etag));
        add("status", json!(status(entry)));
        add("statusUpdateTime", json!(NEVER));
        add("connectionState", json!("Disconnected"));
        add("lastActivityTime", json!(NEVER));
        add("cloudToDeviceMessageCount", json!(0));
        add("authenticationType", json!("sas"));
        add("x509Thumbprint", json!({ "primaryThumbprint": null, "secondaryThumbprint": null }));
        add("modelId", json!(""));
        if entry.twin.module.is_none() {
            add("capabilities", json!({ "iotEdge": entry.edge }));
            if entry.edge {
                add("deviceScope", json!(scope(entry)));
                add("parentScopes", json!([]));
            }
        }
    }
    json
}

fn status(entry: &Entry) -> &'static str {
    if entry.enabled { "enabled" } else { "disabled" }
}

fn scope(entry: &Entry) -> String {
    format!("ms-azure-iot-edge://{}-{}", entry.twin.device, generation(entry))
}

fn generation(entry: &Entry) -> String {
    (638_000_000_000_000_000 + entry.generation).to_string()
}

/// The registry's view of an entry, with its keys.
fn identity_json(state: &State, entry: &Entry) -> Value {
    let name = format!("{}\n{}", entry.twin.device, entry.twin.module.as_deref().unwrap_or_default());
    let mut json = json!({
        "deviceId": entry.twin.device,
        "generationId": generation(entry),
        "etag": entry.identity_etag,
        "connectionState": "Disconnected",
        "connectionStateUpdatedTime": NEVER,
        "lastActivityTime": NEVER,
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

fn identity(
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
            lock(&state.store).delete(target, &if_match)?;
            Ok(empty(204))
        }
        Method::PUT => {
            let json = json(body)?;
            let edge = json.pointer("/capabilities/iotEdge").and_then(Value::as_bool).unwrap_or(false);
            let enabled = json.get("status").and_then(Value::as_str) != Some("disabled");
            let at = state.at();
            let mut store = lock(&state.store);
            // With If-Match a PUT updates what exists; without, it creates.
            if header.is_some() {
                return Ok(shown(store.update(target, enabled, edge, &if_match)?));
            }
            store.create(target, edge, &at).map_err(|refusal| match refusal {
                Refusal::Exists(name) if target.module.is_some() => {
                    Failure::new(409, "ModuleAlreadyExistsOnDevice", name)
                }
                other => other.into(),
            })?;
            Ok(shown(store.update(target, enabled, edge, &IfMatch::Any)?))
        }
        _ => Err(Failure::new(405, "InvalidOperation", "Method not allowed.")),
    }
}

fn list(state: &State, parts: &Parts, device: Option<&str>) -> Result<Response, Failure> {
    let query = parts.uri.query().unwrap_or_default();
    let top = query
        .split('&')
        .find_map(|part| part.strip_prefix("top=").or_else(|| part.strip_prefix("maxCount=")));
    let top = match top.map(str::parse::<usize>) {
        None => 1000,
        Some(Ok(top)) if (1..=1000).contains(&top) => top,
        Some(_) => return Err(Failure::argument("top must be 1 to 1000.")),
    };
    let store = lock(&state.store);
    let wanted = |entry: &&Entry| match device {
        Some(device) => entry.twin.device == device && entry.twin.module.is_some(),
        None => entry.twin.module.is_none(),
    };
    let found = store.all().filter(wanted).take(top).map(|entry| identity_json(state, entry)).collect();
    Ok(json_response(200, &Value::Array(found), &[]))
}

fn run_query(state: &State, headers: &HeaderMap, body: &[u8]) -> Result<Response, Failure> {
    let json = json(body)?;
    let text_of_query =
        json.get("query").and_then(Value::as_str).ok_or_else(|| Failure::argument("query is missing."))?;
    let query = query::Query::parse(text_of_query).map_err(Failure::argument)?;
    let page = match text(headers, "x-ms-max-item-count").map(|text| text.trim().parse::<usize>()) {
        None => 100,
        Some(Ok(page)) if (1..=1000).contains(&page) => page,
        Some(_) => return Err(Failure::argument("x-ms-max-item-count must be 1 to 1000.")),
    };
    let from = match text(headers, "x-ms-continuation").filter(|token| !token.is_empty()) {
        None => 0,
        Some(token) => query::offset(token, text_of_query)
            .ok_or_else(|| Failure::argument("The continuation token does not belong to this query."))?,
    };
    let twins: Vec<Value> = lock(&state.store).all().map(twin_json).collect();
    let rows = query.run(&twins);
    let mut answer_headers = vec![("x-ms-item-type", query.item_type().to_owned())];
    if rows.len() > from.saturating_add(page) {
        answer_headers.push(("x-ms-continuation", query::token(from + page, text_of_query)));
    }
    let rows = rows.into_iter().skip(from).take(page).collect();
    Ok(json_response(200, &Value::Array(rows), &answer_headers))
}
