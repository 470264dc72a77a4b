//! Workloads that somebody else runs: real Docker containers, and modules of an emulated IoT Edge runtime with real processes.
//!
//! Each device has a container of its own; what it did is read from a file that it writes the time since boot into.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use rustix::process::Signal;

use super::{
    not_tested,
    site::{Plan, Site, now, until},
};

/// Writes a line every 20 ms. As the first process of a container it hears no TERM.
const TICKS: &str = "while :; do read up rest < /proc/uptime; echo $up >> $FILE; sleep 0.02; done";
/// Ticks further apart than this belong to two runs, in hundredths of a second.
const APART: u64 = 40;

/// When each device's workload ran: first and last tick, in hundredths of a second since boot.
fn runs(files: &[PathBuf]) -> Vec<(u64, u64, usize)> {
    let mut runs: Vec<(u64, u64, usize)> = Vec::new();
    for (n, file) in files.iter().enumerate() {
        let text = fs::read_to_string(file).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines() {
            let at: u64 = line.replace('.', "").parse().expect("hundredths of a second");
            match runs.last_mut() {
                Some((_, last, of)) if *of == n && at.saturating_sub(*last) < APART => *last = at,
                _ => runs.push((at, at, n)),
            }
        }
    }
    runs.sort_unstable();
    runs
}

#[track_caller]
fn never_two(files: &[PathBuf], since: u64) {
    let runs: Vec<_> = runs(files).into_iter().filter(|(begun, ..)| *begun >= since).collect();
    assert!(runs.len() > 1, "it ran on one device only: {runs:?}");
    for pair in runs.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "two workloads at once: {runs:?}");
    }
}

/// Waits until the workload of this device has ticked after now.
#[track_caller]
fn ticks(files: &[PathBuf], n: usize) {
    let begun = uptime();
    until("the workload to tick", || {
        runs(files).iter().any(|(_, last, of)| *of == n && *last > begun).then_some(())
    });
}

/// Hundredths of a second since boot.
fn uptime() -> u64 {
    let text = fs::read_to_string("/proc/uptime").expect("reads");
    text.split(' ').next().expect("a number").replace('.', "").parse().expect("hundredths of a second")
}

/// Owner killed, then frozen, then its workload alone: on one device at a time all along.
#[track_caller]
fn through_its_faults(site: &mut Site, files: &[PathBuf], end_workload: impl Fn(usize)) {
    let since = uptime();
    let (first, epoch) = site.owner(0);
    ticks(files, first);
    site.signal(first, Signal::KILL);
    site.left(first);
    let others: Vec<usize> = (0..3).filter(|n| *n != first).collect();
    let (second, epoch) = site.owner_among(&others, epoch);
    ticks(files, second);
    site.start(first);
    site.up(first);
    site.freeze(second);
    let others: Vec<usize> = (0..3).filter(|n| *n != second).collect();
    let (third, epoch) = site.owner_among(&others, epoch);
    ticks(files, third);
    site.signal(second, Signal::CONT);
    // A workload that ends by itself is started again where it was.
    end_workload(third);
    until("the end to be noticed", || site.log(third).contains("it is started again").then_some(()));
    ticks(files, third);
    let to = (third + 1) % 3;
    until("a handover", || {
        let id = site.devices[to].id.clone();
        (site.ask(third, &["transfer", "--to", &id]).status.code() == Some(0)).then_some(())
    });
    let (owner, _) = site.owner(epoch);
    ticks(files, owner);
    never_two(files, since);
}

fn docker(arguments: &[&str]) -> Option<Output> {
    let output = Command::new("docker").args(arguments).stdin(Stdio::null()).output().ok()?;
    output.status.success().then_some(output)
}

/// Containers on this machine's engine, removed at the end.
struct Containers {
    image: String,
    names: Vec<String>,
}

impl Drop for Containers {
    fn drop(&mut self) {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        docker(&[&["rm", "-f"], &names[..]].concat());
        docker(&["rmi", "-f", &self.image]);
    }
}

