//! What a site that is left alone costs its hub in a day, as the hub counts.
//!
//! The loops that speak with it are the product's, on tokio's paused clock; a link lives as long as a real one. The site around them
//! stands still: that it says nothing new by itself is what makes the day steady.

use std::{sync::Arc, time::Duration};

use quorate::{
    clock::{Clock, Moment},
    dice::Dice,
    hub::{
        BoxFuture, Error, Flag, MirrorKind, Published, Settings, Target,
        link::{Connected, Module},
        memory::MemoryHub,
        memory_link::MemoryModule,
        mqtt::client::LINK_LIFE,
        reported::Reported,
        throttle::{Operation, Plan, Tier},
        twin::Properties,
    },
    id::{DeviceId, SiteId},
    reconcile::{
        mirror::{Mirror, MirrorState},
        module::{Inbox, ModuleLoop, ModuleState},
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const HOUR: Duration = Duration::from_secs(3600);
/// What a day may cost.
const BUDGET: u64 = 300;

/// Boot and wall clock over tokio's paused time.
#[derive(Debug)]
struct PausedClock(Instant);

impl Clock for PausedClock {
    fn now(&self) -> Moment {
        Moment::from_nanos(1) + self.0.elapsed()
    }
    fn wall_ms(&self) -> u64 {
        1_800_000_000_000 + u64::try_from(self.0.elapsed().as_millis()).unwrap_or(0)
    }
}

/// A module whose links end as real ones do.
struct Renewed(MemoryModule);

impl Module for Renewed {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn target(&self) -> &Target {
        self.0.target()
    }
    fn stores_and_forwards(&self) -> bool {
        self.0.stores_and_forwards()
    }
    fn knock(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.0.knock()
    }
    fn connect(&self) -> BoxFuture<'_, Result<Connected, Error>> {
        Box::pin(async {
            let Connected { link, events, runs } = self.0.connect().await?;
            let runs = async move { tokio::time::timeout(LINK_LIFE, runs).await.unwrap_or(Ok(())) };
            Ok(Connected { link, events, runs: Box::pin(runs) })
        })
    }
}

fn said(published: &Published, device: &DeviceId) -> Reported {
    let flag = Flag::wanted(published, device);
    Reported {
        doubtful: false,
        device: device.to_string(),
        role: if flag.active { "owner" } else { "standby" }.into(),
        flag,
        build: String::new(),
        members: Vec::new(),
        may_fail: 1,
        paused: None,
        drained: Vec::new(),
        conditions: Vec::new(),
        mirror: None,
        hub_lag_s: 0,
        certificate_expires: None,
        commands: Properties::new(),
        reported: String::new(),
    }
}

/// What the hub is asked for in a day: reads, updates, connections.
async fn day(edge: bool) -> [u64; 3] {
    let mut dice = Dice::new(1);
    let clock = Arc::new(PausedClock(Instant::now()));
    let hub = MemoryHub::new(clock.clone());
    let devices = ["edge-1", "edge-2", "edge-3"].map(|name| DeviceId::new(name).expect("a name"));
    let published = Published {
        site: SiteId::new("plant-7").expect("a name"),
        devices: devices.to_vec(),
        owner: devices.first().cloned(),
        epoch: 1,
        since_unix_ms: 0,
        reason: "first start".into(),
    };
    let settings = Settings { mirror: MirrorKind::Both, ..Settings::default() };
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let mut modules = Vec::new();
    for device in &devices {
        hub.create(device);
        let target = Target::module(device.as_str(), "quorate");
        hub.create_module(&target);
        let (desired, inbox) = watch::channel(None);
        let (calls, inputs) = (mpsc::channel(1), mpsc::channel(1));
        let (wanted, state) =
            (watch::Sender::new(Some(said(&published, device))), watch::Sender::new(ModuleState::default()));
        let mut own = dice.split();
        let module = ModuleLoop {
            module: Arc::new(Renewed(MemoryModule::new(hub.clone(), target, edge))),
            wanted: wanted.subscribe(),
            state: state.clone(),
            inbox: Inbox { desired, calls: calls.0, inputs: inputs.0 },
            clock: clock.clone(),
            dice: Box::new(move || own.throw()),
            refresh: settings.refresh,
            spread: Duration::ZERO,
        };
        tasks.spawn(module.run(stop.clone()));
        modules.push((wanted, inbox, calls.1, inputs.1, state.subscribe()));
    }
    let (publish, state) = (watch::Sender::new(Some(published)), watch::Sender::new(MirrorState::default()));
    let mirror = Mirror {
        hub: Arc::new(hub.clone()),
        published: publish.subscribe(),
        confirmed: watch::channel(None).1,
        state: state.clone(),
        clock: clock.clone(),
        dice: Box::new(move || dice.throw()),
        settings,
    };
    tasks.spawn(mirror.run(stop.clone()));
    // What a start costs, and what is looked at once more after it, is over by then.
    tokio::time::sleep(HOUR * 2).await;
    assert!(state.borrow().in_sync && modules.iter().all(|module| module.4.borrow().in_sync));
    // Nobody meets these limits; they count.
    hub.limit(Some(Plan::new(Tier::S3, 10, 1.0).expect("a plan")));
    tokio::time::sleep(HOUR * 24).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    [Operation::TwinRead, Operation::TwinUpdate, Operation::Connection].map(|operation| {
        let count = hub.count(operation);
        count.passed + count.delayed + count.refused
    })
}

#[tokio::test(start_paused = true)]
async fn a_day_of_rest_costs_the_hub_little() {
    for edge in [false, true] {
        let [reads, updates, connections] = day(edge).await;
        println!("through an edgeHub {edge}: {reads} reads, {updates} updates, {connections} connections");
        let all = reads + updates + connections;
        assert!(all <= BUDGET, "{all} operations a day");
        // Three twins by the one mirror and three by the others, once an hour.
        assert!((120..=180).contains(&reads), "{reads} reads");
        assert_eq!(updates, 0);
    }
}
