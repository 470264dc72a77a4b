//! The switches of the emulator over plain HTTP, on a listener of their own that no trouble touches.
//!
//! `GET` and `POST /emulator/trouble` (`{"kind": "slow", "delay_ms": 300}`), `GET /emulator/log?after=N` (the accepted
//! writes with numbers above N), `GET /emulator/twins` (all twins as they stand). There is no authentication: the
//! listener belongs on loopback.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Query, State as Shared},
    response::Response,
    routing::get,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{State, answer, lock, routes};
use crate::hub::memory::Trouble;

/// Serves the switches until the state's stop token is cancelled.
pub(super) fn serve(listener: TcpListener, state: &Arc<State>) {
    let router = Router::new()
        .route("/emulator/trouble", get(trouble).post(set_trouble))
        .route("/emulator/log", get(log))
        .route("/emulator/twins", get(twins))
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

async fn trouble(Shared(state): Shared<Arc<State>>) -> Response {
    answer::json_response(200, &json!(state.trouble()), &[])
}

async fn set_trouble(Shared(state): Shared<Arc<State>>, body: Bytes) -> Response {
    match serde_json::from_slice::<Trouble>(&body) {
        Ok(Trouble::Failing { status }) if !(500..=599).contains(&status) => {
            answer::json_response(400, &json!({ "error": "status must be 500 to 599" }), &[])
        }
        Ok(trouble) => {
            state.set_trouble(trouble);
            answer::json_response(200, &json!(trouble), &[])
        }
        Err(why) => answer::json_response(400, &json!({ "error": why.to_string() }), &[]),
    }
}

#[derive(Deserialize)]
struct After {
    #[serde(default)]
    after: u64,
}

async fn log(Shared(state): Shared<Arc<State>>, Query(After { after }): Query<After>) -> Response {
    let log = lock(&state.log);
    let entries: Vec<Value> = (log.forgotten + 1..)
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
        .collect();
    answer::json_response(200, &Value::Array(entries), &[])
}

async fn twins(Shared(state): Shared<Arc<State>>) -> Response {
    let twins = lock(&state.store).all().map(routes::twin_json).collect();
    answer::json_response(200, &Value::Array(twins), &[])
}
