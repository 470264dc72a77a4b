//! The device side of the emulated hub, packet by packet: who is let in, twins, methods, messages, and every trouble.

use std::net::SocketAddr;

use quorate::{
    clock::{BootClock, Clock},
    hub::{
        memory::Trouble,
        mqtt::packet::{Accepted, Connect, Packet},
        sas::Credentials,
        store::Target,
        twin::Properties,
    },
};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{
    edge_http::ask,
    hub::{Site, change, device, loopback},
    mqtt_client::{Client, connect, dial, within},
};

const RES: &str = "$iothub/twin/res/#";
const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/#";
const METHODS: &str = "$iothub/methods/POST/#";

/// A hub with devices, each with a module `ha`.
struct Bench {
    site: Site,
    address: SocketAddr,
}

fn ha() -> Target {
    Target::module("edge-1", "ha")
}

fn soon() -> u64 {
    BootClock.wall_ms() / 1000 + 600
}

impl Bench {
    fn start() -> Bench {
        let site = Site::start(&["edge-1", "edge-2"]);
        for name in ["edge-1", "edge-2"] {
            site.emulator.create_module(&Target::module(name, "ha"));
        }
        let address = site.emulator.serve_mqtt(loopback()).expect("serves");
        Bench { site, address }
    }

    fn connect(&self, who: &Target) -> Connect {
        connect(&self.site.emulator.device_connection_string(who, None), who, soon())
    }

    async fn dial(&self) -> Client {
        Client::dial(self.address, self.site.emulator.ca_pem()).await
    }

    async fn try_join(&self, connect: Connect) -> (Accepted, bool) {
        self.dial().await.introduce(connect).await.expect("an answer")
    }

    async fn join(&self, who: &Target, filters: &[&str]) -> Client {
        let mut client = self.dial().await;
        let answer = client.introduce(self.connect(who)).await;
        assert!(matches!(answer, Some((Accepted::Yes, _))), "{answer:?}");
        if !filters.is_empty() {
            assert!(client.subscribe(filters).await.iter().all(|granted| *granted == 1));
        }
        client
    }

    fn desire(&self, json: Value) {
        let json = json!({ "properties": { "desired": json } });
        self.site.emulator.meddle(&ha(), &change(json)).expect("is taken");
    }

    fn reported(&self) -> Properties {
        self.site.emulator.entry(&ha()).expect("exists").twin.reported.values
    }
}

async fn report(client: &mut Client, rid: &str, patch: &Value) {
    let topic = format!("$iothub/twin/PATCH/properties/reported/?$rid={rid}");
    client.publish(&topic, &patch.to_string()).await;
}

#[tokio::test]
async fn a_module_reads_and_reports_and_hears_of_changes() {
    let bench = Bench::start();
    let mut client = bench.join(&ha(), &[RES, DESIRED]).await;
    assert!(bench.site.emulator.is_connected(&ha()));
    assert!(!bench.site.emulator.is_connected(&Target::device("edge-1")));

    client.publish("$iothub/twin/GET/?$rid=a-1", " ").await;
    let empty = json!({ "desired": { "$version": 1 }, "reported": { "$version": 1 } });
    assert_eq!(client.json().await, ("$iothub/twin/res/200/?$rid=a-1".into(), empty));

    report(&mut client, "2", &json!({ "ha": { "role": "owner", "epoch": 7 } })).await;
    assert_eq!(client.message().await.expect("an answer").0, "$iothub/twin/res/204/?$rid=2&$version=2");
    report(&mut client, "3", &json!({ "ha": { "role": null } })).await;
    assert_eq!(client.message().await.expect("an answer").0, "$iothub/twin/res/204/?$rid=3&$version=3");
    assert_eq!(Value::Object(bench.reported()), json!({ "ha": { "epoch": 7 } }));

    bench.desire(json!({ "flag": { "active": true }, "$version": 99 }));
    bench.desire(json!({ "flag": { "active": null, "epoch": 8 } }));
    let pushed = json!({ "flag": { "active": true }, "$version": 2 });
    assert_eq!(client.json().await, ("$iothub/twin/PATCH/properties/desired/?$version=2".into(), pushed));
    let pushed = json!({ "flag": { "active": null, "epoch": 8 }, "$version": 3 });
    assert_eq!(client.json().await, ("$iothub/twin/PATCH/properties/desired/?$version=3".into(), pushed));

    // What cannot be is refused, and the link stays.
    for (wrong, status) in
        [("[1]", 400), ("not JSON", 400), ("{\"a b\":1}", 400), ("{\"n\":9007199254740993}", 400)]
    {
        client.publish("$iothub/twin/PATCH/properties/reported/?$rid=w", wrong).await;
        let topic = client.message().await.expect("an answer").0;
        assert_eq!(topic, format!("$iothub/twin/res/{status}/?$rid=w"), "{wrong}");
    }
    client.publish("$iothub/twin/GET/?$rid=z", "").await;
    let (_, twin) = client.json().await;
    let now = json!({ "desired": { "flag": { "epoch": 8 }, "$version": 3 },
        "reported": { "ha": { "epoch": 7 }, "$version": 3 } });
    assert_eq!(twin, now);
    client.send(&Packet::PingReq).await;
    assert_eq!(client.next().await, Some(Packet::PingResp));
    bench.site.emulator.stop().await;
    client.ended().await;
}

