//! One device of the lab: its sidecar's processes, its supervisor, its disk, and what can be done to them.
//!
//! With namespaces, a process that only sleeps holds the device's network and its small disk; everything else enters
//! there. Whoever kills the test kills the holder and the sidecar, by a tie to the thread that started them, and the
//! network and the disk go with them.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use quorate::{
    clock::{BootClock, Clock, Moment},
    dice::Dice,
    workload::ticks::{RECORD, Tick},
};
use rustix::process::Signal;

use super::processes::{descendants, signal, tied};

/// What a service manager waits before it starts a program again.
const RESTART: Duration = Duration::from_millis(100);
/// The room on a device's disk.
const ROOM: &str = "size=32m";
/// How long a process may take to do what cannot fail.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn now() -> Moment {
    BootClock.now()
}

/// For how long since boot some process was ready to run and had to wait; nothing where the kernel does not count it.
pub(super) fn starvation() -> Duration {
    let text = fs::read_to_string("/proc/pressure/cpu").unwrap_or_default();
    let micros = text.lines().next().and_then(|some| some.rsplit_once("total=")?.1.parse().ok());
    Duration::from_micros(micros.unwrap_or_default())
}

/// Waits until something is so; false if it never was.
pub(super) fn until(patience: Duration, mut is: impl FnMut() -> bool) -> bool {
    let give_up = now() + patience;
    while !is() {
        if now() > give_up {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// The binary under test: the one built for it, or the one named by `QUORATE_LAB_PROGRAM`.
pub(super) fn program() -> PathBuf {
    std::env::var_os("QUORATE_LAB_PROGRAM")
        .map_or_else(|| env!("CARGO_BIN_EXE_quorate").into(), PathBuf::from)
}

/// A command that dies with this thread.
fn tied_command(words: &[&Path]) -> Command {
    let mut command = Command::new(program());
    command.args(tied(&program())[..3].iter()).args(words);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Whether nobody but the reaper still knows the process.
fn gone(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| matches!(rest.trim_start().chars().next(), Some('Z' | 'X')))
}

/// A process that keeps namespaces alive.
pub(super) struct Holder(Child);

impl Holder {
    /// A new network and a new set of mounts.
    pub(super) fn new() -> io::Result<Holder> {
        let words = ["unshare", "--net", "--mount", "--propagation", "private", "sleep", "infinity"];
        Holder::asleep(&words, "mnt")
    }

    /// Runs a command that ends in a sleep; on return it sleeps in another namespace of this kind.
    fn asleep(words: &[&str], kind: &str) -> io::Result<Holder> {
        let words: Vec<&Path> = words.iter().map(Path::new).collect();
        let child = tied_command(&words).spawn()?;
        let link = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
        let comm = format!("/proc/{}/comm", child.id());
        let mut holder = Holder(child);
        let ours = link(std::process::id());
        let ready = until(PATIENCE, || {
            let asleep = fs::read_to_string(&comm).is_ok_and(|name| name.trim() == "sleep");
            let ended = holder.0.try_wait().is_ok_and(|ended| ended.is_some());
            ended || (asleep && link(holder.pid()) != ours)
        });
        match holder.0.try_wait()? {
            None if ready => Ok(holder),
            ended => Err(io::Error::other(format!("no namespaces: unshare ended with {ended:?}"))),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// The options that let nsenter run a command inside.
    fn inside(&self) -> [String; 2] {
        let file = |option: &str, kind: &str| format!("--{option}=/proc/{}/ns/{kind}", self.pid());
        [file("net", "net"), file("mount", "mnt")]
    }

    /// Mounts a small disk on a folder.
    pub(super) fn mount(&self, folder: &Path) -> io::Result<()> {
        let mount = ["mount", "-t", "tmpfs", "-o", ROOM, "lab"];
        let status = Command::new("nsenter").args(self.inside()).args(mount).arg(folder).status()?;
        status.success().then_some(()).ok_or_else(|| io::Error::other(format!("mount ended with {status}")))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A boot of a device: processes that enter read another boot clock than ours.
pub(super) struct Boot {
    _holder: Holder,
    link: PathBuf,
    /// The device's boot clock minus ours, in seconds.
    ahead: i64,
}

impl Boot {
    /// A time namespace whose boot clock stands somewhere else: some hours on, or back to where a boot has just ended.
    pub(super) fn new(dice: &mut Dice) -> io::Result<Boot> {
        let up = i64::try_from(now().as_nanos() / 1_000_000_000).expect("small");
        let far = i64::try_from(dice.throw() % 100_000).expect("small");
        let ahead = if dice.throw().is_multiple_of(2) { far } else { far % up.max(2) - up + 1 };
        let ahead_text = ahead.to_string();
        let words = ["unshare", "--time", "--boottime", &ahead_text, "sleep", "infinity"];
        let holder = Holder::asleep(&words, "time_for_children")?;
        let link = format!("/proc/{}/ns/time_for_children", holder.pid()).into();
        Ok(Boot { _holder: holder, link, ahead })
    }
}

pub(super) struct Device {
    pub(super) id: String,
    pub(super) home: PathBuf,
    pub(super) peer: SocketAddr,
    pub(super) holder: Option<Holder>,
    boot: Option<Boot>,
    /// From which record of the ticks on the device's boot clock was how many seconds ahead of ours.
    clocks: Vec<(usize, i64)>,
    child: Option<Child>,
    /// Not to be started again before all is made good.
    pub(super) kept_down: bool,
    ended_at: Option<Moment>,
    /// Stopped processes, and since when the whole device is, if it is.
    stopped: Vec<u32>,
    pub(super) frozen_since: Option<Moment>,
    starved: bool,
    stall: Option<Child>,
    full: bool,
    /// Ends that nobody ordered, beyond those that a supervisor takes for normal.
    pub(super) odd_ends: Vec<String>,
}

impl Device {
    pub(super) fn new(folder: &Path, n: usize, peer: SocketAddr, holder: Option<Holder>) -> Device {
        let id = format!("edge-{}", n + 1);
        Device {
            home: folder.join(&id),
            id,
            peer,
            holder,
            boot: None,
            clocks: vec![(0, 0)],
            child: None,
            kept_down: false,
            ended_at: None,
            stopped: Vec::new(),
            frozen_since: None,
            starved: false,
            stall: None,
            full: false,
            odd_ends: Vec::new(),
        }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.home.join("control.sock")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.home.join("log")
    }

    pub(super) fn ticks(&self) -> PathBuf {
        self.home.join("ticks")
    }

    fn ticks_written(&self) -> u64 {
        fs::metadata(self.ticks()).map_or(0, |file| file.len() / RECORD as u64)
    }

    /// A tick by our own boot clock.
    fn by_our_clock(&self, number: usize, mut tick: Tick) -> Tick {
        let ahead = self.clocks.iter().rfind(|(from, _)| *from <= number).map_or(0, |(_, ahead)| *ahead);
        let at = i64::try_from(tick.at.as_nanos()).expect("some centuries") - ahead * 1_000_000_000;
        tick.at = Moment::from_nanos(u64::try_from(at).expect("after our boot"));
        tick
    }

    /// The last tick that was written.
    pub(super) fn last_tick(&self) -> Option<Tick> {
        let last = self.ticks_written().checked_sub(1)?;
        let mut record = [0; RECORD];
        File::open(self.ticks()).ok()?.read_exact_at(&mut record, last * RECORD as u64).ok()?;
        let tick = Tick::parse(std::str::from_utf8(&record).ok()?.strip_suffix('\n')?)?;
        Some(self.by_our_clock(usize::try_from(last).ok()?, tick))
    }

    pub(super) fn all_ticks(&self) -> Vec<Tick> {
        let ticks = Tick::read(&self.ticks()).expect("only ticks");
        ticks.into_iter().enumerate().map(|(n, tick)| self.by_our_clock(n, tick)).collect()
    }

    /// Everything of this device is gone at once. Its next processes read the clock of a new boot, if there is one.
    pub(super) fn power_cut(&mut self, next: Option<Boot>) {
        self.kept_down = true;
        self.kill(|_| true);
        // What an earlier life left behind is not below the sidecar.
        until(PATIENCE, || {
            let rest = self.remains();
            rest.iter().for_each(|pid| signal(*pid, Signal::KILL));
            rest.is_empty()
        });
        if let Some(boot) = next {
            let written = usize::try_from(self.ticks_written()).expect("small");
            self.clocks.push((written, boot.ahead));
            self.boot = Some(boot);
        }
    }

    /// Live processes that have this device's folder in their environment.
    fn remains(&self) -> Vec<u32> {
        let needle = self.home.as_os_str().as_encoded_bytes();
        let is = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.windows(needle.len()).any(|words| words == needle)
        };
        let all = fs::read_dir("/proc").expect("a /proc").flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is).collect()
    }

    fn start(&mut self) {
        let mut words: Vec<PathBuf> = Vec::new();
        if self.holder.is_some() || self.boot.is_some() {
            words.push("nsenter".into());
            words.extend(self.holder.iter().flat_map(Holder::inside).map(PathBuf::from));
            words.extend(self.boot.iter().map(|boot| format!("--time={}", boot.link.display()).into()));
        }
        words.extend([program(), "run".into()]);
        let words: Vec<&Path> = words.iter().map(PathBuf::as_path).collect();
        let log = File::options().create(true).append(true).open(self.log()).expect("opens");
        let child = tied_command(&words)
            .env("QUORATE_CONFIG", self.home.join("quorate.toml"))
            .env("QUORATE_DEVICE__ID", &self.id)
            .env("QUORATE_PEER__LISTEN", self.peer.to_string())
            .env("QUORATE_CONTROL__LISTEN", "off")
            .env("QUORATE_CONTROL__SOCKET", self.socket())
            .env("QUORATE_HTTP__LISTEN", SocketAddr::new(self.peer.ip(), 0).to_string())
            .env("QUORATE_STORAGE__PATH", self.home.join("data"))
            .env("QUORATE_WORKLOAD__WORKING_DIR", &self.home)
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("starts"));
        self.ended_at = None;
    }

    /// The supervisor's turn: notes an end, and starts again what should run.
    pub(super) fn tend(&mut self) {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait().expect("is ours")
        {
            self.child = None;
            self.ended(status);
        }
        let may = self.ended_at.is_none_or(|at| now().since(at) > RESTART);
        if self.child.is_none() && !self.kept_down && self.frozen_since.is_none() && may {
            self.start();
        }
    }

    fn ended(&mut self, status: ExitStatus) {
        self.ended_at = Some(now());
        // 0: told to leave. 2: cannot run now, which a restart may mend. Signals come from the lab alone; TERM ends a
        // sidecar that is not yet far enough to leave in good order.
        let ordered = matches!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9 | 15));
        if !ordered && !matches!(status.code(), Some(0 | 2)) {
            self.odd_ends.push(format!("{} ended with {status} at {}", self.id, now()));
        }
    }

    /// The sidecar first, then its fencer, then the workload.
    fn processes(&self) -> Vec<u32> {
        let Some(sidecar) = self.child.as_ref().map(Child::id) else { return Vec::new() };
        let mut all = descendants(sidecar);
        all.insert(0, sidecar);
        all
    }

    /// Runs, and nothing was done to it that would excuse it. A full disk is no excuse.
    pub(super) fn well(&self) -> bool {
        self.child.is_some()
            && !self.kept_down
            && self.stopped.is_empty()
            && !self.starved
            && self.stall.is_none()
    }

    pub(super) fn kill(&mut self, which: impl Fn(usize) -> bool) {
        let all = self.processes();
        let hit: Vec<u32> = all.iter().enumerate().filter(|(n, _)| which(*n)).map(|(_, pid)| *pid).collect();
        hit.iter().for_each(|pid| signal(*pid, Signal::KILL));
        until(PATIENCE, || hit.iter().all(|pid| gone(*pid)));
        self.tend();
    }

    pub(super) fn terminate(&self) {
        self.processes().iter().take(1).for_each(|pid| signal(*pid, Signal::TERM));
    }

    /// Stops the sidecar, or everything. What it started meanwhile is stopped too.
    pub(super) fn freeze(&mut self, everything: bool) {
        loop {
            let all = self.processes();
            let some = if everything { all.len() } else { 1 };
            let fresh: Vec<u32> =
                all.into_iter().take(some).filter(|pid| !self.stopped.contains(pid)).collect();
            if fresh.is_empty() {
                break;
            }
            fresh.iter().for_each(|pid| signal(*pid, Signal::STOP));
            self.stopped.extend(fresh);
        }
        if everything {
            self.frozen_since.get_or_insert(now());
        }
    }

    /// Lets everything go on that was stopped. From when to when the whole device stood still, if it did.
    pub(super) fn thaw(&mut self) -> Option<(Moment, Moment)> {
        let frozen = self.frozen_since.take().map(|since| (since, now()));
        // Who was stopped last goes on first, so that a workload gets its chance to do harm.
        self.stopped.drain(..).rev().for_each(|pid| signal(pid, Signal::CONT));
        frozen
    }

    pub(super) fn starve(&mut self) {
        self.starved = true;
    }

    /// A turn of starving: stands still, or goes on.
    pub(super) fn breathe(&self, stand_still: bool) {
        if self.starved && self.stopped.is_empty() {
            let how = if stand_still { Signal::STOP } else { Signal::CONT };
            self.processes().iter().take(1).for_each(|pid| signal(*pid, how));
        }
    }

    /// From now on every sync takes this much longer.
    pub(super) fn stall(&mut self, by: Duration) {
        let (Some(sidecar), None) = (self.child.as_ref().map(Child::id), &self.stall) else { return };
        let inject = format!("inject=fsync,fdatasync:delay_enter={}", by.as_micros());
        let pid = sidecar.to_string();
        let words = [
            "strace",
            "-f",
            "-q",
            "-o",
            "/dev/null",
            "-e",
            "trace=fsync,fdatasync",
            "-e",
            &inject,
            "-p",
            &pid,
        ];
        self.stall = Some(tied_command(&words.map(Path::new)).spawn().expect("starts"));
        let status = format!("/proc/{pid}/status");
        until(PATIENCE, || {
            // It is traced, or it has ended meanwhile.
            fs::read_to_string(&status).map_or(true, |text| !text.contains("TracerPid:\t0\n"))
        });
    }

    fn filler(&self) -> Option<PathBuf> {
        let holder = self.holder.as_ref()?;
        let data = self.home.join("data/filler");
        Some(Path::new(&format!("/proc/{}/root", holder.pid())).join(data.strip_prefix("/").ok()?))
    }

    /// Leaves no room on the disk.
    pub(super) fn fill(&mut self) {
        let Some(filler) = self.filler() else { return };
        self.full = true;
        let mut file = File::create(filler).expect("a folder with room for a name");
        for size in [1 << 16, 1 << 10, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
    }

    /// Takes back what was done to its processes and its disk. The times of a freeze, as [`Device::thaw`].
    pub(super) fn make_good(&mut self) -> Option<(Moment, Moment)> {
        if let Some(mut stall) = self.stall.take() {
            signal(stall.id(), Signal::TERM);
            if !until(PATIENCE, || stall.try_wait().is_ok_and(|ended| ended.is_some())) {
                let _ = stall.kill();
                let _ = stall.wait();
            }
        }
        let frozen = self.thaw();
        if std::mem::take(&mut self.starved) {
            self.processes().iter().take(1).for_each(|pid| signal(*pid, Signal::CONT));
        }
        if std::mem::take(&mut self.full) {
            let _ = self.filler().map(fs::remove_file);
        }
        self.kept_down = false;
        self.tend();
        frozen
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.thaw();
        self.power_cut(None);
        if let Some(mut stall) = self.stall.take() {
            let _ = stall.kill();
            let _ = stall.wait();
        }
    }
}
