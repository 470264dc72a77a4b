use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use proptest::prelude::*;

use super::*;

/// 2026-11-02T08:15:30Z.
const NOW: u64 = 1_793_607_330_000;
const SOON: &str = "2026-11-02T09:00:00Z";

fn device(name: &str) -> DeviceId {
    DeviceId::new(name).expect("a name")
}

/// A site that does what it is told, and remembers it.
struct Told {
    site: SiteId,
    wishes: Mutex<Vec<Wish>>,
    executed: Mutex<BTreeMap<u64, Epoch>>,
    says: Result<(), Refusal>,
}

impl Told {
    fn new() -> Told {
        let site = SiteId::new("plant-7").expect("a name");
        Told { site, wishes: Mutex::default(), executed: Mutex::default(), says: Ok(()) }
    }

    fn refusing(refusal: Refusal) -> Told {
        Told { says: Err(refusal), ..Told::new() }
    }

    fn wishes(&self) -> Vec<Wish> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Corridor for Told {
    fn site(&self) -> &SiteId {
        &self.site
    }

    fn epoch(&self) -> Epoch {
        Epoch::new(17).expect("small")
    }

    fn status(&self) -> Value {
        json!({"site": "plant-7"})
    }

    fn why(&self) -> Value {
        json!({"decision": "another device owns"})
    }

    fn executed(&self, id: u64) -> Option<Epoch> {
        self.executed.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
    }

    fn order(&self, wish: Wish) -> BoxFuture<'_, Result<Fulfilled, Refusal>> {
        let epoch = self.epoch();
        if let Some(epoch) = wish.id.and_then(|id| self.executed(id)) {
            return Box::pin(async move { Ok(Fulfilled { repeated: true, epoch, owner: None }) });
        }
        if let Some(id) = wish.id.filter(|_| self.says.is_ok()) {
            self.executed.lock().unwrap_or_else(PoisonError::into_inner).insert(id, epoch);
        }
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner).push(wish);
        let says = self.says.clone().map(|()| Fulfilled { repeated: false, epoch, owner: None });
        Box::pin(async move { says })
    }
}

fn all() -> Allowed {
    Allowed::read(&["all"]).expect("reads")
}

async fn call(site: &Told, allowed: &Allowed, name: &str, payload: Value) -> Outcome {
    execute(site, allowed, NOW, method(name, &payload)).await
}

fn with(fields: Value) -> Value {
    let mut payload = json!({"id": "a-1", "expires": SOON});
    let all = payload.as_object_mut().expect("an object");
    all.extend(fields.as_object().expect("an object").clone());
    payload
}

#[tokio::test]
async fn each_method_becomes_its_order() {
    let one = Some(device("edge-1"));
    for (name, fields, order) in [
        ("transfer", json!({"to": "edge-1"}), Order::Transfer(one.clone())),
        ("transfer", json!({}), Order::Transfer(None)),
        ("pause", json!({}), Order::Pause(None)),
        ("pause", json!({"for_ms": 1_800_000}), Order::Pause(Some(std::time::Duration::from_secs(1800)))),
        ("resume", json!({}), Order::Resume),
        ("drain", json!({"device": "edge-1"}), Order::Drain(device("edge-1"))),
        ("undrain", json!({"device": "edge-1"}), Order::Undrain(device("edge-1"))),
        ("prefer", json!({"device": "edge-1"}), Order::Prefer(one)),
        ("prefer", json!({"device": null}), Order::Prefer(None)),
    ] {
        let site = Told::new();
        let said = json!({"site": "plant-7", "base_epoch": 17, "reason": "new firmware"});
        let payload = with(json!({}));
        let outcome = call(&site, &all(), name, {
            let mut payload = payload;
            for part in [&fields, &said] {
                payload.as_object_mut().expect("an object").extend(part.as_object().expect("one").clone());
            }
            payload
        })
        .await;
        assert_eq!((outcome.status(), &outcome.reply()["outcome"]), (200, &json!("done")), "{name} {fields}");
        let wish = site.wishes().pop().expect("one wish");
        assert_eq!((&wish.order, wish.base), (&order, Epoch::new(17)), "{name} {fields}");
        assert_eq!((wish.reason.as_str(), wish.actor.as_str()), ("new firmware", "IoT Hub method"));
        assert_eq!(wish.expires_unix_ms, wall::from_rfc3339(SOON).expect("a moment"));
    }
    let site = Told::new();
    assert_eq!(call(&site, &all(), "status", Value::Null).await.reply(), json!({"site": "plant-7"}));
    assert_eq!(call(&site, &all(), "why", json!({})).await.reply()["decision"], "another device owns");
    assert_eq!(call(&site, &all(), "reboot", json!({})).await.status(), 404);
    assert_eq!(call(&site, &all(), "timing", with(json!({"stretch": 200}))).await.status(), 404);
    assert!(site.wishes().is_empty());
}

