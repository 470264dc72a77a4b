//! Chance as a value: a seeded dice cup that is handed to whoever needs it.
//!
//! Used for jitter only, never for keys or secrets. SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
//! Generators, OOPSLA 2014), because ten lines that never change beat a generator whose output may.

use std::time::Duration;

/// A dice cup. The same seed gives the same throws.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// A cup with this seed.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// The next throw: any 64-bit number.
    pub fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A duration from zero up to, not including, `limit`.
    pub fn up_to(&mut self, limit: Duration) -> Duration {
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX).max(1);
        Duration::from_nanos(self.throw() % nanos)
    }

    /// Another cup, whose throws are independent of this one's.
    pub fn split(&mut self) -> Dice {
        Dice(self.throw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_throws() {
        let mut dice = Dice::new(0);
        assert_eq!([dice.throw(), dice.throw()], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
        assert!(dice.up_to(Duration::from_millis(5)) < Duration::from_millis(5));
        assert_eq!(dice.up_to(Duration::ZERO), Duration::ZERO);
    }
}
