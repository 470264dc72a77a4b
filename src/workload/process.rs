//! Kind `process`: the workload is a process of this device, started and ended by a fencer.
//!
//! [`ProcessWorkload`] is a handle; behind it one task (`driver.rs`) owns the link to the fencer and turns
//! its events into what is observed.
//!
//! **Orphans first, then claim anew.** From its making on, a `ProcessWorkload` has a fencer take the lock in the data
//! folder; the fencer of an earlier life holds that lock until nothing of its workload runs, and whatever a killed
//! fencer left behind is ended before the new one reports ready. Until then [`Observed::Stopping`] with epoch zero is
//! shown, and nothing starts. A restarted sidecar must await [`ProcessWorkload::ensure_none_running`] before it takes
//! part in anything that could make it owner; the stop receipts of its earlier life are sound only because of that.
//!
//! If the fencer is lost, the workload's main process dies with it, the sidecar kills the rest at once, and the next
//! fencer makes sure of it; only its readiness makes `Stopped` true again. A fencer that gives no sign of life
//! (`pulse.rs`), or has not reported the end early enough before deadline plus grace, is lost as well.
//!
//! Deliberately not here: the deadline and the restarts (`fence.rs`). A sidecar that hangs must not matter to them.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    BoxFuture, Error, Grant, HeldBy, Observed, Settings, Words, Workload,
    driver::{Ask, Driver, Shown},
    secrets::Secrets,
};
use crate::{
    clock::{Clock, Moment, sleep_until},
    condition::Raised,
    epoch::Epoch,
    id::{DeviceId, SiteId},
    seal::Seal,
    timing::Timing,
};

/// The lock's name inside the data folder.
pub const LOCK_FILE: &str = "fencer.lock";
/// What systemd tells its service, and nobody below it.
const OF_THE_SIDECAR: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// What a process workload needs from its surroundings.
#[derive(Debug, Clone)]
pub struct Context {
    /// The binary that contains the fencer. `None`: this very binary, also if its file has been replaced since.
    pub program: Option<PathBuf>,
    /// The sidecar's data folder, which must exist. No two sidecars share one.
    pub data: PathBuf,
    /// This device; the workload sees it as `QUORATE_DEVICE`.
    pub device: DeviceId,
    /// This site; the workload sees it as `QUORATE_SITE`.
    pub site: SiteId,
    /// The digest of the site, which a receipt names.
    pub site_digest: u64,
    /// Where the other members listen (`host:port`): the fencer tells them if it loses this sidecar.
    pub members: Vec<String>,
    /// The control socket; the workload sees it as `QUORATE_CONTROL_SOCKET`.
    pub control_socket: Option<PathBuf>,
    /// Where the workload says that it is ready, if it has to. Its folder exists, and its user can get there.
    pub notify: PathBuf,
    /// Whether the workload gets a cgroup of its own, where that is possible.
    pub cgroup: bool,
    /// Whether the orphans of lost fencers come to this process ([`super::adopt`]).
    pub adopts: bool,
    /// Where the grace comes from.
    pub timing: Timing,
    /// The boot clock. The fencer reads the real one, so only that one makes sense outside of tests.
    pub clock: Arc<dyn Clock>,
    /// Where tasks are spawned.
    pub tracker: TaskTracker,
    /// Cancelled when the sidecar leaves: the workload is stopped then.
    pub leave: CancellationToken,
}

/// A workload that is a process. Dropping it stops the workload.
#[derive(Debug)]
pub struct ProcessWorkload {
    asks: mpsc::UnboundedSender<Ask>,
    observed: watch::Receiver<Observed>,
    conditions: watch::Receiver<Vec<Raised>>,
    secrets: Arc<Mutex<Secrets>>,
    held_by: watch::Receiver<Option<HeldBy>>,
    words: Option<watch::Receiver<Words>>,
    clock: Arc<dyn Clock>,
}

