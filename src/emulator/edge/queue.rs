//! The messages that an edgeHub keeps until they are taken: one line to the hub, and one to each module.
//!
//! A message waits at most for its time to live. The lines are bounded; the oldest message of a full line is lost, as it
//! would be on a full disk.

use std::{collections::VecDeque, sync::Mutex, time::Duration};

use bytes::Bytes;
use tokio::sync::Notify;

use super::super::{lock, mqtt::Bag};
use crate::{clock::Moment, hub::store::Target};

/// The most messages in one line.
const MOST: usize = 10_000;

/// A message of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) from: Target,
    /// The input it is for, unless it is for the hub.
    pub(super) input: String,
    pub(super) properties: Bag,
    pub(super) body: Bytes,
}

/// Messages in order, each with its end.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<VecDeque<(Moment, Message)>>,
    more: Notify,
}

impl Queue {
    /// Puts a message at the end, to wait for at most `life`.
    pub(super) fn put(&self, message: Message, now: Moment, life: Duration) {
        let mut waiting = lock(&self.waiting);
        if waiting.len() >= MOST {
            waiting.pop_front();
            tracing::debug!(from = %message.from, "a message was lost because too many wait");
        }
        waiting.push_back((now + life, message));
        drop(waiting);
        self.more.notify_one();
    }

    /// The oldest message that still lives, with its end. It stays until [`done`](Self::done).
    pub(super) fn first(&self, now: Moment) -> Option<(Moment, Message)> {
        let mut waiting = lock(&self.waiting);
        while waiting.front().is_some_and(|(end, _)| *end <= now) {
            waiting.pop_front();
        }
        waiting.front().cloned()
    }

    /// The message has been taken.
    pub(super) fn done(&self, message: &Message) {
        let mut waiting = lock(&self.waiting);
        if waiting.front().is_some_and(|(_, first)| first == message) {
            waiting.pop_front();
        }
    }

    /// Ends when a message may have come since it was last asked. Cancel-safe.
    pub(super) async fn more(&self) {
        self.more.notified().await;
    }

    /// How many wait, the dead ones included.
    pub(super) fn len(&self) -> usize {
        lock(&self.waiting).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &'static str) -> Message {
        Message {
            from: Target::module("d", "m"),
            input: String::new(),
            properties: Bag::new(),
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    #[test]
    fn a_message_waits_until_it_is_taken_or_too_old() {
        let queue = Queue::default();
        let s = |s| Moment::default() + Duration::from_secs(s);
        queue.put(message("1"), s(0), Duration::from_secs(10));
        queue.put(message("2"), s(1), Duration::from_secs(10));
        queue.put(message("3"), s(2), Duration::from_secs(10));
        assert_eq!(queue.first(s(3)), Some((s(10), message("1"))));
        queue.done(&message("2"));
        assert_eq!(queue.first(s(3)), Some((s(10), message("1"))), "it is not its turn");
        queue.done(&message("1"));
        assert_eq!(queue.first(s(3)).map(|(_, first)| first), Some(message("2")));
        assert_eq!(queue.first(s(11)).map(|(_, first)| first), Some(message("3")));
        assert_eq!((queue.first(s(12)), queue.len()), (None, 0));
    }

    #[test]
    fn a_full_line_loses_its_oldest() {
        let queue = Queue::default();
        let (now, life) = (Moment::default(), Duration::from_secs(1));
        queue.put(message("first"), now, life);
        for _ in 0..MOST {
            queue.put(message("later"), now, life);
        }
        assert_eq!((queue.first(now).map(|(_, first)| first), queue.len()), (Some(message("later")), MOST));
    }
}
