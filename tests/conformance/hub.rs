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
        throttle::Operation,
        trouble::{Rule, Scope},
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
        let devices = devices.iter().map(|d| device(d)).collect();
        Site::start_with(&Options { devices, ..Options::default() }, Arc::new(BootClock))
    }

    pub(super) fn start_with(options: &Options, clock: Arc<dyn Clock>) -> Site {
        let emulator = Emulator::start(loopback(), loopback(), options, clock).expect("starts");
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
    fn add_trouble(&self, rule: Rule);
    fn rollback(&self, by: Duration);
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
    fn add_trouble(&self, rule: Rule) {
        MemoryHub::add_trouble(self, rule).expect("is on");
    }
    fn rollback(&self, by: Duration) {
        assert!(MemoryHub::rollback(self, by).lost > 0);
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
    fn add_trouble(&self, rule: Rule) {
        self.emulator.add_trouble(rule).expect("is on");
    }
    fn rollback(&self, by: Duration) {
        assert!(self.emulator.rollback(by) > 0);
    }
    fn writes(&self) -> usize {
        self.emulator.log().len()
    }
}

async fn twins_are_merged_versioned_and_guarded(bench: &dyn Bench) {
    let (hub, d) = (bench.hub(), device("edge-1"));
    bench.create(&d);
    let first = hub.get_twin(&(&d).into()).await.expect("reads");
    assert_eq!((first.device.as_str(), first.version, first.desired.version), ("edge-1", 2, 1));

    let write = change(json!({"properties": {"desired": {"a": {"x": 1, "y": [1, 2]}, "b": "t"}}}));
    let second = hub.patch_twin(&(&d).into(), &write, Some(&first.etag)).await.expect("patches");
    assert_ne!(second.etag, first.etag);
    assert_eq!((second.version, second.desired.version, second.reported.version), (3, 2, 1));

    // Stale: refused, and nothing is changed.
    let stale = hub.patch_twin(&(&d).into(), &write, Some(&first.etag)).await.expect_err("is stale");
    assert_eq!(stale, Error::Changed);
    assert_eq!(stale.retry(), Retry::Reread);
    assert_eq!(hub.get_twin(&(&d).into()).await.expect("reads"), second);

    // Without an etag: written in any case. Nulls delete, absent keys stay, scalars replace.
    let third =
        change(json!({"tags": {"site": "s"}, "properties": {"desired": {"a": {"x": null}, "b": {"c": 2}}}}));
    let third = hub.patch_twin(&(&d).into(), &third, None).await.expect("patches");
    assert_eq!(Value::Object(third.desired.values.clone()), json!({"a": {"y": [1, 2]}, "b": {"c": 2}}));
    assert_eq!(Value::Object(third.tags), json!({"site": "s"}));

    // Anybody's write makes an etag stale.
    bench.meddle(&d, &change(json!({"tags": {"other": true}})));
    assert_eq!(hub.patch_twin(&(&d).into(), &write, Some(&third.etag)).await, Err(Error::Changed));
    assert_eq!(bench.writes(), 3);
}

async fn limits_are_refused_for_good(bench: &dyn Bench) {
    let (hub, d) = (bench.hub(), device("edge-1"));
    bench.create(&d);
    let before = hub.get_twin(&(&d).into()).await.expect("reads");
    for bad in [
        json!({"properties": {"desired": {"s": "x".repeat(5000)}}}),
        json!({"properties": {"desired": {"n": 1_u64 << 52}}}),
        json!({"properties": {"desired": {"a b": 1}}}),
        json!({"tags": {"a": "x".repeat(4096), "b": "x".repeat(4096)}}),
    ] {
        let error = hub.patch_twin(&(&d).into(), &change(bad), None).await.expect_err("is refused");
        assert!(matches!(error, Error::Rejected { status: 400, .. }), "{error:?}");
        assert_eq!(error.retry(), Retry::SkipDevice);
    }
    assert_eq!(hub.get_twin(&(&d).into()).await.expect("reads"), before);
}

async fn a_missing_device_is_told_from_a_missing_hub(bench: &dyn Bench) {
    let (hub, here, gone) = (bench.hub(), device("edge-1"), device("edge-9%$'"));
    bench.create(&here);
    bench.create(&gone);
    hub.get_twin(&(&gone).into()).await.expect("reads");
    bench.delete(&gone);
    for error in [
        hub.get_twin(&(&gone).into()).await.expect_err("is gone"),
        hub.patch_twin(&(&gone).into(), &Change::default(), None).await.expect_err("is gone"),
    ] {
        assert_eq!(error, Error::DeviceMissing { device: gone.to_string() });
        assert_eq!(error.condition(), Some(Condition::HubDeviceMissing));
    }
    hub.get_twin(&(&here).into()).await.expect("the others are not concerned");
}

async fn every_trouble_has_its_name(bench: &dyn Bench) {
    let (hub, d) = (bench.hub(), device("edge-1"));
    bench.create(&d);
    hub.get_twin(&(&d).into()).await.expect("reads");

    bench.trouble(Trouble::Throttled { retry_after_s: Some(7) });
    let error = hub.get_twin(&(&d).into()).await.expect_err("is throttled");
    assert_eq!(error, Error::Throttled { status: 429, retry_after: Some(Duration::from_secs(7)) });
    assert_eq!(error.condition(), Some(Condition::HubThrottled));
    bench.trouble(Trouble::Throttled { retry_after_s: None });
    let error = hub.get_twin(&(&d).into()).await.expect_err("is throttled");
    assert_eq!(error, Error::Throttled { status: 429, retry_after: None });

    for status in [500, 503] {
        bench.trouble(Trouble::Failing { status });
        let error = hub.patch_twin(&(&d).into(), &Change::default(), None).await.expect_err("fails");
        assert!(matches!(error, Error::Unavailable { status: s, .. } if s == status), "{error:?}");
        assert_eq!(error.condition(), Some(Condition::HubUnreachable));
    }

    bench.trouble(Trouble::Quota);
    let error = hub.get_twin(&(&d).into()).await.expect_err("has had its day");
    assert!(matches!(error, Error::Throttled { status: 403, .. }), "{error:?}");
    for trouble in [Trouble::TokensExpired, Trouble::ClockSkew { ahead_s: 99_999 }] {
        bench.trouble(trouble);
        let error = hub.get_twin(&(&d).into()).await.expect_err("is refused");
        assert!(matches!(error, Error::Unauthorized { status: 401, .. }), "{error:?}");
    }
    bench.trouble(Trouble::ClockSkew { ahead_s: 60 });
    hub.get_twin(&(&d).into()).await.expect("a minute is no matter");
    bench.trouble(Trouble::Unreachable);
    let error = hub.get_twin(&(&d).into()).await.expect_err("is away");
    assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
    bench.trouble(Trouble::None);
    hub.get_twin(&(&d).into()).await.expect("is back");

    bench.trouble(Trouble::Slow { delay_ms: 50 });
    hub.get_twin(&(&d).into()).await.expect("is slow, but not too slow");
    assert_eq!(bench.writes(), 0, "nothing was written while in trouble");
}

async fn a_failover_loses_writes(bench: &dyn Bench, clock: &Hands) {
    let (hub, d) = (bench.hub(), device("edge-1"));
    clock.forward(1000);
    bench.create(&d);
    let write = |n: u64| change(json!({"properties": {"desired": {"n": n}}}));
    let kept = hub.patch_twin(&(&d).into(), &write(1), None).await.expect("patches");
    clock.forward(100);
    let lost = hub.patch_twin(&(&d).into(), &write(2), Some(&kept.etag)).await.expect("patches");
    bench.rollback(Duration::from_secs(50));
    // A failover cuts every connection, which whoever comes next may notice.
    let after = match hub.get_twin(&(&d).into()).await {
        Err(Error::Unreachable(_)) => hub.get_twin(&(&d).into()).await,
        other => other,
    };
    let after = after.expect("reads");
    assert_eq!((&after.etag, after.version, &after.desired), (&kept.etag, kept.version, &kept.desired));
    // Another write takes the lost one's etag: whoever still holds it would overwrite this without noticing.
    let other = hub.patch_twin(&(&d).into(), &write(3), Some(&kept.etag)).await.expect("patches");
    assert_eq!((&other.etag, other.version), (&lost.etag, lost.version));
    assert_ne!(other.desired, lost.desired);
}

#[tokio::test]
async fn a_failover_of_either_hub_loses_writes_and_gives_their_etags_out_again() {
    let clock = Arc::new(Hands::default());
    a_failover_loses_writes(&MemoryHub::new(clock.clone()), &clock).await;
    let clock = Arc::new(Hands::default());
    let site = Site::start_with(&Options::default(), clock.clone());
    a_failover_loses_writes(&site, &clock).await;
    site.emulator.stop().await;
}

async fn a_trouble_has_a_scope_and_a_chance(bench: &dyn Bench) {
    let (hub, one, two) = (bench.hub(), device("edge-1"), device("edge-2"));
    bench.create(&one);
    bench.create(&two);
    let scope = Scope { devices: vec!["edge-1".into()], operations: vec![Operation::TwinRead] };
    let half = Rule { scope, probability: 0.5, ..Trouble::Failing { status: 500 }.into() };
    bench.add_trouble(half);
    let mut failed = 0;
    for _ in 0..40 {
        failed += usize::from(hub.get_twin(&(&one).into()).await.is_err());
        hub.get_twin(&(&two).into()).await.expect("is spared");
    }
    hub.patch_twin(&(&one).into(), &change(json!({"tags": {"a": 1}})), None).await.expect("is spared");
    assert!((8..=32).contains(&failed), "{failed} of 40 at one half");
}

async fn a_lost_answer_may_hide_a_write(bench: &dyn Bench) {
    let (hub, d) = (bench.hub(), device("edge-1"));
    bench.create(&d);
    let before = hub.get_twin(&(&d).into()).await.expect("reads");
    bench.trouble(Trouble::DropAnswer);
    let write = change(json!({"properties": {"desired": {"a": 1}}}));
    let error = hub.patch_twin(&(&d).into(), &write, Some(&before.etag)).await.expect_err("no answer");
    assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
    let after = hub.get_twin(&(&d).into()).await.expect("reads are answered");
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
    a_trouble_has_a_scope_and_a_chance
    a_lost_answer_may_hide_a_write
}

/// A clock that a test moves: the boot clock stands still in between, the wall clock is the real one and as far ahead.
#[derive(Debug, Default)]
pub(super) struct Hands(AtomicU64);

impl Hands {
    pub(super) fn forward(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for Hands {
    fn now(&self) -> Moment {
        Moment::from_nanos(self.0.load(Ordering::SeqCst) * 1_000_000_000)
    }
    fn wall_ms(&self) -> u64 {
        BootClock.wall_ms() + self.0.load(Ordering::SeqCst) * 1000
    }
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
    let error = hub.get_twin(&Target::device("edge-1")).await.expect_err("the token has long expired");
    assert_eq!(error.condition(), Some(Condition::HubUnauthorized));
    assert!(error.to_string().contains("s behind the hub's"), "{error}");
    // Set right: the next token is good. Set wrong again: the token in hand still is.
    wall.0.store(BootClock.wall_ms(), Ordering::SeqCst);
    hub.get_twin(&Target::device("edge-1")).await.expect("reads");
    wall.0.store(1, Ordering::SeqCst);
    hub.get_twin(&Target::device("edge-1")).await.expect("reads");
}

#[tokio::test]
async fn a_wrong_key_and_a_missing_right_are_refused_without_telling_the_key() {
    let site = Site::start(&["edge-1"]);
    let good = site.emulator.service_connection_string();
    let key = good.split("SharedAccessKey=").nth(1).expect("a key").to_owned();
    let wrong = good.replace(&key, "d3Jvbmc=");
    let settings = Settings { connection_string: Some(Secret::from(wrong)), ..site.settings() };
    let hub = RestHub::open(&settings, Arc::new(BootClock)).expect("opens");
    let error = hub::Hub::get_twin(&hub, &Target::device("edge-1")).await.expect_err("is refused");
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
        let error = hub.get_twin(&Target::device("edge-1")).await.expect_err("is still the wrong key");
        assert!(matches!(error, Error::Unauthorized { status: 401, .. }), "{error:?}");
    }
    hub.get_twin(&Target::device("edge-1")).await.expect("reads with the new key");
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
    site.hub().get_twin(&Target::device("edge-1")).await.expect("reads");
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
    hub.get_twin(&Target::device("edge-1")).await.expect("is served");
    let big = json!({"properties": {"desired": {"a": "x".repeat(400_000)}}});
    let error =
        hub.patch_twin(&Target::device("edge-1"), &change(big), None).await.expect_err("is too large");
    assert!(matches!(error, Error::Rejected { status: 413, .. } | Error::Unreachable(_)), "{error:?}");
    hub.get_twin(&Target::device("edge-1")).await.expect("is served");
    drop(half_open);
    site.emulator.stop().await;
}
