//! When the sidecar asks its fencer for a sign of life, and from when on silence means that the fencer is lost.
//!
//! A fencer that is frozen or starved holds no deadline. While the lease is renewed that does no harm yet, so it must be
//! noticed before the lease can end: the sidecar asks along with an extension, which wakes both anyway, and a fencer
//! that says nothing for half of what is left of the lease is given up. Where that is so short that a busy device could
//! not answer in time, it is given longer; what then holds is the rule of `driver.rs` for the end of the lease.
//!
//! Pure: it neither asks nor listens itself.

use std::time::Duration;

use crate::{clock::Moment, timing::Timing};

/// No answer is expected sooner than this: a device under full load may need it.
const PATIENCE_MIN: Duration = Duration::from_millis(100);
/// The answer to a start, before which a process is made.
const START_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
enum State {
    /// Nothing runs: it does not matter.
    Quiet,
    /// The next question may be asked from then on.
    Due(Moment),
    /// An answer must be there by then.
    Asked(Moment),
}

/// The signs of life of one fencer.
#[derive(Debug)]
pub(super) struct Pulse {
    every: Duration,
    longest: Duration,
    slack: Duration,
    state: State,
}

impl Pulse {
    /// With nothing to be asked yet.
    pub(super) fn new(timing: &Timing) -> Pulse {
        let hold = timing.hold();
        Pulse {
            every: hold / 8,
            longest: (hold * 2).max(PATIENCE_MIN),
            slack: timing.heartbeat(),
            state: State::Quiet,
        }
    }

    /// A start was passed on, and the first question with it.
    pub(super) fn begin(&mut self, now: Moment) {
        self.state = State::Asked(now + START_PATIENCE.max(self.longest));
    }

    /// Nothing runs any more.
    pub(super) fn rest(&mut self) {
        self.state = State::Quiet;
    }

    /// Whether to ask now, with so much `left` of the lease; `true` counts as asked.
    pub(super) fn ask(&mut self, now: Moment, left: Duration) -> bool {
        let due = matches!(self.state, State::Due(at) if now >= at);
        if due {
            // The site may use a longer lease than the one that is configured, but not without end.
            let patience = (left / 2).clamp(PATIENCE_MIN, self.longest);
            self.state = State::Asked(now + patience);
        }
        due
    }

    /// The fencer said something.
    pub(super) fn heard(&mut self, now: Moment) {
        if let State::Asked(_) = self.state {
            self.state = State::Due(now + self.every);
        }
    }

    /// From when on silence means that it is lost.
    pub(super) fn lost_at(&self) -> Option<Moment> {
        match self.state {
            State::Asked(by) => Some(by),
            State::Quiet | State::Due(_) => None,
        }
    }

    /// When to look again even if nothing happens: a question waits a heartbeat for an extension to go with.
    pub(super) fn wake_at(&self) -> Option<Moment> {
        match self.state {
            State::Quiet => None,
            State::Due(at) => Some(at + self.slack),
            State::Asked(by) => Some(by),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::timing::Settings;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn what_was_not_asked_is_not_missed() {
        let mut pulse = Pulse::new(&Timing::new(&Settings::default()).expect("consistent"));
        let now = Moment::default();
        assert!(!pulse.ask(now, ms(240)) && pulse.lost_at().is_none() && pulse.wake_at().is_none());
        pulse.begin(now);
        assert_eq!(pulse.lost_at(), Some(now + START_PATIENCE));
        pulse.heard(now);
        assert!(!pulse.ask(now, ms(240)) && pulse.lost_at().is_none());
        assert!(pulse.ask(now + ms(30), ms(240)), "it is due");
        assert!(!pulse.ask(now + ms(30), ms(240)), "one question at a time");
        assert_eq!(pulse.lost_at(), Some(now + ms(150)), "half of the lease");
        pulse.rest();
        assert_eq!(pulse.lost_at(), None);
    }

    proptest! {
        /// Whenever the fencer falls silent. After the last extension the rule for the end of the lease holds as well.
        #[test]
        fn silence_is_noticed_before_the_lease_that_was_given_last_ends(
            hold in 200..60_000u64,
            beat in 5..20_000u64,
            silent_from in 0..100_000u64,
            cut_from in 0..100_000u64,
            answer in 0..5u64,
        ) {
            let (hold, beat) = (ms(hold), ms(beat.min(hold / 3)));
            let settings = Settings { hold, heartbeat: beat, ..Settings::default() };
            let timing = Timing::new(&settings).expect("consistent");
            let start = Moment::default();
            let (silent, cut) = (start + ms(silent_from), start + ms(cut_from));
            let mut pulse = Pulse::new(&timing);
            pulse.begin(start);
            pulse.heard(start);
            let (mut extended, mut at_stake) = (start, Some(start + hold));
            let lost = loop {
                let next = Some(extended + beat).filter(|at| *at < cut);
                let now = pulse.wake_at().into_iter().chain(next).min().expect("one of them");
                if pulse.lost_at().is_some_and(|by| now >= by) {
                    break now;
                }
                if next == Some(now) {
                    extended = now;
                }
                let end = extended + hold;
                if pulse.ask(now, end.since(now)) {
                    at_stake = Some(end).filter(|end| end.since(now) > PATIENCE_MIN);
                    if now + ms(answer) < silent {
                        pulse.heard(now + ms(answer));
                    }
                }
            };
            prop_assert!(lost >= silent);
            // As if no later extension had come after the question.
            prop_assert!(at_stake.is_none_or(|end| lost < end), "{lost} against {at_stake:?}");
        }
    }
}
