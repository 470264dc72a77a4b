//! The gate over HTTP: whether a program on this device may act, asked for, waited for, or told as it happens.
//!
//! `GET /v1/ownership` answers at once, with `?epoch=E&active=BOOL` when there is more to say than that, and
//! `GET /v1/ownership/events` goes on telling (server-sent events). The moment in an answer is on this device's boot clock, so
//! a program elsewhere asks [`/owner`](super::server) instead.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{
    door::Handle,
    server::{Json, fresh},
    watch::tell,
    word::Word,
};

/// The longest that an answer is held back.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Questions that wait and streams, together.
const LISTENERS_MAX: usize = 32;

/// What the routes here need.
#[derive(Clone)]
pub(super) struct Told {
    door: Handle,
    slots: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Told {
    /// Streams end when `stop` is cancelled.
    pub(super) fn new(door: Handle, stop: CancellationToken) -> Told {
        Told { door, slots: Arc::new(Semaphore::new(LISTENERS_MAX)), stop }
    }

    fn words(&self) -> Option<impl futures_util::Stream<Item = Word> + Send + use<>> {
        let slot = self.slots.clone().try_acquire_owned().ok()?;
        let told = tell(self.door.permits(), self.door.clock(), slot, self.stop.clone());
        let door = self.door.clone();
        Some(told.map(move |(permit, _)| Word::of(&*door, permit)))
    }
}

/// What the client knows already.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Known {
    epoch: Option<u64>,
    active: Option<bool>,
}

pub(super) async fn ask(
    State(told): State<Told>,
    known: Result<Query<Known>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let known = match known {
        Ok(Query(Known { epoch: Some(epoch), active: Some(active) })) => Some((epoch, active)),
        Ok(Query(Known { epoch: None, active: None })) => None,
        Ok(_) | Err(_) => {
            let why = "write ?epoch=NUMBER&active=true or false, as in the last answer, or nothing";
            return fresh((StatusCode::BAD_REQUEST, Json(json!({ "error": why }))));
        }
    };
    let Some(words) = told.words() else { return busy() };
    let mut words = std::pin::pin!(words);
    let Some(mut word) = words.next().await else { return leaving() };
    if known == Some((word.epoch, word.active)) {
        // The next one differs, or has a longer lease.
        if let Ok(Some(next)) = tokio::time::timeout(WAIT_MAX, words.next()).await {
            word = next;
        }
    }
    fresh(Json(word))
}

pub(super) async fn events(State(told): State<Told>) -> Response {
    let Some(words) = told.words() else { return busy() };
    let events = words.map(|word| {
        let mut event = b"event: ownership\ndata: ".to_vec();
        event.extend(word.json());
        event.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(event))
    });
    fresh(([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)))
}

fn busy() -> Response {
    let why = format!("{LISTENERS_MAX} programs are listening already; end some and try again");
    fresh((StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], Json(json!({ "error": why }))))
}

fn leaving() -> Response {
    fresh((StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": "this sidecar is ending" }))))
        .into_response()
}
