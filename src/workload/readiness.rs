//! Whether a workload that says when it is ready has said so, and goes on saying that it is well. Pure: moments and words in, a
//! verdict out.
//!
//! A started program is not yet a working one. With `workload.ready = "notify"` the workload itself says when it is, by the protocol
//! of sd_notify(3); until then it is starting, and one that does not say so in time is not well. It is never ended for that:
//! what follows is decided by whoever reads the verdict.

use std::time::Duration;

use crate::clock::Moment;

/// What is demanded of the workload's own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// How long after its start it may take to say that it is ready.
    pub within: Duration,
    /// The longest silence between two of its signs of life, once it is ready; `None`: it need not give any.
    pub watchdog: Option<Duration>,
}

/// What is known by the workload's own words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Ready {
    /// It does not run.
    #[default]
    Absent,
    /// It runs and has not said yet that it is ready.
    Starting,
    /// It has said so.
    Ready {
        /// How long after its start.
        after: Duration,
    },
    /// It fails what is demanded; the text says what, for people.
    Fails(String),
}

/// The newest words of the workload, and when they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// `READY=1`.
    pub(super) ready: Option<Moment>,
    /// `WATCHDOG=1`.
    pub(super) alive: Option<Moment>,
    /// The text of `STATUS=`.
    pub(super) status: Option<(Moment, String)>,
}

/// One run of the workload after the other.
#[derive(Debug)]
pub(super) struct Readiness {
    demand: Demand,
    /// Since when its words can be those of the present run: the moment of the order, or of the end before.
    ordered: Moment,
    /// Since when its program runs.
    runs: Option<Moment>,
}

impl Readiness {
    pub(super) fn new(demand: Demand) -> Readiness {
        Readiness { demand, ordered: Moment::default(), runs: None }
    }

    /// Nothing of it runs; from now on words are those of the next run.
    pub(super) fn begin(&mut self, now: Moment) {
        (self.ordered, self.runs) = (now, None);
    }

    /// Its program runs.
    pub(super) fn runs(&mut self, now: Moment) {
        self.runs.get_or_insert(now);
    }

    /// What holds now.
    pub(super) fn verdict(&self, now: Moment, said: &Said) -> Ready {
        let Some(began) = self.runs else { return Ready::Absent };
        let Some(ready) = self.of_this_run(said.ready) else {
            return match now >= began + self.demand.within {
                true => Ready::Fails(format!(
                    "it has not said within {} ms of its start that it is ready",
                    self.demand.within.as_millis()
                )),
                false => Ready::Starting,
            };
        };
        let alive = self.of_this_run(said.alive).map_or(ready, |alive| alive.max(ready));
        match self.demand.watchdog {
            Some(longest) if now >= alive + longest => {
                Ready::Fails(format!("it has given no sign of life for {} ms", longest.as_millis()))
            }
            // What was said while the news of the start was on its way took no time.
            _ => Ready::Ready { after: ready.since(began) },
        }
    }

