//! What answers at the hub's address is not the hub: a portal, a proxy, nothing at all. Raw TLS, raw TCP.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use quorate::{
    clock::BootClock,
    condition::Condition,
    hub::{Error, Hub, Settings, Target, rest::RestHub, sas::Secret},
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::hub::loopback;

/// A server that says the same to everybody, with a certificate of its own.
struct Stranger {
    port: u16,
    folder: tempfile::TempDir,
    asked: mpsc::Receiver<String>,
}

fn tls(name: &str) -> (String, Arc<rustls::ServerConfig>) {
    let key = rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate");
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![key.cert.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.signing_key.serialize_der())),
            )
            .expect("a configuration");
    (key.cert.pem(), Arc::new(config))
}

/// Reads one request's head.
fn head(stream: &mut impl Read) -> String {
    let (mut text, mut byte) = (Vec::new(), [0; 1]);
    while !text.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
        text.push(byte[0]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

impl Stranger {
    fn over_tls(name: &str, answer: &str) -> Stranger {
        let (pem, tls) = tls(name);
        let answer = answer.to_owned();
        Stranger::serve(&pem, move |stream, asked| {
            let connection = rustls::ServerConnection::new(tls.clone()).expect("a connection");
            let mut stream = rustls::StreamOwned::new(connection, stream);
            let request = head(&mut stream);
            if !request.is_empty() {
                let _gone = asked.send(request).is_err();
                let _sent = stream.write_all(answer.as_bytes()).is_ok();
                stream.conn.send_close_notify();
                let _flushed = stream.flush().is_ok();
            }
        })
    }

    fn serve(pem: &str, each: impl Fn(TcpStream, &mpsc::Sender<String>) + Send + 'static) -> Stranger {
        let listener: TcpListener = loopback();
        let port = listener.local_addr().expect("an address").port();
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), pem).expect("writes");
        let (sender, asked) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                each(stream, &sender);
            }
        });
        Stranger { port, folder, asked }
    }

    fn hub(&self, trusting: bool) -> RestHub {
        let string =
            format!("HostName=localhost:{};SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0", self.port);
        let settings = Settings {
            connection_string: Some(Secret::from(string)),
            ca_file: trusting.then(|| self.folder.path().join("ca.pem")),
            timeout: Duration::from_secs(2),
            ..Settings::default()
        };
        RestHub::open(&settings, Arc::new(BootClock)).expect("opens")
    }

    async fn error(&self) -> Error {
        self.hub(true).get_twin(&Target::device("edge-1")).await.expect_err("is not the hub")
    }
}

