//! How much a hub lets through: a rate per kind of operation, short bursts that are delayed, and a day's quota.
//!
//! The figures are Azure's for each tier. A value without clock, tasks or locks, so that the hub in memory, the emulator
//! and a simulation of many thousand sites share it. Each rate is a token bucket, kept as the moment at which all that
//! was taken will have been earned: whole nanoseconds, so equal histories give equal answers. How long the real hub
//! delays before it refuses is not documented; [`BACKLOG`] is a cautious guess. Nothing is said here about single devices:
//! all limits are the hub's.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::clock::Moment;

/// How far a burst may run ahead of its rate before the hub refuses instead of delaying.
pub const BACKLOG: Duration = Duration::from_secs(2);
/// Requests to devices are metered in units of this many bytes.
const METHOD_METER: u64 = 4096;
/// The largest request to a device, in those units.
const METHOD_MAX: u64 = 32;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY_MS: u64 = 86_400_000;

/// What a hub is asked to do, as far as limits are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// A twin is read, by whichever side.
    TwinRead,
    /// A twin is changed, by whichever side.
    TwinUpdate,
    /// One page of a query.
    Query,
    /// An identity is read, made, changed or deleted.
    Registry,
    /// A direct method.
    Method,
    /// A device or module opens a connection.
    Connection,
    /// A deployment or another configuration is read or changed.
    Configuration,
    /// A message from a device or module.
    Telemetry,
}

impl Operation {
    /// All of them.
    pub const ALL: [Operation; 8] = [
        Operation::TwinRead,
        Operation::TwinUpdate,
        Operation::Query,
        Operation::Registry,
        Operation::Method,
        Operation::Connection,
        Operation::Configuration,
        Operation::Telemetry,
    ];

    /// Whether it uses up some of the day's messages.
    fn counts(self) -> bool {
        !matches!(self, Operation::Registry | Operation::Connection | Operation::Configuration)
    }

    /// How many units of its own rate one request of this size takes.
    fn units(self, bytes: u64) -> u64 {
        match self {
            Operation::Method => bytes.div_ceil(METHOD_METER).max(1),
            _ => 1,
        }
    }
}

/// What is paid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Tier {
    /// Free: one unit.
    F1,
    /// Standard, smallest.
    S1,
    /// Standard, middle.
    S2,
    /// Standard, largest.
    S3,
}

impl FromStr for Tier {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Tier, Self::Err> {
        match text.to_ascii_uppercase().as_str() {
            "F1" => Ok(Tier::F1),
            "S1" => Ok(Tier::S1),
            "S2" => Ok(Tier::S2),
            "S3" => Ok(Tier::S3),
            _ => Err("the tiers are F1, S1, S2 and S3"),
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A hub's tier, its units, and a factor on all its limits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Plan {
    tier: Tier,
    units: u32,
    scale: f64,
}

impl Plan {
    /// A plan. `scale` multiplies every rate and the quota: 1.0 is Azure's, 0.1 a tenth.
    ///
    /// # Errors
    /// A sentence, if there cannot be so many units of this tier (F1: 1, S1 and S2: 1 to 200, S3: 1 to 10), or the
    /// scale is not within 0.000001 and 1000.
    pub fn new(tier: Tier, units: u32, scale: f64) -> Result<Plan, String> {
        let most = match tier {
            Tier::F1 => 1,
            Tier::S1 | Tier::S2 => 200,
            Tier::S3 => 10,
        };
        if !(1..=most).contains(&units) {
            return Err(format!("a hub of tier {tier} has 1 to {most} units, not {units}"));
        }
        if !(1e-6..=1e3).contains(&scale) {
            return Err(format!("the scale must be 0.000001 to 1000, not {scale}"));
        }
        Ok(Plan { tier, units, scale })
    }

