//! Workloads that say when they are ready, and workloads with limits, under real sidecars.

use std::{fs, os::unix::fs::PermissionsExt as _, os::unix::net::UnixDatagram};

use super::{
    not_tested,
    site::{Plan, Site, http, quorate, until},
};

/// Not somebody's own one: other users run it too.
const PYTHON: &str = "/usr/bin/python3";

/// A script for python3 that runs with `say`, or nothing where there is no python3.
fn python(script: &str, more: &str) -> Option<Plan> {
    let found = std::process::Command::new(PYTHON).arg("--version").output();
    if !found.is_ok_and(|output| output.status.success()) {
        not_tested("there is no python3 for every user here, so nothing says that it is ready");
        return None;
    }
    let script = format!(
        "import os, socket, time\n\
         def say(words):\n\
         \x20   socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(words, os.environ['NOTIFY_SOCKET'])\n\
         {script}"
    );
    let words = serde_json::json!([PYTHON, "-c", script]);
    let workload = format!("kind = \"process\"\ncommand = {words}\nready = \"notify\"\n{more}");
    Some(Plan { workload: Some(workload), ..Plan::default() })
}

const WAITS: &str = "\
say(b'STATUS=waits\\x1b[2J')
while not os.path.exists('go'): time.sleep(0.02)
say(b'READY=1\\nSTATUS=warm')
while True: time.sleep(1)
";

#[test]
fn a_workload_is_starting_until_it_says_that_it_is_ready() {
    let Some(plan) = python(WAITS, "ready_within = \"10m\"") else { return };
    let (mut site, owner, epoch) = Site::running(plan);
    let home = format!("edge-{}", owner + 1);
    let starting = |site: &Site| {
        let says = |r: &quorate::status::report::Report| r.workload.says.as_deref() == Some("waits [2J");
        site.reports(owner, "it to start", |r| r.workload.observed == "starting" && says(r));
    };
    starting(&site);
    let (_, metrics) = http(site.devices[owner].http, "/metrics").expect("it is up");
    assert!(metrics.contains("quorate_workload_up 0"), "{metrics}");
    // Nobody else may say so, and nonsense changes nothing.
    let socket = site.file(&format!("{home}/notify.sock"));
    assert_eq!(fs::metadata(&socket).expect("is there").permissions().mode() & 0o777, 0o600);
    let stranger = UnixDatagram::unbound().expect("a socket");
    for words in [&b"READY=1"[..], b"\xff\x00", &[b'x'; 60_000]] {
        stranger.send_to(words, &socket).expect("is heard");
    }
    until("the stranger to be noticed", || site.log(owner).contains("no part of the workload").then_some(()));
    starting(&site);
    fs::write(site.file(&format!("{home}/go")), "").expect("writes");
    site.reports(owner, "it to be ready", |r| {
        r.workload.observed == "running" && r.workload.says.as_deref() == Some("warm")
    });
    let text = String::from_utf8_lossy(&site.ask(owner, &["status"]).stdout).into_owned();
    assert!(text.contains("warm"), "{text}");
    // What the workload is told is told anew on the next owner, which starts from nothing.
    site.signal(owner, rustix::process::Signal::KILL);
    site.left(owner);
    let others: Vec<usize> = (0..3).filter(|n| *n != owner).collect();
    let (next, _) = site.owner_among(&others, epoch);
    site.reports(next, "the next to start", |r| r.workload.observed == "starting");
}

const MUTE: &str = "\
if not os.path.exists('mute'): say(b'READY=1')
while True: time.sleep(1)
";

#[test]
fn who_is_not_ready_in_time_gives_way_to_another() {
    let Some(plan) = python(MUTE, "ready_within = \"1s\"") else { return };
    let mut site = Site::with(plan);
    (0..3).for_each(|n| site.tell(n, "QUORATE_SITE__BETTER_FOR", "1s"));
    fs::write(site.file("edge-1/mute"), "").expect("writes");
    site.start(0);
    site.up(0);
    site.start(1);
    site.up(1);
    site.ask(0, &["prefer", "edge-1"]);
    site.start(2);
    site.up(2);
    let (mut owner, mut epoch) = site.owner(0);
    while owner != 0 {
        until("a handover to the one that is mute", || {
            (site.ask(owner, &["transfer", "--to", "edge-1"]).status.code() == Some(0)).then_some(())
        });
        (owner, epoch) = site.owner(epoch);
    }
    assert!(site.condition(0, "workload.unhealthy").contains("has not said within 1000 ms"));
    let (next, _) = site.owner_among(&[1, 2], epoch);
    site.reports(next, "it to be well", |r| {
        r.workload.observed == "running"
            && r.probes.iter().any(|p| p.name == "workload.ready" && p.up == Some(true))
    });
}

const BEATS: &str = "\
say(b'READY=1')
while True:
    time.sleep(0.1)
    if not os.path.exists('still'): say(b'WATCHDOG=1')
";

