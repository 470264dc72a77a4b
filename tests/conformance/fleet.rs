//! `quorate fleet` against the emulator: what it says of healthy, ownerless, doubled, silent and hostile sites.

use std::process::{Command, Output};

use quorate::{
    hub::{Change, Flag, Target, memory::Trouble, wall},
    id::DeviceId,
};
use serde_json::{Value, json};

use super::hub::Site;

#[expect(clippy::disallowed_methods, reason = "a test starts the real binary")]
fn fleet(hub: &Site, arguments: &[&str]) -> Output {
    let ca = hub.ca_file();
    Command::new(env!("CARGO_BIN_EXE_quorate"))
        .arg("fleet")
        .args(arguments)
        .env_clear()
        .env("QUORATE_HUB__CONNECTION_STRING", hub.emulator.service_connection_string())
        .env("QUORATE_HUB__CA_FILE", ca)
        .output()
        .expect("the binary starts")
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
    assert_eq!(told[1], ("plant-b", &Value::Null, 9, &json!(["no-owner", "behind"])));
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
        said.starts_with("quorate: the hub has trouble of its own (503)") && said.contains("hint:"),
        "{said}"
    );
    hub.emulator.trouble(Trouble::None);
    let output = fleet(&hub, &["--connection-string-file", "/nowhere"]);
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(said.contains("connection-string-file: /nowhere cannot be read"), "{said}");
    let none = fleet(&hub, &[]);
    assert_eq!(String::from_utf8(none.stdout).expect("UTF-8").trim(), "no site shows anything in this hub");
}
