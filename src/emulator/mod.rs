//! An IoT Hub to try things on, without Azure: the service REST API over TLS, on this machine.
//!
//! How it is unlike the real hub: it keeps everything in memory; its certificate authority and its policies' keys are
//! made at each start; queries see every write at once, where the real hub may lag by minutes; it has no quotas and no
//! rates unless a trouble is switched on; it has no MQTT, no methods, no messages, no jobs, no configurations, no bulk
//! registry calls and no Entra tokens. What it has follows the recorded behaviour of the real hub: the merge, `$version`,
//! `$metadata`, etags, `If-Match` with its traps, limits, error bodies and headers. It is a tool for development and
//! never part of a production image.

mod admin;
mod answer;
mod ca;
mod policies;
mod query;
mod routes;
mod wire;

use std::{
    collections::VecDeque,
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::Clock,
    hub::{
        memory::Trouble,
        store::{Entry, IfMatch, Refusal, Store, Target, Write},
        twin::{Change, Manner, Properties},
        wall,
    },
    id::DeviceId,
};

/// The most writes remembered; the oldest are forgotten first.
const LOG_MAX: usize = 50_000;

/// What can go wrong at start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listener cannot be used.
    #[error("a listener cannot be used: {0}")]
    Listener(#[from] io::Error),
    /// The host for the connection strings is no host name.
    #[error("{0:?} is not a host name")]
    Host(String),
    /// Keys or certificates cannot be made.
    #[error("keys or certificates cannot be made: {0}")]
    Keys(String),
}

/// What the emulator starts with.
#[derive(Debug, Clone)]
pub struct Options {
    /// IoT Edge devices that exist from the start.
    pub devices: Vec<DeviceId>,
    /// The host in the connection strings: a name or an IPv4 address, without port. The certificate bears it. Default
    /// `localhost`.
    pub host: String,
    /// Further names and addresses for the certificate, beside `localhost`, `127.0.0.1` and `::1`.
    pub names: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options { devices: Vec::new(), host: "localhost".into(), names: Vec::new() }
    }
}

/// What both faces, the hub's and the admin's, work on.
struct State {
    store: Mutex<Store>,
    log: Mutex<Log>,
    trouble: Mutex<Trouble>,
    /// Cancelled to cut every connection there is; then replaced.
    line: Mutex<CancellationToken>,
    policies: policies::Policies,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Log {
    forgotten: u64,
    writes: VecDeque<Write>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn at(&self) -> String {
        wall::rfc3339(self.clock.wall_ms())
    }

    fn trouble(&self) -> Trouble {
        *lock(&self.trouble)
    }

    fn set_trouble(&self, trouble: Trouble) {
        *lock(&self.trouble) = trouble;
        if trouble == Trouble::Unreachable {
            let mut line = lock(&self.line);
            line.cancel();
            *line = self.stop.child_token();
        }
        tracing::info!(?trouble, "the emulated hub's trouble was switched");
    }

    fn change(
        &self,
        target: &Target,
        change: &Change,
        manner: Manner,
        if_match: &IfMatch,
    ) -> Result<Entry, Refusal> {
        let (at, now) = (self.at(), self.clock.now());
        // The log is locked first, so that its order is the order of the writes.
        let mut log = lock(&self.log);
        let entry = lock(&self.store).change(target, change, manner, if_match, &at)?.clone();
        if log.writes.len() >= LOG_MAX {
            log.writes.pop_front();
            log.forgotten += 1;
        }
        log.writes.push_back(Write {
            at: now,
            target: target.clone(),
            change: change.clone(),
            version: entry.twin.version,
        });
        Ok(entry)
    }
}

/// A running emulator. Dropping it ends it without waiting; [`Emulator::stop`] waits.
pub struct Emulator {
    state: Arc<State>,
    ca_pem: String,
    address: SocketAddr,
    admin_address: SocketAddr,
    host: String,
}

impl Emulator {
    /// Starts serving the hub on `hub` (TLS) and the switches on `admin` (plain HTTP: keep it on loopback). Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error`]; then nothing is left running.
    pub fn start(
        hub: TcpListener,
        admin: TcpListener,
        options: &Options,
        clock: Arc<dyn Clock>,
    ) -> Result<Emulator, Error> {
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if options.host.is_empty() || !options.host.chars().all(plain) {
            return Err(Error::Host(options.host.clone()));
        }
        let (address, admin_address) = (hub.local_addr()?, admin.local_addr()?);
        hub.set_nonblocking(true)?;
        admin.set_nonblocking(true)?;
        let hub = tokio::net::TcpListener::from_std(hub)?;
        let admin = tokio::net::TcpListener::from_std(admin)?;
        let mut names = vec![options.host.clone()];
        names.extend(options.names.iter().cloned());
        let authority = ca::Authority::new(&names).map_err(|why| Error::Keys(why.to_string()))?;
        let policies = policies::Policies::new().map_err(|why| Error::Keys(why.to_string()))?;
        let stop = CancellationToken::new();
        let state = Arc::new(State {
            store: Mutex::default(),
            log: Mutex::default(),
            trouble: Mutex::default(),
            line: Mutex::new(stop.child_token()),
            policies,
            clock,
            stop,
            tasks: TaskTracker::new(),
        });
        let emulator = Emulator {
            state: state.clone(),
            ca_pem: authority.ca_pem,
            address,
            admin_address,
            host: options.host.clone(),
        };
        for device in &options.devices {
            emulator.create_device(device);
        }
        wire::serve(hub, authority.tls, &state);
        admin::serve(admin, &state);
        Ok(emulator)
    }

