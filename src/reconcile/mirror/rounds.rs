//! When which twin is read again although nothing has happened.
//!
//! One after the other, so that each was compared within `refresh` and an idle site costs the hub little. A hub that
//! fails over to another region forgets what it took in the last five minutes, so the twin that was written last is
//! looked at once more a little later; if it went back, all are. Twins that are missing, refused or ahead are looked at
//! every minute.

use std::time::Duration;

use tokio::time::Instant;

use super::super::backoff::jittered;
use crate::hub::Target;

/// A twin that is missing, refused or ahead is looked at again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Longer than what a hub that fails over forgets, jitter included.
const AFTER_A_WRITE: Duration = Duration::from_secs(400);

/// The next such reads.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// When the next twin's turn comes, and which it is, counted from the first.
    next: Option<Instant>,
    turn: usize,
    written: Option<(Instant, Target)>,
    odd: Option<Instant>,
}

impl Rounds {
    /// This twin was written, or is believed to show what it should because another member confirmed it.
    pub(super) fn wrote(&mut self, target: &Target, now: Instant, roll: u64) {
        self.written = Some((now + jittered(AFTER_A_WRITE, roll), target.clone()));
    }

    /// The moment of the next read of `count` twins, `odd`: whether any of them is odd.
    pub(super) fn at(
        &mut self,
        now: Instant,
        refresh: Duration,
        count: usize,
        odd: bool,
        mut dice: impl FnMut() -> u64,
    ) -> Instant {
        let each = refresh / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        let next = *self.next.get_or_insert_with(|| now + jittered(each, dice()));
        self.odd = odd.then(|| self.odd.unwrap_or_else(|| now + jittered(LOOK_AGAIN.min(refresh), dice())));
        let written = self.written.as_ref().map(|(at, _)| *at);
        [Some(next), written, self.odd].into_iter().flatten().min().unwrap_or(next)
    }

    /// The twins to be read at `now`, and whether the odd ones are among them.
    pub(super) fn due(&mut self, now: Instant, targets: &[Target]) -> (Vec<Target>, bool) {
        let mut due = Vec::new();
        if self.next.is_some_and(|at| at <= now) {
            self.next = None;
            due.extend(targets.get(self.turn % targets.len().max(1)).cloned());
            self.turn = self.turn.wrapping_add(1);
        }
        if let Some((_, target)) = self.written.take_if(|(at, _)| *at <= now) {
            due.push(target);
        }
        (due, self.odd.take_if(|at| *at <= now).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets() -> Vec<Target> {
        ["a", "b", "c"].map(Target::device).to_vec()
    }

    #[tokio::test(start_paused = true)]
    async fn each_twin_has_its_turn_within_the_time_and_the_last_written_a_look_of_its_own() {
        let (mut rounds, targets, refresh) = (Rounds::default(), targets(), Duration::from_secs(3600));
        let began = Instant::now();
        rounds.wrote(&targets[2], began, 0);
        let (mut now, mut reads) = (began, Vec::new());
        while now < began + refresh * 10 {
            now = rounds.at(now, refresh, targets.len(), false, || 1 << 19);
            reads
                .extend(rounds.due(now, &targets).0.into_iter().map(|t| (t.device, (now - began).as_secs())));
        }
        assert_eq!(reads[0].0, "c", "the one that was written: {reads:?}");
        assert!((301..480).contains(&reads[0].1), "{reads:?}");
        let turns: Vec<&str> = reads[1..].iter().map(|(name, _)| name.as_str()).collect();
        assert!(turns.chunks(3).all(|three| ["a", "b", "c"].starts_with(three)), "{turns:?}");
        assert_eq!(turns.len(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn the_odd_ones_are_looked_at_every_minute_and_do_not_put_off_the_others() {
        let (mut rounds, targets, refresh) = (Rounds::default(), targets(), Duration::from_secs(600));
        let (began, mut odd, mut turns) = (Instant::now(), 0, 0);
        let mut now = began;
        while now < began + refresh {
            now = rounds.at(now, refresh, targets.len(), true, || 1 << 19);
            let (due, is_odd) = rounds.due(now, &targets);
            odd += u32::from(is_odd);
            turns += due.len();
        }
        assert!((9..=11).contains(&odd) && (2..=4).contains(&turns), "{odd} {turns}");
    }
}
