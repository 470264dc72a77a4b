//! Sees to it that the site's record says what this device runs.
//!
//! Nothing is proposed while it does, so a device at rest writes nothing; a restart of the same build does not either. Nothing is decided
//! here: who may own by what it runs is the record's business.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
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

/// The loop and what it needs.
pub struct BuildLoop {
    /// The group.
    pub group: Group,
    /// What this device runs; `None` while that is not known.
    pub own: watch::Receiver<Option<Declared>>,
    /// Told each time the record says what this device runs.
    pub agreed: Box<dyn Fn() + Send>,
}

impl BuildLoop {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut record = self.group.record();
        let device = self.group.roster().me.clone();
        loop {
            let own = self.own.borrow_and_update().clone();
            let known = record.borrow_and_update().record.builds.get(&device).cloned();
            if own.is_some() && own == known {
                (self.agreed)();
            }
            let differs = own.filter(|own| known.as_ref() != Some(own));
            let propose = async {
                let Some(declared) = differs else { return std::future::pending().await };
                let command = Command::DeclareBuild(DeclareBuild { device: device.clone(), declared });
                match self.group.propose(command, LIMIT).await {
                    Ok(Outcome::Refused(why)) => {
                        tracing::warn!("what this device runs is not taken in: {why}")
                    }
                    Ok(_) => {}
                    Err(e) => tracing::debug!("what this device runs is not committed: {e}"),
                }
                tokio::time::sleep(PAUSE).await;
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Ok(()) = self.own.changed() => {}
                () = propose => {}
                () = said(&mut record, &device, known.as_ref()) => {}
                else => return,
            }
        }
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
