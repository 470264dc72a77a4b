//! Whether the hub can be reached with the credentials that are configured, and whether they may write, without writing anything.
//!
//! Each device's twin is read as the mirror would read it. Whether it may be written is asked once, because a right is good for all
//! twins of a hub: with an etag that no twin has, so that the hub checks the right and refuses the change. The sidecar's own module link is deliberately not opened: one identity
//! has one link, so that would end the link of a sidecar that runs. Asked instead is what can be known without it: whether
//! somebody signs for the module, and whether whoever listens where its link would lead has a certificate that is trusted. Whether
//! the token is accepted shows only on the link itself.

use std::{sync::Arc, time::Instant};

use serde::Serialize;

use crate::{
    clock::{BootClock, Clock as _},
    config::Config,
    hub::{
        Change, Error, Hub as _, Target,
        edge::Identity,
        mqtt::client::{Client, Line},
        rest::RestHub,
    },
};

/// Nobody is shown the token that is signed, so it needs no life to speak of.
const TOKEN_LIFE_S: u64 = 60;

/// Etags are base64, so no twin has this one.
const NO_TWINS_ETAG: &str = "no-twin-has-this";
/// A key that nobody writes: to remove it changes nothing, even if somebody ignored the etag.
const NOBODYS_KEY: &str = "quorateCheck";

/// One thing that was tried.
#[derive(Debug, Serialize)]
pub(super) struct Tried {
    /// What, in a few words.
    pub what: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Why it did not work; `null` if it did.
    pub error: Option<String>,
}

/// Tries all that the configured mirrors need; nothing without one.
pub(super) async fn tries(config: &Config) -> Vec<Tried> {
    let mut tried = Vec::new();
    if config.hub.mirror.devices() {
        device_twins(config, &mut tried).await;
    }
    if config.hub.mirror.modules() {
        module_twin(config, &mut tried).await;
    }
    tried
}

async fn device_twins(config: &Config, tried: &mut Vec<Tried>) {
    let hub = match RestHub::open(&config.hub, Arc::new(BootClock)) {
        Ok(hub) => hub,
        Err(faults) => {
            let faults = faults.iter().map(|f| format!("hub.{}: {}; {}", f.setting, f.problem, f.advice));
            let error = Some(faults.collect::<Vec<_>>().join("; "));
            tried.push(Tried { what: "the hub's credentials".into(), took_ms: 0, error });
            return;
        }
    };
    let mut readable = None;
    for member in config.site.members.iter().filter(|member| member.role.may_own()) {
        let begun = begin();
        let read = hub.get_twin(&Target::from(&member.device)).await;
        let seen = read.as_ref().ok().map(|twin| config.hub.flag.read(&twin.desired.values).epoch);
        let shows = match seen {
            Some(0) => ", which shows no epoch yet".to_owned(),
            Some(epoch) => format!(", which shows epoch {epoch}"),
            None => String::new(),
        };
        if read.is_ok() {
            readable.get_or_insert(&member.device);
        }
        let what = format!("the twin of {} at {}{shows}", member.device, hub.name());
        tried.push(Tried { what, took_ms: since(begun), error: read.err().map(|why| why.to_string()) });
    }
    if let Some(device) = readable {
        tried.push(may_write(&hub, &Target::from(device)).await);
    }
}

/// Whether twins may be written, asked with a change that cannot be made.
async fn may_write(hub: &RestHub, target: &Target) -> Tried {
    let nothing = [(NOBODYS_KEY.to_owned(), serde_json::Value::Null)].into_iter().collect();
    let change = Change { tags: None, desired: Some(nothing) };
    let begun = begin();
    let error = match hub.patch_twin(target, &change, Some(NO_TWINS_ETAG)).await {
        // Its right was in order, its etag was not, as intended.
        Err(Error::Changed) | Ok(_) => None,
        Err(why @ Error::Unauthorized { .. }) => Some(format!("it may read, and not write: {why}")),
        Err(why) => Some(why.to_string()),
    };
    let what = format!("the right to write twins at {}, asked without a change", hub.name());
    Tried { what, took_ms: since(begun), error }
}

async fn module_twin(config: &Config, tried: &mut Vec<Tried>) {
    let identity = match Identity::open(&config.hub) {
        Ok(Some(identity)) => identity,
        Ok(None) => return,
        Err(fault) => {
            let error = format!("hub.{}: {}; {}", fault.setting, fault.problem, fault.advice);
            tried.push(Tried { what: "the module's identity".into(), took_ms: 0, error: Some(error) });
            return;
        }
    };
    let begun = begin();
    let signed = identity.token(BootClock.wall_ms() / 1000 + TOKEN_LIFE_S).await;
    tried.push(Tried {
        what: format!("a signature for the module {}", identity.target()),
        took_ms: since(begun),
        error: signed.err().map(|why| why.to_string()),
    });
    let to = identity.gateway().unwrap_or(identity.hub()).to_owned();
    let line =
        Line { identity, inputs: false, ca_file: config.hub.ca_file.clone(), timeout: config.hub.timeout };
    let begun = begin();
    let shaken = Client::new(line, Arc::new(BootClock)).shake_hands().await;
    let (at, error) = match shaken {
        Ok(at) => (at, None),
        Err(why) => (to, Some(why.to_string())),
    };
    tried.push(Tried { what: format!("MQTT over TLS at {at}"), took_ms: since(begun), error });
}

#[expect(clippy::disallowed_methods, reason = "shown to a person, never decided upon")]
fn begin() -> Instant {
    Instant::now()
}

fn since(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}
