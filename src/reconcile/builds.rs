//! Sees to it that the site's record says what this device runs.
//!
//! Nothing is proposed while it does, so a device at rest writes nothing; a restart of the same build does not either. Nothing is decided
//! here: who may own by what it runs is the record's business.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{Clock, Moment, sleep_until},
    ownership::{
        command::{Command, DeclareBuild, Outcome},
        record::Declared,
    },
    raft::Group,
};

/// How long the proposal may take until it is looked at anew.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// Each is a write on every disk of the site, so what changes again and again is told less and less often: the pause doubles up to this.
const PAUSE_MAX: Duration = Duration::from_secs(1024);
/// After so long without a change, and after twice the pause, the pause is short again.
const CALM: Duration = Duration::from_secs(60);

/// The loop and what it needs.
pub struct BuildLoop {
    /// The group.
    pub group: Group,
    /// What this device runs; `None` while that is not known.
    pub own: watch::Receiver<Option<Declared>>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Told each time the record says what this device runs.
    pub agreed: Box<dyn Fn() + Send>,
}

impl BuildLoop {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut record = self.group.record();
        let device = self.group.roster().me.clone();
        let mut pace = Pace { last: Moment::default(), pause: PAUSE };
        loop {
            let own = self.own.borrow_and_update().clone();
            let known = record.borrow_and_update().record.builds.get(&device).cloned();
            if own.is_some() && own == known {
                (self.agreed)();
            }
            let differs = own.filter(|own| known.as_ref() != Some(own));
            let due = async {
                let Some(declared) = differs else { return std::future::pending().await };
                sleep_until(&*self.clock, pace.last + pace.pause).await;
                declared
            };
            let declared = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Ok(()) = self.own.changed() => continue,
                declared = due => declared,
                () = said(&mut record, &device, known.as_ref()) => continue,
                else => return,
            };
            let command = Command::DeclareBuild(DeclareBuild { device: device.clone(), declared });
            let outcome = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                outcome = self.group.propose(command, LIMIT) => outcome,
            };
            let now = self.clock.now();
            match outcome {
                Ok(outcome) => {
                    if let Outcome::Refused(why) = outcome {
                        tracing::warn!("what this device runs is not taken in: {why}");
                    }
                    pace.has_told(now);
                }
                Err(e) => {
                    tracing::debug!("what this device runs is not committed: {e}");
                    // Nothing was written for it.
                    pace.last = now;
                }
            }
        }
    }
}

/// When this device may tell again what it runs.
struct Pace {
    last: Moment,
    pause: Duration,
}

impl Pace {
    fn has_told(&mut self, now: Moment) {
        let calm = now.since(self.last) > (self.pause * 2).max(CALM);
        self.pause = if calm { PAUSE } else { (self.pause * 2).min(PAUSE_MAX) };
        self.last = now;
    }
}

/// Ends when the record says something else of this device than it did.
async fn said(
    record: &mut watch::Receiver<crate::raft::Applied>,
    device: &crate::id::DeviceId,
    known: Option<&Declared>,
) {
    if record.wait_for(|applied| applied.record.builds.get(device) != known).await.is_err() {
        std::future::pending().await
    }
}
