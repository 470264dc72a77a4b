//! What a member that does not own may truthfully say about the owner, and for how long.
//!
//! The owner tells with each renewal how much of its lease is left. How long the message travelled is unknown, so the
//! member counts from a moment of its own that surely lies before: each of its answers carries its clock, and the owner
//! sends that back with the next question, together with how much of the lease was left when it arrived. It arrived after
//! it was said, so the member's count ends too early by the time that its answer travelled, and never too late.
//!
//! After a reboot the boot clock begins anew, while the owner still sends back a moment of the boot before. So only
//! moments of this very life count.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{clock::Moment, epoch::Epoch, id::NodeId};

/// A member's clock, as its answer carried it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// What that clock showed when the member answered.
    pub theirs: Moment,
    /// When the answer was here, by the own clock.
    pub heard: Moment,
}

impl Echo {
    /// How much of a lease that lasts `until` was left when the answer was here.
    pub(crate) fn left(&self, until: Moment) -> Duration {
        until.since(self.heard)
    }
}

/// The newest such knowledge. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Vouch {
    /// When this life of the sidecar began.
    born: Moment,
    newest: Arc<watch::Sender<Option<Vouched>>>,
}

/// `node` owns under `epoch`, and nobody else can before `until` unless it gives up itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vouched {
    /// The owner.
    pub node: NodeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The end of the lease as this member can count it.
    pub until: Moment,
}

impl Vouch {
    /// Nothing is known at first.
    pub(crate) fn new(born: Moment) -> Vouch {
        Vouch { born, newest: Arc::default() }
    }

    /// At `now` the owner's question carried back `echo`, a moment of this member's clock, and said how much lease was
    /// `left` when it had heard it.
    pub(crate) fn heard(&self, now: Moment, node: NodeId, epoch: Epoch, echo: Moment, left: Duration) {
        let own = echo >= self.born && echo <= now;
        if epoch == Epoch::ZERO || echo == Moment::default() || left.is_zero() || !own {
            return;
        }
        let fresh = Vouched { node, epoch, until: echo + left };
        self.newest.send_if_modified(|newest| {
            let better = newest.is_none_or(|old| (old.epoch, old.until) < (epoch, fresh.until));
            if better {
                *newest = Some(fresh);
            }
            better
        });
    }

    /// The newest knowledge, lapsed or not, now and on every change.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Vouched>> {
        self.newest.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn counts_from_its_own_earlier_moment_and_never_back() {
        let vouch = Vouch::new(at(800));
        let read = || *vouch.watch().borrow();
        let (one, two) = (Epoch::new(1).expect("small"), Epoch::new(2).expect("small"));
        vouch.heard(at(2000), NodeId(1), one, Moment::default(), Duration::from_millis(300));
        assert_eq!(read(), None, "nothing was echoed yet");
        vouch.heard(at(2000), NodeId(1), one, at(1000), Duration::from_millis(300));
        assert_eq!(read().map(|v| v.until), Some(at(1300)));
        vouch.heard(at(2000), NodeId(1), one, at(900), Duration::from_millis(300));
        assert_eq!(read().map(|v| v.until), Some(at(1300)), "a late message does not shorten it");
        vouch.heard(at(2000), NodeId(2), two, at(1100), Duration::from_millis(100));
        assert_eq!(read().map(|v| (v.node, v.until)), Some((NodeId(2), at(1200))));
        vouch.heard(at(2000), NodeId(1), one, at(1500), Duration::from_millis(300));
        assert_eq!(read().map(|v| v.node), Some(NodeId(2)), "an old owner's message changes nothing");
    }

    proptest! {
        /// Two clocks that show different things, and messages that travel for as long as they like: what the member
        /// believes ends by the owner's clock no later than the lease.
        #[test]
        fn is_never_believed_for_longer_than_the_lease(
            apart in 0u64..100_000, answered in 1u64..10_000, back in 0u64..500, forth in 0u64..500, lease in 0u64..2000,
        ) {
            let owners = |ms| at(apart + ms);
            let until = owners(answered + lease);
            let echo = Echo { theirs: at(answered), heard: owners(answered + back) };
            let vouch = Vouch::new(at(0));
            let epoch = Epoch::new(1).expect("small");
            vouch.heard(at(answered + back + forth), NodeId(1), epoch, echo.theirs, echo.left(until));
            if let Some(vouched) = *vouch.watch().borrow() {
                let believed = vouched.until.since(at(0));
                prop_assert!(owners(0) + believed <= until);
                prop_assert_eq!(owners(0) + believed + Duration::from_millis(back), until, "nothing else is given away");
            }
        }
    }

    #[test]
    fn a_moment_of_the_boot_before_says_nothing() {
        let vouch = Vouch::new(at(30_000));
        let epoch = Epoch::new(1).expect("small");
        let ten_days = at(10 * 24 * 3_600_000);
        vouch.heard(at(30_050), NodeId(1), epoch, ten_days, Duration::from_millis(300));
        assert_eq!(*vouch.watch().borrow(), None, "it would be believed for ten days");
        vouch.heard(at(30_050), NodeId(1), epoch, at(20_000), Duration::from_secs(60));
        assert_eq!(*vouch.watch().borrow(), None);
        vouch.heard(at(30_150), NodeId(1), epoch, at(30_051), Duration::from_millis(300));
        assert_eq!(vouch.watch().borrow().map(|v| v.until), Some(at(30_351)));
    }
}
