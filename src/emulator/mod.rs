//! An IoT Hub to try things on, without Azure: the service REST API over TLS, on this machine.
//!
//! How it is unlike the real hub: it keeps everything in memory; its certificate authority and its policies' keys are
//! made at each start; queries see every write at once and deployments take effect at once, where the real hub may lag by
//! minutes; it has no quotas and no rates unless a tier or a trouble is switched on; it has no AMQP, no messages to devices and
//! no jobs. What it has follows the recorded behaviour of the real hub: the merge, `$version`,
//! `$metadata`, etags, `If-Match` with its traps, limits, error bodies and headers. It is a tool for development and
//! never part of a production image.

mod admin;
mod answer;
mod asked;
mod authority;
mod ca;
mod configurations;
mod deploy;
mod edge;
mod entra;
mod gate;
mod methods;
mod mqtt;
mod page;
mod policies;
mod query;
mod registry;
mod routes;
mod wire;

pub use authority::Application;
pub use edge::{EdgeHub, EdgeOptions, Image};
pub use mqtt::Message;

use std::{
    collections::VecDeque,
    io,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::Clock,
    hub::{
        memory::{Rollback, Trouble},
        store::{Entry, IfMatch, Refusal, Stamp, Store, Target, Write},
        throttle::{Count, Operation, Plan},
        trouble::Rule,
        twin::{Change, Manner, Properties},
        wall,
    },
    id::DeviceId,
};

pub use entra::Role;

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
    /// The limits of a tier; without, there are none.
    pub plan: Option<Plan>,
}

impl Default for Options {
    fn default() -> Self {
        Options { devices: Vec::new(), host: "localhost".into(), names: Vec::new(), plan: None }
    }
}

/// What both faces, the hub's and the admin's, work on.
struct State {
    store: Mutex<Store>,
    log: Mutex<Log>,
    gate: Mutex<gate::Gate>,
    /// Counts what the page shows.
    touched: watch::Sender<u64>,
    /// Cancelled to cut every connection there is; then replaced.
    line: Mutex<CancellationToken>,
    policies: policies::Policies,
    tenant: entra::Tenant,
    directory: authority::Directory,
    devices: mqtt::Devices,
    configurations: Mutex<configurations::Configurations>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Log {
    forgotten: u64,
    writes: VecDeque<Write>,
    rollbacks: Vec<Rollback>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn stamp(&self) -> Stamp {
        Stamp::now(&*self.clock)
    }

    fn at(&self) -> String {
        wall::rfc3339(self.clock.wall_ms())
    }

    /// A device's or module's own key.
    fn device_key(&self, who: &Target, which: &str) -> Option<Vec<u8>> {
        let name = format!("{}\n{}", who.device, who.module.as_deref().unwrap_or_default());
        Some(self.policies.device_key(&name, which))
    }

    fn report(&self, target: &Target, patch: &Properties) -> Result<Entry, Refusal> {
        let entry = lock(&self.store).report(target, patch, self.stamp()).cloned()?;
        self.touch();
        Ok(entry)
    }

    fn change(
        &self,
        target: &Target,
        change: &Change,
        manner: Manner,
        if_match: &IfMatch,
    ) -> Result<Entry, Refusal> {
        let at = self.stamp();
        // The log is locked first, so that its order is the order of the writes.
        let mut log = lock(&self.log);
        let (before, entry) = {
            let mut store = lock(&self.store);
            let before = store.get(target)?.twin.desired.values.clone();
            (before, store.change(target, change, manner, if_match, at)?.clone())
        };
        if log.writes.len() >= LOG_MAX {
            log.writes.pop_front();
            log.forgotten += 1;
        }
        log.writes.push_back(Write {
            at: at.moment,
            target: target.clone(),
            change: change.clone(),
            version: entry.twin.version,
        });
        // Still under the log's lock, so that devices hear of the changes in their order.
        if let Some(desired) = &change.desired {
            self.desired_changed(&entry, &before, desired, manner);
        }
        drop(log);
        self.touch();
        Ok(entry)
    }
}

/// A running emulator. Dropping it ends it without waiting; [`Emulator::stop`] waits.
pub struct Emulator {
    state: Arc<State>,
    ca_pem: String,
    tls: Arc<rustls::ServerConfig>,
    authority: Arc<ca::Authority>,
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
        let authority = ca::Authority::new().map_err(|why| Error::Keys(why.to_string()))?;
        let tls = authority.server(&names).map_err(|why| Error::Keys(why.to_string()))?;
        let policies = policies::Policies::new().map_err(|why| Error::Keys(why.to_string()))?;
        let tenant = entra::Tenant::new().map_err(|why| Error::Keys(why.to_string()))?;
        let stop = CancellationToken::new();
        let state = Arc::new(State {
            store: Mutex::default(),
            log: Mutex::default(),
            gate: Mutex::new(gate::Gate::new(options.plan)),
            touched: watch::channel(0).0,
            line: Mutex::new(stop.child_token()),
            policies,
            tenant,
            directory: authority::Directory::new(),
            devices: mqtt::Devices::new(&ca::names(&names)),
            configurations: Mutex::default(),
            clock,
            stop,
            tasks: TaskTracker::new(),
        });
        let emulator = Emulator {
            state: state.clone(),
            ca_pem: authority.pem(),
            tls: tls.clone(),
            authority: Arc::new(authority),
            address,
            admin_address,
            host: options.host.clone(),
        };
        for device in &options.devices {
            emulator.create_device(device);
        }
        let asked = state.clone();
        let gate = Box::new(move || (!asked.is_cut_off()).then(|| asked.line()));
        wire::serve(hub, tls, gate, routes::router(state.clone()), &state);
        admin::serve(admin, &state);
        Ok(emulator)
    }

