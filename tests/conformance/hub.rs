//! The hub's rules, once: against the hub in memory, and against the REST client and the emulator over real TLS.

use std::{
    net::TcpListener,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering},
    time::Duration,
};

use quorate::{
    clock::{BootClock, Clock, Moment},
    condition::Condition,
    emulator::{Emulator, Options},
    hub::{
        self, Change, Error, Retry, Settings,
        memory::{MemoryHub, Trouble},
        rest::RestHub,
        sas::Secret,
        store::Target,
    },
    id::DeviceId,
};
use serde_json::{Value, json};

pub(super) fn device(name: &str) -> DeviceId {
    DeviceId::new(name).expect("a name")
}

pub(super) fn change(json: Value) -> Change {
    Change::from_json(&json).expect("a change")
}

pub(super) fn loopback() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

/// An emulator with its authority in a file.
pub(super) struct Site {
    pub(super) emulator: Emulator,
    pub(super) folder: tempfile::TempDir,
}

impl Site {
    pub(super) fn start(devices: &[&str]) -> Site {
        let options = Options { devices: devices.iter().map(|d| device(d)).collect(), ..Options::default() };
        let emulator =
            Emulator::start(loopback(), loopback(), &options, Arc::new(BootClock)).expect("starts");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), emulator.ca_pem()).expect("writes");
        Site { emulator, folder }
    }

    pub(super) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub(super) fn settings(&self) -> Settings {
        Settings {
            connection_string: Some(Secret::from(self.emulator.service_connection_string())),
            ca_file: Some(self.ca_file()),
            timeout: Duration::from_secs(30),
            ..Settings::default()
        }
    }

    fn hub(&self) -> hub::Handle {
        Arc::new(RestHub::open(&self.settings(), Arc::new(BootClock)).expect("opens"))
    }
}

/// What the suite needs of a hub beside the door: another hand on it, and its switches.
trait Bench {
    fn hub(&self) -> hub::Handle;
    fn create(&self, device: &DeviceId);
    fn delete(&self, device: &DeviceId);
    fn meddle(&self, device: &DeviceId, change: &Change);
    fn trouble(&self, trouble: Trouble);
    fn writes(&self) -> usize;
}

impl Bench for MemoryHub {
    fn hub(&self) -> hub::Handle {
        Arc::new(self.clone())
    }
    fn create(&self, device: &DeviceId) {
        MemoryHub::create(self, device);
    }
    fn delete(&self, device: &DeviceId) {
        MemoryHub::delete(self, device);
    }
    fn meddle(&self, device: &DeviceId, change: &Change) {
        assert!(MemoryHub::meddle(self, device, change));
    }
    fn trouble(&self, trouble: Trouble) {
        MemoryHub::trouble(self, trouble);
    }
    fn writes(&self) -> usize {
        self.log().len()
    }
}

impl Bench for Site {
    fn hub(&self) -> hub::Handle {
        Site::hub(self)
    }
    fn create(&self, device: &DeviceId) {
        self.emulator.create_device(device);
    }
    fn delete(&self, device: &DeviceId) {
        self.emulator.delete_device(device);
    }
    fn meddle(&self, device: &DeviceId, change: &Change) {
        self.emulator.meddle(&Target::device(device.as_str()), change).expect("accepted");
    }
    fn trouble(&self, trouble: Trouble) {
        self.emulator.trouble(trouble);
    }
    fn writes(&self) -> usize {
        self.emulator.log().len()
    }
}

async fn twins_are_merged_versioned_and_guarded(bench: &dyn Bench) {
    let (hub, d) = (bench.hub(), device("edge-1"));
    bench.create(&d);
    let first = hub.get_twin(&d).await.expect("reads");
    assert_eq!((first.device.as_str(), first.version, first.desired.version), ("edge-1", 2, 1));

    let write = change(json!({"properties": {"desired": {"a": {"x": 1, "y": [1, 2]}, "b": "t"}}}));
    let second = hub.patch_twin(&d, &write, Some(&first.etag)).await.expect("patches");
    assert_ne!(second.etag, first.etag);
    assert_eq!((second.version, second.desired.version, second.reported.version), (3, 2, 1));

    // Stale: refused, and nothing is changed.
    let stale = hub.patch_twin(&d, &write, Some(&first.etag)).await.expect_err("is stale");
    assert_eq!(stale, Error::Changed);
    assert_eq!(stale.retry(), Retry::Reread);
    assert_eq!(hub.get_twin(&d).await.expect("reads"), second);

    // Without an etag: written in any case. Nulls delete, absent keys stay, scalars replace.
    let third =
        change(json!({"tags": {"site": "s"}, "properties": {"desired": {"a": {"x": null}, "b": {"c": 2}}}}));
    let third = hub.patch_twin(&d, &third, None).await.expect("patches");
    assert_eq!(Value::Object(third.desired.values.clone()), json!({"a": {"y": [1, 2]}, "b": {"c": 2}}));
    assert_eq!(Value::Object(third.tags), json!({"site": "s"}));

    // Anybody's write makes an etag stale.
    bench.meddle(&d, &change(json!({"tags": {"other": true}})));
    assert_eq!(hub.patch_twin(&d, &write, Some(&third.etag)).await, Err(Error::Changed));
    assert_eq!(bench.writes(), 3);
}