#[tokio::test]
async fn a_pause_lasts_for_a_sensible_time_or_is_refused() {
    let site = Told::new();
    for wrong in
        [json!(0), json!(999), json!(31_622_400_001u64), json!(-5), json!(1.5e6), json!("30m"), json!(true)]
    {
        let outcome = call(&site, &all(), "pause", with(json!({"for_ms": wrong}))).await;
        assert_eq!(outcome.status(), 400, "{wrong}");
        assert!(outcome.reply()["reason"].as_str().is_some_and(|r| r.starts_with("for_ms: ")), "{wrong}");
    }
    // What ends a pause does not last.
    let ends = desired(&json!({"pause": with(json!({"on": false, "for_ms": 5000}))})).pop().expect("one");
    assert_eq!(execute(&site, &all(), NOW, ends).await.status(), 400);
    assert!(site.wishes().is_empty());
    let lasts = desired(&json!({"pause": with(json!({"on": true, "for_ms": 5000}))})).pop().expect("one");
    assert_eq!(execute(&site, &all(), NOW, lasts).await.status(), 200);
    let for_5_s = Some(std::time::Duration::from_secs(5));
    assert_eq!(site.wishes().pop().map(|wish| wish.order), Some(Order::Pause(for_5_s)));
}

#[tokio::test]
async fn each_desired_property_becomes_its_order() {
    let entry = |fields| with(fields);
    let section = json!({
        "prefer": entry(json!({"device": null})),
        "drain": entry(json!({"devices": ["edge-3", "edge-1"]})),
        "pause": entry(json!({"on": true})),
        "transfer": entry(json!({"to": "edge-1"})),
        "timing": entry(json!({"stretch": 150})),
        "flag": {"active": true},
        "$version": 4,
    });
    let site = Told::new();
    let mut reported = json!({});
    for request in desired(&section) {
        let outcome = execute(&site, &all(), NOW, request).await;
        assert_eq!(outcome.status(), 200, "{outcome:?}");
        let patch = outcome.reported(NOW).expect("an order");
        reported.as_object_mut().expect("an object").extend(patch.as_object().expect("one").clone());
    }
    let orders: Vec<Order> = site.wishes().into_iter().map(|wish| wish.order).collect();
    assert_eq!(
        orders,
        [
            Order::Pause(None),
            Order::Prefer(None),
            Order::DrainExactly(vec![device("edge-3"), device("edge-1")]),
            Order::Timing(Some(150)),
            Order::Transfer(Some(device("edge-1"))),
        ]
    );
    let ids: std::collections::BTreeSet<_> = site.wishes().iter().map(|wish| wish.id).collect();
    assert_eq!(ids.len(), 5, "one id in the cloud, and yet five commands");
    let done =
        json!({"id": "a-1", "outcome": "done", "reason": "", "epoch": 17, "at": "2026-11-02T08:15:30.000Z"});
    assert_eq!(reported["timing"], done);
    assert_eq!(reported.as_object().map(|all| all.len()), Some(5));
    assert!(desired(&section).iter().all(|request| is_answered(request, &reported)));
    let lifted = json!({"pause": with(json!({"on": false, "id": "a-2"})), "timing": null});
    let requests = desired(&lifted);
    assert!(requests.len() == 1 && !is_answered(&requests[0], &reported));
    let outcome = execute(&site, &all(), NOW, requests.into_iter().next().expect("one")).await;
    assert_eq!(site.wishes().last().map(|wish| wish.order.clone()), Some(Order::Resume));
    assert_eq!(outcome.reported(NOW).expect("an order")["pause"]["id"], "a-2", "where the pause was");
}

