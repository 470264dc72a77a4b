//! One IoT Edge device as its modules see it: its edgeHub, and the sockets of its runtime.
//!
//! How it is unlike the real one: its edgeHub speaks MQTT, and HTTPS for methods alone, and keeps its store in memory; it reaches
//! the hub by calling it, not over a link of its own; there are no nested gateways and no devices behind it. Modules run as plain
//! processes, if they run at all (`process.rs`, `agent.rs`). Its certificates are the emulated
//! hub's authority's, which is also the trust bundle.

mod agent;
mod gateway;
mod management;
mod methods;
mod process;
mod queue;
mod routes;
mod socket;
mod twins;
mod workload;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

pub(super) use self::gateway::Gateway;
pub use self::process::Image;
use self::process::Processes;
use super::{Emulator, Error, ca::Authority, lock, mqtt};
use crate::{hub::store::Target, id::DeviceId};

/// How an edgeHub behaves.
#[derive(Debug, Clone)]
pub struct EdgeOptions {
    /// Further names and addresses for its certificate, beside the address that it listens on. The first is what modules are
    /// told to connect to; without one it is that address.
    pub names: Vec<String>,
    /// Reports are pushed to the hub at most this often.
    pub report_every: Duration,
    /// After an absence of the hub, what modules missed is made up for at most this often.
    pub sync_every: Duration,
    /// How long messages wait to be taken.
    pub time_to_live: Duration,
    /// How often edgeAgent looks after its modules.
    pub reconcile_every: Duration,
    /// How long after its first end a module is started again; twice as long after each further one, up to thirty times.
    pub cool_off: Duration,
}

impl Default for EdgeOptions {
    fn default() -> Self {
        EdgeOptions {
            names: Vec::new(),
            report_every: Duration::from_secs(5),
            sync_every: Duration::from_secs(120),
            time_to_live: Duration::from_secs(7200),
            reconcile_every: Duration::from_secs(5),
            cool_off: Duration::from_secs(10),
        }
    }
}

/// A running edgeHub with its device's sockets and processes. Dropping it ends it without waiting; the emulator's end waits for it.
pub struct EdgeHub {
    host: Arc<Host>,
    address: SocketAddr,
}

/// What the faces of a device share.
struct Host {
    gateway: Arc<Gateway>,
    authority: Arc<Authority>,
    tls: Arc<rustls::ServerConfig>,
    processes: Arc<Processes>,
    hub: String,
    gateway_name: String,
    port: u16,
    sockets: Mutex<BTreeMap<String, PathBuf>>,
}

impl Emulator {
    /// Starts the edgeHub of `device` on `listener` (MQTT over TLS). The device and its `$edgeAgent` and `$edgeHub` are created
    /// if need be. Microsoft's SDKs connect to port 8883 and no other. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error`]; then nothing of it is left running.
    pub fn serve_edge(
        &self,
        device: &DeviceId,
        listener: TcpListener,
        options: EdgeOptions,
    ) -> Result<EdgeHub, Error> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        self.create_device(device);
        for module in ["$edgeAgent", gateway::EDGE_HUB] {
            self.create_module(&Target::module(device.as_str(), module));
        }
        let mut names = options.names.clone();
        names.push(address.ip().to_string());
        let gateway_name = names.first().cloned().unwrap_or_default();
        let tls = self.authority.server(&names).map_err(|why| Error::Keys(why.to_string()))?;
        let gateway = Gateway::new(&self.state, device.as_str(), options);
        lock(&self.state.devices.gateways).insert(device.as_str().to_owned(), Arc::downgrade(&gateway));
        gateway.look();
        let stop = gateway.stop.clone();
        let line = stop.clone();
        let gate = Box::new(move || Some(line.child_token()));
        let face = Arc::new(gateway::Face(gateway.clone()));
        mqtt::serve(listener, &tls, face, gate, &self.state.tasks, stop);
        self.state.tasks.spawn(gateway.clone().work());
        let (clock, tasks) = (self.state.clock.clone(), self.state.tasks.clone());
        let processes = Arc::new(Processes::new(clock, tasks, gateway.stop.clone()));
        let host = Host {
            gateway,
            authority: self.authority.clone(),
            tls,
            processes,
            hub: self.host.clone(),
            gateway_name,
            port: address.port(),
            sockets: Mutex::default(),
        };
        Ok(EdgeHub { host: Arc::new(host), address })
    }
}

impl EdgeHub {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its device.
    pub fn device(&self) -> &str {
        &self.host.gateway.device
    }

    /// Whether it can reach the cloud, as far as the device's own line is concerned. It can at first.
    pub fn upstream(&self, reachable: bool) {
        self.host.gateway.open(reachable);
    }

    /// Whether this module is connected to it.
    pub fn is_connected(&self, module: &str) -> bool {
        self.host.gateway.links.connected(&self.host.gateway.module(module))
    }

    /// How many links there have been to it.
    pub fn connections(&self) -> u64 {
        self.host.gateway.links.joined()
    }

