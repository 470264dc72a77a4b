//! The emulated hub in the benchmark's own process, over TLS on loopback, and what a site has to be told to mirror into it.
//!
//! What the hub was asked and what its twins show is read off the emulator itself, never off what the sidecars believe. It has the
//! limits of a tier that nobody meets here, so that it counts.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use quorate::{
    clock::{BootClock, Clock, Moment},
    emulator::{EdgeHub, EdgeOptions, Emulator, Options},
    hub::{
        FlagPath, Target,
        memory::Trouble,
        throttle::{Operation, Plan, Tier},
    },
    id::DeviceId,
};

use super::{
    processes::toml_text,
    site::{DEVICES, PATIENCE, Told},
};

const MODULE: &str = "quorate";
/// How often the twins are looked at.
const LOOK: Duration = Duration::from_millis(1);

/// Where the ownership is mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mirror {
    /// Into all device twins, over REST.
    Device,
    /// Into each sidecar's own module twin, over MQTT straight at the hub.
    Module,
    /// The same through the edgeHub of each device.
    Edge,
    /// Into the device twins, and into the module twins through the edgeHubs.
    Both,
}

impl Mirror {
    pub(super) const ALL: [Mirror; 4] = [Mirror::Device, Mirror::Module, Mirror::Edge, Mirror::Both];

    /// As it is named on the command line.
    pub(super) fn word(self) -> &'static str {
        match self {
            Mirror::Device => "device-twin",
            Mirror::Module => "module-twin",
            Mirror::Edge => "edge-hub",
            Mirror::Both => "both",
        }
    }

    pub(super) fn text(self) -> &'static str {
        match self {
            Mirror::Device => "device twins, over REST",
            Mirror::Module => "module twins, over MQTT straight at the hub",
            Mirror::Edge => "module twins, over MQTT through each device's edgeHub",
            Mirror::Both => "device twins, and module twins through each device's edgeHub",
        }
    }

    fn devices(self) -> bool {
        matches!(self, Mirror::Device | Mirror::Both)
    }

    fn modules(self) -> bool {
        self != Mirror::Device
    }

    /// Whether it is for edgeHubs to bring something to the hub.
    pub(super) fn edges(self) -> bool {
        matches!(self, Mirror::Edge | Mirror::Both)
    }

    fn name(self) -> &'static str {
        match self {
            Mirror::Device => "device-twin",
            Mirror::Module | Mirror::Edge => "module-twin",
            Mirror::Both => "both",
        }
    }
}

/// What the hub was asked for since its start, whatever it answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) reads: u64,
    pub(super) updates: u64,
    pub(super) connections: u64,
}

impl Asked {
    pub(super) fn since(self, before: Asked) -> Asked {
        Asked {
            reads: self.reads - before.reads,
            updates: self.updates - before.updates,
            connections: self.connections - before.connections,
        }
    }

    /// Twin reads and updates: what the hub counts as messages.
    pub(super) fn messages(self) -> u64 {
        self.reads + self.updates
    }
}