#[tokio::test]
async fn what_is_no_property_is_refused_under_its_own_name_with_what_to_write() {
    let section = json!({
        "pause": with(json!({"on": false})),
        "resume": {"id": "r-1"},
        "undrain": "edge-1",
        "flag": true,
    });
    let requests = desired(&section);
    assert_eq!(requests.len(), 3);
    let (site, mut told) = (Told::new(), json!({}));
    for request in requests {
        let outcome = execute(&site, &all(), NOW, request.clone()).await;
        let reported = outcome.reported(NOW).expect("is kept");
        assert!(is_answered(&request, &reported));
        for (key, said) in reported.as_object().expect("an object") {
            told[key] = said.clone();
        }
    }
    assert_eq!(site.wishes().len(), 1, "the pause's end alone");
    assert_eq!(told["pause"]["outcome"], "done");
    assert_eq!((&told["resume"]["outcome"], &told["resume"]["id"]), (&json!("refused"), &json!("r-1")));
    let reason = |key: &str| told[key]["reason"].as_str().expect("a text").to_owned();
    assert!(reason("resume").contains("pause") && reason("resume").contains("\"on\": false"), "{told}");
    assert!(reason("undrain").contains("write drain"), "{told}");
}

#[tokio::test]
async fn a_repeat_is_answered_even_if_it_would_be_refused_now() {
    let site = Told::new();
    let pause = || with(json!({}));
    assert_eq!(call(&site, &all(), "pause", pause()).await.reply()["outcome"], "done");
    let later = execute(&site, &all(), NOW + 30 * VALID_MAX_MS, method("pause", &pause())).await;
    assert_eq!((later.status(), &later.reply()["outcome"]), (200, &json!("repeated")));
    let by_twin = desired(&json!({"pause": with(json!({"on": true}))}));
    let by_twin = execute(&site, &all(), NOW, by_twin.into_iter().next().expect("one")).await;
    assert_eq!(by_twin.reply()["outcome"], "repeated", "the same command, whichever way it came");
    assert_eq!(site.wishes().len(), 1);
}

#[tokio::test]
async fn only_what_the_site_allows_is_done() {
    let site = Told::new();
    let questions = Allowed::default();
    assert_eq!(call(&site, &questions, "status", Value::Null).await.status(), 200);
    let refused = call(&site, &questions, "pause", with(json!({}))).await;
    assert_eq!(refused.status(), 403);
    assert!(refused.reply()["reason"].as_str().is_some_and(|why| why.contains("hub.commands")));
    let none = Allowed::read(&["none"]).expect("reads");
    assert_eq!(call(&site, &none, "status", Value::Null).await.status(), 403);
    // A list that may lift what another drained takes both.
    let drains = Allowed::read(&["drain"]).expect("reads");
    let list = desired(&json!({"drain": with(json!({"devices": []}))}));
    let list = execute(&site, &drains, NOW, list.into_iter().next().expect("one")).await;
    assert_eq!(list.status(), 403);
    let resumes = desired(&json!({"pause": with(json!({"on": false}))}));
    let pauses = Allowed::read(&["pause"]).expect("reads");
    let resumes = execute(&site, &pauses, NOW, resumes.into_iter().next().expect("one")).await;
    assert_eq!(resumes.status(), 403);
    assert!(site.wishes().is_empty());
}

