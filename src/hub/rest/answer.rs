//! What the hub's answers over REST mean.
//!
//! An answer counts as the hub's only if it speaks the hub's language; whose fault a refusal is, the hub's own words tell. Nothing
//! is sent from here.

use std::time::Duration;

use reqwest::{
    StatusCode,
    header::{CONTENT_TYPE, DATE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER},
};
use serde_json::Value;

use crate::hub::{
    Error,
    error::{QUOTA, WITHOUT_A_REASON},
    target::Target,
    twin::Twin,
    wall,
};

/// Wall clocks further apart than this are worth a hint; the hub itself allows five minutes.
const SKEW_S: u64 = 240;

/// An answer other than 200.
pub(super) fn refused(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    about: &str,
    wall_ms: u64,
) -> Error {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let retry_after = text(RETRY_AFTER).and_then(|v| v.trim().parse().ok()).map(Duration::from_secs);
    let number = status.as_u16();
    let message = message(body);
    let code = headers.get("iothub-errorcode").and_then(|v| v.to_str().ok()).unwrap_or_default();
    let says = |name: &str| code == name || message.as_deref().is_some_and(|m| m.contains(name));
    let detail = || message.clone().unwrap_or_else(|| WITHOUT_A_REASON.into());
    // Front ends answer these with HTML of their own when the hub behind them is away.
    if status.is_server_error() || number == 408 {
        return Error::Unavailable { status: number, retry_after, detail: detail() };
    }
    if number == 429 {
        return Error::Throttled { status: number, retry_after };
    }
    if status.is_redirection() {
        let to = text(LOCATION).and_then(|l| reqwest::Url::parse(l).ok());
        let to = to.as_ref().and_then(reqwest::Url::host_str).unwrap_or("elsewhere");
        return Error::NotTheHub(format!("a redirect ({number}) to {to}, which is not followed"));
    }
    if message.is_none() && code.is_empty() {
        return Error::NotTheHub(format!("{number} with {}", kind(headers, body)));
    }
    match number {
        QUOTA if says("IotHubQuotaExceeded") => Error::Throttled { status: number, retry_after },
        401 | 403 => Error::Unauthorized { status: number, detail: detail() + &skew(text(DATE), wall_ms) },
        404 if says("DeviceNotFound") || says("ModuleNotFound") => {
            Error::DeviceMissing { device: about.to_owned() }
        }
        404 => Error::NotTheHub(format!("404, but not for a device: {}", detail())),
        412 => Error::Changed,
        _ => Error::Rejected { status: number, detail: detail() },
    }
}

/// A hint if this device's wall clock and the hub's differ: the usual cause of a refused token.
fn skew(date: Option<&str>, wall_ms: u64) -> String {
    let here = wall_ms / 1000;
    match date.and_then(wall::http_date).map(|hub| (hub, hub.abs_diff(here))) {
        Some((hub, apart)) if apart > SKEW_S => {
            let side = if here < hub { "behind" } else { "ahead of" };
            format!("; this device's wall clock is {apart} s {side} the hub's")
        }
        _ => String::new(),
    }
}

/// The twin in a 200, which must be the one asked for.
pub(super) fn twin(body: &[u8], target: &Target) -> Result<Twin, Error> {
    let json: Value = serde_json::from_slice(body)
        .map_err(|_| Error::NotTheHub(format!("200 with {}", kind(&HeaderMap::new(), body))))?;
    let twin =
        Twin::from_json(&json).map_err(|why| Error::NotTheHub(format!("200 without a twin: {why}")))?;
    if twin.device != target.device || twin.module != target.module {
        return Err(Error::NotTheHub("200 with the twin of somebody else".into()));
    }
    Ok(twin)
}

/// The hub's own words in an error body: `ErrorCode:Name;text`, or a JSON document as a string with a `message`.
fn message(body: &[u8]) -> Option<String> {
    let json: Value = serde_json::from_slice(body).ok()?;
    let text = json.get("Message").or_else(|| json.get("message"))?.as_str()?;
    let inner = serde_json::from_str::<Value>(text).ok();
    let words = inner.as_ref().and_then(|inner| inner.get("message")?.as_str()).unwrap_or(text);
    Some(words.chars().filter(|c| !c.is_control()).take(200).collect())
}

/// What a body is, for people.
fn kind(headers: &HeaderMap, body: &[u8]) -> &'static str {
    let html = headers.get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"text/html"));
    match body.iter().find(|b| !b.is_ascii_whitespace()) {
        _ if html => "HTML",
        None => "an empty body",
        Some(b'<') => "HTML",
        Some(b'{' | b'[') => "other JSON, or JSON that is cut off",
        Some(_) => "something that is not JSON",
    }
}
