//! The one clock that decisions read: time since boot, counted through suspend.
//!
//! Wall time never decides anything; [`Clock::wall_ms`] exists to be shown. Nor does anything that follows it: to set a wrong
//! wall clock right, time services let the kernel's clocks run up to a tenth too fast or too slow for as long as it takes
//! (adjtimex(2); chrony does so by a twelfth unless `maxslewrate` says otherwise), `CLOCK_BOOTTIME` included. So
//! this clock goes at the raw rate of the hardware, and adds the time that the machine has slept, for a lease must not stand
//! still in suspend. Tests hand in clocks with an offset and a rate of their own.

use std::{
    fmt,
    ops::Add,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
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

/// The real clock: `CLOCK_MONOTONIC_RAW` of the kernel (clock_gettime(2)), and the time in suspend.
#[derive(Debug, Clone, Copy, Default)]
pub struct BootClock;

/// What all readings of this process have shown of the time in suspend.
static SLEPT: Slept = Slept(AtomicI64::new(i64::MIN));

impl Clock for BootClock {
    fn now(&self) -> Moment {
        let boot = read(ClockId::Boottime);
        let monotonic = read(ClockId::Monotonic);
        // Last, so that a pause since the first reading counts.
        let slept = SLEPT.at_least(boot, monotonic);
        Moment(read(ClockId::MonotonicRaw).saturating_add_signed(slept))
    }

    fn wall_ms(&self) -> u64 {
        read(ClockId::Realtime) / 1_000_000
    }
}

/// Now as the kernel's timers on `CLOCK_BOOTTIME` see it: for them alone, because it may be slewed.
pub(crate) fn boottime() -> Moment {
    Moment(read(ClockId::Boottime))
}

/// A moment on the kernel's `CLOCK_BOOTTIME` that comes no later than `until` on `clock`, for programs that cannot read
/// [`BootClock`]. A time service may have the kernel's clock run a tenth too slow, so a tenth is given away.
pub fn boottime_within(until: Moment, clock: &dyn Clock) -> Moment {
    // Read first: what passes until the other clock is read is given away too.
    let kernel = boottime();
    kernel + until.since(clock.now()) / 10 * 9
}

fn read(clock: ClockId) -> u64 {
    let t = clock_gettime(clock);
    let seconds = u64::try_from(t.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(t.tv_nsec).unwrap_or(0))
}

/// For how many nanoseconds the machine has slept since boot. It only grows. Where a time namespace has moved boot time
/// (time_namespaces(7)), that is in it, so it may be negative.
struct Slept(AtomicI64);

impl Slept {
    /// Boot time and monotonic time go at one rate, whatever that is, and are apart by the time in suspend. Read in this order
    /// they never seem further apart than they are, only less by what passed between: so the most that was ever seen is true.
    fn at_least(&self, boot: u64, monotonic: u64) -> i64 {
        let seen = boot.wrapping_sub(monotonic).cast_signed();
        self.0.fetch_max(seen, Ordering::Relaxed).max(seen)
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
    fn boot_clock_goes_on_in_suspend() {
        let slept = Slept(AtomicI64::new(i64::MIN));
        // The second reading came 40 ns late.
        assert_eq!(slept.at_least(1_000, 1_040), -40);
        // A sleep, first seen by a reading with a pause in it.
        assert_eq!(slept.at_least(5_000_000, 2_300_000), 2_700_000);
        assert_eq!(slept.at_least(5_500_000, 2_500_040), 2_999_960);
        assert_eq!(slept.at_least(7_000_000, 5_000_000), 2_999_960, "it never goes back");
    }

    #[test]
    fn boot_clock_is_the_kernels_where_nobody_slews() {
        // Since the start of this machine a time service may have slewed it, but never by more than a tenth.
        let (boot, ours) = (read(ClockId::Boottime), BootClock.now().as_nanos());
        assert!(boot.abs_diff(ours) <= boot / 10 + 1_000_000_000, "{boot} and {ours}");
    }

    #[test]
    fn arithmetic_saturates() {
        let m = Moment::from_nanos(5);
        assert_eq!(m.since(Moment::from_nanos(9)), Duration::ZERO);
        assert_eq!(m.before(Duration::from_secs(1)), Moment::default());
        assert_eq!(m + Duration::MAX, Moment::from_nanos(u64::MAX));
    }
}
