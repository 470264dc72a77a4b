//! `quorate fleet` against the emulator: what it says of healthy, ownerless, doubled, silent and hostile sites.

use std::{
    process::{Command, Output, Stdio},
    time::Duration,
};

use quorate::{
    hub::{Change, Flag, Target, memory::Trouble, wall},
    id::DeviceId,
};
use serde_json::{Value, json};

use super::hub::Site;

#[expect(clippy::disallowed_methods, reason = "a test starts the real binary")]
fn command(hub: &Site, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command
        .arg("fleet")
        .args(arguments)
        .env_clear()
        .env("QUORATE_HUB__CONNECTION_STRING", hub.emulator.service_connection_string())
        .env("QUORATE_HUB__CA_FILE", hub.ca_file());
    command
}

fn fleet(hub: &Site, arguments: &[&str]) -> Output {
    command(hub, arguments).output().expect("the binary starts")
}

/// The same; `meanwhile` happens once it has read all sites, and three twins itself.
async fn fleet_while(hub: &Site, arguments: &[&str], meanwhile: impl FnOnce()) -> Output {
    let before = hub.emulator.answered(200);
    let mut command = command(hub, arguments);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let read = async {
        while hub.emulator.answered(200) < before + 6 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), read).await.expect("it reads");
    meanwhile();
    child.wait_with_output().expect("it ends")
}

fn flag(site: &str, device: &str, leader: &str, epoch: u64) -> Value {
    let since = wall::rfc3339(1_700_000_000_000);
    let flag = Flag {
        active: device == leader,
        leader: leader.into(),
        epoch,
        site: site.into(),
        since,
        reason: "x".into(),
    };
    serde_json::to_value(flag).expect("is JSON")
}

fn desire(hub: &Site, device: &str, flag: &Value) {
    let change = Change::from_json(&json!({"properties": {"desired": {"quorate": flag}}})).expect("a change");
    hub.emulator.meddle(&Target::device(device), &change).expect("is taken");
}

/// What the device's own sidecar says in its module twin.
fn report(hub: &Site, device: &str, flag: &Value, more: &Value) {
    let target = Target::module(device, "quorate");
    hub.emulator.create_module(&target);
    let mut own = flag.clone();
    for (key, value) in more.as_object().expect("an object") {
        own[key] = value.clone();
    }
    let patch = json!({ "quorate": own });
    hub.emulator.report(&target, patch.as_object().expect("an object")).expect("is taken");
}

