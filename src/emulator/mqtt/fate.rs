//! What troubles and limits do to a link: the one place where the device side asks about them.

use std::time::Duration;

use super::super::{State, gate};
use crate::hub::{store::Target, throttle::Operation};

/// How the hub receives a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::emulator) enum Received {
    /// It is served; its answer takes this long, or never comes. `ahead_s` is by how much the hub's clock is ahead.
    Served { after: Duration, lost: bool, ahead_s: i64 },
    /// It is turned away with this status.
    Turned { after: Duration, status: u16 },
    /// It never arrived.
    Never,
}

impl State {
    /// How the hub receives a request of `bytes` by `from`, and counts it.
    pub(in crate::emulator) fn receive(&self, operation: Operation, from: &Target, bytes: usize) -> Received {
        let fate = self.fate(operation, Some(&from.device));
        if fate.unreachable {
            self.count(0);
            return Received::Never;
        }
        let turned = match fate.turned {
            Some(turned) => Some(gate::turned(turned).status),
            None if fate.token_expired && operation == Operation::Connection => Some(401),
            None => None,
        };
        let admitted = match turned {
            Some(status) => Err(status),
            None => self.admit(operation, bytes).map_err(|failure| failure.status),
        };
        match admitted {
            Ok(wait) => {
                let writes = matches!(operation, Operation::TwinUpdate | Operation::Telemetry);
                let (after, lost) = (fate.delay.saturating_add(wait), fate.answer_lost && writes);
                self.count(if lost { 0 } else { 200 });
                Received::Served { after, lost, ahead_s: fate.ahead_s }
            }
            Err(status) => {
                self.count(status);
                Received::Turned { after: fate.delay, status }
            }
        }
    }
}
