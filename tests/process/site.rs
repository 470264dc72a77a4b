//! A site of real sidecars for a test: processes, sockets, sled, and a workload that ticks.
//!
//! Each sidecar listens on a loopback address of its own, so that sites of tests that run at the same time share no
//! port. All of them die with the test's thread, however it ends. Who is alive is asked of `/proc`, who really ran is
//! read from the tick records, and what the sidecars say is read from their public faces.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use quorate::{
    clock::{BootClock, Clock, Moment},
    status::report::Report,
    workload::ticks::{self, Tick},
};
use rustix::process::{Pid, Signal};

/// Where waiting for something that must happen is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How often processes, files and faces are looked at: none of them can be awaited.
const LOOK: Duration = Duration::from_millis(10);
/// How often a sidecar whose port is just being used by somebody else's call is started again.
const STARTS_MAX: u32 = 20;

/// Long enough that a busy machine does not make an owner miss its lease by itself.
pub(super) const TIMING: &str = "heartbeat = \"150ms\"\nhold = \"1500ms\"\n";
/// Belongs to [`TIMING`].
const GRACE: &str = "800ms";

pub(super) fn now() -> Moment {
    BootClock.now()
}

/// Looks until there is something; fails the test instead of hanging.
#[track_caller]
pub(super) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let give_up = now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(now() < give_up, "waited in vain for {what}");
        std::thread::sleep(LOOK);
    }
}

/// What is to differ from the usual site.
#[derive(Default)]
pub(super) struct Plan {
    /// More lines for the file, such as a section `hub`.
    pub(super) more: String,
    /// The workload's command, as TOML; by default one that ticks.
    pub(super) command: Option<String>,
    /// The section `workload` instead of a process, as TOML.
    pub(super) workload: Option<String>,
    /// Keeps the logs away from the disk.
    pub(super) no_logs: bool,
}

pub(super) struct Device {
    pub(super) id: String,
    pub(super) peer: SocketAddr,
    pub(super) control: SocketAddr,
    pub(super) http: SocketAddr,
    /// What it is told otherwise than the others.
    more: BTreeMap<&'static str, String>,
    child: Option<Child>,
    starts: u32,
}

pub(super) struct Site {
    pub(super) folder: tempfile::TempDir,
    pub(super) devices: Vec<Device>,
    plan: Plan,
}

/// Ends every process of this site when a test ends, also a failing one.
impl Drop for Site {
    fn drop(&mut self) {
        for device in &mut self.devices {
            if let Some(child) = &mut device.child {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        for pid in processes_with(self.folder.path()) {
            send(pid, Signal::KILL);
        }
        if std::thread::panicking() {
            let mut out = std::io::stderr().lock();
            for device in &self.devices {
                let log = self.log_of(&device.id);
                let tail: Vec<&str> = log.lines().rev().take(40).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                let _ = writeln!(out, "--- the last lines of {}\n{}", device.id, tail.join("\n"));
            }
        }
    }
}

/// Loopback addresses that no other site of this or a neighbouring test run uses.
fn address(n: usize) -> IpAddr {
    static SITES: AtomicU8 = AtomicU8::new(0);
    thread_local!(static SITE: std::cell::Cell<u8> = const { std::cell::Cell::new(0) });
    if n == 0 {
        SITE.set(SITES.fetch_add(1, Ordering::Relaxed));
    }
    let run = u8::try_from(std::process::id() % 250 + 2).expect("small");
    IpAddr::V4(Ipv4Addr::new(127, run, SITE.get(), u8::try_from(n + 1).expect("few devices")))
}

/// Ports that were free a moment ago, all different.
fn free_ports<const N: usize>(ip: IpAddr) -> [SocketAddr; N] {
    let held = [(); N].map(|()| TcpListener::bind((ip, 0)).expect("a port"));
    held.map(|listener| listener.local_addr().expect("an address"))
}

pub(super) fn send(pid: u32, signal: Signal) {
    // Somebody who has ended meanwhile is no failure.
    let _ = rustix::process::kill_process(Pid::from_raw(pid.cast_signed()).expect("a process id"), signal);
}

/// Live processes that name `word` in their command line or environment; zombies have neither.
pub(super) fn processes_with(folder: &Path) -> Vec<u32> {
    let needle = folder.as_os_str().as_encoded_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("a /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let names = |file: &str| {
            fs::read(entry.path().join(file))
                .is_ok_and(|bytes| bytes.windows(needle.len()).any(|w| w == needle))
        };
        if pid != std::process::id() && (names("cmdline") || names("environ")) {
            found.push(pid);
        }
    }
    found
}

/// The binary under test with an environment of its own.
pub(super) fn quorate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.env_clear().stdin(Stdio::null());
    command
}