    /// Whether something that this module has reported is not known to have reached the hub.
    pub fn holds_back(&self, module: &str) -> bool {
        self.host.gateway.waits(module)
    }

    /// How many messages wait for the hub.
    pub fn waiting_messages(&self) -> usize {
        self.host.gateway.waiting_messages()
    }

    /// Serves a module's own workload API on a socket at `path`, which is made anew. The module is created if need be. Whoever
    /// may open the socket is taken for the module, unless the module runs here (see [`run_modules`](Self::run_modules)).
    ///
    /// # Errors
    /// [`Error::Listener`] if the socket cannot be made.
    pub fn serve_workload(&self, module: &str, path: &Path) -> Result<(), Error> {
        self.host.serve_workload(module, path)
    }

    /// Serves direct methods between the device's modules on `listener` (HTTPS). Microsoft's SDKs ask port 443 and no other. Must
    /// be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Listener`].
    pub fn serve_methods(&self, listener: TcpListener) -> Result<SocketAddr, Error> {
        Ok(methods::serve(listener, self.host.tls.clone(), &self.host.gateway)?)
    }

    /// From now on edgeAgent runs what `$edgeAgent`'s twin wants, from these images and no others; the management API is on
    /// `mgmt.sock` in `folder`, and each module's workload API on a socket beside it.
    ///
    /// # Errors
    /// [`Error::Listener`] if the socket cannot be made.
    pub fn run_modules(&self, folder: &Path, images: BTreeMap<String, Image>) -> Result<(), Error> {
        let Host { gateway, processes, .. } = &*self.host;
        let management = management::Management { gateway: gateway.clone(), processes: processes.clone() };
        let path = folder.join("mgmt.sock");
        socket::serve(&path, Arc::new(management), gateway)?;
        // Whoever may open it may stop what they like.
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o660))?;
        lock(&self.host.sockets).insert(String::new(), path);
        let agent = agent::Agent::new(self.host.clone(), processes.clone(), images, folder.to_owned());
        gateway.state.tasks.spawn(agent.work());
        Ok(())
    }

    /// The main process of a module, while it runs.
    pub fn process(&self, module: &str) -> Option<i32> {
        self.host.processes.status(module)?.pid
    }

    /// What edgeAgent puts into a module's environment. Empty for a module without workload API.
    pub fn environment(&self, module: &str) -> BTreeMap<String, String> {
        self.host.environment(module)
    }
}

impl Host {
    fn serve_workload(&self, module: &str, path: &Path) -> Result<(), Error> {
        let at = self.gateway.state.stamp();
        let target = self.gateway.module(module);
        let created = lock(&self.gateway.state.store).create(&target, false, at).is_ok();
        tracing::debug!(%target, created, "module of an edge device");
        self.gateway.registry_changed();
        let workload = workload::Workload {
            gateway: self.gateway.clone(),
            authority: self.authority.clone(),
            processes: self.processes.clone(),
            module: module.to_owned(),
        };
        socket::serve(path, Arc::new(workload), &self.gateway)?;
        lock(&self.sockets).insert(module.to_owned(), path.to_owned());
        Ok(())
    }

    /// The same, unless the module has a socket.
    fn ensure_workload(&self, module: &str, path: &Path) -> Result<(), Error> {
        let has = lock(&self.sockets).contains_key(module);
        if has { Ok(()) } else { self.serve_workload(module, path) }
    }

    fn environment(&self, module: &str) -> BTreeMap<String, String> {
        let Some(socket) = lock(&self.sockets).get(module).cloned() else { return BTreeMap::new() };
        let target = self.gateway.module(module);
        let generation = lock(&self.gateway.state.store).get(&target).map(super::registry::generation);
        [
            ("IOTEDGE_WORKLOADURI", format!("unix://{}", socket.display())),
            ("IOTEDGE_DEVICEID", self.gateway.device.clone()),
            ("IOTEDGE_MODULEID", module.to_owned()),
            ("IOTEDGE_MODULEGENERATIONID", generation.unwrap_or_default()),
            ("IOTEDGE_IOTHUBHOSTNAME", self.hub.clone()),
            ("IOTEDGE_GATEWAYHOSTNAME", self.gateway_name.clone()),
            ("IOTEDGE_AUTHSCHEME", "sasToken".to_owned()),
            ("IOTEDGE_APIVERSION", "2021-12-07".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    /// The same; an edgeHub that is not where it should be is named with its port.
    fn environment_with_port(&self, module: &str) -> BTreeMap<String, String> {
        let mut variables = self.environment(module);
        if self.port != 8883
            && let Some(gateway) = variables.get_mut("IOTEDGE_GATEWAYHOSTNAME")
        {
            *gateway = format!("{gateway}:{}", self.port);
        }
        variables
    }
}

impl Drop for EdgeHub {
    fn drop(&mut self) {
        self.host.gateway.stop.cancel();
        for socket in lock(&self.host.sockets).values() {
            let _removed = std::fs::remove_file(socket).is_ok();
        }
    }
}
