//! `quorate check-workload` with real workloads, good ones and bad ones.

use std::process::Stdio;

use quorate::raft::log::folder;
use serde_json::Value;

use super::site::{Plan, Site, quorate, until};

/// Grades a shell script; the exit code and what was said.
fn graded(script: &str, more: &[&str]) -> (Option<i32>, Value) {
    let words = serde_json::json!(["/bin/sh", "-c", script]);
    let workload = format!("kind = \"process\"\nstop_timeout = \"400ms\"\ncommand = {words}");
    let site = Site::with(Plan { workload: Some(workload), ..Plan::default() });
    let arguments = [&["check-workload", "--seconds", "1", "--json"], more].concat();
    let output = quorate().args(arguments).envs(site.environment(0)).output().expect("starts");
    let said = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&output.stderr).into_owned()));
    (output.status.code(), said)
}

/// What it did not pass.
#[track_caller]
fn failed(script: &str) -> Vec<(String, String)> {
    let (code, said) = graded(script, &["--yes"]);
    let grades = said["grades"].as_array().unwrap_or_else(|| panic!("{said}")).clone();
    let text = |grade: &Value, key: &str| grade[key].as_str().expect("a text").to_owned();
    let failed: Vec<_> =
        grades.iter().filter(|g| g["passed"] == false).map(|g| (text(g, "what"), text(g, "how"))).collect();
    assert_eq!(
        (code, &said["ok"]),
        (Some(i32::from(!failed.is_empty())), &failed.is_empty().into()),
        "{said}"
    );
    failed
}

#[test]
fn a_workload_that_ends_when_it_is_told_passes() {
    assert_eq!(failed("trap 'exit 0' TERM; while :; do sleep 0.02; done"), []);
}

#[test]
fn each_fault_of_a_workload_is_named() {
    let names = |script: &str| failed(script).into_iter().map(|(what, _)| what).collect::<Vec<_>>();
    let deaf = "trap '' TERM; while :; do sleep 0.02; done";
    assert_eq!(names(deaf), ["stops when told", "stops at its deadline"]);
    assert!(names("sleep 0.3; exit 7").contains(&"stays".to_owned()));
    // In a session of its own, where the signal to the group does not reach it.
    let forks = "setsid sleep 30 & trap 'exit 0' TERM; while :; do sleep 0.02; done";
    let left = failed(forks);
    assert!(left.iter().any(|(what, how)| what == "leaves nothing" && how.contains("sleep 30")), "{left:?}");
}

/// How it did not pass this question.
#[track_caller]
fn how<'a>(failed: &'a [(String, String)], question: &str) -> &'a str {
    let found = failed.iter().find(|(what, _)| what == question);
    found.map_or_else(|| panic!("{question}: {failed:?}"), |(_, how)| how)
}

/// As a program does that goes into the background.
#[test]
fn one_that_forks_away_is_graded_by_what_could_be_seen() {
    let grades = failed("sleep 30 & sleep 0.2; exit 0");
    assert!(how(&grades, "stays").contains("in the foreground"), "{grades:?}");
    assert!(how(&grades, "leaves nothing").contains("sleep ("), "{grades:?}");
    for question in ["stops when told", "stops at its deadline"] {
        let how = how(&grades, question);
        assert!(how.contains("could not be seen") && how.contains("exit code 0"), "{how}");
    }
    let grades = failed("exit 3");
    assert!(!grades.iter().any(|(what, _)| what == "leaves nothing"), "{grades:?}");
    assert!(how(&grades, "stops when told").contains("exit code 3"), "{grades:?}");
}

#[test]
fn who_did_not_end_is_blamed_and_no_other() {
    let deaf = "sh -c 'trap \"\" TERM; while :; do sleep 0.02; done' & trap 'exit 0' TERM; while :; do sleep 0.02; done";
    let grades = failed(deaf);
    for question in ["stops when told", "stops at its deadline"] {
        let how = how(&grades, question);
        assert!(how.starts_with("its main process ended ") && how.contains("sh -c trap"), "{how}");
    }
    let grades = failed("trap '' TERM; while :; do sleep 0.02; done");
    assert!(
        how(&grades, "stops when told").starts_with("it had to be killed 400 ms after TERM"),
        "{grades:?}"
    );
}

