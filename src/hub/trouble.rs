//! What a hub can suffer from: several troubles at once, each with its scope, its probability and its end.
//!
//! A value without clock, tasks or locks, shared by the hub in memory and the emulator: equal seeds and equal requests
//! give equal fates. It says what becomes of a request and does nothing about it. Troubles that happen once and are over
//! (a rollback, a device disabled or made anew) are not here but where the twins are, in `store.rs`.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::throttle::Operation;
use crate::{
    clock::{Moment, millis},
    dice::Dice,
};

const DAY_MS: u64 = 86_400_000;
/// The most troubles at once; further ones are refused, so that nobody fills the memory by repeating himself.
const MOST: usize = 100;

/// One kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Trouble {
    /// None.
    #[default]
    None,
    /// No connection is accepted, and the existing ones are cut.
    Unreachable,
    /// Every answer takes this long; the request is applied before it.
    Slow {
        /// Milliseconds.
        delay_ms: u64,
    },
    /// Every request is answered with 429.
    Throttled {
        /// Seconds for the `Retry-After` header; without it there is no such header.
        #[serde(default)]
        retry_after_s: Option<u64>,
    },
    /// Every request is answered with this status.
    Failing {
        /// 500 to 599.
        status: u16,
    },
    /// Writes are applied, and the connection is cut instead of answering. Reads are answered.
    DropAnswer,
    /// The day's messages are used up: 403 until the next day begins in UTC.
    Quota,
    /// The hub's clock differs from everybody else's, so that it refuses tokens that are good.
    ClockSkew {
        /// Seconds by which the hub's clock is ahead; negative: behind.
        ahead_s: i64,
    },
    /// Every token is taken for expired: 401.
    TokensExpired,
    /// Queries find the twins as they were; reading a twin shows it as it is.
    StaleQueries {
        /// Seconds ago, at most ten minutes.
        lag_s: u64,
    },
}

/// Which requests a trouble hits. By default all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scope {
    /// These operations only; none named: all.
    pub operations: Vec<Operation>,
    /// Requests about these devices and their modules only; none named: all.
    pub devices: Vec<String>,
}

impl Scope {
    fn covers(&self, asked: &Asked<'_>) -> bool {
        let operation = self.operations.is_empty() || self.operations.contains(&asked.operation);
        let device = self.devices.is_empty()
            || asked.device.is_some_and(|device| self.devices.iter().any(|named| named == device));
        operation && device
    }

    fn is_everything(&self) -> bool {
        self.operations.is_empty() && self.devices.is_empty()
    }
}

/// A trouble with its scope, its probability and its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The trouble.
    pub trouble: Trouble,
    /// Whom it hits.
    #[serde(default)]
    pub scope: Scope,
    /// With which probability it hits a request, 0 to 1.
    #[serde(default = "certain")]
    pub probability: f64,
    /// Seconds after which it ends by itself; without, it lasts until it is switched off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_s: Option<u64>,
}

fn certain() -> f64 {
    1.0
}

impl From<Trouble> for Rule {
    fn from(trouble: Trouble) -> Rule {
        Rule { trouble, scope: Scope::default(), probability: 1.0, for_s: None }
    }
}

impl Rule {
    /// Says what is wrong with it.
    ///
    /// # Errors
    /// One sentence: a status that is no 5xx, or a probability that is none.
    pub fn check(&self) -> Result<(), String> {
        match self.trouble {
            Trouble::Failing { status } if !(500..=599).contains(&status) => {
                Err(format!("status must be 500 to 599, not {status}"))
            }
            _ if !(0.0..=1.0).contains(&self.probability) => {
                Err(format!("probability must be 0 to 1, not {}", self.probability))
            }
            _ => Ok(()),
        }
    }
}

/// A request, as far as troubles are concerned.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// What for.
    pub operation: Operation,
    /// About which device, if about one.
    pub device: Option<&'a str>,
}

/// Why a request is answered without being looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// 429.
    Throttled {
        /// Seconds for `Retry-After`.
        retry_after_s: Option<u64>,
    },
    /// This status.
    Failing {
        /// 500 to 599.
        status: u16,
    },
    /// 403, the day's quota.
    Quota,
}

/// What becomes of one request. By default it is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fate {
    /// It never arrives.
    pub unreachable: bool,
    /// It is answered without being looked at.
    pub turned: Option<Turned>,
    /// Its answer takes this long.
    pub delay: Duration,
    /// If it is a write, it is applied and not answered.
    pub answer_lost: bool,
    /// By how many seconds the hub's clock is ahead.
    pub ahead_s: i64,
    /// Its token is taken for expired.
    pub token_expired: bool,
    /// If it is a query, it finds what was there so long ago.
    pub stale: Duration,
}

