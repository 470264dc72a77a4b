//! How well off this device is: its probes, and what follows from them for the others and for its own loops.
//!
//! What it sees of the plant is told to the other members as soon as it changes; what its workload fails is handed to the loop
//! that decides whether this device gives way.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Node;
use crate::{
    clock::{Clock, Moment, sleep_until},
    condition::{Condition, Raised},
    id::DeviceId,
    ownership::{
        moves::{Policy, Sight},
        probe::Verdict,
    },
    probe::{Probe, Role, Settings},
    reconcile::probes::{Board, ProbeLoop, REST, State},
    status::report,
    workload::{Ready, Words},
};

/// The name on the board of what the workload says itself. No probe can be called so.
const READY: &str = "workload.ready";

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
            Role::Workload if *name == READY => {
                Raised::new(Condition::WorkloadUnhealthy, state.wrong.clone())
            }
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
        if let Some(words) = self.workload.words() {
            self.spawn(listen(words, self.health.board.clone(), self.clock.clone(), self.loops.clone()));
        } else if probes.is_empty() {
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
                let (sight, fails) = seen(&board.borrow_and_update(), asked, &group.roster().me);
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

/// Puts on the board, as if a probe had asked for it, whether the workload says that it is well.
async fn listen(
    mut words: watch::Receiver<Words>,
    board: watch::Sender<Board>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) {
    let mut failed: Option<(Moment, String)> = None;
    loop {
        let now = clock.now();
        let ready = words.borrow_and_update().ready.clone();
        if let Ready::Fails(why) = &ready {
            failed = Some((now, why.clone()));
        }
        let rests = failed.clone().filter(|(at, _)| now < *at + REST);
        let (verdict, wrong) = match (&ready, &rests) {
            (Ready::Fails(why), _) => (Verdict::Fails, why.clone()),
            (Ready::Ready { .. }, _) => {
                failed = None;
                (Verdict::Passes, String::new())
            }
            // It runs elsewhere now because it failed here, and would only come back to fail again.
            (Ready::Absent, Some((_, why))) => (Verdict::Fails, why.clone()),
            (Ready::Absent | Ready::Starting, _) => (Verdict::Unknown, String::new()),
        };
        let state = State { kind: "notify", role: Role::Workload, verdict, wrong };
        board.send_if_modified(|board| board.insert(READY.into(), state.clone()).as_ref() != Some(&state));
        let over = rests.filter(|_| ready == Ready::Absent).map(|(at, _)| at + REST);
        let over = async {
            match over {
                Some(at) => sleep_until(&*clock, at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = words.changed() => if changed.is_err() { return },
            () = over => {}
        }
    }
}

/// What this device sees of the plant, and what its workload fails, in words that others tell as well.
fn seen(board: &Board, asked: u32, me: &DeviceId) -> (Sight, Option<String>) {
    let sees = board.values().filter(|s| s.role == Role::Plant && s.verdict == Verdict::Passes).count();
    let sight = Sight { seen: u32::try_from(sees).unwrap_or(u32::MAX), asked };
    let mut failed = board.iter().filter(|(_, s)| s.role == Role::Workload && s.verdict == Verdict::Fails);
    // Without what is wrong, which may read differently each time.
    (
        sight,
        failed.next().map(|(name, _)| match name.as_str() {
            READY => format!("{me}'s workload does not say that it is well"),
            name => format!("{me}'s workload fails the probe {name}"),
        }),
    )
}
