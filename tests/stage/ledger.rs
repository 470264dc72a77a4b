//! When the workload ran, in true time: the simulated workload writes it down, the promises are checked on it.
//!
//! The simulated workload is as bad as its contract allows: it runs to the very last nanosecond of its deadline and
//! grace, and takes its time to stop. Its fencer's behaviour without a sidecar is part of the model.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use quorate::{
    clock::{Clock, Moment, sleep_until},
    epoch::Epoch,
    id::DeviceId,
    timing::Timing,
    workload::{BoxFuture, Error, Grant, Observed, Workload},
};
use tokio::sync::{Notify, watch};

/// One stretch of running, in true (simulated) time since the beginning.
#[derive(Debug, Clone)]
pub struct Run {
    pub device: DeviceId,
    pub epoch: Epoch,
    pub from: Duration,
    /// `None` while it lasts.
    pub to: Option<Duration>,
}

#[derive(Default)]
struct Book {
    runs: Vec<Run>,
    version: u64,
    /// After a sidecar's death: until when its workload lives on, in true time.
    orphans: BTreeMap<DeviceId, Duration>,
    /// Devices whose workload cannot be ended now, as in an uninterruptible wait of the kernel.
    stuck: BTreeSet<DeviceId>,
    /// Who said who owns under which epoch, and until when that was to stay true.
    told: BTreeMap<(DeviceId, DeviceId, u64), Duration>,
    lies: Vec<String>,
}

/// All runs of all devices. Clones share it.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Mutex<Book>>);

fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, device: &DeviceId, epoch: Epoch) {
        let mut book = self.book();
        book.version += 1;
        book.runs.push(Run { device: device.clone(), epoch, from: now(), to: None });
    }

    fn end(&self, device: &DeviceId, at: Duration) {
        let mut book = self.book();
        book.orphans.remove(device);
        book.version += 1;
        for run in book.runs.iter_mut().filter(|r| r.device == *device && r.to.is_none()) {
            run.to = Some(at);
        }
    }

    /// From now on the device's workload cannot be ended, or can be again.
    pub fn stick(&self, device: &DeviceId, stuck: bool) {
        let mut book = self.book();
        if stuck {
            book.stuck.insert(device.clone());
        } else {
            book.stuck.remove(device);
        }
    }

    fn is_stuck(&self, device: &DeviceId) -> bool {
        self.book().stuck.contains(device)
    }

    /// `speaker` says that `owner` owns under `epoch` and that this stays true for `left`.
    pub fn told(&self, speaker: &DeviceId, owner: &DeviceId, epoch: u64, left: Duration) {
        let (now, slack) = (now(), Duration::from_millis(2));
        let mut book = self.book();
        let false_now: Vec<String> = book
            .told
            .iter()
            .filter(|((_, who, of), until)| (who, *of) != (owner, epoch) && **until > now + slack)
            .map(|((by, who, of), until)| {
                format!(
                    "at {now:?} {speaker} says {owner} epoch {epoch}; {by} said {who} epoch {of} until {until:?}"
                )
            })
            .collect();
        // One is enough to tell, and it goes on every millisecond.
        if book.lies.is_empty() {
            book.lies.extend(false_now);
        }
        let until = book.told.entry((speaker.clone(), owner.clone(), epoch)).or_default();
        *until = (*until).max(now + left);
    }

    /// Answers that were contradicted while they were to be true.
    pub fn lies(&self) -> Vec<String> {
        self.book().lies.clone()
    }

    /// The device is without power from now on.
    pub fn power_off(&self, device: &DeviceId) {
        let at = self.last_seen();
        self.end(device, at);
    }

    /// The sidecar is dead from now on; the fencer stops the workload within the grace.
    pub fn orphan(&self, device: &DeviceId, timing: Timing) {
        let at = self.last_seen() + timing.kill_after();
        let mut book = self.book();
        if book.runs.iter().any(|r| r.device == *device && r.to.is_none()) {
            book.orphans.insert(device.clone(), at);
        }
    }

    /// Outside of the simulation turmoil does not tell the time; the newest entry of the checker does.
    fn last_seen(&self) -> Duration {
        CLOCK.with(|c| *c.borrow())
    }

    fn settle(&self, at: Duration) {
        CLOCK.with(|c| *c.borrow_mut() = at);
        if self.book().orphans.is_empty() {
            return;
        }
        let dead: Vec<DeviceId> =
            self.book().orphans.iter().filter(|(_, until)| **until <= at).map(|(d, _)| d.clone()).collect();
        for device in dead {
            self.end(&device, at);
        }
    }

    /// Grows with every start and every end.
    pub fn version(&self) -> u64 {
        self.book().version
    }

    /// Who runs now.
    pub fn running(&self) -> Vec<(DeviceId, Epoch)> {
        self.book().runs.iter().filter(|r| r.to.is_none()).map(|r| (r.device.clone(), r.epoch)).collect()
    }

    /// Two that ran at the same time, or in the wrong order of epochs, if any.
    pub fn broken(&self) -> Option<String> {
        let book = self.book();
        for (i, a) in book.runs.iter().enumerate() {
            for b in &book.runs[i + 1..] {
                let ordered = a.epoch < b.epoch || (a.epoch == b.epoch && a.device == b.device);
                let apart = a.to.is_some_and(|end| end <= b.from) || b.to.is_some_and(|end| end <= a.from);
                if !apart || !ordered {
                    return Some(format!("{a:?} and {b:?}"));
                }
            }
        }
        None
    }

    /// The epochs in the order of their starts.
    pub fn epochs(&self) -> Vec<u64> {
        self.book().runs.iter().map(|r| r.epoch.get()).collect()
    }

    /// Notes the time, ends what the fencers have ended by now, and forgets runs that can overlap nothing any more.
    pub fn tick(&self, at: Duration) {
        self.settle(at);
    }

    /// All runs, for a failure's text.
    pub fn tell(&self) -> String {
        let mut text = String::new();
        for run in &self.book().runs {
            let _ = writeln!(text, "{} epoch {} from {:?} to {:?}", run.device, run.epoch, run.from, run.to);
        }
        text
    }
}