#[tokio::test]
async fn only_who_may_is_let_in() {
    let bench = Bench::start();
    let emulator = &bench.site.emulator;
    let good = bench.connect(&ha());
    assert_eq!(bench.try_join(good.clone()).await, (Accepted::Yes, false));
    let string = emulator.device_connection_string(&ha(), None);
    let signed_for = |expiry| connect(&string, &ha(), expiry);
    let now = BootClock.wall_ms() / 1000;
    // Clocks may differ by five minutes.
    assert_eq!(bench.try_join(signed_for(now - 200)).await.0, Accepted::Yes);
    let others = emulator.device_connection_string(&Target::module("edge-2", "ha"), None);
    let nobody = Target::module("edge-1", "nobody");
    for (what, wrong, code) in [
        ("an expired token", signed_for(now - 400), 5),
        ("somebody else's key", connect(&others, &ha(), soon()), 5),
        (
            "the device's key",
            connect(&emulator.device_connection_string(&Target::device("edge-1"), None), &ha(), soon()),
            5,
        ),
        ("nobody", bench.connect(&nobody), 5),
        ("no password", Connect { password: None, ..good.clone() }, 5),
        ("no token", Connect { password: Some("x".into()), ..good.clone() }, 5),
        ("another id", Connect { client_id: "edge-2/ha".into(), ..good.clone() }, 4),
        ("no name", Connect { username: None, password: None, ..good.clone() }, 4),
        ("no api-version", Connect { username: Some("localhost/edge-1/ha/?x=1".into()), ..good.clone() }, 4),
        (
            "another hub",
            Connect {
                username: Some("hub2.azure-devices.net/edge-1/ha/?api-version=1".into()),
                ..good.clone()
            },
            5,
        ),
    ] {
        assert_eq!(bench.try_join(wrong).await, (Accepted::No(code), false), "{what}");
    }
    emulator.trouble(Trouble::Throttled { retry_after_s: None });
    assert_eq!(bench.try_join(good.clone()).await.0, Accepted::No(3));
    emulator.trouble(Trouble::None);

    // Whoever is deleted is cut off, and does not come in again.
    let mut client = bench.join(&ha(), &[]).await;
    emulator.delete_device(&device("edge-1"));
    client.ended().await;
    assert_eq!(bench.try_join(good).await.0, Accepted::No(5));
}

