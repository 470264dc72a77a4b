//! What happens here, told as it happens: `GET /v1/events` as server-sent events, and with `?last=N` as JSON.
//!
//! A stream begins with what is new from then on, or after the event that `Last-Event-ID` names, as a browser that comes back sends it.
//! Each event carries its number as its id. While nothing happens a comment is sent now and then, so that both ends notice when
//! the other is gone. Connections end after some minutes like all others here, and a browser comes back by itself.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::{
    door::Handle,
    events::{EVENTS_MAX, Event, Events},
    server::{Json, fresh},
};

/// Streams at once.
const STREAMS_MAX: usize = 16;
/// The longest silence.
const SILENCE: Duration = Duration::from_secs(10);
/// After how many milliseconds a browser shall come back.
const RETRY_MS: u32 = 1000;

/// What the routes here need.
#[derive(Clone)]
pub(super) struct Streams {
    door: Handle,
    slots: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Streams {
    /// Streams end when `stop` is cancelled.
    pub(super) fn new(door: Handle, stop: CancellationToken) -> Streams {
        Streams { door, slots: Arc::new(Semaphore::new(STREAMS_MAX)), stop }
    }
}

/// How much of the past is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Past {
    last: Option<u64>,
}

pub(super) async fn events(
    State(streams): State<Streams>,
    past: Result<Query<Past>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let Ok(Query(Past { last })) = past else {
        let why =
            format!("write ?last=N for the last N events ({EVENTS_MAX} are kept), or nothing for a stream");
        return fresh((StatusCode::BAD_REQUEST, Json(json!({ "error": why }))));
    };
    let events = streams.door.events();
    if let Some(n) = last {
        let n = usize::try_from(n).unwrap_or(usize::MAX);
        return fresh(Json(json!({ "events": events.last(n) })));
    }
    let Ok(slot) = streams.slots.clone().try_acquire_owned() else {
        let why = format!("{STREAMS_MAX} programs are listening already; end some and try again");
        let body = Json(json!({ "error": why }));
        return fresh((StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], body));
    };
    // A number from before this device lost its events may be too high.
    let told = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse::<u64>().ok());
    let newest = events.newest();
    let told = Told {
        added: events.watch(),
        newest: told.filter(|seq| *seq <= newest).unwrap_or(newest),
        begun: false,
        stop: streams.stop,
        events,
        _slot: slot,
    };
    let body = stream::unfold(told, |mut told| async {
        told.next().await.map(|part| (Ok::<_, Infallible>(Bytes::from(part)), told))
    });
    fresh(([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(body)))
}

/// One listener.
struct Told {
    events: Events,
    added: watch::Receiver<u64>,
    /// The number of the event that was told last.
    newest: u64,
    begun: bool,
    stop: CancellationToken,
    _slot: OwnedSemaphorePermit,
}

impl Told {
    async fn next(&mut self) -> Option<String> {
        if !self.begun {
            self.begun = true;
            return Some(format!("retry: {RETRY_MS}\n\n"));
        }
        tokio::select! {
            biased;
            () = self.stop.cancelled() => return None,
            added = self.added.wait_for(|newest| *newest > self.newest) => { added.ok()?; }
            () = tokio::time::sleep(SILENCE) => return Some(": nothing new\n\n".into()),
        }
        let fresh = self.events.since(self.newest);
        self.newest = fresh.last().map_or(self.newest, |event| event.seq);
        Some(fresh.iter().map(told).collect())
    }
}

/// JSON has no line breaks of its own, so one line of data is enough.
fn told(event: &Event) -> String {
    let json = serde_json::to_string(event).unwrap_or_default();
    format!("id: {}\nevent: {}\ndata: {json}\n\n", event.seq, event.kind.name())
}