    /// Serves the token services of Azure Arc and of virtual machines on `listener` (plain HTTP: keep it on loopback), at
    /// `/metadata/identity/oauth2/token`. Arc's proofs are written into `folder`, which is made if need be; Microsoft's
    /// clients accept none but `/var/opt/azcmagent/tokens`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Listener`], also if the folder cannot be used.
    pub fn serve_identity(&self, listener: TcpListener, folder: &Path) -> Result<SocketAddr, Error> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        entra::serve(tokio::net::TcpListener::from_std(listener)?, folder, &self.state)?;
        Ok(address)
    }

    /// Gives the identity these roles at the hub and no others, and its future tokens this life. At first it is
    /// [`Role::TwinContributor`], with tokens for a day.
    pub fn assign(&self, roles: &[Role], life: Duration) {
        self.state.tenant.set_rules(entra::Rules { roles: roles.to_vec(), life_s: life.as_secs() });
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

    /// The connection string of this policy: one of the two above, `registryRead` or `registryReadWrite`.
    pub fn connection_string(&self, policy: &str) -> String {
        let key = self.state.policies.key_base64(policy).unwrap_or_default();
        format!(
            "HostName={}:{};SharedAccessKeyName={policy};SharedAccessKey={key}",
            self.host,
            self.address.port()
        )
    }

    /// Ends all troubles and switches to this one. Switching to [`Trouble::Unreachable`] cuts every connection at once.
    pub fn trouble(&self, trouble: Trouble) {
        self.state.set_trouble(trouble);
    }

    /// Switches a trouble on beside the others and returns its number.
    ///
    /// # Errors
    /// One sentence, if the rule is wrong or too many are on.
    pub fn add_trouble(&self, rule: Rule) -> Result<u64, String> {
        self.state.add_trouble(rule)
    }

    /// Switches the trouble of this number off. `false` if it was not on.
    pub fn end_trouble(&self, id: u64) -> bool {
        lock(&self.state.gate).troubles.remove(id)
    }

    /// From now on the chances of troubles are thrown from this seed.
    pub fn seed(&self, seed: u64) {
        lock(&self.state.gate).troubles.seed(seed);
    }

    /// Loses what was written in the last while (at most ten minutes) and cuts every connection, as a failover to another
    /// region does. Returns how many changes are lost.
    pub fn rollback(&self, by: Duration) -> usize {
        self.state.rollback(by)
    }

    /// Every [`rollback`](Self::rollback) so far, oldest first.
    pub fn rollbacks(&self) -> Vec<Rollback> {
        lock(&self.state.log).rollbacks.clone()
    }

    /// What the limits have let through so far, of this kind of operation.
    pub fn count(&self, operation: Operation) -> Count {
        lock(&self.state.gate).counted(operation)
    }

    /// Creates an IoT Edge device; one that exists stays as it is.
    pub fn create_device(&self, device: &DeviceId) {
        let at = self.state.stamp();
        let created = lock(&self.state.store).create(&Target::device(device.as_str()), true, at).is_ok();
        tracing::debug!(%device, created, "device in the emulated hub");
    }

    /// Creates a module of a device that exists; one that exists stays as it is.
    pub fn create_module(&self, target: &Target) {
        let at = self.state.stamp();
        let created = lock(&self.state.store).create(target, false, at).is_ok();
        tracing::debug!(%target, created, "module in the emulated hub");
    }

    /// Enables or disables a device.
    pub fn enable_device(&self, device: &DeviceId, enabled: bool) {
        let (at, target) = (self.state.stamp(), Target::device(device.as_str()));
        let changed = lock(&self.state.store).update(&target, enabled, true, &IfMatch::Any, at).is_ok();
        self.state.registry_changed();
        tracing::debug!(%device, enabled, changed, "device switched in the emulated hub");
    }

    /// Deletes a device, its modules and twins, if it exists.
    pub fn delete_device(&self, device: &DeviceId) {
        let (at, target) = (self.state.stamp(), Target::device(device.as_str()));
        let gone = lock(&self.state.store).delete(&target, &IfMatch::Any, at).is_ok();
        self.state.registry_changed();
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
        let entry = self.state.change(target, change, Manner::Merge, &IfMatch::Any)?;
        self.state.deploy();
        Ok(entry)
    }

    /// What a device or module says of itself, past all trouble.
    ///
    /// # Errors
    /// As the hub would refuse it.
    pub fn report(&self, target: &Target, patch: &Properties) -> Result<Entry, Refusal> {
        self.state.report(target, patch)
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
