//! Tick records of a workload, and what they prove: who ran when, whether two ran at once, how long nobody did.
//!
//! A tick is one line written by `ticker.rs` with the boot clock read just before. All devices of a demo or a test
//! share one machine and so one boot clock; ticks of different machines must not be compared. A run is taken as
//! lasting from its first tick to its last, whatever lies between, so an overlap is never explained away; it says
//! nothing about the up to one tick's distance after the last.

use std::{fmt, path::Path, time::Duration};

use crate::{clock::Moment, epoch::Epoch};

/// The length of one record in bytes, with its line end.
pub const RECORD: usize = 20 + 1 + 10 + 1 + 16 + 1 + 128 + 1;

/// One sign of life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tick {
    /// When, on the boot clock.
    pub at: Moment,
    /// The process that wrote it.
    pub pid: u32,
    /// The epoch it was started with.
    pub epoch: Epoch,
    /// The device it runs on, at most 128 characters.
    pub device: String,
}

impl fmt::Display for Tick {
    /// The record, without its line end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020} {:010} {:016} {:<128}", self.at.as_nanos(), self.pid, self.epoch.get(), self.device)
    }
}

impl Tick {
    /// Reads one record without its line end; `None` if it is not one.
    pub fn parse(line: &str) -> Option<Tick> {
        let mut words = line.split_ascii_whitespace();
        let tick = Tick {
            at: Moment::from_nanos(words.next()?.parse().ok()?),
            pid: words.next()?.parse().ok()?,
            epoch: Epoch::new(words.next()?.parse().ok()?)?,
            device: words.next().unwrap_or_default().to_owned(),
        };
        (words.next().is_none() && line.len() + 1 == RECORD).then_some(tick)
    }

    /// All records of a file; an absent file is an empty one.
    ///
    /// # Errors
    /// What the system said, or `InvalidData` for anything but whole records. The last one may be torn.
    pub fn read(file: &Path) -> std::io::Result<Vec<Tick>> {
        let bytes = match std::fs::read(file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            other => other?,
        };
        bytes
            .chunks_exact(RECORD)
            .map(|record| {
                let line = std::str::from_utf8(record).ok().and_then(|line| line.strip_suffix('\n'));
                line.and_then(Tick::parse).ok_or_else(|| {
                    let what = format!("{} holds something that is not a tick", file.display());
                    std::io::Error::new(std::io::ErrorKind::InvalidData, what)
                })
            })
            .collect()
    }
}

/// The workload on one device under one epoch, restarts included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The device.
    pub device: String,
    /// The epoch.
    pub epoch: Epoch,
    /// Its first tick.
    pub first: Moment,
    /// Its last tick.
    pub last: Moment,
    /// How many ticks.
    pub ticks: usize,
}

/// Two runs that lived at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// The run that began first.
    pub earlier: Run,
    /// The run that began while it lived.
    pub later: Run,
    /// For how long both lived.
    pub length: Duration,
}

/// A time without any tick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The last tick before.
    pub before: Tick,
    /// The first tick after.
    pub after: Tick,
    /// How long.
    pub length: Duration,
}

/// The runs in all these ticks, by their first tick.
pub fn runs(ticks: &[Tick]) -> Vec<Run> {
    let mut runs = std::collections::BTreeMap::new();
    for tick in ticks {
        let run = runs.entry((&tick.device, tick.epoch)).or_insert_with(|| Run {
            device: tick.device.clone(),
            epoch: tick.epoch,
            first: tick.at,
            last: tick.at,
            ticks: 0,
        });
        run.first = run.first.min(tick.at);
        run.last = run.last.max(tick.at);
        run.ticks += 1;
    }
    let mut runs: Vec<Run> = runs.into_values().collect();
    runs.sort_by_key(|run| (run.first, run.epoch));
    runs
}

