use std::future::Future;

use proptest::prelude::*;
use serde_json::json;
use tokio::io::DuplexStream;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(10);

/// The other side, packet by packet.
struct Server {
    stream: DuplexStream,
    read: BytesMut,
}

impl Server {
    async fn next(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = Packet::read(&mut self.read).expect("a client writes well") {
                return Some(packet);
            }
            if self.stream.read_buf(&mut self.read).await.expect("reads") == 0 {
                return None;
            }
        }
    }

    async fn say(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes);
        self.raw(&bytes).await;
    }

    async fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("writes");
    }

    async fn publish(&mut self, topic: &str, id: Option<u16>, body: &str) {
        let payload = Bytes::copy_from_slice(body.as_bytes());
        self.say(Packet::Publish(Publish {
            topic: topic.into(),
            id,
            duplicate: false,
            retain: false,
            payload,
        }))
        .await;
    }

    /// The next packet, which must be a publication.
    async fn published(&mut self) -> Publish {
        match self.next().await {
            Some(Packet::Publish(publish)) => publish,
            other => panic!("{other:?}"),
        }
    }

    async fn welcome(&mut self) -> (Connect, Vec<(String, u8)>) {
        let Some(Packet::Connect(connect)) = self.next().await else { panic!("no CONNECT") };
        self.say(Packet::ConnAck { session_present: false, accepted: Accepted::Yes }).await;
        let Some(Packet::Subscribe(id, filters)) = self.next().await else { panic!("no SUBSCRIBE") };
        self.say(Packet::SubAck(id, filters.iter().map(|(_, quality)| *quality).collect())).await;
        (connect, filters)
    }
}

fn pair(inputs: bool) -> (Server, DuplexStream, Opening) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connect = Connect {
        client_id: "edge-a/ha".into(),
        keep_alive: 120,
        clean_session: false,
        username: Some("hub/edge-a/ha/?api-version=2021-04-12".into()),
        password: Some(Bytes::from_static(b"token")),
    };
    let opening = Opening {
        connect,
        target: Target::module("edge-a", "ha"),
        inputs,
        timeout: TIMEOUT,
        renew: Duration::from_secs(3600),
    };
    (Server { stream: far, read: BytesMut::new() }, near, opening)
}

async fn linked(inputs: bool) -> (Server, Connected) {
    let (mut server, near, opening) = pair(inputs);
    let (connected, _) = tokio::join!(open(near, opening), server.welcome());
    (server, connected.expect("connects"))
}

/// Lets the link work while something else goes on.
async fn meanwhile<T>(connected: &mut Connected, other: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        ended = &mut connected.runs => panic!("the link has ended: {ended:?}"),
        done = other => done,
    }
}