/// The binary under test, killed by the kernel when the calling thread ends.
pub(super) fn tied(arguments: &[&str]) -> Command {
    let mut command = quorate();
    command
        .arg("fencer-exec")
        .arg(std::process::id().to_string())
        .arg("")
        .arg(env!("CARGO_BIN_EXE_quorate"))
        .args(arguments)
        .stdout(Stdio::null());
    command
}

/// Waits until a child has ended; fails the test instead of hanging.
#[track_caller]
pub(super) fn ended(child: &mut Child) -> ExitStatus {
    until("a process to end", || child.try_wait().expect("is ours"))
}

/// One HTTP request on a fresh connection; status and body.
pub(super) fn http(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split_ascii_whitespace().nth(1)?.parse().ok()?, body.to_owned()))
}

impl Site {
    /// Three devices, nothing started.
    pub(super) fn new() -> Site {
        Site::with(Plan::default())
    }

    pub(super) fn with(plan: Plan) -> Site {
        let folder = tempfile::Builder::new().prefix("quorate-test-").tempdir().expect("a folder");
        let device = |n: usize| {
            let ip = address(n);
            let [peer, control, http] = free_ports(ip);
            Device {
                id: format!("edge-{}", n + 1),
                peer,
                control,
                http,
                more: BTreeMap::new(),
                child: None,
                starts: 0,
            }
        };
        let site = Site { folder, devices: (0..3).map(device).collect(), plan };
        for device in &site.devices {
            fs::create_dir_all(site.home(device).join("data")).expect("makes the folder");
        }
        let text = site.configuration("plant-7", TIMING);
        fs::write(site.file("quorate.toml"), text).expect("writes");
        site
    }

    /// The site's file, under another name or with other timing if so wanted.
    pub(super) fn configuration(&self, site: &str, timing: &str) -> String {
        let members: String = self
            .devices
            .iter()
            .map(|d| format!("  {{ device = \"{}\", address = \"{}\" }},\n", d.id, d.peer))
            .collect();
        let ticking =
            format!("[\"{}\", \"tick-workload\", \"--file\", \"ticks\"]", env!("CARGO_BIN_EXE_quorate"));
        let command = self.plan.command.as_ref().unwrap_or(&ticking);
        let process = format!("kind = \"process\"\ncommand = {command}");
        let workload = self.plan.workload.as_ref().unwrap_or(&process);
        format!(
            "[site]\nid = \"{site}\"\nmembers = [\n{members}]\n[site.timing]\n{timing}\n\
             [workload]\nstop_grace = \"{GRACE}\"\n{workload}\n{}",
            self.plan.more,
        )
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn home(&self, device: &Device) -> PathBuf {
        self.file(&device.id)
    }

    pub(super) fn data(&self, n: usize) -> PathBuf {
        self.home(&self.devices[n]).join("data")
    }

    /// What device `n` is told by its environment.
    pub(super) fn environment(&self, n: usize) -> BTreeMap<&'static str, String> {
        let device = &self.devices[n];
        let home = self.home(device);
        let usual = BTreeMap::from([
            ("IOTEDGE_DEVICEID", device.id.clone()),
            ("QUORATE_CONFIG", self.file("quorate.toml").display().to_string()),
            ("QUORATE_PEER__LISTEN", device.peer.to_string()),
            ("QUORATE_CONTROL__LISTEN", device.control.to_string()),
            ("QUORATE_CONTROL__SOCKET", home.join("control.sock").display().to_string()),
            ("QUORATE_HTTP__LISTEN", device.http.to_string()),
            ("QUORATE_STORAGE__PATH", home.join("data").display().to_string()),
            ("QUORATE_WORKLOAD__WORKING_DIR", home.display().to_string()),
        ]);
        usual.into_iter().chain(device.more.clone()).collect()
    }

