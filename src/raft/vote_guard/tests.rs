use super::*;
use crate::{
    dice::Dice,
    ownership::{
        command::{Command, SettleTiming},
        pace::Pace,
    },
    timing::{Settings, Timing},
};

const REFUSAL: Duration = Duration::from_millis(620);

fn at(ms: u64) -> Moment {
    Moment::from_nanos(ms * 1_000_000)
}

fn ballot(term: u64, node: u64) -> Ballot {
    Ballot { term, node: NodeId(node) }
}

fn epoch(n: u64) -> Epoch {
    Epoch::new(n).expect("small")
}

/// A guard long after its boot.
fn settled() -> Guard {
    Guard::new(at(0), REFUSAL, REFUSAL, Ballot::default())
}

#[test]
fn refuses_to_vote_within_the_window_of_its_promise() {
    let mut g = settled();
    g.promise(at(10_000), ballot(1, 1), epoch(1), REFUSAL).expect("promises");
    assert!(matches!(g.may_vote(at(10_619)), Err(VoteRefusal::Promised { .. })));
    assert!(matches!(g.begin_vote(at(10_619), Some(ballot(2, 2))), Err(VoteRefusal::Promised { .. })));
    assert!(matches!(g.begin_vote(at(10_619), None), Err(VoteRefusal::Promised { .. })));
    assert_eq!(g.may_vote(at(10_620)), Ok(()));
}

#[test]
fn promises_for_as_long_as_the_owner_needs() {
    let mut g = settled();
    g.durable(REFUSAL * 2);
    g.promise(at(10_000), ballot(1, 1), epoch(1), REFUSAL * 2).expect("promises");
    assert!(g.may_vote(at(11_000)).is_err());
    // A shorter renewal does not shorten what was promised.
    g.promise(at(10_100), ballot(1, 1), epoch(1), Duration::ZERO).expect("promises");
    assert!(g.may_vote(at(11_200)).is_err());
    assert_eq!(g.may_vote(at(11_240)), Ok(()));
}

#[test]
fn promises_no_longer_than_a_restart_would_remember() {
    let mut g = settled();
    let too_long = |g: &mut Guard, asked| {
        let promised = g.promise(at(10_000), ballot(1, 1), epoch(1), asked);
        assert!(matches!(promised, Err(PromiseRefusal::TooLong { .. })), "{asked:?}: {promised:?}");
        assert_eq!(g.may_vote(at(10_000)), Ok(()), "a refused promise binds nobody");
    };
    too_long(&mut g, REFUSAL + Duration::from_millis(1));
    too_long(&mut g, Duration::MAX);
    g.durable(REFUSAL * 2);
    too_long(&mut g, REFUSAL * 3);
    g.promise(at(10_000), ballot(1, 1), epoch(1), REFUSAL * 2).expect("it is on disk");
    // Less is on disk than the configured window: the next start refuses for that one.
    let mut g = settled();
    g.durable(Duration::ZERO);
    g.promise(at(10_000), ballot(1, 1), epoch(1), REFUSAL).expect("it is configured");
}

#[test]
fn refuses_to_vote_within_the_window_of_its_boot() {
    let mut g = Guard::new(at(5000), REFUSAL, REFUSAL * 2, Ballot::default());
    assert!(matches!(g.may_vote(at(6239)), Err(VoteRefusal::Booting { .. })));
    assert!(matches!(g.begin_vote(at(6239), None), Err(VoteRefusal::Booting { .. })));
    // No receipt lifts it: what was promised before the restart is not known.
    g.lift(epoch(1));
    assert!(g.may_vote(at(6239)).is_err());
    assert_eq!(g.may_vote(at(6240)), Ok(()));
}

#[test]
fn refuses_to_vote_while_its_own_workload_may_run() {
    let mut g = settled();
    g.workload(true);
    assert_eq!(g.may_vote(at(99_000)), Err(VoteRefusal::WorkloadRuns));
    g.workload(false);
    assert_eq!(g.may_vote(at(99_000)), Ok(()));
}

#[test]
fn a_receipt_lifts_promises_of_its_own_epoch_only() {
    let mut g = settled();
    g.promise(at(10_000), ballot(1, 1), epoch(7), REFUSAL).expect("promises");
    g.lift(epoch(6));
    assert!(g.may_vote(at(10_001)).is_err());
    g.lift(epoch(7));
    assert_eq!(g.may_vote(at(10_001)), Ok(()));
    // The next ownership's promise is a new one.
    g.promise(at(10_002), ballot(2, 2), epoch(8), REFUSAL).expect("promises");
    assert!(g.may_vote(at(10_003)).is_err());
}

