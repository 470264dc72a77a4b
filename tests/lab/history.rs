//! The judge of the lab: what the records of a whole run of faults prove, and whether a promise was broken.
//!
//! Pure: it gets tick records, the times of the faults and what the sidecars say about past ownerships, and returns
//! sentences. Whoever is not convinced that it would notice finds a hand-made bad history for each rule below.
//!
//! A machine that is frozen as a whole and thawed runs the next instructions of its workload before anything can stop
//! it (P2 says so). Ticks that such a workload writes within [`AFTER_THAW`] are set aside; there the epoch must show
//! that they are stale. Later ones count like any others.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use quorate::{
    clock::Moment,
    workload::ticks::{self, Tick},
};

/// For how long after a thaw a workload may be alive against the rules: what a loaded machine needs to run the fencer.
pub(super) const AFTER_THAW: Duration = Duration::from_millis(250);
/// For how long a connected majority may be without an owner. Generous: it tells stuck from slow. The figures tell slow.
pub(super) const LIMIT: Duration = Duration::from_secs(60);
/// A time without ticks that is worth a reason.
const SILENCE: Duration = Duration::from_millis(100);

/// All processes of a device stood still, the workload too.
#[derive(Debug, Clone)]
pub(super) struct Freeze {
    pub(super) device: String,
    /// After the last process was stopped.
    pub(super) from: Moment,
    /// Before the first one could go on.
    pub(super) until: Moment,
}

/// One ownership, as one sidecar tells it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    pub(super) epoch: u64,
    pub(super) device: String,
    pub(super) cause: String,
    pub(super) told_by: String,
}

/// What was done to the site, from then until it had an owner again or was given up.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    pub(super) what: String,
    pub(super) from: Moment,
    pub(super) until: Moment,
}

/// Everything that is known about a run.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    pub(super) ticks: Vec<Tick>,
    pub(super) freezes: Vec<Freeze>,
    pub(super) record: BTreeSet<Entry>,
    pub(super) troubles: Vec<Trouble>,
    /// When a majority was connected and had a fit device the whole time.
    pub(super) demands: Vec<(Moment, Moment)>,
    /// The same, while the machine had so much else to do that nothing follows from it: how long each.
    pub(super) starved: Vec<Duration>,
}

impl Evidence {
    /// Every broken promise, in one sentence each.
    pub(super) fn faults(&self) -> Vec<String> {
        let (lived, _) = self.apart();
        let runs = ticks::runs(&lived);
        let mut faults: Vec<String> = ticks::overlaps(&runs)
            .iter()
            .map(|o| {
                format!(
                    "two workloads at once for {:?}: {} under epoch {} ({} to {}), {} under epoch {} ({} to {})",
                    o.length,
                    o.earlier.device,
                    o.earlier.epoch,
                    o.earlier.first,
                    o.earlier.last,
                    o.later.device,
                    o.later.epoch,
                    o.later.first,
                    o.later.last
                )
            })
            .collect();
        // Starts are taken from all ticks: also one that came just after a thaw must not be new.
        let starts = ticks::runs(&self.ticks);
        for (a, b) in starts.iter().zip(starts.iter().skip(1)) {
            if a.epoch == b.epoch {
                faults.push(format!("epoch {} ran on {} and on {}", a.epoch, a.device, b.device));
            } else if a.epoch > b.epoch {
                faults.push(format!(
                    "{} started under epoch {} at {}, after {} had under epoch {}",
                    b.device, b.epoch, b.first, a.device, a.epoch
                ));
            }
        }
        faults.extend(twins(&lived));
        faults.extend(self.disagreements(&starts));
        faults.extend(self.nobody(&lived));
        faults
    }

    /// Ticks that count, and those that a thawed machine wrote before anything could stop it.
    fn apart(&self) -> (Vec<Tick>, Vec<Tick>) {
        let mut begun: BTreeMap<(&str, u32), Moment> = BTreeMap::new();
        for tick in &self.ticks {
            let first = begun.entry((&tick.device, tick.pid)).or_insert(tick.at);
            *first = tick.at.min(*first);
        }
        self.ticks.iter().cloned().partition(|tick| {
            let first = begun[&(tick.device.as_str(), tick.pid)];
            !self.freezes.iter().any(|f| {
                let just_thawed = f.until <= tick.at && tick.at <= f.until + AFTER_THAW;
                f.device == tick.device && first <= f.from && just_thawed
            })
        })
    }

