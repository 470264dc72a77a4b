//! The loop against a hub in memory, on tokio's paused clock.

mod convergence;

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};

use super::*;
use crate::{
    clock::Moment,
    condition::Condition,
    hub::{
        BoxFuture, Change, FlagPath, Hub,
        memory::{MemoryHub, Trouble},
        store::Write,
    },
    id::{DeviceId, SiteId},
};

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

fn name(number: usize) -> DeviceId {
    DeviceId::new(format!("edge-{number}")).expect("a name")
}

fn published(owner: Option<usize>, epoch: u64) -> Option<Published> {
    Some(Published {
        site: SiteId::new("plant-7").expect("a name"),
        devices: (1..=3).map(name).collect(),
        owner: owner.map(name),
        epoch,
        since_unix_ms: epoch,
        reason: format!("claim {epoch}"),
    })
}

/// A running mirror, its input and its output.
struct Bench {
    memory: MemoryHub,
    publish: watch::Sender<Option<Published>>,
    confirm: watch::Sender<Option<Confirmed>>,
    state: watch::Receiver<MirrorState>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    began: Instant,
}

impl Bench {
    fn new() -> Bench {
        Bench::around(MemoryHub::new(Arc::new(PausedClock(Instant::now()))), |memory| {
            Arc::new(memory.clone())
        })
    }

    /// `door` is what the mirror gets instead of the hub itself.
    fn around(memory: MemoryHub, door: impl FnOnce(&MemoryHub) -> hub::Handle) -> Bench {
        Bench::with(memory, door, Settings::default())
    }

    fn with(memory: MemoryHub, door: impl FnOnce(&MemoryHub) -> hub::Handle, settings: Settings) -> Bench {
        for number in 1..=3 {
            memory.create(&name(number));
        }
        let (publish, published) = watch::channel(None);
        let (state, seen) = watch::channel(MirrorState::default());
        let (confirm, confirmed) = watch::channel(None);
        let mut seed = 7_u64;
        let mirror = Mirror {
            hub: door(&memory),
            published,
            confirmed,
            state,
            clock: Arc::new(PausedClock(Instant::now())),
            dice: Box::new(move || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                seed >> 11
            }),
            settings,
        };
        let stop = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "a test owns its one task")]
        let task = tokio::spawn(mirror.run(stop.clone()));
        Bench { memory, publish, confirm, state: seen, stop, task, began: Instant::now() }
    }

    fn publish(&self, published: Option<Published>) {
        self.publish.send_replace(published);
    }

    async fn until(&mut self, what: impl Fn(&MirrorState) -> bool) -> MirrorState {
        let wait = self.state.wait_for(|state| what(state));
        let found = tokio::time::timeout(Duration::from_secs(100_000), wait).await;
        found.expect("in time").expect("the mirror runs").clone()
    }

    /// Publishes and waits until the twins follow.
    async fn settle(&mut self, published: Option<Published>) -> MirrorState {
        let before = self.state.borrow().newest_change;
        // Two changes at one paused moment could not be told apart.
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.publish(published);
        self.until(|state| state.in_sync && state.newest_change != before).await
    }

    fn flag(&self, number: usize) -> (bool, u64) {
        let twin = self.memory.twin(&name(number)).expect("exists");
        let seen = FlagPath::default().read(&twin.desired.values);
        (seen.active, seen.epoch)
    }

    fn flags(&self) -> [(bool, u64); 3] {
        [1, 2, 3].map(|number| self.flag(number))
    }

    /// The writes as (device, active, epoch).
    fn writes(&self) -> Vec<(String, bool, u64)> {
        self.memory.log().iter().map(written).collect()
    }
}

fn written(write: &Write) -> (String, bool, u64) {
    let desired = write.change.desired.as_ref().expect("desired");
    let seen = FlagPath::default().read(desired);
    (write.target.device.clone(), seen.active, seen.epoch)
}

fn flag_change(epoch: u64, active: bool) -> Change {
    let json = json!({"properties": {"desired": {"quorate": {"active": active, "leader": "x", "epoch": epoch,
        "site": "other", "since": "", "reason": ""}}}});
    Change::from_json(&json).expect("a change")
}

