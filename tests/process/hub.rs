//! The emulated hub over TLS in the test's own process, so that everything it was told can be looked at.

use std::{net::TcpListener, sync::Arc};

use quorate::{
    clock::BootClock,
    emulator::{Emulator, Options},
    hub::{FlagPath, Target},
    id::DeviceId,
};

pub(super) const DEVICES: [&str; 3] = ["edge-1", "edge-2", "edge-3"];

fn loopback() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

/// The hub, in this process, so that everything it was told can be looked at.
pub(super) struct Hub {
    pub(super) emulator: Emulator,
    pub(super) folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Hub {
    pub(super) fn start(seed: u64) -> Hub {
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
        drop(inside);
        emulator.seed(seed);
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), emulator.ca_pem()).expect("writes");
        std::fs::write(folder.path().join("connection-string"), emulator.service_connection_string())
            .expect("writes");
        Hub { emulator, folder, runtime }
    }

    pub(super) fn section(&self) -> String {
        format!(
            "[hub]\nmirror = \"device-twin\"\nrefresh = \"2s\"\nconnection_string_file = \"{}\"\nca_file = \"{}\"\n",
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

    /// Whether every twin shows this ownership.
    pub(super) fn shows(&self, owner: &str, epoch: u64) -> bool {
        DEVICES.iter().all(|device| {
            let twin = self.emulator.entry(&Target::device(device)).expect("exists").twin;
            let seen = FlagPath::default().read(&twin.desired.values);
            seen.flag.is_some_and(|flag| {
                flag.epoch == epoch && flag.leader == owner && flag.active == (*device == owner)
            })
        })
    }
}
