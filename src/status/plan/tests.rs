use super::*;
use crate::status::report::{Orders, Owner};

fn member(device: &str) -> Member {
    Member {
        device: device.into(),
        role: "voter".into(),
        reachable: true,
        votes: true,
        fit: true,
        ..Member::default()
    }
}

fn unfit(device: &str, why: &str) -> Member {
    Member { fit: false, unfit_reason: Some(why.into()), ..member(device) }
}

fn silent(device: &str) -> Member {
    Member { reachable: false, votes: false, ..unfit(device, "not heard") }
}

/// edge-2 of `members` owns, and all that matters else follows from them.
fn site(members: Vec<Member>) -> Report {
    let counted = members.iter().filter(|m| m.votes).count();
    let spare = counted.checked_sub(members.len() / 2 + 1);
    Report {
        site: "plant-7".into(),
        device: "edge-1".into(),
        owner: Owner { known: true, device: Some("edge-2".into()), epoch: 17, ..Owner::default() },
        quorum: spare.is_some(),
        devices_may_fail: u32::try_from(spare.unwrap_or(0)).expect("small"),
        takeover_ms_max: 692,
        members,
        ..Report::default()
    }
}

fn three() -> Report {
    site(vec![member("edge-1"), member("edge-2"), member("edge-3")])
}

fn ordered(actor: &str, reason: &str) -> Ordered {
    Ordered { actor: actor.into(), reason: reason.into(), ..Ordered::default() }
}

/// All that is said, one line each.
#[track_caller]
fn says(report: &Report, expected: &str) -> Plan {
    let plan = plan(report);
    let notes = plan.notes.iter().map(|note| format!("note: {note}\n"));
    let devices = plan.devices.iter().map(|loss| format!("{}: {}\n", loss.device, loss.text));
    assert_eq!(notes.chain(devices).collect::<String>(), expected);
    plan
}

#[test]
fn three_devices_that_are_well() {
    let plan = says(
        &three(),
        "\
edge-1: edge-2 goes on; the site could then lose no more devices
edge-2: edge-1 (or edge-3) takes over in at most 0.7 s; the site could then lose no more devices
edge-3: edge-2 goes on; the site could then lose no more devices
",
    );
    assert!(plan.survives_any);
    assert_eq!((plan.devices[1].effect, plan.devices[1].within_ms), (Effect::TakesOver, Some(692)));
}

#[test]
fn five_devices_and_a_preferred_one() {
    let members = ["edge-1", "edge-2", "edge-3", "edge-4"].map(member).into_iter();
    let witness = unfit("edge-5", "a witness votes and never owns");
    let mut report = site(members.chain([witness]).collect());
    report.orders.preferred = Some("edge-4".into());
    let plan = says(
        &report,
        "\
edge-1: edge-2 goes on; the site could then lose 1 more device
edge-2: edge-4 (or edge-1, edge-3) takes over in at most 0.7 s; the site could then lose 1 more device
edge-3: edge-2 goes on; the site could then lose 1 more device
edge-4: edge-2 goes on; the site could then lose 1 more device
edge-5: edge-2 goes on; the site could then lose 1 more device
",
    );
    assert!(plan.survives_any);
}

#[test]
fn with_one_device_silent_the_next_loss_stops_the_workload() {
    let plan = says(
        &site(vec![member("edge-1"), member("edge-2"), silent("edge-3")]),
        "\
edge-1: edge-2 stops the workload: no majority would be left (1 of 3 votes, it takes 2)
edge-2: nobody takes over: no majority would be left (1 of 3 votes, it takes 2)
edge-3: nothing changes, it is not heard now; the site can lose no more devices
",
    );
    assert!(!plan.survives_any);
    assert_eq!(
        plan.devices.iter().map(|d| d.effect).collect::<Vec<_>>(),
        [Effect::Stops, Effect::Nobody, Effect::Nothing]
    );
}

#[test]
fn a_device_whose_vote_is_missing_holds_nobody_up() {
    let voteless = Member { votes: false, ..unfit("edge-3", "its store is new") };
    says(
        &site(vec![member("edge-1"), member("edge-2"), voteless]),
        "\
edge-1: edge-2 stops the workload: no majority would be left (1 of 3 votes, it takes 2)
edge-2: nobody takes over: no majority would be left (1 of 3 votes, it takes 2)
edge-3: edge-2 goes on; the site could then lose no more devices
",
    );
}

