//! Direct methods from module to module through edgeHub, which also work while the cloud is away.
//!
//! `POST /twins/{device}[/modules/{module}]/methods` over HTTPS, as Microsoft's SDKs ask for it: with the caller's own token and
//! its name in `x-ms-edge-moduleId`. The version of the API is not looked at, because one of the SDKs names none.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State as Shared},
    http::{HeaderMap, Method, header},
    response::Response,
};
use percent_encoding::percent_decode_str;
use rustls::ServerConfig;
use serde_json::{Value, json};

use super::Gateway;
use crate::{
    emulator::{
        answer::json_response,
        methods::{Call, Wrong, replied},
        mqtt::NoReply,
        wire,
    },
    hub::store::Target,
};

const BODY_MAX: usize = 256 * 1024;

/// Serves until the gateway is stopped.
pub(super) fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    gateway: &Arc<Gateway>,
) -> io::Result<SocketAddr> {
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let router = Router::new().fallback(handle).with_state(gateway.clone());
    let stop = gateway.stop.clone();
    let gate = Box::new(move || (!stop.is_cancelled()).then(|| stop.child_token()));
    wire::serve(listener, tls, gate, router, &gateway.state);
    Ok(address)
}

async fn handle(Shared(gateway): Shared<Arc<Gateway>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let decode = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
    let path: Vec<String> = parts.uri.path().trim_matches('/').split('/').map(decode).collect();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let target = match (&parts.method, path.as_slice()) {
        (&Method::POST, ["twins", device, "methods"]) => Target::device(device),
        (&Method::POST, ["twins", device, "modules", module, "methods"]) => Target::module(device, module),
        _ => return json_response(404, &json!({ "message": "not found" }), &[]),
    };
    let (status, body) = match invoke(&gateway, &target, &parts.headers, body).await {
        Ok(replied) => (200, replied),
        Err((status, message)) => (status, json!({ "message": message })),
    };
    json_response(status, &body, &[])
}

async fn invoke(
    gateway: &Gateway,
    target: &Target,
    headers: &HeaderMap,
    body: Body,
) -> Result<Value, (u16, String)> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let caller = text("x-ms-edge-moduleId")
        .and_then(|name| name.split_once('/'))
        .filter(|(device, module)| !device.is_empty() && !module.is_empty())
        .map(|(device, module)| Target::module(device, module))
        .ok_or((400, "the header x-ms-edge-moduleId is not DEVICE/MODULE".to_owned()))?;
    let token = text(header::AUTHORIZATION.as_str()).ok_or((401, "no token".to_owned()))?;
    let now_s = gateway.state.clock.wall_ms() / 1000;
    let known = caller.device == gateway.device && gateway.knows(&caller);
    if !known || gateway.state.signed(token, &caller, now_s).is_none() {
        return Err((401, format!("{caller} is not a module of this device, or the token is not its own")));
    }
    let body = to_bytes(body, BODY_MAX).await.map_err(|_| (400, "the body is too large".to_owned()))?;
    let call = Call::parse(&body).map_err(|wrong| match wrong {
        Wrong::Timeout(why) | Wrong::Other(why) => (400, why),
    })?;
    if target.device != gateway.device {
        return Err((404, format!("{target} is not of this device")));
    }
    let links = gateway.links();
    match links.call(target, &call.name, call.payload.clone(), call.connect, call.answer).await {
        Ok((status, payload)) => Ok(replied(status, &payload)),
        Err(NoReply::Offline) => Err((404, format!("{target} is not connected, or takes no methods"))),
        Err(NoReply::TimedOut) => Err((504, format!("{target} did not answer in time"))),
    }
}
