//! Twins that somebody has filled with whatever a twin can hold: the mirror's flag ends right, and what is not ours stays.

use std::{sync::Arc, time::Duration};

use quorate::{
    clock::BootClock,
    condition::Condition,
    hub::{FlagPath, Published, Settings, rest::RestHub, store::Target},
    id::SiteId,
    reconcile::mirror::{Mirror, MirrorState},
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::hub::{Site, change, device};

const DEVICES: [&str; 3] = ["edge-1", "edge-2", "edge-3"];

fn published(owner: &str, epoch: u64) -> Option<Published> {
    Some(Published {
        site: SiteId::new("plant-7").expect("a name"),
        devices: DEVICES.map(device).to_vec(),
        owner: Some(device(owner)),
        epoch,
        since_unix_ms: 1_793_607_330_000,
        reason: "the owner was lost".into(),
    })
}

async fn until(state: &mut watch::Receiver<MirrorState>, what: impl Fn(&MirrorState) -> bool) -> MirrorState {
    let found = tokio::time::timeout(Duration::from_secs(120), state.wait_for(|state| what(state))).await;
    found.expect("in time").expect("the mirror runs").clone()
}

fn desire(site: &Site, name: &str, json: Value) {
    let json = json!({ "properties": { "desired": json } });
    site.emulator.meddle(&Target::device(name), &change(json)).expect("is taken");
}

fn shows(site: &Site, owner: &str, epoch: u64) -> bool {
    DEVICES.iter().all(|name| {
        let twin = site.emulator.entry(&Target::device(name)).expect("exists").twin;
        let seen = FlagPath::default().read(&twin.desired.values);
        seen.flag.is_some_and(|flag| {
            (flag.active, flag.leader.as_str(), flag.epoch) == (*name == owner, owner, epoch)
        })
    })
}

/// As deep as a twin may be below `desired`.
fn deep(levels: usize) -> Value {
    (0..levels).fold(json!(1), |inner, _| json!({ "d": inner }))
}

/// Somebody else's properties: deep, large, with numbers at all limits.
fn ballast() -> Value {
    let mut json = json!({
        "deep": deep(8),
        "numbers": [4_503_599_627_370_495_i64, -4_503_599_627_370_496_i64, 1.7e308, 5e-324],
    });
    for n in 0..7 {
        json[format!("s{n}")] = json!("x".repeat(4000));
    }
    json
}

/// What fills a twin that has the ballast to the last few bytes, as tried on one that nobody mirrors.
fn filler(site: &Site) -> serde_json::Map<String, Value> {
    let scratch = device("scratch");
    site.emulator.create_device(&scratch);
    desire(site, "scratch", ballast());
    let mut filler = serde_json::Map::new();
    for length in [4000, 1000, 300, 100, 30, 10] {
        loop {
            let name = format!("f{}", filler.len());
            let text = json!("x".repeat(length));
            let one = json!({ "properties": { "desired": { &name: text } } });
            if site.emulator.meddle(&Target::device("scratch"), &change(one)).is_err() {
                break;
            }
            filler.insert(name, text);
        }
    }
    filler
}

#[tokio::test]
async fn whatever_stands_where_the_flag_should_be_is_replaced_and_the_rest_is_kept() {
    let site = Site::start(&DEVICES);
    let (publish, published_now) = watch::channel(published("edge-1", 1));
    let (state_sender, mut state) = watch::channel(MirrorState::default());
    let settings = Settings { refresh: Duration::from_secs(1), ..site.settings() };
    let mut seed = 1_u64;
    let mirror = Mirror {
        hub: Arc::new(RestHub::open(&settings, Arc::new(BootClock)).expect("opens")),
        published: published_now,
        confirmed: watch::channel(None).1,
        state: state_sender,
        clock: Arc::new(BootClock),
        dice: Box::new(move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> 11
        }),
        settings,
    };
    let stop = CancellationToken::new();
    let story = async {
        desire(&site, "edge-1", ballast());
        until(&mut state, |state| state.in_sync && shows(&site, "edge-1", 1)).await;
        let spoilt = [
            json!(7),
            json!("yes"),
            json!(false),
            json!([{ "active": true, "epoch": 99 }]),
            json!({}),
            json!({ "active": "yes", "leader": 5, "epoch": "nine", "site": [], "since": {}, "reason": false }),
            json!({ "active": true, "leader": "edge-2", "epoch": -1 }),
            json!({ "active": true, "leader": "edge-2", "epoch": 1.5 }),
            json!({ "active": { "active": { "active": true } }, "leader": deep(6), "epoch": [2] }),
        ];
        let mut epoch = 1;
        for spoilt in spoilt {
            epoch += 1;
            let owner = DEVICES[usize::try_from(epoch % 3).expect("small")];
            for name in DEVICES {
                desire(&site, name, json!({ "quorate": null }));
                desire(&site, name, json!({ "quorate": spoilt }));
            }
            publish.send_replace(published(owner, epoch));
            until(&mut state, |state| state.in_sync && shows(&site, owner, epoch)).await;
        }
        // A number that no site reaches is ahead of every site: it is left as it is, and named, until somebody takes it away.
        desire(&site, "edge-3", json!({ "quorate": { "active": true, "leader": "edge-2", "epoch": 1e300 } }));
        epoch += 1;
        publish.send_replace(published("edge-1", epoch));
        until(&mut state, |state| state.conditions.iter().any(|c| c.name == Condition::TwinImplausible))
            .await;
        let twin = site.emulator.entry(&Target::device("edge-3")).expect("exists").twin;
        assert_eq!(twin.desired.values["quorate"]["epoch"], json!(1e300));
        desire(&site, "edge-3", json!({ "quorate": null }));
        until(&mut state, |state| state.in_sync && shows(&site, "edge-1", epoch)).await;
        // No room is left for the flag in one twin: it is said, the others are right, and it is made good once there is room.
        let mut filler = filler(&site);
        filler.insert("quorate".into(), Value::Null);
        desire(&site, "edge-1", Value::Object(filler.clone()));
        publish.send_replace(published("edge-2", epoch + 1));
        let full =
            until(&mut state, |state| state.conditions.iter().any(|c| c.name == Condition::HubBadAnswer))
                .await;
        assert!(!full.in_sync);
        desire(
            &site,
            "edge-1",
            Value::Object(filler.keys().map(|name| (name.clone(), Value::Null)).collect()),
        );
        until(&mut state, |state| state.in_sync && shows(&site, "edge-2", epoch + 1)).await;
        stop.cancel();
    };
    tokio::join!(mirror.run(stop.clone()), story);
    let twin = site.emulator.entry(&Target::device("edge-1")).expect("exists").twin;
    let ballast = ballast();
    let kept = |(name, value): (&String, &Value)| twin.desired.values.get(name) == Some(value);
    assert!(ballast.as_object().expect("an object").iter().all(kept), "what is not ours was changed");
    // Our own writes never went back, whatever was seen.
    let epochs: Vec<u64> = site
        .emulator
        .log()
        .iter()
        .filter_map(|write| FlagPath::default().read(write.change.desired.as_ref()?).flag)
        .map(|flag| flag.epoch)
        .collect();
    assert!(epochs.is_sorted(), "{epochs:?}");
    site.emulator.stop().await;
}