/// Every pair of runs that lived at the same time, touching included. Two epochs on one device count too.
pub fn overlaps(runs: &[Run]) -> Vec<Overlap> {
    let mut overlaps = Vec::new();
    for (n, a) in runs.iter().enumerate() {
        for b in runs.iter().skip(n + 1) {
            let (earlier, later) = if a.first <= b.first { (a, b) } else { (b, a) };
            if later.first <= earlier.last {
                let length = earlier.last.min(later.last).since(later.first);
                overlaps.push(Overlap { earlier: earlier.clone(), later: later.clone(), length });
            }
        }
    }
    overlaps
}

/// Every time longer than `at_least` in which nobody ticked, between the first and the last tick of all.
pub fn gaps(ticks: &[Tick], at_least: Duration) -> Vec<Gap> {
    let mut ticks: Vec<&Tick> = ticks.iter().collect();
    ticks.sort_by_key(|tick| tick.at);
    ticks
        .iter()
        .zip(ticks.iter().skip(1))
        .filter(|(before, after)| after.at.since(before.at) > at_least)
        .map(|(before, after)| Gap {
            before: (*before).clone(),
            after: (*after).clone(),
            length: after.at.since(before.at),
        })
        .collect()
}

/// Changes of ownership, as ticks show them: from the last tick of a run to the first of the next one.
pub fn handovers(runs: &[Run]) -> Vec<(Run, Run, Duration)> {
    runs.iter()
        .zip(runs.iter().skip(1))
        .map(|(from, to)| (from.clone(), to.clone(), to.first.since(from.last)))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tick(ms: u64, device: &str, epoch: u64) -> Tick {
        let at = Moment::default() + Duration::from_millis(ms);
        Tick { at, pid: 1, epoch: Epoch::new(epoch).expect("small"), device: device.into() }
    }

    #[test]
    fn one_after_the_other_is_no_overlap() {
        let ticks = [tick(30, "b", 2), tick(0, "a", 1), tick(5, "a", 1), tick(35, "b", 2)];
        let runs = runs(&ticks);
        assert_eq!(runs.iter().map(|r| r.device.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(overlaps(&runs), []);
        assert_eq!(handovers(&runs)[0].2, Duration::from_millis(25));
        let gaps = gaps(&ticks, Duration::from_millis(10));
        assert_eq!(gaps.len(), 1);
        assert_eq!((gaps[0].length, gaps[0].after.device.as_str()), (Duration::from_millis(25), "b"));
    }

    #[test]
    fn an_overlap_is_found_inside_a_silence_and_when_nested() {
        // The old owner is silent while the new one ticks, then ticks once more: that is an overlap.
        let ticks = [tick(0, "a", 1), tick(10, "b", 2), tick(20, "b", 2), tick(30, "a", 1)];
        let found = overlaps(&runs(&ticks));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].length, found[0].later.device.as_str()), (Duration::from_millis(10), "b"));
        let same_device = [tick(0, "a", 1), tick(10, "a", 2), tick(20, "a", 1)];
        assert_eq!(overlaps(&runs(&same_device)).len(), 1);
        assert_eq!(overlaps(&runs(&[tick(7, "a", 1), tick(7, "b", 2)])).len(), 1);
    }

    #[test]
    fn files_are_read_back_and_rubbish_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("ticks");
        assert_eq!(Tick::read(&file).expect("absent is empty"), []);
        let ticks = [tick(1, "a", 1), tick(2, "a", 1)];
        let text: String = ticks.iter().map(|t| format!("{t}\n")).collect();
        std::fs::write(&file, format!("{text}0000torn")).expect("writes");
        assert_eq!(Tick::read(&file).expect("the torn one is left out"), ticks);
        std::fs::write(&file, "x".repeat(RECORD)).expect("writes");
        assert!(Tick::read(&file).is_err());
    }

    proptest! {
        #[test]
        fn records_have_one_length(at: u64, pid: u32, epoch in 0..=Epoch::MAX.get(), device in "[a-z0-9-]{1,128}") {
            let epoch = Epoch::new(epoch).expect("in range");
            let tick = Tick { at: Moment::from_nanos(at), pid, epoch, device };
            let line = tick.to_string();
            prop_assert_eq!(line.len() + 1, RECORD);
            prop_assert_eq!(Tick::parse(&line), Some(tick));
        }
    }
}