/// A shell and `sleep`, with the libraries that they need: no image can be expected to be here, or to come from elsewhere.
fn smallest_image(folder: &Path) -> PathBuf {
    let root = folder.join("root");
    let tar = folder.join("image.tar");
    let copy = format!(
        "set -e; mkdir -p {0}/bin {0}/data; for p in /bin/sh /bin/sleep; do cp -L $p {0}/bin/; \
         for l in $(ldd $p | grep -o '/[^ ]*'); do mkdir -p {0}$(dirname $l); cp -L $l {0}$l; done; done; tar -C {0} -cf {1} .",
        root.display(),
        tar.display()
    );
    let made = Command::new("/bin/sh").args(["-c", &copy]).status().expect("a shell");
    assert!(made.success());
    tar
}

impl Containers {
    /// One for each device, not started. `None` where no engine answers.
    fn create(files: &[PathBuf], folder: &Path) -> Option<Containers> {
        docker(&["info"])?;
        let mark = format!("quorate-test-{}-{}", std::process::id(), now().as_nanos());
        let tar = smallest_image(folder);
        docker(&["import", &tar.to_string_lossy(), &mark]).expect("imports");
        let mut containers = Containers { image: mark.clone(), names: Vec::new() };
        for (n, file) in files.iter().enumerate() {
            let name = format!("{mark}-{n}");
            let volume = format!("{}:/data", file.parent().expect("a folder").display());
            let script =
                TICKS.replace("$FILE", &format!("/data/{}", file.file_name().expect("a name").display()));
            let arguments =
                ["create", "--network=none", "--name", &name, "-v", &volume, &mark, "/bin/sh", "-c", &script];
            docker(&arguments).expect("creates");
            containers.names.push(name);
        }
        Some(containers)
    }
}

fn files(site: &Site) -> Vec<PathBuf> {
    (0..3).map(|n| site.file(&format!("edge-{}/uptimes", n + 1))).collect()
}

#[test]
fn a_docker_container_runs_on_one_device_at_a_time() {
    let workload = Some("kind = \"container\"\n".to_owned());
    let mut site = Site::with(Plan { workload, ..Plan::default() });
    let (files, scratch) = (files(&site), tempfile::tempdir().expect("a folder"));
    let Some(containers) = Containers::create(&files, scratch.path()) else {
        return not_tested("no Docker engine answers, so no container was run");
    };
    for (n, name) in containers.names.iter().enumerate() {
        site.tell(n, "QUORATE_WORKLOAD__CONTAINER", name);
        site.tell(n, "QUORATE_WORKLOAD__STOP_GRACE", "2s");
        site.tell(n, "QUORATE_WORKLOAD__STOP_TIMEOUT", "1s");
    }
    site.start_all();
    through_its_faults(&mut site, &files, |n| {
        docker(&["kill", &containers.names[n]]).expect("kills");
    });
    // Whoever has none of this name does not own.
    let (owner, epoch) = site.owner(0);
    let gone = (owner + 1) % 3;
    docker(&["rm", "-f", &containers.names[gone]]).expect("removes");
    assert!(site.condition(gone, "workload.unhealthy").contains("there is no container"));
    // One that would start again by itself is not run either.
    let other = 3 - owner - gone;
    docker(&["update", "--restart=always", &containers.names[other]]).expect("updates");
    site.reports(other, "the restart policy to be refused", |r| {
        r.conditions.iter().any(|c| c.name == "workload.unhealthy" && c.detail.contains("restart policy"))
    });
    docker(&["update", "--restart=no", &containers.names[other]]).expect("updates");
    site.signal(owner, Signal::KILL);
    site.left(owner);
    assert_eq!(site.owner_among(&[gone, other], epoch).0, other);
}

