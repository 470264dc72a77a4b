//! The real sidecar: from a configuration to listeners, loops and faces, and back out again.
//!
//! Everything that can be wrong on this device is found before the member takes part in anything. What a restart may
//! mend (a port taken by a program that is just leaving) ends with one exit code, what it cannot (a data folder that
//! belongs to another device) with another.

use std::{path::Path, sync::Arc, time::Duration};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Environment, Node, care,
    door::{NodeDoor, Surroundings},
    events,
};
use crate::{
    clock::{BootClock, Clock},
    condition::{Condition, Raised},
    config::{self, Config},
    control::{self, lease_file::LeaseFile, socket::Socket},
    dice::Dice,
    hub::{
        self,
        edge::Identity,
        link::Module,
        mqtt::client::{Client, Line},
        rest::RestHub,
    },
    id::Incarnation,
    ownership::record::Cause,
    probe,
    raft::{
        log::{Amnesia, Disk, folder, quarantine, room},
        peer::transport::{TcpDialer, tcp},
    },
    status::{self, events::Events, metrics::Metrics, ring::Ring},
    workload::{self, Context},
};

/// Why the sidecar did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// This device is set up wrongly; a restart will not help.
    #[error("{0}")]
    Setup(String),
    /// Something that may pass.
    #[error("{0}")]
    Trouble(String),
}

/// How long to wait until whatever an earlier life left running is certainly gone.
const ORPHANS_LIMIT: Duration = Duration::from_secs(120);

/// How often is said what leaving waits for.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// How long a sidecar whose disk has failed stays to be seen.
const LINGER: Duration = Duration::from_secs(60);

/// Runs the sidecar until SIGTERM or Ctrl-C, then leaves in good order. If this device turns out to have lost its store, it
/// begins again with a later one.
///
/// # Errors
/// [`Failure`].
pub async fn run(config: Config) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| Failure::Trouble(e.to_string()))?;
    // A terminal that is closed ends no sidecar, and nothing is read anew: what is noted here is not looked at.
    let _hangup = signal(SignalKind::hangup()).map_err(|e| Failure::Trouble(e.to_string()))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| Failure::Trouble(e.to_string()))?;
    while life(&config, &mut terminate, &mut interrupt).await? == End::StartsOver {
        folder::start_over(&config.storage.path, random()?, &BootClock)
            .map_err(|e| Failure::Trouble(format!("the data folder cannot be written: {e}")))?;
    }
    Ok(())
}

/// How a life of the node ended.
#[derive(PartialEq, Eq)]
enum End {
    Left,
    StartsOver,
}

