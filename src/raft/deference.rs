//! Giving way to another candidate for a while, so that elections on slow disks end.
//!
//! An election takes several disk writes one after the other. A member that was asked for a vote, or for a pre-vote,
//! gives way to that candidate for as long as the candidate says that it needs: meanwhile it neither campaigns nor
//! encourages anybody else. This is courtesy, not safety: it is never asked whether a vote may be given.
//!
//! Two candidates that stand at the same moment must not refuse each other and both come to nothing: as long as neither
//! has its majority, the one with the older log yields, and of equals the one with the higher number. And a candidate whose pre-vote fails gives its turn back at
//! once, here and at whoever gave way to it.

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
    to: Arc<Mutex<Option<Turn>>>,
}

#[derive(Debug, Clone, Copy)]
struct Turn {
    of: NodeId,
    until: Moment,
    /// This member's own candidacy, and a majority has not encouraged it yet.
    asking: bool,
}

impl Deference {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Deference {
        Deference { clock, to: Arc::default() }
    }

    /// Gives way to `candidate` for `patience`, unless it is another's turn.
    ///
    /// # Errors
    /// How long the other's turn still lasts; zero if no majority has encouraged it yet.
    pub(crate) fn give_way(&self, candidate: NodeId, patience: Duration) -> Result<(), Duration> {
        self.take(candidate, patience, false)
    }

    /// Begins the own candidacy, unless it is another's turn.
    ///
    /// # Errors
    /// How long the other's turn still lasts.
    pub(crate) fn stand(&self, me: NodeId, patience: Duration) -> Result<(), Duration> {
        self.take(me, patience, true)
    }

    fn take(&self, candidate: NodeId, patience: Duration, asking: bool) -> Result<(), Duration> {
        let now = self.clock.now();
        let mut to = self.lock();
        match *to {
            Some(turn)
                if turn.of != candidate && turn.until > now && !(turn.asking && candidate < turn.of) =>
            {
                // Who only asks has its answers in a moment, and may come to nothing.
                Err(if turn.asking { Duration::ZERO } else { turn.until.since(now) })
            }
            _ => {
                *to = Some(Turn { of: candidate, until: now + patience.min(PATIENCE_MAX), asking });
                Ok(())
            }
        }
    }

    /// A majority encourages the own candidacy. False if this member has given way to another meanwhile.
    pub(crate) fn encouraged(&self, me: NodeId) -> bool {
        match self.lock().as_mut() {
            Some(turn) if turn.of == me => {
                turn.asking = false;
                true
            }
            _ => false,
        }
    }

    /// The own candidacy takes longer. False if this member has given way to another meanwhile.
    pub(crate) fn extend(&self, me: NodeId, patience: Duration) -> bool {
        let until = self.clock.now() + patience.min(PATIENCE_MAX);
        match self.lock().as_mut().filter(|turn| turn.of == me) {
            Some(turn) => {
                turn.until = turn.until.max(until);
                true
            }
            None => false,
        }
    }

    /// Ends the own candidacy if it only asks so far: somebody stands who will refuse it.
    pub(crate) fn withdraw(&self, me: NodeId) {
        let mut to = self.lock();
        if to.is_some_and(|turn| turn.of == me && turn.asking) {
            *to = None;
        }
    }

    /// It is no longer the turn of `candidate`, if it was.
    pub(crate) fn release(&self, candidate: NodeId) {
        let mut to = self.lock();
        if to.is_some_and(|turn| turn.of == candidate) {
            *to = None;
        }
    }

    /// Until when this member should not campaign itself.
    pub(crate) fn until(&self, me: NodeId) -> Option<Moment> {
        self.lock().filter(|turn| turn.of != me).map(|turn| turn.until)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Turn>> {
        self.to.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::BootClock;

    const LONG: Duration = PATIENCE_MAX;

    #[test]
    fn a_turn_lasts_until_it_is_given_back() {
        let deference = Deference::new(Arc::new(BootClock));
        let (first, second) = (NodeId(1), NodeId(2));
        deference.give_way(second, LONG).expect("nobody was first");
        deference.give_way(first, LONG).expect_err("it is another's turn");
        assert!(deference.until(first).is_some() && deference.until(second).is_none());
        deference.release(first);
        deference.give_way(first, LONG).expect_err("only the holder gives it back");
        deference.release(second);
        deference.give_way(first, LONG).expect("it was given back");
    }

    #[test]
    fn a_candidacy_that_only_asks_can_be_withdrawn() {
        let deference = Deference::new(Arc::new(BootClock));
        let (low, high) = (NodeId(1), NodeId(2));
        deference.stand(low, LONG).expect("nobody was first");
        deference.give_way(high, LONG).expect_err("the lower number goes first");
        deference.withdraw(low);
        deference.give_way(high, LONG).expect("it was withdrawn");
        assert!(!deference.encouraged(low));
        deference.release(high);
        deference.stand(low, LONG).expect("nobody was first");
        assert!(deference.encouraged(low));
        deference.withdraw(low);
        deference.give_way(high, LONG).expect_err("an election is under way");
    }

    #[test]
    fn only_its_holder_makes_a_turn_longer() {
        let deference = Deference::new(Arc::new(BootClock));
        let (first, second) = (NodeId(1), NodeId(2));
        assert!(!deference.extend(first, LONG), "it is nobody's turn");
        deference.stand(first, Duration::ZERO).expect("free");
        assert!(deference.extend(first, LONG));
        deference.give_way(second, LONG).expect_err("it has become longer");
        assert!(!deference.extend(second, LONG));
        assert!(deference.extend(first, Duration::ZERO));
        deference.give_way(second, LONG).expect_err("and never becomes shorter");
    }

    #[test]
    fn of_two_that_stand_at_once_exactly_one_goes_on() {
        let (low, high) = (NodeId(1), NodeId(2));
        let (a, b) = (Deference::new(Arc::new(BootClock)), Deference::new(Arc::new(BootClock)));
        a.stand(low, LONG).expect("free");
        b.stand(high, LONG).expect("free");
        // Whichever question arrives first.
        a.give_way(high, LONG).expect_err("it asks itself, and goes first");
        b.give_way(low, LONG).expect("it asks itself, and yields");
        assert!(a.encouraged(low));
        assert!(!b.encouraged(high), "it has given its own vote away");
        assert!(b.until(high).is_some());
    }

    #[test]
    fn an_encouraged_candidate_yields_to_nobody() {
        let (low, high) = (NodeId(1), NodeId(2));
        let deference = Deference::new(Arc::new(BootClock));
        deference.stand(high, LONG).expect("free");
        assert!(deference.encouraged(high));
        deference.give_way(low, LONG).expect_err("an election is under way");
        deference.release(high);
        assert!(!deference.encouraged(high), "a turn that was given back does not return");
    }
}
