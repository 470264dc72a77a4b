//! How well this device and its network keep up, and what follows from that.
//!
//! Measured all the time, from what happens anyway: how late the lease loop's own ticks come, how much of its margin the
//! owner loses from one renewal to the next, how long answers and durable writes take. [`advise`] is pure: it tells a
//! device whose own stalls endanger its lease from a network that is slow for everybody. The first hands over while it
//! still can; the second gets a wider timing, and the configured one back when it was well for a minute.

use std::{collections::VecDeque, fmt, time::Duration};

use super::pace::{CONFIGURED, Pace};
use crate::{
    clock::{Moment, millis},
    timing::Timing,
};

/// A thing that happens in so many of the last seconds is no accident.
const REPEATED: usize = 3;
/// The seconds in which it is looked for.
const RECENT: u64 = 10;
/// For how many seconds a strained device must be well before it may own again.
const REST: u64 = 30;
/// For how many seconds everything must be well before the timing is narrowed; as long as anything is remembered.
const CALM: u64 = 60;
/// After a change of timing or of ownership nothing is changed again for so long.
pub const COOL_DOWN: Duration = Duration::from_secs(10);

/// The worst of each second, for a minute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Series(VecDeque<(u64, Duration)>);

fn second(now: Moment) -> u64 {
    now.as_nanos() / 1_000_000_000
}

impl Series {
    /// Something took so long.
    pub fn note(&mut self, now: Moment, took: Duration) {
        let this = second(now);
        match self.0.back_mut() {
            Some((at, worst)) if *at == this => *worst = (*worst).max(took),
            _ => self.0.push_back((this, took)),
        }
        while self.0.front().is_some_and(|(at, _)| at + CALM < this) {
            self.0.pop_front();
        }
    }

    fn within(&self, now: Moment, seconds: u64) -> impl Iterator<Item = Duration> {
        let from = second(now).saturating_sub(seconds);
        self.0.iter().filter(move |(at, _)| *at >= from).map(|(_, worst)| *worst)
    }

    /// The worst of the last `seconds`, at most 60; zero if nothing was noted.
    pub fn worst(&self, now: Moment, seconds: u64) -> Duration {
        self.within(now, seconds).max().unwrap_or_default()
    }

    /// In how many of the last ten seconds it took longer than `limit`.
    fn bad_seconds(&self, now: Moment, limit: Duration) -> usize {
        self.within(now, RECENT).filter(|took| *took > limit).count()
    }
}

/// Everything that is measured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vitals {
    /// By how much the lease loop's ticks came too late: this device did not run its own tasks.
    pub late: Series,
    /// By how much later than planned the owner had a quorum's next answers, counted from its question before.
    pub eaten: Series,
    /// How long members took to answer a renewal.
    pub round_trip: Series,
    /// How long durable writes took.
    pub write: Series,
    /// In the last seconds: questions asked of other members, and answers.
    answers: VecDeque<(u64, u32, u32)>,
}

impl Vitals {
    /// So many members were asked, or have answered.
    pub fn questions(&mut self, now: Moment, asked: u32, answered: u32) {
        let this = second(now);
        match self.answers.back_mut() {
            Some((at, a, b)) if *at == this => (*a, *b) = (*a + asked, *b + answered),
            _ => self.answers.push_back((this, asked, answered)),
        }
        while self.answers.front().is_some_and(|(at, ..)| at + RECENT < this) {
            self.answers.pop_front();
        }
    }

    /// How many of a hundred questions of the last ten seconds were not answered.
    pub fn unanswered_percent(&self) -> u32 {
        let (asked, answered) = self.answers.iter().fold((0, 0), |(a, b), (_, x, y)| (a + x, b + y));
        (asked.saturating_sub(answered) * 100).checked_div(asked).unwrap_or(0)
    }

    /// What the owner's lease had left when it was renewed, at the least in the last ten seconds.
    pub fn lease_left(&self, now: Moment, timing: &Timing) -> Duration {
        margin(timing).saturating_sub(self.eaten.worst(now, RECENT))
    }
}

/// What an owner may lose from one renewal to the next before its lease ends.
pub fn margin(timing: &Timing) -> Duration {
    timing.hold() - timing.ask_next()
}

/// This device's own stalls endanger its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strain {
    /// The longest stall of late, in milliseconds.
    pub stall_ms: u64,
    /// The margin of its lease, in milliseconds.
    pub margin_ms: u64,
}

impl fmt::Display for Strain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Strain { stall_ms, margin_ms } = self;
        write!(f, "its tasks stood still for {stall_ms} ms, and its lease has a margin of {margin_ms} ms")
    }
}

/// What is known beside what was measured.
#[derive(Debug, Clone)]
pub struct Situation<'a> {
    /// Now.
    pub now: Moment,
    /// The timing in use.
    pub timing: &'a Timing,
    /// The timing as configured.
    pub configured: &'a Timing,
    /// What was agreed about it.
    pub pace: &'a Pace,
    /// Since when the timing is what it is, this device leads, and it owns: the latest of them. `None` while it does not.
    pub steady_since: Option<Moment>,
    /// Whether this device was strained until now.
    pub strained: bool,
    /// Whether another device could own.
    pub other_fit: bool,
    /// The least stretch that a person allows, in hundredths.
    pub least: u32,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// This device should not own if another can.
    pub strain: Option<Strain>,
    /// The stretch to propose, and why.
    pub stretch: Option<(u32, String)>,
}