fn http(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn other_answers_are_named_for_what_they_are() {
    let twin_of_another =
        r#"{"deviceId":"edge-2","etag":"AA==","version":2,"properties":{"desired":{},"reported":{}}}"#;
    let long = "x".repeat(3_000_000);
    for (answer, word) in [
        (http("200 OK", "content-type: text/html\r\n", "<html>Please log in</html>"), "HTML"),
        (http("200 OK", "content-type: application/json\r\n", r#"{"hello":1}"#), "without a twin"),
        (http("200 OK", "", r#"{"deviceId":"edge-1","et"#), "cut off"),
        (http("200 OK", "", ""), "empty"),
        (http("200 OK", "", twin_of_another), "somebody else"),
        (http("200 OK", "", &long), "longer"),
        (http("403 Forbidden", "content-type: text/html\r\n", "<html>Blocked</html>"), "HTML"),
        (http("404 Not Found", "", r#"{"Message":"no such page"}"#), "404"),
        (http("407 Proxy Authentication Required", "", ""), "407"),
    ] {
        let error = Stranger::over_tls("localhost", &answer).error().await;
        assert!(matches!(&error, Error::NotTheHub(text) if text.contains(word)), "{word}: {error:?}");
        assert_eq!(error.condition(), Some(Condition::HubBadAnswer));
    }
}

#[tokio::test]
async fn a_redirect_is_never_followed() {
    let target = Stranger::over_tls("localhost", &http("200 OK", "", "{}"));
    let to = format!("location: https://localhost:{}/steal?x=1\r\n", target.port);
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let error = Stranger::over_tls("localhost", &http(status, &to, "")).error().await;
        assert!(matches!(&error, Error::NotTheHub(text) if text.contains("to localhost")), "{error:?}");
        assert!(!error.to_string().contains("steal"));
    }
    assert!(target.asked.try_recv().is_err(), "nobody followed");
}

#[tokio::test]
async fn an_untrusted_certificate_gets_no_token() {
    let wrong_authority = Stranger::over_tls("localhost", "");
    let error =
        wrong_authority.hub(false).get_twin(&Target::device("edge-1")).await.expect_err("is not trusted");
    assert!(matches!(error, Error::Untrusted(_)), "{error:?}");
    assert_eq!(error.condition(), Some(Condition::HubUntrusted));
    let wrong_name = Stranger::over_tls("elsewhere.example", "");
    let error = wrong_name.error().await;
    assert!(matches!(error, Error::Untrusted(_)), "{error:?}");
    assert!(wrong_authority.asked.try_recv().is_err() && wrong_name.asked.try_recv().is_err());
}

#[tokio::test]
async fn plain_http_nobody_and_silence() {
    let plain = Stranger::serve(&tls("localhost").0, |mut stream, _| {
        let _sent = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").is_ok();
    });
    let error = plain.error().await;
    assert!(matches!(error, Error::NotTheHub(_) | Error::Unreachable(_)), "{error:?}");

    let nobody = Stranger::over_tls("localhost", "");
    let free = loopback().local_addr().expect("an address").port();
    let error = Stranger { port: free, ..nobody }.error().await;
    assert!(matches!(error, Error::Unreachable(_)), "{error:?}");

    // Half-open: the connection stands, nothing ever comes.
    let (keep, kept) = mpsc::channel();
    let silent = Stranger::serve(&tls("localhost").0, move |stream, _| {
        let _gone = keep.send(stream).is_err();
    });
    let error = silent.error().await;
    assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
    drop(kept);

    // The handshake is done and the request taken, but no answer comes.
    let (pem, config) = tls("localhost");
    let (keep, kept) = mpsc::channel();
    let deaf = Stranger::serve(&pem, move |stream, _| {
        let connection = rustls::ServerConnection::new(config.clone()).expect("a connection");
        let mut stream = rustls::StreamOwned::new(connection, stream);
        let _request = head(&mut stream);
        let _gone = keep.send(stream).is_err();
    });
    let error = deaf.error().await;
    assert_eq!(error, Error::TimedOut { after: Duration::from_secs(2) });
    assert_eq!(error.condition(), Some(Condition::HubUnreachable));
    drop(kept);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_a_twin() {
    let broken = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"deviceId\":\"edge-1\"";
    let error = Stranger::over_tls("localhost", broken).error().await;
    assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
}

#[tokio::test]
async fn the_request_is_what_the_hub_expects() {
    let stranger =
        Stranger::over_tls("localhost", &http("503 Service Unavailable", "retry-after: 3\r\n", "<html>"));
    let hub = stranger.hub(true);
    let change = super::hub::change(serde_json::json!({"properties": {"desired": {"a": 1}}}));
    let error =
        hub.patch_twin(&Target::device("edge%1"), &change, Some("AAA=")).await.expect_err("is not there");
    assert!(
        matches!(error, Error::Unavailable { retry_after: Some(after), .. } if after.as_secs() == 3),
        "{error:?}"
    );
    let request = stranger.asked.recv_timeout(Duration::from_secs(5)).expect("was asked").to_lowercase();
    assert!(request.starts_with("patch /twins/edge%251?api-version=2021-04-12 http/1.1\r\n"), "{request}");
    assert!(request.contains("\r\nif-match: \"aaa=\"\r\n"), "{request}");
    assert!(request.contains("\r\ncontent-type: application/json; charset=utf-8\r\n"), "{request}");
    let resource = format!("\r\nauthorization: sharedaccesssignature sr=localhost%3a{}&sig=", stranger.port);
    assert!(request.contains(&resource), "{request}");
}
