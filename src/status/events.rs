//! The last thousand things that happened here, as one list that feeds `GET /v1/events`, the page and `quorate events`.
//!
//! What is in it, `node/events.rs` says; how it outlives a loss of power, `ring.rs` beside this. Here it is memory alone: whoever adds an
//! event waits for nobody, and a reader that falls behind gets what is still there. Nothing decides by it.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// How many events are kept.
pub const EVENTS_MAX: usize = 1000;
/// The longest text of an event that is kept, in bytes.
const TEXT_MAX: usize = 512;

/// One thing that happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// Counts up by one, over restarts too. After a loss of power the newest may be given again.
    pub seq: u64,
    /// When this sidecar noticed it, by the wall clock, in milliseconds since 1970.
    pub unix_ms: u64,
    /// What kind of thing.
    pub kind: Kind,
    /// Which one: the name of the decision's reason, of the condition, the cause of the ownership, or the order.
    pub name: String,
    /// Of a condition, an ownership or an order: this is its end.
    #[serde(skip_serializing_if = "is_false")]
    pub over: bool,
    /// Which device it is about, where it is about one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// Of an ownership: its epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The facts, in one line.
    pub text: String,
    /// Of an order: the number by which it is told from others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<u64>,
}

fn is_false(it: &bool) -> bool {
    !it
}

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// This sidecar started or left.
    Sidecar,
    /// This device's decision changed.
    Decision,
    /// An ownership began or ended.
    Ownership,
    /// A condition began or is over.
    Condition,
    /// A person's or program's order is in force, or is not any more.
    Order,
    /// A kind that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Kind {
    /// The name as it stands in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Sidecar => "sidecar",
            Kind::Decision => "decision",
            Kind::Ownership => "ownership",
            Kind::Condition => "condition",
            Kind::Order => "order",
            Kind::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Event { name, device, text, .. } = self;
        let epoch = self.epoch.unwrap_or(0);
        match (self.kind, self.over) {
            (Kind::Ownership, false) => write!(f, "{device} owns, epoch {epoch}")?,
            (Kind::Ownership, true) => write!(f, "{device} owns no more, epoch {epoch}")?,
            // A reason may have a condition's name, and says all in its sentence.
            (Kind::Decision, _) if !text.is_empty() => write!(f, "decided")?,
            (Kind::Condition, true) => write!(f, "{name} is over")?,
            (Kind::Order, over) => {
                let about = if device.is_empty() { String::new() } else { format!(" {device}") };
                write!(f, "{name}{about}{}", if over { " ended" } else { "" })?;
            }
            _ => write!(f, "{name}")?,
        }
        if text.is_empty() { Ok(()) } else { write!(f, ": {text}") }
    }
}

/// The last events. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Events {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    kept: Mutex<VecDeque<Event>>,
    /// The number of the newest.
    newest: watch::Sender<u64>,
}

impl Events {
    /// A list that goes on from what an earlier life has kept.
    pub fn after(kept: Vec<Event>) -> Events {
        let events = Events::default();
        let newest = kept.last().map_or(0, |event| event.seq);
        let skipped = kept.len().saturating_sub(EVENTS_MAX);
        events.kept().extend(kept.into_iter().skip(skipped));
        events.inner.newest.send_replace(newest);
        events
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one; its number is given here, and its text is cut to what is kept.
    pub fn add(&self, event: Event) {
        let mut kept = self.kept();
        let seq = self.newest() + 1;
        let text = event.text[..event.text.floor_char_boundary(TEXT_MAX)].to_owned();
        kept.push_back(Event { seq, text, ..event });
        if kept.len() > EVENTS_MAX {
            kept.pop_front();
        }
        drop(kept);
        self.inner.newest.send_replace(seq);
    }

    /// The number of the newest; 0 if there is none.
    pub fn newest(&self) -> u64 {
        *self.inner.newest.borrow()
    }

    /// Told whenever one was added.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.inner.newest.subscribe()
    }

