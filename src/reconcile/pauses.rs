//! Ends a pause whose time is over.
//!
//! The record has no clock, and `apply` must give the same on every device. So the order says when the pause ends, in wall time,
//! and whoever leads proposes the end when its own wall clock says that it has come: for that very pause, so that one that
//! somebody ordered meanwhile goes on. Nothing else is decided by a wall clock, and no lease or promise depends on this: a clock that
//! is wrong only ends the pause early or late.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    ownership::{
        command::{Command, EndPause},
        view::Standing,
    },
    raft::Group,
};

/// A wall clock may be set at any time, so it is looked at again and again.
const LOOK: Duration = Duration::from_secs(1);
/// How long the proposal may take until it is looked at anew.
const LIMIT: Duration = Duration::from_secs(10);

/// The loop and what it needs.
pub struct PauseLoop {
    /// The group.
    pub group: Group,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

impl PauseLoop {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let (mut role, mut record) = (self.group.role(), self.group.record());
        loop {
            let leads = role.borrow_and_update().standing == Standing::Leader;
            let paused = record.borrow_and_update().record.paused.clone();
            let ends = paused.filter(|_| leads).and_then(|note| Some((note.id, note.until_unix_ms?)));
            let wait = async {
                let Some((pause, until)) = ends else { return std::future::pending().await };
                let left = Duration::from_millis(until.saturating_sub(self.clock.wall_ms()));
                if !left.is_zero() {
                    return tokio::time::sleep(left.min(LOOK)).await;
                }
                match self.group.propose(Command::EndPause(EndPause { pause }), LIMIT).await {
                    Ok(_) => tracing::info!("the pause has ended: its time is over"),
                    Err(e) => tracing::debug!("the end of the pause is not committed: {e}"),
                }
                tokio::time::sleep(LOOK).await;
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Ok(()) = role.changed() => {}
                Ok(()) = record.changed() => {}
                () = wait => {}
                else => return,
            }
        }
    }
}
