use super::*;
use crate::{
    condition::{Condition, Raised},
    ownership::told::Told,
    status::{
        report::{Hub, Knock, Member, Ordered, Orders, Owner, Probe, Role, Workload},
        said,
    },
};

fn report() -> Report {
    let member = |device: &str, reachable, unfit: Option<&str>| Member {
        device: device.into(),
        address: format!("{device}.plant:7600"),
        role: "voter".into(),
        reachable,
        votes: reachable,
        last_heard_ms: Some(if reachable { 80 } else { 95_000 }),
        build: "0.1.0".into(),
        incarnation: String::new(),
        build_blocks: false,
        fit: unfit.is_none(),
        unfit_reason: unfit.map(str::to_owned),
        plant_seen: None,
        workload: None,
    };
    Report {
        site: "plant-7".into(),
        device: "edge-1".into(),
        version: "0.1.0".into(),
        uptime_ms: 7_300_000,
        owner: Owner {
            known: true,
            device: Some("edge-2".into()),
            epoch: 17,
            valid_for_ms: 350,
            reason: "edge-2 claimed after edge-3 was not heard for 620 ms".into(),
            ..Owner::default()
        },
        epoch: 17,
        role: Role::Follower,
        quorum: true,
        members: vec![
            member("edge-1", true, None),
            member("edge-2", true, None),
            member("edge-3", false, Some("it has not been heard for 95 s")),
        ],
        workload: Workload { kind: "process".into(), observed: "stopped".into(), ..Workload::default() },
        hub: Hub {
            mirror: "device-twin".into(),
            name: "plant.azure-devices.net".into(),
            lag_ms: 40_000,
            last_success_unix_ms: Some(1_793_607_330_000),
            ..Hub::default()
        },
        conditions: vec![(&Raised::new(Condition::NoSpare, "edge-3 is silent")).into()],
        timing: "the owner may act 400ms after it last asked a quorum".into(),
        knocks: vec![Knock {
            address: "10.0.0.9:50112".into(),
            device: "edge-9".into(),
            reason: "another site: plant-8".into(),
            count: 4,
            last_unix_ms: 0,
        }],
        ..Report::default()
    }
}

#[test]
fn shows_what_is_ordered_only_where_something_is() {
    assert!(!text(&report(), Paint(false)).contains("paused"));
    let by = Ordered {
        actor: "anna".into(),
        reason: "new\u{1b}switch".into(),
        since_unix_ms: 1_793_607_330_000,
        ..Ordered::default()
    };
    let orders = Orders {
        paused: Some(by.clone()),
        drained: [("edge-2".to_owned(), by.clone()), ("edge-3".to_owned(), by)].into(),
        preferred: Some("edge-1".into()),
        stretch_percent_min: Some(150),
    };
    let shown = text(&Report { orders, ..report() }, Paint(false));
    let since = date_seconds(1_793_607_330_000);
    for line in [
        format!("paused    since {since} UTC by anna: new switch; nobody takes"),
        "drained   edge-2, edge-3\n".into(),
        "preferred edge-1\n".into(),
        "at least  1.5 times the configured timing\n".into(),
    ] {
        assert!(shown.contains(&line), "{line}\n{shown}");
    }
    let ends = Ordered { until_unix_ms: Some(1_793_609_130_000), actor: "anna".into(), ..Ordered::default() };
    let orders = Orders { paused: Some(ends), ..Orders::default() };
    let shown = text(&Report { orders, ..report() }, Paint(false));
    assert!(shown.contains(" until 2026-11-02 08:45:30 UTC"), "{shown}");
}

#[test]
fn fits_80_columns_and_says_the_main_things() {
    let shown = text(&report(), Paint(false));
    let expected = "\
owner     edge-2
epoch     17, true for 350 ms
because   edge-2 claimed after edge-3 was not heard for 620 ms
site      plant-7 as seen by edge-1: follower, up 2 h, version 0.1.0
reserve   a majority is heard; no further device may fail
trouble   no.spare

DEVICE                  ROLE     STATE     LAST HEARD  MAY OWN      BUILD
edge-1                  voter    reachable here        yes          0.1.0
edge-2                  voter    reachable 80 ms       yes          0.1.0
edge-3                  voter    silent    95 s        no           0.1.0
    it has not been heard for 95 s

workload  process, stopped here
hub       plant.azure-devices.net: behind for 40 s, last success 2026-11-02
          08:15:30 UTC
timing    the owner may act 400ms after it last asked a quorum
refused   10.0.0.9:50112 (edge-9), 4 times: another site: plant-8

WARNING no.spare
    edge-3 is silent
    Bring the missing devices back; a site of two devices needs a third voter to
    survive a loss.
";
    assert_eq!(shown, expected);
}