#[tokio::test(start_paused = true)]
async fn a_failover_clears_the_old_flag_before_it_sets_the_new_one() {
    let mut bench = Bench::new();
    bench.settle(published(Some(1), 1)).await;
    assert_eq!(bench.flags(), [(true, 1), (false, 1), (false, 1)]);
    let before = bench.writes().len();
    bench.settle(published(Some(2), 2)).await;
    assert_eq!(bench.flags(), [(false, 2), (true, 2), (false, 2)]);
    let order = bench.writes().split_off(before);
    let text = |n: usize| name(n).to_string();
    assert_eq!(order, [(text(1), false, 2), (text(2), true, 2), (text(3), false, 2)]);
    bench.settle(published(None, 2)).await;
    assert_eq!(bench.flags(), [(false, 2), (false, 2), (false, 2)]);
}

#[tokio::test(start_paused = true)]
async fn a_twin_that_is_ahead_is_never_overwritten() {
    let mut bench = Bench::new();
    assert!(bench.memory.meddle(&name(2), &flag_change(9, true)));
    bench.publish(published(Some(1), 5));
    let state = bench.until(|state| state.conditions.iter().any(|c| c.name == Condition::TwinAhead)).await;
    assert!(!state.in_sync);
    assert_eq!(state.highest_epoch_seen, 9);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(bench.flags(), [(false, 0), (true, 9), (false, 0)]);
    assert_eq!(bench.writes().len(), 1, "only the stranger wrote");
    // The site gets past it: all is told again.
    let state = bench.settle(published(Some(1), 10)).await;
    assert!(state.conditions.is_empty());
    assert_eq!(bench.flags(), [(true, 10), (false, 10), (false, 10)]);
}

/// A hub to which somebody else writes just before the first patch arrives.
struct Overtaken {
    memory: MemoryHub,
    by: Mutex<Option<Change>>,
}

impl Hub for Overtaken {
    fn name(&self) -> &str {
        "overtaken"
    }
    fn knock(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.memory.knock()
    }
    fn get_twin<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Twin, Error>> {
        self.memory.get_twin(target)
    }
    fn patch_twin<'a>(
        &'a self,
        target: &'a Target,
        change: &'a Change,
        if_match: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Twin, Error>> {
        if let Some(by) = self.by.lock().expect("no panic").take() {
            let device = DeviceId::new(target.device.as_str()).expect("a name");
            assert!(self.memory.meddle(&device, &by));
        }
        self.memory.patch_twin(target, change, if_match)
    }
}

fn overtaken(by: Change) -> Bench {
    let memory = MemoryHub::new(Arc::new(PausedClock(Instant::now())));
    Bench::around(memory, |memory| Arc::new(Overtaken { memory: memory.clone(), by: Mutex::new(Some(by)) }))
}

#[tokio::test(start_paused = true)]
async fn a_stale_owner_that_compared_in_time_still_cannot_overwrite() {
    let mut bench = overtaken(flag_change(6, true));
    bench.publish(published(Some(1), 5));
    let state = bench.until(|state| state.conditions.iter().any(|c| c.name == Condition::TwinAhead)).await;
    assert_eq!(state.requests.get("412"), Some(&1));
    assert_eq!(bench.flag(1), (true, 6));
}

