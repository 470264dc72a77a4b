//! The workload of the simulation, and its fencer, which stands outside of the sidecar: a frozen or dead sidecar does not
//! stop it. As bad as its contract allows, the workload runs to the very last nanosecond of its deadline and grace, and
//! takes its time to stop.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use quorate::{
    clock::{Clock, Moment},
    epoch::Epoch,
    id::DeviceId,
    seal::{Receipt, Seal, Secret},
    workload::{BoxFuture, Error, Grant, Observed, Workload},
};
use tokio::sync::watch;

use super::ledger::Ledger;

/// Told to stop, it takes a moment.
const STOPPING: Duration = Duration::from_millis(5);

struct Running {
    epoch: Epoch,
    until: Moment,
    /// Certain death, once that is known.
    end: Option<Moment>,
    secret: Option<Secret>,
    /// Its sidecar is dead.
    orphan: bool,
}

struct State {
    running: Option<Running>,
    observed: watch::Sender<Observed>,
    /// It cannot be ended now, as in an uninterruptible wait of the kernel.
    stuck: bool,
    /// There is no fencer, and none can be started.
    lost: bool,
    /// The whole machine stands still.
    frozen: bool,
    /// The receipt that it has to show since its sidecar died and its workload ended.
    receipt: Option<Receipt>,
}

/// One device's fencer, and what it holds. Clones are the same.
#[derive(Clone)]
pub struct Fencer {
    device: DeviceId,
    clock: Arc<dyn Clock>,
    kill_after: Duration,
    ledger: Ledger,
    state: Arc<Mutex<State>>,
}

impl Fencer {
    pub fn new(device: DeviceId, clock: Arc<dyn Clock>, kill_after: Duration, ledger: Ledger) -> Fencer {
        let observed = watch::Sender::new(Observed::Stopped);
        let state =
            State { running: None, observed, stuck: false, lost: false, frozen: false, receipt: None };
        Fencer { device, clock, kill_after, ledger, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the fencer does by itself, at every moment.
    pub fn mind_the_clock(&self) {
        let mut state = self.state();
        if state.frozen || state.running.is_none() {
            return;
        }
        let now = self.clock.now();
        let (stuck, kill_after) = (state.stuck, self.kill_after);
        let Some(running) = &mut state.running else { return };
        let epoch = running.epoch;
        // At its deadline it ignores TERM, until KILL.
        let late = running.end.is_none() && now >= running.until;
        if late {
            running.end = Some(running.until + kill_after);
        }
        let over = running.end.is_some_and(|end| now >= end) && !stuck;
        let receipt = running.secret.filter(|_| running.orphan).map(|secret| Receipt { epoch, secret });
        if late {
            state.observed.send_replace(Observed::Stopping { epoch });
        }
        if over {
            state.running = None;
            state.receipt = receipt;
            self.ledger.end(&self.device);
            state.observed.send_replace(Observed::Stopped);
        }
    }

    /// Told to stop because its deadline is over, it ignores that until KILL.
    fn end_within(&self, grace: Duration) {
        let mut state = self.state();
        let now = self.clock.now();
        let Some(running) = &mut state.running else { return };
        let end = if now >= running.until { running.until + self.kill_after } else { now + grace };
        running.end = Some(running.end.map_or(end, |already| already.min(end)));
        let epoch = running.epoch;
        state.observed.send_replace(Observed::Stopping { epoch });
    }

    /// The sidecar is gone: the workload is, at the end of the grace.
    pub fn orphan(&self) {
        if let Some(running) = &mut self.state().running {
            running.orphan = true;
        }
        self.end_within(self.kill_after);
    }

    /// The receipt to show to the members now, once.
    pub fn receipt(&self) -> Option<Receipt> {
        self.state().receipt.take()
    }

    /// There is no power: nothing runs.
    pub fn power_off(&self) {
        let mut state = self.state();
        if state.running.take().is_some() && !state.frozen {
            self.ledger.end(&self.device);
        }
        (state.frozen, state.lost, state.receipt) = (false, false, None);
        state.observed.send_replace(Observed::Stopped);
    }

    /// From now on the workload cannot be ended, or can be again.
    pub fn stick(&self, stuck: bool) {
        self.state().stuck = stuck;
    }

    pub fn is_stuck(&self) -> bool {
        let state = self.state();
        state.stuck || state.lost
    }

    /// The fencer of a device on which nothing runs is lost, and no other can be started: nothing is confirmed any more.
    pub fn lose(&self) {
        let mut state = self.state();
        assert!(state.running.is_none(), "only an idle fencer is lost here");
        state.lost = true;
        state.observed.send_replace(Observed::Stopping { epoch: Epoch::ZERO });
    }

    /// The whole machine stands still, or goes on. What runs then does so before anything can stop it.
    pub fn freeze(&self, frozen: bool) {
        let mut state = self.state();
        if std::mem::replace(&mut state.frozen, frozen) == frozen {
            return;
        }
        let Some(running) = &state.running else { return };
        if frozen {
            self.ledger.end(&self.device);
        } else {
            let late = self.clock.now() >= running.end.unwrap_or(running.until + self.kill_after);
            self.ledger.begin(&self.device, running.epoch, late);
        }
    }
}

/// The workload as one life of the sidecar sees it.
pub struct SimWorkload {
    fencer: Fencer,
    life: u64,
    /// How many secrets there were, and the one for the next claim.
    secret: Mutex<(u64, Option<Secret>)>,
}

impl SimWorkload {
    pub fn new(fencer: Fencer, life: u64) -> SimWorkload {
        SimWorkload { fencer, life, secret: Mutex::default() }
    }

    fn secret(&self) -> MutexGuard<'_, (u64, Option<Secret>)> {
        self.secret.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing runs that an earlier life has left.
    pub async fn none_left(&self) {
        let _ = self.observe().wait_for(|o| *o == Observed::Stopped).await;
    }
}

impl Workload for SimWorkload {
    fn start(&self, grant: Grant) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(3)).await;
            let fencer = &self.fencer;
            if grant.until <= fencer.clock.now() {
                return Err(Error::Late);
            }
            let mut state = fencer.state();
            if let Some(running) = state.running.as_mut().filter(|r| r.epoch == grant.epoch) {
                running.until = running.until.max(grant.until);
                return Ok(());
            }
            let secret = self.secret().1.take();
            state.running =
                Some(Running { epoch: grant.epoch, until: grant.until, end: None, secret, orphan: false });
            fencer.ledger.begin(&fencer.device, grant.epoch, false);
            state.observed.send_replace(Observed::Running { epoch: grant.epoch, pid: None });
            Ok(())
        })
    }

    fn extend(&self, until: Moment) {
        if let Some(running) = &mut self.fencer.state().running
            && running.end.is_none()
        {
            running.until = running.until.max(until);
        }
    }

    fn stop(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let mut observed = self.observe();
            if *observed.borrow_and_update() != Observed::Stopped {
                self.fencer.end_within(STOPPING);
                let _ = observed.wait_for(|o| *o == Observed::Stopped).await;
            }
            Ok(())
        })
    }

    fn observe(&self) -> watch::Receiver<Observed> {
        self.fencer.state().observed.subscribe()
    }

    fn seal(&self) -> Option<Seal> {
        let mut secret = self.secret();
        if secret.1.is_none() {
            secret.0 += 1;
            let mut bytes = [0; 32];
            let words = [self.fencer.device.first_node().0, self.life, secret.0];
            bytes.chunks_mut(8).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
            secret.1 = Some(Secret::from_bytes(bytes));
        }
        secret.1.map(|secret| secret.seal())
    }
}
