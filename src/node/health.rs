//! How well off this device is: its probes, and what follows from them for the others and for its own loops.
//!
//! What it sees of the plant is told to the other members as soon as it changes; what its workload fails is handed to the loop
//! that decides whether this device gives way.

use tokio::sync::watch;

use super::Node;
use crate::{
    condition::{Condition, Raised},
    ownership::{
        moves::{Policy, Sight},
        probe::Verdict,
    },
    probe::{Probe, Role, Settings},
    reconcile::probes::{Board, ProbeLoop},
    status::report,
};

/// What probes and policy have to do with the node.
pub(super) struct Health {
    /// What is known by all probes.
    pub(super) board: watch::Sender<Board>,
    /// What the workload fails here, if it does.
    pub(super) failing: watch::Sender<Option<String>>,
    /// How willingly the ownership moves.
    pub(super) policy: watch::Sender<Policy>,
    /// What would have moved it, if there had not been so many changes.
    pub(super) held: watch::Sender<Option<String>>,
}

impl Health {
    pub(super) fn new() -> Health {
        Health {
            board: watch::Sender::default(),
            failing: watch::Sender::default(),
            policy: watch::Sender::default(),
            held: watch::Sender::default(),
        }
    }

    /// What a person should know of it.
    pub(super) fn raised(&self) -> Vec<Raised> {
        let board = self.board.borrow();
        let failed = board.iter().filter(|(_, state)| state.verdict == Verdict::Fails);
        let raised = failed.map(|(name, state)| match state.role {
            Role::Plant => Raised::new(Condition::PlantUnseen, format!("{name}: {}", state.wrong)),
            Role::Workload => {
                Raised::new(Condition::WorkloadUnhealthy, format!("probe {name}: {}", state.wrong))
            }
        });
        let held = self.held.borrow();
        raised.chain(held.iter().map(|why| Raised::new(Condition::BudgetSpent, why.clone()))).collect()
    }

    /// The probes, for people.
    pub(super) fn report(&self) -> Vec<report::Probe> {
        let board = self.board.borrow();
        let shown = board.iter().map(|(name, state)| report::Probe {
            name: name.clone(),
            kind: state.kind.into(),
            role: state.role.name().into(),
            up: match state.verdict {
                Verdict::Unknown => None,
                Verdict::Passes => Some(true),
                Verdict::Fails => Some(false),
            },
            wrong: state.wrong.clone(),
        });
        shown.collect()
    }
}

impl Node {
    /// From now on these probes are asked, and the ownership moves by this policy.
    pub fn look_after(&self, probes: Vec<(Settings, Box<dyn Probe>)>, policy: Policy) {
        self.health.policy.send_replace(policy);
        if probes.is_empty() {
            return;
        }
        let plant = probes.iter().filter(|(settings, _)| settings.role == Role::Plant).count();
        let asked = u32::try_from(plant).unwrap_or(u32::MAX);
        self.group.roster().declare_sight(Sight { seen: 0, asked });
        for (settings, probe) in probes {
            let probe = ProbeLoop {
                settings,
                probe,
                clock: self.clock.clone(),
                observed: self.observed.clone(),
                board: self.health.board.clone(),
            };
            self.spawn(probe.run(self.loops.clone()));
        }
        let (group, failing) = (self.group.clone(), self.health.failing.clone());
        let (mut board, loops) = (self.health.board.subscribe(), self.loops.clone());
        self.spawn(async move {
            loop {
                let (sight, fails) = seen(&board.borrow_and_update(), asked);
                failing.send_if_modified(|old| {
                    let changed = *old != fails;
                    *old = fails;
                    changed
                });
                if group.roster().declare_sight(sight) {
                    group.greet_all();
                }
                tokio::select! {
                    biased;
                    () = loops.cancelled() => return,
                    Ok(()) = board.changed() => {}
                    else => return,
                }
            }
        });
    }
}

/// What this device sees of the plant, and what its workload fails.
fn seen(board: &Board, asked: u32) -> (Sight, Option<String>) {
    let sees = board.values().filter(|s| s.role == Role::Plant && s.verdict == Verdict::Passes).count();
    let sight = Sight { seen: u32::try_from(sees).unwrap_or(u32::MAX), asked };
    let mut failed = board.iter().filter(|(_, s)| s.role == Role::Workload && s.verdict == Verdict::Fails);
    // Without what is wrong, which may read differently each time.
    (sight, failed.next().map(|(name, _)| format!("its workload fails the probe {name}")))
}
