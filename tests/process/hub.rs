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
    _runtime: tokio::runtime::Runtime,
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
        Hub { emulator, folder, _runtime: runtime }
    }

    pub(super) fn section(&self) -> String {
        format!(
            "[hub]\nmirror = \"device-twin\"\nrefresh = \"2s\"\nconnection_string_file = \"{}\"\nca_file = \"{}\"\n",
            self.folder.path().join("connection-string").display(),
            self.folder.path().join("ca.pem").display(),
        )
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
