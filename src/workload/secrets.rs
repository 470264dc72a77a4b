//! The secrets behind the seals of this life's claims, and which epoch may never be started again.
//!
//! A secret is drawn when a claim needs a seal and stays the same until a start uses it up, so a claim that was repeated
//! because its outcome was not known still fits. It leaves this process only to the fencer, with the start.
//!
//! A fencer that was lost may have given its receipt, or may yet: the epoch of its secret is burned, and this sidecar
//! never starts anything under it again. A receipt means something only because of that.

use crate::{
    epoch::Epoch,
    seal::{Seal, Secret},
};

/// What one workload knows of its secrets.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    next: Option<Secret>,
    /// The secret of the newest epoch that was started.
    used: Option<(Epoch, Secret)>,
    /// Set while a fencer knows the secret.
    handed: Option<Epoch>,
    burned: Option<Epoch>,
}

impl Secrets {
    /// The seal for the next claim. `None` if the system has no random numbers; then there will be no receipt.
    pub(super) fn seal(&mut self) -> Option<Seal> {
        if self.next.is_none() {
            self.next = Secret::draw().ok();
        }
        self.next.map(|secret| secret.seal())
    }

    /// The secret for a fencer that starts the workload under `epoch`.
    pub(super) fn hand_over(&mut self, epoch: Epoch) -> Option<Secret> {
        if self.used.is_none_or(|(of, _)| of != epoch) {
            self.used = self.next.take().map(|secret| (epoch, secret));
        }
        self.handed = self.used.map(|(of, _)| of);
        self.used.map(|(_, secret)| secret)
    }

    /// The fencer was lost.
    pub(super) fn lost(&mut self) {
        self.burned = self.handed.take().or(self.burned);
    }

    /// The epoch under which nothing may be started any more.
    pub(super) fn burned(&self) -> Option<Epoch> {
        self.burned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn e(n: u64) -> Epoch {
        Epoch::new(n).expect("small")
    }

    #[test]
    fn a_seal_stays_until_its_secret_is_used_and_then_never_comes_back() {
        let mut secrets = Secrets::default();
        let seal = secrets.seal().expect("random");
        assert_eq!(secrets.seal(), Some(seal), "the claim may have to be repeated");
        let secret = secrets.hand_over(e(7)).expect("drawn");
        assert_eq!(secret.seal(), seal);
        assert_eq!(secrets.hand_over(e(7)), Some(secret), "the same ownership, started again");
        let other = secrets.seal().expect("random");
        assert_ne!(other, seal);
        assert_eq!(secrets.hand_over(e(8)).map(|s| s.seal()), Some(other));
        assert_eq!(secrets.hand_over(e(9)), None, "nobody asked for a seal");
    }

    #[test]
    fn only_what_a_lost_fencer_knew_is_burned() {
        let mut secrets = Secrets::default();
        secrets.lost();
        assert_eq!(secrets.burned(), None);
        secrets.seal();
        secrets.hand_over(e(7));
        secrets.lost();
        assert_eq!(secrets.burned(), Some(e(7)));
        secrets.lost();
        assert_eq!(secrets.burned(), Some(e(7)), "another fencer, which knew nothing");
        secrets.hand_over(e(8));
        secrets.lost();
        assert_eq!(secrets.burned(), Some(e(7)), "without a seal there is no receipt to fear");
    }
}