#[test]
fn while_paused_nobody_takes_over() {
    let mut report = three();
    report.orders = Orders { paused: Some(ordered("anna", "new switch")), ..Orders::default() };
    for other in [0, 2] {
        report.members[other].fit = false;
        report.members[other].unfit_reason = Some("the site is paused".into());
    }
    let plan = says(
        &report,
        "\
note: the site is paused by anna (new switch): nobody takes over of its own accord
edge-1: edge-2 goes on; the site could then lose no more devices
edge-2: nobody takes over: the site is paused; the workload waits for that device, or for `quorate resume`
edge-3: edge-2 goes on; the site could then lose no more devices
",
    );
    assert!(!plan.survives_any);
    report.orders.paused = Some(Ordered { until_unix_ms: Some(1_793_609_130_000), ..ordered("anna", "") });
    says(
        &report,
        "\
note: the site is paused until 2026-11-02T08:45:30.000Z by anna: nobody takes over of its own accord
edge-1: edge-2 goes on; the site could then lose no more devices
edge-2: nobody takes over: the site is paused; the workload waits for that device, or for the end of the pause
edge-3: edge-2 goes on; the site could then lose no more devices
",
    );
}

#[test]
fn who_is_drained_does_not_take_over() {
    let mut report = site(vec![unfit("edge-1", "drained by anna"), member("edge-2"), member("edge-3")]);
    report.orders.drained.insert("edge-1".into(), ordered("anna", ""));
    says(
        &report,
        "\
note: edge-1 is drained by anna: it does not take over
edge-1: edge-2 goes on; the site could then lose no more devices
edge-2: edge-3 takes over in at most 0.7 s; the site could then lose no more devices
edge-3: edge-2 goes on; the site could then lose no more devices
",
    );
    report.members[2] = unfit("edge-3", "a witness votes and never owns");
    let plan = plan(&report);
    assert!(!plan.survives_any);
    assert_eq!(
        plan.devices[1].text,
        "nobody takes over: no other device is fit (edge-1: drained by anna; edge-3: a witness votes and never owns)"
    );
}

#[test]
fn without_a_majority_it_says_what_is_missing_and_what_still_works() {
    let mut report = site(vec![member("edge-1"), silent("edge-2"), silent("edge-3")]);
    report.owner = Owner::default();
    let plan = says(
        &report,
        "\
note: edge-1 hears no majority: it takes 2 of 3 votes, and 1 counts here; 1 more of edge-2, edge-3 must come back
note: meanwhile status, why, events and metrics are still answered here, orders are refused and nothing is started; if the \
      others are a majority among themselves, they go on: ask one of them
edge-1: it cannot be said: edge-1 does not hear a majority now
edge-2: it cannot be said: edge-1 does not hear a majority now
edge-3: it cannot be said: edge-1 does not hear a majority now
",
    );
    assert!(!plan.survives_any);
}

#[test]
fn without_an_owner_nothing_is_made_up() {
    let mut report = three();
    report.owner = Owner { known: true, ..Owner::default() };
    let plan = says(
        &report,
        "\
note: nobody is known to own now
edge-1: nobody is known to own now, so it cannot be said who would; the site could then lose no more devices
edge-2: nobody is known to own now, so it cannot be said who would; the site could then lose no more devices
edge-3: nobody is known to own now, so it cannot be said who would; the site could then lose no more devices
",
    );
    assert!(!plan.survives_any);
    // An answer that has lapsed is none, whatever it said.
    report.owner = Owner { known: false, device: Some("edge-2".into()), ..Owner::default() };
    assert_eq!(super::plan(&report).owner, None);
}

#[test]
fn one_or_two_devices_survive_nothing() {
    let two = plan(&site(vec![member("edge-1"), member("edge-2")]));
    assert!(!two.survives_any);
    assert_eq!(two.devices[0].effect, Effect::Stops);
    let one = plan(&Report { device: "edge-2".into(), ..site(vec![member("edge-2")]) });
    assert_eq!(
        one.devices[0].text,
        "nobody takes over: no majority would be left (0 of 1 votes, it takes 1)"
    );
    assert!(!plan(&Report::default()).survives_any, "no member is no site");
}

#[test]
fn an_owner_whose_workload_does_not_work_survives_nothing() {
    let mut report = three();
    report.owner.workload = Some("backing off".into());
    report.owner.workload_wrong = Some("backing off, workload.crashing".into());
    let plan = says(
        &report,
        "\
note: edge-2 owns, and its workload does not work now: backing off, workload.crashing
edge-1: edge-2 goes on as it is, its workload not working; the site could then lose no more devices
edge-2: edge-1 (or edge-3) takes over in at most 0.7 s; the site could then lose no more devices
edge-3: edge-2 goes on as it is, its workload not working; the site could then lose no more devices
",
    );
    assert!(!plan.survives_any);
    assert_eq!(plan.workload_wrong, report.owner.workload_wrong);
    assert_eq!(plan.devices[0].effect, Effect::GoesOn, "of the ownership: an update may mend the workload");
    report.owner.known = false;
    assert_eq!(super::plan(&report).workload_wrong, None, "an answer that has lapsed is none");
}

#[test]
fn bounds_are_rounded_up() {
    assert_eq!(
        [0, 1, 86, 692, 700, 701, 5_536].map(seconds).join(" "),
        "0.0 s 0.1 s 0.1 s 0.7 s 0.7 s 0.8 s 5.6 s"
    );
}
