//! What devices have sent: the newest messages, kept to be looked at.
//!
//! A bound on their number and one on their size, so that a chatty device does not fill the memory.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use axum::{
    extract::{Query, State as Shared},
    response::Response,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::{State, answer, lock};
use crate::hub::store::Target;

/// The most messages kept.
const KEPT: usize = 2000;
/// The most bytes of bodies kept.
const BYTES: usize = 4 * 1024 * 1024;

/// A message that the hub has taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Counts from 1.
    pub number: u64,
    /// The hub's time, RFC 3339.
    pub at: String,
    /// Who sent it.
    pub from: Target,
    /// Properties of the application, by their names; of the system, as `$.mid`, `$.ct`, `$.on`.
    pub properties: BTreeMap<String, String>,
    /// The message itself.
    pub body: Bytes,
}

impl Message {
    fn to_json(&self) -> Value {
        let body = match std::str::from_utf8(&self.body) {
            Ok(text) => json!(text),
            Err(_) => json!({ "base64": STANDARD.encode(&self.body) }),
        };
        json!({
            "number": self.number,
            "at": self.at,
            "device": self.from.device,
            "module": self.from.module,
            "properties": self.properties,
            "body": body,
        })
    }
}

/// The newest messages.
#[derive(Debug, Default)]
pub(in crate::emulator) struct Ring {
    messages: VecDeque<Message>,
    bytes: usize,
    number: u64,
}

impl Ring {
    /// Keeps a message, and forgets the oldest beyond the bounds.
    pub(in crate::emulator) fn keep(
        &mut self,
        at: String,
        from: &Target,
        properties: BTreeMap<String, String>,
        body: Bytes,
    ) {
        self.number += 1;
        self.bytes += body.len();
        self.messages.push_back(Message { number: self.number, at, from: from.clone(), properties, body });
        while self.messages.len() > KEPT || self.bytes > BYTES {
            let Some(oldest) = self.messages.pop_front() else { break };
            self.bytes -= oldest.body.len();
        }
    }

    /// Those with numbers above `after`, oldest first.
    pub(in crate::emulator) fn after(&self, after: u64) -> impl Iterator<Item = &Message> {
        self.messages.iter().filter(move |message| message.number > after)
    }
}

#[derive(Deserialize)]
pub(in crate::emulator) struct After {
    #[serde(default)]
    after: u64,
}

/// `GET /emulator/messages?after=N`.
pub(in crate::emulator) async fn list(
    Shared(state): Shared<Arc<State>>,
    Query(After { after }): Query<After>,
) -> Response {
    let found = lock(&state.devices.messages).after(after).map(Message::to_json).collect();
    answer::json_response(200, &Value::Array(found), &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_by_number_and_by_size() {
        let mut ring = Ring::default();
        let from = Target::device("d");
        let mut keep = |body: Bytes| {
            ring.keep("t".into(), &from, BTreeMap::new(), body);
            (ring.after(0).next().map_or(0, |message| message.number), ring.after(0).count())
        };
        for _ in 0..KEPT {
            keep(Bytes::from_static(b"x"));
        }
        assert_eq!(keep(Bytes::from_static(&[0xff])), (2, KEPT));
        let (_, left) = keep(Bytes::from(vec![0; BYTES]));
        assert_eq!(left, 1);
        assert_eq!(keep(Bytes::from_static(&[0xff])), (KEPT as u64 + 3, 1));
        let last = ring.after(0).last().expect("a message").to_json();
        assert_eq!(last["body"], json!({ "base64": "/w==" }));
    }
}