    /// From now on device `n` is told something else by its environment.
    pub(super) fn tell(&mut self, n: usize, key: &'static str, value: impl Into<String>) {
        self.devices[n].more.insert(key, value.into());
    }

    fn spawn(&mut self, n: usize) {
        let log = self.file(&format!("{}.log", self.devices[n].id));
        let stderr = if self.plan.no_logs {
            Stdio::null()
        } else {
            fs::File::options().create(true).append(true).open(log).expect("opens").into()
        };
        let child = tied(&["run"]).envs(self.environment(n)).stderr(stderr).spawn().expect("starts");
        self.devices[n].child = Some(child);
        self.devices[n].starts += 1;
    }

    /// Starts a sidecar on the data folder that it had before, and waits for nothing.
    pub(super) fn start(&mut self, n: usize) {
        self.devices[n].starts = 0;
        self.spawn(n);
    }

    /// Waits until the sidecar answers. One that found its port taken is started again: between a life and the next,
    /// somebody else's call may have been given the same port for a moment.
    #[track_caller]
    pub(super) fn up(&mut self, n: usize) {
        until("a sidecar to answer", || {
            if http(self.devices[n].http, "/health/live").is_some_and(|(status, _)| status == 200) {
                return Some(());
            }
            if let Some(ended) = self.devices[n].child.as_mut().and_then(|c| c.try_wait().expect("is ours")) {
                let log = self.log(n);
                let taken = ended.code() == Some(2) && log.contains("cannot listen on");
                assert!(taken && self.devices[n].starts < STARTS_MAX, "{ended}: {log}");
                self.spawn(n);
            }
            None
        });
    }

    #[track_caller]
    pub(super) fn start_all(&mut self) {
        for n in 0..self.devices.len() {
            self.start(n);
        }
        for n in 0..self.devices.len() {
            self.up(n);
        }
    }

    /// A whole site with an owner whose workload ticks; its number and epoch.
    #[track_caller]
    pub(super) fn running(plan: Plan) -> (Site, usize, u64) {
        let mut site = Site::with(plan);
        site.start_all();
        let (owner, epoch) = site.owner(0);
        (site, owner, epoch)
    }

    pub(super) fn pid(&self, n: usize) -> u32 {
        self.devices[n].child.as_ref().expect("runs").id()
    }

    pub(super) fn signal(&self, n: usize, signal: Signal) {
        send(self.pid(n), signal);
    }

    /// Freezes a sidecar; on return it does nothing any more.
    #[track_caller]
    pub(super) fn freeze(&self, n: usize) {
        self.signal(n, Signal::STOP);
        let stat = format!("/proc/{}/stat", self.pid(n));
        until("the sidecar to be frozen", || {
            let text = fs::read_to_string(&stat).expect("not reaped yet");
            text.rsplit(')').next().filter(|rest| rest.trim_start().starts_with('T')).map(|_| ())
        });
    }

    /// Waits for the end of a sidecar that was told to end.
    #[track_caller]
    pub(super) fn left(&mut self, n: usize) -> ExitStatus {
        let mut child = self.devices[n].child.take().expect("runs");
        ended(&mut child)
    }

    /// Whether the sidecar that was started last still runs.
    pub(super) fn runs(&mut self, n: usize) -> bool {
        self.devices[n].child.as_mut().is_some_and(|c| c.try_wait().expect("is ours").is_none())
    }

