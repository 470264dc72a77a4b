//! The workload API: how a module without any secret proves who it is, and whom it trusts.
//!
//! Whose module runs as a process of the emulated device has to be called by that, as the real runtime asks of a container; where
//! nothing runs, whoever may open the socket is taken for the module. The module's key never leaves this file: it signs what the module hands in. Certificates live for thirty days. `encrypt` and
//! `decrypt` are bound to the module's identity and to the given vector, and to nothing that the real runtime could read.

use std::{future::Future, pin::Pin, sync::Arc};

use axum::http::Method;
use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    digest, hmac,
};
use serde_json::{Value, json};

use super::{
    Gateway, management,
    process::Processes,
    socket::{Api, Asked, Given, failure},
};
use crate::{
    emulator::{
        ca::{Authority, Use},
        lock, registry,
    },
    hub::{store::Target, wall},
};

const DAY_MS: u64 = 86_400_000;
/// How long a certificate is good for.
const CERTIFICATE_DAYS: u64 = 30;

/// One module's workload API.
pub(super) struct Workload {
    pub(super) gateway: Arc<Gateway>,
    pub(super) authority: Arc<Authority>,
    pub(super) processes: Arc<Processes>,
    /// Whose socket it is.
    pub(super) module: String,
}

impl Api for Workload {
    fn answer(&self, asked: Asked) -> Pin<Box<dyn Future<Output = Given> + Send + '_>> {
        Box::pin(async move {
            match (&asked.method, asked.path.as_slice()) {
                (&Method::GET, [modules]) if modules == "modules" => (200, Some(self.modules().await)),
                _ => self.given(&asked).unwrap_or_else(|failed| failed),
            }
        })
    }
}

impl Workload {
    fn given(&self, asked: &Asked) -> Result<Given, Given> {
        let path: Vec<&str> = asked.path.iter().map(String::as_str).collect();
        Ok(match (&asked.method, path.as_slice()) {
            (&Method::GET, ["trust-bundle"]) => (200, Some(json!({ "certificate": self.authority.pem() }))),
            (&Method::GET, ["manifest-trust-bundle"]) => (200, Some(json!({ "certificate": "" }))),
            (&Method::POST, ["modules", module, "genid", generation, verb @ ..]) => {
                let target = self.own(module, Some(generation), asked.caller)?;
                match verb {
                    ["sign"] => self.sign(&target, &asked.body)?,
                    ["encrypt"] => self.seal(&target, &asked.body)?,
                    ["decrypt"] => self.open(&target, &asked.body)?,
                    ["certificate", "server"] => {
                        let body = object(&asked.body)?;
                        self.certificate(&[text(&body, "commonName")?, *module], Use::Server)?
                    }
                    _ => return Err(failure(404, "not found")),
                }
            }
            (&Method::POST, ["modules", module, "certificate", "identity"]) => {
                self.own(module, None, asked.caller)?;
                self.certificate(&[*module], Use::Client)?
            }
            _ => return Err(failure(404, "not found")),
        })
    }

    /// The module whose socket this is, if it is the one that is meant.
    fn own(&self, module: &str, generation: Option<&str>, caller: Option<i32>) -> Result<Target, Given> {
        let runs_here = self.processes.status(module).is_some();
        let is_it = || caller.is_some_and(|caller| self.processes.owns(module, caller));
        if module != self.module || (runs_here && !is_it()) {
            return Err(failure(403, "forbidden"));
        }
        let target = self.gateway.module(module);
        let found = lock(&self.gateway.state.store).get(&target).map(registry::generation);
        match found {
            Ok(found) if generation.is_none_or(|generation| generation == found) => Ok(target),
            _ => Err(failure(404, &format!("no module {module} of this generation"))),
        }
    }

