//! Workloads that do not do what they should, under a real sidecar.

use super::site::{Plan, Site, until};

/// A command that runs in a shell.
fn shell(script: &str) -> Plan {
    let words = serde_json::json!(["/bin/sh", "-c", script]);
    Plan { command: Some(words.to_string()), ..Plan::default() }
}

#[test]
fn a_crashing_workload_is_restarted_with_pauses_and_shown() {
    let (mut site, owner, epoch) = Site::running(shell("echo so far so good; echo alas >&2; exit 3"));
    let detail = site.condition(owner, "workload.crashing");
    assert!(detail.contains("exit code 3"), "{detail}");
    let report = site.reports(owner, "the fourth failure", |r| r.workload.failures >= 4);
    assert!(report.workload.observed.starts_with("backing off"), "{:?}", report.workload);
    assert_eq!(report.workload.epoch, Some(epoch));
    assert_eq!(report.owner.device.as_deref(), Some(site.devices[owner].id.as_str()));
    let log = site.log(owner);
    assert!(log.contains("so far so good") && log.contains("alas"), "its words are in the log: {log}");
    assert!(log.contains("exit code 3"), "{log}");
    for n in 0..3 {
        assert!(site.runs(n));
    }
    let text = site.ask(owner, &["status"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("workload.crashing"), "{text}");
    site.signal(owner, rustix::process::Signal::TERM);
    assert_eq!(site.left(owner).code(), Some(0), "{}", site.log(owner));
    let others: Vec<usize> = (0..3).filter(|n| *n != owner).collect();
    site.owner_among(&others, epoch);
}

#[test]
fn a_command_that_does_not_exist_is_named_and_the_site_goes_on() {
    let plan = Plan { command: Some("[\"/nowhere/at-all\"]".into()), ..Plan::default() };
    let (mut site, owner, _) = Site::running(plan);
    let detail = site.condition(owner, "workload.cannot_start");
    assert!(detail.contains("/nowhere/at-all") && detail.contains("No such file"), "{detail}");
    let answer = site.ask(owner, &["leader"]);
    assert_eq!(answer.status.code(), Some(0));
    assert!(site.log(owner).contains("/nowhere/at-all"));
    let to = site.devices[(owner + 1) % 3].id.clone();
    until("a handover away from it", || {
        (site.ask(owner, &["transfer", "--to", &to]).status.code() == Some(0)).then_some(())
    });
    for n in 0..3 {
        assert!(site.runs(n));
        site.signal(n, rustix::process::Signal::TERM);
    }
    for n in 0..3 {
        assert_eq!(site.left(n).code(), Some(0), "{}", site.log(n));
    }
}

#[test]
fn a_planned_stop_waits_for_a_workload_that_takes_its_time() {
    // Far longer than hold and stop_grace together.
    let script = "trap 'sleep 1.5; echo all is put away; exit 0' TERM; while true; do sleep 0.02; done";
    let (site, owner, epoch) = Site::running(shell(script));
    let to = (owner + 1) % 3;
    assert_eq!(site.ask(owner, &["transfer", "--to", &site.devices[to].id]).status.code(), Some(0));
    site.owner_among(&[to], epoch);
    let log = site.log(owner);
    assert!(log.contains("all is put away"), "{log}");
}
