//! Kind `none`: nothing is started here; the ownership itself is the workload, and others ask for it.
//!
//! What is observed mirrors the grant: running while one is held and its deadline has not come, stopped otherwise. It
//! keeps the same promise as a process would, from the clock that is handed in. It cannot stop whoever acts on the
//! answer; that is what the `valid_for_ms` of every answer is for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{BoxFuture, Error, Grant, Observed, Workload};
use crate::clock::{Clock, Moment, sleep_until};

/// A workload that consists of the ownership alone.
#[derive(Debug)]
pub struct OwnershipOnly {
    clock: Arc<dyn Clock>,
    /// The lock orders changes of the grant with the answer to "is it over?".
    grant: Arc<Mutex<watch::Sender<Option<Grant>>>>,
    observed: Arc<watch::Sender<Observed>>,
}

impl OwnershipOnly {
    /// A workload that is stopped. Its timer runs on `tracker` until `leave` is cancelled, and then it is stopped.
    pub fn new(clock: Arc<dyn Clock>, tracker: &TaskTracker, leave: CancellationToken) -> OwnershipOnly {
        let (grant, mut changes) = watch::channel(None::<Grant>);
        let grant = Arc::new(Mutex::new(grant));
        let observed = Arc::new(watch::Sender::new(Observed::Stopped));
        let (timer_clock, timer_grant, timer_observed) = (clock.clone(), grant.clone(), observed.clone());
        tracker.spawn(async move {
            loop {
                let until = changes.borrow_and_update().map(|grant| grant.until);
                let over = async {
                    match until {
                        Some(until) => sleep_until(&*timer_clock, until).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = leave.cancelled() => break,
                    changed = changes.changed() => if changed.is_err() { break },
                    () = over => end_if(&timer_grant, &timer_observed, |grant| timer_clock.now() >= grant.until),
                }
            }
            end_if(&timer_grant, &timer_observed, |_| true);
        });
        OwnershipOnly { clock, grant, observed }
    }
}

type Shared = Mutex<watch::Sender<Option<Grant>>>;

fn lock(grant: &Shared) -> MutexGuard<'_, watch::Sender<Option<Grant>>> {
    grant.lock().unwrap_or_else(PoisonError::into_inner)
}

fn end_if(grant: &Shared, observed: &watch::Sender<Observed>, over: impl Fn(&Grant) -> bool) {
    let grant = lock(grant);
    let ended = grant.send_if_modified(|held| {
        let ends = held.as_ref().is_some_and(&over);
        if ends {
            *held = None;
        }
        ends
    });
    if ended {
        observed.send_replace(Observed::Stopped);
    }
}

impl Workload for OwnershipOnly {
    fn start(&self, new: Grant) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            if self.clock.now() >= new.until {
                return Err(Error::Late);
            }
            let grant = lock(&self.grant);
            grant.send_modify(|held| {
                let until = match held {
                    Some(old) if old.epoch == new.epoch => old.until.max(new.until),
                    _ => new.until,
                };
                *held = Some(Grant { epoch: new.epoch, until });
            });
            self.observed.send_replace(Observed::Running { epoch: new.epoch, pid: None });
            Ok(())
        })
    }

    fn extend(&self, to: Moment) {
        let now = self.clock.now();
        lock(&self.grant).send_if_modified(|held| match held {
            // A deadline that has passed is not revived, even if the timer has not come round to it.
            Some(grant) if to > grant.until && now < grant.until => {
                grant.until = to;
                true
            }
            _ => false,
        });
    }

    fn stop(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            // Whoever asked was told that the ownership lasts until then, and cannot be told otherwise in time.
            let until = lock(&self.grant).borrow().map(|grant| grant.until);
            if let Some(until) = until {
                self.observed.send_if_modified(|observed| {
                    let stopping = observed.epoch().map(|epoch| Observed::Stopping { epoch });
                    let changed = stopping.is_some();
                    *observed = stopping.unwrap_or(Observed::Stopped);
                    changed
                });
                sleep_until(&*self.clock, until).await;
            }
            end_if(&self.grant, &self.observed, |_| true);
            Ok(())
        })
    }

    fn observe(&self) -> watch::Receiver<Observed> {
        self.observed.subscribe()
    }

    fn granted(&self) -> Option<watch::Receiver<Option<Grant>>> {
        Some(lock(&self.grant).subscribe())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU64, Ordering},
        time::Duration,
    };

    use super::*;
    use crate::epoch::Epoch;

    /// Follows tokio's paused time.
    #[derive(Debug)]
    struct Paused(tokio::time::Instant, AtomicU64);

    impl Clock for Paused {
        fn now(&self) -> Moment {
            Moment::from_nanos(1) + self.0.elapsed() + Duration::from_nanos(self.1.load(Ordering::Relaxed))
        }

        fn wall_ms(&self) -> u64 {
            0
        }
    }

    fn setup() -> (Arc<Paused>, OwnershipOnly, CancellationToken) {
        let clock = Arc::new(Paused(tokio::time::Instant::now(), AtomicU64::new(0)));
        let leave = CancellationToken::new();
        let workload = OwnershipOnly::new(clock.clone(), &TaskTracker::new(), leave.clone());
        (clock, workload, leave)
    }

    fn grant(until: Moment) -> Grant {
        Grant { epoch: Epoch::new(3).expect("small"), until }
    }

    #[tokio::test(start_paused = true)]
    async fn runs_until_the_last_deadline_and_no_longer() {
        let (clock, workload, _leave) = setup();
        let mut observed = workload.observe();
        let t0 = clock.now();
        workload.start(grant(t0 + Duration::from_millis(400))).await.expect("in time");
        assert!(observed.borrow_and_update().may_run());
        workload.extend(t0 + Duration::from_millis(300));
        workload.extend(t0 + Duration::from_millis(700));
        observed.wait_for(|o| *o == Observed::Stopped).await.expect("the timer lives");
        let ran = clock.now().since(t0);
        assert!(ran >= Duration::from_millis(700) && ran < Duration::from_millis(710), "{ran:?}");
        workload.extend(clock.now() + Duration::from_secs(1));
        assert_eq!(*workload.observe().borrow(), Observed::Stopped);
    }

    #[tokio::test(start_paused = true)]
    async fn late_starts_are_refused_and_leaving_stops() {
        let (clock, workload, leave) = setup();
        assert!(matches!(workload.start(grant(clock.now())).await, Err(Error::Late)));
        workload.start(grant(clock.now() + Duration::from_secs(9))).await.expect("in time");
        leave.cancel();
        workload.observe().wait_for(|o| *o == Observed::Stopped).await.expect("said before leaving");
    }

    #[tokio::test(start_paused = true)]
    async fn stop_is_immediate_and_repeatable() {
        let (clock, workload, _leave) = setup();
        workload.stop().await.expect("stopped already");
        workload.start(grant(clock.now() + Duration::from_secs(9))).await.expect("in time");
        workload.stop().await.expect("stops");
        assert_eq!(*workload.observe().borrow(), Observed::Stopped);
    }
}
