//! The durations that the safety argument rests on, as one value that cannot be inconsistent.
//!
//! An owner may act for `hold` after the moment *before* it asked; its workload is gone `stop_grace` later. A member
//! that promised votes for nobody during `refusal`. So `(hold + stop_grace) * (1 + drift) < refusal` must hold for any
//! two clocks whose rates differ by at most `drift`; [`Timing::new`] is the only way to a `Timing`, and it checks.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Durations that belong together, under one word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Preset {
    /// For a wired LAN, industrial flash, and devices that may be fully loaded.
    #[default]
    Default,
    /// For devices that always have an idle core and a LAN of their own.
    Fast,
    /// For quiet devices and a workload that is gone 10 ms after TERM.
    Fastest,
}

impl Preset {
    /// All of them, the slowest first.
    pub const ALL: [Preset; 3] = [Preset::Default, Preset::Fast, Preset::Fastest];

    /// The word for it in `site.timing`.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Default => "default",
            Preset::Fast => "fast",
            Preset::Fastest => "fastest",
        }
    }

    /// The preset of that name.
    pub fn named(name: &str) -> Option<Preset> {
        Preset::ALL.into_iter().find(|preset| preset.name() == name)
    }

    /// Its durations.
    pub fn settings(self) -> Settings {
        let (heartbeat, hold, stop_grace, drift_ppm) = match self {
            Preset::Default => (80, 240, 80, 10_000),
            Preset::Fast => (25, 80, 40, 10_000),
            Preset::Fastest => (8, 30, 15, 2_000),
        };
        let ms = Duration::from_millis;
        Settings {
            heartbeat: ms(heartbeat),
            hold: ms(hold),
            stop_grace: ms(stop_grace),
            drift_ppm,
            refusal: None,
            stretch_max: STRETCH_MAX,
        }
    }
}

/// What a person may set, before it is checked. Defaults are those of [`Preset::Default`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How often the owner asks for promises: four thirds of this while it is answered, half of this while it is not. So four
    /// questions go out before a lease ends unanswered. 5 ms to a third of `hold`. Default 80 ms.
    pub heartbeat: Duration,
    /// How long the owner may act after asking. 20 ms to 60 s. Default 240 ms.
    pub hold: Duration,
    /// From the end of the lease to the workload's certain death (TERM first, then KILL). 10 ms to 60 s. Default 80 ms.
    pub stop_grace: Duration,
    /// By how much two devices' clock rates may differ, in parts per million. 500 to 100,000. Default 10,000 (1 %).
    pub drift_ppm: u32,
    /// How long a member that promised refuses to vote. `None`: the smallest safe value.
    pub refusal: Option<Duration>,
    /// How many times longer heartbeat and hold may become while the site is in trouble. 1 (never) to 64. Default 8.
    pub stretch_max: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Preset::Default.settings()
    }
}

/// One broken rule, with the setting to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The setting's name: `heartbeat`, `hold`, `stop_grace`, `drift_ppm`, `refusal` or `stretch_max`.
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
    stretch_max: u32,
}

/// The same numbers on the wire and on disk, in whole microseconds.
#[derive(Clone, Serialize, Deserialize)]
struct Raw {
    heartbeat_us: u64,
    hold_us: u64,
    stop_grace_us: u64,
    refusal_us: u64,
    drift_ppm: u32,
    #[serde(default = "usual_stretch_max")]
    stretch_max: u32,
}

fn usual_stretch_max() -> u32 {
    STRETCH_MAX
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
            stretch_max: t.stretch_max,
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
            stretch_max: raw.stretch_max,
        })
        .map_err(|faults| {
            faults.iter().map(|f| format!("{}: {}", f.setting, f.problem)).collect::<Vec<_>>().join("; ")
        })
    }
}

const HEARTBEAT_MIN: Duration = Duration::from_millis(5);
const HOLD_MIN: Duration = Duration::from_millis(20);
const GRACE_MIN: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(60);
/// The longest refusal window that can be configured.
pub const REFUSAL_MAX: Duration = Duration::from_secs(600);
/// How far the timing may be stretched if nothing is configured.
pub const STRETCH_MAX: u32 = 8;
const STRETCHES: std::ops::RangeInclusive<u32> = 1..=64;
const DRIFT_PPM: std::ops::RangeInclusive<u32> = 500..=100_000;

