//! The product's own vote guard, by what can be seen of it from outside.
//!
//! A guard is put together from what is to be seen of it, told what happened, and read again, all by its public methods.
//! What cannot be seen makes no difference, so guards that show the same are one state of the model.

use quorate::{
    id::NodeId,
    raft::vote_guard::{Ballot, Guard},
};

use crate::product::{Memo, NOW, REFUSAL, epoch, ticks};

/// An epoch that no model reaches.
const NO_EPOCH: u8 = 9;

/// What can be seen of a [`Guard`], in ticks from now. Two guards of which the same is seen will always answer alike.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// How long the refusal after boot lasts.
    pub boot: u8,
    /// How long its promise lasts beyond that.
    pub left: u8,
    /// The epoch of that promise; 0 where it makes no difference any more.
    pub epoch: u8,
    /// Whether it was given to the highest ballot seen, as far as that makes a difference.
    pub to_highest: bool,
    /// The epoch whose receipt came last; 0 before the first.
    pub lifted: u8,
    /// Whether a vote is being decided.
    pub voting: bool,
}

/// How a ballot compares to the highest that a guard has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// It is lower.
    Lower,
    /// It is that one.
    Highest,
    /// It is higher.
    Higher,
}

fn ballot(term: u64) -> Ballot {
    Ballot { term, node: NodeId(0) }
}

impl Seen {
    /// For tables and states: 12 bits.
    pub fn pack(self) -> u16 {
        u16::from(self.boot)
            | u16::from(self.left) << 3
            | u16::from(self.epoch) << 6
            | u16::from(self.to_highest) << 8
            | u16::from(self.lifted) << 9
            | u16::from(self.voting) << 11
    }

    /// The reverse of [`Seen::pack`].
    pub fn unpack(bits: u16) -> Seen {
        let part = |at: u16, mask: u16| u8::try_from(bits >> at & mask).expect("few bits");
        Seen {
            boot: part(0, 7),
            left: part(3, 7),
            epoch: part(6, 3),
            to_highest: part(8, 1) == 1,
            lifted: part(9, 3),
            voting: part(11, 1) == 1,
        }
    }

    /// A guard of which this is seen now. The highest ballot is put in the middle of three.
    fn guard(self, refusal: u8) -> Guard {
        let long_ago = NOW.before(ticks(*REFUSAL * 4));
        let booted = if self.boot > 0 { (NOW + ticks(self.boot)).before(ticks(refusal)) } else { long_ago };
        let mut guard = Guard::new(booted, ticks(refusal), ticks(refusal), ballot(0));
        // What a disk remembers is not of this model: it is enough.
        guard.durable(ticks(*REFUSAL * 4));
        if self.epoch > 0 {
            let to = if self.to_highest { 2 } else { 1 };
            let ends = NOW + ticks(self.boot + self.left);
            // An expired promise ended when the refusal after boot did, or before.
            let asked = if self.left > 0 { ends.before(ticks(refusal)) } else { long_ago };
            guard.promise(asked, ballot(to), epoch(self.epoch), ticks(refusal)).expect("nothing forbids it");
        }
        guard.observe(ballot(2));
        if self.lifted > 0 {
            guard.lift(epoch(self.lifted));
        }
        if self.voting {
            guard.begin_vote(NOW + ticks(*REFUSAL * 4), None).expect("everything has ended by then");
        }
        guard
    }

