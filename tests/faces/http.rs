//! Roles, health, JSON, metrics and the page, and what a rude client gets.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quorate::status::{
    events::{Event, Kind},
    metrics::Metrics,
    report::{Report, Role},
    server::serve,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{Puppet, skip, soon};

struct Http {
    puppet: Arc<Puppet>,
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Http {
    #[expect(
        clippy::disallowed_methods,
        reason = "the test is the environment that hands in listener and task"
    )]
    async fn start() -> Http {
        let puppet = Puppet::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, puppet.clone(), Metrics::new(), stop.clone()));
        Http { puppet, address, stop, serving }
    }

    #[expect(clippy::disallowed_methods, reason = "a client of the test's own")]
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connects")
    }

    /// Status line and headers, then the body.
    async fn send(&self, request: &str) -> (u16, String, String) {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.expect("sends");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("answers");
        let answer = String::from_utf8(answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let code = head.split(' ').nth(1).and_then(|c| c.parse().ok()).expect("a code");
        (code, head.to_lowercase(), body.to_owned())
    }

    async fn get(&self, path: &str) -> (u16, serde_json::Value) {
        let (code, _, body) =
            self.send(&format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
        (code, serde_json::from_str(&body).unwrap_or(serde_json::Value::Null))
    }
}

/// Reads until the server ends the connection; what it said.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut said).await;
    said
}

#[tokio::test]
async fn owner_and_standby_say_who_acts_and_for_how_long() {
    let http = Http::start().await;
    assert_eq!(http.get("/owner").await.0, 503);
    assert_eq!(http.get("/standby").await.0, 503);

    http.puppet.vouch(Some("edge-1"), 17, Duration::from_secs(3600));
    let (code, body) = http.get("/owner").await;
    assert_eq!((code, &body["owner"], &body["epoch"]), (200, &"edge-1".into(), &17.into()));
    let left = body["valid_for_ms"].as_u64().expect("a number");
    assert!((3_000_000..=3_600_000).contains(&left), "{left}");
    assert_eq!(http.get("/standby").await.0, 503);

    http.puppet.vouch(Some("edge-2"), 18, Duration::from_secs(3600));
    let (code, body) = http.get("/owner").await;
    assert_eq!((code, &body["owner"], &body["epoch"]), (503, &"edge-2".into(), &18.into()));
    assert_eq!(http.get("/standby").await.0, 200);

    http.puppet.vouch(None, 18, Duration::from_secs(3600));
    let (code, body) = http.get("/owner").await;
    assert_eq!((code, &body["owner"], &body["epoch"]), (503, &serde_json::Value::Null, &18.into()));
    assert_eq!(http.get("/standby").await.0, 200);
}

/// The planted bug that this finds: serving the last answer without looking at the clock.
#[tokio::test]
async fn an_answer_is_not_given_after_it_lapsed() {
    let http = Http::start().await;
    http.puppet.vouch(Some("edge-1"), 17, Duration::ZERO);
    let (code, body) = http.get("/owner").await;
    assert_eq!((code, &body["owner"], &body["valid_for_ms"]), (503, &serde_json::Value::Null, &0.into()));
    assert!(body["reason"].as_str().expect("a reason").contains("lapsed"), "{body}");
    assert_eq!(http.get("/standby").await.0, 503);
    http.puppet.vouch(Some("edge-1"), 17, Duration::from_secs(3600));
    assert_eq!(http.get("/owner").await.0, 200);
}

