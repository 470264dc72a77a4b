//! Sidecars that are told to leave, frozen, and killed at the worst moments, with real disks below them.

use std::{collections::BTreeSet, time::Duration};

use quorate::dice::Dice;
use rustix::process::Signal;

use super::site::{Plan, Site, http, now, processes_with, until};

#[test]
fn every_face_names_the_same_owner_and_a_told_owner_hands_over() {
    let (mut site, owner, epoch) = Site::running(Plan::default());
    let name = site.devices[owner].id.clone();
    for n in 0..3 {
        let answer = site.ask(n, &["leader"]);
        assert_eq!(answer.status.code(), Some(0), "{answer:?}");
        assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), name);
        let json = site.ask(n, &["leader", "--json"]);
        let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
        assert_eq!((json["owner"].as_str(), json["epoch"].as_u64()), (Some(name.as_str()), Some(epoch)));
        let status = |path| http(site.devices[n].http, path).map(|(status, _)| status);
        let (owner_says, standby_says) = if n == owner { (200, 503) } else { (503, 200) };
        assert_eq!((status("/owner"), status("/standby")), (Some(owner_says), Some(standby_says)), "{n}");
        assert_eq!(status("/health/ready"), Some(200));
    }

    site.signal(owner, Signal::TERM);
    let asked = now();
    assert_eq!(site.left(owner).code(), Some(0), "{}", site.log(owner));
    let took = now().since(asked);
    assert!(took < Duration::from_secs(20), "leaving took {took:?}");
    assert!(site.log(owner).contains("leaving: SIGTERM"));
    let others: Vec<usize> = (0..3).filter(|n| *n != owner).collect();
    let (next, later) = site.owner_among(&others, epoch);
    assert_ne!(next, owner);
    let history = site.report(next).expect("answers").history;
    assert_eq!(history[0].epoch, later);
    // Nobody answers there any more.
    let answer = site.ask(owner, &["leader"]);
    assert_eq!(answer.status.code(), Some(2), "{answer:?}");

    // Its folder is as good as before.
    site.start(owner);
    site.up(owner);
    assert_eq!(site.owner(epoch), (next, later), "a device that returns deposes nobody");
    site.runs_without_overlap();
}

#[test]
fn events_outlive_a_kill_and_are_noted_once() {
    let (mut site, owner, epoch) = Site::running(Plan::default());
    let events = |site: &Site| -> Vec<serde_json::Value> {
        let said = site.ask(owner, &["events", "-n", "1000", "--json"]).stdout;
        said.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
    };
    let ownership = |e: &serde_json::Value| e["kind"] == "ownership" && e["over"] == false;
    let starts = |events: &[serde_json::Value]| events.iter().filter(|e| e["name"] == "started").count();
    site.ask(owner, &["pause", "--for", "1h", "--reason", "new switch"]);
    let file = site.data(owner).join("events.log");
    let written = || std::fs::read_to_string(&file).is_ok_and(|t| t.contains("new switch")).then_some(());
    until("the events to be on disk", written);
    let before = events(&site);
    assert_eq!(starts(&before), 1);
    assert!(before.iter().any(|e| ownership(e) && e["epoch"] == epoch), "{before:?}");
    site.signal(owner, Signal::KILL);
    site.left(owner);
    site.start(owner);
    site.up(owner);
    // While paused the same device owns again.
    let (again, later) = site.owner(epoch);
    assert_eq!(again, owner);
    let noted = |events: &[serde_json::Value]| events.iter().any(|e| ownership(e) && e["epoch"] == later);
    until("the new ownership to be noted", || noted(&events(&site)).then_some(()));
    let after = events(&site);
    let kept = after.iter().zip(&before).take_while(|(a, b)| a == b).count();
    assert!(kept + 5 > before.len(), "all but the last half second is kept: {before:?} and then {after:?}");
    assert_eq!(starts(&after), 2);
    assert_eq!(
        after.iter().filter(|e| ownership(e)).count(),
        usize::try_from(later).expect("small"),
        "{after:?}"
    );
    assert_eq!(after.iter().filter(|e| e["kind"] == "order").count(), 1, "{after:?}");
    let (_, shown) = http(site.devices[owner].http, "/v1/events?last=1").expect("answers");
    assert!(shown.contains("\"events\":[{"), "{shown}");
}

#[test]
fn one_device_alone_owns_nothing_and_says_so() {
    let mut site = Site::new();
    site.start(0);
    site.up(0);
    site.condition(0, "quorum.lost");
    let report = site.report(0).expect("answers");
    let others = report.conditions.iter().any(|c| c.name == "no.owner");
    assert!(!others, "another device may own without its knowing: {:?}", report.conditions);
    let answer = site.ask(0, &["leader"]);
    assert_eq!(answer.status.code(), Some(1), "{answer:?}");
    assert!(answer.stdout.is_empty());
    let said = String::from_utf8_lossy(&answer.stderr).into_owned();
    assert!(said.contains("unknown"), "it does not claim that there is none: {said}");
    let status = |path| http(site.devices[0].http, path).map(|(status, _)| status);
    assert_eq!(
        (status("/owner"), status("/health/live"), status("/health/ready")),
        (Some(503), Some(200), Some(503))
    );
    // An hour later, as it were, comes a second one: that is a majority.
    site.start(1);
    site.up(1);
    site.owner_among(&[0, 1], 0);
    site.runs_without_overlap();
}