async fn life(config: &Config, terminate: &mut Signal, interrupt: &mut Signal) -> Result<End, Failure> {
    let clock: Arc<dyn Clock> = Arc::new(BootClock);
    let mut dice = Dice::new(random()?);
    let metrics = Metrics::new();
    let tasks = TaskTracker::new();
    let stop = CancellationToken::new();

    let hub = open_hub(config, &clock)?;
    let module = open_module(config, &clock)?;
    let syncs = metrics.clone();
    let on_sync = Arc::new(move |took| syncs.fsync(took));
    let folder =
        folder::open(&config.storage.path, &config.site, &config.me, clock.clone(), random()?, on_sync)
            .map_err(|e| match e {
                folder::Error::InUse(_) => Failure::Trouble(e.to_string()),
                // Somebody will make room or mend the disk, and then a restart helps.
                folder::Error::NotWritable(_, ref cause) if may_pass(cause) => {
                    Failure::Trouble(e.to_string())
                }
                _ => Failure::Setup(e.to_string()),
            })?;
    if folder.first_start {
        tracing::info!("first start: made the store in {}", config.storage.path.display());
    }
    let (ring, kept) = Ring::open(&config.storage.path);
    let noted = Events::after(kept);
    let bound = bind(config).await?;
    let (opened, workload_kind) = tokio::select! {
        opened = open_workload(config, &clock, &tasks, &stop) => opened?,
        _ = terminate.recv() => return Ok(End::Left),
        _ = interrupt.recv() => return Ok(End::Left),
    };

    let _lock = folder.lock;
    let disk: Arc<dyn Disk> = Arc::new(folder.disk);
    let environment = Environment {
        clock: clock.clone(),
        dice: dice.split(),
        incarnation: Incarnation(random()?),
        store: folder.store,
        disk,
        boot_refusal: folder.boot_refusal,
        dialer: Arc::new(TcpDialer),
        incoming: tcp(bound.peer),
        workload: opened.workload,
    };
    let node = Node::start(config.site.clone(), config.me.clone(), environment)
        .await
        .map_err(|e| Failure::Trouble(format!("consensus cannot start: {e:#}")))?;
    let node = Arc::new(node);
    node.compare_builds(config.differing_builds);

    let mirror = hub.map(|(hub, settings)| node.mirror(hub, settings, dice.split()));
    let (module, ends) = module.map(|module| node.module(module, &config.hub, dice.split())).unzip();
    let workload_conditions = opened.conditions;
    let surroundings =
        Surroundings { mirror, module, workload_kind, workload_conditions, events: noted.clone() };
    tasks.spawn(watch_room(node.clone(), config.storage.path.clone(), folder.amnesia, stop.clone()));
    let door = NodeDoor::open(node.clone(), surroundings, dice.split(), &tasks, stop.clone());
    if let Some(ends) = ends {
        door.speak(ends);
    }
    let (served, control_door, until) = (bound.control, door.clone(), stop.clone());
    tasks.spawn(async move {
        if let Err(e) = control::server::serve(served, control_door, until).await {
            tracing::error!("the control listener has ended: {e}");
        }
    });
    if let Some(socket) = bound.gate {
        let node = node.clone();
        let tell_of = move |why| node.ails("gate", why);
        tasks.spawn(control::gate::serve(socket, door.clone(), tell_of, stop.clone()));
    }
    if let config::Workload::Gate { lease_file: Some(path), .. } = &config.workload {
        let (file, node) = (LeaseFile::at(path.clone()), node.clone());
        tasks.spawn(file.keep(door.clone(), move |why| node.ails("lease_file", why), stop.clone()));
    }
    let watched = door.clone();
    tasks.spawn(status::server::serve(bound.http, door, metrics.clone(), stop.clone()));
    tasks.spawn(measure(node.clone(), metrics, stop.clone()));
    care::watch(config, &node, &tasks, &stop).map_err(Failure::Trouble)?;
    let probes = config.probes.iter().map(|settings| (settings.clone(), probe::open(settings))).collect();
    node.look_after(probes, config.moves.clone());
    let (until, told) = (stop.clone(), CancellationToken::new());
    // What is noted last is written too.
    tasks.spawn(ring.keep(noted, told.clone()));
    tasks.spawn(async move {
        events::observe(watched, until).await;
        told.cancel();
    });
    announce(config);

    let ended = tokio::select! {
        _ = terminate.recv() => Ok((End::Left, "SIGTERM")),
        _ = interrupt.recv() => Ok((End::Left, "Ctrl-C")),
        () = node.starts_over() => {
            let why = "the other members know another store of this device, so it begins again with a new one";
            Ok((End::StartsOver, why))
        }
        reason = node.failed() => Err(reason),
    };
    match &ended {
        Ok((End::Left, signal)) => tracing::info!("leaving: {signal}"),
        Ok((End::StartsOver, why)) => tracing::warn!(condition = "member.rejoining", "{why}"),
        Err(reason) => {
            tracing::error!("consensus has stopped on this device: {reason}");
            tokio::select! {
                () = linger(&node, &config.storage.path) => {}
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::error!("consensus has stopped, so this sidecar ends");
        }
    }
    let left = node.leave();
    tokio::select! {
        () = left => {}
        () = tell_of_waiting(&node) => {}
        _ = terminate.recv() => tracing::warn!("told twice: leaving at once"),
        _ = interrupt.recv() => tracing::warn!("told twice: leaving at once"),
    }
    stop.cancel();
    tasks.close();
    if tokio::time::timeout(config.site.timing.stop_grace() + Duration::from_secs(2), tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!("the workload's end was not confirmed in time; its fencer sees to it");
    }
    tracing::info!("left");
    ended.map(|(end, _)| end).map_err(|reason| Failure::Trouble(format!("consensus has stopped: {reason}")))
}

/// Says again and again why leaving takes so long.
async fn tell_of_waiting(node: &Node) {
    let mut tick = tokio::time::interval(TOLD_EVERY);
    tick.tick().await;
    loop {
        tick.tick().await;
        let workload = match &*node.observed.borrow() {
            workload::Observed::Stopped => "it hands over".to_owned(),
            workload::Observed::Running { pid: Some(pid), .. } => {
                format!("the workload runs (process {pid})")
            }
            observed if observed.may_run() => "the workload has not ended".to_owned(),
            _ => continue,
        };
        tracing::warn!(
            "leaving takes its time: {workload}; a second signal leaves at once, and the fencer goes on"
        );
    }
}

fn may_pass(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    // An error of the device itself (EIO) has no kind of its own.
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
        || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// After a failed write only a fresh start can tell what the disk holds. Until then this sidecar stays: it stops its
/// workload, tells the other members that it may not own, and shows what has happened. A minute is long enough for every
/// scrape, and short enough for a site that must not lose another device meanwhile; a full disk is waited for, because a
/// start would find it as full. Votes and the log are out of reach in any case: Raft has stopped.
async fn linger(node: &Node, folder: &Path) {
    let Some(failure) = node.group.disk_failed().borrow().clone() else { return };
    let mut left = LINGER.as_secs();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        left = left.saturating_sub(1);
        let room = room::free(folder).is_ok_and(|free| free > room::LOW);
        if (failure.full && room) || (!failure.full && left == 0) {
            return;
        }
    }
}

/// Looks after the room on the disk, and says what a person should know of the data folder.
async fn watch_room(
    node: Arc<Node>,
    folder: std::path::PathBuf,
    amnesia: Option<Amnesia>,
    stop: CancellationToken,
) {
    let mut tick = tokio::time::interval(Duration::from_secs(2));
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        // The disk may be slow, and whatever else this device does shall not wait for it.
        let looked_at = folder.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let free = room::free(&looked_at);
            room::set_aside(&looked_at);
            (free, quarantine::list(&looked_at))
        });
        let Ok((free, kept)) = looked.await else { continue };
        let mut raised = Vec::new();
        if let Ok(free) = free
            && free < room::LOW
        {
            let detail = format!("{} KiB are free for {}", free >> 10, folder.display());
            raised.push(Raised::new(Condition::DiskFull, detail));
        }
        if let Some(place) = kept.last() {
            let found = amnesia.as_ref().map_or("see found.txt in it", |a| a.found.as_str());
            let detail = format!("{}: {found}", place.display());
            raised.push(Raised::new(Condition::StoreQuarantined, detail));
        }
        node.tell_of_folder(raised);
    }
}

