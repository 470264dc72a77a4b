//! How a hub that cannot be reached is waited for, and how the sites of one hub return to it together.
//!
//! Knocking costs the hub nothing, so it goes on every half second for ten minutes: the twins shall be right within a
//! second of the hub's return. But a hub with ten thousand sites takes fifty updates a second from all of them. After a
//! long absence each site therefore draws a moment within the time that the hub needs for all.
//!
//! A site does not know when the hub came back, only that it was since its last question: at any moment of that interval
//! alike. It waits a whole number of such intervals, which spreads all sites evenly over the time that they need; a moment drawn
//! from all of that time would come on top of the interval, and the last sites would come late by as much.

use std::time::Duration;

use tokio::time::Instant;

use super::super::backoff::{jittered, share};

/// Between two knocks, during the first [`EAGER`].
const KNOCK: Duration = Duration::from_millis(500);
/// The longest time between two knocks.
const KNOCK_MAX: Duration = Duration::from_secs(5);
/// For so long every half second counts.
const EAGER: Duration = Duration::from_secs(600);
/// Who spoke with the hub so lately has missed too little to return with all others. Whoever has just begun to mirror, because the
/// ownership moved while the hub was away, cannot know for how long it was.
const ALL_AWAY: Duration = Duration::from_secs(20);
/// The time that all sites need together is stretched by so many percent, because they come at random, not in turn.
const SLACK_PERCENT: u32 = 110;

/// An absence of the hub.
#[derive(Debug, Clone, Copy)]
pub(super) struct Away {
    since: Instant,
    /// A knock was answered since the last call failed.
    pub(super) opened: bool,
    /// The moment for this site was drawn already.
    drawn: bool,
    /// How long the pause before the newest question was.
    pub(super) interval: Duration,
}

impl Away {
    /// It begins.
    pub(super) fn since(now: Instant) -> Away {
        Away { since: now, opened: false, drawn: false, interval: Duration::ZERO }
    }

    /// How long until the next knock.
    pub(super) fn knock(&self, now: Instant, roll: u64) -> Duration {
        jittered(interval(now - self.since), roll)
    }

    /// The hub is back: how long to wait for the others' sake before the first update is sent, all of which fit into the
    /// [`window`]. Once per absence. `answered`: when the hub last answered this mirror, if it did.
    pub(super) fn turn(
        &mut self,
        now: Instant,
        answered: Option<Instant>,
        window: Duration,
        roll: u64,
    ) -> Option<Duration> {
        let long = answered.is_none_or(|at| now - at >= ALL_AWAY);
        if !long || std::mem::replace(&mut self.drawn, true) {
            return None;
        }
        if self.interval.is_zero() {
            return Some(share(window, roll));
        }
        let turns = (window.as_nanos() + self.interval.as_nanos() / 2) / self.interval.as_nanos();
        let turn = u128::from(roll) % turns.max(1);
        Some(self.interval.saturating_mul(u32::try_from(turn).unwrap_or(u32::MAX)))
    }
}

/// The longest interval, up to this one, of which whole ones fill the window.
pub(super) fn fitting(window: Duration, interval: Duration) -> Duration {
    if interval.is_zero() || window <= interval {
        return interval;
    }
    let turns = window.as_nanos().div_ceil(interval.as_nanos());
    window / u32::try_from(turns).unwrap_or(u32::MAX)
}

/// Between two knocks after the hub has been away for so long.
pub(crate) fn interval(away: Duration) -> Duration {
    let tenths = u32::try_from(away.as_millis() * 10 / EAGER.as_millis()).unwrap_or(u32::MAX).max(10);
    (KNOCK.saturating_mul(tenths) / 10).min(KNOCK_MAX)
}

/// How long the hub needs until every site has sent its updates, with some room.
pub(crate) fn window(sites: u32, updates: usize, per_second: u32) -> Duration {
    let updates = u32::try_from(updates.max(1)).unwrap_or(u32::MAX);
    let seconds = u64::from(sites) * u64::from(updates) / u64::from(per_second.max(1));
    Duration::from_secs(seconds) * SLACK_PERCENT / 100
}

/// The longest pause after a refusal: while all sites of a hub try again within it, they stay below what it takes.
pub(super) fn patience(sites: u32, per_second: u32, usual: Duration) -> Duration {
    if sites <= 1 { usual } else { usual.max(Duration::from_secs(u64::from(sites / per_second.max(1)))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn intervals_fill_the_window() {
        assert_eq!(fitting(660 * S, 220 * S), 220 * S);
        assert_eq!(fitting(660 * S, 219 * S), 165 * S);
        assert_eq!(fitting(10 * S, 60 * S), 60 * S);
        assert_eq!(fitting(10 * S, Duration::ZERO), Duration::ZERO);
        assert_eq!(fitting(Duration::MAX, Duration::from_nanos(1)), Duration::MAX / u32::MAX);
    }

    #[test]
    fn knocks_are_quick_at_first_and_never_rarer_than_every_few_seconds() {
        assert_eq!(interval(Duration::ZERO), KNOCK);
        assert_eq!(interval(EAGER), KNOCK);
        assert_eq!(interval(EAGER * 4), KNOCK * 4);
        assert_eq!(interval(EAGER * 1000), KNOCK_MAX);
        assert_eq!(interval(Duration::MAX), KNOCK_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_absence_makes_one_wait_and_only_once() {
        let now = Instant::now();
        let (short, long, all) = (now + 19 * S, now + 21 * S, window(10_000, 3, 50));
        assert_eq!(all, 660 * S);
        assert_eq!(Away::since(now).turn(short, Some(now), all, u64::MAX), None);
        let mut away = Away::since(now);
        assert_eq!(away.turn(long, Some(now), all, 1 << 20), Some(all));
        assert_eq!(away.turn(long, Some(now), all, 1 << 20), None);
        let found = Away::since(short).turn(short, None, all, 1 << 20);
        assert_eq!(found, Some(all), "a mirror that has just begun knows nothing better");
        assert_eq!(window(1, 3, 50), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn whole_intervals_are_waited_so_that_with_the_one_before_all_is_filled() {
        let now = Instant::now();
        let turns = |interval: Duration| -> Vec<u64> {
            let turn = |roll| {
                Away { interval, ..Away::since(now) }.turn(now, None, 660 * S, roll).expect("waits").as_secs()
            };
            (0..6).map(turn).collect()
        };
        assert_eq!(turns(132 * S), [0, 132, 264, 396, 528, 0]);
        assert_eq!(turns(220 * S), [0, 220, 440, 0, 220, 440]);
        assert_eq!(turns(2000 * S), [0; 6]);
    }

    #[test]
    fn the_pauses_of_many_sites_are_long_enough_for_all() {
        assert_eq!(patience(10_000, 50, Duration::from_secs(60)), Duration::from_secs(200));
        assert_eq!(patience(1, 50, Duration::from_secs(60)), Duration::from_secs(60));
    }
}
