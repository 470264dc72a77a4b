//! Which commands of people and programs have been executed, so that a repeat is answered and not executed again.
//!
//! A command that says until when it may be repeated is remembered until then, and forgotten only to make room: clocks that
//! run ahead would forget too early otherwise. There is no clock here; the moment is that of the command that needs
//! the room. One that says nothing of it, as a person's on site, makes room for newer ones when it is the oldest: no clock
//! that is wrong locks that person out. What was refused is deliberately not remembered.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::{
    epoch::Epoch,
    ownership::command::{Once, Refusal},
};

/// How many executed commands are remembered at most.
pub const HANDLED_MAX: usize = 256;
/// How many of them are spared for commands that nobody keeps, so that programs which send many long-lived ones do not
/// lock out the person on site.
pub const HANDLED_SPARE: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Executed {
    id: u64,
    epoch: Epoch,
    /// 0 if it says nothing of it.
    expires_unix_ms: u64,
}

impl Executed {
    /// Whether it may be repeated, by the clock of whoever asks.
    fn is_kept(&self, at_unix_ms: u64) -> bool {
        self.expires_unix_ms > at_unix_ms
    }
}

/// The commands that were executed, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Handled(VecDeque<Executed>);

impl Handled {
    /// The record's epoch after the command with this id was executed, if it was.
    pub(super) fn first(&self, id: u64) -> Option<Epoch> {
        self.0.iter().find(|executed| executed.id == id).map(|executed| executed.epoch)
    }

    /// # Errors
    /// [`Refusal::TooManyCommands`]: all that are remembered may still be repeated.
    pub(super) fn has_room(&self, once: Once) -> Result<(), Refusal> {
        let held = self.0.iter().filter(|executed| executed.is_kept(once.at_unix_ms)).count();
        if once.expires_unix_ms == 0 || held + HANDLED_SPARE < HANDLED_MAX {
            return Ok(());
        }
        Err(Refusal::TooManyCommands { held: u32::try_from(held).unwrap_or(u32::MAX) })
    }

    /// Remembers that it was executed. There has to be room.
    pub(super) fn note(&mut self, once: Once, epoch: Epoch) {
        let Once { id, at_unix_ms, expires_unix_ms } = once;
        let long = self.0.iter().filter(|executed| executed.expires_unix_ms > 0).count();
        if expires_unix_ms > 0 && long + HANDLED_SPARE >= HANDLED_MAX {
            self.0.retain(|executed| executed.expires_unix_ms == 0 || executed.is_kept(at_unix_ms));
        }
        if self.0.len() >= HANDLED_MAX {
            let oldest = self.0.iter().position(|executed| executed.expires_unix_ms == 0);
            self.0.remove(oldest.unwrap_or(0));
        }
        self.0.push_back(Executed { id, epoch, expires_unix_ms });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn once(id: u64, at_unix_ms: u64, expires_unix_ms: u64) -> Once {
        Once { id, at_unix_ms, expires_unix_ms }
    }

    /// Full of commands that expire at `expires`.
    fn full(expires: u64, spare: usize) -> Handled {
        let mut handled = Handled::default();
        for id in 0..HANDLED_MAX - spare {
            handled.note(once(id as u64, 0, expires), Epoch::ZERO);
        }
        handled
    }

    #[test]
    fn nothing_that_may_be_repeated_is_forgotten() {
        const WEEK: u64 = 7 * 24 * 3600 * 1000;
        let mut handled = full(WEEK, HANDLED_SPARE);
        let refused = Err(Refusal::TooManyCommands { held: 192 });
        assert_eq!(handled.has_room(once(900, WEEK - 1, WEEK + 1)), refused);
        assert_eq!(handled.has_room(once(900, WEEK, WEEK + 1)), Ok(()));
        assert!(handled.first(3).is_some(), "kept until the room is needed");
        handled.note(once(900, WEEK, WEEK + 1), Epoch::ZERO);
        assert_eq!((handled.len(), handled.first(3)), (1, None));
    }

    #[test]
    fn long_lived_commands_do_not_lock_out_short_lived_ones() {
        let mut handled = full(u64::MAX, HANDLED_SPARE);
        let (kept, local) = (once(900, 5, 9), once(900, 5, 0));
        assert_eq!(handled.has_room(kept), Err(Refusal::TooManyCommands { held: 192 }));
        assert_eq!(handled.has_room(local), Ok(()));
        for id in 900..1000 {
            handled.note(once(id, 5, 0), Epoch::ZERO);
        }
        assert_eq!(handled.len(), HANDLED_MAX);
        assert!(handled.first(0).is_some() && handled.first(935).is_none() && handled.first(936).is_some());
    }

    /// A device without a battery for its clock believes that it is 1970 until it hears otherwise, which on a site without
    /// internet may be never.
    #[test]
    fn a_clock_that_was_reset_does_not_lock_out_the_person_on_site() {
        const YEAR: u64 = 365 * 24 * 3600 * 1000;
        let mut handled = Handled::default();
        // Once a week for five years, each long expired when the next comes.
        for id in 0..HANDLED_MAX {
            let at = 55 * YEAR + id as u64 * YEAR / 52;
            assert_eq!(handled.has_room(once(id as u64, at, 0)), Ok(()));
            handled.note(once(id as u64, at, 0), Epoch::ZERO);
        }
        assert_eq!(handled.has_room(once(900, 60_000, 0)), Ok(()), "resume, at a minute past 1970");
    }
}
