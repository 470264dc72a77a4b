//! The one clock that decisions read: time since boot, counted through suspend.
//!
//! Wall time never decides anything; [`Clock::wall_ms`] exists to be shown. `CLOCK_BOOTTIME` is used because the
//! monotonic clock stands still while the machine sleeps, and a lease must not. Tests hand in clocks with an offset
//! and a rate of their own.

use std::{fmt, ops::Add, time::Duration};

use serde::{Deserialize, Serialize};

/// A moment on this device's boot clock, in nanoseconds. Moments of two devices cannot be compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment(u64);

impl Moment {
    /// The moment `nanos` nanoseconds after boot.
    pub const fn from_nanos(nanos: u64) -> Moment {
        Moment(nanos)
    }

    /// Nanoseconds after boot.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not after.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This moment moved earlier by `by`, at most to boot.
    pub fn before(self, by: Duration) -> Moment {
        Moment(self.0.saturating_sub(nanos(by)))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, by: Duration) -> Moment {
        Moment(self.0.saturating_add(nanos(by)))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} s after boot", self.0 / 1_000_000_000, self.0 / 1_000_000 % 1000)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Whole microseconds, rounded down; the most that fits for what is longer.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Whole milliseconds, rounded down: what somebody is told is never longer than what is true.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Where the time comes from.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// Now, on a clock that never goes back and counts through suspend.
    fn now(&self) -> Moment;

    /// Milliseconds since 1970 by the wall clock. For display only: it may jump by years.
    fn wall_ms(&self) -> u64;
}

/// The real clock: `CLOCK_BOOTTIME` of the kernel (clock_gettime(2)).
#[derive(Debug, Clone, Copy, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Moment {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(t.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(t.tv_nsec).unwrap_or(0);
        Moment(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    fn wall_ms(&self) -> u64 {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let seconds = u64::try_from(t.tv_sec).unwrap_or(0);
        let millis = u64::try_from(t.tv_nsec).unwrap_or(0) / 1_000_000;
        seconds.saturating_mul(1000).saturating_add(millis)
    }
}

/// Waits until `clock` has reached `moment`.
///
/// The wait itself runs on tokio's timer, which stands still during suspend and knows nothing of a simulated
/// clock's rate, so the clock is asked again after each wait. Cancel-safe.
pub async fn sleep_until(clock: &dyn Clock, moment: Moment) {
    loop {
        let left = moment.since(clock.now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_clock_moves_forward() {
        let first = BootClock.now();
        assert!(BootClock.now() >= first);
        assert!(first > Moment::default());
    }

    #[test]
    fn arithmetic_saturates() {
        let m = Moment::from_nanos(5);
        assert_eq!(m.since(Moment::from_nanos(9)), Duration::ZERO);
        assert_eq!(m.before(Duration::from_secs(1)), Moment::default());
        assert_eq!(m + Duration::MAX, Moment::from_nanos(u64::MAX));
    }
}