fn properties(json: Value) -> Properties {
    match json {
        Value::Object(map) => map,
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn it_says_who_it_is_and_subscribes_to_what_it_wants() {
    for (inputs, wanted) in [(false, 3), (true, 4)] {
        let (mut server, near, opening) = pair(inputs);
        let (connected, (connect, filters)) = tokio::join!(open(near, opening.clone()), server.welcome());
        assert!(connected.is_ok());
        assert_eq!(connect, opening.connect);
        assert_eq!(filters.len(), wanted, "{filters:?}");
        let expected = [topic::ANSWERS, topic::DESIRED, topic::CALLS];
        assert!(expected.iter().all(|filter| filters.contains(&((*filter).to_owned(), 0))));
        assert_eq!(filters.contains(&("devices/edge-a/modules/ha/inputs/#".to_owned(), 1)), inputs);
    }
}

#[tokio::test(start_paused = true)]
async fn a_kept_subscription_to_inputs_is_given_up() {
    let (mut server, near, opening) = pair(false);
    let told = async {
        server.next().await;
        server.say(Packet::ConnAck { session_present: true, accepted: Accepted::Yes }).await;
        let first = server.next().await;
        let Some(Packet::Subscribe(id, filters)) = server.next().await else { panic!("no SUBSCRIBE") };
        server.say(Packet::UnsubAck(1)).await;
        server.say(Packet::SubAck(id, vec![0; filters.len()])).await;
        first
    };
    let (connected, first) = tokio::join!(open(near, opening), told);
    assert!(connected.is_ok());
    assert!(
        matches!(first, Some(Packet::Unsubscribe(_, filters)) if filters == ["devices/edge-a/modules/ha/inputs/#"])
    );
}

#[tokio::test(start_paused = true)]
async fn refusals_are_told_apart_by_who_can_mend_them() {
    let refused = async |code| {
        let (mut server, near, opening) = pair(false);
        let refuse = async {
            server.next().await;
            server.say(Packet::ConnAck { session_present: false, accepted: Accepted::No(code) }).await;
        };
        tokio::join!(open(near, opening), refuse).0.err().expect("is refused")
    };
    assert!(matches!(refused(1).await, Error::Rejected { .. }));
    assert!(matches!(refused(2).await, Error::Rejected { .. }));
    assert!(matches!(refused(3).await, Error::Unavailable { status: 503, .. }));
    assert!(matches!(refused(4).await, Error::Unauthorized { status: 401, .. }));
    assert!(matches!(refused(5).await, Error::Unauthorized { status: 401, .. }));
    let (mut server, near, opening) = pair(false);
    let grudging = async {
        server.next().await;
        server.say(Packet::ConnAck { session_present: false, accepted: Accepted::Yes }).await;
        let Some(Packet::Subscribe(id, _)) = server.next().await else { panic!("no SUBSCRIBE") };
        server.say(Packet::SubAck(id, vec![0, 0x80, 0])).await;
    };
    let (connected, ()) = tokio::join!(open(near, opening), grudging);
    assert!(matches!(connected.err(), Some(Error::Rejected { .. })));
    let (mut server, near, opening) = pair(false);
    let (connected, _) = tokio::join!(open(near, opening), server.next());
    assert_eq!(connected.err(), Some(Error::TimedOut { after: TIMEOUT }), "of one that says nothing");
    let (server, near, opening) = pair(false);
    drop(server);
    assert!(matches!(open(near, opening).await.err(), Some(Error::Unreachable(_))));
}

#[tokio::test(start_paused = true)]
async fn the_twin_is_read_and_reported() {
    let (mut server, mut connected) = linked(false).await;
    let link = connected.link.clone();
    let patch = properties(json!({"quorate": {"epoch": 3}}));
    let story = async {
        let answers = async {
            let get = server.published().await;
            assert_eq!((get.topic.as_str(), &get.payload[..]), ("$iothub/twin/GET/?$rid=1", &b" "[..]));
            // Somebody else's answer, and one that nobody has asked for.
            server.publish("$iothub/twin/res/200/?$rid=99", None, "{}").await;
            let twin =
                json!({"desired": {"a": 1, "$version": 4}, "reported": {"$version": 7, "$metadata": {}}});
            server.publish("$iothub/twin/res/200/?$rid=1", Some(5), &twin.to_string()).await;
            assert_eq!(server.next().await, Some(Packet::PubAck(5)));
            let report = server.published().await;
            assert_eq!(report.topic, "$iothub/twin/PATCH/properties/reported/?$rid=2");
            assert_eq!(serde_json::from_slice::<Value>(&report.payload).expect("JSON"), json!(patch));
            server.publish("$iothub/twin/res/204/?$rid=2&$version=8", None, "").await;
            server.published().await;
            server.publish("$iothub/twin/res/204/?$rid=3", None, "").await;
        };
        let asks = async {
            let twin = link.get_twin().await.expect("a twin");
            assert_eq!(twin.desired, properties(json!({"a": 1})));
            assert_eq!((twin.desired_version, twin.reported_version), (4, 7));
            assert_eq!(link.report(&patch).await, Ok(Some(8)));
            assert_eq!(link.report(&patch).await, Ok(None), "an edgeHub does not tell the version");
        };
        tokio::join!(answers, asks)
    };
    meanwhile(&mut connected, story).await;
}

#[tokio::test(start_paused = true)]
async fn answers_are_told_apart() {
    let (mut server, mut connected) = linked(false).await;
    let link = connected.link.clone();
    let mut rid = 0;
    for (status, code) in
        [(400, "400"), (401, "401"), (404, "404"), (413, "413"), (429, "429"), (500, "500"), (504, "504")]
    {
        rid += 1;
        let answers = async {
            server.published().await;
            server.publish(&format!("$iothub/twin/res/{status}/?$rid={rid}"), None, "no\u{7}").await;
        };
        let both = async { tokio::join!(link.get_twin(), answers) };
        let error = meanwhile(&mut connected, both).await.0.expect_err("an error");
        assert_eq!(error.code(), code);
        assert!(!error.to_string().contains('\u{7}'));
    }
    for body in ["", "[]", "{\"desired\": 1}", "{\"reported\": []}", "nonsense"] {
        rid += 1;
        let answers = async {
            server.published().await;
            server.publish(&format!("$iothub/twin/res/200/?$rid={rid}"), None, body).await;
        };
        let both = async { tokio::join!(link.get_twin(), answers) };
        let got = meanwhile(&mut connected, both).await.0;
        assert!(matches!(got, Err(Error::NotTheHub(_))), "{body}: {got:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_come_is_not_waited_for() {
    let (mut server, mut connected) = linked(false).await;
    let link = connected.link.clone();
    let both = async { tokio::join!(link.get_twin(), server.published()) };
    assert_eq!(meanwhile(&mut connected, both).await.0, Err(Error::TimedOut { after: TIMEOUT }));
    // It comes late, and harms nobody.
    let late = async {
        server.publish("$iothub/twin/res/200/?$rid=1", None, "{}").await;
        let answers = async {
            server.published().await;
            server.publish("$iothub/twin/res/204/?$rid=2", None, "").await;
        };
        let patch = Properties::new();
        tokio::join!(link.report(&patch), answers).0
    };
    assert_eq!(meanwhile(&mut connected, late).await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn what_comes_in_is_an_event() {
    let (mut server, mut connected) = linked(true).await;
    let link = connected.link.clone();
    server
        .publish("$iothub/twin/PATCH/properties/desired/?$version=5", None, r#"{"a":null,"$version":5}"#)
        .await;
    server.publish("$iothub/twin/PATCH/properties/desired/", None, r#"{"$version":6}"#).await;
    server.publish("$iothub/methods/POST/why/?$rid=a1", None, "{}").await;
    server.publish("$iothub/methods/POST/why/?$rid=a2", None, "no JSON").await;
    server.publish("$iothub/new/thing", None, "").await;
    server.publish("devices/edge-a/modules/ha/inputs/in/%24.cmid=work&k=v", Some(9), "body").await;
    let mut events = std::mem::replace(&mut connected.events, mpsc::channel(1).1);
    let story = async {
        let first = Event::Desired { patch: properties(json!({"a": null})), version: 5 };
        assert_eq!(events.recv().await, Some(first));
        assert_eq!(events.recv().await, Some(Event::Desired { patch: Properties::new(), version: 6 }));
        let call = |id: &str, payload| Event::Call { id: id.into(), method: "why".into(), payload };
        assert_eq!(events.recv().await, Some(call("a1", json!({}))));
        assert_eq!(events.recv().await, Some(call("a2", Value::Null)));
        let Some(Event::Input { number, input, message }) = events.recv().await else { panic!("no input") };
        assert_eq!((input.as_str(), &message.body[..]), ("in", &b"body"[..]));
        assert_eq!(message.properties, [("k".to_owned(), "v".to_owned())]);
        link.answer("a1", 200, &json!({"x": 1})).await.expect("answers");
        let answer = server.published().await;
        assert_eq!(answer.topic, "$iothub/methods/res/200/?$rid=a1");
        // The input is settled only now that the message that became of it is taken.
        let taken = async {
            let sent = server.published().await;
            assert_eq!(sent.topic, "devices/edge-a/modules/ha/messages/events/%24.on=out&k=v");
            server.say(Packet::PubAck(sent.id.expect("wants to know"))).await;
        };
        let message = Message { system: Vec::new(), ..message };
        let (sent, ()) = tokio::join!(link.send("out", &message), taken);
        sent.expect("is taken");
        let (settled, seen) = tokio::join!(link.settle(number), server.next());
        settled.expect("settles");
        assert_eq!(seen, Some(Packet::PubAck(9)));
        link.settle(number).await.expect("twice is no harm");
    };
    meanwhile(&mut connected, story).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_who_takes_events_ends_the_link_not_the_memory() {
    let (mut server, connected) = linked(false).await;
    let flood = async {
        for n in 0..=EVENTS {
            server.publish(&format!("$iothub/methods/POST/m/?$rid={n}"), None, "{}").await;
        }
    };
    let (ended, ()) = tokio::join!(connected.runs, flood);
    assert_eq!(ended, Err(overrun()));
    let (mut server, connected) = linked(true).await;
    let body = "x".repeat(256 * 1024);
    let flood = async {
        for n in 0..INPUT_BYTES / body.len() {
            let id = Some(u16::try_from(n + 1).expect("few"));
            server.publish("devices/edge-a/modules/ha/inputs/in/", id, &body).await;
        }
    };
    let (ended, ()) = tokio::join!(connected.runs, flood);
    assert_eq!(ended, Err(overrun()));
}

#[tokio::test(start_paused = true)]
async fn a_silent_hub_is_asked_and_then_given_up() {
    let (mut server, mut connected) = linked(false).await;
    let begun = Instant::now();
    let pings = async {
        for _ in 0..3 {
            assert_eq!(server.next().await, Some(Packet::PingReq));
            server.say(Packet::PingResp).await;
        }
        assert_eq!(server.next().await, Some(Packet::PingReq));
    };
    meanwhile(&mut connected, pings).await;
    assert_eq!(begun.elapsed(), Duration::from_secs(4 * 60), "a ping a minute: half of the keep-alive");
    assert_eq!(connected.runs.await, Err(Error::TimedOut { after: TIMEOUT }));
    assert_eq!(begun.elapsed(), Duration::from_secs(4 * 60) + TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn it_leaves_in_good_order() {
    // Nobody needs it any more.
    let (mut server, connected) = linked(false).await;
    drop(connected.link);
    assert_eq!(connected.runs.await, Ok(()));
    assert_eq!(server.next().await, Some(Packet::Disconnect));
    // Its token is about to expire.
    let (mut server, near, opening) = pair(false);
    let opening = Opening { renew: Duration::from_secs(20), ..opening };
    let begun = Instant::now();
    let (connected, _) = tokio::join!(open(near, opening), server.welcome());
    assert_eq!(connected.expect("connects").runs.await, Ok(()));
    assert_eq!(begun.elapsed(), Duration::from_secs(20));
    assert_eq!(server.next().await, Some(Packet::Disconnect));
    // The other side leaves.
    let (server, connected) = linked(false).await;
    drop(server);
    assert!(matches!(connected.runs.await, Err(Error::Unreachable(_))));
    let gone = connected.link.get_twin().await;
    assert!(matches!(gone, Err(Error::Unreachable(_))), "{gone:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_mqtt_ends_the_link() {
    let portal = format!("HTTP/1.1 400 Bad Request\r\nServer: portal\r\n\r\n{}", "<p>".repeat(30));
    for garbage in [portal.as_bytes(), &[0x30, 0xff, 0xff, 0xff, 0xff], &[0xc0, 0]] {
        let (mut server, connected) = linked(false).await;
        server.raw(garbage).await;
        assert!(matches!(connected.runs.await, Err(Error::NotTheHub(_))));
        let (mut server, near, opening) = pair(false);
        let (opened, ()) = tokio::join!(open(near, opening), server.raw(garbage));
        assert!(matches!(opened.err(), Some(Error::NotTheHub(_))));
    }
    for body in ["", "[]", "{}", "{\"$version\": -1}"] {
        let (mut server, connected) = linked(false).await;
        server.publish("$iothub/twin/PATCH/properties/desired/", None, body).await;
        assert!(matches!(connected.runs.await, Err(Error::NotTheHub(_))), "{body}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_upset_the_link(bytes in proptest::collection::vec(any::<u8>(), 1..300)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let (mut server, connected) = linked(true).await;
            server.raw(&bytes).await;
            drop(server);
            // It ends, whatever was said, and at the latest because the other side has gone.
            assert!(connected.runs.await.is_err());
        });
    }
}

/// The gate looks at the lease right before it sends. What waits for its turn while nothing moves must not leave once whoever
/// sent it has given up: by then another device may own.
#[tokio::test(start_paused = true)]
async fn what_its_sender_has_given_up_does_not_leave_later() {
    let (mut server, mut connected) = linked(false).await;
    let link = connected.link.clone();
    let long = Message { body: vec![b'x'; 100_000].into(), ..Message::default() };
    let late = Message { body: Bytes::from_static(b"late"), ..Message::default() };
    let both = async { tokio::join!(link.send("out", &long), link.send("out", &late)) };
    // The other side takes in nothing for a while, and the lease ends.
    let given_up = meanwhile(&mut connected, tokio::time::timeout(Duration::from_secs(1), both)).await;
    assert!(given_up.is_err());
    let first = meanwhile(&mut connected, server.published()).await;
    assert_eq!(first.payload.len(), 100_000);
    let next = tokio::time::timeout(Duration::from_secs(5), server.published());
    let next = meanwhile(&mut connected, next).await;
    assert!(next.is_err(), "{:?} left", next.map(|publish| publish.payload));
}