#[tokio::test]
async fn what_is_late_early_or_for_others_is_refused() {
    for (fields, status, word) in [
        (json!({"expires": "2026-11-02T08:15:30Z"}), 409, "expired"),
        (json!({"expires": "1999-01-01T00:00:00Z"}), 409, "expired"),
        (json!({"expires": "2026-11-09T08:15:30.001Z"}), 400, "7 days"),
        (json!({"expires": "9999-12-31T23:59:59Z"}), 400, "7 days"),
        (json!({"site": "plant-8"}), 409, "plant-8"),
        (json!({"site": ""}), 409, "plant-7"),
    ] {
        let site = Told::new();
        let outcome = call(&site, &all(), "pause", with(fields.clone())).await;
        assert_eq!(outcome.status(), status, "{fields}");
        assert!(outcome.reply()["reason"].as_str().is_some_and(|why| why.contains(word)), "{outcome:?}");
        assert!(site.wishes().is_empty());
    }
    let site = Told::new();
    let unset = execute(&site, &all(), 86_400_000, method("pause", &with(json!({})))).await;
    assert_eq!(unset.status(), 503, "a clock that was never set");
    assert!(!unset.is_final() && site.wishes().is_empty());
    let latest = with(json!({"expires": "2026-11-09T08:15:30Z"}));
    assert_eq!(call(&site, &all(), "pause", latest).await.status(), 200);
}

#[tokio::test]
async fn every_refusal_has_its_status() {
    let text = || "because".to_owned();
    for (refusal, status) in [
        (Refusal::NoSuchDevice(text()), 404),
        (Refusal::Unfit(text()), 422),
        (Refusal::Stale(text()), 409),
        (Refusal::NotNow(text()), 503),
        (Refusal::Unconfirmed(text()), 503),
    ] {
        let site = Told::refusing(refusal);
        let outcome = call(&site, &all(), "pause", with(json!({}))).await;
        assert_eq!((outcome.status(), outcome.is_final()), (status, status != 503));
        let reply = json!({"outcome": "refused", "reason": "because", "epoch": 17});
        assert_eq!(outcome.reply(), reply);
    }
}

