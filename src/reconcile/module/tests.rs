//! The loop against a hub in memory, straight and through an edgeHub, on tokio's paused clock.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::{
    clock::Moment,
    hub::{
        Change, Flag, Target,
        link::{Call, Event, Input, Message},
        memory::{MemoryHub, Trouble},
        memory_link::MemoryModule,
        reported::Member,
        throttle::Operation,
        trouble::{Rule, Scope},
    },
    id::DeviceId,
};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

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

fn said(epoch: u64, active: bool) -> Reported {
    let flag = Flag {
        active,
        leader: "edge-1".into(),
        epoch,
        site: "plant-7".into(),
        since: wall::rfc3339(epoch),
        reason: format!("claim {epoch}"),
    };
    let member =
        Member { device: "edge-1".into(), role: "voter".into(), build: "0.1.0".into(), reachable: true };
    Reported {
        doubtful: false,
        flag,
        device: "edge-1".into(),
        role: if active { "owner" } else { "standby" }.into(),
        build: "0.1.0".into(),
        members: vec![member],
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

/// A running loop, its input and its outputs.
struct Bench {
    memory: MemoryHub,
    line: MemoryModule,
    wanted: watch::Sender<Option<Reported>>,
    state: watch::Receiver<ModuleState>,
    desired: watch::Receiver<Option<Desired>>,
    calls: mpsc::Receiver<Call>,
    inputs: mpsc::Receiver<Input>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    began: Instant,
}

impl Bench {
    fn new(edge: bool) -> Bench {
        let began = Instant::now();
        let memory = MemoryHub::new(Arc::new(PausedClock(began)));
        memory.create(&DeviceId::new("edge-1").expect("a name"));
        let target = Target::module("edge-1", "quorate");
        memory.create_module(&target);
        let line = MemoryModule::new(memory.clone(), target, edge);
        Bench::on(memory, line, 1)
    }

    fn on(memory: MemoryHub, line: MemoryModule, seed: u64) -> Bench {
        Bench::among(memory, line, seed, Duration::ZERO)
    }

    fn among(memory: MemoryHub, line: MemoryModule, seed: u64, spread: Duration) -> Bench {
        let (wanted, to_say) = watch::channel(None);
        let (state, seen) = watch::channel(ModuleState::default());
        let (desired, known) = watch::channel(None);
        let (calls, called) = mpsc::channel(4);
        let (inputs, routed) = mpsc::channel(4);
        let mut dice = crate::dice::Dice::new(seed);
        let this = ModuleLoop {
            module: Arc::new(line.clone()),
            wanted: to_say,
            state,
            inbox: Inbox { desired, calls, inputs },
            clock: Arc::new(PausedClock(Instant::now())),
            dice: Box::new(move || dice.throw()),
            refresh: S * 3600,
            spread,
        };
        let stop = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "a test owns its one task")]
        let task = tokio::spawn(this.run(stop.clone()));
        Bench {
            memory,
            line,
            wanted,
            state: seen,
            desired: known,
            calls: called,
            inputs: routed,
            stop,
            task,
            began: Instant::now(),
        }
    }

    fn say(&self, reported: Reported) {
        self.wanted.send_replace(Some(reported));
    }

    async fn until(&mut self, what: impl Fn(&ModuleState) -> bool) -> ModuleState {
        let wait = self.state.wait_for(|state| what(state));
        let found = tokio::time::timeout(S * 100_000, wait).await;
        found.expect("in time").expect("the loop runs").clone()
    }

    /// Says it and waits until the twin at the hub shows it; returns how long that took.
    async fn settle(&mut self, reported: Reported) -> Duration {
        self.say(reported);
        self.arrives().await
    }

    /// Waits until the twin at the hub shows what was said last.
    async fn arrives(&mut self) -> Duration {
        let begun = Instant::now();
        while !self.shows() {
            // Finely at first; what takes longer is not measured to the millisecond.
            tokio::time::sleep(if begun.elapsed() < S * 2 { MS * 5 } else { MS * 200 }).await;
            assert!(begun.elapsed() < S * 100_000, "it never arrived: {:?}", self.section());
        }
        begun.elapsed()
    }

    fn shows(&self) -> bool {
        let wanted = self.wanted.borrow().clone().expect("something was said");
        let twin = self.memory.module_twin(self.line.target()).expect("exists");
        plan(&wanted, &twin.reported.values) == Step::Done
    }

    fn section(&self) -> Value {
        let twin = self.memory.module_twin(self.line.target()).expect("exists");
        twin.reported.values.get(KEY).cloned().unwrap_or_default()
    }

    fn version(&self) -> u64 {
        self.memory.module_twin(self.line.target()).expect("exists").reported.version
    }

    fn has(&self, name: Condition) -> bool {
        self.state.borrow().conditions.iter().any(|raised| raised.name == name)
    }
}

