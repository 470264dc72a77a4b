//! Answers as the real hub words them: bodies, codes and headers.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};

use crate::hub::store::Refusal;

/// A failure: status, the name in `iothub-errorcode`, and the text after it.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) text: String,
    pub(super) retry_after_s: Option<u64>,
}

impl Failure {
    pub(super) fn new(status: u16, code: &'static str, text: impl Into<String>) -> Failure {
        Failure { status, code, text: text.into(), retry_after_s: None }
    }

    pub(super) fn argument(text: impl Into<String>) -> Failure {
        Failure::new(400, "ArgumentInvalid", text)
    }

    pub(super) fn into_response(self, at: &str) -> Response {
        let tracking = guid().replace('-', "");
        let body = json!({
            "Message": format!("ErrorCode:{};{}", self.code, self.text),
            "ExceptionMessage": format!("Tracking ID:{tracking}-G:0-TimeStamp:{at}"),
        });
        let mut response = json_response(self.status, &body, &[]);
        response.headers_mut().insert("iothub-errorcode", HeaderValue::from_static(self.code));
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let text = refusal.to_string();
        match refusal {
            Refusal::DeviceNotFound(_) => Failure::new(404, "DeviceNotFound", text),
            Refusal::ModuleNotFound(..) => Failure::new(404, "ModuleNotFound", text),
            Refusal::Exists(_) => Failure::new(409, "DeviceAlreadyExists", text),
            Refusal::PreconditionFailed => Failure::new(412, "PreconditionFailed", text),
            Refusal::Malformed(_) | Refusal::Name(_) => Failure::argument(text),
        }
    }
}

/// A JSON answer with the headers that every answer has.
pub(super) fn json_response(status: u16, body: &Value, headers: &[(&'static str, String)]) -> Response {
    let mut response = empty(status);
    *response.body_mut() = Body::from(body.to_string());
    let map = response.headers_mut();
    map.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            map.insert(HeaderName::from_static(name), value);
        }
    }
    response
}

/// An answer without a body.
pub(super) fn empty(status: u16) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let map = response.headers_mut();
    map.insert(header::SERVER, HeaderValue::from_static("Microsoft-HTTPAPI/2.0"));
    if let Ok(id) = HeaderValue::from_str(&guid()) {
        map.insert("x-ms-request-id", id);
    }
    response
}

/// A random identifier in the usual dashes.
pub(super) fn guid() -> String {
    let mut bytes = [0_u8; 16];
    // Without randomness the id is all zeros, which harms nobody.
    let _filled = SystemRandom::new().fill(&mut bytes).is_ok();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
