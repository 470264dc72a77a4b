//! The sidecar's own link against the emulated hub's broker, over real TLS: what Microsoft's own SDK is tried with there
//! (`device_sdk.rs`), this client is tried with here.

use std::{net::TcpListener, sync::Arc, time::Duration};

use quorate::{
    clock::BootClock,
    condition::Condition,
    emulator::{Emulator, Options},
    hub::{
        Change, Error, Target,
        edge::Identity,
        link::{Connected, Event, Module as _},
        memory::Trouble,
        mqtt::client::{Client, Line},
        twin::Properties,
    },
    id::DeviceId,
};
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(5);

struct Bench {
    emulator: Emulator,
    folder: tempfile::TempDir,
    string: String,
}

fn loopback() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

fn target() -> Target {
    Target::module("edge-1", "quorate")
}

fn object(json: Value) -> Properties {
    match json {
        Value::Object(map) => map,
        other => panic!("{other}"),
    }
}

impl Bench {
    fn start() -> Bench {
        let options = Options {
            host: "plant.azure-devices.net".into(),
            names: vec!["127.0.0.1".into()],
            devices: vec![DeviceId::new("edge-1").expect("a name")],
            ..Options::default()
        };
        let emulator =
            Emulator::start(loopback(), loopback(), &options, Arc::new(BootClock)).expect("starts");
        emulator.create_module(&target());
        let address = emulator.serve_mqtt(loopback()).expect("serves");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), emulator.ca_pem()).expect("writes");
        let string = emulator.device_connection_string(&target(), Some(&address.to_string()));
        Bench { emulator, folder, string }
    }

    fn client(&self, string: &str) -> Client {
        let line = Line {
            identity: Identity::parse(string).expect("parses"),
            inputs: false,
            ca_file: Some(self.folder.path().join("ca.pem")),
            timeout: TIMEOUT,
        };
        Client::new(line, Arc::new(BootClock))
    }

    async fn refused(&self, string: &str) -> Error {
        self.client(string).connect().await.err().expect("is refused")
    }
}

/// Lets the link work while something else goes on.
async fn meanwhile<T>(connected: &mut Connected, other: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        ended = &mut connected.runs => panic!("the link has ended: {ended:?}"),
        done = other => done,
    }
}

#[tokio::test]
async fn the_twin_is_read_changed_and_watched() {
    let bench = Bench::start();
    let client = bench.client(&bench.string);
    client.knock().await.expect("somebody is there");
    let mut connected = client.connect().await.expect("connects");
    let link = connected.link.clone();
    let patch = object(json!({"quorate": {"epoch": 3, "members": ["edge.1"]}}));
    let version = meanwhile(&mut connected, link.report(&patch)).await.expect("is taken");
    assert_eq!(version, Some(2));
    let twin = meanwhile(&mut connected, link.get_twin()).await.expect("a twin");
    assert_eq!((&twin.reported, twin.reported_version, twin.desired_version), (&patch, 2, 1));
    let change = Change::from_json(&json!({"properties": {"desired": {"quorate": {"pause": 1}}}}));
    bench.emulator.meddle(&target(), &change.expect("a change")).expect("is taken");
    let mut events = std::mem::replace(&mut connected.events, tokio::sync::mpsc::channel(1).1);
    let event = meanwhile(&mut connected, events.recv()).await;
    let pushed = object(json!({"quorate": {"pause": 1}}));
    assert_eq!(event, Some(Event::Desired { patch: pushed, version: 2 }));
    // The hub's limits, and its throttle.
    let deep = object(json!({"quorate": "x".repeat(5000)}));
    let refused = meanwhile(&mut connected, link.report(&deep)).await;
    assert!(matches!(refused, Err(Error::Rejected { status: 400, .. })), "{refused:?}");
    bench.emulator.trouble(Trouble::Throttled { retry_after_s: None });
    let refused = meanwhile(&mut connected, link.report(&patch)).await;
    assert!(matches!(refused, Err(Error::Throttled { status: 429, .. })), "{refused:?}");
}

#[tokio::test]
async fn refusals_are_named_and_hold_no_secret() {
    let bench = Bench::start();
    let (front, key) = bench.string.split_once("SharedAccessKey=").expect("a key");
    let key = key.split(';').next().expect("a key");
    let wrong = bench.string.replace(key, "d3Jvbmc=");
    let error = bench.refused(&wrong).await;
    assert!(matches!(error, Error::Unauthorized { status: 401, .. }), "{error:?}");
    assert!(error.to_string().contains("wall clock"), "{error}");
    let stranger = bench.string.replace("ModuleId=quorate", "ModuleId=nobody");
    assert!(matches!(bench.refused(&stranger).await, Error::Unauthorized { .. }));
    // The hub has one answer for all of these, so all of them are said.
    let edge = DeviceId::new("edge-1").expect("a name");
    bench.emulator.enable_device(&edge, false);
    let error = bench.refused(&bench.string).await;
    assert_eq!(error.condition(), Some(Condition::HubUnauthorized));
    for cause in ["key", "wall clock", "edge-1/quorate", "deleted", "disabled", "made anew"] {
        assert!(error.to_string().contains(cause), "{cause} in {error}");
    }
    bench.emulator.enable_device(&edge, true);
    std::fs::write(bench.folder.path().join("ca.pem"), Bench::start().emulator.ca_pem()).expect("writes");
    let error = bench.refused(&bench.string).await;
    assert!(matches!(error, Error::Untrusted(_)), "{error:?}");
    std::fs::write(bench.folder.path().join("ca.pem"), "nothing").expect("writes");
    assert!(matches!(bench.refused(&bench.string).await, Error::Untrusted(_)));
    assert!(!front.contains(key) && !format!("{error:?}").contains(key));
    let closed = loopback().local_addr().expect("an address");
    let nobody = bench.string.rsplit_once("GatewayHostName=").expect("a gateway").0.to_owned();
    let nobody = format!("{nobody}GatewayHostName={closed}");
    std::fs::write(bench.folder.path().join("ca.pem"), bench.emulator.ca_pem()).expect("writes");
    assert!(matches!(bench.client(&nobody).knock().await, Err(Error::Unreachable(_))));
    assert!(matches!(bench.refused(&nobody).await, Error::Unreachable(_)));
    bench.client(&bench.string).connect().await.expect("and the right one is let in");
}

#[tokio::test]
async fn the_newest_link_ends_the_one_before_and_an_outage_ends_all() {
    let bench = Bench::start();
    let first = bench.client(&bench.string).connect().await.expect("connects");
    let mut second = bench.client(&bench.string).connect().await.expect("connects");
    let ended = tokio::time::timeout(TIMEOUT, first.runs).await.expect("ends");
    assert!(matches!(ended, Err(Error::Unreachable(_))), "{ended:?}");
    let link = second.link.clone();
    meanwhile(&mut second, link.get_twin()).await.expect("a twin");
    bench.emulator.trouble(Trouble::Unreachable);
    let ended = tokio::time::timeout(TIMEOUT, second.runs).await.expect("ends");
    assert!(matches!(ended, Err(Error::Unreachable(_))), "{ended:?}");
}
