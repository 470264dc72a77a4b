//! The demo's site: child processes on loopback, in a folder that is removed afterwards.
//!
//! Every child dies with the demo, however it ends: each is tied to it the way a workload is tied to its fencer. What
//! is asked of the sidecars goes over their public faces; who really ran is read from the tick records.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use rustix::process::Signal;
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

use super::processes::{descendants, free_ports, signal, tied, toml_text};
use crate::{
    clock::{BootClock, Clock},
    control::proto::{GetStatusRequest, TransferRequest, control_client::ControlClient},
    hub::{self, FlagPath, Hub as _, Target, rest::RestHub},
    id::DeviceId,
    status::report::Report,
    workload::ticks::{RECORD, Tick},
};

const POLL: Duration = Duration::from_millis(5);
const CALL: Duration = Duration::from_secs(15);

/// What to do to the hub.
pub(super) enum Trouble {
    None,
    Unreachable,
}

pub(super) struct DemoDevice {
    pub(super) id: DeviceId,
    peer: u16,
    control: u16,
    http: u16,
    child: Option<Child>,
}

#[derive(Deserialize)]
struct HubFacts {
    service_connection_string: String,
    ca_file: PathBuf,
    address: String,
    admin_address: String,
}

pub(super) struct DemoSite {
    pub(super) devices: Vec<DemoDevice>,
    folder: PathBuf,
    own: PathBuf,
    hub: Option<(Child, HubFacts, RestHub)>,
}

impl DemoSite {
    /// Makes the folder and the configuration, and picks free ports. Starts nothing.
    pub(super) fn prepare(devices: usize) -> Result<DemoSite, String> {
        let own = std::env::current_exe().map_err(|e| format!("cannot find this very program: {e}"))?;
        let folder = std::env::temp_dir().join(format!("quorate-demo-{}", std::process::id()));
        let cannot = |e: std::io::Error| format!("cannot prepare {}: {e}", folder.display());
        fs::create_dir_all(&folder).map_err(cannot)?;
        let mut ports = free_ports(devices * 3).map_err(cannot)?.into_iter();
        let mut next = || ports.next().unwrap_or(0);
        let device = |n: usize| -> Result<DemoDevice, String> {
            let id = DeviceId::new(format!("edge-{}", n + 1)).map_err(|e| e.to_string())?;
            Ok(DemoDevice { id, peer: next(), control: next(), http: next(), child: None })
        };
        let devices = (0..devices).map(device).collect::<Result<Vec<_>, _>>()?;
        let site = DemoSite { devices, folder, own, hub: None };
        site.write_configuration().map_err(|e| format!("cannot write the configuration: {e}"))?;
        Ok(site)
    }