#[test]
fn what_is_undone_counts_as_the_end_of_the_workload() {
    // The hook takes "an address", and gives it back when it is let.
    let plan = Plan {
        workload: Some("kind = \"hooks\"\non_owner = [\"./take\"]\non_standby = [\"./give\"]\n".into()),
        ..Plan::default()
    };
    let mut site = Site::with(plan);
    for n in 0..3 {
        let home = site.file(&format!("edge-{}", n + 1));
        let program = |name: &str, script: &str| {
            fs::write(home.join(name), format!("#!/bin/sh\n{script}\n")).expect("writes");
            fs::set_permissions(home.join(name), fs::Permissions::from_mode(0o755))
                .expect("makes it a program");
        };
        program("take", "echo $QUORATE_EPOCH > taken");
        program("give", "[ ! -e held ] || { echo no >> tries; exit 3; }\nrm -f taken");
        // What a device that lost its power has left behind is given back before anything else.
        fs::write(home.join("taken"), "0").expect("writes");
        site.tell(n, "QUORATE_WORKLOAD__STOP_GRACE", "2s");
        site.tell(n, "QUORATE_WORKLOAD__STOP_TIMEOUT", "200ms");
    }
    let taken = |site: &Site, n: usize| site.file(&format!("edge-{}/taken", n + 1));
    site.start_all();
    let (owner, epoch) = site.owner(0);
    let text = until("the owner to take it", || {
        fs::read_to_string(taken(&site, owner)).ok().filter(|text| text.trim() == epoch.to_string())
    });
    assert_eq!(text.trim(), epoch.to_string());
    for n in (0..3).filter(|n| *n != owner) {
        assert!(!taken(&site, n).exists(), "given back at the start");
    }
    // While it cannot be given back the handover is not done: nobody else owns.
    let held = site.file(&format!("edge-{}/held", owner + 1));
    fs::write(&held, "").expect("writes");
    let to = site.devices[(owner + 1) % 3].id.clone();
    let mut asked = site.asking(owner, &["transfer", "--to", &to]);
    assert!(site.condition(owner, "workload.cannot_stop").contains("exit code 3"));
    // Far longer than stop_timeout, stop_grace and the time of one try together.
    let tries = site.file(&format!("edge-{}/tries", owner + 1));
    until("many tries", || {
        fs::read_to_string(&tries).ok().filter(|text| text.lines().count() >= 8).map(|_| ())
    });
    for n in 0..3 {
        assert_eq!(site.report(n).expect("answers").epoch, epoch, "nobody else has claimed");
    }
    for n in (0..3).filter(|n| *n != owner) {
        assert!(!taken(&site, n).exists());
    }
    fs::remove_file(&held).expect("removes");
    let (next, _) = site.owner(epoch);
    assert_eq!(site.devices[next].id, to);
    until("the next owner to take it", || taken(&site, next).exists().then_some(()));
    assert!(!taken(&site, owner).exists());
    super::site::ended(&mut asked);
}

/// A site whose hooks note when they took what the owner has, and when they gave it back.
fn hooked(take: &str, give: &str) -> Site {
    let plan = Plan {
        workload: Some("kind = \"hooks\"\non_owner = [\"./take\"]\non_standby = [\"./give\"]\n".into()),
        ..Plan::default()
    };
    let mut site = Site::with(plan);
    for n in 0..3 {
        let home = site.file(&format!("edge-{}", n + 1));
        for (name, script) in [("take", take), ("give", give)] {
            let note =
                format!("#!/bin/sh\nread up rest < /proc/uptime\necho {name} $up >> noted\n{script}\n");
            fs::write(home.join(name), note).expect("writes");
            fs::set_permissions(home.join(name), fs::Permissions::from_mode(0o755))
                .expect("makes it a program");
        }
        site.tell(n, "QUORATE_WORKLOAD__STOP_GRACE", "2s");
        site.tell(n, "QUORATE_WORKLOAD__STOP_TIMEOUT", "5s");
    }
    site
}

