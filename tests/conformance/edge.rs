//! An edgeHub packet by packet, and the runtime's sockets: what is acknowledged and not yet passed on, what is lost, and what a
//! module sees while the cloud is away.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use quorate::{
    clock::{BootClock, Clock},
    emulator::{EdgeHub, EdgeOptions, Emulator, Options},
    hub::{
        memory::Trouble,
        mqtt::packet::{Accepted, Packet},
        store::Target,
    },
};
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::{
    edge_http::ask,
    hub::{change, device, loopback},
    mqtt_client::{Client, connect, within},
};

const RES: &str = "$iothub/twin/res/#";
const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/#";
const HUB: &str = "hub1.azure-devices.net";

/// A device with its edgeHub and the modules `ha` and `work`.
struct Bench {
    emulator: Emulator,
    edge: EdgeHub,
    folder: tempfile::TempDir,
}

fn module(name: &str) -> Target {
    Target::module("edge-1", name)
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

impl Bench {
    fn start(options: EdgeOptions) -> Bench {
        let hub = Options { host: HUB.into(), devices: vec![device("edge-2")], ..Options::default() };
        let emulator = Emulator::start(loopback(), loopback(), &hub, Arc::new(BootClock)).expect("starts");
        let edge = emulator.serve_edge(&device("edge-1"), loopback(), options).expect("serves");
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["ha", "work"] {
            edge.serve_workload(name, &folder.path().join(name)).expect("serves");
        }
        Bench { emulator, edge, folder }
    }

    async fn try_join(&self, who: &Target) -> (Client, Accepted, bool) {
        let string = self.emulator.device_connection_string(who, None);
        let expiry = BootClock.wall_ms() / 1000 + 600;
        let mut client = Client::dial(self.edge.address(), self.emulator.ca_pem()).await;
        let (accepted, kept) = client.introduce(connect(&string, who, expiry)).await.expect("an answer");
        (client, accepted, kept)
    }

    async fn join(&self, name: &str, filters: &[&str]) -> Client {
        let (mut client, accepted, _) = self.try_join(&module(name)).await;
        assert_eq!(accepted, Accepted::Yes);
        if !filters.is_empty() {
            assert!(client.subscribe(filters).await.iter().all(|granted| *granted == 1));
        }
        client
    }

    fn desire(&self, name: &str, json: Value) {
        let json = json!({ "properties": { "desired": json } });
        self.emulator.meddle(&module(name), &change(json)).expect("is taken");
    }

    /// What the hub knows of what `ha` has reported, and how often that has changed.
    fn reported(&self) -> (Value, u64) {
        let twin = self.emulator.entry(&module("ha")).expect("exists").twin;
        (Value::Object(twin.reported.values), twin.reported.version)
    }

    async fn workload(&self, socket: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let stream = UnixStream::connect(self.folder.path().join(socket)).await.expect("connects");
        within("an answer", ask(stream, method, path, &[], &body.to_string())).await
    }
}

fn often() -> EdgeOptions {
    EdgeOptions { report_every: Duration::ZERO, sync_every: Duration::ZERO, ..EdgeOptions::default() }
}

/// Reports and waits for edgeHub's own acknowledgement.
async fn report(client: &mut Client, patch: Value) {
    client.publish("$iothub/twin/PATCH/properties/reported/?$rid=r", &patch.to_string()).await;
    let topic = client.message().await.expect("an answer").0;
    assert_eq!(topic, "$iothub/twin/res/204/?$rid=r", "it tells no version");
}

async fn twin(client: &mut Client) -> Value {
    client.publish("$iothub/twin/GET/?$rid=g", " ").await;
    let (topic, twin) = client.json().await;
    assert_eq!(topic, "$iothub/twin/res/200/?$rid=g");
    twin
}

#[tokio::test]
async fn reports_are_taken_at_once_and_pushed_merged() {
    let bench = Bench::start(EdgeOptions { report_every: Duration::from_millis(500), ..often() });
    let mut client = bench.join("ha", &[RES]).await;
    report(&mut client, json!({ "a": 1 })).await;
    until("the first push", || bench.reported().0 == json!({ "a": 1 })).await;
    for n in 0..5 {
        report(&mut client, json!({ "n": n, "a": null })).await;
    }
    until("the second push", || bench.reported().0 == json!({ "n": 4 })).await;
    // One and one, however many there were; if the machine is slow, some were pushed before the others came.
    assert!((3..=4).contains(&bench.reported().1), "{}", bench.reported().1);
    assert!(!bench.edge.holds_back("ha"));
    for wrong in ["[]", "{\"a.b\":1}"] {
        client.publish("$iothub/twin/PATCH/properties/reported/?$rid=w", wrong).await;
        assert_eq!(client.message().await.expect("an answer").0, "$iothub/twin/res/400/?$rid=w");
    }
}

#[tokio::test]
async fn a_push_that_fails_waits_for_the_next_report() {
    let bench = Bench::start(often());
    let mut client = bench.join("ha", &[RES]).await;
    bench.emulator.trouble(Trouble::Throttled { retry_after_s: None });
    report(&mut client, json!({ "a": 1 })).await;
    until("a try", || bench.emulator.answered(429) > 0).await;
    bench.emulator.trouble(Trouble::None);
    // The hub is well again, and is not asked again.
    let mut other = bench.join("work", &[RES]).await;
    report(&mut other, json!({ "x": 1 })).await;
    let work = || bench.emulator.entry(&module("work")).expect("exists").twin.reported.version;
    until("another module's report", || work() == 2).await;
    assert_eq!((bench.reported().0, bench.edge.holds_back("ha")), (json!({}), true));
    report(&mut client, json!({ "b": 1 })).await;
    until("both", || bench.reported().0 == json!({ "a": 1, "b": 1 })).await;
    assert!(!bench.edge.holds_back("ha"));
}

#[tokio::test]
async fn without_the_cloud_a_module_goes_on() {
    let bench = Bench::start(often());
    bench.desire("ha", json!({ "flag": 1 }));
    let mut client = bench.join("ha", &[RES, DESIRED]).await;
    assert!(bench.emulator.is_connected(&module("ha")) && bench.emulator.is_connected(&module("$edgeHub")));
    assert!(!bench.emulator.is_connected(&Target::device("edge-1")), "the device itself never connects");
    let seen = json!({ "desired": { "flag": 1, "$version": 2 }, "reported": { "$version": 1 } });
    assert_eq!(twin(&mut client).await, seen);

    bench.edge.upstream(false);
    assert!(!bench.emulator.is_connected(&module("ha")), "as far as the cloud knows");
    bench.desire("ha", json!({ "flag": 2 }));
    bench.desire("ha", json!({ "other": true }));
    report(&mut client, json!({ "a": 1 })).await;
    let stored = json!({ "desired": { "flag": 1, "$version": 2 }, "reported": { "a": 1, "$version": 2 } });
    assert_eq!(twin(&mut client).await, stored, "the last copy, with what was reported since");
    // A module that was never read before has an empty twin, and who is known comes in; who is not does not.
    let mut work = bench.join("work", &[RES]).await;
    assert_eq!(twin(&mut work).await, json!({ "desired": {}, "reported": {} }));
    bench.emulator.create_module(&module("new"));
    assert_eq!(bench.try_join(&module("new")).await.1, Accepted::No(5));

    bench.edge.upstream(true);
    let patch = json!({ "flag": 2, "other": true, "$version": 4 });
    assert_eq!(client.json().await, ("$iothub/twin/PATCH/properties/desired/?$version=4".into(), patch));
    until("the report", || bench.reported().0 == json!({ "a": 1 })).await;
    assert_eq!(bench.try_join(&module("new")).await.1, Accepted::Yes);
    assert_eq!(bench.try_join(&Target::device("edge-1")).await.1, Accepted::No(5));
    assert_eq!(bench.try_join(&Target::module("edge-2", "ha")).await.1, Accepted::No(5));
}

#[tokio::test]
async fn what_was_missed_is_made_up_for_but_not_at_once_again() {
    let bench = Bench::start(EdgeOptions { sync_every: Duration::from_secs(120), ..often() });
    let mut client = bench.join("ha", &[RES, DESIRED]).await;
    twin(&mut client).await;
    for (n, heard) in [(1, true), (2, false)] {
        // The hub is away for everybody this time.
        bench.emulator.trouble(Trouble::Unreachable);
        until("the end of the way", || !bench.emulator.is_connected(&module("ha"))).await;
        bench.desire("ha", json!({ "n": n }));
        bench.emulator.trouble(Trouble::None);
        until("the way", || bench.emulator.is_connected(&module("ha"))).await;
        if heard {
            assert_eq!(client.json().await.1, json!({ "n": n, "$version": 2 }));
        }
    }
    // Nothing came the second time; the next change does, and whoever sees the gap reads the twin.
    bench.desire("ha", json!({ "m": 1 }));
    assert_eq!(client.json().await.1, json!({ "m": 1, "$version": 4 }));
    assert_eq!(twin(&mut client).await["desired"], json!({ "n": 2, "m": 1, "$version": 4 }));
}

#[tokio::test]
async fn messages_follow_the_routes() {
    let bench = Bench::start(often());
    let routes = json!({ "routes": {
        "gate": { "route": "FROM /messages/modules/work/outputs/raw INTO BrokeredEndpoint(\"/modules/ha/inputs/gate\")" },
        "up": "FROM /messages/modules/ha/outputs/* INTO $upstream",
        "wrong": "FROM nowhere",
    } });
    bench.desire("$edgeHub", routes);
    let mut work = bench.join("work", &[]).await;
    let mut ha = bench.join("ha", &["devices/edge-1/modules/ha/inputs/#"]).await;
    let send = "devices/edge-1/modules/work/messages/events/%24.on=raw&quorate_epoch=7";
    work.publish(send, "21.5").await;
    assert_eq!(work.next().await, Some(Packet::PubAck(1)));
    let topic = "devices/edge-1/modules/ha/inputs/gate/%24.cdid=edge-1&%24.cmid=work&quorate_epoch=7";
    // Seen and not acknowledged: it comes again on the next link.
    let Some(Packet::Publish(first)) = ha.next().await else { panic!("no message") };
    assert_eq!((first.topic.as_str(), &first.payload[..]), (topic, &b"21.5"[..]));
    let (mut again, accepted, kept) = bench.try_join(&module("ha")).await;
    assert_eq!((accepted, kept), (Accepted::Yes, true));
    ha.ended().await;
    assert_eq!(again.message().await.expect("a message").0, topic);

    // To the hub, now and when it is there again; what no route takes goes nowhere.
    bench.edge.upstream(false);
    again.publish("devices/edge-1/modules/ha/messages/events/%24.on=out&n=1", "kept").await;
    assert!(matches!(again.next().await, Some(Packet::PubAck(_))), "taken although the cloud is away");
    work.publish("devices/edge-1/modules/work/messages/events/%24.on=other", "lost").await;
    assert_eq!(work.next().await, Some(Packet::PubAck(2)));
    assert_eq!((bench.edge.waiting_messages(), bench.emulator.messages().len()), (1, 0));
    bench.emulator.trouble(Trouble::Throttled { retry_after_s: None });
    bench.edge.upstream(true);
    until("a try", || bench.emulator.answered(429) > 0).await;
    bench.emulator.trouble(Trouble::None);
    until("the message", || !bench.emulator.messages().is_empty()).await;
    let messages = bench.emulator.messages();
    assert_eq!((messages.len(), &messages[0].from, &messages[0].body[..]), (1, &module("ha"), &b"kept"[..]));
    assert_eq!((messages[0].properties["n"].as_str(), bench.edge.waiting_messages()), ("1", 0));
}

#[tokio::test]
async fn the_workload_socket_signs_for_its_own_module() {
    let bench = Bench::start(often());
    let environment = bench.edge.environment("ha");
    assert_eq!(environment["IOTEDGE_IOTHUBHOSTNAME"], HUB);
    assert_eq!(environment["IOTEDGE_GATEWAYHOSTNAME"], "127.0.0.1");
    let generation = &environment["IOTEDGE_MODULEGENERATIONID"];
    let bench = &bench;
    let post = |path: String, body: Value| async move {
        bench.workload("ha", "POST", &format!("{path}?api-version=2019-01-30"), &body).await
    };
    let get = |path: &'static str| bench.workload("ha", "GET", path, &Value::Null);
    let (status, bundle) = get("/trust-bundle?api-version=2022-08-03").await;
    assert_eq!((status, bundle["certificate"].as_str()), (200, Some(bench.emulator.ca_pem())));
    assert_eq!(
        get("/manifest-trust-bundle?api-version=2022-08-03").await,
        (200, json!({ "certificate": "" }))
    );

    // The same signature as with the key itself.
    let data = format!("{HUB}%2Fdevices%2Fedge-1%2Fmodules%2Fha\n1795372173");
    let asked = json!({ "keyId": "primary", "algo": "HMACSHA256", "data": STANDARD.encode(&data) });
    let (status, signed) = post(format!("/modules/ha/genid/{generation}/sign"), asked.clone()).await;
    let string = bench.emulator.device_connection_string(&module("ha"), None);
    let key = STANDARD.decode(super::mqtt_client::part(&string, "SharedAccessKey")).expect("base64");
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
    let expected = STANDARD.encode(ring::hmac::sign(&key, data.as_bytes()));
    assert_eq!((status, &signed), (200, &json!({ "digest": expected })));

    // Encrypted and back, for nobody else and with nothing else.
    let base = |name: &str| format!("/modules/{name}/genid/{generation}");
    let text = json!({ "plaintext": "aGVsbG8=", "initializationVector": "AAEC" });
    let (_, sealed) = post(base("ha") + "/encrypt", text).await;
    let sealed = json!({ "ciphertext": sealed["ciphertext"], "initializationVector": "AAEC" });
    assert_eq!(
        post(base("ha") + "/decrypt", sealed.clone()).await,
        (200, json!({ "plaintext": "aGVsbG8=" }))
    );
    let other = json!({ "ciphertext": sealed["ciphertext"], "initializationVector": "AAED" });
    assert_eq!(post(base("ha") + "/decrypt", other).await.0, 422);

    let (status, made) = post(base("ha") + "/certificate/server", json!({ "commonName": "10.0.0.11" })).await;
    assert_eq!((status, &made["privateKey"]["type"]), (201, &json!("key")));
    let chain = made["certificate"].as_str().expect("PEM");
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2);
    assert!(made["expiration"].as_str().is_some_and(|end| end.ends_with("T00:00:00.000Z")), "{made}");
    let (status, _) = post("/modules/ha/certificate/identity".into(), Value::Null).await;
    assert_eq!(status, 201);

    // Every failure says why in the runtime's words.
    for (path, body, wanted) in [
        (base("work") + "/sign", asked.clone(), 403),
        ("/modules/ha/genid/1/sign".into(), asked.clone(), 404),
        (base("ha") + "/sing", asked.clone(), 404),
        (base("ha") + "/sign", json!({ "data": "***" }), 422),
        (base("ha") + "/sign", json!({}), 422),
        (base("ha") + "/certificate/server", json!({ "commonName": "gerät" }), 422),
        ("/".into(), Value::Null, 404),
    ] {
        let (status, answer) = post(path.clone(), body).await;
        assert_eq!(status, wanted, "{path}");
        assert!(answer["message"].is_string(), "{path}: {answer}");
    }
    for path in ["/trust-bundle", "/trust-bundle?api-version=1999-01-01"] {
        let (status, answer) = get(path).await;
        assert!(status == 400 && answer["message"].is_string(), "{answer}");
    }
}