    fn write_configuration(&self) -> std::io::Result<()> {
        let members: String = self
            .devices
            .iter()
            .map(|d| format!("  {{ device = \"{}\", address = \"127.0.0.1:{}\" }},\n", d.id, d.peer))
            .collect();
        let text = format!(
            "# One file for all devices of the site; what differs comes from the environment.\n\
             [site]\nid = \"demo\"\nmembers = [\n{members}]\n\n\
             [workload]\nkind = \"process\"\ncommand = [{own}, \"tick-workload\", \"--file\", \"ticks\"]\n\n\
             [hub]\nmirror = \"device-twin\"\nconnection_string_file = {secret}\nca_file = {ca}\n",
            own = toml_text(&self.own),
            secret = toml_text(&self.folder.join("connection-string")),
            ca = toml_text(&self.folder.join("ca.pem")),
        );
        fs::write(self.folder.join("quorate.toml"), text)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn http(&self, n: usize) -> String {
        format!("http://127.0.0.1:{}/", self.devices[n].http)
    }

    pub(super) fn control(&self, n: usize) -> String {
        format!("http://127.0.0.1:{}", self.devices[n].control)
    }

    pub(super) fn hub_address(&self) -> String {
        self.hub.as_ref().map_or_else(String::new, |(_, facts, _)| format!("https://{}", facts.address))
    }

    /// A command that dies with the demo. Must be spawned from the main thread, because the tie is to the thread.
    fn tied(&self, arguments: &[&str], log: &str) -> Result<Command, String> {
        let log = self.folder.join(log);
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(|e| format!("cannot write {}: {e}", log.display()))?;
        #[expect(clippy::disallowed_methods, reason = "the demo's children are real processes")]
        let mut command = Command::new(&self.own);
        command
            .args(tied(&self.own))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C at the terminal is for the demo, which then ends its children in order.
            .process_group(0)
            .kill_on_drop(true);
        Ok(command)
    }

    /// Starts the emulated hub and waits until it says where it is.
    pub(super) async fn start_hub(&mut self) -> Result<(), String> {
        let folder = self.folder.display().to_string();
        let mut arguments = vec!["emulate", "hub", "--json", "--listen", "127.0.0.1:0", "--folder", &folder];
        let ids: Vec<String> = self.devices.iter().map(|d| d.id.to_string()).collect();
        for id in &ids {
            arguments.extend(["--device", id]);
        }
        let mut command = self.tied(&arguments, "hub.log")?;
        let mut child =
            command.stdout(Stdio::piped()).spawn().map_err(|e| format!("cannot start the hub: {e}"))?;
        let out = child.stdout.take().ok_or("the hub has no output")?;
        let mut line = String::new();
        let read = tokio::time::timeout(CALL, BufReader::new(out).read_line(&mut line)).await;
        read.map_err(|_| "the hub did not start in time")?
            .map_err(|e| format!("the hub cannot be read: {e}"))?;
        let facts: HubFacts = serde_json::from_str(&line).map_err(|e| {
            let log = fs::read_to_string(self.folder.join("hub.log")).unwrap_or_default();
            format!("the hub said {line:?} ({e}); {log}")
        })?;
        fs::write(self.folder.join("connection-string"), &facts.service_connection_string)
            .map_err(|e| e.to_string())?;
        let settings = hub::Settings {
            mirror: hub::MirrorKind::DeviceTwin,
            connection_string: Some(facts.service_connection_string.clone().into()),
            ca_file: Some(facts.ca_file.clone()),
            ..hub::Settings::default()
        };
        let clock: Arc<dyn Clock> = Arc::new(BootClock);
        let rest = RestHub::open(&settings, clock)
            .map_err(|faults| format!("the hub cannot be used: {faults:?}"))?;
        self.hub = Some((child, facts, rest));
        Ok(())
    }

    /// Starts a device's sidecar, on the data folder it had before if any.
    pub(super) fn start_device(&mut self, n: usize) -> Result<(), String> {
        let device = &self.devices[n];
        let home = self.folder.join(device.id.as_str());
        fs::create_dir_all(home.join("data")).map_err(|e| format!("cannot make {}: {e}", home.display()))?;
        let config = self.folder.join("quorate.toml").display().to_string();
        let mut command = self.tied(&["run", "--config", &config], &format!("{}.log", device.id))?;
        let child = command
            .env("QUORATE_DEVICE__ID", device.id.as_str())
            .env("QUORATE_PEER__LISTEN", format!("127.0.0.1:{}", device.peer))
            .env("QUORATE_CONTROL__LISTEN", format!("127.0.0.1:{}", device.control))
            .env("QUORATE_CONTROL__SOCKET", home.join("control.sock"))
            .env("QUORATE_HTTP__LISTEN", format!("127.0.0.1:{}", device.http))
            .env("QUORATE_STORAGE__PATH", home.join("data"))
            .env("QUORATE_WORKLOAD__WORKING_DIR", &home)
            .spawn()
            .map_err(|e| format!("cannot start the sidecar of {}: {e}", device.id))?;
        self.devices[n].child = Some(child);
        Ok(())
    }

    /// Kills everything of a device at once, as a power cut does.
    pub(super) fn kill_device(&mut self, n: usize) {
        let Some(pid) = self.devices[n].child.as_ref().and_then(Child::id) else { return };
        let mut victims = descendants(pid);
        victims.insert(0, pid);
        for pid in victims {
            signal(pid, Signal::KILL);
        }
        self.devices[n].child = None;
    }

    /// Kills the sidecar alone.
    pub(super) fn kill_sidecar(&mut self, n: usize) {
        if let Some(pid) = self.devices[n].child.as_ref().and_then(Child::id) {
            signal(pid, Signal::KILL);
        }
        self.devices[n].child = None;
    }

    /// Waits for the first tick of an epoch above `epoch`; says on which device, and under which.
    pub(super) async fn next_owner(&self, epoch: u64, patience: Duration) -> Result<(usize, u64), String> {
        self.wait(patience, "an owner", async || {
            for n in 0..self.devices.len() {
                if let Some(tick) = self.last_tick(n).filter(|t| t.epoch.get() > epoch) {
                    return Some((n, tick.epoch.get()));
                }
            }
            None
        })
        .await
    }

    fn tick_file(&self, n: usize) -> PathBuf {
        self.folder.join(self.devices[n].id.as_str()).join("ticks")
    }

    fn last_tick(&self, n: usize) -> Option<Tick> {
        use std::os::unix::fs::FileExt as _;
        let file = fs::File::open(self.tick_file(n)).ok()?;
        let record = u64::try_from(RECORD).ok()?;
        let whole = file.metadata().ok()?.len() / record;
        let mut bytes = [0; RECORD];
        file.read_exact_at(&mut bytes, whole.checked_sub(1)? * record).ok()?;
        Tick::parse(std::str::from_utf8(&bytes).ok()?.strip_suffix('\n')?)
    }

    /// All tick records of all devices.
    pub(super) fn ticks(&self) -> Result<Vec<Tick>, String> {
        let mut all = Vec::new();
        for n in 0..self.devices.len() {
            all.extend(Tick::read(&self.tick_file(n)).map_err(|e| e.to_string())?);
        }
        Ok(all)
    }

    async fn wait<T>(
        &self,
        patience: Duration,
        what: &str,
        mut look: impl AsyncFnMut() -> Option<T>,
    ) -> Result<T, String> {
        let begun = BootClock.now();
        loop {
            if let Some(found) = look().await {
                return Ok(found);
            }
            if BootClock.now().since(begun) > patience {
                return Err(format!("waited {} s in vain for {what}", patience.as_secs()));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn report(&self, n: usize) -> Option<Report> {
        let mut client = ControlClient::connect(self.control(n)).await.ok()?;
        let status = client.get_status(GetStatusRequest {}).await.ok()?.into_inner();
        serde_json::from_str(&status.json).ok()
    }

    /// Waits until a device's sidecar knows the owner.
    pub(super) async fn reachable(&self, n: usize, patience: Duration) -> Result<(), String> {
        let what = format!("{} to come back", self.devices[n].id);
        self.wait(patience, &what, async || self.report(n).await.filter(|r| r.owner.known).map(|_| ())).await
    }

    /// Waits until a device's status shows a condition.
    pub(super) async fn condition(&self, n: usize, name: &str, patience: Duration) -> Result<(), String> {
        let shows = |r: &Report| r.conditions.iter().any(|c| c.name == name);
        let look = async || self.report(n).await.filter(shows).map(|_| ());
        self.wait(patience, &format!("the condition {name}"), look).await
    }

    /// Waits until the owner hears the target, and the target says that it may own.
    pub(super) async fn fit_for_handover(
        &self,
        owner: usize,
        to: usize,
        patience: Duration,
    ) -> Result<(), String> {
        let id = self.devices[to].id.as_str();
        let fit = |r: &Report| {
            r.members.iter().any(|m| m.device == id && m.reachable && m.fit && !m.build.is_empty())
        };
        let look = async || self.report(owner).await.filter(fit).map(|_| ());
        self.wait(patience, &format!("{id} to be fit"), look).await
    }

    /// Whether the target has taken over. On a machine that is busy otherwise it may come too late, and another device owns then.
    pub(super) async fn transfer(&self, via: usize, to: usize) -> Result<bool, String> {
        let wish = TransferRequest {
            to: self.devices[to].id.to_string(),
            reason: "the demo's last chapter".into(),
            actor: "quorate demo".into(),
        };
        let call = async {
            let mut client = ControlClient::connect(self.control(via)).await.map_err(|e| e.to_string())?;
            match client.transfer(wish).await {
                Ok(_) => Ok(true),
                Err(e) if e.code() == tonic::Code::Unavailable => Ok(false),
                Err(e) => Err(e.message().to_owned()),
            }
        };
        tokio::time::timeout(CALL, call).await.map_err(|_| "the handover took too long")?
    }

    /// Reads all twins until they show `owner` under `epoch`, or patience ends; what they show then.
    pub(super) async fn twins(
        &self,
        owner: usize,
        epoch: u64,
        patience: Duration,
    ) -> Result<BTreeMap<DeviceId, Option<(bool, u64)>>, String> {
        let Some((_, _, hub)) = &self.hub else { return Err("there is no hub".into()) };
        let begun = BootClock.now();
        loop {
            let mut shown = BTreeMap::new();
            for device in &self.devices {
                let twin = hub.get_twin(&Target::from(&device.id)).await;
                let seen =
                    twin.ok().map(|t| FlagPath::default().read(&t.desired.values)).and_then(|s| s.flag);
                shown.insert(device.id.clone(), seen.map(|f| (f.active, f.epoch)));
            }
            let right = shown.values().enumerate().all(|(n, flag)| *flag == Some((n == owner, epoch)));
            if right || BootClock.now().since(begun) > patience {
                return Ok(shown);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Switches the hub's trouble.
    pub(super) async fn trouble(&self, trouble: Trouble) -> Result<(), String> {
        let Some((_, facts, _)) = &self.hub else { return Err("there is no hub".into()) };
        let kind = match trouble {
            Trouble::None => "none",
            Trouble::Unreachable => "unreachable",
        };
        let body = format!("{{\"kind\":\"{kind}\"}}");
        let request = format!(
            "POST /emulator/trouble HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            facts.admin_address,
            body.len(),
        );
        let call = async {
            #[expect(
                clippy::disallowed_methods,
                reason = "the emulator's switches are not on the site's LAN"
            )]
            let mut stream = TcpStream::connect(&facts.admin_address).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        match call.await {
            Ok(answer) if answer.starts_with("HTTP/1.1 2") => Ok(()),
            Ok(answer) => {
                Err(format!("the hub's switch said {:?}", answer.lines().next().unwrap_or_default()))
            }
            Err(e) => Err(format!("the hub's switch cannot be reached: {e}")),
        }
    }

    /// Ends all children and removes the folder unless it is to be kept. Sidecars get the chance to leave in order.
    pub(super) async fn tear_down(&mut self, keep_folder: bool) {
        let mut children: Vec<Child> = self.devices.iter_mut().filter_map(|d| d.child.take()).collect();
        for child in &children {
            if let Some(pid) = child.id() {
                signal(pid, Signal::TERM);
            }
        }
        let all = async {
            for child in &mut children {
                let _ = child.wait().await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(6), all).await.is_err() {
            for child in &mut children {
                let _ = child.kill().await;
            }
        }
        if let Some((mut hub, ..)) = self.hub.take() {
            let _ = hub.kill().await;
        }
        if !keep_folder {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}
