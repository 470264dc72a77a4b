//! What stands between a request and the hub: the troubles that are on, the limits of the tier, and a count of answers.
//!
//! REST and MQTT pass the same gate. The decisions are values of `hub/trouble.rs` and `hub/throttle.rs`; here they meet
//! clock and locks, and the words of the real hub.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{State, answer::Failure, lock};
use crate::hub::{
    throttle::{Count, Operation, Plan, Throttle, Verdict},
    trouble::{Asked, Fate, Rule, Trouble, Troubles, Turned},
};

/// Troubles, limits and counts.
#[derive(Default)]
pub(super) struct Gate {
    pub(super) troubles: Troubles,
    throttle: Option<Throttle>,
    /// How many answers there were with each status; 0: none at all.
    answers: BTreeMap<u16, u64>,
}

impl Gate {
    pub(super) fn new(plan: Option<Plan>) -> Gate {
        Gate { throttle: plan.map(Throttle::new), ..Gate::default() }
    }

    pub(super) fn counted(&self, operation: Operation) -> Count {
        let counts = |throttle: &Throttle| throttle.counts().get(&operation).copied();
        self.throttle.as_ref().and_then(counts).unwrap_or_default()
    }

    /// How many answers there were with this status.
    pub(super) fn answered(&self, status: u16) -> u64 {
        self.answers.get(&status).copied().unwrap_or(0)
    }

    pub(super) fn to_json(&self) -> Value {
        let limits = self.throttle.as_ref().map(|throttle| {
            json!({
                "plan": throttle.plan(),
                "quota": throttle.plan().quota(),
                "used": throttle.used(),
                "counts": throttle.counts(),
            })
        });
        json!({ "answers": self.answers, "limits": limits })
    }
}

impl State {
    /// What becomes of a request.
    pub(super) fn fate(&self, operation: Operation, device: Option<&str>) -> Fate {
        let now = self.clock.now();
        lock(&self.gate).troubles.fate(&Asked { operation, device }, now)
    }

    /// Takes one operation of `bytes` from the limits, if there are any, and says how long it has to wait.
    pub(super) fn admit(&self, operation: Operation, bytes: usize) -> Result<Duration, Failure> {
        let (now, wall_ms) = (self.clock.now(), self.clock.wall_ms());
        let mut gate = lock(&self.gate);
        let Some(throttle) = &mut gate.throttle else { return Ok(Duration::ZERO) };
        match throttle.admit(operation, u64::try_from(bytes).unwrap_or(u64::MAX), now, wall_ms) {
            Verdict::After(wait) => Ok(wait),
            Verdict::Refused => Err(Failure::new(
                429,
                "ThrottleBacklogLimitExceeded",
                format!("Too many requests: {operation:?} is throttled."),
            )),
            Verdict::QuotaExceeded => Err(quota()),
        }
    }

    /// Counts an answer; status 0 is an answer that never went out.
    pub(super) fn count(&self, status: u16) {
        *lock(&self.gate).answers.entry(status).or_default() += 1;
        self.touch();
    }

    /// Whether nobody can connect.
    pub(super) fn is_cut_off(&self) -> bool {
        lock(&self.gate).troubles.is_cut_off(self.clock.now())
    }

    /// Ends all troubles and switches to this one.
    pub(super) fn set_trouble(&self, trouble: Trouble) {
        lock(&self.gate).troubles.only(trouble, self.clock.now(), self.clock.wall_ms());
        self.switched(&trouble);
    }

    /// Switches a trouble on beside the others.
    pub(super) fn add_trouble(&self, rule: Rule) -> Result<u64, String> {
        let trouble = rule.trouble;
        let id = lock(&self.gate).troubles.add(rule, self.clock.now(), self.clock.wall_ms())?;
        self.switched(&trouble);
        Ok(id)
    }

    fn switched(&self, trouble: &Trouble) {
        if self.is_cut_off() {
            self.cut_lines();
        }
        tracing::info!(?trouble, "the emulated hub's trouble was switched");
        self.touch();
    }

    /// Gives the day its whole quota again, and ends the trouble of that name.
    pub(super) fn reset_quota(&self) {
        let now = self.clock.now();
        let mut gate = lock(&self.gate);
        if let Some(throttle) = &mut gate.throttle {
            throttle.reset_quota();
        }
        for shown in gate.troubles.shown(now) {
            if shown.rule.trouble == Trouble::Quota {
                gate.troubles.remove(shown.id);
            }
        }
        drop(gate);
        self.touch();
    }

    /// Loses what was written in the last while and cuts every connection, as a failover to another region does. Returns how many
    /// changes are lost.
    pub(super) fn rollback(&self, by: Duration) -> usize {
        // In the order in which a write locks them.
        let mut log = lock(&self.log);
        let now = self.clock.now();
        let lost = lock(&self.store).rollback(by, now);
        log.rollbacks.push(crate::hub::memory::Rollback { at: now, to: now.before(by), lost });
        drop(log);
        self.cut_lines();
        self.deploy_again(now.before(by));
        tracing::info!(?by, lost, "the emulated hub has lost its newest writes");
        self.touch();
        lost
    }

    /// Cuts every connection there is.
    pub(super) fn cut_lines(&self) {
        let mut line = lock(&self.line);
        line.cancel();
        *line = self.stop.child_token();
    }

    /// The token that a new connection ends with.
    pub(super) fn line(&self) -> CancellationToken {
        lock(&self.line).child_token()
    }

    /// Something that the page shows has changed.
    pub(super) fn touch(&self) {
        self.touched.send_modify(|touched| *touched = touched.wrapping_add(1));
    }
}

/// The hub's answer to a request that a trouble turns away.
pub(super) fn turned(turned: Turned) -> Failure {
    match turned {
        Turned::Throttled { retry_after_s } => {
            let failure = Failure::new(429, "ThrottlingException", "Throttling: too many requests.");
            Failure { retry_after_s, ..failure }
        }
        Turned::Failing { status: 503 } => {
            Failure::new(503, "ServiceUnavailable", "The service is unavailable.")
        }
        Turned::Failing { status } => Failure::new(status, "ServerError", "An internal error occurred."),
        Turned::Quota => quota(),
    }
}

fn quota() -> Failure {
    Failure::new(403, "IotHubQuotaExceeded", "The day's quota of messages is used up.")
}
