//! Stories of a simulated site, named by what a person at the plant would see. Every promise is checked at every
//! simulated millisecond, so a story only has to say what should happen besides.

use std::time::Duration;

use crate::stage::{Setup, Stage};

const S: Duration = Duration::from_secs(1);

#[test]
fn a_fresh_site_elects_one_owner() {
    let mut stage = Stage::new(Setup::default());
    stage.someone_runs(3 * S);
    stage.pass(20 * S);
    assert_eq!(stage.epochs(), [1], "a quiet site has one ownership");
}
