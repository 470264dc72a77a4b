//! `quorate demo` as a stranger runs it: its story, its verdict against the workloads' own records, and what it leaves.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, ExitStatus, Stdio},
};

use rustix::process::Signal;
use serde_json::Value;

use super::site::{ended, processes_with, send, tied, until};

struct Demo {
    /// Where it makes its own folder.
    temporary: tempfile::TempDir,
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in processes_with(self.temporary.path()) {
            send(pid, Signal::KILL);
        }
    }
}

impl Demo {
    fn start(more: &[&str]) -> Demo {
        let temporary = tempfile::Builder::new().prefix("quorate-test-").tempdir().expect("a folder");
        let mut arguments = vec!["demo", "--json"];
        arguments.extend(more);
        let mut child = tied(&arguments)
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let lines = BufReader::new(child.stdout.take().expect("is piped"));
        Demo { temporary, child, lines }
    }

    /// The next event; `None` at the end.
    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line).expect("reads");
        (read > 0).then(|| serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}")))
    }

    /// All events up to and including the first that satisfies `last`.
    #[track_caller]
    fn events_until(&mut self, last: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut events = Vec::new();
        while let Some(event) = self.next() {
            let found = last(&event);
            events.push(event);
            if found {
                return events;
            }
        }
        panic!("the story ended without it: {events:#?}\n{}", self.complaint());
    }

    fn complaint(&mut self) -> String {
        let mut text = String::new();
        let mut stderr = self.child.stderr.take().expect("taken once");
        stderr.read_to_string(&mut text).expect("reads");
        text
    }

    fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    #[track_caller]
    fn ended(&mut self) -> ExitStatus {
        ended(&mut self.child)
    }

    /// Nothing of it is alive. Processes are named by the folder that they all work in.
    #[track_caller]
    fn gone(&self) {
        until("all processes of the demo to be gone", || {
            processes_with(self.temporary.path()).is_empty().then_some(())
        });
    }

    fn leftovers(&self) -> Vec<PathBuf> {
        fs::read_dir(self.temporary.path()).expect("reads").flatten().map(|e| e.path()).collect()
    }
}

fn name(event: &Value) -> &str {
    event["event"].as_str().unwrap_or(if event["verdict"].is_object() { "verdict" } else { "?" })
}

/// The events that tell the story, without those that come once per device.
fn story(events: &[Value]) -> Vec<&str> {
    events.iter().map(name).filter(|n| !matches!(*n, "sidecar" | "kept")).collect()
}

const STORY: &[&str] = &[
    "chapter",
    "hub",
    "owner",
    "twins", // a site elects
    "chapter",
    "killed",
    "owner",
    "twins",
    "returned", // its owner's device dies
    "chapter",
    "hub_cut",
    "killed",
    "owner",
    "condition", // hub cut off, the next owner's sidecar dies
    "chapter",
    "hub_back",
    "twins", // and comes back
    "chapter",
    "transfer",
    "owner",
    "twins", // a planned handover
    "verdict",
];

/// When each device's workload ran under which epoch, from the records alone: first and last tick in nanoseconds.
fn lives(folder: &Path) -> Vec<(u64, u64, u64, String)> {
    let mut lives = BTreeMap::<(String, u64), (u64, u64)>::new();
    for device in fs::read_dir(folder).expect("reads").flatten() {
        let Ok(text) = fs::read_to_string(device.path().join("ticks")) else { continue };
        for line in text.lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            // The very last record may be half written while the workload runs.
            let [at, _pid, epoch, device] = words[..] else { continue };
            let (at, epoch): (u64, u64) = (at.parse().expect("a moment"), epoch.parse().expect("an epoch"));
            let life = lives.entry((device.to_owned(), epoch)).or_insert((at, at));
            *life = (life.0.min(at), life.1.max(at));
        }
    }
    let mut lives: Vec<_> =
        lives.into_iter().map(|((device, epoch), (first, last))| (first, last, epoch, device)).collect();
    lives.sort();
    lives
}

/// The story without the handovers that came to nothing: on a busy machine the device may take over too late, and the demo asks again.
fn settled(events: &[Value]) -> Vec<Value> {
    let mut events = events.to_vec();
    let tried = |events: &[Value]| events.iter().position(|e| name(e) == "transfer");
    while events.iter().filter(|e| name(e) == "transfer").count() > 1
        && let Some(first) = tried(&events)
    {
        events.drain(first..first + 2);
    }
    events
}

