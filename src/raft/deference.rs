//! Giving way to another candidate for a while, so that elections on slow disks end.
//!
//! An election takes several disk writes one after the other. A member that was asked for a vote, or for a pre-vote,
//! gives way to that candidate for as long as the candidate says that it needs: meanwhile it neither campaigns nor
//! encourages anybody else. This is courtesy, not safety: it is never asked whether a vote may be given.
//!
//! A candidate whose pre-vote fails gives its turn back at once, here and at whoever gave way to it. Otherwise a few
//! members with old logs that give way to each other would keep out the only one that can be elected.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    clock::{Clock, Moment},
    id::NodeId,
};

/// The longest that anybody is given way to.
pub(crate) const PATIENCE_MAX: Duration = Duration::from_secs(10);

/// To whom this member gives way. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Deference {
    clock: Arc<dyn Clock>,
    to: Arc<Mutex<Option<(NodeId, Moment)>>>,
}

impl Deference {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Deference {
        Deference { clock, to: Arc::default() }
    }

    /// Gives way to `candidate` for `patience`, unless it is another's turn.
    ///
    /// # Errors
    /// How long the other's turn still lasts.
    pub(crate) fn give_way(&self, candidate: NodeId, patience: Duration) -> Result<(), Duration> {
        let now = self.clock.now();
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        match *to {
            Some((other, until)) if other != candidate && until > now => Err(until.since(now)),
            _ => {
                *to = Some((candidate, now + patience.min(PATIENCE_MAX)));
                Ok(())
            }
        }
    }

    /// It is no longer the turn of `candidate`, if it was.
    pub(crate) fn release(&self, candidate: NodeId) {
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        if to.is_some_and(|(holder, _)| holder == candidate) {
            *to = None;
        }
    }

    /// Until when this member should not campaign itself.
    pub(crate) fn until(&self, me: NodeId) -> Option<Moment> {
        let to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        to.filter(|(candidate, _)| *candidate != me).map(|(_, until)| until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::BootClock;

    #[test]
    fn a_turn_lasts_until_it_is_given_back() {
        let deference = Deference::new(Arc::new(BootClock));
        let (first, second) = (NodeId(1), NodeId(2));
        deference.give_way(first, PATIENCE_MAX).expect("nobody was first");
        deference.give_way(second, PATIENCE_MAX).expect_err("it is another's turn");
        assert!(deference.until(second).is_some() && deference.until(first).is_none());
        deference.release(second);
        deference.give_way(second, PATIENCE_MAX).expect_err("only the holder gives it back");
        deference.release(first);
        deference.give_way(second, PATIENCE_MAX).expect("it was given back");
    }
}
