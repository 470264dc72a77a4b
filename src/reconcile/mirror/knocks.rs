//! Knocking at the hub's door: is there anybody at all? A connection is opened, as far as a call would, and closed; nothing is asked.
//!
//! It deliberately does not say how the hub fares: what answers may be a proxy, or a kernel whose program hangs.

use std::{future::poll_fn, task::Poll, time::Duration};

use tokio::time::Instant;

use super::away::Away;
use crate::hub::{self, BoxFuture, Error};

/// So many knocks may wait for an answer at once: one that got lost on the way does not hold up the next.
const KNOCKS: usize = 4;

/// Knocks, the first time after a while, until something opens. Dropping it ends the knocking.
pub(super) async fn opens(hub: hub::Handle, away: Away, first: Duration, roll: u64) {
    let mut knocks: Vec<BoxFuture<'_, Result<(), Error>>> = Vec::new();
    let mut next = Instant::now() + first;
    loop {
        let opened = poll_fn(|cx| {
            let before = knocks.len();
            let mut opened = false;
            knocks.retain_mut(|knock| match knock.as_mut().poll(cx) {
                Poll::Ready(answer) => {
                    opened |= answer.is_ok();
                    false
                }
                Poll::Pending => true,
            });
            if opened || knocks.len() < before { Poll::Ready(opened) } else { Poll::Pending }
        });
        tokio::select! {
            biased;
            opened = opened => if opened {
                return;
            },
            () = tokio::time::sleep_until(next) => {
                if knocks.len() < KNOCKS {
                    knocks.push(hub.knock());
                }
                next = Instant::now() + away.knock(Instant::now(), roll);
            }
        }
    }
}
