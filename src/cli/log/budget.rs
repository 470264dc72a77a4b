//! How much of a day's log may still be written: flash wears out, and a device that logs all it can is a device that fails.
//!
//! A day is 24 hours of the boot clock from the sidecar's start, so no wall clock that jumps opens or closes it. What the workload
//! prints may use half of the cap. Errors and decisions, which changes of ownership are, go on beyond the cap until an eighth of it more
//! is used. Pure: it counts, and says what to do.
//!
//! Deliberately not done: remembering across restarts. A sidecar that is started again begins a new day.

use std::time::Duration;

use crate::clock::Moment;

/// One day.
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    /// The workload printed it.
    Workload,
    /// Anything else of the sidecar.
    Plain,
    /// An error, or a decision.
    Important,
}

/// What to write before a line, or in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// A new day; so many lines were dropped in the one before.
    Resumed(u64),
    /// The workload's half is used.
    WorkloadFull,
    /// The cap is reached: only what is important follows.
    Full,
    /// Nothing follows.
    Silent,
}

/// What becomes of one line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// A new day has begun, and that must be told first.
    pub(super) resumed: Option<Notice>,
    /// This is told after that, in place of the line.
    pub(super) full: Option<Notice>,
    /// The line is written.
    pub(super) write: bool,
}

/// The state of one day.
#[derive(Debug)]
pub(super) struct Budget {
    /// Bytes a day; 0: any number.
    cap: u64,
    day_began: Moment,
    used: u64,
    by_workload: u64,
    dropped: u64,
    told: [bool; 3],
}

impl Budget {
    /// At most `cap` bytes a day, and an eighth of it for what is important; any number if `cap` is 0.
    pub(super) fn new(cap: u64, now: Moment) -> Budget {
        Budget { cap, day_began: now, used: 0, by_workload: 0, dropped: 0, told: [false; 3] }
    }

    /// When the present day ends.
    pub(super) fn day_ends(&self) -> Moment {
        self.day_began + DAY
    }

    /// A line of `bytes` bytes that somebody wants to write at `now`. Notices are not counted: there are at most four a day.
    pub(super) fn ask(&mut self, weight: Weight, bytes: usize, now: Moment) -> Verdict {
        if self.cap == 0 {
            return Verdict { write: true, ..Verdict::default() };
        }
        let resumed = self.turn(now);
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let total = self.used.saturating_add(bytes);
        let mine = self.by_workload.saturating_add(bytes);
        let full = match weight {
            Weight::Important if total > self.cap + self.cap / 8 => Some(Notice::Silent),
            Weight::Important => None,
            _ if total > self.cap => Some(Notice::Full),
            Weight::Workload if mine > self.cap / 2 => Some(Notice::WorkloadFull),
            _ => None,
        };
        let Some(notice) = full else {
            self.used = total;
            if weight == Weight::Workload {
                self.by_workload = mine;
            }
            return Verdict { resumed, full: None, write: true };
        };
        self.dropped = self.dropped.saturating_add(1);
        Verdict { resumed, full: self.first(notice), write: false }
    }

    /// Begins the day that `now` lies in, if it is a new one.
    fn turn(&mut self, now: Moment) -> Option<Notice> {
        let days = now.since(self.day_began).as_secs() / DAY.as_secs();
        if days == 0 {
            return None;
        }
        let dropped = self.dropped;
        let began = self.day_began + Duration::from_secs(days.saturating_mul(DAY.as_secs()));
        *self = Budget::new(self.cap, began);
        (dropped > 0).then_some(Notice::Resumed(dropped))
    }

    /// The notice, if it was not given today. Whoever was told that nothing follows is told nothing else.
    fn first(&mut self, notice: Notice) -> Option<Notice> {
        let of = match notice {
            Notice::Silent => 2,
            Notice::Full => 1,
            _ => 0,
        };
        let said = self.told.iter().skip(of).any(|told| *told);
        if let Some(told) = self.told.get_mut(of) {
            *told = true;
        }
        (!said).then_some(notice)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn weight() -> impl Strategy<Value = Weight> {
        prop_oneof![Just(Weight::Workload), Just(Weight::Plain), Just(Weight::Important)]
    }

    #[test]
    fn a_day_ends_with_one_word_and_the_next_begins_with_one() {
        let mut now = Moment::from_nanos(5);
        let mut budget = Budget::new(800, now);
        let write = Verdict { write: true, ..Verdict::default() };
        let tell = |notice| Verdict { full: Some(notice), ..Verdict::default() };
        assert_eq!(budget.ask(Weight::Workload, 400, now), write);
        assert_eq!(budget.ask(Weight::Workload, 1, now), tell(Notice::WorkloadFull));
        assert_eq!(budget.ask(Weight::Workload, 1, now), Verdict::default());
        assert_eq!(budget.ask(Weight::Plain, 400, now), write, "the other half is the sidecar's own");
        assert_eq!(budget.ask(Weight::Plain, 1, now), tell(Notice::Full));
        assert_eq!(budget.ask(Weight::Plain, 1, now), Verdict::default());
        assert_eq!(budget.ask(Weight::Important, 100, now), write);
        assert_eq!(budget.ask(Weight::Important, 1, now), tell(Notice::Silent));
        assert_eq!(budget.ask(Weight::Important, 1, now), Verdict::default());
        assert_eq!(budget.ask(Weight::Workload, 1, now), Verdict::default());
        now = budget.day_ends();
        let resumed = Verdict { resumed: Some(Notice::Resumed(7)), full: None, write: true };
        assert_eq!(budget.ask(Weight::Plain, 1, now), resumed);
        assert_eq!(budget.ask(Weight::Plain, 1, now), write);
    }

    #[test]
    fn without_a_cap_everything_is_written() {
        let now = Moment::default();
        let mut budget = Budget::new(0, now);
        assert!((0..100).all(|_| budget.ask(Weight::Workload, usize::MAX, now).write));
    }

    proptest! {
        /// Whatever is logged and whenever: no day's lines exceed the cap and its eighth, the workload's its half, and notices are few.
        #[test]
        fn no_day_holds_more_than_it_may(
            cap in 1u64..2000,
            lines in prop::collection::vec((weight(), 0usize..300, 0u64..40_000), 0..400),
        ) {
            let mut now = Moment::from_nanos(7);
            let start = now;
            let mut budget = Budget::new(cap, now);
            let mut days = std::collections::BTreeMap::<u64, (u64, u64, u64, u64)>::new();
            for (weight, bytes, seconds) in lines {
                now = now + Duration::from_secs(seconds * u64::from(seconds > 30_000));
                let day = days.entry(now.since(start).as_secs() / DAY.as_secs()).or_default();
                let verdict = budget.ask(weight, bytes, now);
                prop_assert!(!(verdict.write && verdict.full.is_some()));
                day.3 += u64::from(verdict.resumed.is_some()) + u64::from(verdict.full.is_some());
                if verdict.write {
                    day.0 += bytes as u64;
                    day.1 += if weight == Weight::Important { 0 } else { bytes as u64 };
                    day.2 += if weight == Weight::Workload { bytes as u64 } else { 0 };
                } else {
                    // Nothing is dropped in silence that would have fit.
                    let most = if weight == Weight::Important { cap + cap / 8 } else { cap };
                    let own = weight == Weight::Workload && day.2 + bytes as u64 > cap / 2;
                    prop_assert!(own || day.0 + bytes as u64 > most);
                }
            }
            for (all, plain, workload, notices) in days.into_values() {
                prop_assert!(all <= cap + cap / 8 && plain <= cap && workload <= cap / 2 && notices <= 4);
            }
        }
    }
}