#[tokio::test(start_paused = true)]
async fn it_says_at_once_who_owns_and_only_what_differs() {
    let mut bench = Bench::new(false);
    assert!(bench.settle(said(1, true)).await < S);
    let at = bench.section()["reported"].as_str().map(str::to_owned).expect("a moment");
    assert!(at.starts_with("2027-01-15T08:00:00."), "{at}");
    bench.until(|state| state.in_sync && state.epoch_confirmed == Some(1)).await;
    let (before, version) = (bench.memory.requests(), bench.version());
    for epoch in 2..=4 {
        assert!(bench.settle(said(epoch, epoch % 2 == 1)).await < S / 10, "ownership never waits");
    }
    assert_eq!((bench.memory.requests() - before, bench.version() - version), (3, 3), "one request each");
    let state = bench.until(|state| state.in_sync).await;
    assert_eq!(state.behind_since, None);
    // The same again is no reason.
    bench.say(said(4, false));
    tokio::time::sleep(S * 60).await;
    assert_eq!(bench.memory.requests() - before, 3);
}

#[tokio::test(start_paused = true)]
async fn what_keeps_changing_is_said_ever_more_seldom_and_ownership_still_at_once() {
    let mut bench = Bench::new(false);
    bench.settle(said(1, true)).await;
    let before = bench.version();
    // A bad cable: a member comes and goes every second, for an hour.
    for second in 0..3600 {
        let mut next = said(1, true);
        next.may_fail = second % 2;
        bench.say(next);
        tokio::time::sleep(S).await;
    }
    let patches = bench.version() - before;
    assert!((10..40).contains(&patches), "{patches} patches in an hour");
    assert!(bench.settle(said(2, false)).await < S / 10);
    bench.arrives().await;
    // It has calmed down: the next change does not wait.
    tokio::time::sleep(S * 3600).await;
    let mut calm = said(2, false);
    calm.paused = Some("by a person".into());
    assert!(bench.settle(calm).await < S * 3);
}