/// Decides what follows from what was measured.
pub fn advise(vitals: &Vitals, s: &Situation<'_>) -> Advice {
    let strain = strain(vitals, s);
    // Where another can own, the site need not become as slow as this device.
    let alone = strain.is_none() || !s.other_fit;
    let stretch = s.steady_since.filter(|_| alone).and_then(|since| stretch(vitals, s, s.now.since(since)));
    Advice { strain, stretch }
}

fn strain(vitals: &Vitals, s: &Situation<'_>) -> Option<Strain> {
    let margin = margin(s.timing);
    let begins = vitals.late.bad_seconds(s.now, margin / 2) >= REPEATED;
    let lasts = s.strained && vitals.late.worst(s.now, REST) > margin / 4;
    let stall = vitals.late.worst(s.now, if begins { RECENT } else { REST });
    (begins || lasts).then(|| Strain { stall_ms: millis(stall), margin_ms: millis(margin) })
}

fn stretch(vitals: &Vitals, s: &Situation<'_>, steady: Duration) -> Option<(u32, String)> {
    let now = s.pace.stretch;
    if s.pace.timing(s.configured) == *s.configured && now != CONFIGURED {
        return Some((CONFIGURED, "the configuration has changed".into()));
    }
    let widest = s.configured.stretch_max() * CONFIGURED;
    let least = s.least.clamp(CONFIGURED, widest.max(CONFIGURED));
    if now < least && s.configured.stretched(least) != *s.timing {
        return Some((least, "a person asked for no less".into()));
    }
    let wider = now.saturating_mul(2).min(widest);
    let tight = vitals.eaten.bad_seconds(s.now, margin(s.timing) / 2) >= REPEATED;
    if tight && wider > now && s.configured.stretched(wider) != *s.timing && steady >= COOL_DOWN {
        let reason = format!(
            "renewals took {} ms of a margin of {} ms (answers after {} ms, {} % missing, own stalls of {} ms)",
            millis(vitals.eaten.worst(s.now, RECENT)),
            millis(margin(s.timing)),
            millis(vitals.round_trip.worst(s.now, RECENT)),
            vitals.unanswered_percent(),
            millis(vitals.late.worst(s.now, RECENT)),
        );
        return Some((wider, reason));
    }
    let narrower = (now / 2).max(least);
    let enough = margin(&s.configured.stretched(narrower)) / 4;
    let calm = vitals.eaten.worst(s.now, CALM).max(vitals.late.worst(s.now, CALM)) < enough;
    (narrower < now && calm && steady >= Duration::from_secs(CALM))
        .then(|| (narrower, format!("renewals were quick for {CALM} s")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ownership::command::Command, timing::Settings};

    const MS: Duration = Duration::from_millis(1);

    fn at(s: u64) -> Moment {
        Moment::from_nanos(s * 1_000_000_000)
    }

    fn configured() -> Timing {
        let settings =
            Settings { heartbeat: MS * 75, hold: MS * 400, stop_grace: MS * 200, ..Settings::default() };
        Timing::new(&settings).expect("consistent")
    }

    fn pace(stretch: u32) -> Pace {
        let mut pace = Pace::default();
        let set = pace.change(&configured(), stretch, String::new(), 0);
        pace.apply(&Command::SetTiming(set)).expect("fits");
        pace
    }

    /// One value a second for `seconds`, the last at second 100.
    fn series(seconds: u64, took: Duration) -> Series {
        let mut series = Series::default();
        (101 - seconds..=100).for_each(|s| series.note(at(s), took));
        series
    }

    /// At second 100, steady since second `since`: the strain, and the stretch that is proposed.
    fn ask(
        vitals: &Vitals,
        stretch: u32,
        since: Option<u64>,
        (strained, other_fit): (bool, bool),
    ) -> (bool, Option<u32>) {
        let (configured, pace) = (configured(), pace(stretch));
        let timing = pace.timing(&configured);
        let steady_since = since.map(at);
        let advice = advise(
            vitals,
            &Situation {
                now: at(100),
                timing: &timing,
                configured: &configured,
                pace: &pace,
                steady_since,
                strained,
                other_fit,
                least: CONFIGURED,
            },
        );
        (advice.strain.is_some(), advice.stretch.map(|(stretch, _)| stretch))
    }

    #[test]
    fn own_stalls_are_strain_if_they_repeat_and_until_it_was_well_for_a_while() {
        let late = |seconds, ms| Vitals { late: series(seconds, MS * ms), ..Vitals::default() };
        for (vitals, was, is) in [
            (late(1, 5000), false, false), // a suspend, a stopped sidecar: once
            (late(2, 160), false, false),
            (late(3, 160), false, true),
            (late(10, 140), false, false), // less than half of the margin
            (late(10, 140), true, true),   // but not well either
            (late(10, 70), true, false),
        ] {
            assert_eq!(
                ask(&vitals, 100, None, (was, true)),
                (is, None),
                "{vitals:?}, strained before: {was}"
            );
        }
        let mut rested = late(3, 160);
        rested.late.note(at(101), MS);
        for (now, is) in [(120, true), (130, true), (131, false)] {
            let (configured, pace) = (configured(), Pace::default());
            let advice = advise(
                &rested,
                &Situation {
                    now: at(now),
                    timing: &configured,
                    configured: &configured,
                    pace: &pace,
                    steady_since: None,
                    strained: true,
                    other_fit: true,
                    least: CONFIGURED,
                },
            );
            assert_eq!(advice.strain.is_some(), is, "{now} s");
        }
    }

    #[test]
    fn a_slow_network_widens_the_timing_and_a_calm_one_narrows_it() {
        let eaten = |seconds, ms| Vitals { eaten: series(seconds, MS * ms), ..Vitals::default() };
        for (vitals, stretch, since, proposed) in [
            (eaten(10, 10), 100, Some(0), None),
            (eaten(2, 200), 100, Some(0), None), // not often enough
            (eaten(3, 200), 100, Some(0), Some(200)),
            (eaten(3, 200), 100, Some(95), None), // it has just changed
            (eaten(3, 200), 100, None, None),     // not the owner's business
            (eaten(10, 200), 200, Some(0), None), // enough: neither wider nor narrower
            (eaten(10, 5000), 400, Some(0), Some(800)),
            (eaten(10, 9000), 800, Some(0), None), // the ceiling
            (eaten(60, 10), 200, Some(0), Some(100)),
            (eaten(60, 10), 800, Some(0), Some(400)),
            (eaten(60, 10), 800, Some(50), None), // not for long enough
            (eaten(60, 80), 200, Some(0), None),  // it would be tight again
        ] {
            assert_eq!(
                ask(&vitals, stretch, since, (false, true)),
                (false, proposed),
                "{vitals:?} at {stretch} since {since:?}"
            );
        }
    }

    #[test]
    fn a_persons_least_is_reached_at_once_and_never_narrowed_below() {
        let calm = Vitals { eaten: series(60, MS), ..Vitals::default() };
        for (stretch, least, since, proposed) in [
            (100, 150, Some(99), Some(150)),
            (100, 150, None, None),    // not the owner's business
            (150, 150, Some(0), None), // calm for long, and that is as narrow as it gets
            (400, 150, Some(0), Some(200)),
            (200, 150, Some(0), Some(150)),
            (100, 6400, Some(99), Some(800)), // the configured ceiling
            (200, 100, Some(0), Some(100)),
        ] {
            let (configured, pace) = (configured(), pace(stretch));
            let timing = pace.timing(&configured);
            let situation = Situation {
                now: at(100),
                timing: &timing,
                configured: &configured,
                pace: &pace,
                steady_since: since.map(at),
                strained: false,
                other_fit: true,
                least,
            };
            let proposal = advise(&calm, &situation).stretch.map(|(stretch, _)| stretch);
            assert_eq!(proposal, proposed, "at {stretch}, no less than {least}");
        }
    }

    #[test]
    fn one_slow_device_does_not_slow_the_site_down_unless_it_is_the_only_one() {
        let slow = series(5, MS * 200);
        let vitals = Vitals { late: slow.clone(), eaten: slow, ..Vitals::default() };
        assert_eq!(ask(&vitals, 100, Some(0), (false, true)), (true, None));
        assert_eq!(ask(&vitals, 100, Some(0), (false, false)), (true, Some(200)));
    }

    #[test]
    fn only_a_minute_is_remembered() {
        let mut series = series(60, MS * 9);
        series.note(at(5000), MS);
        assert_eq!((series.worst(at(5000), 60), series.0.len()), (MS, 1));
        let mut vitals = Vitals::default();
        vitals.questions(at(1), 100, 0);
        vitals.questions(at(50), 10, 8);
        assert_eq!(vitals.unanswered_percent(), 20);
    }

    /// A timing that is as wide as can be already, and a person who asks for no less than half as much again.
    #[test]
    fn a_limit_that_changes_nothing_is_proposed_once_at_most() {
        let s = Duration::from_secs(1);
        let settings = Settings { heartbeat: s * 20, hold: s * 60, stop_grace: s, ..Settings::default() };
        let configured = Timing::new(&settings).expect("consistent");
        let mut pace = Pace::default();
        let mut proposals = 0;
        for _ in 0..100 {
            let timing = pace.timing(&configured);
            let situation = Situation {
                now: at(100),
                timing: &timing,
                configured: &configured,
                pace: &pace,
                steady_since: Some(at(99)),
                strained: false,
                other_fit: true,
                least: 150,
            };
            if let Some((stretch, reason)) = advise(&Vitals::default(), &situation).stretch {
                proposals += 1;
                let set = pace.change(&configured, stretch, reason, 0);
                pace.apply(&Command::SetTiming(set)).expect("fits");
            }
        }
        assert!(proposals <= 1, "{proposals} changes in 100 looks");
    }
}
