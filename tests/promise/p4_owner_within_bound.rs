//! P4: a connected majority with one fit device has an owner within the bound.
//!
//! The printed bound is from the loss of an owner on a site that is well otherwise. After any other trouble some things
//! may come on top, each with a limit of its own; [`limit`] adds them up, and nothing else is allowed for.

use std::time::Duration;

use quorate::timing::Timing;

use crate::stage::{Stage, world::now};

/// A connection that died without a word: a ping after a second, and a second for its answer.
const NOTICED: Duration = Duration::from_secs(2);
/// A dial under way to an address where nobody answered.
const DIALLED: Duration = Duration::from_secs(1);

/// Within which an able site has an owner, counted from the end of all trouble. `slowest`: the slowest that a disk was.
pub fn limit(timing: &Timing, slowest: Duration) -> Duration {
    // Whoever has just booted may not vote for as long as a promise lasts; then comes a takeover as it is printed.
    let takeover = timing.refusal() + timing.takeover_bound();
    // Candidates give way to one whose disk was slow a moment ago, and its write may still be under way.
    takeover + NOTICED + DIALLED + timing.hold() / 2 + slowest * 5
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
