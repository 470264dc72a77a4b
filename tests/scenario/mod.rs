//! Stories of a simulated site, named by what a person at the plant would see. Every promise is checked at every
//! simulated millisecond (`stage`), so a story only says what should happen besides.

mod attack;
mod brownout;
mod builds;
mod commands;
mod day;
mod election;
mod handover;
mod health;
mod hub;
mod links;
mod loss;
mod machine;
mod module;
mod region;
mod rejoin;
mod start;

use std::time::Duration;

use quorate::timing::{Settings, Timing};

use crate::stage::{Setup, Stage};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// How long a takeover may take: the bound that is printed for the default timing.
fn bound() -> Duration {
    Timing::new(&Settings::default()).expect("consistent").takeover_bound()
}

/// A site on which somebody already owns; returns who.
fn running(setup: Setup) -> (Stage, usize) {
    let mut stage = Stage::new(setup);
    let owner = stage.someone_runs(4 * S);
    stage.pass(S);
    (stage, owner)
}

fn another_runs(stage: &mut Stage, limit: Duration, than: usize) -> usize {
    stage.until(limit, "another device runs the workload", |s| s.running().is_some_and(|n| n != than));
    stage.running().expect("just seen")
}