/// The hub.
pub(super) struct Cloud {
    emulator: Emulator,
    edges: Vec<EdgeHub>,
    /// Where devices and modules connect.
    mqtt: u16,
    mirror: Mirror,
    folder: tempfile::TempDir,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Cloud {
    fn drop(&mut self) {
        // Whoever drops it may be in another runtime, where nobody may wait for this one's end.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn loopback() -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")
}

fn device(n: usize) -> Result<DeviceId> {
    DeviceId::new(format!("edge-{}", n + 1)).map_err(|why| anyhow!("{why}"))
}

impl Cloud {
    /// Starts the hub, and an edgeHub for each device if the mirror goes through them.
    pub(super) fn start(mirror: Mirror) -> Result<Cloud> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let inside = runtime.enter();
        let devices = (0..DEVICES).map(device).collect::<Result<Vec<_>>>()?;
        let plan = Plan::new(Tier::S3, 10, 1000.0).map_err(|why| anyhow!(why))?;
        let options = Options { devices: devices.clone(), plan: Some(plan), ..Options::default() };
        let emulator = Emulator::start(loopback()?, loopback()?, &options, Arc::new(BootClock))?;
        let mqtt = emulator.serve_mqtt(loopback()?)?.port();
        let folder = tempfile::Builder::new().prefix("quorate-cloud-").tempdir()?;
        let mut edges = Vec::new();
        for device in &devices {
            emulator.create_module(&Target::module(device.as_str(), MODULE));
            if mirror.edges() {
                let edge = emulator.serve_edge(device, loopback()?, EdgeOptions::default())?;
                edge.serve_workload(MODULE, &folder.path().join(format!("{device}.sock")))?;
                edges.push(edge);
            }
        }
        drop(inside);
        fs::write(folder.path().join("ca.pem"), emulator.ca_pem())?;
        Ok(Cloud { emulator, edges, mqtt, mirror, folder, runtime: Some(runtime) })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the sidecars have to be told.
    pub(super) fn told(&self) -> Result<Told> {
        let mut more = format!(
            "[hub]\nmirror = \"{}\"\nca_file = {}\n",
            self.mirror.name(),
            toml_text(&self.file("ca.pem"))
        );
        if self.mirror.devices() {
            let file = self.file("connection-string");
            fs::write(&file, self.emulator.service_connection_string())?;
            more += &format!("connection_string_file = {}\n", toml_text(&file));
        }
        let mut environment = Vec::new();
        for n in 0..DEVICES {
            let mut own = Vec::new();
            if let Some(edge) = self.edges.get(n) {
                own.extend(edge.environment(MODULE));
                // The one name that IoT Edge gives has no port.
                own.retain(|(name, _)| name != "IOTEDGE_GATEWAYHOSTNAME");
                own.push(("IOTEDGE_GATEWAYHOSTNAME".to_owned(), edge.address().to_string()));
            } else if self.mirror.modules() {
                let target = Target::module(device(n)?.as_str(), MODULE);
                let text = self.emulator.device_connection_string(&target, None);
                let file = self.file(&format!("module-{n}"));
                let host = format!("HostName=localhost:{};", self.mqtt);
                fs::write(&file, text.replacen("HostName=localhost;", &host, 1))?;
                let key = "QUORATE_HUB__MODULE_CONNECTION_STRING_FILE".to_owned();
                own.push((key, file.display().to_string()));
            }
            environment.push(own);
        }
        Ok(Told { more, environment })
    }

    /// The hub is away for everybody, or back.
    pub(super) fn away(&self, away: bool) {
        self.emulator.trouble(if away { Trouble::Unreachable } else { Trouble::None });
    }

    /// What it was asked for so far.
    pub(super) fn asked(&self) -> Asked {
        let all = |operation| {
            let count = self.emulator.count(operation);
            count.passed + count.delayed + count.refused
        };
        Asked {
            reads: all(Operation::TwinRead),
            updates: all(Operation::TwinUpdate),
            connections: all(Operation::Connection),
        }
    }

    /// Whether every flag shows this ownership.
    fn shows(&self, owner: usize, epoch: u64) -> Result<bool> {
        for n in 0..DEVICES {
            let id = device(n)?;
            let right = |target: &Target, reported: bool| {
                let Some(entry) = self.emulator.entry(target) else { return false };
                let section = if reported { &entry.twin.reported } else { &entry.twin.desired };
                let seen = FlagPath::default().read(&section.values);
                (seen.epoch, seen.active) == (epoch, n == owner)
            };
            if self.mirror.devices() && !right(&Target::from(&id), false) {
                return Ok(false);
            }
            if self.mirror.modules() && !right(&Target::module(id.as_str(), MODULE), true) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until every flag shows this ownership, and says when that was seen.
    pub(super) async fn agrees(&self, owner: usize, epoch: u64) -> Result<Moment> {
        let begun = BootClock.now();
        loop {
            if self.shows(owner, epoch)? {
                return Ok(BootClock.now());
            }
            if BootClock.now().since(begun) > PATIENCE {
                bail!("the flags do not follow within {} s", PATIENCE.as_secs());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