async fn limits_are_refused_for_good(bench: &dyn Bench) {
    let (hub, d) = (bench.hub(), device("edge-1"));
    bench.create(&d);
    let before = hub.get_twin(&d).await.expect("reads");
    for bad in [
        json!({"properties": {"desired": {"s": "x".repeat(5000)}}}),
        json!({"properties": {"desired": {"n": 1_u64 << 52}}}),
        json!({"properties": {"desired": {"a b": 1}}}),
        json!({"tags": {"a": "x".repeat(4096), "b": "x".repeat(4096)}}),
    ] {
        let error = hub.patch_twin(&d, &change(bad), None).await.expect_err("is refused");
        assert!(matches!(error, Error::Rejected { status: 400, .. }), "{error:?}");
        assert_eq!(error.retry(), Retry::SkipDevice);
    }
    assert_eq!(hub.get_twin(&d).await.expect("reads"), before);
}

async fn a_missing_device_is_told_from_a_missing_hub(bench: &dyn Bench) {
    let (hub, here, gone) = (bench.hub(), device("edge-1"), device("edge-9%$'"));
    bench.create(&here);
    bench.create(&gone);
    hub.get_twin(&gone).await.expect("reads");
    bench.delete(&gone);
    for error in [
        hub.get_twin(&gone).await.expect_err("is gone"),
        hub.patch_twin(&gone, &Change::default(), None).await.expect_err("is gone"),
    ] {
        assert_eq!(error, Error::DeviceMissing { device: gone.to_string() });
        assert_eq!(error.condition(), Some(Condition::HubDeviceMissing));
    }
    hub.get_twin(&here).await.expect("the others are not concerned");
}

async fn every_trouble_has_its_name(bench: &dyn Bench) {
    let (hub, d) = (bench.hub(), device("edge-1"));
    bench.create(&d);
    hub.get_twin(&d).await.expect("reads");

    bench.trouble(Trouble::Throttled { retry_after_s: Some(7) });
    let error = hub.get_twin(&d).await.expect_err("is throttled");
    assert_eq!(error, Error::Throttled { status: 429, retry_after: Some(Duration::from_secs(7)) });
    assert_eq!(error.condition(), Some(Condition::HubThrottled));
    bench.trouble(Trouble::Throttled { retry_after_s: None });
    let error = hub.get_twin(&d).await.expect_err("is throttled");
    assert_eq!(error, Error::Throttled { status: 429, retry_after: None });

    for status in [500, 503] {
        bench.trouble(Trouble::Failing { status });
        let error = hub.patch_twin(&d, &Change::default(), None).await.expect_err("fails");
        assert!(matches!(error, Error::Unavailable { status: s, .. } if s == status), "{error:?}");
        assert_eq!(error.condition(), Some(Condition::HubUnreachable));
    }

    bench.trouble(Trouble::Unreachable);
    let error = hub.get_twin(&d).await.expect_err("is away");
    assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
    bench.trouble(Trouble::None);
    hub.get_twin(&d).await.expect("is back");

    bench.trouble(Trouble::Slow { delay_ms: 50 });
    hub.get_twin(&d).await.expect("is slow, but not too slow");
    assert_eq!(bench.writes(), 0, "nothing was written while in trouble");
}

async fn a_lost_answer_may_hide_a_write(bench: &dyn Bench) {
    let (hub, d) = (bench.hub(), device("edge-1"));
    bench.create(&d);
    let before = hub.get_twin(&d).await.expect("reads");
    bench.trouble(Trouble::DropAnswer);
    let write = change(json!({"properties": {"desired": {"a": 1}}}));
    let error = hub.patch_twin(&d, &write, Some(&before.etag)).await.expect_err("no answer");
    assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
    let after = hub.get_twin(&d).await.expect("reads are answered");
    assert_eq!(Value::Object(after.desired.values), json!({"a": 1}));
    assert_eq!(bench.writes(), 1, "it was tried once and not again");
}

