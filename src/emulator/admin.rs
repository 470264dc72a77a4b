//! The switches of the emulator over plain HTTP, on a listener of their own that no trouble touches.
//!
//! | request | does |
//! |---|---|
//! | `GET`, `POST /emulator/trouble` | one trouble alone: `{"kind": "slow", "delay_ms": 300}`; `{"kind": "none"}` ends all |
//! | `GET`, `POST`, `DELETE /emulator/troubles[/ID]` | several: `{"trouble": {…}, "scope": {"operations": [], "devices": []}, "probability": 0.3, "for_s": 60}` |
//! | `POST /emulator/seed` | `{"seed": 7}`: the same chances again |
//! | `POST /emulator/rollback` | `{"seconds": 120}`: loses the newest writes, as a regional failover does |
//! | `POST /emulator/quota/reset` | a new day |
//! | `POST /emulator/devices/ID` | `{"act": "create"}`, `disable`, `enable`, `delete` or `recreate` |
//! | `GET`, `POST /emulator/identity` | `{"roles": ["twin-contributor"], "life_s": 3600}`: what the Entra identity may do |
//! | `POST /emulator/identity/secret` | `{"act": "rotate"}`, answered with the new value, or `expire`: the registered application's |
//! | `GET /emulator/state` | answers by status, limits and what is used of them |
//! | `GET /emulator/log?after=N` | the accepted writes with numbers above N |
//! | `GET /` | a page with all of this, live: `GET /emulator/view` is what it shows, `GET /emulator/events` when to look again |
//! | `GET /emulator/twins` | all twins as they stand |
//! | `GET /emulator/messages?after=N` | what devices have sent, with numbers above N |
//!
//! There is no authentication: the listener belongs on loopback.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, Query, State as Shared},
    middleware,
    response::Response,
    routing::{delete, get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{
    Log, State,
    answer::{self, Failure},
    entra::Rules,
    lock, mqtt, page, routes,
};
use crate::hub::{
    store::{IfMatch, Target},
    trouble::{Rule, Trouble},
};

/// Serves the switches until the state's stop token is cancelled.
pub(super) fn serve(listener: TcpListener, state: &Arc<State>) {
    let router = Router::new()
        .route("/emulator/trouble", get(trouble).post(set_trouble))
        .route("/emulator/troubles", get(troubles).post(add_trouble).delete(end_troubles))
        .route("/emulator/troubles/{id}", delete(end_trouble))
        .route("/emulator/seed", post(seed))
        .route("/emulator/rollback", post(rollback))
        .route("/emulator/quota/reset", post(reset_quota))
        .route("/emulator/identity", get(identity).post(set_identity))
        .route("/emulator/identity/secret", post(change_secret))
        .route("/emulator/devices/{device}", post(device))
        .route("/emulator/state", get(shown))
        .route("/emulator/log", get(log))
        .route("/emulator/twins", get(twins))
        .route("/emulator/messages", get(mqtt::list_messages))
        .route("/emulator/view", get(page::view))
        .route("/emulator/events", get(page::events))
        .route("/", get(page::page))
        .layer(middleware::from_fn(page::guard))
        .with_state(state.clone());
    let stop = state.stop.clone();
    state.tasks.spawn(async move {
        tokio::select! {
            served = async { axum::serve(listener, router).await } => {
                tracing::debug!(?served, "the emulator's switches stopped");
            }
            () = stop.cancelled() => {}
        }
    });
}

fn ok(body: &Value) -> Response {
    answer::json_response(200, body, &[])
}

fn wrong(why: impl ToString) -> Response {
    answer::json_response(400, &json!({ "error": why.to_string() }), &[])
}

async fn trouble(Shared(state): Shared<Arc<State>>) -> Response {
    let shown = lock(&state.gate).troubles.shown(state.clock.now());
    ok(&json!(shown.first().map_or(Trouble::None, |shown| shown.rule.trouble)))
}

async fn set_trouble(Shared(state): Shared<Arc<State>>, body: Bytes) -> Response {
    let trouble = match serde_json::from_slice::<Trouble>(&body) {
        Ok(trouble) => trouble,
        Err(why) => return wrong(why),
    };
    if let Err(why) = Rule::from(trouble).check() {
        return wrong(why);
    }
    state.set_trouble(trouble);
    ok(&json!(trouble))
}

async fn troubles(Shared(state): Shared<Arc<State>>) -> Response {
    ok(&json!(lock(&state.gate).troubles.shown(state.clock.now())))
}

async fn add_trouble(Shared(state): Shared<Arc<State>>, body: Bytes) -> Response {
    let rule = match serde_json::from_slice::<Rule>(&body) {
        Ok(rule) => rule,
        Err(why) => return wrong(why),
    };
    match state.add_trouble(rule) {
        Ok(id) => ok(&json!({ "id": id })),
        Err(why) => wrong(why),
    }
}

async fn end_troubles(Shared(state): Shared<Arc<State>>) -> Response {
    lock(&state.gate).troubles.clear();
    state.touch();
    answer::empty(204)
}

async fn end_trouble(Shared(state): Shared<Arc<State>>, Path(id): Path<u64>) -> Response {
    let was_on = lock(&state.gate).troubles.remove(id);
    state.touch();
    answer::empty(if was_on { 204 } else { 404 })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Seed {
    seed: u64,
}

async fn seed(Shared(state): Shared<Arc<State>>, body: Bytes) -> Response {
    match serde_json::from_slice::<Seed>(&body) {
        Ok(Seed { seed }) => {
            lock(&state.gate).troubles.seed(seed);
            answer::empty(204)
        }
        Err(why) => wrong(why),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Back {
    seconds: u64,
}

async fn rollback(Shared(state): Shared<Arc<State>>, body: Bytes) -> Response {
    match serde_json::from_slice::<Back>(&body) {
        Ok(Back { seconds }) => ok(&json!({ "lost": state.rollback(Duration::from_secs(seconds)) })),
        Err(why) => wrong(why),
    }
}

async fn reset_quota(Shared(state): Shared<Arc<State>>) -> Response {
    state.reset_quota();
    answer::empty(204)
}

async fn identity(Shared(state): Shared<Arc<State>>) -> Response {
    ok(&json!(state.tenant.rules()))
}

async fn set_identity(Shared(state): Shared<Arc<State>>, body: Bytes) -> Response {
    match serde_json::from_slice::<Rules>(&body) {
        Ok(rules) => {
            state.tenant.set_rules(rules);
            state.touch();
            answer::empty(204)
        }
        Err(why) => wrong(why),
    }
}

/// What can be done to a secret.
#[derive(Deserialize)]
#[serde(tag = "act", rename_all = "kebab-case", deny_unknown_fields)]
enum SecretAct {
    Rotate,
    Expire,
}

async fn change_secret(Shared(state): Shared<Arc<State>>, body: Bytes) -> Response {
    match serde_json::from_slice(&body) {
        Ok(SecretAct::Rotate) => {
            state.rotate_secret();
            ok(&json!({ "client_secret": state.application().secret.reveal() }))
        }
        Ok(SecretAct::Expire) => {
            state.expire_secret();
            answer::empty(204)
        }
        Err(why) => wrong(why),
    }
}

/// What can be done to a device.
#[derive(Deserialize)]
#[serde(tag = "act", rename_all = "kebab-case", deny_unknown_fields)]
enum Act {
    Create,
    Disable,
    Enable,
    Delete,
    Recreate,
}

async fn device(Shared(state): Shared<Arc<State>>, Path(name): Path<String>, body: Bytes) -> Response {
    let act = match serde_json::from_slice::<Act>(&body) {
        Ok(act) => act,
        Err(why) => return wrong(why),
    };
    let (at, target) = (state.stamp(), Target::device(&name));
    let mut store = lock(&state.store);
    let done = match act {
        Act::Create => store.create(&target, true, at).map(|_| ()),
        Act::Disable | Act::Enable => {
            store.update(&target, matches!(act, Act::Enable), true, &IfMatch::Any, at).map(|_| ())
        }
        Act::Delete => store.delete(&target, &IfMatch::Any, at),
        Act::Recreate => store
            .delete(&target, &IfMatch::Any, at)
            .and_then(|()| store.create(&target, true, at).map(|_| ())),
    };
    drop(store);
    if matches!(act, Act::Recreate) {
        // Another identity of the same name.
        state.devices.links.cut(|who| who.device == name);
    }
    match act {
        Act::Delete | Act::Recreate => state.deploy_anew(&name),
        Act::Create | Act::Disable | Act::Enable => state.deploy(),
    }
    state.registry_changed();
    state.touch();
    match done {
        Ok(()) => answer::empty(204),
        Err(refusal) => Failure::from(refusal).into_response(&state.at()),
    }
}

async fn shown(Shared(state): Shared<Arc<State>>) -> Response {
    ok(&lock(&state.gate).to_json())
}

#[derive(Deserialize)]
struct After {
    #[serde(default)]
    after: u64,
}

async fn log(Shared(state): Shared<Arc<State>>, Query(After { after }): Query<After>) -> Response {
    ok(&Value::Array(entries(&lock(&state.log), after)))
}

async fn twins(Shared(state): Shared<Arc<State>>) -> Response {
    let twins = lock(&state.store).all().map(|entry| routes::twin_json(&state, entry)).collect();
    ok(&Value::Array(twins))
}

/// The writes with numbers above `after`, as far as they are remembered.
pub(super) fn entries(log: &Log, after: u64) -> Vec<Value> {
    (log.forgotten + 1..)
        .zip(&log.writes)
        .filter(|(number, _)| *number > after)
        .map(|(number, write)| {
            json!({
                "number": number,
                "at_ns": write.at.as_nanos(),
                "device": write.target.device,
                "module": write.target.module,
                "change": write.change.to_json(),
                "version": write.version,
            })
        })
        .collect()
}