/// What a device has noted: taken and given back when, in hundredths of a second since boot.
fn noted(site: &Site, n: usize) -> Vec<(u64, u64)> {
    let text = fs::read_to_string(site.file(&format!("edge-{}/noted", n + 1))).unwrap_or_default();
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for line in text.lines() {
        let (what, at) = line.split_once(' ').expect("a word and a moment");
        let at = at.replace('.', "").parse().expect("hundredths of a second");
        match (what, spans.last_mut()) {
            ("take", _) => spans.push((at, u64::MAX)),
            (_, Some((_, given))) if *given == u64::MAX => *given = at,
            _ => {}
        }
    }
    spans
}

/// At least so often something was taken, and nothing while another had it.
#[track_caller]
fn taken_one_after_the_other(site: &Site, least: usize) {
    let mut spans: Vec<_> = (0..3).flat_map(|n| noted(site, n)).collect();
    spans.sort_unstable();
    assert!(spans.len() >= least, "{spans:?}");
    assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "two at once: {spans:?}");
}

#[track_caller]
fn takes(site: &Site, n: usize, times: usize) {
    until("the hook to take it", || (noted(site, n).len() >= times).then_some(()));
}

#[test]
fn what_hooks_take_is_on_one_device_at_a_time() {
    let mut site = hooked("", "");
    site.start_all();
    let (first, epoch) = site.owner(0);
    takes(&site, first, 1);
    site.signal(first, Signal::KILL);
    site.left(first);
    let others: Vec<usize> = (0..3).filter(|n| *n != first).collect();
    let (second, epoch) = site.owner_among(&others, epoch);
    takes(&site, second, 1);
    site.start(first);
    site.up(first);
    let before = noted(&site, first).len();
    site.freeze(second);
    let others: Vec<usize> = (0..3).filter(|n| *n != second).collect();
    let (third, epoch) = site.owner_among(&others, epoch);
    takes(&site, third, if third == first { before + 1 } else { 1 });
    site.signal(second, Signal::CONT);
    let to = (third + 1) % 3;
    let before = noted(&site, to).len();
    until("a handover", || {
        let id = site.devices[to].id.clone();
        (site.ask(third, &["transfer", "--to", &id]).status.code() == Some(0)).then_some(())
    });
    site.owner(epoch);
    takes(&site, to, before + 1);
    taken_one_after_the_other(&site, 4);
}

#[test]
fn a_hook_that_never_returns_is_ended_with_the_ownership() {
    let mut site = hooked("trap '' TERM\nwhile true; do sleep 1000; done", "");
    (0..3).for_each(|n| site.tell(n, "QUORATE_WORKLOAD__STOP_TIMEOUT", "500ms"));
    site.start_all();
    let (owner, epoch) = site.owner(0);
    takes(&site, owner, 1);
    let to = site.devices[(owner + 1) % 3].id.clone();
    assert_eq!(site.ask(owner, &["transfer", "--to", &to]).status.code(), Some(0));
    let (next, epoch) = site.owner(epoch);
    takes(&site, next, 1);
    site.signal(next, Signal::KILL);
    site.left(next);
    let others: Vec<usize> = (0..3).filter(|n| *n != next).collect();
    let (third, _) = site.owner_among(&others, epoch);
    let before = usize::from(third == owner);
    takes(&site, third, before + 1);
    taken_one_after_the_other(&site, 3);
}

#[test]
fn what_a_hook_leaves_running_is_named_and_delays_no_handover() {
    let mut site = hooked("(trap '' TERM; sleep 1000) & sleep 1000 > /dev/null &", "");
    // Longer than anybody here waits for anything.
    (0..3).for_each(|n| site.tell(n, "QUORATE_WORKLOAD__STOP_TIMEOUT", "60s"));
    site.start_all();
    let (owner, epoch) = site.owner(0);
    until("what it left to be named", || {
        let log = site.log(owner);
        (log.contains("has left running") && log.contains("sleep 1000")).then_some(())
    });
    let to = site.devices[(owner + 1) % 3].id.clone();
    assert_eq!(site.ask(owner, &["transfer", "--to", &to]).status.code(), Some(0));
    site.owner(epoch);
    let home = site.file(&format!("edge-{}", owner + 1));
    let left = || {
        super::site::processes_with(&home).into_iter().filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep"))
        })
    };
    until("all of it to be gone", || (left().count() == 0).then_some(()));
}