#[test]
fn a_late_question_for_an_earlier_epoch_does_not_hide_the_promise_for_the_later() {
    let mut g = settled();
    // The same leader gave up epoch 7 and owns again under epoch 8; then a question for 7 arrives that was long under way.
    g.promise(at(10_000), ballot(1, 1), epoch(7), REFUSAL).expect("promises");
    g.lift(epoch(7));
    g.promise(at(10_100), ballot(1, 1), epoch(8), REFUSAL).expect("promises");
    g.promise(at(10_200), ballot(1, 1), epoch(7), REFUSAL).expect("promises");
    assert!(g.may_vote(at(10_300)).is_err(), "the promise for epoch 8 stands");
    g.lift(epoch(8));
    assert_eq!(g.may_vote(at(10_300)), Ok(()));
}

#[test]
fn promises_nothing_to_a_ballot_below_its_vote() {
    let mut g = settled();
    g.observe(ballot(3, 2));
    assert_eq!(
        g.promise(at(10_000), ballot(3, 1), epoch(1), REFUSAL),
        Err(PromiseRefusal::Higher { seen: ballot(3, 2) })
    );
    assert_eq!(g.may_vote(at(10_000)), Ok(()), "a refused promise binds nobody");
    let restarted = Guard::new(at(0), REFUSAL, REFUSAL, ballot(3, 2));
    assert!(
        restarted.clone().promise(at(10_000), ballot(2, 9), epoch(1), REFUSAL).is_err(),
        "the disk remembers votes"
    );
}

#[test]
fn promises_nothing_while_a_vote_is_being_decided() {
    let mut g = settled();
    g.begin_vote(at(10_000), Some(ballot(2, 2))).expect("votes");
    g.begin_vote(at(10_000), None).expect("campaigns");
    g.end_vote();
    assert_eq!(g.promise(at(10_001), ballot(9, 1), epoch(1), REFUSAL), Err(PromiseRefusal::Voting));
    g.end_vote();
    assert_eq!(g.promise(at(10_002), ballot(9, 1), epoch(1), REFUSAL), Ok(()));
}

#[test]
fn refuses_outdated_candidates() {
    let mut g = settled();
    g.observe(ballot(3, 2));
    assert!(matches!(g.begin_vote(at(10_000), Some(ballot(3, 1))), Err(VoteRefusal::Outdated { .. })));
    assert_eq!(g.begin_vote(at(10_000), Some(ballot(3, 2))), Ok(()));
}

/// One step of the model below.
#[derive(Debug, Clone)]
enum Step {
    /// Time passes.
    Pass(u64),
    /// The owner on this node asks those in the mask; the questions travel.
    Ask { node: usize, reach: u8 },
    /// One of the questions under way arrives, out of order; its answer counts from before asking.
    Arrive(usize),
    /// The node campaigns and reaches those in the mask.
    Campaign { node: usize, reach: u8 },
    /// A leader without ownership claims, with the acknowledgement of those in the mask.
    Claim { node: usize, reach: u8 },
    /// The node restarts: it forgets everything but its highest ballot. It still leads if nobody is above it.
    Restart(usize),
    /// The owner stops, and its receipt reaches those in the mask.
    Release { node: usize, reach: u8 },
    /// The owner has another timing agreed, with those in the mask.
    Stretch { node: usize, reach: u8, stretch: u32 },
    /// The owner has it agreed that the present timing has settled, if it has.
    Settle { node: usize, reach: u8 },
}

/// A walk whose steps are drawn so that there is usually an owner, and usually a way to lose it: who reaches whom
/// changes rarely, questions mostly arrive soon, and campaigns are tried all the time.
struct Walk {
    dice: Dice,
    reach: [u8; 5],
}

impl Walk {
    fn new(seed: u64) -> Walk {
        Walk { dice: Dice::new(seed), reach: [0b11111; 5] }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.dice.throw() % limit
    }

    fn node(&mut self) -> usize {
        usize::try_from(self.below(5)).expect("small")
    }

