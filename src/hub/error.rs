//! Everything that can go wrong between this device and the hub, each with its condition and its retry.
//!
//! The distinction that matters to an operator is who has to act: nobody (throttled), the network (unreachable), the
//! credentials (unauthorized), the device list (missing), or whoever put a portal in the way (bad answer, untrusted).
//! Details never hold credentials: they are built from statuses, hosts and the hub's own words.

use std::{borrow::Cow, time::Duration};

use crate::condition::Condition;

/// The longest that a call keeps away from a hub that was never reached. Knocking costs such a hub nothing, and the
/// twins should be right within seconds of its return.
pub const UNREACHED_CAP: Duration = Duration::from_secs(5);
/// The longest back-off after an answer.
pub const ANSWERED_CAP: Duration = Duration::from_secs(60);
/// The longest `Retry-After` that is obeyed. A hub that asks for more is asked again after this.
pub const RETRY_AFTER_CAP: Duration = Duration::from_secs(300);

/// Stands where whoever refused said nothing.
pub const WITHOUT_A_REASON: &str = "no reason given";
/// The status by which the hub says that the day's quota is used up.
pub const QUOTA: u16 = 403;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// 401 or 403: the credentials are wrong, expired or lack a right.
    #[error("the hub refuses our credentials ({status}): {detail}")]
    Unauthorized {
        /// 401 or 403.
        status: u16,
        /// The hub's words, and a hint if this device's wall clock differs from the hub's.
        detail: String,
    },
    /// This machine's identity gives no token; the hub was not asked.
    #[error("no token for the hub from {0}")]
    NoToken(String),
    /// IoT Edge knows no such identity: the hub was not asked.
    #[error("{0}")]
    IdentityGone(String),
    /// 404: the hub does not know the device.
    #[error("the hub does not know device {device}")]
    DeviceMissing {
        /// The device asked for.
        device: String,
    },
    /// 412: the twin has changed since it was read.
    #[error("the twin has changed since it was read")]
    Changed,
    /// 429, or 403 because the day's quota is used up.
    #[error("{}", slowed(*.status))]
    Throttled {
        /// 429 or 403.
        status: u16,
        /// How long the hub asked us to stay away, if it said.
        retry_after: Option<Duration>,
    },
    /// 5xx or 408: the hub has trouble of its own.
    #[error("the hub answers, and has trouble of its own ({status}): {detail}")]
    Unavailable {
        /// The status.
        status: u16,
        /// How long the hub asked us to stay away, if it said.
        retry_after: Option<Duration>,
        /// The hub's words.
        detail: String,
    },
    /// Another refusal of this one request: 400, 409, 413.
    #[error("the hub refuses the request ({status}): {detail}")]
    Rejected {
        /// The status; 0 if this side refused before sending.
        status: u16,
        /// The hub's words.
        detail: String,
    },
    /// No complete answer within the call's deadline. A patch may have been applied.
    #[error("no answer within {} ms", .after.as_millis())]
    TimedOut {
        /// The deadline.
        after: Duration,
    },
    /// What answered is not an IoT Hub: HTML, a redirect, other JSON, no TLS.
    #[error("what answered is not an IoT Hub: {0}")]
    NotTheHub(String),
    /// The certificate of what answered is not trusted.
    #[error("the certificate is not trusted: {0}")]
    Untrusted(String),
    /// No connection, or it broke. A patch may have been applied.
    #[error("cannot reach the hub: {0}")]
    Unreachable(String),
}

/// What the hub means by this status when it asks us to slow down.
fn slowed(status: u16) -> String {
    match status {
        QUOTA => format!(
            "the hub's quota of messages for this day is used up ({QUOTA}); it is given again at midnight UTC"
        ),
        status => format!("the hub asks us to slow down ({status})"),
    }
}

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Read the twin again and compare, at once.
    Reread,
    /// This device alone is at fault: go on with the others and look again later.
    SkipDevice,
    /// Leave the hub alone for a growing, jittered while.
    BackOff {
        /// The longest such while.
        cap: Duration,
        /// At least this long, because the hub said so. Already limited to [`RETRY_AFTER_CAP`].
        at_least: Option<Duration>,
    },
}