#[tokio::test]
async fn health_status_history_and_metrics() {
    let http = Http::start().await;
    assert_eq!(http.get("/health/live").await.0, 200);
    assert_eq!(http.get("/health/ready").await.0, 200);
    http.puppet.report.lock().expect("no panic").quorum = false;
    let (code, body) = http.get("/health/ready").await;
    assert_eq!(code, 503);
    assert!(body["reason"].as_str().expect("a reason").contains("majority"));
    http.puppet.report.lock().expect("no panic").role = Role::Starting;
    assert_eq!(http.get("/health/ready").await.0, 503);
    assert_eq!(http.get("/health/live").await.0, 200);

    let (code, body) = http.get("/v1/status").await;
    assert_eq!(code, 200);
    let back: Report = serde_json::from_value(body).expect("the report");
    assert_eq!(back, *http.puppet.report.lock().expect("no panic"));
    let (_, body) = http.get("/v1/history").await;
    assert_eq!(body["history"][0]["epoch"], 17);
    assert_eq!(body["last_decision"]["reason"], "keeps the workload running");

    let (code, head, body) = http.send("GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert_eq!(code, 200);
    assert!(head.contains("application/openmetrics-text"), "{head}");
    assert!(body.contains("\nquorate_owner 1\n") && body.ends_with("# EOF\n"), "{body}");
}

#[tokio::test]
async fn the_gate_says_until_when_and_waits_for_something_new() {
    let http = Http::start().await;
    let (code, body) = http.get("/v1/ownership").await;
    assert_eq!((code, &body["active"], &body["until_boottime_ns"]), (200, &false.into(), &0.into()));
    let epoch = body["epoch"].as_u64().expect("a number");
    // What the client does not know yet is said at once.
    assert_eq!(http.get("/v1/ownership?epoch=3&active=true").await.1["active"], false);
    let waits = format!("/v1/ownership?epoch={epoch}&active=false");
    let owns = async {
        skip(Duration::from_millis(50)).await;
        http.puppet.permit(17, Duration::from_secs(3600));
    };
    let ((_, body), ()) = tokio::join!(http.get(&waits), owns);
    assert_eq!((&body["active"], &body["epoch"]), (&true.into(), &17.into()));
    let left = body["until_boottime_ns"].as_u64().expect("a number") - boottime();
    assert!((3_000..=3_240).contains(&(left / 1_000_000_000)), "a tenth is given away: {left}");
    for wrong in ["?epoch=17", "?epoch=-1&active=true", "?epoch=1&active=perhaps", "?else=1"] {
        let (code, body) = http.get(&format!("/v1/ownership{wrong}")).await;
        assert!(code == 400 && body["error"].is_string(), "{wrong}: {code} {body}");
    }
}

fn boottime() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(time.tv_sec).expect("after boot") * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

#[tokio::test]
async fn the_gate_goes_on_telling_until_the_server_leaves() {
    let http = Http::start().await;
    let mut stream = http.connect().await;
    stream.write_all(b"GET /v1/ownership/events HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("asks");
    let mut said = String::new();
    let mut next = async |what: &str| {
        let mut part = [0; 4096];
        while !said.contains(what) {
            let n = stream.read(&mut part).await.expect("goes on");
            assert!(n > 0, "ended without {what}: {said}");
            said.push_str(&String::from_utf8_lossy(&part[..n]));
        }
        std::mem::take(&mut said)
    };
    let first = next("\n\n").await;
    assert!(first.to_lowercase().contains("content-type: text/event-stream"), "{first}");
    assert!(first.contains("event: ownership\ndata: {\"active\":false"), "{first}");
    http.puppet.permit(17, Duration::from_secs(3600));
    next("\"active\":true,\"epoch\":17").await;
    // Only so many may listen.
    let mut others = Vec::new();
    for _ in 0..31 {
        let mut other = http.connect().await;
        other.write_all(b"GET /v1/ownership/events HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("asks");
        other.read_u8().await.expect("is answered");
        others.push(other);
    }
    assert_eq!(http.get("/v1/ownership").await.0, 503);
    drop(others);
    http.stop.cancel();
    rest(&mut stream).await;
    http.serving.await.expect("ends");
}

fn owns(device: &str, epoch: u64) -> Event {
    Event {
        kind: Kind::Ownership,
        name: "owner_lost".into(),
        device: device.into(),
        epoch: Some(epoch),
        ..Event::default()
    }
}

#[tokio::test]
async fn events_are_told_as_json() {
    let http = Http::start().await;
    assert_eq!(http.get("/v1/events?last=5").await, (200, serde_json::json!({ "events": [] })));
    (1..=7).for_each(|epoch| http.puppet.events.add(owns("edge-2", epoch)));
    let epochs = |body: &serde_json::Value| -> Vec<u64> {
        body["events"].as_array().expect("a list").iter().filter_map(|e| e["epoch"].as_u64()).collect()
    };
    let (code, body) = http.get("/v1/events?last=3").await;
    assert_eq!((code, epochs(&body)), (200, vec![5, 6, 7]));
    assert_eq!((&body["events"][0]["kind"], &body["events"][0]["seq"]), (&"ownership".into(), &5.into()));
    assert_eq!(epochs(&http.get("/v1/events?last=18446744073709551615").await.1).len(), 7);
    for wrong in ["?last=-1", "?last=", "?last=all", "?first=3"] {
        let (code, body) = http.get(&format!("/v1/events{wrong}")).await;
        assert!(code == 400 && body["error"].is_string(), "{wrong}: {code} {body}");
    }
}

/// What a stream says, as it says it.
struct Listener(TcpStream, String);

impl Listener {
    async fn new(http: &Http, more: &str) -> Listener {
        let mut stream = http.connect().await;
        let request = format!("GET /v1/events HTTP/1.1\r\nhost: x\r\n{more}\r\n");
        stream.write_all(request.as_bytes()).await.expect("asks");
        Listener(stream, String::new())
    }

    /// All that is said up to and with `what`.
    async fn hears(&mut self, what: &str) -> String {
        let mut part = [0; 4096];
        while !self.1.contains(what) {
            let n = soon(self.0.read(&mut part)).await.expect("goes on");
            assert!(n > 0, "ended without {what}: {}", self.1);
            self.1.push_str(&String::from_utf8_lossy(&part[..n]));
        }
        let end = self.1.find(what).map_or(0, |at| at + what.len());
        self.1.drain(..end).collect()
    }
}

#[tokio::test]
async fn events_are_streamed_as_they_happen() {
    let http = Http::start().await;
    http.puppet.events.add(owns("edge-1", 1));
    let mut listener = Listener::new(&http, "").await;
    let head = listener.hears("retry: 1000\n\n").await.to_lowercase();
    assert!(head.contains("content-type: text/event-stream") && head.contains("no-store"), "{head}");
    http.puppet.events.add(owns("edge-2", 2));
    let said = listener.hears("\n\n").await;
    assert!(
        said.contains("id: 2\nevent: ownership\ndata: {\"seq\":2,"),
        "the past is not told again: {said}"
    );
    // A browser that comes back names what it heard last.
    let mut back = Listener::new(&http, "last-event-id: 1\r\n").await;
    back.hears("id: 2\n").await;
    // From before this device lost its events, or not a number at all: from now on.
    for strange in ["last-event-id: 900\r\n", "last-event-id: x\r\n"] {
        let mut strange = Listener::new(&http, strange).await;
        strange.hears("retry: 1000\n\n").await;
        http.puppet.events.add(owns("edge-3", 3));
        strange.hears("\"device\":\"edge-3\"").await;
    }
    // Silence is broken now and then.
    listener.hears("id: 4\n").await;
    listener.hears("\n\n").await;
    skip(Duration::from_secs(11)).await;
    listener.hears(": nothing new\n\n").await;
    http.stop.cancel();
    soon(http.serving).await.expect("ends");
}

#[tokio::test]
async fn only_so_many_may_listen_to_events_and_others_are_answered_all_the_same() {
    let http = Http::start().await;
    let mut listeners = Vec::new();
    for _ in 0..16 {
        let mut listener = Listener::new(&http, "").await;
        listener.hears("retry").await;
        listeners.push(listener);
    }
    let (code, body) = http.get("/v1/events").await;
    assert!(code == 503 && body["error"].as_str().is_some_and(|e| e.contains("16")), "{code} {body}");
    assert_eq!(http.get("/v1/events?last=1").await.0, 200);
    assert_eq!(http.get("/v1/status").await.0, 200);
    drop(listeners);
    let again = async { while Listener::new(&http, "").await.0.read_u8().await.is_err() {} };
    soon(again).await;
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let http = Http::start().await;
    let (code, head, body) = http.send("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    for from_elsewhere in ["http://", "https://", "src=", "@import", "url(", "innerHTML"] {
        assert!(!body.contains(from_elsewhere), "{from_elsewhere}");
    }
}

#[tokio::test]
async fn unknown_pages_and_methods_are_told_apart() {
    let http = Http::start().await;
    let (code, body) = http.get("/owners").await;
    assert_eq!(code, 404);
    assert!(body["pages"].as_array().expect("a list").contains(&"/owner".into()));
    let (code, head, body) = http
        .send("POST /owner HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}")
        .await;
    assert_eq!(code, 405);
    assert!(head.contains("allow: get, head") && body.contains("GET"), "{head}");
    http.puppet.vouch(Some("edge-1"), 17, Duration::from_secs(3600));
    let (code, _, body) = http.send("HEAD /owner HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert_eq!((code, body.as_str()), (200, ""));
}

#[tokio::test]
async fn garbage_and_oversized_requests_end_only_their_connection() {
    let http = Http::start().await;
    let huge = format!("GET /owner HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let many: String = (0..500).map(|i| format!("h{i}: x\r\n")).collect();
    let many = format!("GET /owner HTTP/1.1\r\n{many}\r\n");
    let path = format!("GET /{} HTTP/1.1\r\n\r\n", "p".repeat(1 << 17));
    let tls = "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}";
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for garbage in [huge.as_str(), &many, &path, tls, preface, "\0\0\0\0\r\n\r\n", "GET\r\n\r\n"] {
        let mut stream = http.connect().await;
        // The server may hang up while we still send.
        let _ = stream.write_all(garbage.as_bytes()).await;
        let _ = stream.shutdown().await;
        let said = soon(rest(&mut stream)).await;
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&said));
    }
    assert_eq!(http.get("/health/live").await.0, 200);
}

#[tokio::test]
async fn mute_and_slow_clients_are_sent_away_and_nobody_waits_for_them() {
    let http = Http::start().await;
    // More than there are places: those without one wait in the kernel's queue until the mute are gone.
    let mut mute = Vec::new();
    for i in 0..80 {
        let mut stream = http.connect().await;
        if i % 2 == 0 {
            stream.write_all(b"GET /owner HTTP/1.1\r\nhost:").await.expect("sends");
        }
        mute.push(stream);
    }
    skip(Duration::from_secs(6)).await;
    assert_eq!(soon(http.get("/health/live")).await.0, 200);
    // Those who waited for a place have one now.
    skip(Duration::from_secs(6)).await;
    for stream in &mut mute {
        let said = soon(rest(stream)).await;
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&said));
    }
}

#[tokio::test]
async fn leaving_ends_open_connections() {
    let http = Http::start().await;
    let mut idle = http.connect().await;
    let mut half = http.connect().await;
    idle.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sends");
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.expect("answers");
    half.write_all(b"GET /").await.expect("sends");
    http.stop.cancel();
    soon(http.serving).await.expect("no panic");
    rest(&mut idle).await;
    rest(&mut half).await;
}
