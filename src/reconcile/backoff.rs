//! How long to leave somebody alone who failed: growing, jittered, limited.
//!
//! A value without clock and without chance of its own: the dice roll is handed in, so that a seed repeats a run.

use std::time::Duration;

/// The first pause, before jitter.
const FIRST: Duration = Duration::from_millis(250);

/// The failures in a row so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after one more failure: between half and all of `250 ms * 2^failures`, at most `cap`. If `at_least` is
    /// given it is that long or up to a quarter second longer, so that many who were told the same do not return at once.
    pub fn next(&mut self, cap: Duration, at_least: Option<Duration>, roll: u64) -> Duration {
        let full = FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(cap);
        self.failures = (self.failures + 1).min(31);
        let own = full / 2 + share(full / 2, roll);
        at_least.map_or(own, |asked| own.max(asked + share(FIRST, roll)))
    }

    /// The last failure was none of this kind.
    pub fn forgive(&mut self) {
        self.failures = self.failures.saturating_sub(1);
    }

    /// It worked: the next failure starts from the first pause again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A duration within a fifth of `around`, on both sides.
pub fn jittered(around: Duration, roll: u64) -> Duration {
    around / 5 * 4 + share(around / 5 * 2, roll)
}

/// A part of `whole`, from nothing to all of it, by the roll.
pub fn share(whole: Duration, roll: u64) -> Duration {
    const STEPS: u64 = 1 << 20;
    let nanos = whole.as_nanos() * u128::from(roll % (STEPS + 1)) / u128::from(STEPS);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn grows_to_its_cap_and_obeys(
            rolls in proptest::collection::vec(any::<u64>(), 1..50),
            cap_ms in 1_u64..100_000,
            asked_ms in proptest::option::of(0_u64..400_000),
        ) {
            let (mut backoff, cap) = (Backoff::default(), Duration::from_millis(cap_ms));
            let asked = asked_ms.map(Duration::from_millis);
            for (failures, roll) in rolls.iter().enumerate() {
                let pause = backoff.next(cap, asked, *roll);
                let full = FIRST.saturating_mul(1 << failures.min(20)).min(cap);
                prop_assert!(pause >= full / 2);
                prop_assert!(pause <= full.max(asked.unwrap_or_default() + FIRST));
                prop_assert!(pause >= asked.unwrap_or_default());
            }
            backoff.reset();
            prop_assert!(backoff.next(cap, None, u64::MAX) <= FIRST);
        }

        #[test]
        fn jitter_stays_within_a_fifth(around_ms in 0_u64..100_000_000, roll: u64) {
            let around = Duration::from_millis(around_ms);
            let found = jittered(around, roll);
            prop_assert!(found >= around / 5 * 4 && found <= around / 5 * 6 + Duration::from_nanos(10));
        }
    }
}