    fn next(&mut self, model: &Model) -> Step {
        if self.below(40) == 0 {
            let node = self.node();
            self.reach[node] = if self.below(2) == 0 { 0b11111 } else { self.dice.throw().to_le_bytes()[0] };
        }
        let node = self.node();
        let reach = self.reach[node];
        let owners: Vec<usize> = (0..5).filter(|n| model.owners[*n].is_some()).collect();
        let owner = owners.get(usize::try_from(self.below(5)).expect("small") % owners.len().max(1)).copied();
        match (self.below(100), owner) {
            (0..30, Some(node)) => Step::Ask { node, reach: self.reach[node] },
            (30..60, _) => {
                let under_way = u64::try_from(model.questions.len()).expect("few").max(1);
                let back =
                    if self.below(10) == 0 { self.below(under_way) } else { self.below(under_way.min(4)) };
                Step::Arrive(usize::try_from(under_way - 1 - back).expect("small"))
            }
            (60..76, _) => Step::Pass(1 + self.below(60)),
            (76, _) if self.below(2) == 0 => Step::Pass(950 + self.below(150)),
            (76, _) => Step::Pass(550 + self.below(150)),
            (77..88, _) => Step::Campaign { node, reach },
            (88..91, _) => Step::Claim { node, reach },
            (91, Some(node)) => {
                let stretch = 100 + 100 * u32::from(self.below(2) == 0);
                Step::Stretch { node, reach: self.reach[node], stretch }
            }
            (92, Some(node)) => Step::Settle { node, reach: self.reach[node] },
            (93..98, _) => Step::Restart(node),
            (98..100, Some(node)) => Step::Release { node, reach: self.reach[node] },
            _ => Step::Claim { node, reach },
        }
    }
}

/// A question under way.
struct Question {
    from: usize,
    to: usize,
    ballot: Ballot,
    epoch: Epoch,
    asked_ms: u64,
    timing: Timing,
}

/// An ownership as its owner sees it.
struct Owner {
    epoch: Epoch,
    /// Until when each node's promises let the workload run to the end of its grace, in true time.
    promised_ms: [Option<u64>; 5],
    /// Since when it has used the present timing, in true time.
    steady_ms: u64,
}

/// Five guards on clocks whose rates differ, and the owners they elect. Everything but the guard is simplified to the
/// most dangerous version: workloads run to the very end of lease and grace, questions are delayed and reordered without
/// bound.
struct Model {
    timing: Timing,
    /// Commands about the timing, as they were committed, and how many of them each node has on its disk.
    log: Vec<Command>,
    known: [usize; 5],
    true_ms: u64,
    rates_ppm: [u64; 5],
    guards: Vec<Guard>,
    /// The ballot that each node believes to lead with.
    leads: [Option<Ballot>; 5],
    owners: [Option<Owner>; 5],
    questions: Vec<Question>,
    epoch: Epoch,
    settled: u32,
}

impl Model {
    fn new(rates_ppm: [u64; 5]) -> Model {
        let timing = Timing::new(&Settings::default()).expect("defaults hold");
        let guards = (0..5)
            .map(|_| Guard::new(at(0), timing.refusal(), timing.refusal(), Ballot::default()))
            .collect();
        let (leads, owners) = ([None; 5], [const { None }; 5]);
        Model {
            timing,
            log: Vec::new(),
            known: [0; 5],
            true_ms: 0,
            rates_ppm,
            guards,
            leads,
            owners,
            questions: Vec::new(),
            epoch: Epoch::ZERO,
            settled: 0,
        }
    }

    fn local(&self, node: usize) -> Moment {
        Moment::from_nanos(self.true_ms * (1_000_000 + self.rates_ppm[node]))
    }

    /// Until when, in true time, the workload of this owner may run.
    fn runs_until(&self, node: usize) -> u64 {
        let Some(owner) = &self.owners[node] else { return 0 };
        let mut until: Vec<u64> = owner.promised_ms.iter().flatten().copied().collect();
        until.sort_unstable_by(|a, b| b.cmp(a));
        until.get(2).copied().unwrap_or(0)
    }

    /// The agreed timing, as far as the node has it on its disk.
    fn pace(&self, node: usize) -> Pace {
        let mut pace = Pace::default();
        for command in &self.log[..self.known[node]] {
            pace.apply(command).expect("it was committed");
        }
        pace
    }