    /// What it says of itself, if that was in this run.
    pub(super) fn status<'a>(&self, said: &'a Said) -> Option<&'a str> {
        let (at, text) = said.status.as_ref()?;
        self.runs.and(self.of_this_run(Some(*at))).map(|_| text.as_str())
    }

    /// When the verdict may change although nothing is said.
    pub(super) fn wake_at(&self, now: Moment, said: &Said) -> Option<Moment> {
        let began = self.runs?;
        let at = match self.of_this_run(said.ready) {
            None => began + self.demand.within,
            Some(ready) => self.of_this_run(said.alive).unwrap_or(ready).max(ready) + self.demand.watchdog?,
        };
        (at > now).then_some(at)
    }

    fn of_this_run(&self, at: Option<Moment>) -> Option<Moment> {
        at.filter(|at| *at >= self.ordered)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::default() + Duration::from_millis(ms)
    }

    fn demand(watchdog: Option<u64>) -> Demand {
        Demand { within: Duration::from_millis(500), watchdog: watchdog.map(Duration::from_millis) }
    }

    #[test]
    fn until_it_says_so_it_is_starting_and_then_it_is_late() {
        let mut readiness = Readiness::new(demand(None));
        let mut said = Said::default();
        assert_eq!(readiness.verdict(at(0), &said), Ready::Absent);
        readiness.begin(at(100));
        readiness.runs(at(110));
        assert_eq!(readiness.verdict(at(600), &said), Ready::Starting);
        assert_eq!(readiness.wake_at(at(600), &said), Some(at(610)));
        assert!(matches!(readiness.verdict(at(610), &said), Ready::Fails(why) if why.contains("500 ms")));
        said.ready = Some(at(700));
        let after = Duration::from_millis(590);
        assert_eq!(readiness.verdict(at(100_000), &said), Ready::Ready { after }, "late, and well");
        assert_eq!(readiness.wake_at(at(100_000), &said), None);
    }

    #[test]
    fn the_words_of_an_earlier_run_count_for_nothing() {
        let mut readiness = Readiness::new(demand(None));
        let said = Said { ready: Some(at(20)), alive: None, status: Some((at(20), "warm".into())) };
        readiness.begin(at(10));
        readiness.runs(at(15));
        assert_eq!(readiness.status(&said), Some("warm"));
        readiness.begin(at(30));
        assert_eq!((readiness.verdict(at(31), &said), readiness.status(&said)), (Ready::Absent, None));
        readiness.runs(at(40));
        assert_eq!((readiness.verdict(at(41), &said), readiness.status(&said)), (Ready::Starting, None));
    }

    #[test]
    fn it_may_be_heard_before_the_news_of_its_start() {
        let mut readiness = Readiness::new(demand(None));
        readiness.begin(at(10));
        let said = Said { ready: Some(at(12)), ..Said::default() };
        readiness.runs(at(14));
        assert_eq!(readiness.verdict(at(14), &said), Ready::Ready { after: Duration::ZERO });
    }

    #[test]
    fn who_has_to_give_signs_of_life_and_falls_silent_fails_until_the_next() {
        let mut readiness = Readiness::new(demand(Some(100)));
        readiness.begin(at(0));
        readiness.runs(at(0));
        let mut said = Said { ready: Some(at(50)), ..Said::default() };
        assert!(matches!(readiness.verdict(at(149), &said), Ready::Ready { .. }));
        assert_eq!(readiness.wake_at(at(60), &said), Some(at(150)));
        assert!(
            matches!(readiness.verdict(at(150), &said), Ready::Fails(why) if why.contains("sign of life"))
        );
        said.alive = Some(at(160));
        assert!(matches!(readiness.verdict(at(259), &said), Ready::Ready { .. }));
        assert!(matches!(readiness.verdict(at(260), &said), Ready::Fails(_)));
    }

    proptest! {
        /// Whoever waits until [`Readiness::wake_at`] misses no change.
        #[test]
        fn the_verdict_changes_only_when_something_is_said_or_at_the_moment_that_was_told(
            ordered in 0..100u64, start in 0..100u64, ready in proptest::option::of(0..900u64),
            alive in proptest::option::of(0..900u64), watchdog in proptest::option::of(1..300u64), now in 0..1500u64,
        ) {
            let mut readiness = Readiness::new(demand(watchdog));
            readiness.begin(at(ordered));
            readiness.runs(at(ordered + start));
            let said = Said { ready: ready.map(at), alive: alive.map(at), status: None };
            let before = readiness.verdict(at(now), &said);
            let wake = readiness.wake_at(at(now), &said).unwrap_or(at(100_000));
            prop_assert!(wake > at(now));
            let just = wake.since(at(now)) - Duration::from_millis(1);
            prop_assert_eq!(readiness.verdict(at(now) + just, &said), before);
        }
    }
}
