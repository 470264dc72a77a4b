//! One device for a test: a data folder, a workload that ticks, and sidecars that can be frozen and killed.
//!
//! A sidecar that must suffer is a process of its own: this test binary again, told to run [`stand_in_sidecar`]. Who
//! is alive is asked of `/proc` here, not of the code under test.

use std::{
    ffi::OsString,
    io::Write,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::Arc,
    time::Duration,
};

use quorate::{
    clock::{BootClock, Clock, Moment},
    epoch::Epoch,
    seal::Seal,
    timing::{self, Timing},
    workload::{Context, Grant, Kind, Observed, ProcessWorkload, Settings, Workload, ticks::Tick},
};
use rustix::process::{Pid, Signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Long enough that a busy machine does not eat the quarter that the kernel has after KILL.
pub(super) const GRACE: Duration = Duration::from_millis(1600);
/// What receipts name as their site.
pub(super) const SITE_DIGEST: u64 = 1;
/// Where waiting for something that must happen is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often `/proc` and the tick file are looked at: neither can be awaited.
const LOOK: Duration = Duration::from_millis(5);

pub(super) struct Stage {
    folder: PathBuf,
    _owned: Option<tempfile::TempDir>,
    flags: Vec<String>,
    /// Whom the fencer of this device's sidecars shall tell of a stop.
    pub(super) members: Vec<String>,
    /// Whether the workload may have a cgroup of its own.
    pub(super) cgroup: bool,
    pub(super) tracker: TaskTracker,
    pub(super) leave: CancellationToken,
}

/// Ends everything of this stage when a test ends, also a failing one.
impl Drop for Stage {
    fn drop(&mut self) {
        self.leave.cancel();
        if self._owned.is_some() {
            for pid in self.survivors().into_iter().chain(self.fencers()) {
                send(pid, Signal::KILL);
            }
            // A fencer that was killed leaves it. Who was killed in it may take a moment to end.
            let hierarchies = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
            for cgroup in hierarchies.map(|at| at.join(self.cgroup_name())).iter().filter(|dir| dir.exists())
            {
                let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
                for _ in 0..100 {
                    if std::fs::remove_dir(cgroup).is_ok() {
                        break;
                    }
                    let _ = rustix::event::poll(&mut [], Some(&pause));
                }
            }
        }
    }
}

pub(super) fn now() -> Moment {
    BootClock.now()
}

pub(super) fn epoch(n: u64) -> Epoch {
    Epoch::new(n).expect("small")
}

pub(super) fn grant(n: u64, until: Moment) -> Grant {
    Grant { epoch: epoch(n), until }
}

pub(super) fn send(pid: i32, signal: Signal) {
    // Somebody who has ended meanwhile is no failure.
    let _ = rustix::process::kill_process(Pid::from_raw(pid).expect("a process id"), signal);
}

impl Stage {
    pub(super) fn new(flags: &[&str]) -> Stage {
        let owned = tempfile::tempdir().expect("a folder");
        let mut stage = Stage::at(owned.path(), flags);
        stage._owned = Some(owned);
        stage
    }

    /// The same device, seen by another sidecar. Ends nothing when dropped.
    pub(super) fn at(folder: &Path, flags: &[&str]) -> Stage {
        Stage {
            folder: folder.to_owned(),
            _owned: None,
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            members: Vec::new(),
            cgroup: true,
            tracker: TaskTracker::new(),
            leave: CancellationToken::new(),
        }
    }

    pub(super) fn again(&self) -> Stage {
        Stage::at(&self.folder, &self.flags.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn file(&self) -> PathBuf {
        self.folder.join("ticks")
    }

    fn untils(&self) -> PathBuf {
        self.folder.join("untils")
    }

    fn sealed(&self) -> PathBuf {
        self.folder.join("seal")
    }

    fn hunger(&self) -> PathBuf {
        self.folder.join("hunger")
    }

    /// From now on the stand-in takes memory, half a GiB at most.
    pub(super) fn starve(&self) {
        std::fs::write(self.hunger(), "").expect("writes");
    }

    /// The seal of the stand-in's only claim.
    pub(super) fn seal(&self) -> Seal {
        Seal::parse(&std::fs::read_to_string(self.sealed()).expect("noted")).expect("a seal")
    }

    pub(super) fn settings(&self) -> Settings {
        let mut command: Vec<String> =
            vec![env!("CARGO_BIN_EXE_quorate").into(), "tick-workload".into(), "--file".into()];
        command.push(self.file().to_str().expect("a plain path").into());
        command.extend(self.flags.iter().cloned());
        Settings { kind: Kind::Process, command, stop_timeout: GRACE * 3 / 4, ..Settings::default() }
    }

    pub(super) fn context(&self) -> Context {
        let timing = timing::Settings { stop_grace: GRACE, ..timing::Settings::default() };
        Context {
            program: Some(env!("CARGO_BIN_EXE_quorate").into()),
            data: self.folder.clone(),
            device: "edge-1".parse().expect("a name"),
            site: "plant-7".parse().expect("a name"),
            site_digest: SITE_DIGEST,
            members: self.members.clone(),
            control_socket: Some("/run/quorate/control.sock".into()),
            notify: self.folder.join("notify.sock"),
            cgroup: self.cgroup,
            // The test itself has many children. The stand-in has none but fencers.
            adopts: false,
            timing: Timing::new(&timing).expect("consistent"),
            clock: Arc::new(BootClock),
            tracker: self.tracker.clone(),
            leave: self.leave.clone(),
        }
    }

    pub(super) fn workload(&self) -> ProcessWorkload {
        ProcessWorkload::new(&self.settings(), self.context())
    }

    pub(super) fn ticks(&self) -> Vec<Tick> {
        Tick::read(&self.file()).expect("only ticks")
    }

    pub(super) fn last_tick(&self) -> Moment {
        self.ticks().iter().map(|tick| tick.at).max().expect("it ticked")
    }

    /// The command lines of all live processes, except zombies, which have none.
    fn processes() -> Vec<(i32, Vec<u8>)> {
        let entries = std::fs::read_dir("/proc").expect("a /proc");
        entries
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
            .filter_map(|(pid, path)| Some((pid, std::fs::read(path.join("cmdline")).ok()?)))
            .filter(|(_, line)| !line.is_empty())
            .collect()
    }

    fn with_words(&self, verb: &str, word: &Path) -> Vec<i32> {
        let word = word.as_os_str().as_encoded_bytes();
        let has = |line: &[u8], word: &[u8]| line.split(|b| *b == 0).any(|w| w == word);
        let mut found = Self::processes();
        found.retain(|(_, line)| line.split(|b| *b == 0).nth(1) == Some(verb.as_bytes()) && has(line, word));
        found.into_iter().map(|(pid, _)| pid).collect()
    }

    /// Processes of the workload that are alive, the step before it included.
    pub(super) fn survivors(&self) -> Vec<i32> {
        let mut alive = self.with_words("tick-workload", &self.file());
        alive.extend(self.with_words("fencer-shim", &self.file()));
        alive
    }

    /// Shells of the workload that were started with `$FILE` as their last word.
    pub(super) fn shells(&self) -> Vec<i32> {
        self.with_words("-c", &self.file())
    }

    /// A command that runs in a shell, in which `$0 $TICK` ticks as the usual workload does.
    pub(super) fn shell(&self, script: &str) -> Vec<String> {
        let ticks = self.settings().command;
        let file = self.file().display().to_string();
        let script = script.replace("$TICK", &ticks[1..].join(" ")).replace("$FILE", &file);
        vec!["/bin/sh".into(), "-c".into(), script, ticks[0].clone()]
    }

    /// The lock that a fencer of this device holds.
    pub(super) fn lock(&self) -> PathBuf {
        let folder = std::fs::canonicalize(&self.folder).unwrap_or_default();
        folder.join(quorate::workload::process::LOCK_FILE)
    }

    /// The cgroup of this device's workload, in the hierarchy of this machine. It may not exist.
    pub(super) fn cgroup_name(&self) -> String {
        use std::os::unix::fs::MetadataExt as _;
        let folder = std::fs::metadata(&self.folder).expect("a folder");
        format!("quorate-{:x}-{:x}", folder.dev(), folder.ino())
    }

    /// Fencers that serve this folder or wait to.
    pub(super) fn fencers(&self) -> Vec<i32> {
        self.with_words("fencer", &self.lock())
    }

    /// Waits until `n` processes of the workload have each ticked three times.
    pub(super) async fn ticking(&self, n: usize) {
        eventually("the workload ticks", || {
            let mut counts = std::collections::BTreeMap::<u32, usize>::new();
            self.ticks().iter().for_each(|tick| *counts.entry(tick.pid).or_default() += 1);
            counts.values().filter(|count| **count >= 3).count() >= n
        })
        .await;
    }

    pub(super) async fn gone(&self) {
        eventually("the workload is gone", || self.survivors().is_empty()).await;
    }

    /// A sidecar in a process of its own, which keeps extending by `hold` until something happens to it.
    pub(super) fn sidecar(&self, hold: Duration) -> Sidecar {
        self.sidecar_with(hold, "")
    }

    /// The same with a workload that is started by a shell, if `script` is not empty (see [`Stage::shell`]).
    #[expect(clippy::disallowed_methods, reason = "a sidecar that can be frozen and killed")]
    pub(super) fn sidecar_with(&self, hold: Duration, script: &str) -> Sidecar {
        let child = std::process::Command::new(std::env::current_exe().expect("this test binary"))
            .args(["--exact", "process::stage::stand_in_sidecar", "--ignored", "--nocapture"])
            .env("STAGE_FOLDER", &self.folder)
            .env("STAGE_FLAGS", self.flags.join(" "))
            .env("STAGE_MEMBERS", self.members.join(" "))
            .env("STAGE_SCRIPT", script)
            .env("STAGE_HOLD_MS", hold.as_millis().to_string())
            .envs(self.cgroup.then_some(("STAGE_CGROUP", "1")))
            .env("QUORATE_HUB__CONNECTION_STRING", "a secret of the sidecar")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        Sidecar(child)
    }

    /// A fencer that is spoken with by hand.
    #[expect(clippy::disallowed_methods, reason = "the other end of the fencer's socket is the test itself")]
    pub(super) fn bare_fencer(&self) -> (UnixStream, Child) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_read_timeout(Some(PATIENCE)).expect("is allowed");
        let folder = std::fs::canonicalize(&self.folder).expect("a folder");
        let child = std::process::Command::new(env!("CARGO_BIN_EXE_quorate"))
            .arg("fencer")
            .arg(folder.join(quorate::workload::process::LOCK_FILE))
            .args([
                "by-hand",
                &(GRACE * 3 / 4).as_nanos().to_string(),
                &GRACE.as_nanos().to_string(),
                &GRACE.as_nanos().to_string(),
                &std::process::id().to_string(),
                "0",
                "0",
                "1",
                "",
                "",
                "",
                "0 0 0 0",
                "0",
            ])
            .args(self.settings().command)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        (ours, child)
    }

    /// The latest deadline that the stand-in may have handed over: it notes each before it does.
    pub(super) fn last_until(&self) -> Moment {
        let text = std::fs::read_to_string(self.untils()).expect("noted");
        let last = text.lines().filter_map(|line| line.parse().ok()).max().expect("noted");
        Moment::from_nanos(last)
    }
}

pub(super) struct Sidecar(Child);

impl Sidecar {
    pub(super) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("a process id")
    }

    /// Freezes it; on return it does nothing any more.
    pub(super) async fn freeze(&self) {
        send(self.pid(), Signal::STOP);
        let stat = format!("/proc/{}/stat", self.0.id());
        eventually("the sidecar is frozen", || {
            let text = std::fs::read_to_string(&stat).expect("not reaped yet");
            text.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        })
        .await;
    }

    /// Waits for its end, and says how it came.
    pub(super) async fn ended(&mut self) -> std::process::ExitStatus {
        let mut status = None;
        eventually("the sidecar has ended", || {
            status = self.0.try_wait().expect("its own child");
            status.is_some()
        })
        .await;
        status.expect("just seen")
    }

    pub(super) fn kill(&mut self) {
        self.0.kill().expect("not reaped yet");
        self.0.wait().expect("ends");
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let give_up = now() + PATIENCE;
    while !is() {
        assert!(now() < give_up, "waited in vain until {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits for an observation; fails instead of hanging.
pub(super) async fn observed(
    workload: &impl Workload,
    what: &str,
    is: impl FnMut(&Observed) -> bool,
) -> Observed {
    let mut observed = workload.observe();
    let waited = tokio::time::timeout(PATIENCE, observed.wait_for(is)).await;
    waited.unwrap_or_else(|_| panic!("waited in vain: {what}")).expect("the driver lives").clone()
}

/// Not a test: the sidecar that tests freeze and kill.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the stand-in sidecar that other tests start as a process of its own"]
async fn stand_in_sidecar() {
    let text = |name: &str| std::env::var_os(name).map(|value: OsString| value.into_string().expect("plain"));
    // Run by hand with all other ignored tests, it has nothing to do.
    let Some(folder) = text("STAGE_FOLDER") else { return };
    let flags = text("STAGE_FLAGS").expect("set");
    let mut stage = Stage::at(Path::new(&folder), &flags.split_whitespace().collect::<Vec<_>>());
    stage.members = text("STAGE_MEMBERS").expect("set").split_whitespace().map(Into::into).collect();
    let hold = Duration::from_millis(text("STAGE_HOLD_MS").and_then(|ms| ms.parse().ok()).expect("set"));
    let mut untils = std::fs::File::options().append(true).create(true).open(stage.untils()).expect("opens");
    let mut promise = || {
        let until = now() + hold;
        writeln!(untils, "{}", until.as_nanos()).expect("writes");
        until
    };
    let mut settings = stage.settings();
    if let Some(script) = text("STAGE_SCRIPT").filter(|script| !script.is_empty()) {
        settings.command = stage.shell(&script);
    }
    stage.cgroup = text("STAGE_CGROUP").is_some();
    let context = Context { adopts: quorate::workload::adopt(), ..stage.context() };
    let workload = ProcessWorkload::new(&settings, context);
    workload.ensure_none_running(now() + PATIENCE).await.expect("a fencer");
    std::fs::write(stage.sealed(), workload.seal().expect("random").to_hex()).expect("writes");
    workload.start(grant(7, promise())).await.expect("starts");
    let mut hoard = Vec::<Vec<u8>>::new();
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        workload.extend(promise());
        if stage.hunger().exists() && hoard.len() < 512 {
            hoard.extend((0..16).map(|_| vec![1; 1 << 20]));
        }
    }
}