/// A trouble that is on, for people.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shown {
    /// Its number, to switch it off by.
    pub id: u64,
    /// What it is.
    #[serde(flatten)]
    pub rule: Rule,
    /// Milliseconds until it ends by itself.
    pub left_ms: Option<u64>,
}

#[derive(Debug, Clone)]
struct On {
    rule: Rule,
    ends: Option<Moment>,
}

/// All troubles that are on.
#[derive(Debug, Clone)]
pub struct Troubles {
    on: BTreeMap<u64, On>,
    last: u64,
    dice: Dice,
}

impl Default for Troubles {
    fn default() -> Self {
        Troubles { on: BTreeMap::new(), last: 0, dice: Dice::new(1) }
    }
}

impl Troubles {
    /// From now on probabilities are thrown from this seed.
    pub fn seed(&mut self, seed: u64) {
        self.dice = Dice::new(seed);
    }

    /// Ends all troubles and switches this one on, alone.
    pub fn only(&mut self, trouble: Trouble, now: Moment, wall_ms: u64) {
        self.on.clear();
        let _switched = self.add(trouble.into(), now, wall_ms).is_ok();
    }

    /// Switches a trouble on beside the others and returns its number; [`Trouble::None`] is accepted and changes nothing.
    /// `wall_ms` is the hub's wall clock, by which a day ends.
    ///
    /// # Errors
    /// One sentence, if the rule is wrong or too many are on.
    pub fn add(&mut self, rule: Rule, now: Moment, wall_ms: u64) -> Result<u64, String> {
        rule.check()?;
        self.prune(now);
        if self.on.len() >= MOST {
            return Err(format!("{MOST} troubles are on; switch some off first"));
        }
        self.last += 1;
        let midnight = Duration::from_millis(DAY_MS - wall_ms % DAY_MS);
        let asked = rule.for_s.map(|seconds| now + Duration::from_secs(seconds));
        let ends = match rule.trouble {
            Trouble::None => return Ok(self.last),
            Trouble::Quota => Some(asked.map_or(now + midnight, |asked| asked.min(now + midnight))),
            _ => asked,
        };
        self.on.insert(self.last, On { rule, ends });
        Ok(self.last)
    }

    /// Switches the trouble of this number off. `false` if it was not on.
    pub fn remove(&mut self, id: u64) -> bool {
        self.on.remove(&id).is_some()
    }

    /// Switches all off.
    pub fn clear(&mut self) {
        self.on.clear();
    }

    /// Those that are on.
    pub fn shown(&mut self, now: Moment) -> Vec<Shown> {
        self.prune(now);
        let left = |on: &On| on.ends.map(|ends| millis(ends.since(now)));
        self.on.iter().map(|(id, on)| Shown { id: *id, rule: on.rule.clone(), left_ms: left(on) }).collect()
    }

    /// Whether nobody can connect at all.
    pub fn is_cut_off(&mut self, now: Moment) -> bool {
        self.prune(now);
        self.on.values().any(|on| {
            on.rule.trouble == Trouble::Unreachable
                && on.rule.scope.is_everything()
                && on.rule.probability >= 1.0
        })
    }

    /// What becomes of this request.
    pub fn fate(&mut self, asked: &Asked<'_>, now: Moment) -> Fate {
        self.prune(now);
        let mut fate = Fate::default();
        for On { rule, .. } in self.on.values() {
            if !rule.scope.covers(asked) || !hits(&mut self.dice, rule.probability) {
                continue;
            }
            match rule.trouble {
                Trouble::None => {}
                Trouble::Unreachable => fate.unreachable = true,
                Trouble::Slow { delay_ms } => {
                    fate.delay = fate.delay.saturating_add(Duration::from_millis(delay_ms));
                }
                Trouble::Throttled { retry_after_s } => {
                    fate.turned = fate.turned.or(Some(Turned::Throttled { retry_after_s }));
                }
                Trouble::Failing { status } => {
                    fate.turned = fate.turned.or(Some(Turned::Failing { status }));
                }
                Trouble::Quota => fate.turned = fate.turned.or(Some(Turned::Quota)),
                Trouble::DropAnswer => fate.answer_lost = true,
                Trouble::ClockSkew { ahead_s } => fate.ahead_s = fate.ahead_s.saturating_add(ahead_s),
                Trouble::TokensExpired => fate.token_expired = true,
                Trouble::StaleQueries { lag_s } => fate.stale = fate.stale.max(Duration::from_secs(lag_s)),
            }
        }
        fate
    }

