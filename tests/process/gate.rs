//! The gate: real clients in the languages that are here ask real sidecars, and act on one device at a time.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::Signal;

use super::{
    not_tested,
    site::{Plan, Site, until},
};

/// A folder in memory, for lease files.
struct InMemory(tempfile::TempDir);

impl InMemory {
    fn new() -> InMemory {
        InMemory(tempfile::Builder::new().prefix("quorate-test-").tempdir_in("/dev/shm").expect("a tmpfs"))
    }

    fn file(&self, n: usize) -> PathBuf {
        let folder = self.0.path().join(format!("edge-{}", n + 1));
        fs::create_dir_all(&folder).expect("makes the folder");
        folder.join("lease.json")
    }
}

fn gated(memory: &InMemory) -> Site {
    let workload = Some("kind = \"gate\"".to_owned());
    let mut site = Site::with(Plan { workload, ..Plan::default() });
    for n in 0..3 {
        let socket = site.file(&format!("edge-{}/gate.sock", n + 1));
        site.tell(n, "QUORATE_WORKLOAD__SOCKET", socket.display().to_string());
        site.tell(n, "QUORATE_WORKLOAD__LEASE_FILE", memory.file(n).display().to_string());
    }
    site
}

/// A client on one device, and what it did.
struct Client {
    child: Child,
    acts: PathBuf,
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Client {
    fn start(site: &Site, n: usize, name: &str, program: &Path, arguments: &[&str]) -> Client {
        let acts = site.file(&format!("{name}-{n}"));
        let file = fs::File::create(&acts).expect("a file");
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(file).stderr(Stdio::null());
        Client { child: command.spawn().expect("starts"), acts }
    }

    /// When it acted, on `CLOCK_BOOTTIME`, and under which epoch.
    fn acts(&self) -> Vec<(u64, u64)> {
        let text = fs::read_to_string(&self.acts).expect("reads");
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let act = |line: &str| {
            let (at, epoch) = line.split_once(' ').expect("a moment and an epoch");
            (at.parse().expect("a moment"), epoch.parse().expect("an epoch"))
        };
        whole.lines().map(act).collect()
    }

    #[track_caller]
    fn acted(&self, what: &str, above: u64) -> u64 {
        until(what, || self.acts().last().map(|(_, epoch)| *epoch).filter(|epoch| *epoch > above))
    }
}

fn example(name: &str) -> String {
    format!("{}/deploy/examples/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Which programs are here to run the examples with.
fn found(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file());
    if found.is_none() {
        not_tested(&format!("{program} is not here, so its example does not run"));
    }
    found
}

/// All clients of one kind: no two of them, of different devices, at the same time, and no epoch after a higher one.
#[track_caller]
fn never_two(clients: &[Client]) {
    let mut spans: Vec<(u64, u64, usize, u64)> = Vec::new();
    for (n, client) in clients.iter().enumerate() {
        let acts = client.acts();
        let mut epochs: Vec<u64> = acts.iter().map(|(_, epoch)| *epoch).collect();
        assert!(epochs.is_sorted(), "an epoch went back");
        epochs.dedup();
        for epoch in epochs {
            let at: Vec<u64> = acts.iter().filter(|(_, e)| *e == epoch).map(|(at, _)| *at).collect();
            spans.push((*at.first().expect("one"), *at.last().expect("one"), n, epoch));
        }
    }
    spans.sort_unstable();
    for pair in spans.windows(2) {
        let ((_, ended, a, e), (began, _, b, f)) = (pair[0], pair[1]);
        assert!(
            ended < began && e < f,
            "edge-{} under {e} and edge-{} under {f} at once: {spans:?}",
            a + 1,
            b + 1
        );
    }
}

#[test]
fn clients_of_the_gate_act_on_one_device_at_a_time() {
    let memory = InMemory::new();
    let mut site = gated(&memory);
    site.start_all();
    let rust = Path::new(env!("CARGO_BIN_EXE_quorate")).with_file_name("examples").join("gate");
    let mut kinds: Vec<(&str, Vec<Client>)> = Vec::new();
    let mut add = |name: &'static str, start: &dyn Fn(usize) -> Client| {
        kinds.push((name, (0..3).map(start).collect()));
    };
    add("rust", &|n| {
        Client::start(&site, n, "rust", &rust, &[&format!("http://{}", site.devices[n].control)])
    });
    if let Some(python) = found("python3") {
        let (program, reader) = (example("gate.py"), READS_THE_FILE);
        add("python", &|n| {
            let socket = site.file(&format!("edge-{}/gate.sock", n + 1));
            Client::start(&site, n, "python", &python, &[&program, &socket.to_string_lossy()])
        });
        add("file", &|n| {
            Client::start(&site, n, "file", &python, &["-c", reader, &memory.file(n).to_string_lossy()])
        });
    }
    if let Some(node) = found("node") {
        let program = example("gate.mjs");
        add("node", &|n| {
            Client::start(&site, n, "node", &node, &[&program, &format!("http://{}", site.devices[n].http)])
        });
    }

    let (first, epoch) = site.owner(0);
    for (name, clients) in &kinds {
        clients[first].acted(&format!("{name} on the owner"), 0);
    }
    // Its sidecar is killed: what its clients were told ends by itself.
    site.signal(first, Signal::KILL);
    site.left(first);
    let others: Vec<usize> = (0..3).filter(|n| *n != first).collect();
    let (second, epoch) = site.owner_among(&others, epoch);
    for (name, clients) in &kinds {
        clients[second].acted(&format!("{name} on the second owner"), epoch - 1);
    }
    site.start(first);
    site.up(first);
    // Its sidecar is frozen, so nothing is told any more and nothing is closed.
    site.freeze(second);
    let others: Vec<usize> = (0..3).filter(|n| *n != second).collect();
    let (third, epoch) = site.owner_among(&others, epoch);
    for (name, clients) in &kinds {
        clients[third].acted(&format!("{name} on the third owner"), epoch - 1);
    }
    site.signal(second, Signal::CONT);
    site.owner(epoch - 1);
    for (_, clients) in &kinds {
        never_two(clients);
    }
}

/// As `Gate.cs` does it, whose toolchain is not here.
const READS_THE_FILE: &str = r#"
import json, sys, time
while True:
    try:
        with open(sys.argv[1], encoding="utf-8") as file:
            word = json.load(file)
        if word["active"] and time.clock_gettime_ns(time.CLOCK_BOOTTIME) < word["until_boottime_ns"]:
            print(time.clock_gettime_ns(time.CLOCK_BOOTTIME), word["epoch"], flush=True)
    except OSError:
        pass
    time.sleep(0.02)
"#;

#[test]
fn who_cannot_write_its_lease_file_does_not_own() {
    let memory = InMemory::new();
    let mut site = gated(&memory);
    // On a disk, so it is refused from the beginning.
    let on_disk = site.file("lease.json");
    site.tell(0, "QUORATE_WORKLOAD__LEASE_FILE", on_disk.display().to_string());
    site.start_all();
    let why = site.condition(0, "workload.unhealthy");
    assert!(why.contains("is not in memory"), "{why}");
    assert!(!on_disk.exists());
    let (owner, epoch) = site.owner(0);
    assert_ne!(owner, 0);
    // The folder of the owner's file goes: it hands over, and owns again once it could.
    fs::remove_dir_all(memory.file(owner).parent().expect("a folder")).expect("removes");
    let (next, epoch) = site.owner(epoch);
    assert_eq!(next, 3 - owner, "the only one that is well");
    site.condition(owner, "workload.unhealthy");
    memory.file(owner);
    site.reports(owner, "it is well again", |r| r.conditions.iter().all(|c| c.name != "workload.unhealthy"));
    fs::remove_dir_all(memory.file(next).parent().expect("a folder")).expect("removes");
    assert_eq!(site.owner(epoch).0, owner);
}

/// A disk in memory that is as small as can be, and is gone with the test.
struct Small(PathBuf);

impl Small {
    /// `None` where this user may not mount one.
    fn mount(at: PathBuf) -> Option<Small> {
        fs::create_dir_all(&at).expect("makes the folder");
        let mounted = mount(&["-t", "tmpfs", "-o", "size=16k", "quorate-test"], &at);
        mounted.then_some(Small(at))
    }