impl Timing {
    /// Checks every rule and reports all that are broken, not the first.
    ///
    /// # Errors
    /// The list of [`Fault`]s, never empty.
    pub fn new(settings: &Settings) -> Result<Timing, Vec<Fault>> {
        let Settings { heartbeat, hold, stop_grace, drift_ppm, refusal, stretch_max } = settings.clone();
        let mut faults = Vec::new();
        let mut fault =
            |setting, problem: String, advice: String| faults.push(Fault { setting, problem, advice });

        if !(HOLD_MIN..=LONGEST).contains(&hold) {
            fault(
                "hold",
                format!("{} is outside 20ms to 60s", show(hold)),
                "use 240ms unless you know better".into(),
            );
        } else if heartbeat < HEARTBEAT_MIN || heartbeat > hold / 3 {
            fault(
                "heartbeat",
                format!("{} is outside 5ms to {} (a third of hold)", show(heartbeat), show(hold / 3)),
                format!("use {}, so that three in a row must be lost before the lease ends", show(hold / 4)),
            );
        }
        if !(GRACE_MIN..=LONGEST).contains(&stop_grace) {
            fault(
                "stop_grace",
                format!("{} is outside 10ms to 60s", show(stop_grace)),
                "use the time your workload needs between TERM and the end of its last action".into(),
            );
        }
        if !DRIFT_PPM.contains(&drift_ppm) {
            fault(
                "drift_ppm",
                format!("{drift_ppm} is outside 500 to 100000"),
                "use 10000 (1 %); crystals stay under 100".into(),
            );
        }
        if !STRETCHES.contains(&stretch_max) {
            fault(
                "stretch_max",
                format!("{stretch_max} is outside 1 to 64"),
                format!("use {STRETCH_MAX}; 1 keeps the timing as it is configured, come what may"),
            );
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let smallest = smallest_refusal(hold, stop_grace, drift_ppm);
        let refusal = refusal.unwrap_or(smallest);
        if refusal < smallest || refusal > REFUSAL_MAX {
            let advice = match largest_hold(refusal, stop_grace, drift_ppm).filter(|_| refusal < smallest) {
                Some(largest) => format!("leave it out, or write hold = \"{}\" at most", show(largest)),
                None => "leave it out and the smallest safe value is used".into(),
            };
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
                advice,
            }]);
        }
        Ok(Timing { heartbeat, hold, stop_grace, refusal, drift_ppm, stretch_max })
    }

    /// The same with `percent` hundredths of heartbeat and hold (hold at most 60 s), and a refusal that fits. Below 100
    /// nothing is changed. The grace is the workload's, so it stays. The same on every device.
    pub fn stretched(&self, percent: u32) -> Timing {
        let percent = percent.clamp(100, self.stretch_max * 100);
        let hold = (self.hold * percent / 100).min(LONGEST);
        let settings = Settings {
            heartbeat: (self.heartbeat * percent / 100).min(hold / 3),
            hold,
            stop_grace: self.stop_grace,
            drift_ppm: self.drift_ppm,
            refusal: Some(self.refusal.max(smallest_refusal(hold, self.stop_grace, self.drift_ppm))),
            stretch_max: self.stretch_max,
        };
        // It cannot fail: all limits were looked at here, and the rest is as it was.
        Timing::new(&settings).unwrap_or(*self)
    }

    /// How many times longer heartbeat and hold may become.
    pub fn stretch_max(&self) -> u32 {
        self.stretch_max
    }

    /// What differs between this timing and `other`, in words: `hold is 400ms there and 240ms here`.
    pub fn differences(&self, other: &Timing) -> Vec<String> {
        let pairs = [
            ("heartbeat", self.heartbeat, other.heartbeat),
            ("hold", self.hold, other.hold),
            ("stop_grace", self.stop_grace, other.stop_grace),
            ("refusal", self.refusal, other.refusal),
        ];
        let differ = pairs.into_iter().filter(|(_, here, there)| here != there);
        differ
            .map(|(name, here, there)| format!("{name} is {} there and {} here", show(there), show(here)))
            .chain(
                (self.drift_ppm != other.drift_ppm)
                    .then(|| format!("drift_ppm is {} there and {} here", other.drift_ppm, self.drift_ppm)),
            )
            .collect()
    }

    /// By how much the rates of two devices' clocks may differ, in millionths.
    pub fn drift_ppm(&self) -> u32 {
        self.drift_ppm
    }

    /// What the pace of the owner's questions is counted in; see [`Settings::heartbeat`].
    pub fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// From a question that a quorum has answered to the next one. Four ninths of the hold at most.
    pub fn ask_next(&self) -> Duration {
        self.heartbeat * 4 / 3
    }

    /// From a question that no quorum has answered yet to the next one. A sixth of the hold at most.
    pub fn ask_again(&self) -> Duration {
        self.heartbeat / 2
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
        (self.heartbeat / 5).clamp(Duration::from_millis(2), Duration::from_millis(50))
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

/// The smallest refusal in whole milliseconds that keeps the inequality strict.
fn smallest_refusal(hold: Duration, stop_grace: Duration, drift_ppm: u32) -> Duration {
    let act_ns = (hold + stop_grace).as_nanos();
    let with_drift = act_ns + (act_ns * u128::from(drift_ppm)).div_ceil(1_000_000);
    Duration::from_millis(u64::try_from(with_drift / 1_000_000 + 1).unwrap_or(u64::MAX))
}

/// The largest hold in whole milliseconds that this refusal allows; `None` if it allows none.
fn largest_hold(refusal: Duration, stop_grace: Duration, drift_ppm: u32) -> Option<Duration> {
    let fits = |ms| smallest_refusal(Duration::from_millis(ms), stop_grace, drift_ppm) <= refusal;
    let (mut low, mut high) = (HOLD_MIN.as_millis() as u64, LONGEST.as_millis() as u64 + 1);
    while high - low > 1 {
        let middle = low.midpoint(high);
        if fits(middle) { low = middle } else { high = middle }
    }
    fits(low).then(|| Duration::from_millis(low))
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
    fn presets_are_consistent_and_as_fast_as_told() {
        let told = Preset::ALL.map(|preset| {
            let t = Timing::new(&preset.settings()).expect("presets hold");
            assert_eq!(Preset::named(preset.name()), Some(preset));
            (t.refusal().as_millis(), t.takeover_bound().as_millis())
        });
        assert_eq!(told, [(324, 692), (122, 237), (46, 86)]);
    }

    #[test]
    fn a_hold_that_is_too_long_is_told_the_longest() {
        let settings = Settings { refusal: Some(Duration::from_millis(300)), ..Settings::default() };
        let faults = Timing::new(&settings).expect_err("240 + 80 do not end before 300");
        assert!(faults[0].advice.contains("hold = \"217ms\" at most"), "{faults:?}");
        let fits = |hold| {
            Timing::new(&Settings {
                hold: Duration::from_millis(hold),
                heartbeat: HEARTBEAT_MIN,
                ..settings.clone()
            })
        };
        assert!(fits(217).is_ok() && fits(218).is_err());
        let faults = Timing::new(&Settings { refusal: Some(Duration::from_millis(90)), ..settings.clone() })
            .expect_err("no hold fits");
        assert_eq!(faults[0].advice, "leave it out and the smallest safe value is used");
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
            percent in 0u32..10_000,
        ) {
            let settings = Settings {
                heartbeat: Duration::from_millis(heartbeat),
                hold: Duration::from_millis(hold),
                stop_grace: Duration::from_millis(grace),
                drift_ppm: drift,
                refusal: refusal.map(Duration::from_millis),
                ..Settings::default()
            };
            match Timing::new(&settings).map(|t| t.stretched(percent)) {
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
        fn survives_the_wire(hold in 20u64..60_000, grace in 10u64..60_000) {
            let t = Timing::new(&Settings {
                heartbeat: Duration::from_millis((hold / 3).max(5)),
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
