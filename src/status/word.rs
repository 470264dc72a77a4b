//! What a program on this device is told of its right to act, in the three forms that programs read: a line, JSON, an event.
//!
//! All of them name a moment on the kernel's boot clock, which every program on this device can read, so it does not matter
//! how long a word lay unread. A program acts while the newest word says so and that moment has not come, looks at the clock before each
//! act, and needs no message in order to stop.

use serde::Serialize;

use super::door::{Door, Permit};
use crate::clock::{Moment, boottime_within};

/// One word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Word {
    /// Whether a program on this device may act.
    pub active: bool,
    /// The fencing token, or the newest that is known here.
    pub epoch: u64,
    /// Until this moment on `CLOCK_BOOTTIME` (clock_gettime(2)), in nanoseconds; 0 if it may not.
    pub until_boottime_ns: u64,
    /// This device.
    pub device: String,
    /// Its site.
    pub site: String,
    /// Why, in one sentence.
    pub reason: String,
}

impl Word {
    /// What a permit comes to.
    pub fn of(door: &dyn Door, permit: Permit) -> Word {
        let until = permit.active.then(|| boottime_within(permit.until, &*door.clock()));
        Word {
            active: permit.active,
            epoch: permit.epoch.get(),
            until_boottime_ns: until.map_or(0, Moment::as_nanos),
            device: door.me().to_string(),
            site: door.site().to_string(),
            reason: permit.reason,
        }
    }

    /// The last word of a sidecar.
    pub fn last(door: &dyn Door) -> Word {
        let permit = door.permits().borrow().clone();
        let reason = "this sidecar has ended".into();
        Word::of(door, Permit { active: false, reason, ..permit })
    }

    /// `owner EPOCH UNTIL_BOOTTIME_NS` or `standby EPOCH REASON`, with its end of line.
    pub fn line(&self) -> String {
        if self.active {
            return format!("owner {} {}\n", self.epoch, self.until_boottime_ns);
        }
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        format!("standby {} {}\n", self.epoch, self.reason.chars().map(plain).collect::<String>())
    }

    /// One line of JSON, with its end of line.
    pub fn json(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(active: bool) -> Word {
        Word {
            active,
            epoch: 7,
            until_boottime_ns: if active { 90 } else { 0 },
            device: "edge-1".into(),
            site: "plant".into(),
            reason: "cut\noff".into(),
        }
    }

    #[test]
    fn a_line_stays_one_line() {
        assert_eq!(word(true).line(), "owner 7 90\n");
        assert_eq!(word(false).line(), "standby 7 cut off\n");
        let json = String::from_utf8(word(true).json()).expect("text");
        assert_eq!(
            json,
            "{\"active\":true,\"epoch\":7,\"until_boottime_ns\":90,\"device\":\"edge-1\",\"site\":\"plant\",\"reason\":\"cut\\noff\"}\n"
        );
    }
}