#[test]
fn who_falls_silent_is_not_well_until_it_speaks_again() {
    let Some(plan) = python(BEATS, "watchdog = \"2s\"") else { return };
    let (site, owner, _) = Site::running(plan);
    let still = |n: usize| site.file(&format!("edge-{}/still", n + 1));
    let well = |site: &Site, wanted: bool| {
        site.reports(owner, "the verdict", |r| {
            r.probes.iter().any(|p| p.name == "workload.ready" && p.up == Some(wanted))
        });
    };
    well(&site, true);
    site.ask(owner, &["pause", "--reason", "so that it stays"]);
    fs::write(still(owner), "").expect("writes");
    assert!(site.condition(owner, "workload.unhealthy").contains("no sign of life for 2000 ms"));
    fs::remove_file(still(owner)).expect("removes");
    well(&site, true);
}

#[test]
fn the_example_says_that_it_is_ready() {
    let Some(_) = python("", "") else { return };
    let program = format!("{}/deploy/examples/ready.py", env!("CARGO_MANIFEST_DIR"));
    let words = serde_json::json!([PYTHON, program, "0.2"]);
    let workload = format!("kind = \"process\"\ncommand = {words}\nready = \"notify\"\nwatchdog = \"1s\"");
    let site = Site::with(Plan { workload: Some(workload), ..Plan::default() });
    let arguments = ["check-workload", "--seconds", "2", "--json", "--yes"];
    let output = quorate().args(arguments).envs(site.environment(0)).output().expect("starts");
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(0), "{said}");
    let ready = said["grades"].as_array().expect("grades").iter().find(|g| g["what"] == "says it is ready");
    assert!(ready.expect("is graded")["how"].as_str().expect("a text").contains("it said so"), "{said}");
}

#[test]
fn another_user_says_that_it_is_ready() {
    if !rustix::process::geteuid().is_root() {
        return not_tested("only root may start a process as another user");
    }
    let Some(plan) = python("say(b'READY=1')\nwhile True: time.sleep(1)", "user = \"65534:65534\"") else {
        return;
    };
    let mut site = Site::with(plan);
    let open = |site: &Site, mode: u32| {
        fs::set_permissions(site.folder.path(), fs::Permissions::from_mode(mode)).expect("is ours");
    };
    open(&site, 0o700);
    site.start_all();
    let why = site.condition(0, "workload.unhealthy");
    assert!(why.contains("workload.user cannot reach") && why.contains("chmod o+x"), "{why}");
    (0..3).for_each(|n| site.signal(n, rustix::process::Signal::TERM));
    (0..3).for_each(|n| assert!(site.left(n).success()));
    open(&site, 0o711);
    site.start_all();
    let (owner, _) = site.owner(0);
    site.reports(owner, "it to be ready", |r| r.workload.observed == "running");
}

#[test]
fn a_process_has_the_limits_that_are_configured() {
    let script = "cat /proc/self/limits > limits.new; mv limits.new limits; while true; do sleep 0.02; done";
    let words = serde_json::json!(["/bin/sh", "-c", script]);
    let limits = "limits = { memory = \"256MiB\", open_files = 77 }";
    let workload = format!("kind = \"process\"\ncommand = {words}\n{limits}");
    let (site, owner, _) = Site::running(Plan { workload: Some(workload), ..Plan::default() });
    let file = site.file(&format!("edge-{}/limits", owner + 1));
    let text = until("the workload to look", || fs::read_to_string(&file).ok());
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).expect("is there").to_owned();
    assert!(line("Max open files").contains(" 77 "), "{text}");
    // Where the kernel offers no controller, every process has this by itself.
    let report = quorate().args(["check", "--seconds", "1", "--json"]).envs(site.environment(owner)).output();
    let said: serde_json::Value = serde_json::from_slice(&report.expect("starts").stdout).expect("JSON");
    let tried = said["workload"].as_array().expect("a list");
    let how = tried.iter().filter_map(|t| t["what"].as_str()).find(|what| what.starts_with("the limits"));
    let how = how.expect("is tried").to_owned();
    assert!(how.contains("open files of each process"), "{how}");
    if how.contains("memory of each process") {
        assert!(line("Max data size").contains("268435456"), "{text}");
    } else {
        not_tested("this machine has a memory controller, so no process has a limit of its own");
    }
}

#[test]
fn a_limit_that_cannot_be_kept_is_refused_and_named() {
    let workload = "kind = \"process\"\ncommand = [\"sleep\", \"1000\"]\nuser = \"0\"\nlimits = { processes = 5, cpu = \"0.5\" }";
    if !rustix::process::geteuid().is_root() {
        return not_tested("only root is refused for certain");
    }
    if fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").is_ok_and(|all| all.contains("pids")) {
        return not_tested("this machine has the controllers, so the limits are kept");
    }
    let mut site = Site::with(Plan { workload: Some(workload.to_owned()), ..Plan::default() });
    let output = quorate()
        .args(["check-workload", "--yes", "--seconds", "1", "--json"])
        .env("PATH", "/usr/bin:/bin")
        .envs(site.environment(0))
        .output()
        .expect("starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("keeps its limits") && said.contains("workload.limits.cpu"), "{said}");
    assert!(said.contains("cannot start"), "the fencer refuses as well: {said}");
    site.start(0);
    site.up(0);
    assert!(site.condition(0, "workload.unhealthy").contains("workload.limits.cpu"));
}
