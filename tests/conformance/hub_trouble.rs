//! Troubles and limits over real TLS: several at once, within their scope, by chance from a seed, and a hub that forgets.

use std::{sync::Arc, time::Duration};

use quorate::{
    clock::BootClock,
    condition::Condition,
    emulator::Options,
    hub::{
        Error, Hub, Target,
        memory::{MemoryHub, Trouble},
        rest::RestHub,
        throttle::{Operation, Plan, Tier},
        trouble::{Rule, Scope},
    },
};
use serde_json::json;

use super::{
    http::{owner, plain},
    hub::{Site, change, device},
};

fn hub(site: &Site) -> RestHub {
    RestHub::open(&site.settings(), Arc::new(BootClock)).expect("opens")
}

#[tokio::test]
async fn several_troubles_at_once_each_in_its_scope() {
    let site = Site::start(&["edge-1", "edge-2"]);
    let (one, two) = (Target::device("edge-1"), Target::device("edge-2"));
    let only = |operations: &[Operation], devices: &[&str]| Scope {
        operations: operations.to_vec(),
        devices: devices.iter().map(|device| (*device).to_owned()).collect(),
    };
    let storm = Trouble::Throttled { retry_after_s: Some(7) };
    let rules = [
        Rule { scope: only(&[Operation::TwinUpdate], &[]), ..storm.into() },
        Rule { scope: only(&[], &["edge-2"]), ..Trouble::Unreachable.into() },
        Rule { scope: only(&[Operation::Query], &[]), ..Trouble::Failing { status: 503 }.into() },
    ];
    let ids = rules.map(|rule| site.emulator.add_trouble(rule).expect("is on"));
    let hub = hub(&site);
    hub.get_twin(&one).await.expect("reads");
    let refused = hub.patch_twin(&one, &change(json!({"tags": {"a": 1}})), None).await;
    assert!(
        matches!(refused, Err(Error::Throttled { status: 429, retry_after: Some(after) }) if after.as_secs() == 7)
    );
    assert!(matches!(hub.get_twin(&two).await, Err(Error::Unreachable(_))));
    assert_eq!(
        owner(&site, "POST", "/devices/query", &[], r#"{"query":"SELECT * FROM devices"}"#).await.status,
        503
    );
    // Others are served all the while, and each ends by itself.
    assert_eq!(owner(&site, "GET", "/devices", &[], "").await.status, 200);
    assert!(site.emulator.end_trouble(ids[1]));
    hub.get_twin(&two).await.expect("reads");
    assert!(hub.patch_twin(&two, &change(json!({"tags": {"a": 1}})), None).await.is_err());
    assert!(site.emulator.log().is_empty());
    site.emulator.stop().await;
}

#[tokio::test]
async fn the_same_seed_refuses_the_same_requests() {
    let site = Site::start(&["edge-1"]);
    let admin = site.emulator.admin_address();
    let rule = json!({"trouble": {"kind": "failing", "status": 500}, "probability": 0.5}).to_string();
    let added = plain(admin, "POST", "/emulator/troubles", &[], &rule).await.json();
    let mut runs = Vec::new();
    for seed in [4, 4, 5] {
        let seed = json!({ "seed": seed }).to_string();
        assert_eq!(plain(admin, "POST", "/emulator/seed", &[], &seed).await.status, 204);
        let mut run = Vec::new();
        for _ in 0..24 {
            run.push(owner(&site, "GET", "/twins/edge-1", &[], "").await.status);
        }
        assert!(run.contains(&200) && run.contains(&500), "{run:?}");
        runs.push(run);
    }
    assert!(runs[0] == runs[1] && runs[1] != runs[2], "{runs:?}");
    let path = format!("/emulator/troubles/{}", added["id"]);
    assert_eq!(plain(admin, "DELETE", &path, &[], "").await.status, 204);
    assert_eq!(plain(admin, "DELETE", &path, &[], "").await.status, 404);
    let wrong = json!({"trouble": {"kind": "slow", "delay_ms": 1}, "probability": 2}).to_string();
    assert_eq!(plain(admin, "POST", "/emulator/troubles", &[], &wrong).await.status, 400);
    assert_eq!(plain(admin, "GET", "/emulator/troubles", &[], "").await.body, "[]");
    let state = plain(admin, "GET", "/emulator/state", &[], "").await.json();
    assert!(state["answers"]["500"].as_u64() > Some(0) && state["limits"].is_null(), "{state}");
    site.emulator.stop().await;
}

#[tokio::test]
async fn a_failover_to_another_region_loses_the_newest_writes() {
    let site = Site::start(&["edge-1"]);
    let (hub, target) = (hub(&site), Target::device("edge-1"));
    // Everything of the last ten minutes is lost here, also that the device exists.
    hub.patch_twin(&target, &change(json!({"tags": {"epoch": 1}})), None).await.expect("patches");
    let answer =
        plain(site.emulator.admin_address(), "POST", "/emulator/rollback", &[], r#"{"seconds":600}"#).await;
    assert_eq!(answer.json()["lost"], 2);
    assert!(matches!(hub.get_twin(&target).await, Err(Error::DeviceMissing { .. })));
    let told = site.emulator.rollbacks();
    assert_eq!((told.len(), told[0].lost, told[0].at.since(told[0].to)), (1, 2, Duration::from_secs(600)));
    // The log keeps what was accepted: that is what tests compare with.
    assert_eq!(site.emulator.log().len(), 1);
    site.emulator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hub_in_memory_forgets_as_much_as_it_is_told() {
    #[derive(Debug)]
    struct Paused(tokio::time::Instant);
    impl quorate::clock::Clock for Paused {
        fn now(&self) -> quorate::clock::Moment {
            quorate::clock::Moment::default() + self.0.elapsed() + Duration::from_secs(1000)
        }
        fn wall_ms(&self) -> u64 {
            u64::try_from(self.0.elapsed().as_millis()).unwrap_or(0)
        }
    }
    let hub = MemoryHub::new(Arc::new(Paused(tokio::time::Instant::now())));
    let (d, target) = (device("edge-1"), Target::device("edge-1"));
    hub.create(&d);
    let write = |n: u64| change(json!({"tags": {"epoch": n}}));
    let mut twins = Vec::new();
    for n in 1..=5 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        twins.push(hub.patch_twin(&target, &write(n), None).await.expect("patches"));
    }
    assert_eq!(hub.rollback(Duration::from_secs(150)).lost, 3);
    assert_eq!(hub.twin(&d).as_ref(), Some(&twins[1]));
    // A write that names an etag of what is lost does not fit.
    let stale = hub.patch_twin(&target, &write(6), Some(&twins[4].etag)).await;
    assert_eq!(stale, Err(Error::Changed));
    hub.patch_twin(&target, &write(6), Some(&twins[1].etag)).await.expect("patches");
    // A device made anew is another one, though its name is the same.
    hub.recreate(&d);
    assert_eq!(hub.twin(&d).map(|twin| (twin.version, twin.tags.is_empty())), Some((2, true)));
    hub.enable(&d, false);
    hub.get_twin(&target).await.expect("can be read all the same");
}

#[tokio::test]
async fn a_tier_refuses_what_is_too_much_and_says_why() {
    // A ten-thousandth of an S1: one read every hundred seconds, 40 messages a day.
    let plan = Plan::new(Tier::S1, 1, 0.0001).expect("a plan");
    let options = Options { devices: vec![device("edge-1")], plan: Some(plan), ..Options::default() };
    let site = Site::start_with(&options, Arc::new(BootClock));
    assert_eq!(owner(&site, "GET", "/twins/edge-1", &[], "").await.status, 200);
    let refused = owner(&site, "GET", "/twins/edge-1", &[], "").await;
    assert_eq!(refused.header("iothub-errorcode"), Some("ThrottleBacklogLimitExceeded"), "{refused:?}");
    assert_eq!((refused.status, site.emulator.count(Operation::TwinRead).refused), (429, 1));
    // Nobody uses up limits who is not let in, or asks for nonsense.
    let unknown = super::http::https(&site, "PATCH", "/twins/edge-1?api-version=2021-04-12", &[], "{}").await;
    assert_eq!((unknown.status, site.emulator.count(Operation::TwinUpdate).passed), (401, 0));
    let large = format!(r#"{{"tags":{{"a":"{}"}}}}"#, "x".repeat(200_000));
    let refused = owner(&site, "PATCH", "/twins/edge-1", &[], &large).await;
    assert_eq!((refused.status, refused.header("iothub-errorcode")), (403, Some("IotHubQuotaExceeded")));
    let error =
        hub(&site).patch_twin(&Target::device("edge-1"), &change(json!({"tags": {"a": 1}})), None).await;
    assert!(error.is_ok(), "{error:?}");
    site.emulator.stop().await;
}

#[tokio::test]
async fn a_hub_whose_clock_is_another_is_told_from_a_wrong_key() {
    let site = Site::start(&["edge-1"]);
    let (hub, target) = (hub(&site), Target::device("edge-1"));
    for (trouble, word) in [
        (Trouble::ClockSkew { ahead_s: 90_000 }, "s behind the hub's"),
        (Trouble::TokensExpired, "expired"),
        (Trouble::ClockSkew { ahead_s: 30 }, ""),
    ] {
        site.emulator.trouble(trouble);
        match hub.get_twin(&target).await {
            Ok(_) => assert_eq!(word, "", "{trouble:?} is let in"),
            Err(error) => {
                assert_eq!(error.condition(), Some(Condition::HubUnauthorized));
                assert!(!word.is_empty() && error.to_string().contains(word), "{trouble:?}: {error}");
            }
        }
    }
    site.emulator.trouble(Trouble::Quota);
    assert!(matches!(hub.get_twin(&target).await, Err(Error::Throttled { status: 403, .. })));
    let admin = site.emulator.admin_address();
    assert_eq!(plain(admin, "POST", "/emulator/quota/reset", &[], "").await.status, 204);
    hub.get_twin(&target).await.expect("reads");
    site.emulator.stop().await;
}

#[tokio::test]
async fn the_page_hears_of_changes_and_other_pages_may_not_switch() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let site = Site::start(&["edge-1"]);
    let admin = site.emulator.admin_address();
    let page = plain(admin, "GET", "/", &[], "").await;
    assert!(page.body.contains("IoT Hub emulator"), "{page:?}");
    assert!(
        page.header("content-security-policy").is_some_and(|policy| policy.contains("default-src 'none'"))
    );
    let stream = std::net::TcpStream::connect(admin).expect("connects");
    stream.set_nonblocking(true).expect("a socket");
    let mut stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
    stream.write_all(b"GET /emulator/events HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("writes");
    let mut heard = String::new();
    let mut more = async |count: usize| {
        while heard.matches("data: ").count() < count {
            let mut buffer = [0; 1024];
            let read = stream.read(&mut buffer).await.expect("reads");
            assert!(read > 0, "the events ended: {heard}");
            heard.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    };
    more(1).await;
    site.emulator.meddle(&Target::device("edge-1"), &change(json!({"tags": {"a": 1}}))).expect("accepted");
    more(2).await;
    site.emulator.trouble(Trouble::Quota);
    more(3).await;
    let view = plain(admin, "GET", "/emulator/view", &[], "").await.json();
    assert_eq!(view["twins"][0]["tags"]["a"], 1);
    assert_eq!(
        (&view["writes"][0]["number"], &view["troubles"][0]["trouble"]["kind"]),
        (&1.into(), &"quota".into())
    );
    let foreign = [("origin", "https://elsewhere.example")];
    assert_eq!(plain(admin, "DELETE", "/emulator/troubles", &foreign, "").await.status, 403);
    assert_eq!(
        plain(admin, "GET", "/emulator/troubles", &[], "").await.json().as_array().map(Vec::len),
        Some(1)
    );
    // Somebody who listens does not keep the emulator from ending.
    site.emulator.stop().await;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("ends");
}

#[tokio::test]
async fn a_query_may_lag_where_a_twin_does_not() {
    let site = Site::start(&["edge-1"]);
    site.emulator.trouble(Trouble::StaleQueries { lag_s: 300 });
    let hub = hub(&site);
    hub.patch_twin(&Target::device("edge-1"), &change(json!({"tags": {"a": 1}})), None)
        .await
        .expect("patches");
    // The device itself is younger than what the query sees.
    let found = hub.query("SELECT * FROM devices", None, 10).await.expect("asks");
    assert!(found.rows.is_empty(), "{found:?}");
    assert_eq!(hub.get_twin(&Target::device("edge-1")).await.expect("reads").tags["a"], 1);
    site.emulator.trouble(Trouble::None);
    assert_eq!(hub.query("SELECT * FROM devices", None, 10).await.expect("asks").rows.len(), 1);
    site.emulator.stop().await;
}

#[tokio::test]
async fn the_switches_work_while_the_hub_is_away() {
    let site = Site::start(&["edge-1"]);
    let admin = site.emulator.admin_address();
    let ask = async |method: &str, what: &str, body: &str| {
        plain(admin, method, &format!("/emulator/{what}"), &[], body).await
    };
    let (hub, target) = (hub(&site), Target::device("edge-1"));
    assert_eq!(ask("POST", "trouble", r#"{"kind":"unreachable"}"#).await.status, 200);
    assert!(matches!(hub.get_twin(&target).await, Err(Error::Unreachable(_))));
    for wrong in [r#"{"kind":"nonsense"}"#, r#"{"kind":"failing","status":200}"#, "", "{}"] {
        assert_eq!(ask("POST", "trouble", wrong).await.status, 400, "{wrong}");
    }
    assert_eq!(ask("GET", "trouble", "").await.json(), json!({"kind": "unreachable"}));
    assert_eq!(ask("POST", "trouble", r#"{"kind":"none"}"#).await.status, 200);
    hub.patch_twin(&target, &change(json!({"tags": {"a": 1}})), None).await.expect("patches");
    let log = ask("GET", "log", "").await.json();
    assert_eq!((&log[0]["device"], &log[0]["number"]), (&"edge-1".into(), &1.into()));
    assert_eq!(ask("GET", "log?after=1", "").await.json(), json!([]));
    assert_eq!(ask("GET", "twins", "").await.json()[0]["tags"], json!({"a": 1}));
    site.emulator.stop().await;
}
