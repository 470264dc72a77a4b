//! What is known without reading, what goes back and is repaired, how soon, and at what cost.

use serde_json::json;

use super::*;
use crate::{
    hub::{
        throttle::Operation,
        trouble::{Rule, Scope},
    },
    ownership::record::FLOOR_AHEAD,
};

const MINUTE: Duration = Duration::from_secs(60);

impl Bench {
    /// What the site notes once the twins follow.
    fn confirm(&self, shown: Option<Published>) {
        let settled = self.state.borrow().settled.clone().expect("all twins show the same");
        let shown = shown.expect("an ownership");
        assert_eq!(settled.epoch, shown.epoch);
        self.confirm.send_replace(Some(Confirmed { shown, etags: settled.etags }));
    }

    /// Another member mirrors from here on: this one forgets all but what the site has noted.
    async fn forget(&mut self) {
        self.publish(None);
        self.until(|state| !state.mirroring).await;
    }

    fn raised(&self) -> Vec<Condition> {
        self.state.borrow().conditions.iter().map(|c| c.name).collect()
    }
}

async fn settled(owner: usize, epoch: u64) -> Bench {
    let mut bench = Bench::new();
    bench.settle(published(Some(owner), epoch)).await;
    bench.confirm(published(Some(owner), epoch));
    bench.forget().await;
    bench
}

#[tokio::test(start_paused = true)]
async fn a_failover_costs_one_request_for_each_twin() {
    let mut bench = settled(1, 1).await;
    let before = bench.memory.requests();
    bench.settle(published(Some(3), 2)).await;
    assert_eq!(bench.memory.requests() - before, 3);
    assert_eq!(bench.flags(), [(false, 2), (false, 2), (true, 2)]);
    let order: Vec<_> = bench.writes()[3..].iter().map(|(name, active, _)| (name.clone(), *active)).collect();
    let text = |n: usize| name(n).to_string();
    assert_eq!(order, [(text(1), false), (text(3), true), (text(2), false)]);
}

#[tokio::test(start_paused = true)]
async fn who_takes_over_at_the_confirmed_epoch_asks_nothing_at_first_and_looks_soon() {
    let mut bench = settled(1, 1).await;
    let before = bench.memory.requests();
    bench.settle(published(Some(1), 1)).await;
    tokio::time::sleep(MINUTE * 5).await;
    assert_eq!(bench.memory.requests(), before);
    tokio::time::sleep(MINUTE * 5).await;
    assert!(bench.memory.requests() > before);
}

