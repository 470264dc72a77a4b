//! Whether the hub can be reached with the credentials that are configured, without writing anything.
//!
//! Each device's twin is read as the mirror would read it. The sidecar's own module link is deliberately not opened: one identity
//! has one link, so that would end the link of a sidecar that runs. Asked instead is what can be known without it: whether
//! somebody signs for the module, and whether anything listens where its link would lead.

use std::{sync::Arc, time::Instant};

use serde::Serialize;

use crate::{
    clock::BootClock,
    config::Config,
    hub::{Hub as _, Target, rest::RestHub},
};

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
    for member in config.site.members.iter().filter(|member| member.role.may_own()) {
        let begun = begin();
        let read = hub.get_twin(&Target::from(&member.device)).await;
        let seen = read.as_ref().ok().map(|twin| config.hub.flag.read(&twin.desired.values).epoch);
        let shows = match seen {
            Some(0) => ", which shows no epoch yet".to_owned(),
            Some(epoch) => format!(", which shows epoch {epoch}"),
            None => String::new(),
        };
        let what = format!("the twin of {} at {}{shows}", member.device, hub.name());
        tried.push(Tried { what, took_ms: since(begun), error: read.err().map(|why| why.to_string()) });
    }
}

#[expect(clippy::disallowed_methods, reason = "shown to a person, never decided upon")]
fn begin() -> Instant {
    Instant::now()
}

fn since(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}
