use proptest::prelude::*;

use super::*;
use crate::timing::{Settings, Timing};

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
    g.promise(at(10_000), ballot(1, 1), epoch(1), REFUSAL * 2).expect("promises");
    assert!(g.may_vote(at(11_000)).is_err());
    // A shorter renewal does not shorten what was promised.
    g.promise(at(10_100), ballot(1, 1), epoch(1), Duration::ZERO).expect("promises");
    assert!(g.may_vote(at(11_200)).is_err());
    assert_eq!(g.may_vote(at(11_240)), Ok(()));
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
    /// The owner of this node asks those in the mask; the answers count from before asking, and arrive after a delay
    /// during which time passes on.
    Renew { node: usize, reach: u8, delay: u64 },
    /// The node campaigns and reaches those in the mask.
    Campaign { node: usize, reach: u8 },
    /// The node restarts: it forgets everything but its highest ballot.
    Restart(usize),
    /// The owner stops, and its receipt reaches those in the mask.
    Release { node: usize, reach: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1u64..400).prop_map(Step::Pass),
        (0usize..5, any::<u8>(), 0u64..150).prop_map(|(node, reach, delay)| Step::Renew {
            node,
            reach,
            delay
        }),
        (0usize..5, any::<u8>()).prop_map(|(node, reach)| Step::Campaign { node, reach }),
        (0usize..5).prop_map(Step::Restart),
        (0usize..5, any::<u8>()).prop_map(|(node, reach)| Step::Release { node, reach }),
    ]
}

/// Five guards on clocks whose rates differ, and the owners they elect. Everything but the guard is simplified to the
/// most dangerous version: claims commit at once, workloads run to the very end of lease and grace.
struct Model {
    timing: Timing,
    true_ms: u64,
    rates_ppm: [u64; 5],
    guards: Vec<Guard>,
    /// What each node believes to own: its ballot, its epoch, and until when (true time) its workload may run.
    owners: [Option<(Ballot, Epoch, u64)>; 5],
    epoch: Epoch,
}

impl Model {
    fn new(rates_ppm: [u64; 5]) -> Model {
        let timing = Timing::new(&Settings::default()).expect("defaults hold");
        let guards = (0..5)
            .map(|_| Guard::new(at(0), timing.refusal(), timing.refusal(), Ballot::default()))
            .collect();
        Model { timing, true_ms: 0, rates_ppm, guards, owners: [None; 5], epoch: Epoch::ZERO }
    }

    fn local(&self, node: usize) -> Moment {
        Moment::from_nanos(self.true_ms * (1_000_000 + self.rates_ppm[node]))
    }

    /// When, in true time, `after` more than the node's present moment will have passed on its clock.
    fn true_after(&self, node: usize, from_ms: u64, after: Duration) -> u64 {
        let ns = u64::try_from(after.as_nanos()).expect("short");
        from_ms + ns.div_ceil(1_000_000 + self.rates_ppm[node])
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Pass(ms) => self.true_ms += ms,
            Step::Renew { node, reach, delay } => {
                let Some((ballot, epoch, _)) = self.owners[node] else { return Ok(()) };
                let asked_ms = self.true_ms;
                let mut promised = 0;
                for other in (0..5).filter(|o| *o == node || reach & (1 << o) != 0) {
                    let now = self.local(other);
                    if self.guards[other].promise(now, ballot, epoch, self.timing.refusal()).is_ok() {
                        promised += 1;
                    }
                    // Members are reached one after the other.
                    self.true_ms += delay / 5;
                }
                if promised >= 3 && self.owners[node].is_some_and(|(b, ..)| b == ballot) {
                    let runs_until =
                        self.true_after(node, asked_ms, self.timing.hold() + self.timing.stop_grace());
                    if let Some(owner) = &mut self.owners[node] {
                        owner.2 = owner.2.max(runs_until);
                    }
                }
            }
            Step::Campaign { node, reach } => {
                let ballot = Ballot { term: self.guards[node].highest().term + 1, node: NodeId(node as u64) };
                let mut votes = 0;
                for other in (0..5).filter(|o| *o == node || reach & (1 << o) != 0) {
                    let now = self.local(other);
                    let ask = if other == node { None } else { Some(ballot) };
                    if self.guards[other].begin_vote(now, ask).is_ok() {
                        self.guards[other].observe(ballot);
                        self.guards[other].end_vote();
                        votes += 1;
                    } else if other == node {
                        return Ok(());
                    }
                }
                if votes >= 3 {
                    for (rival, owner) in self.owners.iter().enumerate() {
                        if let Some((_, epoch, runs_until)) = owner {
                            prop_assert!(
                                rival == node || *runs_until <= self.true_ms,
                                "node {node} elected at {} ms while node {rival} may run epoch {epoch} until {runs_until} ms",
                                self.true_ms
                            );
                        }
                    }
                    self.epoch = self.epoch.next().expect("few");
                    self.owners[node] = Some((ballot, self.epoch, 0));
                }
            }
            Step::Restart(node) => {
                // Its fencer has killed the workload before it may start again.
                self.owners[node] = None;
                let highest = self.guards[node].highest();
                let refusal = self.timing.refusal();
                self.guards[node] = Guard::new(self.local(node), refusal, refusal, highest);
            }
            Step::Release { node, reach } => {
                let Some((_, epoch, _)) = self.owners[node].take() else { return Ok(()) };
                for other in (0..5).filter(|o| *o == node || reach & (1 << o) != 0) {
                    self.guards[other].lift(epoch);
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn no_rival_is_elected_while_a_workload_may_run(
        rates in proptest::array::uniform5(0u64..10_000),
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut model = Model::new(rates);
        for step in &steps {
            model.step(step)?;
        }
    }
}