fn random() -> Result<u64, Failure> {
    let mut bytes = [0; 8];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Failure::Trouble("the system has no random numbers".into()))?;
    Ok(u64::from_le_bytes(bytes))
}

struct Bound {
    peer: TcpListener,
    control: control::server::Listeners,
    gate: Option<Socket>,
    http: TcpListener,
}

/// Opens all listeners, and names all that cannot be.
async fn bind(config: &Config) -> Result<Bound, Failure> {
    let mut faults = Vec::new();
    let peer = listen(config.peer.listen, "peer.listen", &mut faults).await;
    let http = listen(config.http.listen, "http.listen", &mut faults).await;
    let tcp = match config.control.listen {
        Some(address) => listen(address, "control.listen", &mut faults).await,
        None => None,
    };
    let socket = at_path(config.control.socket.as_deref(), "control.socket", &mut faults).await;
    let gate = match &config.workload {
        config::Workload::Gate { socket, .. } => {
            at_path(socket.as_deref(), "workload.socket", &mut faults).await
        }
        _ => None,
    };
    match (peer, http) {
        (Some(peer), Some(http)) if faults.is_empty() => {
            Ok(Bound { peer, http, gate, control: control::server::Listeners { tcp, socket } })
        }
        _ => Err(Failure::Trouble(faults.join("\n"))),
    }
}

async fn at_path(path: Option<&Path>, key: &str, faults: &mut Vec<String>) -> Option<Socket> {
    let path = path?;
    Socket::bind(path).await.map_err(|e| faults.push(format!("{key}: {e}"))).ok()
}

async fn listen(address: std::net::SocketAddr, key: &str, faults: &mut Vec<String>) -> Option<TcpListener> {
    #[expect(clippy::disallowed_methods, reason = "these are the real listeners")]
    match TcpListener::bind(address).await {
        Ok(listener) => Some(listener),
        Err(e) => {
            let hint = match e.kind() {
                std::io::ErrorKind::AddrInUse => "; another program, or another sidecar, listens there",
                std::io::ErrorKind::AddrNotAvailable => "; this device has no such address",
                _ => "",
            };
            faults.push(format!("{key}: cannot listen on {address}: {e}{hint}"));
            None
        }
    }
}