#[test]
fn it_never_runs_beside_a_sidecar_that_begins() {
    let site = Site::with(Plan {
        workload: Some("kind = \"process\"\ncommand = [\"/bin/sleep\", \"60\"]".into()),
        ..Plan::default()
    });
    let data = site.data(0);
    let begun = folder::lock(&data).expect("as a sidecar does before all else");
    let check = || {
        let mut command = quorate();
        command.args(["check-workload", "--yes", "--seconds", "1"]).envs(site.environment(0));
        command
    };
    let output = check().output().expect("starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(&data.display().to_string()) && said.contains("hint: "), "{said}");
    drop(begun);
    let mut running = check().stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    until("it to hold the folder", || {
        matches!(folder::lock(&data), Err(folder::Error::InUse(_))).then_some(())
    });
    running.wait().expect("ends");
    folder::lock(&data).expect("it is free again");
}

#[test]
fn it_runs_nothing_where_that_could_do_harm() {
    let (code, said) = graded("echo hello > ran", &[]);
    assert_eq!(code, Some(2));
    assert!(said.as_str().expect("a text").contains("--yes"), "{said}");
    let mut site = Site::new();
    site.start(0);
    site.up(0);
    let output =
        quorate().args(["check-workload", "--yes"]).envs(site.environment(0)).output().expect("starts");
    assert_eq!(output.status.code(), Some(2));
    let data = site.data(0).display().to_string();
    assert!(String::from_utf8_lossy(&output.stderr).contains(&data), "{output:?}");
    until("nothing to be left", || (!site.file("edge-1/ticks").exists()).then_some(()));
}

#[test]
fn what_it_says_is_shown_and_it_has_to_pass_its_probes() {
    let words = serde_json::json!([
        "/bin/sh",
        "-c",
        "echo alas >&2; trap 'exit 0' TERM; while :; do sleep 0.02; done"
    ]);
    let workload = format!("kind = \"process\"\ncommand = {words}");
    let mut site = Site::with(Plan { workload: Some(workload), ..Plan::default() });
    let probe = |program: &str| {
        format!(
            "[{{ name = \"app\", kind = \"exec\", role = \"workload\", target = [\"{program}\"], every = \"100ms\", grace = \"100ms\" }}, \
              {{ name = \"plc\", kind = \"exec\", target = [\"{program}\"] }}]"
        )
    };
    for (program, passes) in [("/bin/true", true), ("/bin/false", false)] {
        site.tell(0, "QUORATE_SITE__PROBES", probe(program));
        let arguments = ["check-workload", "--yes", "--seconds", "1"];
        let output = quorate().args(arguments).envs(site.environment(0)).output().expect("starts");
        let (said, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(log.contains("alas"), "{log}");
        assert_eq!(output.status.code(), Some(i32::from(!passes)), "{said}");
        let line = said.lines().find(|line| line.starts_with("passes its probes")).expect("is graded");
        assert!(line.contains(if passes { " yes  app after" } else { "exited with 1" }), "{line}");
        // What is asked on every device is tried by `quorate check`.
        let output =
            quorate().args(["check", "--seconds", "1"]).envs(site.environment(0)).output().expect("starts");
        let said = String::from_utf8_lossy(&output.stdout);
        let line = said.lines().find(|line| line.contains("the probe plc (exec)")).expect("is tried");
        assert_eq!(line.contains("does not work"), !passes, "{line}");
        assert!(!said.contains("the probe app"), "{said}");
    }
}

/// A workload that is tried leaves behind what its own command undoes. Trial and fencer are killed (out of memory, the end of a login
/// session, a container that is removed); then the device's sidecar starts with the site's own configuration, and votes.
#[test]
fn what_a_trial_has_left_is_undone_before_a_sidecar_takes_part() {
    let workload = |file: &str| {
        let words = |text: String| serde_json::json!(["/bin/sh", "-c", text]).to_string();
        (words(format!("touch {file}")), words(format!("rm -f {file}")))
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (take, give) = workload(&path("old-address"));
    let mut site = Site::with(Plan {
        workload: Some(format!("kind = \"hooks\"\non_owner = {take}\non_standby = {give}")),
        ..Plan::default()
    });
    let (take, give) = workload(&path("new-address"));
    let mut trial = quorate()
        .args(["check-workload", "--yes", "--seconds", "60"])
        .envs(site.environment(0))
        .env("QUORATE_WORKLOAD__ON_OWNER", take)
        .env("QUORATE_WORKLOAD__ON_STANDBY", give)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    until("it to run", || folder.path().join("new-address").exists().then_some(()));
    let mark = folder.path();
    let others: Vec<u32> =
        super::site::processes_with(mark).into_iter().filter(|p| *p != trial.id()).collect();
    others.iter().for_each(|pid| super::site::send(*pid, rustix::process::Signal::STOP));
    others.iter().for_each(|pid| super::site::send(*pid, rustix::process::Signal::KILL));
    trial.kill().expect("is killed");
    trial.wait().expect("ends");
    site.start_all();
    let (owner, _) = site.owner(0);
    assert!(
        !folder.path().join("new-address").exists(),
        "edge-1 takes part with what the trial has taken still in hand; owner {owner}"
    );
}