fn sites(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    serde_json::from_str(&text).unwrap_or_else(|why| {
        panic!("{why}: {text}{}", String::from_utf8_lossy(&output.stderr));
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_site_is_told_apart() {
    let names: Vec<String> = (1..=9).map(|n| format!("edge.{n}")).chain(["stranger".to_owned()]).collect();
    let hub = Site::start(&names.iter().map(String::as_str).collect::<Vec<_>>());
    // A healthy site, by both mirrors.
    for device in ["edge.1", "edge.2", "edge.3"] {
        let flag = flag("plant-a", device, "edge.2", 17);
        desire(&hub, device, &flag);
        report(&hub, device, &flag, &json!({"device": device, "build": "0.1.0", "may_fail": 1}));
    }
    // The newest epoch has no owner, and one device has not been told.
    desire(&hub, "edge.4", &flag("plant-b", "edge.4", "", 9));
    desire(&hub, "edge.5", &flag("plant-b", "edge.5", "edge.5", 8));
    // Two under one epoch, of different builds, paused.
    for device in ["edge.6", "edge.7"] {
        let more = json!({"device": device, "build": device, "may_fail": 1, "paused": "by ann: holiday", "members": [{"device": "edge.99"}]});
        report(&hub, device, &flag("plant-c", device, device, 3), &more);
    }
    // What people and attackers leave where a flag belongs.
    desire(&hub, "edge.8", &json!("yes"));
    desire(
        &hub,
        "edge.9",
        &json!({"site": "plant-d\u{1b}[2J", "epoch": "many", "active": [1], "leader": {"a": 1}, "since": 7}),
    );

    let output = fleet(&hub, &["--json"]);
    let sites = sites(&output);
    let told: Vec<(&str, &Value, u64, &Value)> = sites
        .iter()
        .map(|s| {
            (
                s["site"].as_str().expect("a name"),
                &s["owner"],
                s["epoch"].as_u64().expect("a number"),
                &s["remarks"],
            )
        })
        .collect();
    assert_eq!(told[0], ("plant-c", &Value::Null, 3, &json!(["two-owners", "missing", "drifted", "paused"])));
    assert_eq!(told[1], ("plant-b", &Value::Null, 9, &json!(["no-owner", "ahead", "behind"])));
    assert_eq!(told[2].3, &json!(["no-owner"]), "a spoilt flag names no owner");
    assert_eq!(told[3], ("plant-a", &json!("edge.2"), 17, &json!([])));
    assert_eq!(told.len(), 4);
    assert_eq!(output.status.code(), Some(1), "not every site has exactly one owner");

    let output = fleet(&hub, &["--site", "plant-a"]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("plant-a  edge.2") && !text.contains("plant-b"), "{text}");
    let output = fleet(&hub, &[]);
    assert!(!output.stdout.contains(&0x1b), "nothing of a twin controls a terminal");
    assert_eq!(fleet(&hub, &["--site", "nowhere"]).status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_that_one_twin_alone_shows_is_a_finding_unless_the_others_follow() {
    let names = ["edge-1", "edge-2", "edge-3"];
    let hub = Site::start(&names);
    let show =
        |device: &str, leader: &str, epoch| desire(&hub, device, &flag("plant", device, leader, epoch));
    names.iter().for_each(|device| show(device, "edge-1", 17));
    assert_eq!(fleet(&hub, &[]).status.code(), Some(0));
    // The mirror has come no further than the first twin when it is looked at.
    show("edge-3", "edge-3", 18);
    let output = fleet_while(&hub, &["--json"], || {
        show("edge-1", "edge-3", 18);
        show("edge-2", "edge-3", 18);
    });
    let output = output.await;
    assert_eq!((&sites(&output)[0]["remarks"], output.status.code()), (&json!([]), Some(0)));
    // Nobody follows, and one device is deleted.
    show("edge-3", "edge-3", 999);
    let delete = || hub.emulator.delete_device(&DeviceId::new("edge-1").expect("a name"));
    let output = fleet_while(&hub, &["--json"], delete).await;
    let site = &sites(&output)[0];
    assert_eq!((&site["remarks"], output.status.code()), (&json!(["ahead", "behind", "missing"]), Some(1)));
    let text = site["details"].to_string();
    assert!(text.contains("edge-3 alone shows epoch 999") && text.contains("missing: edge-1"), "{text}");
    let text = String::from_utf8(fleet(&hub, &[]).stdout).expect("UTF-8");
    assert!(text.contains("0 without exactly one owner; 1 with an epoch in doubt"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_has_not_said_the_flag_yet_is_there() {
    let hub = Site::start(&["edge-1", "edge-2", "edge-3"]);
    let members = json!([{"device": "edge-1"}, {"device": "edge-2"}, {"device": "edge-3"}]);
    let more = |device: &str| json!({"device": device, "build": "0.1.0", "may_fail": 1, "members": members});
    for device in ["edge-1", "edge-3"] {
        report(&hub, device, &flag("plant", device, "edge-1", 17), &more(device));
    }
    report(&hub, "edge-2", &json!({}), &more("edge-2"));
    let output = fleet(&hub, &["--json"]);
    let site = &sites(&output)[0];
    assert_eq!((&site["remarks"], &site["devices"]), (&json!([]), &json!(["edge-1", "edge-2", "edge-3"])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_that_is_not_there_and_a_used_up_quota_are_said() {
    let hub = Site::start(&["edge-1", "edge-2"]);
    desire(&hub, "edge-1", &flag("plant-7", "edge-1", "edge-1", 1));
    desire(&hub, "edge-2", &flag("depot", "edge-2", "edge-2", 1));
    let output = fleet(&hub, &["--site", "plant7"]);
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(
        (said.trim(), output.status.code()),
        ("no site plant7 in this hub; near names: plant-7", Some(1))
    );
    let output = fleet(&hub, &["--site", "plant7", "--json"]);
    assert_eq!(sites(&output), Vec::<Value>::new());
    assert!(String::from_utf8_lossy(&output.stderr).contains("near names: plant-7"));
    hub.emulator.trouble(Trouble::Quota);
    let output = fleet(&hub, &[]);
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("quota") && said.contains("midnight UTC") && said.contains("hint: wait"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sites_come_page_by_page() {
    let devices: Vec<String> = (0..1_100).map(|n| format!("d{n:04}")).collect();
    let hub = Site::start(&[]);
    for (at, device) in devices.iter().enumerate() {
        hub.emulator.create_device(&DeviceId::new(device.as_str()).expect("a name"));
        desire(&hub, device, &flag(&format!("site-{at:04}"), device, device, 1));
    }
    let output = fleet(&hub, &["--json", "--share", "100"]);
    assert_eq!(sites(&output).len(), devices.len());
    assert_eq!(output.status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_said() {
    let hub = Site::start(&["edge-1"]);
    hub.emulator.trouble(Trouble::Failing { status: 503 });
    let output = fleet(&hub, &[]);
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said.starts_with("quorate: the hub answers, and has trouble of its own (503)")
            && said.contains("hint:"),
        "{said}"
    );
    hub.emulator.trouble(Trouble::None);
    let output = fleet(&hub, &["--connection-string-file", "/nowhere"]);
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(said.contains("connection-string-file: /nowhere cannot be read"), "{said}");
    let none = fleet(&hub, &[]);
    assert_eq!(String::from_utf8(none.stdout).expect("UTF-8").trim(), "no site shows anything in this hub");
}