impl Error {
    /// The condition that an operator sees while this lasts; `None` for what the mirror settles by itself.
    pub fn condition(&self) -> Option<Condition> {
        match self {
            Error::Unauthorized { .. } | Error::NoToken(_) => Some(Condition::HubUnauthorized),
            Error::DeviceMissing { .. } | Error::IdentityGone(_) => Some(Condition::HubDeviceMissing),
            Error::Changed => None,
            Error::Throttled { .. } => Some(Condition::HubThrottled),
            Error::Rejected { .. } | Error::NotTheHub(_) => Some(Condition::HubBadAnswer),
            Error::Untrusted(_) => Some(Condition::HubUntrusted),
            Error::Unavailable { .. } | Error::TimedOut { .. } | Error::Unreachable(_) => {
                Some(Condition::HubUnreachable)
            }
        }
    }

    /// Whether, and after how long, to try again.
    pub fn retry(&self) -> Retry {
        let back_off = |cap, at_least: Option<Duration>| Retry::BackOff {
            cap,
            at_least: at_least.map(|asked| asked.min(RETRY_AFTER_CAP)),
        };
        match self {
            Error::Changed => Retry::Reread,
            Error::DeviceMissing { .. } | Error::IdentityGone(_) | Error::Rejected { .. } => {
                Retry::SkipDevice
            }
            Error::Throttled { retry_after, .. } | Error::Unavailable { retry_after, .. } => {
                back_off(ANSWERED_CAP, *retry_after)
            }
            Error::Unreachable(_) => back_off(UNREACHED_CAP, None),
            Error::Unauthorized { .. }
            | Error::NoToken(_)
            | Error::TimedOut { .. }
            | Error::NotTheHub(_)
            | Error::Untrusted(_) => back_off(ANSWERED_CAP, None),
        }
    }

    /// The label under which requests are counted: the HTTP status, or a word where there was none.
    pub fn code(&self) -> Cow<'static, str> {
        match self {
            Error::Unauthorized { status, .. }
            | Error::Throttled { status, .. }
            | Error::Unavailable { status, .. }
            | Error::Rejected { status, .. } => match status {
                0 => "refused".into(),
                status => status.to_string().into(),
            },
            Error::DeviceMissing { .. } => "404".into(),
            Error::IdentityGone(_) => "no_identity".into(),
            Error::Changed => "412".into(),
            Error::NoToken(_) => "no_token".into(),
            Error::TimedOut { .. } => "timeout".into(),
            Error::NotTheHub(_) => "bad_answer".into(),
            Error::Untrusted(_) => "untrusted".into(),
            Error::Unreachable(_) => "unreachable".into(),
        }
    }

    /// Whether the hub itself answered: it is there, whatever it said.
    pub fn answered(&self) -> bool {
        !matches!(
            self,
            Error::NoToken(_)
                | Error::IdentityGone(_)
                | Error::TimedOut { .. }
                | Error::NotTheHub(_)
                | Error::Untrusted(_)
                | Error::Unreachable(_)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::condition::Severity;

    #[test]
    fn the_hubs_wish_is_obeyed_within_reason() {
        let asked = |seconds| {
            Error::Throttled { status: 429, retry_after: Some(Duration::from_secs(seconds)) }.retry()
        };
        let at_least =
            |seconds| Retry::BackOff { cap: ANSWERED_CAP, at_least: Some(Duration::from_secs(seconds)) };
        assert_eq!(asked(7), at_least(7));
        assert_eq!(asked(u64::MAX), at_least(300));
    }

    #[test]
    fn who_has_to_act_is_said() {
        let quota = Error::Throttled { status: QUOTA, retry_after: None };
        assert_eq!(quota.condition(), Some(Condition::HubThrottled));
        assert!(Condition::HubThrottled.severity() > Severity::Info, "a quota lasts until midnight");
        let said = quota.to_string();
        assert!(said.contains("quota") && said.contains("midnight UTC"), "{said}");
        let busy = Error::Throttled { status: 429, retry_after: None }.to_string();
        assert!(!busy.contains("quota"), "{busy}");
        let trouble = Error::Unavailable { status: 503, retry_after: None, detail: "busy".into() };
        assert!(trouble.to_string().starts_with("the hub answers, and has trouble of its own (503)"));
        let advice = trouble.condition().expect("has one").advice();
        assert!(advice.contains("that the hub answers"), "{advice}");
    }

    #[test]
    fn one_devices_fault_is_not_the_hubs() {
        assert_eq!(Error::DeviceMissing { device: "d".into() }.retry(), Retry::SkipDevice);
        assert_eq!(Error::Rejected { status: 400, detail: String::new() }.retry(), Retry::SkipDevice);
        assert_eq!(Error::Changed.condition(), None);
        assert!(Error::Changed.answered());
        assert!(!Error::Unreachable(String::new()).answered());
    }
}
