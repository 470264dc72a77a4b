//! `quorate check-workload` with real workloads, good ones and bad ones.

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
    assert!(String::from_utf8_lossy(&output.stderr).contains("a sidecar runs"), "{output:?}");
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