#[tokio::test(start_paused = true)]
async fn a_twin_that_changed_since_it_was_confirmed_is_read() {
    let mut bench = settled(1, 1).await;
    assert!(bench.memory.meddle(&name(1), &Change::from_json(&json!({"tags": {"a": 1}})).expect("a change")));
    assert!(bench.memory.meddle(&name(2), &flag_change(7, true)));
    bench.publish(published(Some(3), 2));
    let state = bench.until(|state| state.conditions.iter().any(|c| c.name == Condition::TwinAhead)).await;
    assert_eq!(state.requests.get("412"), Some(&2), "{:?}", state.requests);
    // What is behind has not overwritten what is ahead, and the old owner's flag was cleared first.
    assert_eq!(bench.flags(), [(false, 2), (true, 7), (true, 2)]);
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_forgets_is_noticed_repaired_and_told() {
    let mut bench = settled(1, 1).await;
    tokio::time::sleep(MINUTE * 30).await;
    bench.settle(published(Some(2), 2)).await;
    tokio::time::sleep(MINUTE).await;
    let lost = bench.memory.rollback(MINUTE * 5);
    assert_eq!(lost.lost, 3);
    assert_eq!(bench.flags(), [(true, 1), (false, 1), (false, 1)]);
    let state = bench.until(|state| state.rolled_back > 0 && state.in_sync).await;
    assert_eq!(bench.flags(), [(false, 2), (true, 2), (false, 2)]);
    assert_eq!(state.rolled_back, 3, "one was found, so all were looked at");
    assert_eq!(bench.raised(), vec![Condition::TwinRolledBack; 3]);
    let detail = &state.conditions[0].detail;
    assert!(detail.contains("edge-") && detail.contains("from epoch 2 to 1"), "{detail}");
    let writes = bench.writes().split_off(6);
    assert_eq!(writes[0], (name(1).to_string(), false, 2), "the old flag is cleared first again");
    // It stays visible for ten minutes after the repair.
    tokio::time::sleep(MINUTE * 9).await;
    assert_eq!(bench.raised().len(), 3);
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(bench.raised(), []);
    assert!(bench.state.borrow().in_sync);
}

#[tokio::test(start_paused = true)]
async fn a_rollback_is_found_by_whoever_mirrors_next() {
    let mut bench = Bench::new();
    tokio::time::sleep(MINUTE).await;
    bench.settle(published(Some(1), 5)).await;
    bench.confirm(published(Some(1), 5));
    bench.forget().await;
    bench.memory.rollback(MINUTE / 2);
    bench.settle(published(Some(2), 6)).await;
    assert_eq!(bench.flags(), [(false, 6), (true, 6), (false, 6)]);
    // Nothing of the twins is left, so they look like new ones.
    let state = bench.state.borrow().clone();
    assert_eq!(state.requests.get("412"), Some(&1), "one is enough to look at all: {:?}", state.requests);
    assert!(bench.raised().iter().all(|c| *c == Condition::HubDeviceRecreated), "{:?}", bench.raised());
}

#[tokio::test(start_paused = true)]
async fn identities_that_are_disabled_or_made_anew_are_named() {
    let mut bench = Bench::new();
    bench.settle(published(Some(1), 5)).await;
    bench.memory.recreate(&name(3));
    bench.memory.enable(&name(2), false);
    tokio::time::sleep(MINUTE * 75).await;
    let mut raised = bench.raised();
    raised.dedup();
    assert!(raised.contains(&Condition::HubDeviceDisabled), "{raised:?}");
    assert_eq!(bench.flags(), [(true, 5), (false, 5), (false, 5)], "written anew, and kept");
    bench.memory.recreate(&name(1));
    let state = bench
        .until(|state| {
            state
                .conditions
                .iter()
                .any(|c| c.name == Condition::HubDeviceRecreated && c.detail.contains("edge-1"))
        })
        .await;
    assert_eq!(state.rolled_back, 0);
    bench.memory.enable(&name(2), true);
    tokio::time::sleep(MINUTE * 2).await;
    assert!(!bench.raised().contains(&Condition::HubDeviceDisabled));
    assert_eq!(bench.flags(), [(true, 5), (false, 5), (false, 5)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_flag_is_replaced_and_told_and_what_cannot_be_is_left_alone() {
    let mut bench = Bench::new();
    let put = |number: usize, value: Value| {
        let json = json!({"properties": {"desired": {"quorate": value}}});
        assert!(bench.memory.meddle(&name(number), &Change::from_json(&json).expect("a change")));
    };
    put(1, json!({"active": "yes", "epoch": [4], "leader": {"a": {"b": 1}}, "site": "x".repeat(4000)}));
    put(2, json!(["not", "a", "flag"]));
    put(3, json!({"active": true, "epoch": FLOOR_AHEAD + 100}));
    bench.publish(published(Some(1), 5));
    bench.until(|state| state.devices.get(&name(2)).is_some_and(|d| d.epoch_confirmed == Some(5))).await;
    tokio::time::sleep(MINUTE).await;
    let state = bench.state.borrow().clone();
    assert_eq!(bench.flags(), [(true, 5), (false, 5), (true, FLOOR_AHEAD + 100)]);
    assert!(!state.in_sync && state.settled.is_none());
    let raised = bench.raised();
    for expected in [Condition::TwinForeign, Condition::TwinImplausible] {
        assert!(raised.contains(&expected), "{raised:?}");
    }
    assert!(!raised.contains(&Condition::TwinAhead));
    // Taken out by a person, it is written within a minute or so.
    put_null(&bench, 3);
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(bench.flags(), [(true, 5), (false, 5), (false, 5)]);
}

fn put_null(bench: &Bench, number: usize) {
    let json = json!({"properties": {"desired": {"quorate": null}}});
    assert!(bench.memory.meddle(&name(number), &Change::from_json(&json).expect("a change")));
}

#[tokio::test(start_paused = true)]
async fn the_flags_are_right_within_a_second_of_the_hubs_return() {
    let mut bench = Bench::new();
    bench.settle(published(Some(1), 1)).await;
    for (round, minutes) in [1_u32, 3, 9].into_iter().enumerate() {
        let epoch = 2 + u64::try_from(round).expect("small");
        bench.memory.trouble(Trouble::Unreachable);
        bench.publish(published(Some(2), epoch));
        tokio::time::sleep(MINUTE * minutes).await;
        let requests = bench.memory.requests();
        bench.memory.trouble(Trouble::None);
        let back = Instant::now();
        bench.until(|state| state.in_sync).await;
        assert!(back.elapsed() < Duration::from_millis(700), "{:?} after {minutes} min", back.elapsed());
        assert!(bench.memory.requests() - requests <= 4, "knocks are no requests");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_want_of_room_does_not_make_it_read_again() {
    let mut bench = settled(1, 1).await;
    let storm = Rule { probability: 0.6, ..Rule::from(Trouble::Throttled { retry_after_s: None }) };
    bench.memory.seed(3);
    bench.memory.add_trouble(storm).expect("is a rule");
    bench.settle(published(Some(3), 2)).await;
    let state = bench.state.borrow().clone();
    assert!(state.requests.contains_key("429"), "{:?}", state.requests);
    let plan = crate::hub::throttle::Plan::new(crate::hub::throttle::Tier::S3, 1, 1.0).expect("a plan");
    bench.memory.limit(Some(plan));
    bench.settle(published(Some(1), 3)).await;
    assert_eq!(bench.memory.count(Operation::TwinRead).passed, 0);
}

#[tokio::test(start_paused = true)]
async fn one_twin_that_fails_holds_up_the_others_only_as_long_as_the_hub_is_at_fault() {
    let mut bench = Bench::new();
    let scope = Scope { devices: vec![name(1).to_string()], ..Scope::default() };
    let id = bench
        .memory
        .add_trouble(Rule { scope, ..Rule::from(Trouble::Failing { status: 500 }) })
        .expect("is a rule");
    bench.publish(published(Some(2), 1));
    tokio::time::sleep(MINUTE * 3).await;
    assert!(!bench.state.borrow().in_sync);
    bench.memory.end_trouble(id);
    bench.until(|state| state.in_sync).await;
    assert_eq!(bench.flags(), [(false, 1), (true, 1), (false, 1)]);
}

#[tokio::test(start_paused = true)]
async fn all_the_places_and_the_workloads_module_are_written() {
    let memory = MemoryHub::new(Arc::new(PausedClock(Instant::now())));
    let settings = Settings {
        place: crate::hub::flag::Place::Both,
        plain: Some(FlagPath::try_from("app.enabled".to_owned()).expect("a path")),
        ..Settings::default()
    };
    let mut bench = Bench::with(memory, |memory| Arc::new(memory.clone()), settings);
    bench.settle(published(Some(2), 4)).await;
    let twin = bench.memory.twin(&name(2)).expect("exists");
    assert_eq!(twin.tags["quorate"]["active"], json!(true));
    assert_eq!(twin.desired.values["app"]["enabled"], json!(true));
    let others = bench.memory.twin(&name(1)).expect("exists");
    assert_eq!(others.desired.values["app"]["enabled"], json!(false));
    assert_eq!(bench.writes().len(), 3, "one write for each twin");
    // Somebody flips the switch by hand.
    let flip = json!({"properties": {"desired": {"app": {"enabled": true}}}});
    assert!(bench.memory.meddle(&name(1), &Change::from_json(&flip).expect("a change")));
    tokio::time::sleep(MINUTE * 75).await;
    let others = bench.memory.twin(&name(1)).expect("exists");
    assert_eq!(others.desired.values["app"]["enabled"], json!(false));
}
