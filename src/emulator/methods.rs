//! Direct methods: from the service REST API over a device's or module's link, and back.
//!
//! Never queued: whoever is not there, or takes no methods, is not asked. The bodies of the failures are the real hub's,
//! which are unlike those of the rest of the API: a JSON document as a text in another.

use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    State,
    answer::{Failure, guid, json_response},
    lock,
    mqtt::NoReply,
};
use crate::hub::store::Target;

/// The largest payload either way.
const PAYLOAD_MAX: usize = 128 * 1024;
/// The longest name.
const NAME_MAX: usize = 100;

/// What is asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) payload: Bytes,
    /// How long to wait for the device to come.
    pub(super) connect: Duration,
    /// How long to wait for its answer.
    pub(super) answer: Duration,
}

/// Why a call cannot be made, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wrong {
    /// A timeout is not what it can be.
    Timeout(String),
    /// Anything else.
    Other(String),
}

impl Call {
    /// Reads the body of a request. Timeouts come as numbers or, from the command line's client, as texts.
    pub(super) fn parse(body: &[u8]) -> Result<Call, Wrong> {
        let json: Value = serde_json::from_slice(body)
            .map_err(|why| Wrong::Other(format!("The body is not JSON: {why}")))?;
        let name = json
            .get("methodName")
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty() && name.len() <= NAME_MAX)
            .ok_or_else(|| Wrong::Other(format!("methodName must be a text of 1 to {NAME_MAX} bytes.")))?;
        // It becomes part of a topic.
        if name.contains(['/', '+', '#', '\0']) {
            return Err(Wrong::Other("methodName holds a character that it cannot.".into()));
        }
        let payload = Bytes::from(json.get("payload").unwrap_or(&Value::Null).to_string());
        if payload.len() > PAYLOAD_MAX {
            return Err(Wrong::Other(format!("The payload is longer than {PAYLOAD_MAX} bytes.")));
        }
        let seconds = |key: &str, least: u64, default: u64| {
            let given = match json.get(key) {
                None | Some(Value::Null) => Some(default),
                Some(Value::String(text)) => text.trim().parse().ok(),
                Some(other) => other.as_u64(),
            };
            given
                .filter(|seconds| (least..=300).contains(seconds))
                .map(Duration::from_secs)
                .ok_or_else(|| Wrong::Timeout(format!("{key} must be in the range [{least}; 300].")))
        };
        Ok(Call {
            name: name.to_owned(),
            payload,
            connect: seconds("connectTimeoutInSeconds", 0, 0)?,
            answer: seconds("responseTimeoutInSeconds", 5, 30)?,
        })
    }
}

/// What the device answered, as the service hears it. A payload that is not JSON arrives as a text.
pub(super) fn replied(status: i64, payload: &[u8]) -> Value {
    let payload = match payload {
        [] => Value::Null,
        some => serde_json::from_slice(some)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(some).into_owned())),
    };
    json!({ "status": status, "payload": payload })
}

/// `POST /twins/{device}[/modules/{module}]/methods`. Cancel-safe; the device may act on it all the same.
pub(super) async fn invoke(state: &State, target: &Target, body: &[u8]) -> Result<Response, Failure> {
    lock(&state.store).get(target)?;
    let call = match Call::parse(body) {
        Ok(call) => call,
        Err(Wrong::Timeout(why)) => {
            return Ok(failed(state, 400, 400_004, "ArgumentInvalid", &why, &json!({})));
        }
        Err(Wrong::Other(why)) => return Ok(failed(state, 400, 400_006, "FormatError", &why, &json!({}))),
    };
    let links = &state.devices;
    Ok(match links.call(target, &call).await {
        Ok((status, payload)) => json_response(200, &replied(status, &payload), &[]),
        Err(NoReply::Offline) => {
            let seconds = call.connect.as_secs();
            let info = json!({ "timeout": format!("00:{:02}:{:02}", seconds / 60, seconds % 60) });
            let why = "Timed out waiting for device to connect.";
            failed(state, 404, 404_103, "DeviceNotOnline", why, &info)
        }
        Err(NoReply::TimedOut) => {
            let why = "Timed out waiting for the response from device.";
            failed(state, 504, 504_101, "GatewayTimeout", why, &json!({}))
        }
    })
}

fn failed(state: &State, status: u16, code: u32, name: &'static str, why: &str, info: &Value) -> Response {
    let (tracking, at) = (guid().replace('-', ""), state.at());
    let message = json!({
        "errorCode": code,
        "trackingId": format!("{tracking}-G:0-TimeStamp:{at}"),
        "message": why,
        "info": info,
        "timestampUtc": at,
    });
    let body = json!({ "Message": message.to_string(), "ExceptionMessage": "" });
    json_response(status, &body, &[("iothub-errorcode", name.to_owned())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_as_microsofts_clients_make_them() {
        let call = |json: Value| Call::parse(json.to_string().as_bytes());
        let seconds = Duration::from_secs;
        let python = json!({"methodName": "ping", "payload": {"a": 1}, "responseTimeoutInSeconds": 30});
        let made = call(python).expect("a call");
        assert_eq!((made.name.as_str(), &made.payload[..]), ("ping", &br#"{"a":1}"#[..]));
        assert_eq!((made.connect, made.answer), (seconds(0), seconds(30)));
        // The command line's client sends its timeouts as texts.
        let text =
            json!({"methodName": "p", "responseTimeoutInSeconds": "12", "connectTimeoutInSeconds": "3"});
        let made = call(text).expect("a call");
        assert_eq!((&made.payload[..], made.connect, made.answer), (&b"null"[..], seconds(3), seconds(12)));
        for timeout in [json!(4), json!(301), json!("soon"), json!(-1), json!(7.5)] {
            let wrong = call(json!({"methodName": "p", "responseTimeoutInSeconds": timeout}));
            assert!(matches!(wrong, Err(Wrong::Timeout(_))), "{wrong:?}");
        }
        for name in [json!(null), json!(""), json!(7), json!("a/b"), json!("a".repeat(101))] {
            assert!(matches!(call(json!({"methodName": name})), Err(Wrong::Other(_))), "{name}");
        }
        let long = "x".repeat(PAYLOAD_MAX);
        assert!(matches!(call(json!({"methodName": "p", "payload": long})), Err(Wrong::Other(_))));
        assert!(Call::parse(b"not JSON").is_err());
    }

    #[test]
    fn what_a_device_answers_arrives() {
        assert_eq!(replied(200, b""), json!({"status": 200, "payload": null}));
        assert_eq!(replied(-3, b"[1]"), json!({"status": -3, "payload": [1]}));
        assert_eq!(replied(200, b"pong"), json!({"status": 200, "payload": "pong"}));
    }
}