    fn disagreements(&self, runs: &[ticks::Run]) -> Vec<String> {
        let mut faults = Vec::new();
        let mut known: BTreeMap<u64, &Entry> = BTreeMap::new();
        for entry in &self.record {
            let first = known.entry(entry.epoch).or_insert(entry);
            if (&first.device, &first.cause) != (&entry.device, &entry.cause) {
                faults.push(format!(
                    "epoch {}: {} tells {} ({}), {} tells {} ({})",
                    entry.epoch,
                    first.told_by,
                    first.device,
                    first.cause,
                    entry.told_by,
                    entry.device,
                    entry.cause
                ));
            }
        }
        for run in runs {
            if let Some(entry) = known.get(&run.epoch.get()).filter(|e| e.device != run.device) {
                faults.push(format!(
                    "epoch {} ran on {}, recorded for {}",
                    run.epoch, run.device, entry.device
                ));
            }
        }
        faults
    }

    fn nobody(&self, ticks: &[Tick]) -> Vec<String> {
        let mut faults = Vec::new();
        for (from, until) in &self.demands {
            let silence = longest_silence(ticks, *from, *until);
            if silence > LIMIT {
                faults.push(format!(
                    "nobody worked for {silence:?} between {from} and {until}, though a majority was connected"
                ));
            }
        }
        faults
    }

    /// The longest time without a tick in each trouble, by kind.
    pub(super) fn silences(&self) -> BTreeMap<String, Vec<Duration>> {
        let mut silences: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
        for trouble in &self.troubles {
            let longest = longest_silence(&self.ticks, trouble.from, trouble.until);
            silences.entry(trouble.what.clone()).or_default().push(longest);
        }
        silences
    }

    /// Times without a tick that touch no trouble.
    pub(super) fn unexplained(&self) -> Vec<ticks::Gap> {
        let mut gaps = ticks::gaps(&self.ticks, SILENCE);
        gaps.retain(|gap| !self.troubles.iter().any(|t| t.from <= gap.after.at && gap.before.at <= t.until));
        gaps
    }

    /// How many ticks of thawed machines came after the start of a later owner, and the longest time from a thaw to one.
    pub(super) fn stale(&self) -> (usize, Duration) {
        let (lived, mut thawed) = self.apart();
        let runs = ticks::runs(&lived);
        thawed.retain(|t| runs.iter().any(|run| run.epoch > t.epoch && run.first <= t.at));
        let late = |t: &Tick| {
            let thaws = self.freezes.iter().filter(|f| f.device == t.device && f.until <= t.at);
            thaws.map(|f| t.at.since(f.until)).min().unwrap_or_default()
        };
        (thawed.len(), thawed.iter().map(late).max().unwrap_or_default())
    }
}

/// The longest part of `from..until` without a tick.
fn longest_silence(ticks: &[Tick], from: Moment, until: Moment) -> Duration {
    let mut at: Vec<Moment> = ticks.iter().map(|t| t.at).filter(|at| (from..=until).contains(at)).collect();
    at.extend([from, until]);
    at.sort_unstable();
    at.iter().zip(at.iter().skip(1)).map(|(a, b)| b.since(*a)).max().unwrap_or_default()
}