    /// What is seen of this guard now, besides what the caller knows.
    fn read(guard: &Guard, boot: u8, lifted: u8, voting: bool) -> Seen {
        let after_boot = NOW + ticks(boot);
        let lift = |guard: &Guard, number: u8| {
            let mut guard = guard.clone();
            guard.lift(epoch(number));
            guard
        };
        let binds = |guard: &Guard| guard.may_vote(after_boot).is_err();
        // With no receipt to hide it, how long does the promise last? It lasts until the guard would vote.
        let bare = lift(guard, NO_EPOCH);
        let left = (0..=*REFUSAL).find(|n| bare.may_vote(after_boot + ticks(*n)).is_ok()).expect("it ends");
        // Its epoch is the one whose receipt lifts it: one that has come, or one that may come. If there is none, a later
        // receipt has come already, nothing will ever lift it, and which epoch it is makes no difference.
        let epoch_of = |guard: &Guard| match binds(guard) {
            false => lifted,
            true => (lifted + 1..=3).find(|n| !binds(&lift(guard, *n))).unwrap_or(1),
        };
        // A later promise to the same ballot keeps the later epoch of the two: so the old one shows there.
        let mut renewed = guard.clone();
        renewed.end_vote();
        let _ = renewed.promise(after_boot, guard.highest(), epoch(1), ticks(*REFUSAL));
        let kept = epoch_of(&renewed);
        if left > 0 {
            Seen { boot, left, epoch: epoch_of(guard), to_highest: kept > 1, lifted, voting }
        } else {
            Seen { boot, left, epoch: if kept > 1 { kept } else { 0 }, to_highest: kept > 1, lifted, voting }
        }
    }

    /// The same after it was read again: what makes no difference is gone.
    pub fn normal(self) -> Seen {
        static MEMO: Memo = Memo::new();
        let answer = MEMO.get(usize::from(self.pack()), || {
            Seen::read(&self.guard(*REFUSAL), self.boot, self.lifted, self.voting).pack()
        });
        Seen::unpack(answer)
    }

    /// Asks for a promise. `None` if it was refused.
    pub fn promise(self, to: To, number: u8, refusal: u8) -> Option<Seen> {
        static MEMO: Memo = Memo::new();
        let question = usize::from(self.pack()) << 5
            | usize::from(number) << 3
            | usize::from(refusal == *REFUSAL) << 2
            | to as usize;
        let answer = MEMO.get(question, || {
            let mut guard = self.guard(refusal);
            match guard.promise(NOW, ballot(to as u64 + 1), epoch(number), ticks(refusal)) {
                Ok(()) => Seen::read(&guard, self.boot, self.lifted, self.voting).pack(),
                Err(_) => 1 << 12,
            }
        });
        (answer < 1 << 12).then(|| Seen::unpack(answer))
    }

    /// Whether it would begin to vote for a higher ballot.
    pub fn may_vote(self) -> bool {
        static MEMO: Memo = Memo::new();
        MEMO.get(usize::from(self.pack()), || {
            let mut guard = self.guard(*REFUSAL);
            u16::from(guard.begin_vote(NOW, Some(ballot(3))).is_ok())
        }) == 1
    }

    /// A tick has passed.
    pub fn tick(self) -> Seen {
        // The refusal after boot runs first, then what the promise lasts beyond it.
        if self.boot > 0 {
            Seen { boot: self.boot - 1, ..self }
        } else {
            Seen { left: self.left.saturating_sub(1), ..self }
        }
    }
}

/// A guard put together from what is seen shows the same again.
#[test]
fn what_is_seen_of_a_guard_is_all_there_is() {
    for bits in 0..1 << 12 {
        let seen = Seen::unpack(bits);
        let legal =
            seen.boot <= *REFUSAL && seen.boot + seen.left <= *REFUSAL && (seen.epoch > 0 || seen.left == 0);
        if legal {
            let normal = seen.normal();
            assert_eq!(normal, normal.normal(), "{seen:?}");
            assert_eq!(seen.may_vote(), normal.may_vote(), "{seen:?}");
            for (to, number) in [(To::Highest, 1), (To::Highest, 3), (To::Higher, 2), (To::Lower, 2)] {
                assert_eq!(
                    seen.promise(to, number, *REFUSAL),
                    normal.promise(to, number, *REFUSAL),
                    "{seen:?}"
                );
            }
        }
    }
}