#[tokio::test]
async fn what_is_malformed_is_refused_with_the_field() {
    let long = "x".repeat(128 << 10);
    for (name, payload, field) in [
        ("pause", Value::Null, "payload"),
        ("pause", json!([1]), "payload"),
        ("pause", json!(long), "payload"),
        ("pause", json!({"expires": SOON}), "id:"),
        ("pause", with(json!({"id": ""})), "id:"),
        ("pause", with(json!({"id": 7})), "id:"),
        ("pause", with(json!({"id": "a b"})), "id:"),
        ("pause", with(json!({"id": "x".repeat(65)})), "id:"),
        ("pause", with(json!({"id": "ä"})), "id:"),
        ("pause", with(json!({"id": long})), "id:"),
        ("pause", json!({"id": "a"}), "expires:"),
        ("pause", with(json!({"expires": 7})), "expires:"),
        ("pause", with(json!({"expires": long})), "expires:"),
        ("pause", with(json!({"expires": "2026-11-02T09:00:00+01:00"})), "expires:"),
        ("pause", with(json!({"base_epoch": -1})), "base_epoch:"),
        ("pause", with(json!({"base_epoch": 1.5})), "base_epoch:"),
        ("pause", with(json!({"base_epoch": u64::MAX})), "base_epoch:"),
        ("pause", with(json!({"base_epoch": 1e300})), "base_epoch:"),
        ("pause", with(json!({"site": {}})), "site:"),
        ("pause", with(json!({"reason": "two\nlines"})), "reason:"),
        ("pause", with(json!({"reason": long})), "reason:"),
        ("pause", with(json!({"not_before": SOON})), "not_before:"),
        ("pause", with(json!({"device": "edge-1"})), "device:"),
        ("transfer", with(json!({"to": 7})), "to:"),
        ("transfer", with(json!({"too": "edge-1"})), "too:"),
        ("transfer", with(json!({"to": long})), "to:"),
        ("drain", with(json!({})), "device:"),
        ("drain", with(json!({"device": null})), "device:"),
        ("drain", with(json!({"device": "edge 1"})), "device:"),
        ("prefer", with(json!({})), "device:"),
    ] {
        let site = Told::new();
        let outcome = call(&site, &all(), name, payload).await;
        let reason = outcome.reply()["reason"].as_str().expect("a text").to_owned();
        assert!(
            outcome.status() == 400 && reason.contains(field) && reason.len() < 200,
            "{field}: {outcome:?}"
        );
        assert!(site.wishes().is_empty());
    }
    for (section, field) in [
        (json!({"pause": with(json!({}))}), "on:"),
        (json!({"pause": with(json!({"on": "yes"}))}), "on:"),
        (json!({"pause": true}), "payload"),
        (json!({"drain": with(json!({"devices": "edge-1"}))}), "devices:"),
        (json!({"drain": with(json!({"devices": ["edge-1", 2]}))}), "devices:"),
        (json!({"drain": with(json!({"devices": vec!["edge-1"; 65]}))}), "devices:"),
        (json!({"transfer": with(json!({}))}), "to:"),
        (json!({"transfer": with(json!({"to": null}))}), "to:"),
        (json!({"timing": with(json!({"stretch": 99}))}), "stretch:"),
        (json!({"timing": with(json!({"stretch": 6401}))}), "stretch:"),
        (json!({"timing": with(json!({"stretch": 100.5}))}), "stretch:"),
        (json!({"timing": with(json!({}))}), "stretch:"),
        (json!({"prefer": with(json!({"device": []}))}), "device:"),
    ] {
        let requests = desired(&section);
        let malformed = requests[0].as_ref().expect_err("malformed");
        assert!(malformed.reason.contains(field), "{section}: {malformed:?}");
        let site = Told::new();
        let outcome = execute(&site, &all(), NOW, requests[0].clone()).await;
        let reported = outcome.reported(NOW).expect("its key is known");
        assert!(outcome.status() == 400 && site.wishes().is_empty());
        assert!(is_answered(&requests[0], &reported), "and not told again at each connection");
    }
    for nothing in [json!(null), json!([]), json!("x"), json!({"drain": null}), json!({"darin": {}})] {
        assert_eq!(desired(&nothing), []);
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let words = prop_oneof![
        Just("id"),
        Just("expires"),
        Just("base_epoch"),
        Just("site"),
        Just("reason"),
        Just("to"),
        Just("device"),
        Just("devices"),
        Just("on"),
        Just("stretch"),
        Just("pause"),
        Just("drain"),
        Just("timing"),
        Just("prefer"),
        Just("transfer"),
        Just("$metadata"),
        Just(""),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,80}".prop_map(Value::from),
        Just(Value::from(SOON)),
        Just(Value::from("a-1")),
        Just(Value::from("edge-1")),
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::btree_map(words.clone().prop_map(str::to_owned), inner, 0..8)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever the cloud sends, the answer is a reason or exactly one well-formed wish.
    #[test]
    fn total_on_everything_that_json_can_say(json in any_json(), verb in 0usize..9, now in any::<u64>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("starts");
        let name = Verb::ALL[verb].name();
        let mut requests = desired(&json);
        requests.extend(desired(&serde_json::json!({ name: json })));
        requests.push(method(name, &json));
        for request in requests {
            let site = Told::new();
            let outcome = runtime.block_on(execute(&site, &all(), now, request));
            let reply = outcome.reply();
            prop_assert!(matches!(outcome.status(), 200 | 400 | 404 | 409 | 503));
            prop_assert_eq!(site.wishes().len(), usize::from(outcome.status() == 200 && reply.get("outcome").is_some()));
            let reported = outcome.reported(now).map_or(0, |it| it.to_string().len());
            prop_assert!(reported < 1024, "{reported} bytes are reported");
            for wish in site.wishes() {
                prop_assert!(wish.expires_unix_ms > now && wish.reason.len() <= REASON_MAX && wish.id.is_some());
            }
        }
    }
}

/// A twin takes no text of more than 4 KiB, and refuses the whole patch: then it does not show who owns either. On a site of
/// many devices, all drained with long reasons, a refusal names each of them.
#[tokio::test]
async fn no_refusal_is_too_long_for_a_twin() {
    let each = format!("edge-01 is drained by IoT Hub twin: {}", "r".repeat(REASON_MAX));
    let site = Told::refusing(Refusal::Unfit(format!(
        "no other device can take over: {}",
        vec![each; 15].join("; ")
    )));
    let outcome = call(&site, &all(), "drain", with(json!({"device": "edge-16"}))).await;
    let said = outcome.reported(NOW).expect("something to keep");
    let length = said["drain"]["reason"].as_str().map_or(0, str::len);
    assert!(length <= crate::hub::twin::TEXT_MAX, "{length} bytes");
}
