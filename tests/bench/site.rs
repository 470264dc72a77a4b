//! A site of three real sidecars on loopback, with a timing preset, and without a hub unless it is told of one, for the benchmarks.
//!
//! Every child dies with the benchmark, however it ends. What is asked of the sidecars goes over their public faces.
//! The sidecars keep their stores in a temporary folder, so on whatever disk that is.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use quorate::{
    clock::{BootClock, Clock},
    control::proto::{GetStatusRequest, control_client::ControlClient},
    status::report::Report,
    timing::Preset,
};
use rustix::process::Signal;

use super::processes::{descendants, free_ports, signal, tied, toml_text};

/// How often is looked for something that cannot be awaited.
pub(super) const LOOK: Duration = Duration::from_millis(5);
/// Where waiting for something that must happen is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// The number of devices.
pub(super) const DEVICES: usize = 3;

pub(super) struct Device {
    pub(super) id: String,
    pub(super) home: PathBuf,
    pub(super) control: String,
    pub(super) peer: u16,
    pub(super) http: u16,
    child: Option<Child>,
}

/// What the sidecars are told besides: nothing, unless there is a hub.
#[derive(Default)]
pub(super) struct Told {
    /// More lines of the configuration.
    pub(super) more: String,
    /// Each device's own environment.
    pub(super) environment: Vec<Vec<(String, String)>>,
}

pub(super) struct Site {
    pub(super) devices: Vec<Device>,
    pub(super) program: PathBuf,
    told: Told,
    folder: tempfile::TempDir,
}

/// The program to measure: the one built for this benchmark, or the one named by `QUORATE_BENCH_PROGRAM`.
pub(super) fn program() -> PathBuf {
    std::env::var_os("QUORATE_BENCH_PROGRAM")
        .map_or_else(|| env!("CARGO_BIN_EXE_quorate").into(), PathBuf::from)
}

/// The timing presets to measure: `QUORATE_BENCH_TIMING` names one, or says `all`. Without it: the default.
pub(super) fn timings() -> Result<Vec<Preset>> {
    match std::env::var("QUORATE_BENCH_TIMING").as_deref() {
        Err(_) => Ok(vec![Preset::Default]),
        Ok("all") => Ok(Preset::ALL.to_vec()),
        Ok(name) => Preset::named(name)
            .map(|preset| vec![preset])
            .with_context(|| format!("QUORATE_BENCH_TIMING={name:?}: write default, fast, fastest or all")),
    }
}

impl Site {
    /// Starts all sidecars of a new site. `command` is the workload; it runs in the device's own folder.
    pub(super) fn start(command: &[&str], timing: Preset, told: Told) -> Result<Site> {
        let folder = tempfile::Builder::new().prefix("quorate-bench-").tempdir()?;
        let mut ports = free_ports(DEVICES * 3)?.into_iter();
        let mut next = || ports.next().unwrap_or(0);
        let devices = (1..=DEVICES).map(|n| {
            let (id, peer, control, http) = (format!("edge-{n}"), next(), next(), next());
            let home = folder.path().join(&id);
            Device { id, home, peer, control: format!("http://127.0.0.1:{control}"), http, child: None }
        });
        let mut site = Site { devices: devices.collect(), program: program(), told, folder };
        let members = site.devices.iter().fold(String::new(), |list, d| {
            list + &format!("  {{ device = \"{}\", address = \"127.0.0.1:{}\" }},\n", d.id, d.peer)
        });
        let command: Vec<String> = command.iter().map(|word| toml_text(Path::new(word))).collect();
        let text = format!(
            "[site]\nid = \"bench\"\ntiming = \"{}\"\nmembers = [\n{members}]\n\n\
             [workload]\nkind = \"process\"\ncommand = [{}]\n{}",
            timing.name(),
            command.join(", "),
            site.told.more,
        );
        fs::write(site.config(), text)?;
        for n in 0..DEVICES {
            site.start_device(n)?;
        }
        Ok(site)
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("quorate.toml")
    }