    /// Commits a command of this leader, if a quorum of those reached follows it.
    fn commit(&mut self, node: usize, reach: u8, command: Command) {
        let Some(ballot) = self.leads[node] else { return };
        let follow: Vec<usize> =
            Self::reached(node, reach).filter(|n| self.guards[*n].highest() <= ballot).collect();
        // Whoever has campaigned since leads no more.
        if follow.len() < 3 || !follow.contains(&node) {
            return;
        }
        assert_eq!(self.known[node], self.log.len(), "a leader knows all that was committed");
        self.log.push(command);
        self.catch_up(&follow, ballot);
        if let Some(owner) = &mut self.owners[node] {
            owner.steady_ms = self.true_ms;
        }
    }

    /// These nodes follow the leader's ballot, and have written all that was committed.
    fn catch_up(&mut self, follow: &[usize], ballot: Ballot) {
        for n in follow {
            self.guards[*n].observe(ballot);
            self.known[*n] = self.log.len();
            let widest = self.pace(*n).widest();
            self.guards[*n].durable(widest);
        }
    }

    fn reached(node: usize, reach: u8) -> impl Iterator<Item = usize> {
        (0..5).filter(move |o| *o == node || reach & (1 << o) != 0)
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match *step {
            Step::Pass(ms) => self.true_ms += ms,
            Step::Ask { node, reach } => {
                let (Some(ballot), Some(owner)) = (self.leads[node], &self.owners[node]) else {
                    return Ok(());
                };
                let (epoch, asked_ms) = (owner.epoch, self.true_ms);
                let timing = self.pace(node).timing(&self.timing);
                let questions = Self::reached(node, reach).map(|to| Question {
                    from: node,
                    to,
                    ballot,
                    epoch,
                    asked_ms,
                    timing,
                });
                self.questions.extend(questions);
            }
            Step::Arrive(which) => {
                if self.questions.is_empty() {
                    return Ok(());
                }
                let q = self.questions.swap_remove(which % self.questions.len());
                let now = self.local(q.to);
                let promised = self.guards[q.to].promise(now, q.ballot, q.epoch, q.timing.refusal()).is_ok();
                let current = self.leads[q.from] == Some(q.ballot);
                if let Some(owner) =
                    self.owners[q.from].as_mut().filter(|o| promised && current && o.epoch == q.epoch)
                {
                    let act = u64::try_from((q.timing.hold() + q.timing.stop_grace()).as_nanos());
                    let act = act.expect("short").div_ceil(1_000_000 + self.rates_ppm[q.from]);
                    let latest = &mut owner.promised_ms[q.to];
                    *latest = (*latest).max(Some(q.asked_ms + act));
                }
                for node in 0..5 {
                    self.check(node)?;
                }
            }
            Step::Campaign { node, reach } => {
                let ballot = Ballot { term: self.guards[node].highest().term + 1, node: NodeId(node as u64) };
                let mut votes = 0;
                for other in Self::reached(node, reach) {
                    let now = self.local(other);
                    let ask = if other == node { None } else { Some(ballot) };
                    // Raft: nobody votes for a candidate that lacks what it has itself.
                    let complete = self.known[node] >= self.known[other];
                    if complete && self.guards[other].begin_vote(now, ask).is_ok() {
                        self.guards[other].observe(ballot);
                        self.guards[other].end_vote();
                        votes += 1;
                    } else if other == node {
                        return Ok(());
                    }
                }
                if votes >= 3 {
                    self.leads[node] = Some(ballot);
                    self.owners[node] = None;
                }
            }
            Step::Claim { node, reach } => {
                let Some(ballot) = self.leads[node].filter(|_| self.owners[node].is_none()) else {
                    return Ok(());
                };
                let follow: Vec<usize> =
                    Self::reached(node, reach).filter(|n| self.guards[*n].highest() <= ballot).collect();
                if follow.len() >= 3 && self.known[node] == self.log.len() {
                    self.catch_up(&follow, ballot);
                    self.epoch = self.epoch.next().expect("few");
                    let owner = Owner { epoch: self.epoch, promised_ms: [None; 5], steady_ms: self.true_ms };
                    self.owners[node] = Some(owner);
                }
            }
            Step::Restart(node) => {
                // Its fencer has killed the workload before it may start again, and openraft restores a leader.
                self.owners[node] = None;
                let highest = self.guards[node].highest();
                self.leads[node] = self.leads[node].filter(|ballot| *ballot == highest);
                let refusal = self.timing.refusal();
                let widest = self.pace(node).widest();
                self.guards[node] = Guard::new(self.local(node), refusal, refusal.max(widest), highest);
                self.guards[node].durable(widest);
            }
            Step::Release { node, reach } => {
                let Some(owner) = self.owners[node].take() else { return Ok(()) };
                Self::reached(node, reach).for_each(|other| self.guards[other].lift(owner.epoch));
            }
            Step::Stretch { node, reach, stretch } if self.owners[node].is_some() => {
                let set = self.pace(node).change(&self.timing, stretch, String::new(), 0);
                self.commit(node, reach, Command::SetTiming(set));
            }
            Step::Settle { node, reach } => {
                let Some(owner) = &self.owners[node] else { return Ok(()) };
                let pace = self.pace(node);
                let steady = self
                    .local(node)
                    .since(Moment::from_nanos(owner.steady_ms * (1_000_000 + self.rates_ppm[node])));
                if pace.settling() && steady >= pace.widest() {
                    let settle = SettleTiming { base: pace.version };
                    let before = self.log.len();
                    self.commit(node, reach, Command::SettleTiming(settle));
                    self.settled += u32::from(self.log.len() > before);
                }
            }
            Step::Stretch { .. } => {}
        }
        Ok(())
    }

