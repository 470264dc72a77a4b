//! The management API: whoever may open its socket can list, start, stop and restart the modules of the device.
//!
//! As in the real runtime nobody is asked who they are for that, and creating, changing and deleting is the edgeAgent's alone; the
//! emulated edgeAgent does not come through the socket, so here these are refused. Neither logs nor support bundles.

use std::{future::Future, pin::Pin, sync::Arc};

use axum::http::Method;
use serde_json::{Value, json};

use super::{
    Gateway,
    process::{Processes, Refused, Spec, Status},
    socket::{Api, Asked, Given, failure},
};
use crate::{emulator::lock, hub::wall};

/// The device's management API.
pub(super) struct Management {
    pub(super) gateway: Arc<Gateway>,
    pub(super) processes: Arc<Processes>,
}

impl Api for Management {
    fn answer(&self, asked: Asked) -> Pin<Box<dyn Future<Output = Given> + Send + '_>> {
        Box::pin(async move { self.given(&asked).await.unwrap_or_else(refused) })
    }
}

impl Management {
    async fn given(&self, asked: &Asked) -> Result<Given, Refused> {
        let path: Vec<&str> = asked.path.iter().map(String::as_str).collect();
        Ok(match (&asked.method, path.as_slice()) {
            (&Method::GET, ["modules"]) => (200, Some(list(&self.processes).await)),
            (&Method::GET, ["modules", name]) => {
                let (spec, status) = self.processes.turn().await.look(name)?;
                (200, Some(shown(name, &spec, &status)))
            }
            (&Method::POST, ["modules", name, verb @ ("start" | "stop" | "restart")]) => {
                let turn = self.processes.turn().await;
                if *verb != "start" {
                    turn.stop(name).await?;
                }
                if *verb != "stop" {
                    turn.start(name)?;
                }
                (204, None)
            }
            (&Method::GET, ["identities"]) => (200, Some(self.identities())),
            (&Method::GET, ["systeminfo"]) => (200, Some(system())),
            (
                &Method::POST,
                ["modules"] | ["modules", _, "prepareupdate"] | ["identities"] | ["device", "reprovision"],
            )
            | (&Method::PUT | &Method::DELETE, ["modules" | "identities", _]) => failure(403, "forbidden"),
            _ => failure(404, "not found"),
        })
    }

    fn identities(&self) -> Value {
        let store = lock(&self.gateway.state.store);
        let own = store.all().filter(|entry| entry.twin.device == self.gateway.device);
        let identities: Vec<Value> = own
            .filter_map(|entry| {
                let name = entry.twin.module.as_deref()?;
                let generation = crate::emulator::registry::generation(entry);
                Some(json!({ "moduleId": name, "managedBy": "IotEdge", "generationId": generation, "authType": "sas" }))
            })
            .collect();
        json!({ "identities": identities })
    }
}

fn refused(why: Refused) -> Given {
    match &why {
        Refused::Unknown(_) => failure(404, &why.to_string()),
        Refused::CannotStart(_) => failure(500, &why.to_string()),
    }
}

/// All modules, in the list's own turn.
pub(super) async fn list(processes: &Processes) -> Value {
    let turn = processes.turn().await;
    let modules: Vec<Value> = turn
        .names()
        .iter()
        .filter_map(|name| turn.look(name).ok().map(|(spec, status)| shown(name, &spec, &status)))
        .collect();
    json!({ "modules": modules })
}

/// How a module stands, in the runtime's words.
pub(super) fn word(status: &Status) -> &'static str {
    match (status.pid, status.ended) {
        (Some(_), _) => "running",
        (None, None | Some((_, 0))) => "stopped",
        (None, Some(_)) => "failed",
    }
}

fn shown(name: &str, spec: &Spec, status: &Status) -> Value {
    let environment: Vec<Value> =
        spec.environment.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
    let mut known = json!({ "runtimeStatus": { "status": word(status), "description": describe(status) } });
    if let Some(started) = status.started_ms {
        known["startTime"] = json!(wall::rfc3339(started));
    }
    if let (None, Some((at, code))) = (status.pid, status.ended) {
        known["exitStatus"] = json!({ "exitTime": wall::rfc3339(at), "statusCode": code.to_string() });
    }
    json!({
        "id": "id", "name": name, "type": "docker",
        "config": { "settings": { "image": spec.image }, "env": environment },
        "status": known,
    })
}

/// The same for a person.
pub(super) fn describe(status: &Status) -> String {
    match (status.pid, status.ended) {
        (Some(pid), _) => format!("running as process {pid}"),
        (None, None) => "created".to_owned(),
        (None, Some((_, code))) => format!("exited with code {code}"),
    }
}

fn system() -> Value {
    json!({
        "osType": "linux",
        "architecture": std::env::consts::ARCH,
        "version": concat!(env!("CARGO_PKG_VERSION"), " (emulated)"),
    })
}