thread_local! {
    static CLOCK: std::cell::RefCell<Duration> = const { std::cell::RefCell::new(Duration::ZERO) };
}

/// The workload of one life of one device.
pub struct SimWorkload {
    device: DeviceId,
    clock: Arc<dyn Clock>,
    timing: Timing,
    ledger: Ledger,
    observed: Arc<watch::Sender<Observed>>,
    until: Arc<Mutex<Moment>>,
    stop: Arc<Notify>,
}

impl SimWorkload {
    pub fn new(device: DeviceId, clock: Arc<dyn Clock>, timing: Timing, ledger: Ledger) -> SimWorkload {
        SimWorkload {
            device,
            clock,
            timing,
            ledger,
            observed: Arc::new(watch::Sender::new(Observed::Stopped)),
            until: Arc::default(),
            stop: Arc::new(Notify::new()),
        }
    }

    /// Waits until nothing runs that an earlier life has left.
    pub async fn none_left(&self) {
        while self.ledger.running().iter().any(|(d, _)| *d == self.device) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Workload for SimWorkload {
    fn start(&self, grant: Grant) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(3)).await;
            if grant.until <= self.clock.now() {
                return Err(Error::Late);
            }
            *self.until.lock().unwrap_or_else(PoisonError::into_inner) = grant.until;
            self.ledger.begin(&self.device, grant.epoch);
            self.observed.send_replace(Observed::Running { epoch: grant.epoch, pid: None });
            let (clock, until, stop) = (self.clock.clone(), self.until.clone(), self.stop.clone());
            let (observed, ledger, device) =
                (self.observed.clone(), self.ledger.clone(), self.device.clone());
            let grace = self.timing.kill_after();
            tokio::spawn(async move {
                loop {
                    let deadline = *until.lock().unwrap_or_else(PoisonError::into_inner);
                    tokio::select! {
                        // The deadline first: whoever is told to stop at that very moment has not heard it.
                        biased;
                        () = sleep_until(clock.as_ref(), deadline) => {
                            if *until.lock().unwrap_or_else(PoisonError::into_inner) > deadline {
                                continue;
                            }
                            // At its deadline it ignores TERM, until KILL.
                            observed.send_replace(Observed::Stopping { epoch: grant.epoch });
                            sleep_until(clock.as_ref(), deadline + grace).await;
                            break;
                        }
                        () = stop.notified() => {
                            observed.send_replace(Observed::Stopping { epoch: grant.epoch });
                            // Told to stop, it takes a moment.
                            tokio::time::sleep(Duration::from_millis(5)).await;
                            break;
                        }
                    }
                }
                while ledger.is_stuck(&device) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                ledger.end(&device, now());
                observed.send_replace(Observed::Stopped);
            });
            Ok(())
        })
    }

    fn extend(&self, until: Moment) {
        let mut held = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        *held = (*held).max(until);
    }

    fn stop(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let mut observed = self.observe();
            if *observed.borrow_and_update() != Observed::Stopped {
                self.stop.notify_one();
                let _ = observed.wait_for(|o| *o == Observed::Stopped).await;
            }
            Ok(())
        })
    }

    fn observe(&self) -> watch::Receiver<Observed> {
        self.observed.subscribe()
    }
}