#[tokio::test(start_paused = true)]
async fn an_hour_without_the_hub_costs_one_patch() {
    for edge in [false, true] {
        let mut bench = Bench::new(edge);
        bench.settle(said(1, true)).await;
        bench.line.cut_off_the_cloud(true);
        for epoch in 2..=5 {
            bench.say(said(epoch, true));
            tokio::time::sleep(S * 900).await;
        }
        assert_eq!(bench.section()["epoch"], json!(1));
        assert_eq!(bench.has(Condition::HubUnreachable), !edge, "an edgeHub does not tell");
        let before = bench.version();
        bench.line.cut_off_the_cloud(false);
        let took = bench.arrives().await;
        assert!(took < S * 6, "{took:?}");
        bench.until(|state| state.in_sync && state.conditions.is_empty()).await;
        assert_eq!(bench.version() - before, 1, "only the newest is worth a patch");
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_is_over_within_a_second_of_the_hubs_return() {
    let mut bench = Bench::new(false);
    bench.settle(said(1, true)).await;
    let mut worst = Duration::ZERO;
    for round in 0..50_u64 {
        bench.memory.trouble(Trouble::Unreachable);
        bench.say(said(round + 2, true));
        tokio::time::sleep(S * 20 + MS * 37 * u32::try_from(round).expect("few")).await;
        bench.memory.trouble(Trouble::None);
        worst = worst.max(bench.arrives().await);
        tokio::time::sleep(S * 40).await;
    }
    assert!(worst <= S + MS * 100, "{worst:?}");
}

#[tokio::test(start_paused = true)]
async fn a_push_that_an_edgehub_loses_is_made_good() {
    let mut bench = Bench::new(true);
    bench.settle(said(1, true)).await;
    // The edgeHub's one push is refused; it tries again only when it is told something.
    bench.memory.trouble(Trouble::Throttled { retry_after_s: None });
    bench.say(said(2, false));
    tokio::time::sleep(S * 9).await;
    bench.memory.trouble(Trouble::None);
    tokio::time::sleep(S).await;
    assert_eq!(bench.section()["epoch"], json!(1), "it was lost");
    let took = bench.arrives().await;
    assert!(took < S * 60, "{took:?}");
    assert!(!bench.has(Condition::TwinRolledBack), "nothing went back");
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_falls_back_is_mended_and_reported() {
    let mut bench = Bench::new(false);
    bench.settle(said(1, true)).await;
    tokio::time::sleep(S * 600).await;
    bench.settle(said(2, false)).await;
    bench.memory.rollback(S * 200);
    assert_eq!(bench.section()["epoch"], json!(1));
    let took = bench.arrives().await;
    assert!(took < S * 400, "looked at again six minutes after the last patch: {took:?}");
    bench.until(|state| state.in_sync).await;
    assert!(bench.has(Condition::TwinRolledBack));
    bench.until(|state| state.conditions.is_empty()).await;
    // Deleted and created again.
    bench.memory.recreate_module(&bench.line.target().clone());
    bench.arrives().await;
    bench.until(|state| state.in_sync).await;
    assert!(bench.has(Condition::HubDeviceRecreated));
}

#[tokio::test(start_paused = true)]
async fn whoever_is_behind_does_not_speak() {
    for edge in [false, true] {
        let mut bench = Bench::new(edge);
        bench.settle(said(7, true)).await;
        bench.say(said(5, false));
        let state = bench.until(|state| !state.conditions.is_empty()).await;
        assert_eq!(state.conditions[0].name, Condition::TwinAhead);
        assert_eq!(state.highest_epoch_seen, 7);
        tokio::time::sleep(S * 7200).await;
        assert_eq!(bench.section()["epoch"], json!(7));
        bench.settle(said(8, true)).await;
        bench.until(|state| state.conditions.is_empty() && state.in_sync).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_knows_no_ownership_yet_is_not_alarmed_by_its_own_earlier_words() {
    let mut bench = Bench::new(false);
    bench.settle(said(7, true)).await;
    bench.say(said(0, false));
    tokio::time::sleep(S * 60).await;
    let state = bench.until(|_| true).await;
    assert_eq!((state.conditions, bench.section()["epoch"].clone()), (Vec::new(), json!(7)));
}

#[tokio::test(start_paused = true)]
async fn an_idle_day_costs_few_operations() {
    for edge in [false, true] {
        let mut bench = Bench::new(edge);
        bench.settle(said(1, true)).await;
        let before = bench.memory.requests();
        tokio::time::sleep(S * 24 * 3600).await;
        let requests = bench.memory.requests() - before;
        assert!((18..=40).contains(&requests), "{requests} requests in a day");
    }
}

#[tokio::test(start_paused = true)]
async fn the_hubs_refusals_keep_the_link_and_are_named() {
    let mut bench = Bench::new(false);
    bench.settle(said(1, true)).await;
    for (trouble, condition) in [
        (Trouble::Throttled { retry_after_s: Some(7) }, Condition::HubThrottled),
        (Trouble::Failing { status: 503 }, Condition::HubUnreachable),
    ] {
        bench.memory.trouble(trouble);
        let epoch = bench.wanted.borrow().as_ref().map_or(0, |it| it.flag.epoch) + 1;
        bench.say(said(epoch, true));
        bench.until(|state| state.conditions.iter().any(|raised| raised.name == condition)).await;
        let before = bench.memory.requests();
        tokio::time::sleep(S * 120).await;
        assert!(bench.memory.requests() - before < 25, "it leaves the hub alone");
        assert!(bench.state.borrow().connected);
        bench.memory.trouble(Trouble::None);
        assert!(bench.arrives().await < S * 61);
        bench.until(|state| state.conditions.is_empty()).await;
    }
    assert_eq!(bench.state.borrow().requests["connect"], 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_cloud_wants_is_handed_on_and_nothing_is_missed() {
    let mut bench = Bench::new(false);
    bench.settle(said(1, true)).await;
    let desired =
        |json: Value| Change::from_json(&json!({"properties": {"desired": json}})).expect("a change");
    let target = bench.line.target().clone();
    let known = bench.desired.wait_for(Option::is_some).await.expect("runs").clone().expect("known");
    assert_eq!(known, Desired { version: 1, ..Desired::default() });
    assert!(bench.memory.meddle_with_module(&target, &desired(json!({"quorate": {"pause": {"id": "a"}}}))));
    let known = bench.desired.wait_for(|it| it.as_ref().is_some_and(|it| it.version == 2)).await;
    assert_eq!(
        json!(known.expect("runs").as_ref().expect("known").properties),
        json!({"quorate": {"pause": {"id": "a"}}})
    );
    // One change is lost on its way; the next one shows it.
    let before = bench.memory.requests();
    assert!(
        bench.line.push(Event::Desired { patch: Properties::new(), version: 1 }),
        "an old one is no news"
    );
    tokio::time::sleep(S).await;
    assert_eq!(bench.memory.requests(), before);
    assert!(bench.line.push(Event::Desired { patch: Properties::new(), version: 9 }));
    tokio::time::sleep(S).await;
    assert_eq!(bench.memory.requests(), before + 1, "it was read again");
    // A call and a message.
    let call = Event::Call { id: "c1".into(), method: "why".into(), payload: json!({}) };
    assert!(bench.line.push(call));
    let call = bench.calls.recv().await.expect("a call");
    assert_eq!((call.id.as_str(), call.method.as_str()), ("c1", "why"));
    let message = Message { body: bytes::Bytes::from_static(b"x"), ..Message::default() };
    assert!(bench.line.push(Event::Input { number: 4, input: "in".into(), message: message.clone() }));
    let input = bench.inputs.recv().await.expect("a message");
    assert_eq!((input.number, input.input.as_str(), input.message), (4, "in", message));
    // Too many calls: dropped. Too many messages: the link ends, and they come again.
    for n in 0..9 {
        bench.line.push(Event::Call { id: n.to_string(), method: "why".into(), payload: Value::Null });
    }
    tokio::time::sleep(S).await;
    assert!(bench.state.borrow().connected);
    for number in 0..9 {
        bench.line.push(Event::Input { number, input: "in".into(), message: Message::default() });
    }
    let state = bench.until(|state| state.requests["connect"] == 2).await;
    assert!(state.connected);
}

#[tokio::test(start_paused = true)]
async fn two_of_the_same_name_do_not_fight_without_pause() {
    let one = Bench::new(false);
    let two = Bench::on(one.memory.clone(), one.line.clone(), 2);
    one.say(said(1, true));
    two.say(said(1, true));
    tokio::time::sleep(S * 3600).await;
    let links = |bench: &Bench| bench.state.borrow().requests["connect"];
    let links = links(&one) + links(&two);
    assert!((2..400).contains(&links), "{links} links in an hour");
}

/// A link that ends young because the hub is away was not ended by a rival.
#[tokio::test(start_paused = true)]
async fn absences_one_after_the_other_make_nobody_slow() {
    let mut bench = Bench::new(false);
    bench.settle(said(1, true)).await;
    for epoch in 2..=9 {
        bench.memory.trouble(Trouble::Unreachable);
        bench.say(said(epoch, true));
        tokio::time::sleep(S * 20).await;
        bench.memory.trouble(Trouble::None);
        let took = bench.arrives().await;
        assert!(took < MS * 700, "epoch {epoch}: {took:?}");
        tokio::time::sleep(S * 2).await;
    }
}

/// One turn for each absence, also if the hub refuses it when it comes; none for a link that ended while all others' stand.
#[tokio::test(start_paused = true)]
async fn modules_of_many_sites_take_turns_after_an_absence() {
    let spread = S * 600;
    for seed in 1..=8 {
        let one = Bench::new(false);
        one.stop.cancel();
        let mut bench = Bench::among(one.memory.clone(), one.line.clone(), seed, spread);
        assert!(bench.settle(said(1, true)).await < S, "a start waits for nobody");
        bench.memory.trouble(Trouble::Unreachable);
        bench.say(said(2, true));
        tokio::time::sleep(S * 60).await;
        bench.memory.trouble(Trouble::None);
        let scope = Scope { operations: vec![Operation::Connection], ..Scope::default() };
        let refused = Rule { scope, for_s: Some(600), ..Rule::from(Trouble::Failing { status: 503 }) };
        bench.memory.add_trouble(refused).expect("is a rule");
        let took = bench.arrives().await;
        assert!(took >= spread && took < spread + S * 62, "seed {seed}: {took:?}");
        // An hour later the link alone is cut for a moment.
        tokio::time::sleep(S * 3600).await;
        bench.line.cut(true);
        bench.until(|state| !state.connected).await;
        bench.line.cut(false);
        assert!(bench.settle(said(3, true)).await < S * 2);
    }
}

#[tokio::test(start_paused = true)]
async fn it_says_nothing_before_it_knows_and_leaves_when_told() {
    let mut bench = Bench::new(false);
    tokio::time::sleep(S * 60).await;
    assert_eq!(bench.memory.requests(), 0);
    bench.settle(said(1, true)).await;
    let line = bench.line.clone();
    bench.stop.cancel();
    bench.task.await.expect("ends");
    assert!(!line.push(Event::Desired { patch: Properties::new(), version: 3 }), "nobody listens");
    assert!(bench.began.elapsed() < S * 70);
}

/// A line on which answers get lost after the patch was applied.
#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_no_second_patch() {
    let mut bench = Bench::new(false);
    bench.settle(said(1, true)).await;
    let before = bench.version();
    bench.memory.trouble(Trouble::DropAnswer);
    bench.say(said(2, true));
    bench.until(|state| !state.connected).await;
    bench.memory.trouble(Trouble::None);
    bench.until(|state| state.in_sync).await;
    assert_eq!(bench.version() - before, 1);
}
