//! P4: a connected majority with one fit device has an owner within the bound.
//!
//! The printed bound is from the loss of an owner on a site that is well otherwise. After any other trouble some things
//! may come on top, each with a limit of its own; [`limit`] adds them up, and nothing else is allowed for.

use std::time::Duration;

use quorate::timing::Timing;

use crate::stage::{Stage, world::now};

/// At the least so long a call waits for an answer from a disk, and then once more for a greeting (`raft/peer/client.rs`).
const SIGN_OF_LIFE: Duration = Duration::from_millis(250);
/// The longest pause before Raft calls again whom it could not reach (`Network::backoff`).
const BACKOFF: Duration = Duration::from_millis(500);

/// Within which an able site has an owner, counted from the end of all trouble. `slowest`: the slowest that a disk was.
pub fn limit(timing: &Timing, slowest: Duration) -> Duration {
    // Whoever has just booted may not vote for as long as a promise lasts; then comes a takeover as it is printed.
    let takeover = timing.refusal() + timing.takeover_bound();
    // A call on a connection that died without a word, or whose dial was lost: the vote, and then the first append. Each is
    // noticed and made again.
    let dead = (timing.hold().max(SIGN_OF_LIFE) * 2 + BACKOFF) * 2;
    // A majority that is only just together again waits three heartbeats, and twice three for an owner that answers.
    let courtesy = timing.heartbeat() * 9;
    // Candidates give way to one whose disk was slow a moment ago, and its write may still be under way.
    takeover + dead + courtesy + timing.hold() / 2 + slowest * 5
}

#[derive(Default)]
pub struct Owner {
    last_seen: Duration,
    /// The longest that an able site was without an owner.
    pub longest: Duration,
}

impl Owner {
    pub fn check(&mut self, stage: &mut Stage) -> Result<(), String> {
        if stage.running().is_some() || !stage.able() {
            self.last_seen = now();
            return Ok(());
        }
        let without = now() - self.last_seen.max(stage.calm_since);
        self.longest = self.longest.max(without);
        let limit = limit(&stage.site.timing, stage.slowest);
        if without > limit {
            return Err(format!("a majority has been well and connected for {limit:?}, and nobody owns"));
        }
        Ok(())
    }
}