impl ProcessWorkload {
    /// Begins to make sure that nothing of an earlier life runs; starts no workload. `settings` must have no faults.
    /// Must be called inside a tokio runtime.
    pub fn new(settings: &Settings, context: Context) -> ProcessWorkload {
        let (asks, inbox) = mpsc::unbounded_channel();
        let secrets = Arc::<Mutex<Secrets>>::default();
        let shown = Shown {
            // Until the first fencer is ready nobody knows what an earlier life left running.
            observed: watch::Sender::new(Observed::Stopping { epoch: Epoch::ZERO }),
            conditions: watch::Sender::new(Vec::new()),
            held_by: watch::Sender::new(None),
            words: watch::Sender::new(Words::default()),
        };
        let workload = ProcessWorkload {
            asks,
            held_by: shown.held_by.subscribe(),
            words: settings.ready.map(|_| shown.words.subscribe()),
            secrets: secrets.clone(),
            observed: shown.observed.subscribe(),
            conditions: shown.conditions.subscribe(),
            clock: context.clock.clone(),
        };
        let driver = Driver::new(settings.clone(), context.clone(), inbox, secrets, shown);
        context.tracker.spawn(driver.run());
        workload
    }

    /// Waits until nothing of an earlier life runs and a fencer of this life is ready. Await this before the sidecar
    /// takes part in anything that could make it owner. Cancel-safe; can be called again.
    ///
    /// # Errors
    /// [`Error::Fencer`] if that is not certain by the moment `by`, with what stands in the way.
    pub async fn ensure_none_running(&self, by: Moment) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Ready(reply), answer, by).await
    }

    /// `fencer.lost`, `workload.crashing` and `workload.cannot_start`, as far as they hold now.
    pub fn conditions(&self) -> watch::Receiver<Vec<Raised>> {
        self.conditions.clone()
    }

    async fn ask(
        &self,
        ask: Ask,
        answer: oneshot::Receiver<Result<(), Error>>,
        by: Moment,
    ) -> Result<(), Error> {
        self.asks.send(ask).map_err(|_| left())?;
        tokio::select! {
            answer = answer => answer.unwrap_or_else(|_| Err(left())),
            () = sleep_until(&*self.clock, by) => Err(Error::Fencer(
                "is not ready: it waits for the remains of an earlier life to end".into(),
            )),
        }
    }
}

fn left() -> Error {
    Error::Fencer("is not asked any more: the sidecar is leaving".into())
}

impl Workload for ProcessWorkload {
    fn start(&self, grant: Grant) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            self.asks.send(Ask::Start(grant, reply)).map_err(|_| left())?;
            answer.await.unwrap_or_else(|_| Err(left()))
        })
    }

    fn extend(&self, until: Moment) {
        // A driver that has left has stopped the workload: there is nothing to extend.
        let _ = self.asks.send(Ask::Extend(until));
    }

    fn stop(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            if self.asks.send(Ask::Stop(reply)).is_err() {
                let stopped = *self.observed.borrow() == Observed::Stopped;
                return if stopped { Ok(()) } else { Err(left()) };
            }
            answer.await.unwrap_or_else(|_| Err(left()))
        })
    }

    fn observe(&self) -> watch::Receiver<Observed> {
        self.observed.clone()
    }

    fn seal(&self) -> Option<Seal> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner).seal()
    }

    fn held_by(&self) -> Option<HeldBy> {
        *self.held_by.borrow()
    }

    fn words(&self) -> Option<watch::Receiver<Words>> {
        self.words.clone()
    }

    fn burned(&self) -> Option<Epoch> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner).burned()
    }
}

/// The environment of the fencer, and so of the workload: the sidecar's own without its settings, which may hold
/// secrets, and without what a supervisor has told the sidecar alone, plus what the configuration and the contract say.
pub(super) fn environment(settings: &Settings, context: &Context) -> BTreeMap<OsString, OsString> {
    let mut environment: BTreeMap<OsString, OsString> = std::env::vars_os()
        .filter(|(name, _)| !name.as_encoded_bytes().starts_with(b"QUORATE_"))
        .filter(|(name, _)| !OF_THE_SIDECAR.iter().any(|own| name == own))
        .chain(settings.env.iter().map(|(name, value)| (name.into(), value.into())))
        .collect();
    environment.insert("QUORATE_DEVICE".into(), context.device.as_str().into());
    environment.insert("QUORATE_SITE".into(), context.site.as_str().into());
    if let Some(demand) = &settings.ready {
        environment.insert("NOTIFY_SOCKET".into(), context.notify.clone().into());
        if let Some(watchdog) = demand.watchdog {
            environment.insert("WATCHDOG_USEC".into(), watchdog.as_micros().to_string().into());
        }
    }
    if let Some(socket) = &context.control_socket {
        environment.insert("QUORATE_CONTROL_SOCKET".into(), socket.into());
    }
    environment
}