#[test]
fn a_hook_that_cannot_be_run_says_why() {
    let mut site = hooked("", "");
    site.start_all();
    let (owner, _) = site.owner(0);
    let script = site.file(&format!("edge-{}/give", owner + 1));
    fs::remove_file(&script).expect("removes");
    let to = site.devices[(owner + 1) % 3].id.clone();
    let mut asked = site.asking(owner, &["transfer", "--to", &to]);
    let why = site.condition(owner, "workload.cannot_stop");
    assert!(why.contains("./give") && why.contains("No such file"), "{why}");
    // Told to end, it says what it waits for.
    site.signal(owner, Signal::TERM);
    until("what it waits for", || {
        site.log(owner).contains("leaving takes its time: the workload has not ended").then_some(())
    });
    fs::write(&script, "#!/bin/sh\n").expect("writes");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("makes it a program");
    assert_eq!(site.left(owner).code(), Some(0));
    super::site::ended(&mut asked);
}

/// Docker's socket, as far as a container that never runs needs it; and then nobody answers any more.
fn docker_that_hangs(path: &Path) -> std::sync::Arc<std::sync::atomic::AtomicBool> {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixListener,
        sync::atomic::{AtomicBool, Ordering},
    };
    let listener = UnixListener::bind(path).expect("binds");
    let hangs = std::sync::Arc::new(AtomicBool::new(false));
    let told = hangs.clone();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for mut stream in listener.incoming().flatten() {
            if told.load(Ordering::Relaxed) {
                held.push(stream);
                continue;
            }
            let _ = stream.read(&mut [0; 4096]);
            let body = "{\"State\":{\"Running\":false},\"HostConfig\":{}}";
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    hangs
}

#[test]
fn a_docker_that_hangs_is_noticed_on_a_standby() {
    let workload = Some("kind = \"container\"\ncontainer = \"pump\"\n".to_owned());
    let mut site = Site::with(Plan { workload, ..Plan::default() });
    let socket = site.file("docker.sock");
    let hangs = docker_that_hangs(&socket);
    site.tell(0, "QUORATE_WORKLOAD__RUNTIME_SOCKET", socket.display().to_string());
    site.tell(0, "QUORATE_WORKLOAD__STOP_GRACE", "2s");
    // Alone it never owns.
    site.start(0);
    site.up(0);
    site.reports(0, "it is well", |r| r.conditions.iter().all(|c| c.name != "workload.unhealthy"));
    hangs.store(true, std::sync::atomic::Ordering::Relaxed);
    let why = site.condition(0, "workload.unhealthy");
    assert!(why.contains("has not answered for 4 s"), "{why}");
}

#[cfg(feature = "emulator")]
mod edge {
    //! The management socket, and edgeAgent's loop behind it.

    use std::{collections::BTreeMap, sync::Arc, time::Duration};

    use quorate::{
        clock::BootClock,
        emulator::{EdgeHub, EdgeOptions, Emulator, Image, Options},
        hub::{Change, Target},
        id::DeviceId,
    };
    use serde_json::json;

    use super::*;
    use crate::process::hub::loopback;

    struct Plant {
        edges: Vec<EdgeHub>,
        _emulator: Emulator,
        _runtime: tokio::runtime::Runtime,
    }

