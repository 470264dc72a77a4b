use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    clock::BootClock,
    epoch::Epoch,
    id::{DeviceId, Incarnation, SiteId},
    ownership::{
        command::{Claim, Command},
        record::Record,
    },
    raft::vote_guard::Ballot,
    seal::Secret,
    site::{Member, Role, Site},
    timing::{Settings, Timing},
};

const HOUR: Duration = Duration::from_secs(3600);

fn secret(n: u64) -> Secret {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    Secret::from_bytes(bytes)
}

fn e(n: u64) -> Epoch {
    Epoch::new(n).expect("small")
}

fn applied(record: &Record) -> Applied {
    Applied { record: Arc::new(record.clone()), index: None, by: (0, 0) }
}

/// A member of a site at epoch 0, which has promised not to vote for an hour, as of epoch `promised`.
struct Stage {
    record: Record,
    sender: watch::Sender<Applied>,
    guard: VoteGuard,
    attest: Attest,
}

impl Stage {
    fn new(promised: u64) -> Stage {
        let member = |n: u8| Member {
            device: DeviceId::new(format!("edge-{n}")).expect("a name"),
            address: format!("10.0.0.{n}:7600"),
            role: Role::Voter,
        };
        let record = Record::new(&Site {
            id: SiteId::new("plant-7").expect("a name"),
            members: vec![member(1), member(2), member(3)],
            timing: Timing::new(&Settings::default()).expect("consistent"),
        });
        let (sender, watched) = watch::channel(applied(&record));
        let guard = VoteGuard::new(Arc::new(BootClock), Duration::ZERO, Duration::ZERO, Ballot::default());
        guard.durable(HOUR);
        guard.promise(Ballot::default(), e(promised), HOUR).expect("nobody else asks");
        let attest = Attest::new(watched, guard.clone(), 5);
        Stage { record, sender, guard, attest }
    }

    /// The claim for the next epoch, sealed with the secret of that number, is applied.
    fn claim(&mut self) -> u64 {
        let base = self.record.epoch;
        let next = base.get() + 1;
        self.record.apply(&Command::Claim(Claim {
            device: DeviceId::new(format!("edge-{}", 1 + next % 3)).expect("a name"),
            incarnation: Incarnation(next),
            base,
            at_unix_ms: 0,
            seal: Some(secret(next).seal()),
            proof: None,
        }));
        self.sender.send_replace(applied(&self.record));
        next
    }
}

#[test]
fn the_receipt_of_the_present_owner_lifts_its_promises() {
    let mut stage = Stage::new(1);
    stage.claim();
    assert!(stage.guard.may_vote().is_err());
    let receipt = Receipt { epoch: e(1), secret: secret(1) };
    let mut news = stage.attest.watch();
    stage.attest.hear_line(receipt.line(5).as_bytes());
    assert_eq!(stage.guard.may_vote(), Ok(()));
    assert_eq!(stage.attest.proof(), Some(receipt));
    assert!(news.has_changed().expect("lives") && *news.borrow_and_update() == Some(receipt));
    stage.attest.hear_line(receipt.line(5).as_bytes());
    assert_eq!(stage.guard.may_vote(), Ok(()), "once more costs nothing");
    stage.claim();
    assert_eq!(stage.attest.proof(), None, "it proves nothing about the next owner");
}

#[test]
fn a_forged_receipt_changes_nothing() {
    let mut stage = Stage::new(1);
    stage.claim();
    let good = Receipt { epoch: e(1), secret: secret(1) };
    for forged in [
        Receipt { epoch: e(1), secret: secret(2) },
        Receipt { epoch: e(0), secret: secret(1) },
        Receipt { epoch: e(2), secret: secret(1) },
    ] {
        stage.attest.hear(forged);
    }
    stage.attest.hear_line(good.line(6).as_bytes());
    stage.attest.hear_line(b"QUORATE-STOPPED nonsense");
    stage.attest.hear_line(&[0xff; 300]);
    assert!(stage.guard.may_vote().is_err());
    assert_eq!(stage.attest.proof(), None);
}

#[test]
fn a_receipt_lifts_no_other_promise_and_never_the_refusal_after_boot() {
    let mut stage = Stage::new(2);
    stage.claim();
    stage.attest.hear(Receipt { epoch: e(1), secret: secret(1) });
    assert!(stage.guard.may_vote().is_err(), "the promise was for the next ownership");

    let mut stage = Stage::new(1);
    stage.claim();
    stage.guard = VoteGuard::new(Arc::new(BootClock), Duration::ZERO, HOUR, Ballot::default());
    stage.attest = Attest::new(stage.sender.subscribe(), stage.guard.clone(), 5);
    stage.attest.hear(Receipt { epoch: e(1), secret: secret(1) });
    assert!(stage.attest.proof().is_some());
    assert!(stage.guard.may_vote().is_err(), "it has just started");
}

#[test]
fn a_receipt_before_its_claim_is_kept_until_then() {
    let mut stage = Stage::new(1);
    let receipt = Receipt { epoch: e(1), secret: secret(1) };
    stage.attest.hear(receipt);
    assert_eq!(stage.attest.proof(), None);
    assert!(stage.guard.may_vote().is_err());
    stage.attest.hear(receipt);
    stage.claim();
    assert_eq!(stage.attest.proof(), Some(receipt));
    assert_eq!(stage.guard.may_vote(), Ok(()));
}

proptest! {
    /// Receipts and forgeries of any epoch, in any order, between claims: only the present owner's own counts.
    #[test]
    fn only_the_present_owners_own_receipt_counts(
        steps in prop::collection::vec((any::<bool>(), 0u64..6, 0u64..6), 1..40),
    ) {
        let mut stage = Stage::new(0);
        let mut promised = 0;
        let mut proven = std::collections::BTreeSet::new();
        for (claims, of, with) in steps {
            if claims && stage.record.epoch.get() < 6 {
                promised = stage.claim();
                stage.guard.promise(Ballot::default(), e(promised), HOUR).expect("nobody else asks");
            } else {
                stage.attest.hear(Receipt { epoch: e(of), secret: secret(with) });
                if of == with && of > 0 {
                    proven.insert(of);
                }
            }
            let present = stage.record.epoch.get();
            let proof = stage.attest.proof();
            prop_assert!(proof.is_none_or(|p| p.epoch.get() == present && proven.contains(&present)));
            prop_assert!(stage.guard.may_vote().is_err() || proven.contains(&promised));
        }
    }
}
