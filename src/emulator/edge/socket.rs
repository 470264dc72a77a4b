//! HTTP/1.1 over Unix sockets, as IoT Edge's runtime speaks it to modules.
//!
//! Every answer is JSON, every failure `{"message": "…"}`. Paths are matched by hand, because names hold `$` and may be
//! percent-encoded; bodies are read as bytes, because clients do not always name a content type.

use std::{future::Future, io, path::Path, pin::Pin, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{ConnectInfo, Request, State as Shared, connect_info::Connected},
    http::{HeaderValue, Method, StatusCode, header},
    response::Response,
    serve::IncomingStream,
};
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::net::UnixListener;

use super::Gateway;

const BODY_MAX: usize = 1024 * 1024;
/// How long a body may take to come.
const BODY: Duration = Duration::from_secs(5);
/// The versions of the API that the runtime knows.
const VERSIONS: [&str; 7] =
    ["2018-06-28", "2019-01-30", "2019-10-22", "2019-11-05", "2020-07-07", "2021-12-07", "2022-08-03"];

/// A request, its path cut and decoded.
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: Vec<String>,
    pub(super) body: Bytes,
    /// Who has connected, as the kernel has it.
    pub(super) caller: Option<i32>,
}

/// The process at the other end of a connection.
#[derive(Debug, Clone, Copy)]
struct Caller(Option<i32>);

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Caller {
        Caller(stream.io().peer_cred().ok().and_then(|peer| peer.pid()))
    }
}

/// What is answered: a status, and a body unless there is none.
pub(super) type Given = (u16, Option<Value>);

/// What stands behind a socket.
pub(super) trait Api: Send + Sync + 'static {
    fn answer(&self, asked: Asked) -> Pin<Box<dyn Future<Output = Given> + Send + '_>>;
}

/// A failure in the runtime's words.
pub(super) fn failure(status: u16, message: &str) -> Given {
    (status, Some(json!({ "message": message })))
}

/// Serves on a socket at `path`, made anew, until the gateway is stopped.
pub(super) fn serve(path: &Path, api: Arc<dyn Api>, gateway: &Arc<Gateway>) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let router = Router::new().fallback(handle).with_state(api);
    let router = router.into_make_service_with_connect_info::<Caller>();
    let stop = gateway.stop.clone();
    gateway.state.tasks.spawn(async move {
        tokio::select! {
            served = async { axum::serve(listener, router).await } => {
                tracing::debug!(?served, "a socket of the emulated runtime stopped");
            }
            () = stop.cancelled() => {}
        }
    });
    Ok(())
}

async fn handle(
    Shared(api): Shared<Arc<dyn Api>>,
    ConnectInfo(Caller(caller)): ConnectInfo<Caller>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let (status, body) = match version(parts.uri.query().unwrap_or_default()) {
        Err(given) => given,
        Ok(()) => match tokio::time::timeout(BODY, to_bytes(body, BODY_MAX)).await {
            Err(_) => failure(408, "the body was not received in time"),
            Ok(Err(_)) => failure(413, "the body is too large, or broke off"),
            Ok(Ok(body)) => {
                let path = parts.uri.path().trim_matches('/').split('/');
                let decode = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
                let asked = Asked { method: parts.method, path: path.map(decode).collect(), body, caller };
                api.answer(asked).await
            }
        },
    };
    let mut response = Response::new(match &body {
        Some(body) => Body::from(body.to_string()),
        None => Body::empty(),
    });
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if body.is_some() {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    response
}

fn version(query: &str) -> Result<(), Given> {
    match query.split('&').find_map(|part| part.strip_prefix("api-version=")) {
        None => Err(failure(400, "api-version not specified")),
        Some(version) if VERSIONS.contains(&version) => Ok(()),
        Some(version) => Err(failure(400, &format!("invalid api-version: {version}"))),
    }
}
