//! Believes the receipts of fencers: what shows the secret of the present owner proves that its workload has stopped.
//!
//! The proof is worth what a committed stop receipt is worth, for exactly its epoch: it lifts promises here, it is a
//! reason to campaign, and it travels on with every request for a vote. Everything else that is said changes nothing,
//! and costs one digest and one place in memory: a receipt that came before its own claim was applied here is kept
//! until then, the newest only.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::{machine::Applied, vote_guard::VoteGuard};
use crate::seal::Receipt;

/// What fencers have said. Clones share it.
#[derive(Clone)]
pub(crate) struct Attest {
    applied: watch::Receiver<Applied>,
    guard: VoteGuard,
    site: u64,
    /// A receipt of an epoch that is not applied here yet, which nobody can judge.
    early: Arc<Mutex<Option<Receipt>>>,
    proven: Arc<watch::Sender<Option<Receipt>>>,
}

impl Attest {
    /// Nothing was said yet. `site` is the site's digest.
    pub(crate) fn new(applied: watch::Receiver<Applied>, guard: VoteGuard, site: u64) -> Attest {
        Attest { applied, guard, site, early: Arc::default(), proven: Arc::default() }
    }

    /// A line that somebody has sent.
    pub(crate) fn hear_line(&self, line: &[u8]) {
        match Receipt::parse(line, self.site) {
            Some(receipt) => self.hear(receipt),
            None => tracing::debug!("a receipt of another site, or none at all"),
        }
    }

    /// A receipt, from a fencer or passed on by a candidate.
    pub(crate) fn hear(&self, receipt: Receipt) {
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        let record = self.applied.borrow().record.clone();
        if record.is_proof(&receipt) {
            // Before anybody can act on it.
            self.guard.lift(receipt.epoch);
            let news = self.proven.send_replace(Some(receipt)) != Some(receipt);
            if let Some(owner) = record.owner.as_ref().filter(|_| news) {
                let (device, epoch) = (&owner.device, owner.epoch);
                tracing::warn!(%device, %epoch, "the owner's sidecar is lost, and its fencer confirmed that the workload has stopped");
            }
        } else if receipt.epoch > record.epoch {
            *early = Some(receipt);
        }
    }

    /// The proof that the present ownership has ended, if there is one.
    pub(crate) fn proof(&self) -> Option<Receipt> {
        let early = self.early.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(early) = early {
            self.hear(early);
        }
        let record = self.applied.borrow().record.clone();
        self.proven.borrow().filter(|proof| record.is_proof(proof))
    }

    /// The proof that was shown last, of whatever epoch, now and on every change.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Receipt>> {
        self.proven.subscribe()
    }
}

#[cfg(test)]
mod tests;