    /// Nobody else's workload may run while this node's may.
    fn check(&self, node: usize) -> Result<(), String> {
        let until = self.runs_until(node);
        for rival in (0..5).filter(|r| *r != node) {
            let theirs = self.runs_until(rival);
            if until > self.true_ms && theirs > self.true_ms {
                return Err(format!(
                    "at {} ms node {node} may run until {until} ms and node {rival} until {theirs} ms",
                    self.true_ms
                ));
            }
        }
        Ok(())
    }
}

#[test]
fn no_two_workloads_may_run_at_once() {
    let mut settled = 0;
    for seed in 0..600 {
        let mut walk = Walk::new(seed);
        let rates = std::array::from_fn(|_| walk.below(10_000));
        let mut model = Model::new(rates);
        for number in 0..4000 {
            let step = walk.next(&model);
            if let Err(overlap) = model.step(&step) {
                panic!("seed {seed}, step {number} ({step:?}): {overlap}");
            }
        }
        assert!(
            model.epoch.get() > 10,
            "seed {seed}: only {} ownerships, the walk proves little",
            model.epoch
        );
        settled += model.settled;
    }
    assert!(settled > 50, "the timing became wide and narrow again {settled} times only");
}

#[test]
fn who_is_barred_votes_no_more() {
    for bar in [Bar::DiskFailed, Bar::Amnesia] {
        let mut g = settled();
        assert_eq!(g.may_vote(at(10_000)), Ok(()));
        g.bar(bar);
        // Neither time, nor a receipt, nor a higher ballot lifts it.
        g.lift(epoch(1));
        g.observe(ballot(7, 1));
        for ms in [10_000, 20_000, 10_000_000] {
            assert_eq!(g.may_vote(at(ms)), Err(VoteRefusal::Barred(bar)));
            assert_eq!(g.begin_vote(at(ms), Some(ballot(9, 2))), Err(VoteRefusal::Barred(bar)));
            assert_eq!(g.begin_vote(at(ms), None), Err(VoteRefusal::Barred(bar)));
        }
    }
}

#[test]
fn who_has_forgotten_its_votes_promises_nothing() {
    let mut g = settled();
    g.bar(Bar::Amnesia);
    // A disk that fails as well does not bring the votes back.
    g.bar(Bar::DiskFailed);
    let refused = g.promise(at(10_000), ballot(9, 1), epoch(1), REFUSAL);
    assert_eq!(refused, Err(PromiseRefusal::Barred(Bar::Amnesia)));
    // Who still knows them may keep a healthy owner's lease alive.
    let mut g = settled();
    g.observe(ballot(4, 2));
    g.bar(Bar::DiskFailed);
    assert_eq!(g.promise(at(10_000), ballot(4, 2), epoch(1), REFUSAL), Ok(()));
    let refused = g.promise(at(10_000), ballot(3, 1), epoch(1), REFUSAL);
    assert_eq!(refused, Err(PromiseRefusal::Higher { seen: ballot(4, 2) }));
}
