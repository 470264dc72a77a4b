//! Workloads that do not do what they should, under a real sidecar.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use quorate::status::report::Report;

use super::site::{Plan, Site, http, until};

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
    let others: Vec<usize> = (0..3).filter(|n| *n != owner).collect();
    for standby in &others {
        is_shown_elsewhere(&site, *standby, &site.devices[owner].id, "workload.crashing");
    }
    site.signal(owner, rustix::process::Signal::TERM);
    assert_eq!(site.left(owner).code(), Some(0), "{}", site.log(owner));
    site.owner_among(&others, epoch);
    // Who has left is not heard any more, and neither is what it said.
    let left = &site.devices[owner].id;
    until("the words of who has left to be forgotten", || {
        let report = site.whole_report(others[0])?;
        let member = report.members.iter().find(|m| m.device == *left)?;
        let silent = member.workload.is_none() && report.conditions.iter().all(|c| c.device != *left);
        (!member.reachable && silent).then_some(())
    });
}

/// Every face of a standby says that the workload does not work on the owner, and why.
#[track_caller]
fn is_shown_elsewhere(site: &Site, standby: usize, owner: &str, condition: &str) {
    let report = until("a standby to know of the owner's trouble", || {
        let raises = |r: &Report| r.conditions.iter().any(|c| c.name == condition && c.device == owner);
        site.whole_report(standby).filter(|r| r.owner.workload.is_some() && raises(r))
    });
    let wrong = report.owner.workload_wrong.expect("it does not work");
    assert!(wrong.contains(condition), "{wrong}");
    assert!(site.report(standby).is_some_and(|r| r.conditions.iter().all(|c| c.name != condition)));
    let told = |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let text = told(&site.ask(standby, &["status"]));
    assert!(text.contains(&format!("\ntrouble   the workload on {owner}, the owner: ")), "{text}");
    assert!(text.contains(&format!("{condition} on {owner}")), "{text}");
    let json = told(&site.ask(standby, &["status", "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert!(json["owner"]["workload_wrong"].is_string(), "{json}");
    let plan = site.ask(standby, &["plan"]);
    assert_eq!(plan.status.code(), Some(1), "{plan:?}");
    assert!(told(&plan).contains("its workload does not work now"), "{plan:?}");
    let (_, plan) = http(site.devices[standby].http, "/v1/plan").expect("it is up");
    let plan: serde_json::Value = serde_json::from_str(&plan).expect("JSON");
    assert_eq!((&plan["survives_any"], plan["workload_wrong"].is_string()), (&false.into(), true));
    let (_, metrics) = http(site.devices[standby].http, "/metrics").expect("it is up");
    for line in [
        format!("quorate_member_condition{{device=\"{owner}\",name=\"{condition}\"}} 1"),
        format!("quorate_condition{{name=\"{condition}\"}} 0"),
        format!("quorate_owner_workload_up{{device=\"{owner}\"}} 0"),
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in:\n{metrics}");
    }
}

/// A script that begins like this is there, and nobody can start it.
const NO_INTERPRETER: &str = "#!/nowhere/at-all\n";

fn write_program(path: &Path, text: &str) {
    fs::write(path, text).expect("writes");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("makes it a program");
}

#[test]
fn who_does_not_have_the_program_does_not_take_over() {
    let plan = Plan { command: Some("[\"./app\"]".into()), ..Plan::default() };
    let mut site = Site::with(plan);
    let home = |site: &Site, n: usize| site.file(&format!("edge-{}/app", n + 1));
    let app = "#!/bin/sh\nwhile true; do sleep 0.02; done\n";
    write_program(&home(&site, 1), app);
    site.start_all();
    let (owner, epoch) = site.owner(0);
    assert_eq!(owner, 1);
    assert!(site.condition(0, "workload.unhealthy").contains("./app"));
    let refused = site.ask(1, &["transfer", "--to", "edge-1"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("./app"), "it says why: {refused:?}");
    // What runs is left alone, as when a program is being replaced.
    fs::remove_file(home(&site, 1)).expect("removes");
    write_program(&home(&site, 2), app);
    site.reports(2, "that the third is well", |r| {
        r.conditions.iter().all(|c| c.name != "workload.unhealthy")
    });
    assert_eq!(site.owner(0), (1, epoch));
    site.signal(1, rustix::process::Signal::KILL);
    site.left(1);
    assert_eq!(site.owner_among(&[0, 2], epoch).0, 2);
}

#[test]
fn a_command_that_cannot_be_started_is_named_and_the_site_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let app = folder.path().join("app");
    write_program(&app, NO_INTERPRETER);
    let plan = Plan { command: Some(format!("[\"{}\"]", app.display())), ..Plan::default() };
    let (mut site, owner, _) = Site::running(plan);
    let detail = site.condition(owner, "workload.cannot_start");
    assert!(detail.contains(&*app.to_string_lossy()) && detail.contains("No such file"), "{detail}");
    let standby = (owner + 1) % 3;
    is_shown_elsewhere(&site, standby, &site.devices[owner].id, "workload.cannot_start");
    let answer = site.ask(owner, &["leader"]);
    assert_eq!(answer.status.code(), Some(0));
    assert!(site.log(owner).contains(&*app.to_string_lossy()));
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

#[test]
fn a_workload_that_is_deaf_to_term_runs_on_one_device_at_a_time() {
    let binary = env!("CARGO_BIN_EXE_quorate");
    let words = serde_json::json!([binary, "tick-workload", "--file", "ticks", "--ignore-term"]);
    let workload = format!("kind = \"process\"\nstop_timeout = \"300ms\"\ncommand = {words}");
    let (mut site, first, epoch) = Site::running(Plan { workload: Some(workload), ..Plan::default() });
    let ticks = |site: &Site, n: usize, epoch: u64| {
        until("it to tick", || site.ticks_of(n).iter().any(|t| t.epoch.get() == epoch).then_some(()));
    };
    ticks(&site, first, epoch);
    // A terminal that is closed changes nothing.
    site.signal(first, rustix::process::Signal::HUP);
    let pid = site.reports(first, "its process", |r| r.workload.pid.is_some()).workload.pid.expect("seen");
    super::site::send(pid, rustix::process::Signal::KILL);
    site.reports(first, "another process", |r| r.workload.pid.is_some_and(|other| other != pid));
    assert!(site.runs(first) && site.owner(0) == (first, epoch));
    site.signal(first, rustix::process::Signal::KILL);
    site.left(first);
    let others: Vec<usize> = (0..3).filter(|n| *n != first).collect();
    let (second, epoch) = site.owner_among(&others, epoch);
    ticks(&site, second, epoch);
    site.start(first);
    site.up(first);
    site.freeze(second);
    let others: Vec<usize> = (0..3).filter(|n| *n != second).collect();
    let (third, epoch) = site.owner_among(&others, epoch);
    ticks(&site, third, epoch);
    site.signal(second, rustix::process::Signal::CONT);
    let to = site.devices[(third + 1) % 3].id.clone();
    until("a handover", || {
        (site.ask(third, &["transfer", "--to", &to]).status.code() == Some(0)).then_some(())
    });
    let (last, epoch) = site.owner(epoch);
    ticks(&site, last, epoch);
    assert!(site.runs_without_overlap().len() >= 4);
}

#[test]
fn a_process_runs_as_the_user_that_is_named_and_dies_with_its_fencer() {
    if !rustix::process::geteuid().is_root() {
        return super::not_tested("only root may start a process as another user");
    }
    let script = "id -u > who; id -g >> who; id -G >> who; while true; do sleep 0.02; done";
    let words = serde_json::json!(["/bin/sh", "-c", script]);
    let workload = format!("kind = \"process\"\nuser = \"65534:65534\"\ncommand = {words}");
    let mut site = Site::with(Plan { workload: Some(workload), ..Plan::default() });
    for n in 0..3 {
        // Where it may write.
        let home = site.file(&format!("edge-{}", n + 1));
        for folder in [site.folder.path(), &home] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).expect("opens it");
        }
    }
    site.start_all();
    let (owner, _) = site.owner(0);
    let who = site.file(&format!("edge-{}/who", owner + 1));
    let text = until("the workload to say who it is", || {
        fs::read_to_string(&who).ok().filter(|text| text.lines().count() == 3)
    });
    assert_eq!(text, "65534\n65534\n65534\n");
    let report = site.reports(owner, "its process", |r| r.workload.pid.is_some());
    let pid = report.workload.pid.expect("just seen");
    // Its fencer is killed: the kernel ends it, although it is another user's.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("runs");
    let fencer: u32 =
        status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok()).expect("a parent");
    super::site::send(fencer, rustix::process::Signal::KILL);
    until("the workload to end", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z")).then_some(())
    });
}

