//! Which timing was measured to fit, as a pure function.
//!
//! The limits are those that the sidecar itself uses later. It counts a device as strained, and hands over, when its stalls
//! eat half of what a lease has left between two renewals (`ownership/vitals.rs`); and the bound for a takeover that it prints holds on
//! a disk and a LAN that answer within `heartbeat` (`timing.rs`). A few seconds show what is usual, not what is rare: who passes
//! narrowly should measure for longer, and under load.

use std::time::Duration;

use serde::Serialize;

use crate::{
    ownership::vitals::margin,
    timing::{Preset, Timing},
};

/// How long something took, many times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Spread {
    /// How many times.
    pub(super) n: usize,
    #[serde(rename = "p50_us", serialize_with = "micros")]
    pub(super) p50: Duration,
    #[serde(rename = "p99_us", serialize_with = "micros")]
    pub(super) p99: Duration,
    #[serde(rename = "max_us", serialize_with = "micros")]
    pub(super) max: Duration,
}

fn micros<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(crate::clock::micros(*duration))
}

impl Spread {
    /// `None` of nothing.
    pub(super) fn of(mut samples: Vec<Duration>) -> Option<Spread> {
        samples.sort_unstable();
        // The smallest value that so many percent do not exceed.
        let percentile =
            |percent: usize| samples.get((samples.len() * percent).div_ceil(100).max(1) - 1).copied();
        Some(Spread { n: samples.len(), p50: percentile(50)?, p99: percentile(99)?, max: percentile(100)? })
    }
}

/// Everything that was measured.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    /// Durable writes.
    pub(super) writes: Spread,
    /// By how much a timer came too late.
    pub(super) stalls: Spread,
    /// The round trips to the members that answered.
    pub(super) round_trips: Vec<Spread>,
    /// So many others must answer for a majority.
    pub(super) needed: usize,
}

impl Measured {
    /// The round trip that a majority's answers take: that of the slowest member which is needed for it. `None` if too few
    /// members answered.
    pub(super) fn majority(&self) -> Option<Duration> {
        let mut all: Vec<Duration> = self.round_trips.iter().map(|spread| spread.p99).collect();
        all.sort_unstable();
        if self.needed == 0 { Some(Duration::ZERO) } else { all.get(self.needed - 1).copied() }
    }
}

/// What speaks against this timing here; empty if it can be kept. A network that could not be measured is not held against it.
pub(super) fn against(measured: &Measured, timing: &Timing) -> Vec<String> {
    let (enough, heartbeat) = (margin(timing) / 2, timing.heartbeat());
    let stall = measured.stalls.max;
    let mut reasons = Vec::new();
    if stall > enough {
        reasons.push(format!(
            "a task stood still for {}, and {} is the most that a lease bears",
            ms(stall),
            ms(enough)
        ));
    }
    if measured.writes.p99 > heartbeat {
        reasons.push(format!(
            "a durable write takes up to {} (p99), and {} is the most for a takeover in time",
            ms(measured.writes.p99),
            ms(heartbeat)
        ));
    }
    if let Some(round_trip) = measured.majority() {
        if round_trip > heartbeat {
            reasons.push(format!(
                "a majority answers after {} (p99), and {} is the most for a takeover in time",
                ms(round_trip),
                ms(heartbeat)
            ));
        } else if stall <= enough && stall + round_trip > enough {
            reasons.push(format!(
                "stalls of {} and answers after {} (p99) are together more than the {} that a lease bears",
                ms(stall),
                ms(round_trip),
                ms(enough)
            ));
        }
    }
    reasons
}

/// The presets, the fastest first, and what speaks against each.
pub(super) fn presets(measured: &Measured) -> Vec<(Preset, Vec<String>)> {
    Preset::ALL
        .into_iter()
        .rev()
        .filter_map(|preset| Some((preset, against(measured, &Timing::new(&preset.settings()).ok()?))))
        .collect()
}

/// Milliseconds as a person reads them.
pub(super) fn ms(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn always(took: Duration) -> Spread {
        Spread { n: 100, p50: took, p99: took, max: took }
    }

    fn measured(write: Duration, stall: Duration, round_trips: &[Duration]) -> Measured {
        let round_trips = round_trips.iter().map(|took| always(*took)).collect();
        Measured { writes: always(write), stalls: always(stall), round_trips, needed: 1 }
    }

    /// The fastest preset that is kept.
    fn best(measured: &Measured) -> Option<&'static str> {
        let presets = presets(measured);
        presets.iter().find(|(_, against)| against.is_empty()).map(|(preset, _)| preset.name())
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let spread = Spread::of((1..=200).rev().map(|n| MS * n).collect()).expect("some");
        assert_eq!(spread, Spread { n: 200, p50: MS * 100, p99: MS * 198, max: MS * 200 });
        assert_eq!(Spread::of(vec![MS]), Some(Spread { n: 1, p50: MS, p99: MS, max: MS }));
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn each_measure_alone_decides() {
        for (write, stall, round_trip, kept) in [
            (1, 1, 1, Some("fastest")),
            (9, 1, 1, Some("fast")),
            (26, 1, 1, Some("default")),
            (81, 1, 1, None),
            (1, 10, 1, Some("fast")),
            (1, 24, 1, Some("default")),
            (1, 67, 1, None),
            (1, 1, 9, Some("fast")),
            (1, 1, 26, Some("default")),
            (1, 1, 81, None),
            (1, 5, 6, Some("fast")), // each would do, together they do not
        ] {
            let measured = measured(MS * write, MS * stall, &[MS * round_trip]);
            assert_eq!(best(&measured), kept, "{write} {stall} {round_trip}");
        }
    }

    #[test]
    fn a_slower_timing_is_never_harder_to_keep() {
        for write in [1, 8, 9, 25, 30, 80, 90] {
            for stall in [0, 5, 9, 10, 20, 30, 60, 70] {
                for round_trip in [0, 3, 8, 20, 60, 90] {
                    let measured = measured(MS * write, MS * stall, &[MS * round_trip]);
                    let kept: Vec<bool> = presets(&measured).iter().map(|(_, a)| a.is_empty()).collect();
                    assert!(kept.is_sorted(), "{write} {stall} {round_trip}: {kept:?}");
                }
            }
        }
    }

    #[test]
    fn only_the_members_that_a_majority_needs_count() {
        let mut five = measured(MS, MS, &[MS * 500, MS, MS * 2, MS * 400]);
        five.needed = 2;
        assert_eq!((five.majority(), best(&five)), (Some(MS * 2), Some("fastest")));
        five.needed = 3;
        assert_eq!((five.majority(), best(&five)), (Some(MS * 400), None));
        five.needed = 5;
        assert_eq!((five.majority(), best(&five)), (None, Some("fastest")), "nothing is held against it");
        five.needed = 0;
        assert_eq!(five.majority(), Some(Duration::ZERO), "a site of one");
    }

    #[test]
    fn all_reasons_are_told_with_their_numbers() {
        let slow = measured(MS * 100, MS * 200, &[MS * 300]);
        let against = presets(&slow).pop().expect("the slowest").1.join("; ");
        for number in ["100 ms", "200 ms", "300 ms", "67 ms", "80 ms"] {
            assert!(against.contains(number), "{number} in {against}");
        }
    }
}