/// Two processes of one device under one epoch that lived at the same time.
fn twins(ticks: &[Tick]) -> Vec<String> {
    /// The first and the last tick of a process.
    struct Life<'a> {
        tick: &'a Tick,
        last: Moment,
    }
    let mut lives: BTreeMap<(&str, u64, u32), Life<'_>> = BTreeMap::new();
    for tick in ticks {
        let key = (tick.device.as_str(), tick.epoch.get(), tick.pid);
        let life = lives.entry(key).or_insert(Life { tick, last: tick.at });
        life.tick = if tick.at < life.tick.at { tick } else { life.tick };
        life.last = life.last.max(tick.at);
    }
    let mut lives: Vec<Life<'_>> = lives.into_values().collect();
    lives.sort_by_key(|life| (&life.tick.device, life.tick.epoch, life.tick.at));
    let mut faults = Vec::new();
    for (a, b) in lives.iter().zip(lives.iter().skip(1)) {
        let one = (&a.tick.device, a.tick.epoch) == (&b.tick.device, b.tick.epoch);
        if one && b.tick.at <= a.last {
            let (device, epoch) = (&a.tick.device, a.tick.epoch);
            faults.push(format!(
                "processes {} and {} of {device} at once under epoch {epoch}",
                a.tick.pid, b.tick.pid
            ));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use quorate::epoch::Epoch;

    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::default() + Duration::from_millis(ms)
    }

    /// Ticks every 5 ms, both ends included.
    fn run(device: &str, epoch: u64, pid: u32, from: u64, until: u64) -> Vec<Tick> {
        let tick =
            |ms| Tick { at: at(ms), pid, epoch: Epoch::new(epoch).expect("small"), device: device.into() };
        (from..=until).step_by(5).map(tick).collect()
    }

    fn of(runs: &[Vec<Tick>]) -> Evidence {
        Evidence { ticks: runs.concat(), ..Evidence::default() }
    }

    #[track_caller]
    fn found(evidence: &Evidence, words: &str) {
        let faults = evidence.faults();
        assert!(faults.iter().any(|f| f.contains(words)), "no {words:?} in {faults:?}");
    }

    fn entry(epoch: u64, device: &str, told_by: &str) -> Entry {
        Entry { epoch, device: device.into(), cause: "takeover".into(), told_by: told_by.into() }
    }

    fn freeze(device: &str, from: u64, until: u64) -> Freeze {
        Freeze { device: device.into(), from: at(from), until: at(until) }
    }

    #[test]
    fn a_good_history_has_no_faults() {
        let mut good = of(&[run("a", 1, 1, 0, 100), run("a", 1, 2, 120, 200), run("b", 2, 3, 700, 900)]);
        good.record = [entry(1, "a", "a"), entry(1, "a", "b"), entry(2, "b", "b")].into();
        good.demands = vec![(at(0), at(900))];
        good.troubles = vec![Trouble { what: "kill".into(), from: at(150), until: at(700) }];
        assert_eq!(good.faults(), Vec::<String>::new());
        assert_eq!(good.silences()["kill"], [Duration::from_millis(500)]);
        assert_eq!(good.unexplained(), []);
        good.troubles.clear();
        assert_eq!(good.unexplained().len(), 1);
    }

    #[test]
    fn one_tick_too_many_is_an_overlap() {
        found(&of(&[run("a", 1, 1, 0, 100), run("b", 2, 2, 100, 200)]), "two workloads at once for 0ns");
    }

    #[test]
    fn a_tick_long_after_the_next_owner_began_is_an_overlap() {
        found(&of(&[run("a", 1, 1, 0, 100), run("b", 2, 2, 200, 900), run("a", 1, 1, 500, 500)]), "at once");
        found(&of(&[run("a", 1, 1, 0, 900), run("b", 2, 2, 200, 300)]), "at once");
    }

    #[test]
    fn two_epochs_on_one_device_overlap_too() {
        found(&of(&[run("a", 1, 1, 0, 100), run("a", 2, 2, 50, 200)]), "at once");
    }

    #[test]
    fn two_processes_of_one_epoch_are_found() {
        found(&of(&[run("a", 1, 1, 0, 100), run("a", 1, 2, 50, 200)]), "processes 1 and 2 of a");
    }

    #[test]
    fn an_epoch_that_goes_back_is_found() {
        found(&of(&[run("a", 2, 1, 0, 100), run("b", 1, 2, 200, 300)]), "b started under epoch 1");
    }

    #[test]
    fn an_epoch_on_two_devices_is_found() {
        found(&of(&[run("a", 2, 1, 0, 100), run("b", 2, 2, 200, 300)]), "epoch 2 ran on a and on b");
    }

    #[test]
    fn histories_that_differ_are_found() {
        let mut evidence = of(&[run("a", 1, 1, 0, 100)]);
        evidence.record = [entry(7, "a", "a"), entry(7, "b", "b")].into();
        found(&evidence, "epoch 7: a tells a (takeover), b tells b");
        evidence.record = [entry(1, "b", "c")].into();
        found(&evidence, "epoch 1 ran on a, recorded for b");
    }

    #[test]
    fn nobody_for_too_long_is_found_at_the_end_too() {
        let mut evidence = of(&[run("a", 1, 1, 0, 100)]);
        evidence.demands = vec![(at(50), at(60_000))];
        assert_eq!(evidence.faults(), Vec::<String>::new());
        evidence.demands = vec![(at(50), at(60_200))];
        found(&evidence, "nobody worked for");
    }

    #[test]
    fn only_what_a_frozen_machine_still_does_is_set_aside() {
        let thawed = |ticks: Vec<Tick>| {
            let mut evidence = of(&[run("a", 1, 1, 0, 100), run("b", 2, 2, 700, 2000), ticks]);
            evidence.freezes = vec![freeze("a", 101, 1000)];
            evidence
        };
        let good = thawed(run("a", 1, 1, 1002, 1012));
        assert_eq!(good.faults(), Vec::<String>::new());
        assert_eq!(good.stale(), (3, Duration::from_millis(12)));
        // Too late, another process, or another device.
        found(&thawed(run("a", 1, 1, 1300, 1300)), "at once");
        found(&thawed(run("a", 1, 9, 1002, 1012)), "at once");
        found(&thawed(run("c", 3, 3, 1002, 1012)), "at once");
        // Frozen for a moment only: it goes on under its own lease, and that counts.
        let mut short = of(&[run("a", 1, 1, 0, 100), run("a", 1, 1, 200, 900), run("b", 2, 2, 880, 1000)]);
        short.freezes = vec![freeze("a", 101, 199)];
        found(&short, "at once");
    }
}