    fn file(&self) -> PathBuf {
        self.0.join("lease.json")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn mount(options: &[&str], at: &Path) -> bool {
    let mut command = Command::new("mount");
    command.args(options).arg(at).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[test]
fn a_lease_file_that_is_on_a_full_or_read_only_disk_makes_the_device_give_way() {
    let memory = InMemory::new();
    let mut site = gated(&memory);
    let disks: Vec<_> =
        (0..3).map_while(|n| Small::mount(site.file(&format!("edge-{}/memory", n + 1)))).collect();
    if disks.len() < 3 {
        not_tested("lease files on a full disk: this user may not mount one");
        return;
    }
    for (n, disk) in disks.iter().enumerate() {
        site.tell(n, "QUORATE_WORKLOAD__LEASE_FILE", disk.file().display().to_string());
    }
    site.start_all();
    let (full, epoch) = site.owner(0);
    until("its lease file", || disks[full].file().exists().then_some(()));
    let filler = disks[full].0.join("filler");
    // As much as there is room for, and what the lease file gives back when it is replaced.
    until("it to be full", || {
        let _ = fs::write(&filler, vec![0; 1 << 16]);
        let raised =
            site.report(full).is_some_and(|r| r.conditions.iter().any(|c| c.name == "workload.unhealthy"));
        raised.then_some(())
    });
    let why = site.condition(full, "workload.unhealthy");
    assert!(why.contains("No space left"), "{why}");
    let others: Vec<usize> = (0..3).filter(|n| *n != full).collect();
    let (read_only, epoch) = site.owner_among(&others, epoch);
    assert!(mount(&["-o", "remount,ro"], &disks[read_only].0), "remounts");
    let why = site.condition(read_only, "workload.unhealthy");
    assert!(why.contains("Read-only"), "{why}");
    let third = 3 - full - read_only;
    let (owner, epoch) = site.owner_among(&[third], epoch);
    // With room again it may own again.
    fs::remove_file(&filler).expect("removes");
    site.reports(full, "it is well again", |r| r.conditions.iter().all(|c| c.name != "workload.unhealthy"));
    site.signal(owner, Signal::KILL);
    assert_eq!(site.owner_among(&[full, read_only], epoch).0, full);
}

#[test]
fn a_socket_that_is_removed_or_taken_is_made_anew_and_one_client_too_many_is_told() {
    use std::{io::BufRead as _, os::unix::net::UnixStream};
    let workload = Some("kind = \"gate\"".to_owned());
    let mut site = Site::with(Plan { workload, ..Plan::default() });
    // Alone it owns nothing, and says so.
    site.start(0);
    site.up(0);
    let path = site.file("edge-1/gate.sock");
    let first_line = || {
        let stream = UnixStream::connect(&path).ok()?;
        stream.set_read_timeout(Some(super::site::PATIENCE)).ok()?;
        let mut reader = std::io::BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        Some((line, reader))
    };
    let (word, _first) = until("the first word", first_line);
    assert!(word.starts_with("standby "), "{word}");
    fs::remove_file(&path).expect("removes");
    let mut held: Vec<_> = vec![until("the socket to be back", first_line)];
    // Somebody else's file is not thrown away, and the device is not well while it lies there.
    fs::remove_file(&path).expect("removes");
    fs::write(&path, "mine").expect("writes");
    assert!(site.condition(0, "workload.unhealthy").contains("is not a socket"));
    assert_eq!(fs::read_to_string(&path).expect("is there"), "mine");
    fs::remove_file(&path).expect("removes");
    held.push(until("the socket to be back", first_line));
    site.reports(0, "it is well again", |r| r.conditions.iter().all(|c| c.name != "workload.unhealthy"));
    assert!(site.log(0).contains("it is made anew"), "{}", site.log(0));
    let refused = until("the one too many", || {
        let (line, reader) = first_line()?;
        let full = line.contains("64 programs listen already");
        held.push((line, reader));
        full.then_some(held.len())
    });
    // The first client of all still listens.
    assert_eq!(refused + 1, 65);
}