    /// Where the hub listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the switches are: `http://{this}/emulator/…`.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// The certificate authority to trust, as PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The connection string of the policy `service` (ServiceConnect).
    pub fn service_connection_string(&self) -> String {
        self.connection_string("service")
    }

    /// The connection string of the policy `iothubowner` (all rights).
    pub fn owner_connection_string(&self) -> String {
        self.connection_string("iothubowner")
    }

    fn connection_string(&self, policy: &str) -> String {
        let key = self.state.policies.key_base64(policy).unwrap_or_default();
        format!(
            "HostName={}:{};SharedAccessKeyName={policy};SharedAccessKey={key}",
            self.host,
            self.address.port()
        )
    }

    /// Switches to this trouble. Switching to [`Trouble::Unreachable`] cuts every connection at once.
    pub fn trouble(&self, trouble: Trouble) {
        self.state.set_trouble(trouble);
    }

    /// Creates an IoT Edge device; one that exists stays as it is.
    pub fn create_device(&self, device: &DeviceId) {
        let at = self.state.at();
        let created = lock(&self.state.store).create(&Target::device(device.as_str()), true, &at).is_ok();
        tracing::debug!(%device, created, "device in the emulated hub");
    }

    /// Deletes a device, its modules and twins, if it exists.
    pub fn delete_device(&self, device: &DeviceId) {
        let gone = lock(&self.state.store).delete(&Target::device(device.as_str()), &IfMatch::Any).is_ok();
        tracing::debug!(%device, gone, "device no longer in the emulated hub");
    }

    /// A twin with its identity, past all trouble.
    pub fn entry(&self, target: &Target) -> Option<Entry> {
        lock(&self.state.store).get(target).ok().cloned()
    }

    /// A write by somebody else, past all trouble.
    ///
    /// # Errors
    /// As the hub would refuse it.
    pub fn meddle(&self, target: &Target, change: &Change) -> Result<Entry, Refusal> {
        self.state.change(target, change, Manner::Merge, &IfMatch::Any)
    }

    /// What a device or module says of itself, past all trouble.
    ///
    /// # Errors
    /// As the hub would refuse it.
    pub fn report(&self, target: &Target, patch: &Properties) -> Result<Entry, Refusal> {
        let at = self.state.at();
        lock(&self.state.store).report(target, patch, &at).cloned()
    }

    /// The accepted writes, oldest first, as far as they are remembered.
    pub fn log(&self) -> Vec<Write> {
        lock(&self.state.log).writes.iter().cloned().collect()
    }

    /// Ends all listeners and connections and waits for them.
    pub async fn stop(self) {
        self.state.stop.cancel();
        self.state.tasks.close();
        self.state.tasks.wait().await;
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.state.stop.cancel();
        self.state.tasks.close();
    }
}