/// Makes sure that nothing of an earlier life runs, whatever the kind is now, and makes the workload.
async fn open_workload(
    config: &Config,
    clock: &Arc<dyn Clock>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<(workload::Opened, &'static str), Failure> {
    let (settings, kind) = config.workload.settings(&config.site.timing);
    let others = config.site.members.iter().filter(|m| m.device != config.me);
    let context = Context {
        program: None,
        data: absolute(&config.storage.path),
        device: config.me.clone(),
        site: config.site.id.clone(),
        site_digest: config.site.digest(),
        members: others.map(|m| m.address.clone()).collect(),
        control_socket: config.control.socket.clone(),
        notify: notify_socket(config),
        cgroup: true,
        adopts: workload::adopt(),
        timing: config.site.timing,
        clock: clock.clone(),
        tracker: tasks.clone(),
        leave: stop.clone(),
    };
    tracing::info!("making sure that nothing runs here that an earlier sidecar has started");
    let opened = workload::open(&settings, context, clock.now() + ORPHANS_LIMIT).await.map_err(|e| {
        Failure::Trouble(format!("what an earlier sidecar left running cannot be ruled out: {e}"))
    })?;
    Ok((opened, kind))
}

/// Where a workload says that it is ready: beside the control socket, where another user can get to it more easily than into the data
/// folder.
fn notify_socket(config: &Config) -> std::path::PathBuf {
    let beside = config.control.socket.as_deref().and_then(Path::parent);
    beside.map_or_else(|| absolute(&config.storage.path), Path::to_owned).join("notify.sock")
}

fn absolute(path: &Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

type OpenedHub = Option<(hub::Handle, hub::Settings)>;

fn open_hub(config: &Config, clock: &Arc<dyn Clock>) -> Result<OpenedHub, Failure> {
    let settings = config.hub.clone();
    if !settings.mirror.devices() {
        return Ok(None);
    }
    let hub = RestHub::open(&settings, clock.clone()).map_err(|faults| {
        let lines: Vec<_> =
            faults.iter().map(|f| format!("hub.{}: {}; {}", f.setting, f.problem, f.advice)).collect();
        Failure::Setup(lines.join("\n"))
    })?;
    Ok(Some((Arc::new(hub), settings)))
}

/// The line of the sidecar's own module, if its twin is to be written.
fn open_module(config: &Config, clock: &Arc<dyn Clock>) -> Result<Option<Arc<dyn Module>>, Failure> {
    let settings = &config.hub;
    let identity = Identity::open(settings)
        .map_err(|f| Failure::Setup(format!("hub.{}: {}; {}", f.setting, f.problem, f.advice)))?;
    let Some(identity) = identity else { return Ok(None) };
    let line = Line {
        identity,
        inputs: settings.gate.is_some(),
        ca_file: settings.ca_file.clone(),
        timeout: settings.timeout,
    };
    Ok(Some(Arc::new(Client::new(line, clock.clone()))))
}

/// Feeds what is counted and timed into the metrics.
async fn measure(node: Arc<Node>, metrics: Metrics, stop: CancellationToken) {
    let (mut record, mut observed) = (node.group.record(), node.observed.clone());
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut epoch = record.borrow().record.epoch;
    let mut elections = 0;
    let mut silent_since = None;
    let roster = node.group.roster().clone();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {
                for (id, contact) in roster.contacts() {
                    if let (Some(device), Some(rtt)) = (roster.device_of(id), contact.round_trip) {
                        metrics.peer_rtt(device.as_str(), rtt);
                    }
                }
                let begun = node.elections.load(std::sync::atomic::Ordering::Relaxed);
                (elections..begun).for_each(|_| metrics.election());
                elections = begun;
            }
            Ok(()) = record.changed() => {
                let now = record.borrow_and_update().record.clone();
                if now.epoch > epoch && let Some(change) = now.history.back() {
                    metrics.ownership_changed(change.cause.name());
                    let before = now.history.iter().rev().nth(1).map(|c| c.device.clone());
                    let takes_over = change.device == roster.me && matches!(change.cause, Cause::OwnerLost | Cause::OwnerStopped);
                    // The old owner was last heard then; from there on nobody may have run.
                    silent_since = before.filter(|_| takes_over).and_then(|old| roster.contact(&old)?.heard);
                }
                epoch = now.epoch;
            }
            Ok(()) = observed.changed() => {
                let running = matches!(*observed.borrow_and_update(), workload::Observed::Running { .. });
                if running && let Some(since) = silent_since.take() {
                    metrics.takeover(node.clock().now().since(since));
                }
            }
            else => return,
        }
    }
}

fn announce(config: &Config) {
    let socket =
        config.control.socket.as_ref().map_or_else(String::new, |s| format!(", unix:{}", s.display()));
    let control = config.control.listen.map_or_else(|| "none".to_owned(), |c| format!("http://{c}"));
    tracing::info!("other members reach this one at {}", config.peer.listen);
    tracing::info!("control (gRPC) at {control}{socket}");
    tracing::info!("status page, health and metrics at http://{}", config.http.listen);
}
