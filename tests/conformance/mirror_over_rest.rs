//! The mirror loop with nothing simulated: the REST client, TLS, the emulator, real time.

use std::{sync::Arc, time::Duration};

use quorate::{
    clock::BootClock,
    condition::Condition,
    hub::{FlagPath, Published, memory::Trouble, rest::RestHub, store::Target},
    id::SiteId,
    reconcile::mirror::{Mirror, MirrorState},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::hub::{Site, device};

fn published(owner: &str, epoch: u64) -> Option<Published> {
    Some(Published {
        site: SiteId::new("plant-7").expect("a name"),
        devices: ["edge-1", "edge-2", "edge-3"].map(device).to_vec(),
        owner: Some(device(owner)),
        epoch,
        since_unix_ms: 1_793_607_330_000,
        reason: "the owner was lost".into(),
    })
}

async fn until(state: &mut watch::Receiver<MirrorState>, what: impl Fn(&MirrorState) -> bool) -> MirrorState {
    let found = tokio::time::timeout(Duration::from_secs(60), state.wait_for(|state| what(state))).await;
    found.expect("in time").expect("the mirror runs").clone()
}

#[tokio::test]
async fn an_ownership_that_moves_while_the_hub_is_away_is_shown_when_it_is_back() {
    let site = Site::start(&["edge-1", "edge-2", "edge-3"]);
    let (publish, published_now) = watch::channel(published("edge-1", 1));
    let (state_sender, mut state) = watch::channel(MirrorState::default());
    let mut seed = 1_u64;
    let mirror = Mirror {
        hub: Arc::new(RestHub::open(&site.settings(), Arc::new(BootClock)).expect("opens")),
        published: published_now,
        confirmed: watch::channel(None).1,
        state: state_sender,
        clock: Arc::new(BootClock),
        dice: Box::new(move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> 11
        }),
        settings: site.settings(),
    };
    let stop = CancellationToken::new();
    let story = async {
        until(&mut state, |state| state.in_sync).await;
        site.emulator.trouble(Trouble::Unreachable);
        publish.send_replace(published("edge-2", 2));
        let away = |state: &MirrorState| state.conditions.iter().any(|c| c.name == Condition::HubUnreachable);
        until(&mut state, away).await;
        publish.send_replace(published("edge-3", 3));
        site.emulator.trouble(Trouble::DropAnswer);
        // Writes go through one by one, though none is answered.
        until(&mut state, |state| state.in_sync).await;
        site.emulator.trouble(Trouble::Throttled { retry_after_s: Some(1) });
        publish.send_replace(published("edge-1", 4));
        until(&mut state, |state| state.requests.contains_key("429")).await;
        site.emulator.trouble(Trouble::None);
        let end = until(&mut state, |state| state.in_sync).await;
        assert!(end.conditions.is_empty(), "{end:?}");
        stop.cancel();
    };
    tokio::join!(mirror.run(stop.clone()), story);

    let path = FlagPath::default();
    let flag_of = |name: &str| {
        let entry = site.emulator.entry(&Target::device(name)).expect("exists");
        path.read(&entry.twin.desired.values).flag.expect("a flag")
    };
    for name in ["edge-1", "edge-2", "edge-3"] {
        let flag = flag_of(name);
        assert_eq!((flag.active, flag.leader.as_str(), flag.epoch), (name == "edge-1", "edge-1", 4));
        assert_eq!((flag.site.as_str(), flag.since.as_str()), ("plant-7", "2026-11-02T08:15:30.000Z"));
    }
    // Epochs never go back, the second change was never sent, and never were two flags up.
    let mut up = std::collections::BTreeMap::new();
    let mut epochs = Vec::new();
    for write in site.emulator.log() {
        let seen = path.read(write.change.desired.as_ref().expect("desired"));
        up.insert(write.target.device, seen.active);
        assert!(up.values().filter(|active| **active).count() <= 1, "two flags up");
        epochs.push(seen.epoch);
    }
    assert_eq!(epochs, [1, 1, 1, 3, 3, 3, 4, 4, 4]);
    site.emulator.stop().await;
}
