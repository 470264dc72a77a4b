//! The emulated hub over TLS in the test's own process, so that everything it was told can be looked at; and emulated IoT Edge
//! devices around the sidecars.

use std::{collections::BTreeMap, net::TcpListener, path::Path, sync::Arc, time::Duration};

use quorate::{
    clock::BootClock,
    emulator::{EdgeHub, EdgeOptions, Emulator, Options},
    hub::{FlagPath, Target, flag::Seen},
    id::DeviceId,
};

use super::site::Site;

pub(super) const DEVICES: [&str; 3] = ["edge-1", "edge-2", "edge-3"];

/// The sidecar's own module.
pub(super) const MODULE: &str = "quorate";
/// What a sidecar needs of the environment that IoT Edge gives to its modules.
const EDGE_NAMES: [&str; 7] = [
    "IOTEDGE_WORKLOADURI",
    "IOTEDGE_DEVICEID",
    "IOTEDGE_MODULEID",
    "IOTEDGE_MODULEGENERATIONID",
    "IOTEDGE_IOTHUBHOSTNAME",
    "IOTEDGE_GATEWAYHOSTNAME",
    "IOTEDGE_APIVERSION",
];

pub(super) fn loopback() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

/// An edgeHub for each device, with a workload socket for each of the modules. Call within a runtime.
pub(super) fn edges(emulator: &Emulator, folder: &Path, modules: &[&str]) -> Vec<EdgeHub> {
    let edge = |n: usize| {
        let device = DeviceId::new(DEVICES[n]).expect("a name");
        let often = EdgeOptions { report_every: Duration::from_millis(100), ..EdgeOptions::default() };
        let edge = emulator.serve_edge(&device, loopback(), often).expect("serves");
        for module in modules {
            edge.serve_workload(module, &folder.join(format!("{n}-{module}"))).expect("serves");
        }
        edge
    };
    (0..DEVICES.len()).map(edge).collect()
}

/// What IoT Edge tells a module; the port is the test's.
pub(super) fn environment(edge: &EdgeHub, module: &str) -> BTreeMap<String, String> {
    let mut variables = edge.environment(module);
    variables.insert("IOTEDGE_GATEWAYHOSTNAME".into(), edge.address().to_string());
    variables
}

/// Each sidecar will find itself on its emulated device.
pub(super) fn tell(edges: &[EdgeHub], site: &mut Site) {
    for (n, edge) in edges.iter().enumerate() {
        let variables = environment(edge, MODULE);
        for name in EDGE_NAMES {
            site.tell(n, name, variables[name].clone());
        }
    }
}

/// The hub, in this process, so that everything it was told can be looked at.
pub(super) struct Hub {
    pub(super) emulator: Emulator,
    pub(super) folder: tempfile::TempDir,
    /// Empty for a hub without emulated devices.
    pub(super) edges: Vec<EdgeHub>,
    runtime: tokio::runtime::Runtime,
}

impl Hub {
    pub(super) fn start(seed: u64) -> Hub {
        Hub::with(seed, false)
    }

    /// A hub, and an emulated IoT Edge device for each sidecar.
    pub(super) fn with_edges(seed: u64) -> Hub {
        Hub::with(seed, true)
    }

    fn with(seed: u64, edge: bool) -> Hub {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let inside = runtime.enter();
        let devices = DEVICES.map(|d| DeviceId::new(d).expect("a name")).into();
        let emulator = Emulator::start(
            loopback(),
            loopback(),
            &Options { devices, ..Options::default() },
            Arc::new(BootClock),
        )
        .expect("starts");
        let folder = tempfile::tempdir().expect("a folder");
        let edges = if edge { edges(&emulator, folder.path(), &[MODULE]) } else { Vec::new() };
        drop(inside);
        emulator.seed(seed);
        std::fs::write(folder.path().join("ca.pem"), emulator.ca_pem()).expect("writes");
        std::fs::write(folder.path().join("connection-string"), emulator.service_connection_string())
            .expect("writes");
        Hub { emulator, folder, edges, runtime }
    }

    pub(super) fn section(&self) -> String {
        format!(
            "[hub]\nmirror = \"{}\"\nrefresh = \"2s\"\nconnection_string_file = \"{}\"\nca_file = \"{}\"\n",
            if self.edges.is_empty() { "device-twin" } else { "both" },
            self.folder.path().join("connection-string").display(),
            self.folder.path().join("ca.pem").display(),
        )
    }

    /// The same without any key of the hub's: with this identity, and more below it.
    pub(super) fn identity_section(&self, identity: &str, more: &str) -> String {
        format!(
            "[hub]\nmirror = \"device-twin\"\nrefresh = \"2s\"\nhost = \"localhost:{}\"\nca_file = \"{}\"\n\
             identity = \"{identity}\"\n{more}",
            self.emulator.address().port(),
            self.folder.path().join("ca.pem").display(),
        )
    }

    /// The same as the registered application of the emulated directory, whose secret is written into a file.
    pub(super) fn application_section(&self) -> String {
        let _inside = self.runtime.enter();
        let authority = self.emulator.serve_authority(loopback()).expect("serves");
        let application = self.emulator.application();
        let file = self.folder.path().join("client-secret");
        self.write_secret(application.secret.reveal());
        let more = format!(
            "tenant = \"{}\"\nclient_id = \"{}\"\nclient_secret_file = \"{}\"\nauthority = \"https://localhost:{}\"\n",
            application.tenant,
            application.client_id,
            file.display(),
            authority.port()
        );
        self.identity_section("client", &more)
    }

    pub(super) fn write_secret(&self, secret: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let file = self.folder.path().join("client-secret");
        std::fs::write(&file, secret).expect("writes");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("is ours");
    }

    /// The token services of machines, on loopback.
    pub(super) fn serve_identity(&self) -> std::net::SocketAddr {
        let _inside = self.runtime.enter();
        self.emulator.serve_identity(loopback(), &self.folder.path().join("tokens")).expect("serves")
    }

    /// What the device's twin shows, and what its sidecar's own does.
    pub(super) fn seen(&self, device: &str) -> (Seen, Option<Seen>) {
        let twin = self.emulator.entry(&Target::device(device)).expect("exists").twin;
        let own = self.emulator.entry(&Target::module(device, MODULE));
        let path = FlagPath::default();
        (path.read(&twin.desired.values), own.map(|entry| path.read(&entry.twin.reported.values)))
    }

    /// Whether every twin shows this ownership.
    pub(super) fn shows(&self, owner: &str, epoch: u64) -> bool {
        DEVICES.iter().all(|device| {
            let right = |seen: &Seen| {
                seen.flag.as_ref().is_some_and(|flag| {
                    flag.epoch == epoch && flag.leader == owner && flag.active == (*device == owner)
                })
            };
            let (twin, own) = self.seen(device);
            right(&twin) && (self.edges.is_empty() || own.is_some_and(|own| right(&own)))
        })
    }
}
