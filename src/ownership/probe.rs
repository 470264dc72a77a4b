//! When the answers to a probe make it one that fails or passes.
//!
//! One answer says little: a packet was lost, a disk was slow. So a probe that passes fails only after some failures in a row,
//! and passes again only after some answers in a row that are good. The very first good answer counts at once, for nothing
//! speaks against it; and failures while what is asked is still starting count for nothing. This file asks nobody.

use std::time::Duration;

use crate::clock::Moment;

/// How many answers in a row change the verdict, and how long what is asked may take to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Failures in a row until it fails. At least 1.
    pub fail_after: u32,
    /// Good answers in a row until it passes again. At least 1.
    pub pass_after: u32,
    /// For so long from the beginning failures do not count, until the first good answer.
    pub grace: Duration,
}

/// What the answers so far come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Not known yet.
    #[default]
    Unknown,
    /// It passes.
    Passes,
    /// It fails.
    Fails,
}

/// The answers of one probe since what is asked began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answers {
    begun: Moment,
    verdict: Verdict,
    /// How many of the last answers in a row speak against the verdict.
    against: u32,
}

impl Answers {
    /// No answer yet.
    pub fn new(begun: Moment) -> Answers {
        Answers { begun, verdict: Verdict::Unknown, against: 0 }
    }

    /// What the answers so far come to.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// One more answer.
    pub fn note(&mut self, now: Moment, passed: bool, limits: &Thresholds) -> Verdict {
        let (needed, then) = match (self.verdict, passed) {
            (Verdict::Passes, true) | (Verdict::Fails, false) => {
                self.against = 0;
                return self.verdict;
            }
            (Verdict::Unknown, false) if now.since(self.begun) < limits.grace => return self.verdict,
            (Verdict::Unknown, true) => (1, Verdict::Passes),
            (Verdict::Fails, true) => (limits.pass_after, Verdict::Passes),
            (Verdict::Unknown | Verdict::Passes, false) => (limits.fail_after, Verdict::Fails),
        };
        self.against = self.against.saturating_add(1);
        if self.against >= needed {
            (self.verdict, self.against) = (then, 0);
        }
        self.verdict
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(s: u64) -> Moment {
        Moment::from_nanos(s * 1_000_000_000)
    }

    fn limits(fail_after: u32, pass_after: u32, grace_s: u64) -> Thresholds {
        Thresholds { fail_after, pass_after, grace: Duration::from_secs(grace_s) }
    }

    /// The verdicts, one letter each, of answers that come once a second.
    fn told(answers: &str, limits: &Thresholds) -> String {
        let mut state = Answers::new(at(0));
        let letter = |verdict| match verdict {
            Verdict::Unknown => '?',
            Verdict::Passes => '+',
            Verdict::Fails => '-',
        };
        let note = |(s, c): (usize, char)| letter(state.note(at(s as u64), c == '+', limits));
        answers.chars().enumerate().map(note).collect()
    }

    #[test]
    fn one_answer_changes_nothing_but_the_first_good_one() {
        let usual = limits(3, 2, 0);
        for (answers, verdicts) in [
            ("+--+---", "++++++-"),
            ("---+-++", "??----+"),
            ("--+---", "??+++-"),
            ("+---+-+-+-++", "+++--------+"),
        ] {
            assert_eq!(told(answers, &usual), verdicts, "{answers}");
        }
    }

    #[test]
    fn failures_at_the_start_do_not_count_until_the_first_good_answer() {
        assert_eq!(told("-----------", &limits(3, 2, 6)), "????????---");
        assert_eq!(told("--+---", &limits(3, 2, 60)), "??+++-", "it has started");
    }

    proptest! {
        /// Whatever the answers, the verdict changes only with as many in a row as are needed, all of them against it.
        #[test]
        fn a_verdict_changes_only_after_enough_answers_in_a_row(
            answers in proptest::collection::vec(any::<bool>(), 0..300), fail_after in 1u32..6, pass_after in 1u32..6,
        ) {
            let limits = limits(fail_after, pass_after, 0);
            let mut state = Answers::new(at(0));
            let mut changes = 0;
            for (n, passed) in answers.iter().enumerate() {
                let before = state.verdict();
                let after = state.note(at(n as u64), *passed, &limits);
                let needed = match (before, after) {
                    _ if before == after => continue,
                    (Verdict::Unknown, Verdict::Passes) => 1,
                    (_, Verdict::Passes) => pass_after as usize,
                    (_, Verdict::Fails) => fail_after as usize,
                    (_, Verdict::Unknown) => panic!("never again"),
                };
                prop_assert!(n + 1 >= needed);
                let good = after == Verdict::Passes;
                prop_assert!(answers[n + 1 - needed..=n].iter().all(|answer| *answer == good));
                changes += 1;
            }
            let round = (fail_after + pass_after) as usize;
            prop_assert!(changes <= 2 + answers.len() / round * 2 + 1);
        }

        /// Enough answers in a row settle it, whatever came before.
        #[test]
        fn enough_answers_in_a_row_settle_it(
            before in proptest::collection::vec(any::<bool>(), 0..50), good: bool, fail_after in 1u32..6, pass_after in 1u32..6,
        ) {
            let limits = limits(fail_after, pass_after, 0);
            let mut state = Answers::new(at(0));
            before.iter().for_each(|passed| { state.note(at(1), *passed, &limits); });
            (0..fail_after.max(pass_after)).for_each(|_| { state.note(at(2), good, &limits); });
            prop_assert_eq!(state.verdict(), if good { Verdict::Passes } else { Verdict::Fails });
        }
    }
}
