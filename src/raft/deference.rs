//! Giving way to another candidate for a while, so that elections on slow disks end.
//!
//! An election takes several disk writes one after the other. A member that was asked for a vote, or for a pre-vote,
//! gives way to that candidate for as long as the candidate says that it needs: meanwhile it neither campaigns nor
//! encourages anybody else. This is courtesy, not safety: it is never asked whether a vote may be given.
//!
//! It ends as soon as a candidate with a newer log comes: the one before may be unable to win at all, and a few members
//! with old logs that give way to each other would otherwise keep out the only one that can be elected.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    clock::{Clock, Moment},
    id::NodeId,
    raft::types::LogId,
};

/// The longest that anybody is given way to.
pub(crate) const PATIENCE_MAX: Duration = Duration::from_secs(10);

/// To whom this member gives way. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Deference {
    clock: Arc<dyn Clock>,
    to: Arc<Mutex<Option<Turn>>>,
}

/// Whose turn it is, until when, and the end of its log.
#[derive(Debug, Clone, Copy)]
struct Turn {
    candidate: NodeId,
    until: Moment,
    log: Option<LogId>,
}

impl Deference {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Deference {
        Deference { clock, to: Arc::default() }
    }

    /// Gives way to `candidate`, whose log ends with `log`, for `patience`, unless it is the turn of another whose log
    /// is not older.
    ///
    /// # Errors
    /// How long the other's turn still lasts.
    pub(crate) fn give_way(
        &self,
        candidate: NodeId,
        log: Option<LogId>,
        patience: Duration,
    ) -> Result<(), Duration> {
        let now = self.clock.now();
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        match *to {
            Some(turn) if turn.candidate != candidate && turn.until > now && turn.log >= log => {
                Err(turn.until.since(now))
            }
            _ => {
                *to = Some(Turn { candidate, until: now + patience.min(PATIENCE_MAX), log });
                Ok(())
            }
        }
    }

    /// Until when this member, whose log ends with `log`, should not campaign itself.
    pub(crate) fn until(&self, me: NodeId, log: Option<LogId>) -> Option<Moment> {
        let to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        to.filter(|turn| turn.candidate != me && turn.log >= log).map(|turn| turn.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::BootClock;

    fn log(index: u64) -> Option<LogId> {
        Some(openraft::LogId::new(openraft::CommittedLeaderId::new(1, 1), index))
    }

    #[test]
    fn the_newer_log_takes_the_turn_and_the_older_waits() {
        let deference = Deference::new(Arc::new(BootClock));
        let (old, new, equal) = (NodeId(1), NodeId(2), NodeId(3));
        deference.give_way(old, log(5), PATIENCE_MAX).expect("nobody was first");
        deference.give_way(equal, log(5), PATIENCE_MAX).expect_err("it is another's turn");
        assert!(deference.until(equal, log(5)).is_some());
        assert!(deference.until(new, log(6)).is_none(), "who has more does not wait for who has less");
        deference.give_way(new, log(6), PATIENCE_MAX).expect("it knows more");
        deference.give_way(old, log(5), PATIENCE_MAX).expect_err("its turn is over");
    }
}