#[track_caller]
fn check_story(events: &[Value], devices: usize) {
    let events = settled(events);
    assert_eq!(story(&events), STORY);
    assert_eq!(events.iter().filter(|e| name(e) == "sidecar").count(), devices);
    let mut before = 0;
    for event in events.iter().filter(|e| name(e) != "verdict") {
        let t = event["t_ms"].as_u64().expect("every event has its time");
        assert!(t >= before, "{event} came before {before}");
        before = t;
    }
    let owners: Vec<&Value> = events.iter().filter(|e| name(e) == "owner").collect();
    let epochs: Vec<u64> = owners.iter().map(|o| o["epoch"].as_u64().expect("an epoch")).collect();
    assert!(epochs.windows(2).all(|w| w[0] < w[1]), "epochs only grow: {epochs:?}");
    assert!(owners.windows(2).all(|w| w[0]["device"] != w[1]["device"]), "{owners:?}");
    let of = |event: &str| -> Vec<&Value> { events.iter().filter(|e| name(e) == event).collect() };
    let killed: Vec<&Value> = of("killed").iter().map(|e| &e["device"]).collect();
    assert_eq!(killed, [&owners[0]["device"], &owners[1]["device"]]);
    assert_eq!(of("transfer")[0]["to"], owners[3]["device"]);
    assert_eq!(of("condition")[0]["condition"], "hub.unreachable");
    for (twins, owner) in of("twins").iter().zip([owners[0], owners[1], owners[2], owners[3]]) {
        assert_eq!(twins["converged"], true, "{twins}");
        for twin in twins["twins"].as_array().expect("a list") {
            assert_eq!(twin["active"], twin["device"] == owner["device"], "{twins}");
            assert_eq!(twin["epoch"], owner["epoch"], "{twins}");
        }
    }
    let verdict = &events.last().expect("not empty")["verdict"];
    assert_eq!(verdict["ok"], true, "{verdict}");
    assert_eq!(verdict["overlap_ms"], 0, "{verdict}");
    assert_eq!(verdict["twins_converged"], true, "{verdict}");
    let gaps = ["silent_loss_gap_ms", "sidecar_crash_gap_ms", "handover_gap_ms"];
    for (gap, owner) in gaps.iter().zip(&owners[1..]) {
        assert!(verdict[gap].is_u64(), "{gap} in {verdict}");
        assert_eq!(verdict[gap], owner["gap_ms"], "{gap}");
    }
}

#[test]
fn the_story_its_verdict_and_a_clean_end() {
    let mut demo = Demo::start(&["--keep", "--seed", "7"]);
    let mut events = demo.events_until(|e| name(e) == "verdict");
    check_story(&events, 3);
    events.extend(demo.events_until(|e| name(e) == "folder"));
    assert_eq!(events.iter().filter(|e| name(e) == "kept").count(), 3);
    let folder = PathBuf::from(events.last().expect("not empty")["path"].as_str().expect("a path"));
    assert_eq!(demo.leftovers(), std::slice::from_ref(&folder), "the demo keeps to its own folder");

    let lives = lives(&folder);
    for pair in lives.windows(2) {
        assert!(pair[0].1 < pair[1].0, "two workloads at once: {pair:?}");
        assert!(pair[0].2 < pair[1].2, "epochs only grow: {pair:?}");
    }
    let owners: Vec<(u64, String)> = events
        .iter()
        .filter(|e| name(e) == "owner")
        .map(|e| (e["epoch"].as_u64().expect("an epoch"), e["device"].as_str().expect("a device").to_owned()))
        .collect();
    for (epoch, device) in &owners {
        assert!(
            lives.iter().any(|l| (l.2, &l.3) == (*epoch, device)),
            "epoch {epoch} of {device}: {lives:?}"
        );
    }
    let started = |epoch: u64| lives.iter().find(|l| l.2 == epoch).expect("just seen").0;
    let ended_before = |epoch: u64| lives.iter().filter(|l| l.2 < epoch).map(|l| l.1).max().expect("one");
    for event in events.iter().filter(|e| e["gap_ms"].is_u64()) {
        let epoch = event["epoch"].as_u64().expect("an epoch");
        let gap = (started(epoch) - ended_before(epoch)) / 1_000_000;
        assert_eq!(event["gap_ms"], gap, "the records say otherwise than {event}");
    }

    assert!(processes_with(demo.temporary.path()).len() > 4, "the site runs on");
    demo.signal(Signal::INT);
    assert_eq!(demo.ended().code(), Some(0), "{}", demo.complaint());
    demo.gone();
    assert_eq!(demo.leftovers(), [] as [PathBuf; 0]);
}

#[test]
fn five_devices() {
    let mut demo = Demo::start(&["--devices", "5"]);
    let events = demo.events_until(|e| name(e) == "verdict");
    check_story(&events, 5);
    assert_eq!(demo.next(), None, "the verdict is the last line");
    assert_eq!(demo.ended().code(), Some(0), "{}", demo.complaint());
    demo.gone();
    assert_eq!(demo.leftovers(), [] as [PathBuf; 0]);
}

#[test]
fn ctrl_c_in_the_middle_leaves_nothing() {
    let mut demo = Demo::start(&[]);
    demo.events_until(|e| name(e) == "owner");
    demo.signal(Signal::INT);
    assert_eq!(demo.ended().code(), Some(2));
    let said = demo.complaint();
    assert!(said.contains("Ctrl-C"), "{said}");
    demo.gone();
    assert_eq!(demo.leftovers(), [] as [PathBuf; 0]);
}

#[test]
fn a_killed_demo_takes_all_processes_with_it() {
    let mut demo = Demo::start(&[]);
    demo.events_until(|e| name(e) == "owner");
    assert!(processes_with(demo.temporary.path()).len() > 4, "hub, sidecars, fencers, a workload");
    demo.signal(Signal::KILL);
    demo.ended();
    demo.gone();
}
