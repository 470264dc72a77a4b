//! P2: at any instant the workload runs on at most one device, and ownerships follow each other in the order of their
//! epochs.
//!
//! A whole machine that was frozen and is thawed too late runs its workload until its fencer gets a turn. No lease avoids
//! that; P3 is the answer to it, so such a moment is not counted here.

use crate::stage::ledger::{Ledger, Run};

#[derive(Default)]
pub struct OneWorkload {
    version: u64,
    known: usize,
    newest: Option<Run>,
}

impl OneWorkload {
    pub fn check(&mut self, ledger: &Ledger) -> Result<(), String> {
        let version = ledger.version();
        if std::mem::replace(&mut self.version, version) == version {
            return Ok(());
        }
        for run in ledger.since(self.known) {
            self.known += 1;
            if run.thawed {
                continue;
            }
            if let Some(before) = &self.newest
                && !(before.epoch < run.epoch || (before.epoch, &before.device) == (run.epoch, &run.device))
            {
                return Err(format!("{run:?} began after {before:?}"));
            }
            self.newest = Some(run);
        }
        let open: Vec<Run> = ledger.open().into_iter().filter(|run| !run.thawed).collect();
        if open.len() > 1 {
            return Err(format!("two workloads run at once: {open:?}"));
        }
        Ok(())
    }
}