macro_rules! both {
    ($($rule:ident)*) => {
        mod memory {
            use super::*;
            $(#[tokio::test]
            async fn $rule() {
                super::$rule(&MemoryHub::new(Arc::new(BootClock))).await;
            })*
        }
        mod rest_and_emulator {
            use super::*;
            $(#[tokio::test]
            async fn $rule() {
                let site = Site::start(&[]);
                super::$rule(&site).await;
                site.emulator.stop().await;
            })*
        }
    };
}

both! {
    twins_are_merged_versioned_and_guarded
    limits_are_refused_for_good
    a_missing_device_is_told_from_a_missing_hub
    every_trouble_has_its_name
    a_lost_answer_may_hide_a_write
}

/// A wall clock that a test can set; the boot clock is the real one.
#[derive(Debug)]
struct Wall(AtomicU64);

impl Clock for Wall {
    fn now(&self) -> Moment {
        BootClock.now()
    }
    fn wall_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_wrong_wall_clock_is_named_and_mends_itself() {
    let site = Site::start(&["edge-1"]);
    let ten_years = 10 * 365 * 24 * 3600 * 1000;
    let wall = Arc::new(Wall(AtomicU64::new(BootClock.wall_ms() - ten_years)));
    let hub: hub::Handle = Arc::new(RestHub::open(&site.settings(), wall.clone()).expect("opens"));
    let error = hub.get_twin(&device("edge-1")).await.expect_err("the token has long expired");
    assert_eq!(error.condition(), Some(Condition::HubUnauthorized));
    assert!(error.to_string().contains("s behind the hub's"), "{error}");
    // Set right: the next token is good. Set wrong again: the token in hand still is.
    wall.0.store(BootClock.wall_ms(), Ordering::SeqCst);
    hub.get_twin(&device("edge-1")).await.expect("reads");
    wall.0.store(1, Ordering::SeqCst);
    hub.get_twin(&device("edge-1")).await.expect("reads");
}

#[tokio::test]
async fn a_wrong_key_and_a_missing_right_are_refused_without_telling_the_key() {
    let site = Site::start(&["edge-1"]);
    let good = site.emulator.service_connection_string();
    let key = good.split("SharedAccessKey=").nth(1).expect("a key").to_owned();
    let wrong = good.replace(&key, "d3Jvbmc=");
    let settings = Settings { connection_string: Some(Secret::from(wrong)), ..site.settings() };
    let hub = RestHub::open(&settings, Arc::new(BootClock)).expect("opens");
    let error = hub::Hub::get_twin(&hub, &device("edge-1")).await.expect_err("is refused");
    assert!(matches!(error, Error::Unauthorized { status: 401, .. }), "{error:?}");
    let shown = format!("{error} {error:?} {hub:?} {settings:?} {:?}", site.settings());
    assert!(!shown.contains("d3Jvbmc=") && !shown.contains(&key) && !shown.contains("sig="), "{shown}");
}

#[tokio::test]
async fn a_rotated_key_is_found_in_its_file() {
    let site = Site::start(&["edge-1"]);
    let file = site.folder.path().join("connection-string");
    let good = site.emulator.service_connection_string();
    let (front, _) = good.split_once("SharedAccessKey=").expect("a key");
    std::fs::write(&file, format!("{front}SharedAccessKey=d3Jvbmc=")).expect("writes");
    let settings =
        Settings { connection_string: None, connection_string_file: Some(file.clone()), ..site.settings() };
    let hub: hub::Handle = Arc::new(RestHub::open(&settings, Arc::new(BootClock)).expect("opens"));
    // What is no connection string, or another hub's, changes nothing.
    for text in ["", "HostName=elsewhere;SharedAccessKeyName=service;SharedAccessKey=d3Jvbmc=", good.as_str()]
    {
        std::fs::write(&file, text).expect("writes");
        let error = hub.get_twin(&device("edge-1")).await.expect_err("is still the wrong key");
        assert!(matches!(error, Error::Unauthorized { status: 401, .. }), "{error:?}");
    }
    hub.get_twin(&device("edge-1")).await.expect("reads with the new key");
}

#[tokio::test]
async fn faults_in_the_settings_come_all_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("empty.pem"), "").expect("writes");
    std::fs::write(path("string"), "SharedAccessKey=c2VjcmV0").expect("writes");
    let open = |settings: Settings| {
        RestHub::open(&settings, Arc::new(BootClock)).map(|_| ()).expect_err("is refused")
    };
    let both = Settings {
        connection_string_file: Some(path("missing")),
        ca_file: Some(path("empty.pem")),
        ..Settings::default()
    };
    let keys: Vec<_> = open(both).into_iter().map(|fault| fault.setting).collect();
    assert_eq!(keys, ["connection_string_file", "ca_file"]);
    let bad = Settings {
        connection_string_file: Some(path("string")),
        ca_file: Some(path("missing")),
        ..Settings::default()
    };
    let faults = open(bad);
    assert_eq!(faults.len(), 2);
    assert!(!format!("{faults:?}").contains("c2VjcmV0"));
}

