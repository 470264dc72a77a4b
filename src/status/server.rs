//! The HTTP face: roles for load balancers, health for supervisors, JSON for scripts, metrics, and the page.
//!
//! Every answer comes from memory. A client can cost one of a fixed number of connections for a fixed time and
//! nothing else: header bytes, header time and connection age are limited, bodies are not read. Listeners are handed
//! in. Nothing is written, and nothing is answered about ownership that has lapsed.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{HeaderName, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    door::{Answer, Handle},
    metrics::Metrics,
    ownership::{self, Told},
    plan::plan,
    report::Role,
    stream::{self, Streams},
};
use crate::clock::millis;

/// Open connections; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// A request's head must be complete within this time of the connection, or of the answer before it.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// A connection is asked to end after this time, and dropped [`GRACE`] later. Clients open a new one.
const CONNECTION_AGE: Duration = Duration::from_secs(120);
/// How long open requests may still run when the server leaves or a connection is too old.
const GRACE: Duration = Duration::from_secs(2);
/// Bytes of a request's head, and of what is buffered for it.
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// After an accept that failed, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

const PAGE: &str = include_str!("page.html");

#[derive(Clone)]
struct Shown {
    door: Handle,
    metrics: Metrics,
}

/// All routes, without a socket.
pub fn router(door: Handle, metrics: Metrics, stop: CancellationToken) -> Router {
    let gate = Router::new()
        .route("/v1/ownership", get(ownership::ask))
        .route("/v1/ownership/events", get(ownership::events))
        .with_state(Told::new(door.clone(), stop.clone()));
    let events =
        Router::new().route("/v1/events", get(stream::events)).with_state(Streams::new(door.clone(), stop));
    Router::new()
        .route("/", get(page))
        .route("/owner", get(owner))
        .route("/standby", get(standby))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/v1/status", get(status))
        .route("/v1/history", get(history))
        .route("/v1/plan", get(lost))
        .route("/metrics", get(scrape))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .with_state(Shown { door, metrics })
        .merge(gate)
        .merge(events)
}

/// Serves until `stop`, then ends open connections within two seconds. Errors of single connections end only them.
/// Dropping the future closes everything at once.
pub async fn serve(listener: TcpListener, door: Handle, metrics: Metrics, stop: CancellationToken) {
    let service = router(door, metrics, stop.clone());
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            // Ended connections are taken off the list as they end.
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &slots) => accepted,
        };
        let Some((stream, slot)) = accepted else { continue };
        let (service, stop) = (service.clone(), stop.clone());
        connections.spawn(async move {
            connection(stream, service, stop).await;
            drop(slot);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, slot)),
        Err(e) => {
            tracing::debug!("an HTTP connection could not be accepted: {e}");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn connection(stream: TcpStream, service: Router, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(HEADER_BYTES_MAX)
        .max_headers(64);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));
    tokio::select! {
        _ = served.as_mut() => return,
        () = stop.cancelled() => {}
        () = tokio::time::sleep(CONNECTION_AGE) => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(GRACE, served).await;
}

/// The owner as it may be told now, and whether that is this device.
fn answer(shown: &Shown) -> (serde_json::Value, Answer) {
    let now = shown.door.clock().now();
    let answer = shown.door.answers().borrow().at(now);
    let body = match &answer {
        Answer::Known { owner, epoch, until, reason } => json!({
            "owner": owner.as_ref().map(|d| d.as_str()),
            "epoch": epoch.get(),
            "valid_for_ms": millis(until.since(now)),
            "reason": reason,
        }),
        Answer::Unknown { reason } => json!({
            "owner": null,
            "epoch": null,
            "valid_for_ms": 0,
            "reason": reason,
        }),
    };
    (body, answer)
}

async fn owner(State(shown): State<Shown>) -> Response {
    let (body, answer) = answer(&shown);
    let yes = matches!(&answer, Answer::Known { owner: Some(owner), .. } if owner == shown.door.me());
    reply(yes, body)
}

/// The reverse of `/owner`, except that a device that knows nothing is neither.
async fn standby(State(shown): State<Shown>) -> Response {
    let (body, answer) = answer(&shown);
    let yes = matches!(&answer, Answer::Known { owner, .. } if owner.as_ref() != Some(shown.door.me()));
    reply(yes, body)
}

/// The process serves. A supervisor that restarts on anything more would turn an outage into restarts.
async fn live() -> Response {
    reply(true, json!({ "status": "live" }))
}

/// The sidecar takes part: it has started, and hears from a majority.
async fn ready(State(shown): State<Shown>) -> Response {
    let report = shown.door.report();
    let reason = match (report.role, report.quorum) {
        (Role::Starting, _) => "the group is not up yet on this device",
        (_, false) => "this device does not hear from a majority",
        (_, true) => return reply(true, json!({ "status": "ready" })),
    };
    reply(false, json!({ "status": "not ready", "reason": reason }))
}

async fn status(State(shown): State<Shown>) -> Response {
    fresh(Json(shown.door.report()))
}

async fn history(State(shown): State<Shown>) -> Response {
    let report = shown.door.report();
    fresh(Json(json!({ "last_decision": report.last_decision, "history": report.history })))
}

/// What becomes of the site if a device is lost now.
async fn lost(State(shown): State<Shown>) -> Response {
    fresh(Json(plan(&shown.door.report())))
}

async fn scrape(State(shown): State<Shown>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    fresh(([(header::CONTENT_TYPE, kind)], shown.metrics.render(&shown.door.report())))
}

async fn page() -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    fresh(([(header::CONTENT_SECURITY_POLICY, policy)], Html(PAGE)))
}

async fn not_found() -> Response {
    let paths = [
        "/",
        "/owner",
        "/standby",
        "/health/live",
        "/health/ready",
        "/v1/status",
        "/v1/history",
        "/v1/plan",
        "/v1/events",
        "/v1/ownership",
        "/v1/ownership/events",
        "/metrics",
    ];
    fresh((StatusCode::NOT_FOUND, Json(json!({ "error": "there is no such page", "pages": paths }))))
}

async fn wrong_method() -> Response {
    let body = json!({ "error": "this page only answers GET" });
    fresh((StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, HEAD")], Json(body)))
}

fn reply(yes: bool, body: serde_json::Value) -> Response {
    let code = if yes { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    fresh((code, Json(body)))
}

/// An answer of a second ago may be wrong, so nobody may keep one.
pub(super) fn fresh(response: impl IntoResponse) -> Response {
    const NO_SNIFF: HeaderName = header::X_CONTENT_TYPE_OPTIONS;
    ([(header::CACHE_CONTROL, "no-store"), (NO_SNIFF, "nosniff")], response).into_response()
}

/// A body as JSON.
pub(super) struct Json<T>(pub(super) T);

impl<T: serde::Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
            Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
        }
    }
}