#[test]
fn says_what_is_wrong_on_another_device() {
    let mut crashing = report();
    crashing.owner.workload = Some("backing off".into());
    crashing.owner.workload_wrong = Some("backing off, workload.crashing".into());
    let told =
        |names: &[&str]| Told { work: None, conditions: names.iter().map(|n| (*n).to_owned()).collect() };
    let raised = [Raised::new(Condition::NoSpare, "not heard: edge-3")];
    crashing.conditions = said::conditions("edge-1", &raised, &[("edge-2", told(&["workload.crashing"]))]);
    let shown = text(&crashing, Paint(false));
    let head: Vec<&str> = shown.lines().skip(5).take(2).collect();
    assert_eq!(
        head,
        [
            "trouble   the workload on edge-2, the owner: backing off, workload.crashing",
            "          workload.crashing on edge-2, no.spare",
        ]
    );
    assert!(shown.contains("\nworkload  process, backing off on edge-2, stopped here\n"), "{shown}");
    let conditions = "
CRITICAL workload.crashing on edge-2
    the status of edge-2 has the details
    Read the workload's output in this device's log; move it with `quorate
    transfer` if only this device is affected.
WARNING no.spare
    not heard: edge-3
";
    assert!(shown.contains(conditions), "{shown}");
    assert!(
        text(&crashing, Paint(true)).starts_with("owner     \u{1b}[31m"),
        "an owner that does not work is no good news"
    );
    // It ended only once so far: no condition says so yet, and all is not well.
    crashing.conditions.clear();
    crashing.owner.workload_wrong = Some("backing off".into());
    let shown = text(&crashing, Paint(false));
    assert!(shown.contains("\ntrouble   the workload on edge-2, the owner: backing off\n"), "{shown}");
    assert!(!shown.contains("trouble   none"), "{shown}");
    (crashing.owner.workload, crashing.owner.workload_wrong) = (Some("running".into()), None);
    let shown = text(&crashing, Paint(false));
    assert!(shown.ends_with("trouble   none\n"), "{shown}");
    assert!(shown.contains("\nworkload  process, running on edge-2, stopped here\n"), "{shown}");
}

#[test]
fn a_device_that_does_not_mirror_is_not_said_to_fail_at_it() {
    let shown = |mirrored_by: Option<&str>, mirror: &str, lag_ms| {
        let hub = Hub {
            mirror: mirror.into(),
            name: "hub".into(),
            mirrored_by: mirrored_by.map(str::to_owned),
            lag_ms,
            ..Hub::default()
        };
        let shown = text(&Report { hub, ..report() }, Paint(false));
        shown.lines().find(|line| line.starts_with("hub ")).expect("a line").to_owned()
    };
    assert_eq!(shown(Some("edge-2"), "device-twin", 0), "hub       hub: mirrored by edge-2");
    assert_eq!(shown(None, "device-twin", 0), "hub       hub: nobody is known to mirror now");
    assert_eq!(
        shown(Some("edge-1"), "device-twin", 40_000),
        "hub       hub: behind for 40 s, no success yet"
    );
    assert_eq!(shown(None, "module-twin", 0), "hub       hub: behind for 0 ms, no success yet");
}

#[test]
fn says_which_device_sees_how_much_of_the_plant() {
    let mut asks = report();
    asks.probes = ["plc", "scada"]
        .map(|name| Probe { name: name.into(), role: "plant".into(), ..Probe::default() })
        .into();
    asks.members[0].plant_seen = Some(1);
    asks.members[1].plant_seen = Some(2);
    asks.members[0].device = "x".repeat(60);
    asks.members[0].build = "10.11.12+89db97".into();
    let shown = text(&asks, Paint(false));
    let rows: Vec<&str> = shown.lines().skip_while(|line| !line.starts_with("DEVICE")).take(4).collect();
    assert!(rows[0].ends_with("MAY OWN  PLANT   BUILD"), "{shown}");
    assert!(rows[1].contains("yes      1 of 2  10.11"), "{shown}");
    assert!(rows[2].contains("yes      2 of 2  0.1.0"), "{shown}");
    assert!(rows[3].contains("no       –       0.1.0"), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= WIDTH), "{shown}");
}

#[test]
fn hostile_texts_stay_inside_their_columns() {
    let mut hostile = report();
    let long = "x".repeat(128);
    hostile.device = long.clone();
    hostile.site = long.clone();
    hostile.owner.reason = format!("\u{1b}[2J\n{long}{long}");
    hostile.members[0].device = long;
    let shown = text(&hostile, Paint(false));
    assert!(shown.lines().all(|line| line.chars().count() <= WIDTH), "{shown}");
    assert!(!shown.contains('\u{1b}'));
}

#[test]
fn colours_only_where_asked_for_and_an_unknown_owner_is_no_owner() {
    let mut unknown = report();
    unknown.owner = Owner { reason: "no majority".into(), ..Owner::default() };
    let plain = text(&unknown, Paint(false));
    assert!(plain.starts_with("owner     unknown\n") && !plain.contains("true for"), "{plain}");
    assert!(text(&unknown, Paint(true)).starts_with("owner     \u{1b}[33munknown"));
}