    /// The modules that run as processes; of a device without any, those that the hub knows.
    async fn modules(&self) -> Value {
        let run = management::list(&self.processes).await;
        if run["modules"].as_array().is_some_and(|modules| !modules.is_empty()) {
            return run;
        }
        let store = lock(&self.gateway.state.store);
        let own = store.all().filter(|entry| entry.twin.device == self.gateway.device);
        let modules: Vec<Value> = own
            .filter_map(|entry| entry.twin.module.as_deref())
            .map(|name| json!({ "id": "id", "name": name, "type": "docker" }))
            .collect();
        json!({ "modules": modules })
    }

    fn key(&self, target: &Target) -> Result<Vec<u8>, Given> {
        let key = self.gateway.state.device_key(target, "primary");
        key.ok_or_else(|| failure(500, "the module has no key"))
    }

    fn sign(&self, target: &Target, body: &[u8]) -> Result<Given, Given> {
        let data = bytes(&object(body)?, "data")?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.key(target)?);
        let digest = STANDARD.encode(hmac::sign(&key, &data));
        Ok((200, Some(json!({ "digest": digest }))))
    }

    fn cipher(&self, target: &Target, body: &Value) -> Result<(LessSafeKey, Nonce), Given> {
        let broken = |_| failure(500, "the cipher cannot be used");
        let mut key = b"encrypt\0".to_vec();
        key.extend(self.key(target)?);
        let key = digest::digest(&digest::SHA256, &key);
        let vector = digest::digest(&digest::SHA256, &bytes(body, "initializationVector")?);
        let nonce = vector.as_ref().get(..12).unwrap_or_default();
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(broken)?;
        let key = UnboundKey::new(&AES_256_GCM, key.as_ref()).map_err(broken)?;
        Ok((LessSafeKey::new(key), nonce))
    }

    fn seal(&self, target: &Target, body: &[u8]) -> Result<Given, Given> {
        let body = object(body)?;
        let (key, nonce) = self.cipher(target, &body)?;
        let mut text = bytes(&body, "plaintext")?;
        key.seal_in_place_append_tag(nonce, Aad::empty(), &mut text)
            .map_err(|_| failure(500, "the text cannot be encrypted"))?;
        Ok((200, Some(json!({ "ciphertext": STANDARD.encode(text) }))))
    }

    fn open(&self, target: &Target, body: &[u8]) -> Result<Given, Given> {
        let body = object(body)?;
        let (key, nonce) = self.cipher(target, &body)?;
        let mut text = bytes(&body, "ciphertext")?;
        let opened = key
            .open_in_place(nonce, Aad::empty(), &mut text)
            .map_err(|_| failure(422, "ciphertext was not made with this module and vector"))?;
        Ok((200, Some(json!({ "plaintext": STANDARD.encode(opened) }))))
    }

    fn certificate(&self, names: &[&str], purpose: Use) -> Result<Given, Given> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        // Whole days, so that the certificate and the text beside it say the same.
        let today = self.gateway.state.clock.wall_ms() / DAY_MS;
        let end_ms = (today + CERTIFICATE_DAYS) * DAY_MS;
        let leaf = self
            .authority
            .issue(&names, purpose, Some(end_ms))
            .map_err(|why| failure(422, &format!("no certificate can be made: {why}")))?;
        let body = json!({
            "privateKey": { "type": "key", "bytes": leaf.key_pem() },
            "certificate": format!("{}{}", leaf.pem, self.authority.pem()),
            "expiration": wall::rfc3339(end_ms),
        });
        Ok((201, Some(body)))
    }
}

fn object(body: &[u8]) -> Result<Value, Given> {
    match serde_json::from_slice(body) {
        Ok(value @ Value::Object(_)) => Ok(value),
        _ => Err(failure(422, "the body is not a JSON object")),
    }
}

fn text<'a>(body: &'a Value, name: &str) -> Result<&'a str, Given> {
    body.get(name).and_then(Value::as_str).ok_or_else(|| failure(422, &format!("{name} is missing")))
}

fn bytes(body: &Value, name: &str) -> Result<Vec<u8>, Given> {
    STANDARD.decode(text(body, name)?).map_err(|_| failure(422, &format!("{name} is not base64")))
}
