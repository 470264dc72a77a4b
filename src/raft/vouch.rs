//! What a member that does not own may truthfully say about the owner, and for how long.
//!
//! The owner tells with each renewal how much of its lease is left. How long the message travelled is unknown, so the
//! member counts from a moment of its own that surely lies before: each of its answers carries its clock, the owner
//! sends that back with the next question, and the lease that is reported was still to run when that came back.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{clock::Moment, epoch::Epoch, id::NodeId};

/// The newest such knowledge. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Vouch(Arc<watch::Sender<Option<Vouched>>>);

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
    /// The owner's question carried back `echo`, a moment of this member's clock, and said how much lease was `left`. At
    /// `now`, such a moment has passed; one that has not was never this member's.
    pub(crate) fn heard(&self, node: NodeId, epoch: Epoch, echo: Moment, left: Duration, now: Moment) {
        if epoch == Epoch::ZERO || echo == Moment::default() || left.is_zero() || echo > now {
            return;
        }
        let fresh = Vouched { node, epoch, until: echo + left };
        self.0.send_if_modified(|newest| {
            let better = newest.is_none_or(|old| (old.epoch, old.until) < (epoch, fresh.until));
            if better {
                *newest = Some(fresh);
            }
            better
        });
    }

    /// The newest knowledge, lapsed or not, now and on every change.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Vouched>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn counts_from_its_own_earlier_moment_and_never_back() {
        let vouch = Vouch::default();
        let read = || *vouch.watch().borrow();
        let (one, two) = (Epoch::new(1).expect("small"), Epoch::new(2).expect("small"));
        vouch.heard(NodeId(1), one, Moment::default(), Duration::from_millis(300), at(2000));
        assert_eq!(read(), None, "nothing was echoed yet");
        vouch.heard(NodeId(1), one, at(1000), Duration::from_millis(300), at(2000));
        assert_eq!(read().map(|v| v.until), Some(at(1300)));
        vouch.heard(NodeId(1), one, at(900), Duration::from_millis(300), at(2000));
        assert_eq!(read().map(|v| v.until), Some(at(1300)), "a late message does not shorten it");
        vouch.heard(NodeId(2), two, at(1100), Duration::from_millis(100), at(2000));
        assert_eq!(read().map(|v| (v.node, v.until)), Some((NodeId(2), at(1200))));
        vouch.heard(NodeId(1), one, at(1500), Duration::from_millis(300), at(2000));
        assert_eq!(read().map(|v| v.node), Some(NodeId(2)), "an old owner's message changes nothing");
        vouch.heard(NodeId(2), two, at(2001), Duration::from_millis(300), at(2000));
        assert_eq!(read().map(|v| v.until), Some(at(1200)), "that moment has not been yet");
    }
}
