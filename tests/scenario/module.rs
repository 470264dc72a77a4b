//! Stories of the sidecars' own module twins: straight at the hub and through an edgeHub on each device.

use std::time::Duration;

use quorate::hub::{
    Change,
    link::Event,
    memory::Trouble,
    memory_link::{MemoryModule, Said},
};
use serde_json::{Value, json};

use super::{S, another_runs, bound, running};
use crate::stage::{Setup, Stage};

const HOW: [bool; 2] = [false, true];

fn settled(stage: &mut Stage, limit: Duration) -> Duration {
    stage.until(limit, "the module twins show the owner", Stage::modules_agree)
}

fn section(stage: &Stage, n: usize) -> Value {
    let module = &stage.hub.modules[n];
    let twin = stage.hub.memory.module_twin(quorate::hub::link::Module::target(module)).expect("exists");
    twin.reported.values.get("quorate").cloned().unwrap_or_default()
}

/// `Stage` checks at every step that no twin goes back, none is ahead, and no two say that they own at one epoch.
#[test]
fn the_module_twins_follow_every_change_of_ownership() {
    for edge in HOW {
        let (mut stage, owner) = running(Setup { edge, ..Setup::default() });
        settled(&mut stage, 10 * S);
        stage.crash(owner);
        let second = another_runs(&mut stage, bound(), owner);
        let took = settled(&mut stage, 20 * S);
        // An edgeHub pushes every five seconds at most.
        assert!(took < if edge { 8 * S } else { S }, "{took:?}");
        stage.start(owner);
        stage.pass(3 * S);
        stage.transfer(owner);
        another_runs(&mut stage, 2 * S, second);
        settled(&mut stage, 20 * S);
        let said = section(&stage, owner);
        assert_eq!(
            (&said["role"], &said["leader"]),
            (&json!("owner"), &json!(stage.devices[owner].id.as_str()))
        );
        assert_eq!(section(&stage, second)["role"], json!("standby"));
        assert_eq!(said["members"].as_array().map(Vec::len), Some(3));
    }
}

#[test]
fn the_cloud_is_away_while_the_ownership_moves_twice() {
    for edge in HOW {
        let (mut stage, owner) = running(Setup { edge, ..Setup::default() });
        settled(&mut stage, 10 * S);
        let cut = |stage: &Stage, off: bool| {
            stage.hub.modules.iter().for_each(|module| module.line.cut_off_the_cloud(off));
        };
        cut(&stage, true);
        stage.crash(owner);
        let second = another_runs(&mut stage, bound(), owner);
        stage.pass(20 * S);
        stage.start(owner);
        stage.pass(3 * S);
        stage.crash(second);
        another_runs(&mut stage, bound(), second);
        // The rest of the hour, as in the story of the device twins: pauses have grown to their longest.
        stage.pass(80 * S);
        let epochs: Vec<u64> = stage.devices.iter().map(|d| stage.hub.said(&d.id).epoch).collect();
        assert!(epochs.iter().all(|epoch| *epoch <= 1), "the cloud shows what it was last told: {epochs:?}");
        cut(&stage, false);
        let took = settled(&mut stage, 30 * S);
        assert!(took < 8 * S, "{took:?}");
        assert_eq!(stage.epochs(), [1, 2, 3], "the cloud's absence and return change nothing on site");
    }
}

/// The hub refuses what an edgeHub pushes, and the edgeHub does not try again by itself.
#[test]
fn a_push_that_an_edgehub_lost_is_made_good() {
    let (mut stage, owner) = running(Setup { edge: true, ..Setup::default() });
    settled(&mut stage, 10 * S);
    stage.hub.memory.trouble(Trouble::Throttled { retry_after_s: None });
    stage.crash(owner);
    another_runs(&mut stage, bound(), owner);
    stage.pass(8 * S);
    stage.hub.memory.trouble(Trouble::None);
    settled(&mut stage, 60 * S);
}

fn desire(stage: &Stage, n: usize, section: Value) {
    let change =
        Change::from_json(&json!({"properties": {"desired": {"quorate": section}}})).expect("a change");
    let module = &stage.hub.modules[n];
    let target = quorate::hub::link::Module::target(module);
    assert!(stage.hub.memory.meddle_with_module(target, &change));
}

/// Without leave from the site the cloud may ask, and nothing else.
#[test]
fn the_cloud_asks_and_may_not_order() {
    for edge in HOW {
        let (mut stage, owner) = running(Setup { edge, ..Setup::default() });
        settled(&mut stage, 10 * S);
        let standby = (owner + 1) % 3;
        let module = stage.hub.modules[standby].line.clone();
        let status = Event::Call { id: "1".into(), method: "status".into(), payload: Value::Null };
        assert!(module.push(status));
        let answers = |module: &MemoryModule| {
            let answer = |said: Said| match said {
                Said::Answer(id, status, body) => Some((id, status, body)),
                _ => None,
            };
            module.said().into_iter().filter_map(answer).collect::<Vec<_>>()
        };
        stage.until(2 * S, "an answer", |_| answers(&module).len() == 1);
        let (id, code, body) = answers(&module).remove(0);
        assert_eq!((id.as_str(), code), ("1", 200));
        assert_eq!(body["owner"]["device"], json!(stage.devices[owner].id.as_str()));
        // Far in the future and so malformed, or not allowed: refused either way, and nothing moves.
        let expires = quorate::hub::wall::rfc3339(1_800_000_000_000 + 3_600_000);
        desire(&stage, standby, json!({"transfer": {"id": "t1", "to": "edge-2", "expires": expires}}));
        stage.until(20 * S, "the refusal is told", |s| {
            section(s, standby)["commands"]["transfer"]["id"] == json!("t1")
        });
        let said = section(&stage, standby)["commands"]["transfer"].clone();
        assert_eq!(said["outcome"], json!("refused"));
        assert!(said["reason"].as_str().is_some_and(|why| why.contains("hub.commands")), "{said}");
        // A restarted sidecar reads the same wish again, and knows that it is answered.
        let at = said["at"].clone();
        stage.crash(standby);
        stage.pass(S);
        stage.start(standby);
        stage.pass(20 * S);
        assert_eq!(section(&stage, standby)["commands"]["transfer"]["at"], at);
        assert_eq!((stage.running(), stage.epoch()), (Some(owner), 1));
    }
}
