//! Giving way to another candidate for a while, so that elections on slow disks end.
//!
//! An election takes several disk writes one after the other. A member that was asked for a vote, or for a pre-vote,
//! gives way to that candidate for as long as the candidate says that it needs: meanwhile it neither campaigns nor
//! encourages anybody else. This is courtesy, not safety: it is never asked whether a vote may be given.

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

    /// Until when this member should not campaign itself.
    pub(crate) fn until(&self, me: NodeId) -> Option<Moment> {
        let to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        to.filter(|(candidate, _)| *candidate != me).map(|(_, until)| until)
    }
}