#[test]
fn devices_that_run_something_else_are_told_apart() {
    let model = tempfile::tempdir().expect("a folder").keep();
    let plan = Plan {
        workload: Some(format!(
            "kind = \"process\"\ncommand = [\"./app\"]\nfingerprint_files = [\"{}/model\"]",
            model.display()
        )),
        ..Plan::default()
    };
    let mut site = Site::with(plan);
    let home = |site: &Site, n: usize| site.file(&format!("edge-{}/app", n + 1));
    let app = "#!/bin/sh\nwhile true; do sleep 0.02; done\n";
    (0..3).for_each(|n| write_program(&home(&site, n), app));
    fs::write(model.join("model"), "one").expect("writes");
    site.start_all();
    let (owner, epoch) = site.owner(0);
    let same = |r: &quorate::status::report::Report| {
        let builds: std::collections::BTreeSet<_> = r.members.iter().map(|m| m.build.clone()).collect();
        (builds.len() == 1)
            .then(|| builds.into_iter().next().expect("one"))
            .filter(|build| build.contains('+'))
    };
    let first = until("all to tell the same build", || site.report(owner).and_then(|r| same(&r)));
    // One of them is updated.
    let updated = (owner + 1) % 3;
    write_program(&home(&site, updated), &format!("{app}# newer\n"));
    let detail = site.condition(owner, "build.differs");
    let id = &site.devices[updated].id;
    assert!(detail.contains(&first) && detail.contains(&format!("on {id}")), "{detail}");
    // And then the others.
    (0..3).for_each(|n| write_program(&home(&site, n), &format!("{app}# newer\n")));
    let second = until("all to tell the same build again", || site.report(owner).and_then(|r| same(&r)));
    assert_ne!(first, second);
    site.reports(owner, "no difference", |r| r.conditions.iter().all(|c| c.name != "build.differs"));
    assert_eq!(site.owner(0), (owner, epoch), "nothing moves by this");
    fs::remove_dir_all(model).expect("removes");
}

