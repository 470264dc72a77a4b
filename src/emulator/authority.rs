//! Entra ID's directory, as far as a registered application meets it: tokens for client credentials, over TLS.
//!
//! One directory with one application, which is the identity of `entra.rs`: its roles and the life of its tokens are the
//! same, whichever way it comes. Refusals bear the real directory's numbers (`AADSTS…`), by which clients tell them apart. Asked
//! for its configuration, it names itself, because Microsoft's clients look there first. How it is unlike the real one: no
//! signing keys to fetch, no other grant, and no secret but the newest.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State as Shared},
    http::{HeaderMap, header},
    response::Response,
    routing::{get, post},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode;
use serde_json::{Value, json};

use super::{Emulator, Error, State, answer::guid, answer::json_response, lock, wire};
use crate::hub::sas::Secret;

const SCOPE: &str = "https://iothubs.azure.net/.default";

/// The application that a tenant knows, and what it has to show.
#[derive(Debug, Clone)]
pub struct Application {
    /// The directory's id.
    pub tenant: String,
    /// The application's id.
    pub client_id: String,
    /// The newest secret's value.
    pub secret: Secret,
}

/// The one directory.
pub(super) struct Directory {
    tenant: String,
    secret: Mutex<(Secret, bool)>,
}

impl Directory {
    pub(super) fn new() -> Directory {
        Directory { tenant: guid(), secret: Mutex::new((fresh(), false)) }
    }
}

/// A secret of the usual kind: with characters that a form has to encode.
fn fresh() -> Secret {
    Secret::from(format!("~{}+/{}", guid(), guid().replace('-', "_")))
}

impl Emulator {
    /// Serves tokens for the one registered application on `listener` (TLS), as the directory's `/{tenant}/oauth2/v2.0/token`.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Listener`].
    pub fn serve_authority(&self, listener: TcpListener) -> Result<SocketAddr, Error> {
        Ok(serve(listener, self)?)
    }

    /// The registered application.
    pub fn application(&self) -> Application {
        self.state.application()
    }

    /// Gives the application a new secret; the old one is wrong from now on.
    pub fn rotate_secret(&self) -> Application {
        self.state.rotate_secret();
        self.application()
    }

    /// Lets the application's secret expire.
    pub fn expire_secret(&self) {
        self.state.expire_secret();
    }
}

impl State {
    pub(super) fn application(&self) -> Application {
        Application {
            tenant: self.directory.tenant.clone(),
            client_id: self.tenant.principal().to_owned(),
            secret: lock(&self.directory.secret).0.clone(),
        }
    }

    pub(super) fn rotate_secret(&self) {
        *lock(&self.directory.secret) = (fresh(), false);
    }

    pub(super) fn expire_secret(&self) {
        lock(&self.directory.secret).1 = true;
    }
}

fn serve(listener: TcpListener, emulator: &Emulator) -> io::Result<SocketAddr> {
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let state = &emulator.state;
    let router = Router::new()
        .route("/{tenant}/v2.0/.well-known/openid-configuration", get(configuration))
        .route("/{tenant}/oauth2/v2.0/token", post(token))
        .with_state(state.clone());
    // No trouble of the hub's is one of the directory's.
    let stop = state.stop.clone();
    let gate = Box::new(move || Some(stop.child_token()));
    wire::serve(listener, emulator.tls.clone(), gate, router, state);
    Ok(address)
}

async fn configuration(Path(tenant): Path<String>, headers: HeaderMap) -> Response {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let base = format!("https://{host}/{tenant}");
    let body = json!({
        "issuer": format!("{base}/v2.0"),
        "authorization_endpoint": format!("{base}/oauth2/v2.0/authorize"),
        "token_endpoint": format!("{base}/oauth2/v2.0/token"),
    });
    json_response(200, &body, &[])
}

async fn token(
    Shared(state): Shared<Arc<State>>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match granted(&state, &tenant, &headers, &body) {
        Ok(body) => json_response(200, &body, &[("cache-control", "no-store, no-cache".to_owned())]),
        Err((status, error, code, words)) => {
            let body = json!({
                "error": error,
                "error_description": format!("AADSTS{code}: {words} Trace ID: {} Timestamp: {}", guid(), state.at()),
                "error_codes": [code],
                "timestamp": state.at(),
            });
            json_response(status, &body, &[])
        }
    }
}

type Refused = (u16, &'static str, u32, String);

fn granted(state: &State, tenant: &str, headers: &HeaderMap, body: &[u8]) -> Result<Value, Refused> {
    let application = state.application();
    if !tenant.eq_ignore_ascii_case(&application.tenant) {
        let words = format!("Tenant '{tenant}' is not in this cloud.");
        return Err((400, "invalid_request", 90_002, words));
    }
    let field = |name: &str| field(body, name);
    if field("grant_type").as_deref() != Some("client_credentials") {
        let words = "The emulator knows no grant_type but client_credentials.".to_owned();
        return Err((400, "unsupported_grant_type", 70_003, words));
    }
    let (client_id, secret) = match basic(headers) {
        Some((id, secret)) => (Some(id), Some(secret)),
        None => (field("client_id"), field("client_secret")),
    };
    let client_id = client_id.unwrap_or_default();
    if !client_id.eq_ignore_ascii_case(&application.client_id) {
        let words = format!("No application '{client_id}' is in the directory '{tenant}'.");
        return Err((400, "unauthorized_client", 700_016, words));
    }
    let Some(secret) = secret else {
        let words = "The body has to hold client_secret.".to_owned();
        return Err((401, "invalid_client", 7_000_218, words));
    };
    let (known, expired) = lock(&state.directory.secret).clone();
    if secret != known.reveal() {
        let words = format!("That is not the secret of the application '{client_id}'.");
        return Err((401, "invalid_client", 7_000_215, words));
    }
    if expired {
        let words = format!("The secrets of the application '{client_id}' are expired.");
        return Err((401, "invalid_client", 7_000_222, words));
    }
    if field("scope").as_deref().map(str::trim) != Some(SCOPE) {
        let words = format!("The emulator has tokens for the scope {SCOPE} alone.");
        return Err((400, "invalid_scope", 70_011, words));
    }
    let (token, life_s) = state.tenant.issue(state.clock.wall_ms() / 1000);
    Ok(json!({
        "token_type": "Bearer", "expires_in": life_s, "ext_expires_in": life_s, "access_token": token,
    }))
}

/// A field of a form.
fn field(body: &[u8], name: &str) -> Option<String> {
    let decode = |part: &[u8]| {
        let spaced: Vec<u8> = part.iter().map(|b| if *b == b'+' { b' ' } else { *b }).collect();
        percent_decode(&spaced).decode_utf8().ok().map(|text| text.into_owned())
    };
    body.split(|b| *b == b'&').find_map(|pair| {
        let at = pair.iter().position(|b| *b == b'=')?;
        (decode(&pair[..at])? == name).then(|| decode(&pair[at + 1..]))?
    })
}

/// Id and secret as HTTP's basic authentication has them, each percent-encoded.
fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let bytes = STANDARD.decode(text.trim()).ok()?;
    let at = bytes.iter().position(|b| *b == b':')?;
    let decode = |part: &[u8]| percent_decode(part).decode_utf8().ok().map(|text| text.into_owned());
    Some((decode(&bytes[..at])?, decode(&bytes[at + 1..])?))
}
