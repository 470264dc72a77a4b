//! The durations that the safety argument rests on, as one value that cannot be inconsistent.
//!
//! An owner may act for `hold` after the moment *before* it asked; its workload is gone `stop_grace` later. A member
//! that promised votes for nobody during `refusal`. So `(hold + stop_grace) * (1 + drift) < refusal` must hold for any
//! two clocks whose rates differ by at most `drift`; [`Timing::new`] is the only way to a `Timing`, and it checks.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// What a person may set, before it is checked. All of it has defaults that suit a wired LAN and industrial flash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How often the owner asks for promises. 10 ms to a third of `hold`. Default 100 ms.
    pub heartbeat: Duration,
    /// How long the owner may act after asking. 30 ms to 60 s. Default 400 ms.
    pub hold: Duration,
    /// From the end of the lease to the workload's certain death (TERM first, then KILL). 20 ms to 60 s. Default 200 ms.
    pub stop_grace: Duration,
    /// By how much two devices' clock rates may differ, in parts per million. 500 to 100,000. Default 10,000 (1 %).
    pub drift_ppm: u32,
    /// How long a member that promised refuses to vote. `None`: the smallest safe value.
    pub refusal: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            heartbeat: Duration::from_millis(100),
            hold: Duration::from_millis(400),
            stop_grace: Duration::from_millis(200),
            drift_ppm: 10_000,
            refusal: None,
        }
    }
}

/// One broken rule, with the setting to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The setting's name: `heartbeat`, `hold`, `stop_grace`, `drift_ppm` or `refusal`.
    pub setting: &'static str,
    /// What is wrong, with the numbers.
    pub problem: String,
    /// What to write instead.
    pub advice: String,
}

/// Consistent durations. See the file's head for the inequality that every value of this type satisfies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Raw", try_from = "Raw")]
pub struct Timing {
    heartbeat: Duration,
    hold: Duration,
    stop_grace: Duration,
    refusal: Duration,
    drift_ppm: u32,
}

/// The same numbers on the wire and on disk, in whole microseconds.
#[derive(Clone, Serialize, Deserialize)]
struct Raw {
    heartbeat_us: u64,
    hold_us: u64,
    stop_grace_us: u64,
    refusal_us: u64,
    drift_ppm: u32,
}

impl From<Timing> for Raw {
    fn from(t: Timing) -> Raw {
        let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        Raw {
            heartbeat_us: us(t.heartbeat),
            hold_us: us(t.hold),
            stop_grace_us: us(t.stop_grace),
            refusal_us: us(t.refusal),
            drift_ppm: t.drift_ppm,
        }
    }
}

impl TryFrom<Raw> for Timing {
    type Error = String;
    fn try_from(raw: Raw) -> Result<Timing, String> {
        Timing::new(&Settings {
            heartbeat: Duration::from_micros(raw.heartbeat_us),
            hold: Duration::from_micros(raw.hold_us),
            stop_grace: Duration::from_micros(raw.stop_grace_us),
            drift_ppm: raw.drift_ppm,
            refusal: Some(Duration::from_micros(raw.refusal_us)),
        })
        .map_err(|faults| {
            faults.iter().map(|f| format!("{}: {}", f.setting, f.problem)).collect::<Vec<_>>().join("; ")
        })
    }
}

const HEARTBEAT_MIN: Duration = Duration::from_millis(10);
const HOLD_MIN: Duration = Duration::from_millis(30);
const GRACE_MIN: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(60);
/// The longest refusal window that can be configured.
pub const REFUSAL_MAX: Duration = Duration::from_secs(600);
const DRIFT_PPM: std::ops::RangeInclusive<u32> = 500..=100_000;