#[tokio::test(start_paused = true)]
async fn a_change_beside_the_flag_is_read_again_and_kept() {
    let mut bench =
        overtaken(Change::from_json(&json!({"properties": {"desired": {"mine": 1}}})).expect("a change"));
    let state = bench.settle(published(Some(1), 5)).await;
    assert_eq!(state.requests.get("412"), Some(&1));
    assert_eq!(bench.flag(1), (true, 5));
    assert_eq!(bench.memory.twin(&name(1)).expect("exists").desired.values.get("mine"), Some(&json!(1)));
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_only_the_newest_is_written_and_within_seconds() {
    let mut bench = Bench::new();
    bench.settle(published(Some(1), 1)).await;
    let before = bench.writes().len();
    bench.memory.trouble(Trouble::Unreachable);
    for epoch in 2..=20 {
        bench.publish(published(Some(1 + usize::try_from(epoch % 2).expect("small")), epoch));
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    let state = bench.state.borrow().clone();
    assert!(state.conditions.iter().any(|c| c.name == Condition::HubUnreachable));
    let now = PausedClock(bench.began).now();
    assert!(state.lag(now) >= Duration::from_secs(19 * 60), "{:?}", state.lag(now));
    bench.memory.trouble(Trouble::None);
    let back = Instant::now();
    let state = bench.until(|state| state.in_sync).await;
    assert!(back.elapsed() <= Duration::from_secs(6), "{:?}", back.elapsed());
    assert!(state.conditions.is_empty() && state.behind_since.is_none());
    assert_eq!(bench.flags(), [(true, 20), (false, 20), (false, 20)]);
    assert_eq!(bench.writes().len() - before, 3, "one write per twin: {:?}", bench.writes());
}

#[tokio::test(start_paused = true)]
async fn what_is_equal_is_not_written() {
    let mut bench = Bench::new();
    bench.settle(published(Some(3), 4)).await;
    let before = bench.writes().len();
    // This device stops mirroring and begins again, as after a restart.
    bench.publish(None);
    bench.until(|state| !state.mirroring).await;
    bench.settle(published(Some(3), 4)).await;
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(bench.writes().len(), before);
    let reads = bench.state.borrow().requests.get("200").copied().unwrap_or_default();
    // Three twins, every hour, for a day; and a few to begin with.
    assert!((65..=90).contains(&reads), "{reads}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_does_not_write_twice() {
    let mut bench = Bench::new();
    bench.memory.trouble(Trouble::DropAnswer);
    bench.settle(published(Some(2), 3)).await;
    assert_eq!(bench.flags(), [(false, 3), (true, 3), (false, 3)]);
    assert_eq!(bench.writes().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_missing_device_does_not_stop_the_others_and_is_found_when_it_comes() {
    let mut bench = Bench::new();
    bench.memory.delete(&name(1));
    let state = bench.settle(published(Some(2), 3)).await;
    let missing: Vec<_> = state.conditions.iter().map(|c| (c.name, c.detail.as_str())).collect();
    assert_eq!(missing, [(Condition::HubDeviceMissing, "edge-1")]);
    assert_eq!((bench.flag(2), bench.flag(3)), ((true, 3), (false, 3)));
    assert!(state.devices[&name(1)].error.is_some());
    assert_eq!(state.devices[&name(2)].epoch_confirmed, Some(3));
    bench.memory.create(&name(1));
    bench.until(|state| state.devices[&name(1)].epoch_confirmed == Some(3)).await;
    assert!(bench.began.elapsed() < Duration::from_secs(80));
    // Deleted under way, between reading and writing.
    bench.memory.delete(&name(3));
    bench.settle(published(Some(2), 4)).await;
    assert_eq!((bench.flag(1), bench.flag(2)), ((false, 4), (true, 4)));
}

#[tokio::test(start_paused = true)]
async fn the_wish_to_be_left_alone_is_obeyed() {
    let mut bench = Bench::new();
    bench.memory.trouble(Trouble::Throttled { retry_after_s: Some(40) });
    bench.publish(published(Some(1), 1));
    bench.until(|state| state.next_attempt.is_some()).await;
    tokio::time::sleep(Duration::from_secs(39)).await;
    // Not even a newer state makes it knock.
    bench.publish(published(Some(2), 2));
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(bench.memory.requests(), 1);
    bench.memory.trouble(Trouble::None);
    let state = bench.until(|state| state.in_sync).await;
    assert!(bench.began.elapsed() < Duration::from_secs(42));
    assert_eq!(state.requests.get("429"), Some(&1));
    assert_eq!(bench.flags(), [(false, 2), (true, 2), (false, 2)]);
}

/// Answers every read and fails every write like this.
struct ReadOnly(MemoryHub, AtomicUsize, Error);

impl Hub for ReadOnly {
    fn name(&self) -> &str {
        "read-only"
    }
    fn knock(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.0.knock()
    }
    fn get_twin<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Twin, Error>> {
        self.0.get_twin(target)
    }
    fn patch_twin<'a>(
        &'a self,
        _: &'a Target,
        _: &'a Change,
        _: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Twin, Error>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Err(self.2.clone()) })
    }
}

#[tokio::test(start_paused = true)]
async fn back_off_grows_to_a_minute_also_when_reads_succeed() {
    let memory = MemoryHub::new(Arc::new(PausedClock(Instant::now())));
    let fails = Error::Unavailable { status: 500, retry_after: None, detail: String::new() };
    let door = Arc::new(ReadOnly(memory.clone(), AtomicUsize::new(0), fails));
    let mut bench = Bench::around(memory, |_| door.clone());
    bench.publish(published(Some(1), 1));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let tries = door.1.load(Ordering::SeqCst);
    assert!((60..=140).contains(&tries), "{tries} tries in an hour");
    let state = bench.until(|state| !state.conditions.is_empty()).await;
    assert_eq!(state.conditions[0].name, Condition::HubUnreachable);
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_may_only_read_is_named_until_a_write_goes_through() {
    let memory = MemoryHub::new(Arc::new(PausedClock(Instant::now())));
    let fails = Error::Unauthorized { status: 403, detail: "no ServiceConnect".into() };
    let door = Arc::new(ReadOnly(memory.clone(), AtomicUsize::new(0), fails));
    let mut bench = Bench::around(memory, |_| door.clone());
    bench.publish(published(Some(1), 1));
    let named = |state: &MirrorState| state.conditions.iter().any(|c| c.name == Condition::HubUnauthorized);
    bench.until(named).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3600) {
        let state = bench.until(|_| true).await;
        assert!(named(&state), "the reads between the writes must not end it: {state:?}");
        if let Ok(changed) = tokio::time::timeout(Duration::from_secs(60), bench.state.changed()).await {
            changed.expect("runs");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_others_change_is_repaired_on_the_slow_timer() {
    let mut bench = Bench::new();
    bench.settle(published(Some(1), 5)).await;
    assert!(bench.memory.meddle(&name(2), &flag_change(4, true)));
    tokio::time::sleep(Duration::from_secs(72 * 60 + 1)).await;
    assert_eq!(bench.flags(), [(true, 5), (false, 5), (false, 5)]);
    // A flag that was deleted, or is no flag, is written anew; what stands beside it is left alone.
    let spoil = json!({"properties": {"desired": {"quorate": {"epoch": null, "site": 3, "note": "mine"}}}});
    assert!(bench.memory.meddle(&name(1), &Change::from_json(&spoil).expect("a change")));
    tokio::time::sleep(Duration::from_secs(72 * 60 + 1)).await;
    let twin = bench.memory.twin(&name(1)).expect("exists");
    assert_eq!(twin.desired.values["quorate"]["epoch"], json!(5));
    assert_eq!(twin.desired.values["quorate"]["note"], Value::from("mine"));
    bench.until(|state| state.in_sync).await;
}

#[tokio::test(start_paused = true)]
async fn who_does_not_mirror_is_silent() {
    let mut bench = Bench::new();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(bench.memory.requests(), 0);
    bench.settle(published(Some(1), 1)).await;
    bench.publish(None);
    bench.until(|state| !state.mirroring).await;
    let requests = bench.memory.requests();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(bench.memory.requests(), requests);
    // Also while the hub is being left alone.
    bench.memory.trouble(Trouble::Unreachable);
    bench.publish(published(Some(1), 2));
    bench.until(|state| state.next_attempt.is_some()).await;
    bench.publish(None);
    let state = bench.until(|state| !state.mirroring).await;
    assert!(state.conditions.is_empty());
}

/// Counts how many calls are under way, and takes its time.
struct Slow {
    memory: MemoryHub,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Slow {
    async fn hold<T>(&self, call: impl Future<Output = T>) -> T {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let result = call.await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        result
    }
}

impl Hub for Slow {
    fn name(&self) -> &str {
        "slow"
    }
    fn knock(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.memory.knock()
    }
    fn get_twin<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Twin, Error>> {
        Box::pin(self.hold(self.memory.get_twin(target)))
    }
    fn patch_twin<'a>(
        &'a self,
        target: &'a Target,
        change: &'a Change,
        if_match: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Twin, Error>> {
        Box::pin(self.hold(self.memory.patch_twin(target, change, if_match)))
    }
}

#[tokio::test(start_paused = true)]
async fn one_call_is_in_flight_and_only_the_newest_state_follows_it() {
    let memory = MemoryHub::new(Arc::new(PausedClock(Instant::now())));
    let slow = Arc::new(Slow { memory: memory.clone(), now: AtomicUsize::new(0), most: AtomicUsize::new(0) });
    let mut bench = Bench::around(memory, |_| slow.clone());
    bench.settle(published(Some(1), 1)).await;
    let before = bench.writes().len();
    for epoch in 2..=30 {
        bench.publish(published(Some(2), epoch));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bench.until(|state| state.in_sync && state.devices.values().all(|d| d.epoch_confirmed == Some(30))).await;
    assert_eq!(slow.most.load(Ordering::SeqCst), 1);
    let writes = bench.writes().len() - before;
    assert!(writes <= 5, "29 changes, {writes} writes");
}

#[tokio::test(start_paused = true)]
async fn stopping_and_the_end_of_publishing_end_it() {
    let mut bench = Bench::new();
    bench.memory.trouble(Trouble::Slow { delay_ms: 9_000 });
    bench.publish(published(Some(1), 1));
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.stop.cancel();
    bench.task.await.expect("ends");
    assert!(bench.began.elapsed() < Duration::from_secs(2));

    bench = Bench::new();
    bench.settle(published(Some(1), 1)).await;
    drop(bench.publish);
    bench.task.await.expect("ends");
}
