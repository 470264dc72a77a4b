//! How a hub that cannot be reached is waited for, and how the sites of one hub return to it together.
//!
//! Knocking costs the hub nothing, so it goes on every half second for ten minutes: the twins shall be right within a
//! second of the hub's return. But a hub with ten thousand sites takes fifty updates a second from all of them. After a
//! long absence each site therefore draws a moment within the time that the hub needs for all.

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
}

impl Away {
    /// It begins.
    pub(super) fn since(now: Instant) -> Away {
        Away { since: now, opened: false, drawn: false }
    }

    /// How long until the next knock.
    pub(super) fn knock(&self, now: Instant, roll: u64) -> Duration {
        jittered(interval(now - self.since), roll)
    }

    /// The hub is back: how long to wait for the others' sake before the first of `updates` is sent. Once per absence. `answered`:
    /// when the hub last answered this mirror, if it did.
    pub(super) fn turn(
        &mut self,
        now: Instant,
        answered: Option<Instant>,
        sites: u32,
        updates: usize,
        per_second: u32,
        roll: u64,
    ) -> Option<Duration> {
        let long = answered.is_none_or(|at| now - at >= ALL_AWAY);
        if sites <= 1 || !long || std::mem::replace(&mut self.drawn, true) {
            return None;
        }
        Some(share(window(sites, updates, per_second), roll))
    }
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

    #[test]
    fn knocks_are_quick_at_first_and_never_rarer_than_every_few_seconds() {
        assert_eq!(interval(Duration::ZERO), KNOCK);
        assert_eq!(interval(EAGER), KNOCK);
        assert_eq!(interval(EAGER * 4), KNOCK * 4);
        assert_eq!(interval(EAGER * 1000), KNOCK_MAX);
        assert_eq!(interval(Duration::MAX), KNOCK_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn only_many_sites_and_a_long_absence_make_one_wait_and_only_once() {
        let now = Instant::now();
        let (short, long) = (now + Duration::from_secs(19), now + Duration::from_secs(21));
        let turn = |at, sites| Away::since(now).turn(at, Some(now), sites, 3, 50, u64::MAX);
        assert_eq!((turn(long, 1), turn(short, 10_000)), (None, None));
        let mut away = Away::since(now);
        let found = away.turn(long, Some(now), 10_000, 3, 50, 1 << 20).expect("waits");
        assert_eq!(found, Duration::from_secs(660));
        assert_eq!(away.turn(long, Some(now), 10_000, 3, 50, 1 << 20), None);
        let found = Away::since(short).turn(short, None, 10_000, 3, 50, 1 << 20);
        assert_eq!(
            found,
            Some(Duration::from_secs(660)),
            "a mirror that has just begun knows nothing better"
        );
        assert_eq!(patience(10_000, 50, Duration::from_secs(60)), Duration::from_secs(200));
        assert_eq!(patience(1, 50, Duration::from_secs(60)), Duration::from_secs(60));
    }
}
