//! Greets members that were not heard for a second, so that the status of every device tells who is there.
//!
//! Renewals already show the owner and the others to each other; this is for the rest. Nothing is decided by it but
//! whom a handover may name.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{clock::Clock, raft::Group};

/// How long silence lasts before it is broken.
const SILENCE: Duration = Duration::from_secs(1);

/// The loop and what it needs.
pub struct ContactLoop {
    /// The group.
    pub group: Group,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

impl ContactLoop {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(SILENCE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let now = self.clock.now();
            let roster = self.group.roster();
            // Who asks to be taken in shows that it is still there.
            let asks = roster.store.later && !roster.members().nodes.contains_key(&roster.node);
            for member in roster.site.members.iter().filter(|m| m.device != roster.me) {
                let contact = roster.contact(&member.device);
                // Its own words are wanted too, not only a sign of life; and if they were that it is unfit, whether it
                // still is: an owner's renewals do not say so.
                let known = contact.is_some_and(|c| {
                    c.incarnation.is_some()
                        && c.unfit.is_empty()
                        && c.heard.is_some_and(|heard| now.since(heard) < SILENCE)
                });
                if asks || !known {
                    let (group, device) = (self.group.clone(), member.device.clone());
                    self.group.spawn(async move {
                        group.greet(&device, SILENCE).await;
                    });
                }
            }
        }
    }
}