#[test]
fn a_device_that_runs_something_else_does_not_take_over_where_that_is_forbidden() {
    let plan = Plan { workload: Some("kind = \"process\"\ncommand = [\"./app\"]".into()), ..Plan::default() };
    let mut site = Site::with(plan);
    let app = "#!/bin/sh\nwhile true; do sleep 0.02; done\n";
    for n in 0..3 {
        write_program(&site.file(&format!("edge-{}/app", n + 1)), app);
        site.tell(n, "QUORATE_SITE__DIFFERING_BUILDS", "block");
    }
    site.start_all();
    let (owner, epoch) = site.owner(0);
    let same = |r: &quorate::status::report::Report| r.members.iter().all(|m| m.fit);
    site.reports(owner, "all to be fit", same);
    let (updated, other) = ((owner + 1) % 3, (owner + 2) % 3);
    write_program(&site.file(&format!("edge-{}/app", updated + 1)), &format!("{app}# newer\n"));
    let id = site.devices[updated].id.clone();
    let report =
        site.reports(owner, "it to be kept from owning", |r| r.members.iter().any(|m| m.build_blocks));
    let member = report.members.iter().find(|m| m.build_blocks).expect("just seen");
    let why = member.unfit_reason.clone().unwrap_or_default();
    assert!(member.device == id && why.contains("does not own until they are the same"), "{member:?}");
    let detail = site.condition(owner, "build.differs");
    assert!(detail.ends_with(&format!("because of that does not own: {id}")), "{detail}");
    site.signal(owner, rustix::process::Signal::KILL);
    assert_eq!(site.owner_among(&[updated, other], epoch).0, other);
    // Whoever is named may.
    site.start(owner);
    let named = site.ask(other, &["transfer", "--to", &id, "--reason", "it is the newer one"]);
    assert!(named.status.success(), "{named:?}");
    let (now_owns, _) = site.owner(epoch + 1);
    assert_eq!(now_owns, updated);
}
