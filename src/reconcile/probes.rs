//! Asks one probe again and again, and puts on the board what its answers come to.
//!
//! A probe of the plant is asked all the time. One of the workload is asked while the workload runs here; each run begins with
//! nothing known. If the workload is given to another device because it failed here, that is remembered for a while: nobody
//! can be asked meanwhile, and it would only come back to fail again.
//!
//! Nothing is decided here, and no other loop is waited for. An answer that takes too long is a failure, and the next is asked
//! for at its time.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{Clock, Moment},
    condition::Condition,
    epoch::Epoch,
    ownership::probe::{Answers, Verdict},
    probe::{Probe, Role, Settings, Target},
    workload::Observed,
};

/// For so long a workload that failed here, and runs here no more, counts as failing.
pub const REST: Duration = Duration::from_secs(300);
/// A command is ended at its time limit, and how that went is told a moment later.
const TOLD_WITHIN: Duration = Duration::from_millis(300);

/// What is known by one probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Its kind, as written in the configuration.
    pub kind: &'static str,
    /// What it is for.
    pub role: Role,
    /// What its answers come to.
    pub verdict: Verdict,
    /// What was wrong last; empty if nothing was.
    pub wrong: String,
}

/// What is known by all probes, by name.
pub type Board = BTreeMap<String, State>;

/// The loop and what it needs.
pub struct ProbeLoop {
    /// How it is asked.
    pub settings: Settings,
    /// Who is asked.
    pub probe: Box<dyn Probe>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// What is observed of the workload.
    pub observed: watch::Receiver<Observed>,
    /// Where the state is published.
    pub board: watch::Sender<Board>,
}

/// What has been seen.
struct Memory {
    answers: Answers,
    /// The run of the workload that the answers are about.
    run: Option<(Epoch, Option<u32>)>,
    /// When it was last known to fail.
    failed: Moment,
}

impl ProbeLoop {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let now = self.clock.now();
        let mut memory = Memory { answers: Answers::new(now), run: None, failed: now };
        self.publish(Verdict::Unknown, String::new());
        let mut tick = tokio::time::interval(self.settings.every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            if !self.asks(&mut memory) {
                continue;
            }
            let run = self.running();
            let answer = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                answer = self.answer() => answer,
            };
            // A workload that was ended meanwhile owes no answer.
            if self.settings.role == Role::Workload && self.running() != run {
                continue;
            }
            let now = self.clock.now();
            let verdict = memory.answers.note(now, answer.is_ok(), &self.settings.thresholds);
            if verdict == Verdict::Fails {
                memory.failed = now;
            }
            self.publish(verdict, answer.err().unwrap_or_default());
        }
    }

    async fn answer(&mut self) -> Result<(), String> {
        let limit = self.settings.timeout;
        let patience =
            if matches!(self.settings.target, Target::Exec(_)) { limit + TOLD_WITHIN } else { limit };
        let late = || format!("no answer within {} ms", limit.as_millis());
        tokio::time::timeout(patience, self.probe.ask()).await.unwrap_or_else(|_| Err(late()))
    }

    fn running(&self) -> Option<(Epoch, Option<u32>)> {
        match *self.observed.borrow() {
            Observed::Running { epoch, pid } => Some((epoch, pid)),
            _ => None,
        }
    }

    /// Whether there is anybody to ask. What was known of an earlier run is forgotten once that is of no use any more.
    fn asks(&self, memory: &mut Memory) -> bool {
        if self.settings.role == Role::Plant {
            return true;
        }
        let (now, run) = (self.clock.now(), self.running());
        let rests = memory.answers.verdict() == Verdict::Fails && now.since(memory.failed) < REST;
        if run.is_some() && run != memory.run || run.is_none() && !rests {
            memory.answers = Answers::new(now);
            self.publish(Verdict::Unknown, String::new());
        }
        memory.run = run;
        run.is_some()
    }

    fn publish(&self, verdict: Verdict, wrong: String) {
        let Settings { name, role, target, .. } = &self.settings;
        let state = State { kind: target.kind(), role: *role, verdict, wrong };
        self.board.send_if_modified(|board| {
            let old = board.insert(name.clone(), state.clone());
            let before = old.as_ref().map(|old| old.verdict).unwrap_or_default();
            if before != verdict {
                self.tell(name, verdict, &state.wrong);
            }
            old.as_ref() != Some(&state)
        });
    }

    fn tell(&self, name: &str, verdict: Verdict, wrong: &str) {
        let condition = match self.settings.role {
            Role::Plant => Condition::PlantUnseen,
            Role::Workload => Condition::WorkloadUnhealthy,
        };
        match verdict {
            Verdict::Fails => tracing::warn!(condition = condition.name(), "probe {name} fails: {wrong}"),
            Verdict::Passes => tracing::info!(condition = condition.name(), "probe {name} passes"),
            Verdict::Unknown => tracing::debug!("probe {name}: nothing is known"),
        }
    }
}