impl Timing {
    /// Checks every rule and reports all that are broken, not the first.
    ///
    /// # Errors
    /// The list of [`Fault`]s, never empty.
    pub fn new(settings: &Settings) -> Result<Timing, Vec<Fault>> {
        let Settings { heartbeat, hold, stop_grace, drift_ppm, refusal } = settings.clone();
        let mut faults = Vec::new();
        let mut fault =
            |setting, problem: String, advice: String| faults.push(Fault { setting, problem, advice });

        if !(HOLD_MIN..=LONGEST).contains(&hold) {
            fault(
                "hold",
                format!("{} is outside 30ms to 60s", show(hold)),
                "use 400ms unless you know better".into(),
            );
        } else if heartbeat < HEARTBEAT_MIN || heartbeat > hold / 3 {
            fault(
                "heartbeat",
                format!("{} is outside 10ms to {} (a third of hold)", show(heartbeat), show(hold / 3)),
                format!("use {}, so that three in a row must be lost before the lease ends", show(hold / 4)),
            );
        }
        if !(GRACE_MIN..=LONGEST).contains(&stop_grace) {
            fault(
                "stop_grace",
                format!("{} is outside 20ms to 60s", show(stop_grace)),
                "use the time your workload needs between TERM and the end of its last action".into(),
            );
        }
        if !DRIFT_PPM.contains(&drift_ppm) {
            fault(
                "drift_ppm",
                format!("{drift_ppm} is outside 500 to 100000"),
                "use 10000 (1 %); crystals stay under 100, clock discipline under 500".into(),
            );
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let smallest = smallest_refusal(hold, stop_grace, drift_ppm);
        let refusal = refusal.unwrap_or(smallest);
        if refusal < smallest || refusal > REFUSAL_MAX {
            return Err(vec![Fault {
                setting: "refusal",
                problem: format!(
                    "{} is outside {} to {}: (hold {} + stop_grace {}) plus {drift_ppm} ppm must end before it",
                    show(refusal),
                    show(smallest),
                    show(REFUSAL_MAX),
                    show(hold),
                    show(stop_grace),
                ),
                advice: "leave it out and the smallest safe value is used".into(),
            }]);
        }
        Ok(Timing { heartbeat, hold, stop_grace, refusal, drift_ppm })
    }

    /// How often the owner asks.
    pub fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// How long after asking the owner may act.
    pub fn hold(&self) -> Duration {
        self.hold
    }

    /// From the end of the lease to the workload's certain death.
    pub fn stop_grace(&self) -> Duration {
        self.stop_grace
    }

    /// From TERM to KILL: three quarters of the grace, so that the kernel has the rest to end the processes.
    pub fn kill_after(&self) -> Duration {
        self.stop_grace * 3 / 4
    }

    /// How long a promise, or a boot, keeps a member from voting.
    pub fn refusal(&self) -> Duration {
        self.refusal
    }

    /// Between two candidates of neighbouring rank, so that they rarely split the vote.
    pub fn stagger(&self) -> Duration {
        (self.heartbeat / 5).clamp(Duration::from_millis(5), Duration::from_millis(50))
    }

    /// How long a planned handover's successor has for itself before others may campaign too.
    pub fn handover_window(&self) -> Duration {
        self.refusal
    }

    /// The bound printed for P4: from the silent loss of the owner's device to the next owner's start, on a LAN and
    /// a disk that answer within `heartbeat`.
    pub fn takeover_bound(&self) -> Duration {
        self.refusal + self.stagger() * 8 + self.heartbeat * 3
    }
}

/// The smallest refusal that keeps the inequality strict, rounded up to 10 ms plus 10 ms of rounding room.
fn smallest_refusal(hold: Duration, stop_grace: Duration, drift_ppm: u32) -> Duration {
    let act_ns = (hold + stop_grace).as_nanos();
    let with_drift = act_ns + act_ns * u128::from(drift_ppm) / 1_000_000;
    let tens = with_drift.div_ceil(10_000_000) + 1;
    Duration::from_millis(u64::try_from(tens * 10).unwrap_or(u64::MAX))
}

fn show(d: Duration) -> String {
    if d.subsec_nanos() == 0 && d.as_secs() > 0 {
        format!("{}s", d.as_secs())
    } else {
        format!("{}ms", d.as_millis())
    }
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the owner may act {} after it last asked a quorum, its workload is gone {} later; others wait {}; \
             a lost owner is replaced within {}",
            show(self.hold),
            show(self.stop_grace),
            show(self.refusal),
            show(self.takeover_bound()),
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn defaults_are_consistent_and_fast() {
        let t = Timing::new(&Settings::default()).expect("defaults hold");
        assert!(t.takeover_bound() < Duration::from_millis(1200), "{t}");
    }

    #[test]
    fn reports_all_faults_at_once() {
        let faults = Timing::new(&Settings {
            hold: Duration::from_secs(61),
            stop_grace: Duration::ZERO,
            drift_ppm: 0,
            ..Settings::default()
        })
        .expect_err("three faults");
        assert_eq!(faults.iter().map(|f| f.setting).collect::<Vec<_>>(), ["hold", "stop_grace", "drift_ppm"]);
    }

    proptest! {
        #[test]
        fn every_timing_keeps_the_inequality(
            heartbeat in 0u64..70_000, hold in 0u64..70_000, grace in 0u64..70_000,
            drift in 0u32..120_000, refusal in proptest::option::of(0u64..700_000),
        ) {
            let settings = Settings {
                heartbeat: Duration::from_millis(heartbeat),
                hold: Duration::from_millis(hold),
                stop_grace: Duration::from_millis(grace),
                drift_ppm: drift,
                refusal: refusal.map(Duration::from_millis),
            };
            match Timing::new(&settings) {
                Err(faults) => prop_assert!(!faults.is_empty()),
                Ok(t) => {
                    let act = (t.hold() + t.stop_grace()).as_nanos() * (1_000_000 + u128::from(drift)) / 1_000_000;
                    prop_assert!(act < t.refusal().as_nanos());
                    prop_assert!(t.heartbeat() * 3 <= t.hold());
                    prop_assert!(t.kill_after() < t.stop_grace());
                }
            }
        }

        #[test]
        fn survives_the_wire(hold in 30u64..60_000, grace in 20u64..60_000) {
            let t = Timing::new(&Settings {
                heartbeat: Duration::from_millis((hold / 3).max(10)),
                hold: Duration::from_millis(hold),
                stop_grace: Duration::from_millis(grace),
                ..Settings::default()
            });
            prop_assume!(t.is_ok());
            let t = t.expect("assumed");
            let back: Timing = serde_json::from_str(&serde_json::to_string(&t).expect("encodes")).expect("decodes");
            prop_assert_eq!(t, back);
        }
    }
}
