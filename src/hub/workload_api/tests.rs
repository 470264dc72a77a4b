use axum::{
    Router,
    body::Bytes,
    http::{StatusCode, Uri},
    routing::{get, post},
};
use tokio::net::UnixListener;

use super::*;
use crate::condition::Condition;

const TIMEOUT: Duration = Duration::from_secs(5);

/// A socket that answers like this while `ask` goes on.
async fn against<T>(router: Router, ask: impl AsyncFnOnce(WorkloadApi) -> T) -> T {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("workload.sock");
    let listener = UnixListener::bind(&socket).expect("binds");
    let api = WorkloadApi::new(socket, TIMEOUT).expect("a client");
    tokio::select! {
        ended = axum::serve(listener, router) => panic!("{ended:?}"),
        done = ask(api) => done,
    }
}

#[tokio::test]
async fn it_asks_as_the_sdks_do() {
    let sign = async |uri: Uri, body: Bytes| {
        assert_eq!(uri.path(), "/modules/ha%20x/genid/638/sign");
        assert_eq!(uri.query(), Some("api-version=2018-06-28"));
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body, json!({ "keyId": "primary", "algo": "HMACSHA256", "data": "YQox" }));
        json!({ "digest": STANDARD.encode([7; 32]) }).to_string()
    };
    let bundle = async |uri: Uri| {
        assert_eq!(uri.query(), Some("api-version=2018-06-28"));
        json!({ "certificate": "-----BEGIN" }).to_string()
    };
    let router =
        Router::new().route("/modules/{m}/genid/{g}/sign", post(sign)).route("/trust-bundle", get(bundle));
    against(router, async |api| {
        assert_eq!(api.sign("ha x", "638", "a\n1").await, Ok(STANDARD.encode([7; 32])));
        assert_eq!(api.trust_bundle().await, Ok(Some("-----BEGIN".into())));
    })
    .await;
}

#[tokio::test]
async fn its_refusals_are_named() {
    let says = |status: u16, body: &'static str| {
        let status = StatusCode::from_u16(status).expect("a status");
        let answer = move || async move { (status, body) };
        Router::new().route("/trust-bundle", get(answer)).route("/modules/{m}/genid/{g}/sign", post(answer))
    };
    let both = async |status, body| {
        against(says(status, body), async |api: WorkloadApi| {
            (api.trust_bundle().await, api.sign("m", "1", "x").await)
        })
        .await
    };
    let (bundle, signed) = both(403, r#"{"message":"for\u0007bidden"}"#).await;
    let refusal =
        Error::Unauthorized { status: 403, detail: "IoT Edge's workload socket says: forbidden".into() };
    assert_eq!((bundle, signed), (Err(refusal.clone()), Err(refusal)));
    let (bundle, signed) = both(404, r#"{"message":"none"}"#).await;
    assert_eq!(bundle, Ok(None));
    let gone = signed.expect_err("is refused");
    assert_eq!(gone.condition(), Some(Condition::HubDeviceMissing));
    for word in ["module m of generation 1", "deleted or made anew", "none"] {
        assert!(gone.to_string().contains(word), "{gone}");
    }
    assert!(matches!(both(500, "").await.1, Err(Error::Unavailable { status: 500, .. })));
    assert_eq!(both(200, r#"{"certificate":""}"#).await.0, Ok(None));
    for body in ["", "{}", "[]", r#"{"digest":1,"certificate":2}"#, r#"{"digest":"AAAA","certificate":{}}"#] {
        let (bundle, signed) = both(200, body).await;
        assert!(matches!(bundle, Err(Error::NotTheHub(_))), "{body}");
        assert!(matches!(signed, Err(Error::NotTheHub(_))), "{body}");
    }
}

#[tokio::test]
async fn a_socket_that_is_not_there_is_named() {
    let api = WorkloadApi::new("/nowhere/workload.sock".into(), TIMEOUT).expect("a client");
    let why = api.trust_bundle().await.expect_err("fails");
    assert!(matches!(&why, Error::Unreachable(text) if text.contains("/nowhere/workload.sock")), "{why:?}");
}