    /// How many operations are allowed in which time, before scaling.
    fn rate(&self, operation: Operation) -> (u64, Duration) {
        use Operation::{
            Configuration, Connection, Method, Query, Registry, Telemetry, TwinRead, TwinUpdate,
        };
        let units = u64::from(self.units);
        let large = self.tier == Tier::S3;
        let middle = self.tier == Tier::S2;
        match operation {
            TwinRead if large => (500 * units, SECOND),
            TwinRead if middle => ((10 * units).max(100), SECOND),
            TwinRead => (100, SECOND),
            TwinUpdate if large => (250 * units, SECOND),
            TwinUpdate if middle => ((5 * units).max(50), SECOND),
            TwinUpdate => (50, SECOND),
            Query if large => (1000 * units, MINUTE),
            Query => (20 * units, MINUTE),
            Registry if large => (5000 * units, MINUTE),
            Registry => (100 * units, MINUTE),
            // 160 KB, 480 KB and 24 MB a second, metered by 4 KB.
            Method if large => (6000 * units, SECOND),
            Method if middle => (120 * units, SECOND),
            Method => (40 * units, SECOND),
            Connection | Telemetry if large => (6000 * units, SECOND),
            Connection | Telemetry if middle => (120 * units, SECOND),
            Connection | Telemetry => ((12 * units).max(100), SECOND),
            Configuration => (20 * units, MINUTE),
        }
    }

    /// How many operations of this kind are let through in a second, once bursts are used up.
    pub fn per_second(&self, operation: Operation) -> f64 {
        let (count, per) = self.rate(operation);
        whole(count) * self.scale / per.as_secs_f64()
    }

    /// How many messages a day has.
    pub fn quota(&self) -> u64 {
        let (each, units) = match self.tier {
            Tier::F1 => (8_000, 1),
            Tier::S1 => (400_000, self.units),
            Tier::S2 => (6_000_000, self.units),
            Tier::S3 => (300_000_000, self.units),
        };
        rounded(whole(each) * f64::from(units) * self.scale).max(1)
    }

    /// The size of what counts as one message, in bytes.
    fn meter(&self) -> u64 {
        if self.tier == Tier::F1 { 512 } else { 4096 }
    }
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is served after this delay, which is zero unless there is a burst.
    After(Duration),
    /// Too many are waiting: 429.
    Refused,
    /// The day's messages are used up: 403, until the next day begins in UTC.
    QuotaExceeded,
}

/// What became of the requests of one kind so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Count {
    /// Served at once.
    pub passed: u64,
    /// Served after a delay.
    pub delayed: u64,
    /// Refused with 429.
    pub refused: u64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// What one operation takes, in nanoseconds.
    each: u64,
    /// What an idle bucket holds, in nanoseconds.
    depth: u64,
    /// When all that was taken will have been earned again, `depth` later than it is. Zero: nothing was taken.
    earned: u64,
}

impl Bucket {
    fn new(plan: &Plan, operation: Operation) -> Bucket {
        let (count, per) = plan.rate(operation);
        let per = u64::try_from(per.as_nanos()).unwrap_or(u64::MAX);
        let each = rounded(whole(per) / (whole(count) * plan.scale)).max(1);
        let largest = if operation == Operation::Method { METHOD_MAX } else { 1 };
        Bucket { each, depth: per.max(each.saturating_mul(largest)), earned: 0 }
    }

