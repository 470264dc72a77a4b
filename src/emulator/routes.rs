//! The requests of the service REST API, one by one.
//!
//! Paths are matched by hand, because ids hold percent-encoded characters that must be decoded per segment. Bodies are
//! read as bytes: Microsoft's clients do not always name a content type.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::to_bytes,
    extract::{ConnectInfo, Request, State as Shared},
    http::{HeaderMap, HeaderValue, Method, header, request::Parts},
    response::Response,
};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::{
    State,
    answer::{Failure, empty, json_response},
    asked::{Need, need},
    configurations, gate, lock, methods,
    policies::Denied,
    query, registry,
    wire::Peer,
};
use crate::hub::{
    store::{Entry, IfMatch, Target},
    throttle::Operation,
    trouble::Fate,
    twin::{Change, Manner},
    wall,
};

const BODY_MAX: usize = 256 * 1024;
pub(super) const NEVER: &str = "0001-01-01T00:00:00Z";

pub(super) fn router(state: Arc<State>) -> Router {
    Router::new().fallback(handle).with_state(state)
}

async fn handle(
    Shared(state): Shared<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let segments: Vec<String> = parts
        .uri
        .path()
        .trim_matches('/')
        .split('/')
        .map(|segment| percent_decode_str(segment).decode_utf8_lossy().into_owned())
        .collect();
    let path: Vec<&str> = segments.iter().map(String::as_str).collect();
    let need = need(&parts.method, &path);
    let fate = state.fate(need.operation, need.device);
    if fate.unreachable {
        state.count(0);
        peer.cut();
        return empty(503);
    }
    let now_s = state.clock.wall_ms() / 1000;
    let hub_s = now_s.saturating_add_signed(fate.ahead_s);
    let result = match fate.turned {
        Some(turned) => Err(gate::turned(turned)),
        None => match to_bytes(body, BODY_MAX).await {
            Ok(body) => serve(&state, &parts, &path, &need, &body, hub_s, &fate).await,
            Err(_) => Err(Failure::new(413, "MessageTooLarge", "The request is too large.")),
        },
    };
    let mut response = result.unwrap_or_else(|failure| failure.into_response(&state.at()));
    if fate.delay > Duration::ZERO {
        tokio::time::sleep(fate.delay).await;
    }
    let writes = parts.method != Method::GET && need.operation != Operation::Query;
    if fate.answer_lost && writes {
        state.count(0);
        peer.cut();
        return response;
    }
    if hub_s != now_s
        && let Ok(date) = HeaderValue::from_str(&wall::http_date_text(hub_s))
    {
        response.headers_mut().insert(header::DATE, date);
    }
    state.count(response.status().as_u16());
    response
}

/// Checks what every request is checked for, waits if there is a burst, and answers.
async fn serve(
    state: &State,
    parts: &Parts,
    path: &[&str],
    need: &Need<'_>,
    body: &[u8],
    hub_s: u64,
    fate: &Fate,
) -> Result<Response, Failure> {
    authorize(state, &parts.headers, need, hub_s, fate.token_expired)?;
    api_version(parts.uri.query().unwrap_or_default())?;
    tokio::time::sleep(state.admit(need.operation, body.len())?).await;
    let response = match need.operation {
        Operation::Query => run_query(state, &parts.headers, body, fate.stale)?,
        _ => answer(state, parts, path, body).await?,
    };
    if parts.method != Method::GET {
        state.deploy();
    }
    Ok(response)
}

async fn answer(state: &State, parts: &Parts, path: &[&str], body: &[u8]) -> Result<Response, Failure> {
    let if_match = IfMatch::from_header(text(&parts.headers, "if-match"));
    match (&parts.method, path) {
        (&Method::POST, ["twins", device, "methods"]) => {
            methods::invoke(state, &Target::device(device), body).await
        }
        (&Method::POST, ["twins", device, "modules", module, "methods"]) => {
            methods::invoke(state, &Target::module(device, module), body).await
        }
        (method, ["twins", device]) => twin(state, method, &Target::device(device), &if_match, body),
        (method, ["twins", device, "modules", module]) => {
            twin(state, method, &Target::module(device, module), &if_match, body)
        }
        (&Method::POST, ["devices"]) => registry::bulk(state, body),
        (&Method::GET, ["devices"]) => registry::list(state, parts, None),
        (&Method::GET, ["devices", device, "modules"]) => {
            lock(&state.store).get(&Target::device(device))?;
            registry::list(state, parts, Some(device))
        }
        (method, ["devices", device]) => {
            registry::identity(state, method, &Target::device(device), parts, body)
        }
        (method, ["devices", device, "modules", module]) => {
            registry::identity(state, method, &Target::module(device, module), parts, body)
        }
        (&Method::GET, ["statistics", "devices"]) => Ok(registry::statistics(state)),
        (method, ["configurations", rest @ ..]) => configurations::answer(state, method, rest, parts, body),
        (&Method::POST, ["devices", device, "applyConfigurationContent"]) => {
            configurations::apply_to(state, device, body)
        }
        (&Method::GET, ["statistics", "service"]) => {
            Ok(json_response(200, &json!({ "connectedDeviceCount": state.devices.connected() }), &[]))
        }
        (method, _) => Err(Failure::new(
            404,
            "InvalidOperation",
            format!("The emulator does not serve {method} {}.", parts.uri.path()),
        )),
    }
}

pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn authorize(
    state: &State,
    headers: &HeaderMap,
    need: &Need<'_>,
    hub_s: u64,
    token_expired: bool,
) -> Result<(), Failure> {
    let host = text(headers, "host").unwrap_or_default();
    let token = text(headers, header::AUTHORIZATION.as_str());
    let unauthorized = |why: String| Failure::new(401, "IotHubUnauthorizedAccess", why);
    let bearer = token.and_then(|token| token.strip_prefix("Bearer "));
    let checked = match bearer {
        Some(bearer) => state.tenant.check(bearer.trim(), need.action, hub_s),
        None => state.policies.check(token, need.right, host, hub_s),
    };
    match checked {
        Ok(()) if token_expired => Err(unauthorized("The token has expired.".into())),
        Ok(()) => Ok(()),
        Err(Denied::Unknown) => Err(unauthorized("Unauthorized".into())),
        Err(Denied::Expired) => Err(unauthorized("The token has expired.".into())),
        Err(Denied::Right(said)) => Err(unauthorized(said)),
    }
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

pub(super) fn json(body: &[u8]) -> Result<Value, Failure> {
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
            return Ok(twin_response(state, &entry));
        }
        Method::PATCH => Manner::Merge,
        Method::PUT => Manner::Replace,
        _ => return Err(Failure::new(405, "InvalidOperation", "Method not allowed.")),
    };
    let change = Change::from_json(&json(body)?).map_err(|why| Failure::argument(why.to_string()))?;
    Ok(twin_response(state, &state.change(target, &change, manner, if_match)?))
}

fn twin_response(state: &State, entry: &Entry) -> Response {
    json_response(200, &twin_json(state, entry), &[("etag", format!("\"{}\"", entry.twin.etag))])
}

/// The twin as the hub shows it, with what the registry adds.
pub(super) fn twin_json(state: &State, entry: &Entry) -> Value {
    let mut json = entry.twin.to_json();
    if let Some(map) = json.as_object_mut() {
        let mut add = |key: &str, value: Value| map.insert(key.to_owned(), value);
        add("deviceEtag", json!(entry.identity_etag));
        add("status", json!(registry::status(entry)));
        add("statusUpdateTime", json!(NEVER));
        add("cloudToDeviceMessageCount", json!(0));
        add("authenticationType", json!("sas"));
        add("x509Thumbprint", json!({ "primaryThumbprint": null, "secondaryThumbprint": null }));
        add("modelId", json!(""));
        state.devices.show(&entry.twin, false, map);
        let mut add = |key: &str, value: Value| map.insert(key.to_owned(), value);
        if entry.twin.module.is_none() {
            add("capabilities", json!({ "iotEdge": entry.edge }));
            if entry.edge {
                add("deviceScope", json!(registry::scope(entry)));
                add("parentScopes", json!([]));
            }
        }
    }
    json
}

fn run_query(state: &State, headers: &HeaderMap, body: &[u8], stale: Duration) -> Result<Response, Failure> {
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
    let twins: Vec<Value> = if stale > Duration::ZERO {
        let mut store = lock(&state.store).clone();
        store.rollback(stale, state.clock.now());
        store.all().map(|entry| twin_json(state, entry)).collect()
    } else {
        lock(&state.store).all().map(|entry| twin_json(state, entry)).collect()
    };
    let rows = query.run(&twins);
    let mut answer_headers = vec![("x-ms-item-type", query.item_type().to_owned())];
    if rows.len() > from.saturating_add(page) {
        answer_headers.push(("x-ms-continuation", query::token(from + page, text_of_query)));
    }
    let rows = rows.into_iter().skip(from).take(page).collect();
    Ok(json_response(200, &Value::Array(rows), &answer_headers))
}