#[tokio::test]
async fn one_link_each_and_the_newest_wins() {
    let bench = Bench::start();
    let mut first = bench.join(&ha(), &[RES, DESIRED]).await;
    let mut other = bench.join(&Target::module("edge-2", "ha"), &[RES]).await;
    let mut second = bench.dial().await;
    let answer = second.introduce(bench.connect(&ha())).await;
    assert_eq!(answer, Some((Accepted::Yes, true)), "its subscriptions are kept");
    first.ended().await;
    assert!(bench.site.emulator.is_connected(&ha()));
    bench.desire(json!({ "a": 1 }));
    assert_eq!(second.json().await.1, json!({ "a": 1, "$version": 2 }));
    other.publish("$iothub/twin/GET/?$rid=1", " ").await;
    assert!(other.message().await.is_some());
    // A clean session starts with nothing.
    let clean = Connect { clean_session: true, ..bench.connect(&ha()) };
    let mut third = bench.dial().await;
    assert_eq!(third.introduce(clean).await, Some((Accepted::Yes, false)));
    second.ended().await;
    third.publish("$iothub/twin/GET/?$rid=1", " ").await;
    assert_eq!(third.next().await, Some(Packet::PubAck(1)));
    third.send(&Packet::PingReq).await;
    assert_eq!(third.next().await, Some(Packet::PingResp), "who did not subscribe hears nothing");
    third.send(&Packet::Disconnect).await;
    third.ended().await;
    within("its absence", async {
        while bench.site.emulator.is_connected(&ha()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_token_that_expires_ends_its_link() {
    let bench = Bench::start();
    let string = bench.site.emulator.device_connection_string(&ha(), None);
    let mut client = bench.dial().await;
    let expiry = BootClock.wall_ms() / 1000 + 2;
    let answer = client.introduce(connect(&string, &ha(), expiry)).await;
    assert_eq!(answer, Some((Accepted::Yes, false)));
    client.ended().await;
    assert!(BootClock.wall_ms() / 1000 >= expiry - 1, "not before");
}

#[tokio::test]
async fn silence_ends_a_link() {
    let bench = Bench::start();
    let mut client = bench.dial().await;
    let hasty = Connect { keep_alive: 1, ..bench.connect(&ha()) };
    assert_eq!(client.introduce(hasty).await, Some((Accepted::Yes, false)));
    client.ended().await;
}

#[tokio::test]
async fn whatever_is_sent_only_its_own_link_suffers() {
    let bench = Bench::start();
    let mut good = bench.join(&ha(), &[RES]).await;
    let hello = || Packet::Connect(bench.connect(&Target::device("edge-1")));
    let bytes = |packet: &Packet| {
        let mut bytes = bytes::BytesMut::new();
        packet.write(&mut bytes);
        bytes.to_vec()
    };
    let (flood, portal) = ([0xc0; 5000], [&b"GET / HTTP/1.1\r\n"[..], &[b'x'; 200]].concat());
    let hostile: [&[u8]; 8] = [
        &[0xff; 64],
        &portal,
        // A length of five bytes, one of 256 MB, a server's packet, an empty subscription, a message before the introduction.
        &[0x10, 0xff, 0xff, 0xff, 0xff, 0x01],
        &[0x30, 0xff, 0xff, 0xff, 0x7f, 0x00],
        &[0x20, 0x02, 0x00, 0x00],
        &[0x82, 0x02, 0x00, 0x01],
        &[0x30, 0x03, 0x00, 0x01, b'a'],
        &flood,
    ];
    for first in [vec![], bytes(&hello())] {
        for bytes in hostile {
            let mut client = bench.dial().await;
            client.bytes(&first).await;
            client.bytes(bytes).await;
            client.ended().await;
        }
    }
    // Introduced twice, acknowledging what was never sent, and half a packet with nobody behind it.
    let mut client = bench.dial().await;
    client.bytes(&[bytes(&hello()), bytes(&Packet::PubAck(7)), bytes(&hello())].concat()).await;
    client.ended().await;
    let mut half = bench.dial().await;
    half.bytes(&bytes(&hello())[..9]).await;
    drop(half);
    report(&mut good, "r", &json!({ "still": "here" })).await;
    good.message().await.expect("an answer");
    assert_eq!(bench.reported()["still"], "here");
}

#[tokio::test]
async fn methods_reach_who_takes_them() {
    let bench = Bench::start();
    let call = |body: Value| call(&bench, "/twins/edge-1/modules/ha/methods", body);
    // Nobody there, and there without taking methods.
    let (status, body) = call(json!({ "methodName": "ping" })).await;
    assert_eq!(status, 404);
    let message: Value = serde_json::from_str(body["Message"].as_str().expect("a text")).expect("is JSON");
    assert_eq!(message["errorCode"], 404_103);
    let mut client = bench.join(&ha(), &[METHODS]).await;
    let answers = async {
        for answer in ["{\"pong\":1}", ""] {
            let (topic, body) = client.json().await;
            assert_eq!(body, json!({ "a": [1] }));
            let rid = topic.strip_prefix("$iothub/methods/POST/ping/?$rid=").expect("a method").to_owned();
            client.publish(&format!("$iothub/methods/res/207/?$rid={rid}"), answer).await;
        }
        client
    };
    let asks = async {
        let asked =
            json!({ "methodName": "ping", "payload": { "a": [1] }, "responseTimeoutInSeconds": "30" });
        let first = call(asked.clone()).await;
        assert_eq!(first, (200, json!({ "status": 207, "payload": { "pong": 1 } })));
        assert_eq!(call(asked).await, (200, json!({ "status": 207, "payload": null })));
    };
    let (mut client, ()) = tokio::join!(answers, asks);
    // The link ends while the service waits.
    let leaves = async {
        client.message().await.expect("the method");
        client.send(&Packet::Disconnect).await;
    };
    let (answer, ()) = tokio::join!(call(json!({ "methodName": "ping" })), leaves);
    assert_eq!(answer.0, 504);
    // Whoever may be about to come is waited for.
    let comes = async {
        // Its subscription was kept, so the call is on its way at once.
        let mut client = bench.join(&ha(), &[]).await;
        let (topic, _) = client.json().await;
        let rid = topic.rsplit_once('=').expect("an id").1.to_owned();
        client.publish(&format!("$iothub/methods/res/200/?$rid={rid}"), "2").await;
        client
    };
    let (answer, _client) =
        tokio::join!(call(json!({ "methodName": "late", "connectTimeoutInSeconds": 20 })), comes);
    assert_eq!(answer, (200, json!({ "status": 200, "payload": 2 })));
    let (status, body) = call(json!({ "methodName": "ping", "responseTimeoutInSeconds": 1 })).await;
    assert!(status == 400 && body["Message"].as_str().is_some_and(|text| text.contains("400004")), "{body}");
    assert_eq!(self::call(&bench, "/twins/nobody/methods", json!({ "methodName": "x" })).await.0, 404);
}

#[tokio::test]
async fn messages_are_kept_to_be_looked_at() {
    let bench = Bench::start();
    let mut client = bench.join(&ha(), &[]).await;
    let topic =
        "devices/edge-1/modules/ha/messages/events/%24.on=out1&%24.ct=application%2Fjson&quorate_epoch=7";
    client.publish(topic, "{\"t\":21}").await;
    assert_eq!(client.next().await, Some(Packet::PubAck(1)));
    let kept = bench.site.emulator.messages();
    assert_eq!((kept.len(), kept[0].from.clone()), (1, ha()));
    assert_eq!(kept[0].properties["quorate_epoch"], "7");
    assert_eq!(kept[0].properties["$.on"], "out1");
    let shown = get(&bench, "/emulator/messages?after=0").await;
    assert_eq!((&shown[0]["module"], &shown[0]["body"]), (&json!("ha"), &json!("{\"t\":21}")));
    assert_eq!(get(&bench, "/emulator/messages?after=1").await, json!([]));
}

#[tokio::test]
async fn troubles_reach_the_links() {
    let bench = Bench::start();
    let emulator = &bench.site.emulator;
    let mut client = bench.join(&ha(), &[RES]).await;
    for (trouble, status) in
        [(Trouble::Throttled { retry_after_s: Some(1) }, 429), (Trouble::Failing { status: 503 }, 503)]
    {
        emulator.trouble(trouble);
        report(&mut client, "1", &json!({ "a": 1 })).await;
        let topic = client.message().await.expect("an answer").0;
        assert_eq!(topic, format!("$iothub/twin/res/{status}/?$rid=1"));
        client.publish("$iothub/twin/GET/?$rid=2", " ").await;
        let topic = client.message().await.expect("an answer").0;
        assert_eq!(topic, format!("$iothub/twin/res/{status}/?$rid=2"));
    }
    assert!(bench.reported().is_empty(), "what is turned away changes nothing");

    // A slow hub applies at once and answers late; the link goes on meanwhile.
    emulator.trouble(Trouble::Slow { delay_ms: 300 });
    report(&mut client, "s", &json!({ "slow": 1 })).await;
    client.send(&Packet::PingReq).await;
    while client.next().await != Some(Packet::PingResp) {}
    assert_eq!(bench.reported()["slow"], 1);
    assert_eq!(client.message().await.expect("an answer").0, "$iothub/twin/res/204/?$rid=s&$version=2");

    // Applied, and the link is cut instead of an answer.
    emulator.trouble(Trouble::DropAnswer);
    report(&mut client, "l", &json!({ "lost": 1 })).await;
    client.ended().await;
    assert_eq!(bench.reported()["lost"], 1);

    let mut client = bench.join(&ha(), &[]).await;
    emulator.trouble(Trouble::Unreachable);
    client.ended().await;
    emulator.trouble(Trouble::None);
    bench.join(&ha(), &[]).await;
}

/// A direct method over the service's API, with a token of the policy `service`.
async fn call(bench: &Bench, path: &str, body: Value) -> (u16, Value) {
    let string = bench.site.emulator.service_connection_string();
    let token = Credentials::parse(&string).expect("parses").token(soon());
    let host = bench.site.emulator.address().to_string();
    let stream = dial(bench.site.emulator.address(), bench.site.emulator.ca_pem()).await;
    let headers = [("Authorization", token.as_str()), ("Host", &host.replace("127.0.0.1", "localhost"))];
    let path = format!("{path}?api-version=2021-04-12");
    within("an answer", ask(stream, "POST", &path, &headers, &body.to_string())).await
}

/// The emulator's own listener, without TLS.
#[expect(clippy::disallowed_methods, reason = "a test dials the emulator")]
async fn get(bench: &Bench, path: &str) -> Value {
    let stream = TcpStream::connect(bench.site.emulator.admin_address()).await.expect("connects");
    ask(stream, "GET", path, &[], "").await.1
}