    /// Starts a device's sidecar, on the data folder it had before if any.
    pub(super) fn start_device(&mut self, n: usize) -> Result<()> {
        let (config, log) = (self.config(), self.log(n));
        let own = self.told.environment.get(n).cloned().unwrap_or_default();
        let Some(device) = self.devices.get_mut(n) else { bail!("there is no device {n}") };
        fs::create_dir_all(device.home.join("data"))?;
        let child = Command::new(&self.program)
            .args(tied(&self.program))
            .args([Path::new("run"), Path::new("--config"), &config])
            .env("QUORATE_DEVICE__ID", &device.id)
            .env("QUORATE_PEER__LISTEN", format!("127.0.0.1:{}", device.peer))
            .env("QUORATE_CONTROL__LISTEN", device.control.trim_start_matches("http://"))
            .env("QUORATE_CONTROL__SOCKET", device.home.join("control.sock"))
            .env("QUORATE_HTTP__LISTEN", format!("127.0.0.1:{}", device.http))
            .env("QUORATE_STORAGE__PATH", device.home.join("data"))
            .env("QUORATE_WORKLOAD__WORKING_DIR", &device.home)
            .envs(own)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::options().create(true).append(true).open(log)?)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        device.child = Some(child);
        Ok(())
    }

    fn log(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("edge-{}.log", n + 1))
    }

    /// The sidecar of a device, and everything below it.
    pub(super) fn processes(&self, n: usize) -> Vec<u32> {
        let Some(sidecar) = self.devices.get(n).and_then(|d| d.child.as_ref()).map(Child::id) else {
            return Vec::new();
        };
        let mut all = descendants(sidecar);
        all.insert(0, sidecar);
        all
    }

    /// Kills processes of a device, its sidecar among them, and buries the sidecar.
    pub(super) fn kill(&mut self, n: usize, processes: &[u32]) {
        processes.iter().for_each(|pid| signal(*pid, Signal::KILL));
        if let Some(mut child) = self.devices.get_mut(n).and_then(|d| d.child.take()) {
            let _ = child.wait();
        }
    }

    /// Waits until the site is at rest: one owner that all know, all devices heard, and each fit to take over. Says
    /// which device owns, and under which epoch.
    pub(super) async fn settled(&self) -> Result<(usize, u64)> {
        let begun = BootClock.now();
        loop {
            if let Some(rest) = self.at_rest().await {
                return Ok(rest);
            }
            if BootClock.now().since(begun) > PATIENCE {
                bail!("the site did not settle within {} s\n{}", PATIENCE.as_secs(), self.last_words());
            }
            tokio::time::sleep(LOOK * 4).await;
        }
    }

    async fn at_rest(&self) -> Option<(usize, u64)> {
        let mut reports = Vec::new();
        for device in &self.devices {
            reports.push(report(device).await?);
        }
        let owner = reports.first()?.owner.device.clone()?;
        let n = self.devices.iter().position(|d| d.id == owner)?;
        let epoch = reports.get(n)?.epoch;
        let agree = |r: &Report| {
            r.owner.known && r.owner.device.as_ref() == Some(&owner) && r.owner.epoch == epoch && r.quorum
        };
        let fit = |r: &Report| r.members.iter().all(|m| m.reachable && m.fit && !m.build.is_empty());
        let runs = reports.get(n)?.workload.epoch == Some(epoch);
        (runs && reports.iter().all(agree) && fit(reports.get(n)?)).then_some((n, epoch))
    }

    /// The last lines of every sidecar's log, for whoever has to find out why a benchmark failed.
    pub(super) fn last_words(&self) -> String {
        let mut words = String::new();
        for (n, device) in self.devices.iter().enumerate() {
            let log = fs::read_to_string(self.log(n)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(20).collect();
            words += &format!("--- {}\n", device.id);
            lines.iter().rev().for_each(|line| words += &format!("{line}\n"));
        }
        words
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for n in 0..self.devices.len() {
            let processes = self.processes(n);
            self.kill(n, &processes);
        }
    }
}

async fn report(device: &Device) -> Option<Report> {
    let mut client = ControlClient::connect(device.control.clone()).await.ok()?;
    let status = client.get_status(GetStatusRequest {}).await.ok()?.into_inner();
    serde_json::from_str(&status.json).ok()
}
