//! The timing in use, as the site has agreed on it: the configured one, or a wider one while there is trouble.
//!
//! Widening takes one command: whoever has it on disk may promise for longer, and refuses votes for as long after a
//! restart. Narrowing takes two: the owner asks for less at once, and a restart waits less only when every lease that was
//! asked for with the wider timing has certainly ended. This file deliberately does not say when to change anything:
//! that is [`super::vitals`]' business.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::command::{Command, Refusal, SetTiming, SettleTiming};
use crate::{
    clock::micros,
    timing::{REFUSAL_MAX, Timing},
};

/// As configured, in hundredths.
pub const CONFIGURED: u32 = 100;
/// The widest that a timing can be, in hundredths.
pub const STRETCH_MAX: u32 = 6400;

/// What has been agreed about the timing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// Grows with every change.
    pub version: u64,
    /// Hundredths of the configured heartbeat and hold.
    pub stretch: u32,
    /// The refusal window that goes with it, in microseconds; 0 before the first change.
    pub refusal_us: u64,
    /// The widest refusal window that a promise which still counts may have, in microseconds.
    pub widest_us: u64,
    /// Why it is so.
    pub reason: String,
    /// Since when, by the proposer's wall clock.
    pub since_unix_ms: u64,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            version: 0,
            stretch: CONFIGURED,
            refusal_us: 0,
            widest_us: 0,
            reason: String::new(),
            since_unix_ms: 0,
        }
    }
}

impl Pace {
    /// The timing in use on a device that is configured like this. What was agreed for another configuration, and does not
    /// cover this one, is not used.
    pub fn timing(&self, configured: &Timing) -> Timing {
        let stretched = configured.stretched(self.stretch);
        if micros(stretched.refusal()) <= self.refusal_us { stretched } else { *configured }
    }

    /// How long a promise may bind at most, and so how long a restart that has forgotten it must wait; besides what was
    /// ever configured.
    pub fn widest(&self) -> Duration {
        Duration::from_micros(self.widest_us)
    }

    /// Whether a wider window than the one in use may still bind somebody.
    pub fn settling(&self) -> bool {
        self.widest_us > self.refusal_us
    }

    /// The command that changes it to `stretch`.
    pub fn change(&self, configured: &Timing, stretch: u32, reason: String, at_unix_ms: u64) -> SetTiming {
        let refusal_us = micros(configured.stretched(stretch).refusal());
        SetTiming { base: self.version, stretch, refusal_us, reason, at_unix_ms }
    }

    /// Applies a command about timing; others are ignored.
    ///
    /// # Errors
    /// [`Refusal::OtherTiming`] or [`Refusal::ImpossibleTiming`]; then nothing was changed.
    pub fn apply(&mut self, command: &Command) -> Result<(), Refusal> {
        match command {
            Command::SetTiming(set) => {
                self.expect(set.base)?;
                let possible = set.stretch >= CONFIGURED && set.refusal_us <= micros(REFUSAL_MAX);
                if !possible {
                    return Err(Refusal::ImpossibleTiming);
                }
                *self = Pace {
                    version: self.version + 1,
                    stretch: set.stretch,
                    refusal_us: set.refusal_us,
                    widest_us: self.widest_us.max(set.refusal_us),
                    reason: set.reason.clone(),
                    since_unix_ms: set.at_unix_ms,
                };
            }
            Command::SettleTiming(SettleTiming { base }) => {
                self.expect(*base)?;
                self.widest_us = self.refusal_us;
            }
            _ => {}
        }
        Ok(())
    }

    fn expect(&self, base: u64) -> Result<(), Refusal> {
        if base == self.version { Ok(()) } else { Err(Refusal::OtherTiming { now: self.version, base }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timing::Settings;

    fn configured() -> Timing {
        Timing::new(&Settings::default()).expect("defaults hold")
    }

    fn set(pace: &mut Pace, stretch: u32) {
        let command = pace.change(&configured(), stretch, "it is slow".into(), 5);
        pace.apply(&Command::SetTiming(command)).expect("fits");
    }

    #[test]
    fn wider_at_once_and_narrower_in_two_steps() {
        let mut pace = Pace::default();
        assert_eq!((pace.timing(&configured()), pace.settling()), (configured(), false));
        set(&mut pace, 400);
        let wide = configured().stretched(400);
        assert_eq!((pace.timing(&configured()), pace.widest()), (wide, wide.refusal()));
        set(&mut pace, 100);
        assert_eq!(pace.timing(&configured()), configured(), "nobody asks for more than this");
        assert_eq!(pace.widest(), wide.refusal(), "but a restart still waits for what may have been asked");
        assert!(pace.settling());
        let settle = |base| Command::SettleTiming(SettleTiming { base });
        assert_eq!(pace.apply(&settle(1)), Err(Refusal::OtherTiming { now: 2, base: 1 }));
        pace.apply(&settle(2)).expect("fits");
        assert_eq!(pace.widest(), configured().refusal());
        assert!(!pace.settling());
    }

    #[test]
    fn what_was_agreed_for_another_configuration_is_not_used() {
        let mut pace = Pace::default();
        set(&mut pace, 200);
        let longer = Settings { hold: Duration::from_secs(3), ..Settings::default() };
        let longer = Timing::new(&longer).expect("consistent");
        assert_eq!(pace.timing(&longer), longer);
    }

    #[test]
    fn impossible_timings_change_nothing() {
        for (stretch, refusal_us) in [(0, 1), (99, 1), (200, u64::MAX)] {
            let mut pace = Pace::default();
            let command = SetTiming { base: 0, stretch, refusal_us, reason: String::new(), at_unix_ms: 0 };
            assert_eq!(pace.apply(&Command::SetTiming(command)), Err(Refusal::ImpossibleTiming));
            assert_eq!(pace, Pace::default());
        }
    }
}