    pub(super) fn log(&self, n: usize) -> String {
        self.log_of(&self.devices[n].id)
    }

    fn log_of(&self, id: &str) -> String {
        fs::read_to_string(self.file(&format!("{id}.log"))).unwrap_or_default()
    }

    /// All that a sidecar reports, also what other devices complain of.
    pub(super) fn whole_report(&self, n: usize) -> Option<Report> {
        let (status, body) = http(self.devices[n].http, "/v1/status")?;
        (status == 200).then(|| serde_json::from_str(&body).expect("a report"))
    }

    /// What a sidecar reports, with the conditions that it raises itself.
    pub(super) fn report(&self, n: usize) -> Option<Report> {
        let mut report = self.whole_report(n)?;
        report.conditions.retain(|c| c.device == self.devices[n].id);
        Some(report)
    }

    /// Waits until what a sidecar reports is as wanted.
    #[track_caller]
    pub(super) fn reports(&self, n: usize, what: &str, wanted: impl Fn(&Report) -> bool) -> Report {
        until(what, || self.report(n).filter(|r| wanted(r)))
    }

    /// Waits until a condition is shown; its detail.
    #[track_caller]
    pub(super) fn condition(&self, n: usize, name: &str) -> String {
        let report = self.reports(n, name, |r| r.conditions.iter().any(|c| c.name == name));
        report.conditions.into_iter().find(|c| c.name == name).expect("just seen").detail
    }

    /// Waits until all sidecars in `who` report an owner with an epoch above `above`, the same one, and it ticks.
    #[track_caller]
    pub(super) fn owner_among(&self, who: &[usize], above: u64) -> (usize, u64) {
        until("an owner that all agree on", || {
            let known: Option<Vec<(String, u64)>> = who
                .iter()
                .map(|n| {
                    let owner = self.report(*n)?.owner;
                    (owner.known && owner.epoch > above).then_some((owner.device?, owner.epoch))
                })
                .collect();
            let known = known?;
            let (device, epoch) = known.first()?.clone();
            if known.iter().any(|k| *k != (device.clone(), epoch)) {
                return None;
            }
            let owner = self.devices.iter().position(|d| d.id == device)?;
            let plain = self.plan.command.is_none() && self.plan.workload.is_none();
            let ticks = !plain || self.ticked(owner, epoch);
            ticks.then_some((owner, epoch))
        })
    }

    #[track_caller]
    pub(super) fn owner(&self, above: u64) -> (usize, u64) {
        let all: Vec<usize> = (0..self.devices.len()).collect();
        self.owner_among(&all, above)
    }

    fn ticked(&self, n: usize, epoch: u64) -> bool {
        self.ticks_of(n).iter().any(|t| t.epoch.get() == epoch)
    }

    pub(super) fn ticks_of(&self, n: usize) -> Vec<Tick> {
        Tick::read(&self.home(&self.devices[n]).join("ticks")).expect("only ticks")
    }

    /// All runs of the workload so far. No two of them ever lived at the same time.
    #[track_caller]
    pub(super) fn runs_without_overlap(&self) -> Vec<ticks::Run> {
        let all: Vec<Tick> = (0..self.devices.len()).flat_map(|n| self.ticks_of(n)).collect();
        let runs = ticks::runs(&all);
        let overlaps = ticks::overlaps(&runs);
        assert!(overlaps.is_empty(), "two workloads at once: {overlaps:?}");
        runs
    }

    /// The command line, asking device `n`.
    /// The same, and waits for nothing.
    pub(super) fn asking(&self, n: usize, arguments: &[&str]) -> Child {
        let endpoint = format!("http://{}", self.devices[n].control);
        let mut command = quorate();
        command.args(arguments).args(["--endpoint", &endpoint]).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("starts")
    }

    pub(super) fn ask(&self, n: usize, arguments: &[&str]) -> Output {
        let endpoint = format!("http://{}", self.devices[n].control);
        quorate().args(arguments).args(["--endpoint", &endpoint]).output().expect("starts")
    }
}