#[test]
fn a_frozen_sidecar_loses_the_workload_in_time_and_is_a_standby_afterwards() {
    let (site, owner, epoch) = Site::running(Plan::default());
    site.freeze(owner);
    let frozen = now();
    let others: Vec<usize> = (0..3).filter(|n| *n != owner).collect();
    let (next, later) = site.owner_among(&others, epoch);
    assert_ne!(next, owner);
    // The fencer has kept the deadline without the sidecar: the last tick here lies before the first one there.
    site.runs_without_overlap();
    let answer = site.ask(owner, &["leader"]);
    let said = String::from_utf8_lossy(&answer.stderr).into_owned();
    assert!(said.contains("does not answer in time") && said.contains("frozen"), "{said}");
    until("three seconds of ice", || (now().since(frozen) > Duration::from_secs(3)).then_some(()));
    site.signal(owner, Signal::CONT);
    assert_eq!(site.owner(epoch), (next, later), "it deposes nobody");
    let status = |path| http(site.devices[owner].http, path).map(|(status, _)| status);
    until("the thawed one to be a standby", || (status("/standby") == Some(200)).then_some(()));
    assert_eq!(status("/owner"), Some(503));
    // The fencer did its duty. What it said meanwhile is read before it is judged.
    let report = site.report(owner).expect("answers");
    assert!(!report.conditions.iter().any(|c| c.name == "fencer.lost"), "{:?}", report.conditions);
    let runs = site.runs_without_overlap();
    assert_eq!(runs.iter().map(|r| r.epoch.get()).collect::<Vec<_>>(), [epoch, later]);
}

#[test]
fn killed_together_again_and_again_in_their_first_second() {
    const SEED: u64 = 20_261_122;
    let mut dice = Dice::new(SEED);
    let mut site = Site::new();
    for round in 0..8 {
        let mut moments = Vec::new();
        for n in 0..3 {
            site.start(n);
            moments.push(now() + Duration::from_millis(dice.throw() % 1000));
        }
        // In the order of their moments; the first starts hit the making of the store.
        let mut order: Vec<usize> = (0..3).collect();
        order.sort_by_key(|n| moments[*n]);
        for n in order {
            std::thread::sleep(moments[n].since(now()));
            assert!(site.runs(n), "round {round} of seed {SEED}: {}", site.log(n));
            site.signal(n, Signal::KILL);
            site.left(n);
        }
    }
    site.start_all();
    let (owner, epoch) = site.owner(0);
    assert!(site.runs_without_overlap().iter().any(|r| r.epoch.get() == epoch));
    let reports: Vec<_> = (0..3).map(|n| site.report(n).expect("answers")).collect();
    let histories: BTreeSet<String> = reports.iter().map(|r| format!("{:?}", r.history[0])).collect();
    assert_eq!(histories.len(), 1, "all agree: {histories:?}");
    assert_eq!(reports[owner].owner.device.as_deref(), Some(site.devices[owner].id.as_str()));
}

#[test]
fn nothing_is_written_and_nothing_is_left() {
    let (mut site, owner, _) = Site::running(Plan { no_logs: true, ..Plan::default() });
    let written = |site: &Site, n: usize| {
        let io = std::fs::read_to_string(format!("/proc/{}/io", site.pid(n))).expect("reads");
        let line = io.lines().find_map(|l| l.strip_prefix("write_bytes: ")).expect("a counter");
        line.parse::<u64>().expect("a number")
    };
    let all = |site: &Site| -> Vec<u64> { (0..3).map(|n| written(site, n)).collect() };
    // Settled: nothing for four seconds. What follows the first election (the record's last word, and once in a site's life
    // the numbers of its stores, a few seconds later) may be written.
    let mut before = all(&site);
    let mut since = now();
    until("the sidecars to settle", || {
        let fresh = all(&site);
        if fresh != before {
            (before, since) = (fresh, now());
        }
        (now().since(since) > Duration::from_secs(4)).then_some(())
    });
    let epoch = site.report(owner).expect("answers").epoch;
    let begun = now();
    until("five idle seconds", || (now().since(begun) > Duration::from_secs(5)).then_some(()));
    assert_eq!(site.report(owner).expect("answers").epoch, epoch, "it was not an idle time");
    assert_eq!(all(&site), before, "an idle sidecar wrote to its disk");

    for n in 0..3 {
        site.signal(n, Signal::TERM);
    }
    for n in 0..3 {
        assert_eq!(site.left(n).code(), Some(0), "{n}");
    }
    until("fencers and workloads to be gone", || processes_with(site.folder.path()).is_empty().then_some(()));
}