#[tokio::test]
async fn an_address_instead_of_a_name_is_served_too() {
    let options = Options { devices: vec![device("edge-1")], host: "127.0.0.1".into(), ..Options::default() };
    let emulator = Emulator::start(loopback(), loopback(), &options, Arc::new(BootClock)).expect("starts");
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("ca.pem"), emulator.ca_pem()).expect("writes");
    let site = Site { emulator, folder };
    site.hub().get_twin(&device("edge-1")).await.expect("reads");
    for host in ["", "a b", "x/y", "user@x"] {
        let options = Options { host: host.into(), ..Options::default() };
        assert!(Emulator::start(loopback(), loopback(), &options, Arc::new(BootClock)).is_err(), "{host:?}");
    }
}

#[tokio::test]
async fn garbage_half_open_and_oversized_requests_hurt_nobody_else() {
    use std::io::Write;
    let site = Site::start(&["edge-1"]);
    let hub = site.hub();
    let dial = || std::net::TcpStream::connect(site.emulator.address()).expect("connects");
    let half_open: Vec<_> = (0..50).map(|_| dial()).collect();
    let mut garbage = dial();
    garbage.write_all(&[0x16, 0x03, 0x01, 0xff, 0xff, 0x00, 0x41, 0x41]).expect("writes");
    hub.get_twin(&device("edge-1")).await.expect("is served");
    let big = json!({"properties": {"desired": {"a": "x".repeat(400_000)}}});
    let error = hub.patch_twin(&device("edge-1"), &change(big), None).await.expect_err("is too large");
    assert!(matches!(error, Error::Rejected { status: 413, .. } | Error::Unreachable(_)), "{error:?}");
    hub.get_twin(&device("edge-1")).await.expect("is served");
    drop(half_open);
    site.emulator.stop().await;
}

#[tokio::test]
async fn the_switches_work_while_the_hub_is_away() {
    let site = Site::start(&["edge-1"]);
    let admin = format!("http://{}/emulator", site.emulator.admin_address());
    let client = plain_http(&admin);
    let hub = site.hub();
    let answer = client.post("trouble", r#"{"kind":"unreachable"}"#).await;
    assert!(answer.contains("unreachable"), "{answer}");
    assert!(matches!(hub.get_twin(&device("edge-1")).await, Err(Error::Unreachable(_))));
    assert!(client.post("trouble", r#"{"kind":"nonsense"}"#).await.contains("error"));
    assert!(client.post("trouble", r#"{"kind":"failing","status":200}"#).await.contains("error"));
    assert!(client.get("trouble").await.contains("unreachable"));
    client.post("trouble", r#"{"kind":"none"}"#).await;
    hub.patch_twin(&device("edge-1"), &change(json!({"tags": {"a": 1}})), None).await.expect("patches");
    let log = client.get("log").await;
    assert!(log.contains(r#""device":"edge-1""#) && log.contains(r#""number":1"#), "{log}");
    assert!(client.get("log?after=1").await.ends_with("[]"));
    assert!(client.get("twins").await.contains(r#""tags":{"a":1}"#));
}

/// Plain HTTP by hand: enough for the switches.
struct Plain {
    address: String,
    path: String,
}

fn plain_http(base: &str) -> Plain {
    let rest = base.strip_prefix("http://").expect("plain HTTP");
    let (address, path) = rest.split_once('/').expect("a path");
    Plain { address: address.to_owned(), path: format!("/{path}") }
}

impl Plain {
    async fn send(&self, request: String) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let stream = std::net::TcpStream::connect(&self.address).expect("connects");
        stream.set_nonblocking(true).expect("a socket");
        let mut stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("reads");
        answer
    }

    async fn get(&self, what: &str) -> String {
        self.send(format!("GET {}/{what} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", self.path)).await
    }

    async fn post(&self, what: &str, body: &str) -> String {
        let length = body.len();
        self.send(format!(
            "POST {}/{what} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}",
            self.path
        ))
        .await
    }
}