    /// Takes so many units and says when that is earned; takes nothing if the wait were too long.
    fn take(&mut self, units: u64, now: Moment) -> Option<Duration> {
        let now = now.as_nanos();
        let earned = self.earned.max(now).saturating_add(self.each.saturating_mul(units));
        let wait = Duration::from_nanos(earned.saturating_sub(now.saturating_add(self.depth)));
        if wait > BACKLOG {
            return None;
        }
        self.earned = earned;
        Some(wait)
    }
}

/// The limits of one hub, and what has been taken of them.
#[derive(Debug, Clone)]
pub struct Throttle {
    plan: Plan,
    buckets: BTreeMap<Operation, Bucket>,
    counts: BTreeMap<Operation, Count>,
    day: u64,
    messages: u64,
}

impl Throttle {
    /// Full buckets, an unused day.
    pub fn new(plan: Plan) -> Throttle {
        let buckets = Operation::ALL.map(|operation| (operation, Bucket::new(&plan, operation)));
        Throttle { plan, buckets: buckets.into(), counts: BTreeMap::new(), day: 0, messages: 0 }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Asks for one operation with a body of `bytes`, and takes what it needs unless it is refused. `wall_ms`, the hub's
    /// wall clock in milliseconds since 1970, says which day it is.
    pub fn admit(&mut self, operation: Operation, bytes: u64, now: Moment, wall_ms: u64) -> Verdict {
        if self.day != wall_ms / DAY_MS {
            (self.day, self.messages) = (wall_ms / DAY_MS, 0);
        }
        let messages = if operation.counts() { bytes.div_ceil(self.plan.meter()).max(1) } else { 0 };
        if messages > 0 && self.messages.saturating_add(messages) > self.plan.quota() {
            return Verdict::QuotaExceeded;
        }
        let wait = match self.buckets.get_mut(&operation) {
            Some(bucket) => bucket.take(operation.units(bytes), now),
            None => Some(Duration::ZERO),
        };
        let count = self.counts.entry(operation).or_default();
        match wait {
            Some(Duration::ZERO) => count.passed += 1,
            Some(_) => count.delayed += 1,
            None => count.refused += 1,
        }
        wait.map_or(Verdict::Refused, |wait| {
            self.messages += messages;
            Verdict::After(wait)
        })
    }

    /// Messages used up today.
    pub fn used(&self) -> u64 {
        self.messages
    }

    /// Gives the day its whole quota again.
    pub fn reset_quota(&mut self) {
        self.messages = 0;
    }

    /// What became of the requests so far, for each kind that was asked for.
    pub fn counts(&self) -> &BTreeMap<Operation, Count> {
        &self.counts
    }
}

/// The figures here are far below 2^52, where every whole number is exact.
fn whole(number: u64) -> f64 {
    number as f64
}

/// The cast saturates.
fn rounded(number: f64) -> u64 {
    number.round() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn throttle(tier: Tier, units: u32, scale: f64) -> Throttle {
        Throttle::new(Plan::new(tier, units, scale).expect("a plan"))
    }

    fn ms(ms: u64) -> Moment {
        Moment::default() + Duration::from_millis(ms)
    }

    #[test]
    fn a_burst_passes_then_waits_then_is_refused() {
        let mut hub = throttle(Tier::S1, 1, 1.0);
        let verdicts: Vec<_> = (0..200).map(|_| hub.admit(Operation::TwinUpdate, 100, ms(0), 0)).collect();
        assert_eq!(verdicts[49], Verdict::After(Duration::ZERO));
        assert_eq!(verdicts[50], Verdict::After(Duration::from_millis(20)));
        assert_eq!(verdicts[149], Verdict::After(BACKLOG));
        assert_eq!(verdicts[150], Verdict::Refused);
        let count = hub.counts()[&Operation::TwinUpdate];
        assert_eq!((count.passed, count.delayed, count.refused), (50, 100, 50));
        // Another kind is another bucket, and what was refused has cost nothing: 20 ms later one more fits.
        assert_eq!(hub.admit(Operation::TwinRead, 0, ms(0), 0), Verdict::After(Duration::ZERO));
        assert_eq!(hub.admit(Operation::TwinUpdate, 0, ms(20), 0), Verdict::After(BACKLOG));
        assert_eq!(hub.admit(Operation::TwinUpdate, 0, ms(20), 0), Verdict::Refused);
        // At rest the bucket fills again, and never above its rim.
        let later = (0..200).map(|_| hub.admit(Operation::TwinUpdate, 0, ms(3_600_000), 0));
        assert_eq!(later.filter(|verdict| *verdict == Verdict::After(Duration::ZERO)).count(), 50);
    }

    #[test]
    fn tiers_units_and_scale_as_documented() {
        let rate = |tier, units, scale: f64, operation| {
            Plan::new(tier, units, scale).expect("a plan").per_second(operation)
        };
        for (tier, units, operation, wanted) in [
            (Tier::F1, 1, Operation::TwinUpdate, 50.0),
            (Tier::S1, 9, Operation::TwinRead, 100.0),
            (Tier::S2, 9, Operation::TwinRead, 100.0),
            (Tier::S2, 20, Operation::TwinUpdate, 100.0),
            (Tier::S3, 2, Operation::TwinUpdate, 500.0),
            (Tier::S1, 3, Operation::Query, 1.0),
            (Tier::S1, 3, Operation::Registry, 5.0),
            (Tier::S1, 20, Operation::Connection, 240.0),
            (Tier::S2, 1, Operation::Method, 120.0),
        ] {
            let got = rate(tier, units, 1.0, operation);
            assert!((got - wanted).abs() < 1e-9, "{tier} x {units}, {operation:?}: {got}");
        }
        assert!((rate(Tier::S1, 1, 0.1, Operation::TwinUpdate) - 5.0).abs() < 1e-9);
        assert!(Plan::new(Tier::F1, 2, 1.0).is_err() && Plan::new(Tier::S1, 0, 1.0).is_err());
        assert!(Plan::new(Tier::S1, 1, 0.0).is_err() && Plan::new(Tier::S1, 1, f64::NAN).is_err());
        assert_eq!("s2".parse(), Ok(Tier::S2));
        assert!("B1".parse::<Tier>().is_err());
    }

    #[test]
    fn a_day_has_its_messages_and_midnight_brings_new_ones() {
        // 8,000 messages a day, scaled to eight.
        let mut hub = throttle(Tier::F1, 1, 0.001);
        let hour = 3_600_000;
        let mut at = 0;
        let mut ask = |bytes, wall_ms| {
            at += hour;
            hub.admit(Operation::TwinUpdate, bytes, ms(at), wall_ms)
        };
        // Half a kilobyte is a message.
        assert_eq!(ask(7 * 512, 5), Verdict::After(Duration::ZERO));
        assert_eq!(ask(513, 5), Verdict::QuotaExceeded);
        assert_eq!(ask(512, 5), Verdict::After(Duration::ZERO));
        assert_eq!(ask(0, DAY_MS - 1), Verdict::QuotaExceeded);
        assert_eq!(ask(0, DAY_MS), Verdict::After(Duration::ZERO));
        assert_eq!(hub.used(), 1);
        // The registry is not counted.
        hub.messages = 8;
        assert_eq!(hub.admit(Operation::Registry, 9000, ms(at), DAY_MS), Verdict::After(Duration::ZERO));
        hub.reset_quota();
        assert_eq!(hub.used(), 0);
    }

    proptest! {
        /// Whatever is asked for and when, in no stretch of time is more served than its rate and one bucket.
        #[test]
        fn no_pattern_gets_more_than_the_rate(gaps in prop::collection::vec(0_u64..300, 1..400), scale in 0.02_f64..2.0) {
            let mut hub = throttle(Tier::S1, 1, scale);
            let plan = *hub.plan();
            let mut at = 0;
            let mut served = Vec::new();
            for gap in gaps {
                at += gap;
                if let Verdict::After(wait) = hub.admit(Operation::TwinUpdate, 0, ms(at), 0) {
                    prop_assert!(wait <= BACKLOG);
                    served.push(Duration::from_millis(at) + wait);
                }
            }
            prop_assert!(served.is_sorted());
            let rate = plan.per_second(Operation::TwinUpdate);
            for (index, from) in served.iter().enumerate() {
                let end = served[served.len() - 1];
                let most = (end - *from).as_secs_f64() * rate + rate.max(1.0) + 1.0;
                prop_assert!(whole((served.len() - index) as u64) <= most + 1e-3);
            }
        }
    }
}