    /// Three devices, each with a module `pump` that is deployed as one under a sidecar should be.
    fn plant(site: &Site, files: &[PathBuf], on_term: &str) -> Plant {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let inside = runtime.enter();
        let emulator = Emulator::start(loopback(), loopback(), &Options::default(), Arc::new(BootClock))
            .expect("starts");
        let edges = files.iter().enumerate().map(|(n, file)| {
            let device = DeviceId::new(format!("edge-{}", n + 1)).expect("a name");
            let options =
                EdgeOptions { reconcile_every: Duration::from_millis(100), ..EdgeOptions::default() };
            let edge = emulator.serve_edge(&device, loopback(), options).expect("serves");
            let script = format!("trap '{on_term}' TERM; FILE={}; {TICKS}", file.display());
            let image = Image {
                command: ["/bin/sh", "-c", &script].map(str::to_owned).into(),
                environment: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
            };
            let folder = site.file(&format!("edge-{}/run", n + 1));
            fs::create_dir_all(&folder).expect("makes the folder");
            edge.run_modules(&folder, BTreeMap::from([("pump:1".to_owned(), image)])).expect("serves");
            let pump = json!({ "type": "docker", "status": "running", "restartPolicy": "never",
                "settings": { "image": "pump:1", "createOptions": "{\"StopTimeout\":1}" } });
            let json = json!({ "properties": { "desired": { "modules": { "pump": pump } } } });
            let change = Change::from_json(&json).expect("a change");
            emulator.meddle(&Target::module(device.as_str(), "$edgeAgent"), &change).expect("is taken");
            edge
        });
        let edges = edges.collect();
        drop(inside);
        Plant { edges, _emulator: emulator, _runtime: runtime }
    }

    #[test]
    fn a_module_runs_on_one_device_at_a_time() {
        through_all("exit 0");
    }

    /// What asks it to end kills it when its `StopTimeout` of a second is over.
    #[test]
    fn a_module_that_is_deaf_to_term_runs_on_one_device_at_a_time() {
        through_all("");
    }

    fn through_all(on_term: &str) {
        let workload = Some("kind = \"module\"\nmodule = \"pump\"\n".to_owned());
        let mut site = Site::with(Plan { workload, ..Plan::default() });
        let files = files(&site);
        let plant = plant(&site, &files, on_term);
        // IoT Edge starts it once on each device, whether there is a sidecar or not.
        until("edgeAgent to start it everywhere", || {
            plant.edges.iter().all(|edge| edge.process("pump").is_some()).then_some(())
        });
        for n in 0..3 {
            let socket = site.file(&format!("edge-{}/run/mgmt.sock", n + 1));
            site.tell(n, "QUORATE_WORKLOAD__RUNTIME_SOCKET", socket.display().to_string());
            site.tell(n, "QUORATE_WORKLOAD__STOP_GRACE", "3s");
            site.tell(n, "QUORATE_WORKLOAD__STOP_TIMEOUT", "2s");
        }
        site.start_all();
        let (owner, _) = site.owner(0);
        until("the others to be stopped", || {
            (0..3).all(|n| n == owner || plant.edges[n].process("pump").is_none()).then_some(())
        });
        ticks(&files, owner);
        through_its_faults(&mut site, &files, |n| {
            let pid = plant.edges[n].process("pump").expect("runs");
            super::super::site::send(pid.unsigned_abs(), Signal::KILL);
        });
    }

    #[test]
    fn a_socket_that_is_not_there_is_named_once_and_the_device_takes_no_part() {
        let workload = Some("kind = \"module\"\nmodule = \"pump\"\n".to_owned());
        let mut site = Site::with(Plan { workload, ..Plan::default() });
        for n in 0..3 {
            let socket = site.file(&format!("edge-{}/no-such.sock", n + 1));
            site.tell(n, "QUORATE_WORKLOAD__RUNTIME_SOCKET", socket.display().to_string());
            site.tell(n, "QUORATE_WORKLOAD__STOP_GRACE", "3s");
        }
        site.start(0);
        // What may have been left running cannot be ruled out, so it takes no part.
        until("the reason", || {
            let log = site.log(0);
            let said = ["no-such.sock", "mount it", "what ends the workload has failed"];
            said.iter().all(|words| log.contains(words)).then_some(())
        });
        site.signal(0, Signal::TERM);
        assert_eq!(site.left(0).code(), Some(0), "{}", site.log(0));
        let errors = site.log(0).matches("what ends the workload has failed").count();
        assert_eq!(errors, 1, "it is said once: {}", site.log(0));
    }
}
