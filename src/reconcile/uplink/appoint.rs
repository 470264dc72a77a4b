//! Whom the owner asks to mirror in its place: a value without clock, network or chance.
//!
//! The first change of an outage comes at once. After that each next one waits longer, so that lines which come and go do not
//! pass the twins around.

use std::time::Duration;

use crate::{clock::Moment, id::NodeId};

/// An own line that is down for less is no reason to ask for help.
const PATIENCE: Duration = Duration::from_secs(2);
/// An own line that is up again for less is not trusted.
const TRUST: Duration = Duration::from_secs(5);
/// The least time between two changes, doubled by each.
const GAP: Duration = Duration::from_secs(5);
/// The most.
const GAP_MAX: Duration = Duration::from_secs(300);
/// The most while whoever is asked does not get through, and somebody else would.
const GAP_STUCK: Duration = Duration::from_secs(20);
/// After so long without a change the lines count as good again.
const CALM: Duration = Duration::from_secs(600);

/// The owner's memory of its own line and of what it has asked.
#[derive(Debug, Default)]
pub(super) struct Appointer {
    /// Since when the own line is as it is.
    down: Option<Moment>,
    up: Option<Moment>,
    appointed: Option<NodeId>,
    changed: Option<Moment>,
    gap: Duration,
}

impl Appointer {
    /// Who is asked.
    pub(super) fn appointed(&self) -> Option<NodeId> {
        self.appointed
    }

    /// Whether the others are to find out whether they get through.
    pub(super) fn wants(&self, now: Moment) -> bool {
        self.appointed.is_some() || self.down.is_some_and(|since| now.since(since) >= PATIENCE)
    }

    /// Whether time alone may change something.
    pub(super) fn is_busy(&self) -> bool {
        self.appointed.is_some() || self.down.is_some()
    }

    /// The own line is up, down or unknown; `others` in their order, with what they say of theirs. Returns whom to ask.
    pub(super) fn step(
        &mut self,
        now: Moment,
        own: Option<bool>,
        others: &[(NodeId, Option<bool>)],
    ) -> Option<NodeId> {
        match own {
            Some(true) => {
                self.down = None;
                self.up.get_or_insert(now);
            }
            Some(false) => {
                self.up = None;
                self.down.get_or_insert(now);
            }
            None => {}
        }
        if self.changed.is_some_and(|at| now.since(at) >= CALM) {
            self.gap = Duration::ZERO;
        }
        let through =
            |node: NodeId| others.iter().any(|(other, opens)| *other == node && *opens == Some(true));
        let stuck = self.appointed.is_some_and(|node| !through(node));
        let wanted = match self.appointed {
            Some(_) if self.up.is_some_and(|since| now.since(since) >= TRUST) => None,
            Some(node) if !stuck => Some(node),
            None if !self.wants(now) => None,
            // Nobody better: it stays as it is.
            before => others.iter().find(|(_, opens)| *opens == Some(true)).map(|(node, _)| *node).or(before),
        };
        let gap = if stuck { self.gap.min(GAP_STUCK) } else { self.gap };
        let may = self.changed.is_none_or(|at| now.since(at) >= gap);
        if wanted != self.appointed && may {
            self.appointed = wanted;
            self.changed = Some(now);
            self.gap = (self.gap * 2).clamp(GAP, GAP_MAX);
            // The own line shows anew what it is worth.
            self.up = None;
            self.down = self.down.filter(|_| wanted.is_some());
        }
        self.appointed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn at(ms: u64) -> Moment {
        Moment::from_nanos((ms + 1) * 1_000_000)
    }

    #[test]
    fn the_first_that_gets_through_is_asked_and_it_is_taken_back() {
        let mut it = Appointer::default();
        assert_eq!(it.step(at(0), None, &[(A, None), (B, None)]), None);
        assert!(!it.is_busy());
        assert_eq!(it.step(at(0), Some(false), &[(A, None), (B, None)]), None);
        assert!(!it.wants(at(1000)) && it.wants(at(2000)));
        assert_eq!(it.step(at(2100), Some(false), &[(A, Some(false)), (B, Some(true))]), Some(B));
        // Another one that gets through too changes nothing.
        assert_eq!(it.step(at(9000), Some(false), &[(A, Some(true)), (B, Some(true))]), Some(B));
        assert_eq!(it.step(at(10_000), Some(true), &[(A, Some(true)), (B, Some(true))]), Some(B));
        assert_eq!(it.step(at(15_000), Some(true), &[(A, Some(true)), (B, Some(true))]), None);
        assert!(!it.wants(at(15_000)));
    }

    #[test]
    fn who_loses_its_line_is_replaced_if_somebody_else_has_one() {
        let mut it = Appointer::default();
        it.step(at(0), Some(false), &[]);
        assert_eq!(it.step(at(2000), Some(false), &[(A, Some(true)), (B, None)]), Some(A));
        assert_eq!(it.step(at(60_000), Some(false), &[(A, Some(false)), (B, None)]), Some(A));
        assert_eq!(it.step(at(61_000), Some(false), &[(A, Some(false)), (B, Some(true))]), Some(B));
        assert_eq!(it.step(at(200_000), Some(false), &[(A, Some(true))]), Some(A), "one that is gone");
    }

    #[test]
    fn lines_that_come_and_go_do_not_pass_the_twins_around() {
        let mut it = Appointer::default();
        let (mut changes, mut last) = (0, None);
        for second in 0..3600 {
            // The own line changes every seven seconds, the others' every few.
            let own = Some(second / 7 % 2 == 0);
            let others = [(A, Some(second / 5 % 2 == 0)), (B, Some(second / 3 % 3 == 0))];
            let now = it.step(at(second * 1000), own, &others);
            changes += u32::from(now != last);
            last = now;
        }
        assert!(changes < 130, "{changes} changes in an hour");
        let mut it = Appointer::default();
        let (mut changes, mut last) = (0, None);
        for second in 0..3600 {
            let now = it.step(at(second * 1000), Some(second / 7 % 2 == 0), &[(A, Some(true))]);
            changes += u32::from(now != last);
            last = now;
        }
        assert!((2..25).contains(&changes), "{changes} changes in an hour");
    }
}