    fn prune(&mut self, now: Moment) {
        self.on.retain(|_, on| on.ends.is_none_or(|ends| now < ends));
    }
}

/// A throw, which costs nothing where the outcome is certain: so certain troubles leave the others' throws as they are.
fn hits(dice: &mut Dice, probability: f64) -> bool {
    if probability >= 1.0 {
        return true;
    }
    // 53 bits fill a double exactly.
    let throw = (dice.throw() >> 11) as f64 / (1_u64 << 53) as f64;
    throw < probability
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn s(s: u64) -> Moment {
        Moment::default() + Duration::from_secs(s)
    }

    const READ: Asked<'static> = Asked { operation: Operation::TwinRead, device: Some("edge-1") };
    const WRITE: Asked<'static> = Asked { operation: Operation::TwinUpdate, device: Some("edge-2") };

    #[test]
    fn several_at_once_each_in_its_scope() {
        let mut troubles = Troubles::default();
        let rule = |json| serde_json::from_value::<Rule>(json).expect("a rule");
        let slow = rule(json!({"trouble": {"kind": "slow", "delay_ms": 300}}));
        let lost = rule(
            json!({"trouble": {"kind": "drop-answer"}, "scope": {"operations": ["twin-update"]}, "for_s": 10}),
        );
        let away = rule(json!({"trouble": {"kind": "unreachable"}, "scope": {"devices": ["edge-1"]}}));
        let first = troubles.add(slow, s(0), 0).expect("is on");
        troubles.add(lost, s(0), 0).expect("is on");
        troubles.add(away, s(0), 0).expect("is on");
        let delay = Duration::from_millis(300);
        assert_eq!(troubles.fate(&READ, s(1)), Fate { unreachable: true, delay, ..Fate::default() });
        assert_eq!(troubles.fate(&WRITE, s(1)), Fate { answer_lost: true, delay, ..Fate::default() });
        assert_eq!(troubles.shown(s(4))[1].left_ms, Some(6000));
        // Others still get through, so it is not the whole hub that is away.
        assert!(!troubles.is_cut_off(s(4)));
        assert!(troubles.remove(first) && !troubles.remove(first));
        assert_eq!(troubles.fate(&WRITE, s(10)), Fate::default());
        troubles.only(Trouble::Unreachable, s(11), 0);
        assert!(troubles.is_cut_off(s(11)));
        troubles.only(Trouble::None, s(11), 0);
        assert!(troubles.shown(s(11)).is_empty());
    }

    #[test]
    fn the_same_seed_hits_the_same_requests() {
        let hits = |seed| {
            let mut troubles = Troubles::default();
            troubles.seed(seed);
            let storm = Trouble::Throttled { retry_after_s: None };
            troubles.add(Rule { probability: 0.3, ..storm.into() }, s(0), 0).expect("is on");
            (0..1000).map(|_| troubles.fate(&READ, s(1)).turned.is_some()).collect::<Vec<_>>()
        };
        assert_eq!(hits(7), hits(7));
        assert_ne!(hits(7), hits(8));
        let many = hits(7).iter().filter(|hit| **hit).count();
        assert!((250..350).contains(&many), "{many} of 1000 at 0.3");
    }

    #[test]
    fn a_used_up_day_ends_at_midnight() {
        let mut troubles = Troubles::default();
        troubles.add(Trouble::Quota.into(), s(0), DAY_MS * 9 - 5000).expect("is on");
        assert_eq!(troubles.fate(&READ, s(4)).turned, Some(Turned::Quota));
        assert_eq!(troubles.fate(&READ, s(5)), Fate::default());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let add = |rule: Rule| Troubles::default().add(rule, s(0), 0);
        assert!(add(Trouble::Failing { status: 404 }.into()).is_err());
        assert!(add(Rule { probability: 1.1, ..Trouble::Quota.into() }).is_err());
        assert!(add(Rule { probability: f64::NAN, ..Trouble::Quota.into() }).is_err());
        for wrong in
            [json!({"kind": "slow"}), json!({"kind": "slow", "delay_ms": -1}), json!({"kind": "odd"})]
        {
            assert!(serde_json::from_value::<Trouble>(wrong).is_err());
        }
        let mut full = Troubles::default();
        let many = (0..MOST + 1).filter(|_| full.add(Trouble::Quota.into(), s(0), 0).is_ok());
        assert_eq!(many.count(), MOST);
    }
}
