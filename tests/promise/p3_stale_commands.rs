//! P3: a command from a stale owner has no effect where the receiver checks the epoch, and nobody is told of an owner
//! that is none any more.
//!
//! The receiver of this file is a machine of the plant that obeys every workload that runs, unless it has already obeyed
//! a higher epoch.

use std::{collections::BTreeMap, sync::PoisonError, time::Duration};

use quorate::{clock::Clock as _, id::DeviceId, status::door::Answer};

use crate::stage::{Stage, world::now};

/// An answer may be this old when it is compared.
const SLACK: Duration = Duration::from_millis(2);

#[derive(Default)]
pub struct StaleCommands {
    /// The highest epoch that the machine has obeyed, and whose it was.
    obeyed: Option<(u64, DeviceId)>,
    /// Who says who owns under which epoch, and until when that is to stay true.
    told: BTreeMap<usize, (DeviceId, u64, Duration)>,
    /// Epochs up to this one were given up by a receipt, the owner's or its fencer's: who had not heard of it yet told what was true.
    released: u64,
}

impl StaleCommands {
    pub fn check(&mut self, stage: &Stage) -> Result<(), String> {
        for run in stage.ledger.open() {
            let epoch = run.epoch.get();
            match &self.obeyed {
                Some((highest, _)) if epoch < *highest => {
                    if !run.thawed {
                        return Err(format!("{} acts under epoch {epoch} after {highest}", run.device));
                    }
                }
                Some((highest, whose)) if epoch == *highest => {
                    if *whose != run.device {
                        return Err(format!("{whose} and {} both act under epoch {epoch}", run.device));
                    }
                }
                _ => self.obeyed = Some((epoch, run.device)),
            }
        }
        self.answers(stage)
    }

    /// No device is named as the owner while an answer that names another is to be true. The same device may come back
    /// under a higher epoch at any time: a restarted owner that Raft restores as leader claims anew.
    fn answers(&mut self, stage: &Stage) -> Result<(), String> {
        // A fencer's receipt ends what was told as a handover does: nothing runs under that epoch any more.
        self.released = self.released.max(stage.proven);
        for (n, device) in stage.devices.iter().enumerate() {
            let live = device.live.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever stands still says nothing.
            let Some(live) = live.as_ref().filter(|_| stage.sim.frozen(n).is_none()) else { continue };
            if let Some(released) = &live.record.borrow().record.released {
                self.released = self.released.max(released.epoch.get());
            }
            let released = self.released;
            let moment = device.clock.now();
            let answer = live.answers.borrow();
            let Answer::Known { owner: Some(owner), epoch, until, .. } = &*answer else { continue };
            let left = until.since(moment);
            if left < Duration::from_millis(1) {
                continue;
            }
            let epoch = epoch.get();
            match self.told.get_mut(&n) {
                Some((who, of, until)) if who == owner && *of == epoch => *until = (*until).max(now() + left),
                // What it said before is not unsaid by saying something else.
                Some((who, of, until)) if who != owner && *of > released && *until > now() + SLACK => {
                    return Err(format!(
                        "{} says {owner} owns under epoch {epoch}; it said {who}, epoch {of}, until {until:?}",
                        device.id
                    ));
                }
                _ if epoch <= released => {}
                _ => {
                    self.told.insert(n, (owner.clone(), epoch, now() + left));
                }
            }
            for (other, (who, of, until)) in &self.told {
                if *of > released && epoch > released && who != owner && *until > now() + SLACK {
                    return Err(format!(
                        "{} says {owner} owns under epoch {epoch}; {} said {who}, epoch {of}, until {until:?}",
                        device.id, stage.devices[*other].id
                    ));
                }
            }
        }
        Ok(())
    }
}
