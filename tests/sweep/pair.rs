//! The same site twice, once with its hub in trouble all the time and once with a hub that is well. The owner is lost, cut off, told
//! to leave and to hand over, with time between for everything to settle; who owned, in which order and why, must then be the
//! same both times. In random trouble it cannot be: there a message more or less moves everything that follows.

use std::time::Duration;

use quorate::dice::Dice;

use super::trial::Trial;
use crate::stage::Setup;

const S: Duration = Duration::from_secs(1);
/// Changes of the ownership in one story.
const CHANGES: usize = 5;

/// Who owned, under which epochs and why; and how long the twins took after the end of the hub's trouble.
pub struct Story {
    pub ledger: Vec<String>,
    pub flags: Duration,
    /// How often the hub went back.
    pub rollbacks: usize,
    /// What was done, with the time.
    pub told: Vec<String>,
}

/// One of the two.
pub fn story(seed: u64, troubled: bool) -> Story {
    let mut dice = Dice::new(seed ^ 0x7061_6972);
    let devices = [3, 3, 5][usize::try_from(dice.throw() % 3).expect("small")];
    let edge = dice.throw().is_multiple_of(2);
    let setup = Setup { seed, devices, edge, refresh: S * 5, ..Setup::default() };
    let mut trial = Trial::around(setup, Dice::new(seed));
    if !troubled {
        trial.hub.end(&trial.stage);
    }
    for _ in 0..CHANGES {
        trial.until(S * 20, "somebody owns", |s| s.running().is_some());
        let quiet = dice.up_to(S * 4);
        trial.pass(S * 6 + quiet);
        let owner = trial.stage.running().expect("nothing was done to it");
        let to = (owner + 1 + usize::try_from(dice.throw()).expect("64 bits") % (devices - 1)) % devices;
        let away = S * 3 + dice.up_to(S * 3);
        match dice.throw() % 5 {
            0 => trial.stage.crash(owner),
            1 => trial.stage.kill_sidecar(owner),
            2 => trial.stage.leave(owner),
            3 => trial.stage.isolate(owner),
            _ => trial.stage.transfer(to),
        }
        trial.pass(away);
        trial.stage.heal();
        trial.stage.start_if_down_or_leaving(owner);
    }
    trial.until(S * 20, "somebody owns", |s| s.running().is_some());
    trial.pass(S * 10);
    let flags = trial.end_the_hubs_trouble();
    let record = trial.stage.record().expect("everybody is up");
    let one = |change: &quorate::ownership::record::Change| {
        format!("epoch {} {} {}", change.epoch, change.device, change.cause.name())
    };
    Story {
        ledger: record.history.iter().map(one).collect(),
        flags,
        rollbacks: trial.hub.rollbacks,
        told: trial.told,
    }
}

/// Both, and whether they are equal.
///
/// # Errors
/// Both ledgers, if they differ.
pub fn compare(seed: u64) -> Result<Story, String> {
    let (well, troubled) = (story(seed, false), story(seed, true));
    match well.ledger == troubled.ledger {
        true => Ok(troubled),
        false => {
            Err(format!("with a hub that is well {:#?}, in trouble {:#?}", well.ledger, troubled.ledger))
        }
    }
}
