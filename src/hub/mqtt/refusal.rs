//! What a refusal over MQTT means: of a link by its code, of a request by its status.
//!
//! A link's code says little: the hub answers alike to a wrong key, a wrong clock and an identity that was deleted or disabled. No
//! more is read into it than it says; whoever knows the causes adds them.

use crate::hub::{
    Error,
    error::{QUOTA, WITHOUT_A_REASON},
    target::Target,
};

/// The link was refused with this code.
pub(super) fn of_link(code: u8) -> Error {
    match code {
        3 => Error::Unavailable {
            status: 503,
            retry_after: None,
            detail: "it lets nobody in now (MQTT code 3), or its quota of messages for this day is used up"
                .into(),
        },
        4 | 5 => Error::Unauthorized {
            status: 401,
            detail: format!("the module's link is refused (MQTT code {code})"),
        },
        _ => Error::Rejected { status: 0, detail: format!("the connection is refused (MQTT code {code})") },
    }
}

/// A request on a link of `target`'s was answered with this status, not one of the 200s.
pub(super) fn of_request(status: u16, body: &[u8], target: &Target) -> Error {
    let words = String::from_utf8_lossy(body);
    let words: String = words.chars().filter(|c| !c.is_control()).take(200).collect();
    let detail = if words.is_empty() { WITHOUT_A_REASON.to_owned() } else { words };
    match status {
        QUOTA if detail.to_lowercase().contains("quota") => Error::Throttled { status, retry_after: None },
        // The link was let in, so it is not the key.
        QUOTA => Error::Unauthorized {
            status,
            detail: format!(
                "{detail}; the link stands, so either the hub's quota of messages is used up until midnight UTC, or its tier has no twins"
            ),
        },
        401 => Error::Unauthorized { status, detail },
        404 => Error::DeviceMissing { device: target.to_string() },
        429 => Error::Throttled { status, retry_after: None },
        408 | 500..=599 => Error::Unavailable { status, retry_after: None, detail },
        _ => Error::Rejected { status, detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::condition::Condition;

    #[test]
    fn each_refusal_has_the_condition_that_is_certain() {
        for code in [4, 5] {
            assert_eq!(of_link(code).condition(), Some(Condition::HubUnauthorized));
        }
        assert_eq!(of_link(3).condition(), Some(Condition::HubUnreachable));
        let target = Target::module("edge-1", "quorate");
        let request = |status, body: &str| of_request(status, body.as_bytes(), &target);
        assert_eq!(request(404, "").condition(), Some(Condition::HubDeviceMissing));
        assert!(request(404, "").to_string().contains("edge-1/quorate"));
        let quota = request(403, "ErrorCode:IotHubQuotaExceeded");
        assert_eq!(quota.condition(), Some(Condition::HubThrottled));
        let either = request(403, "");
        assert_eq!(either.condition(), Some(Condition::HubUnauthorized));
        assert!(either.to_string().contains("quota") && either.to_string().contains("tier"), "{either}");
        assert_eq!(request(503, "").condition(), Some(Condition::HubUnreachable));
        assert_eq!(request(400, "").condition(), Some(Condition::HubBadAnswer));
    }
}