    /// The last `n`, the oldest first.
    pub fn last(&self, n: usize) -> Vec<Event> {
        let kept = self.kept();
        kept.iter().skip(kept.len().saturating_sub(n)).cloned().collect()
    }

    /// All that are still kept and newer than `seq`, the oldest first.
    pub fn since(&self, seq: u64) -> Vec<Event> {
        let kept = self.kept();
        let newer = kept.iter().rev().take_while(|event| event.seq > seq).count();
        kept.iter().skip(kept.len() - newer).cloned().collect()
    }

    /// Whether one for which `is` holds is kept.
    pub fn any(&self, is: impl Fn(&Event) -> bool) -> bool {
        self.kept().iter().any(is)
    }

    /// The newest for which `is` holds.
    pub fn find_last(&self, is: impl Fn(&Event) -> bool) -> Option<Event> {
        self.kept().iter().rev().find(|event| is(event)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: Kind, name: &str, text: &str) -> Event {
        Event { kind, name: name.into(), text: text.into(), ..Event::default() }
    }

    #[test]
    fn keeps_the_last_thousand_and_counts_on() {
        let events = Events::default();
        for n in 0..1500 {
            events.add(event(Kind::Decision, &n.to_string(), ""));
        }
        assert_eq!(events.newest(), 1500);
        let kept = events.last(usize::MAX);
        assert_eq!((kept.len(), kept[0].seq, kept[999].seq), (EVENTS_MAX, 501, 1500));
        assert_eq!(events.last(2).iter().map(|e| e.seq).collect::<Vec<_>>(), [1499, 1500]);
        assert_eq!(events.since(1498).len(), 2);
        assert_eq!((events.since(1500).len(), events.since(9999).len(), events.since(0).len()), (0, 0, 1000));
        let later = Events::after(kept);
        later.add(event(Kind::Decision, "next", ""));
        assert_eq!(later.last(1)[0].seq, 1501);
        assert_eq!(later.last(usize::MAX).len(), EVENTS_MAX);
    }

    #[test]
    fn long_texts_are_cut_between_letters() {
        let events = Events::default();
        events.add(event(Kind::Condition, "no.spare", &format!("x{}", "ü".repeat(400))));
        let text = events.last(1).remove(0).text;
        assert!(text.len() <= TEXT_MAX && text.ends_with('ü'), "{}", text.len());
    }

    #[test]
    fn each_kind_is_a_sentence_for_people() {
        let ownership =
            Event { device: "edge-2".into(), epoch: Some(17), ..event(Kind::Ownership, "owner_lost", "") };
        let drain = Event { device: "edge-1".into(), ..event(Kind::Order, "drain", "by anna: new disk") };
        let told = [
            event(Kind::Decision, "standing_by", "edge-2 owns"),
            Event { text: "the owner was lost".into(), ..ownership.clone() },
            Event { over: true, ..ownership },
            event(Kind::Condition, "no.spare", "not heard: edge-3"),
            Event { over: true, ..event(Kind::Condition, "no.spare", "") },
            drain.clone(),
            Event { over: true, text: String::new(), ..drain },
        ]
        .map(|event| event.to_string());
        assert_eq!(
            told,
            [
                "decided: edge-2 owns",
                "edge-2 owns, epoch 17: the owner was lost",
                "edge-2 owns no more, epoch 17",
                "no.spare: not heard: edge-3",
                "no.spare is over",
                "drain edge-1: by anna: new disk",
                "drain edge-1 ended",
            ]
        );
    }

    #[test]
    fn reads_what_a_newer_version_wrote() {
        let event: Event =
            serde_json::from_str(r#"{"seq":3,"kind":"weather","name":"rain","x":1}"#).expect("reads");
        assert_eq!((event.seq, event.kind), (3, Kind::Unknown));
    }
}
