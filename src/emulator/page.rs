//! The page for people at the switches' listener: twins, writes and answers as they happen, and every switch.
//!
//! One document of HTML without anything from elsewhere. It listens for changes (server-sent events, a few a second at
//! most) and then asks for one view of everything. What a browser may change is guarded against pages of other sites,
//! because the listener has no password: a request that names its origin must come from this page, opened by address.

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State as Shared},
    http::{HeaderMap, header},
    middleware::Next,
    response::{
        Html, IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream::{self, Stream};
use serde_json::{Value, json};

use super::{State, admin, answer, lock, routes};

const PAGE: &str = include_str!("page.html");
/// Changes closer together are told as one.
const PACE: Duration = Duration::from_millis(200);
/// The most twins and writes in a view; a hub of thousands is looked at by query.
const TWINS_MAX: usize = 200;
const WRITES_MAX: usize = 50;

/// Turns away what another site's page sends in the name of whoever looks at it.
pub(super) async fn guard(request: Request, next: Next) -> Response {
    if is_foreign(request.headers()) {
        let error = "this comes from another page; open the emulator's page by its address";
        return answer::json_response(403, &json!({ "error": error }), &[]);
    }
    next.run(request).await
}

fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    // Scripts and tools name no origin; browsers do, wherever it matters.
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let host = text(header::HOST).unwrap_or_default();
    let own = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://")) == Some(host);
    // A name of somebody else's may have been made to lead here.
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let known = name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    !(own && known)
}

pub(super) async fn page() -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    let headers = [(header::CONTENT_SECURITY_POLICY, policy), (header::CACHE_CONTROL, "no-store")];
    (headers, Html(PAGE)).into_response()
}

/// Everything that the page shows.
pub(super) async fn view(Shared(state): Shared<Arc<State>>) -> Response {
    let now = state.clock.now();
    let (gate, troubles) = {
        let mut gate = lock(&state.gate);
        (gate.to_json(), gate.troubles.shown(now))
    };
    let (twins, all) = {
        let store = lock(&state.store);
        let twins: Vec<Value> =
            store.all().take(TWINS_MAX).map(|entry| routes::twin_json(&state, entry)).collect();
        (twins, store.all().count())
    };
    let (writes, rollbacks) = {
        let log = lock(&state.log);
        let last = log.forgotten + u64::try_from(log.writes.len()).unwrap_or(u64::MAX);
        let after = last.saturating_sub(u64::try_from(WRITES_MAX).unwrap_or(0));
        let lost: Vec<Value> = log
            .rollbacks
            .iter()
            .map(
                |told| json!({ "at_ns": told.at.as_nanos(), "to_ns": told.to.as_nanos(), "lost": told.lost }),
            )
            .collect();
        (admin::entries(&log, after), lost)
    };
    let body = json!({
        "now_ns": now.as_nanos(),
        "time": state.at(),
        "answers": gate["answers"],
        "limits": gate["limits"],
        "troubles": troubles,
        "identity": state.tenant.rules(),
        "twins": twins,
        "twins_in_all": all,
        "writes": writes,
        "rollbacks": rollbacks,
    });
    answer::json_response(200, &body, &[("cache-control", "no-store".into())])
}

/// An event after each change, and one at first.
pub(super) async fn events(
    Shared(state): Shared<Arc<State>>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let (mut touched, stop) = (state.touched.subscribe(), state.stop.clone());
    touched.mark_changed();
    let changes = stream::unfold((touched, stop), |(mut touched, stop)| async move {
        tokio::select! {
            () = stop.cancelled() => return None,
            changed = touched.changed() => changed.ok()?,
        }
        let number = *touched.borrow_and_update();
        // The page asks for the view after it has heard; what happens meanwhile is in that view or told next.
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(PACE) => {}
        }
        Some((Ok(Event::default().data(number.to_string())), (touched, stop)))
    });
    Sse::new(changes).keep_alive(KeepAlive::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_page_opened_by_address_and_tools_may_switch() {
        let foreign = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().expect("a header"));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().expect("a header"));
            }
            is_foreign(&headers)
        };
        for (host, origin) in [
            ("127.0.0.1:4444", None),
            ("emulator:4444", None),
            ("127.0.0.1:4444", Some("http://127.0.0.1:4444")),
            ("localhost:4444", Some("http://localhost:4444")),
            ("[::1]:4444", Some("http://[::1]:4444")),
        ] {
            assert!(!foreign(host, origin), "{host} {origin:?}");
        }
        for (host, origin) in [
            ("127.0.0.1:4444", "https://evil.example"),
            ("127.0.0.1:4444", "null"),
            ("127.0.0.1:4444", "http://127.0.0.1:4445"),
            ("evil.example:4444", "http://evil.example:4444"),
        ] {
            assert!(foreign(host, Some(origin)), "{host} {origin}");
        }
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_never_sets_markup() {
        for word in ["http://", "https://", "innerHTML", "insertAdjacent", "document.write", "eval("] {
            assert!(!PAGE.contains(word), "{word}");
        }
    }
}
