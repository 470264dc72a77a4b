//! P1: at most one owner per epoch; epochs only grow.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, atomic::Ordering},
};

use quorate::id::{DeviceId, Incarnation};

use crate::stage::Stage;

#[derive(Default)]
pub struct Epochs {
    /// The newest epoch that any device has known.
    pub reached: u64,
    owners: BTreeMap<u64, (DeviceId, Incarnation)>,
    /// Each device's life, and the epoch that it has last known.
    known: BTreeMap<usize, (u64, u64)>,
}

impl Epochs {
    pub fn check(&mut self, stage: &Stage) -> Result<(), String> {
        for (n, device) in stage.devices.iter().enumerate() {
            let live = device.live.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(live) = live.as_ref() else { continue };
            let applied = live.record.borrow();
            let (life, epoch) = (device.lives.load(Ordering::Relaxed), applied.record.epoch.get());
            let known = self.known.entry(n).or_default();
            if (life, epoch) == *known {
                continue;
            }
            // A restart applies the log again from its snapshot on, so this holds within one life.
            if known.0 == life && known.1 > epoch {
                return Err(format!("{} went back from epoch {} to {epoch}", device.id, known.1));
            }
            *known = (life, epoch);
            self.reached = self.reached.max(epoch);
            if let Some(owner) = &applied.record.owner {
                let this = (owner.device.clone(), owner.incarnation);
                let first = self.owners.entry(owner.epoch.get()).or_insert_with(|| this.clone());
                if *first != this {
                    return Err(format!("epoch {} has two owners: {first:?} and {this:?}", owner.epoch));
                }
            }
        }
        Ok(())
    }
}
