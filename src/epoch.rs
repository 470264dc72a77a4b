//! The epoch: the fencing token that every start, answer and twin carries.
//!
//! Epochs only grow, and the only arithmetic is [`Epoch::next`]. They come from a committed claim, never from a
//! Raft term: a restarted leader can reuse its term, an epoch is used once.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A number that names one ownership. Zero means that nobody has owned yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    /// Before the first ownership.
    pub const ZERO: Epoch = Epoch(0);
    /// The largest integer that an IoT Hub twin can hold (2^52 - 1).
    pub const MAX: Epoch = Epoch((1 << 52) - 1);

    /// An epoch read back from disk, wire or twin; `None` above [`Epoch::MAX`].
    pub fn new(number: u64) -> Option<Epoch> {
        (number <= Self::MAX.0).then_some(Epoch(number))
    }

    /// The epoch after this one; `None` after [`Epoch::MAX`] (at one a second, 142 million years away).
    pub fn next(self) -> Option<Epoch> {
        Epoch::new(self.0.saturating_add(1))
    }

    /// The number itself, for wire, disk, twin and display.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_ends() {
        assert_eq!(Epoch::ZERO.next(), Epoch::new(1));
        assert_eq!(Epoch::MAX.next(), None);
        assert_eq!(Epoch::new(1 << 52), None);
    }
}
