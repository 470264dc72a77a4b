//! Notes what happens, for people: in the log and in the list of events.
//!
//! A decision that changed, an ownership that began or ended, a condition that began or is over, an order that is in force or is not any more.
//! What is raised here, the other members are told too (`told.rs`); what they raise, they note themselves.
//! It looks and tells, and decides nothing; nobody waits for it. After a restart the record is read again from the log, so what the
//! list of events shows already is not noted twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{door::NodeDoor, report::pause_in_words};
use crate::{
    condition::{Condition, Severity},
    ownership::record::{Note, Record},
    status::{
        door::Door as _,
        events::{Event, Events, Kind},
    },
};

/// How often it is looked which conditions hold.
const LOOK: Duration = Duration::from_millis(500);

/// What the mirror and the workload raise they log themselves, with the facts at hand.
const LOGGED: [Condition; 11] = [
    Condition::NoOwner,
    Condition::QuorumLost,
    Condition::NoSpare,
    Condition::LeaseLapsed,
    Condition::MemberSilent,
    Condition::MemberRejoining,
    Condition::StoreQuarantined,
    Condition::DiskFull,
    Condition::TimingWidened,
    Condition::BuildDiffers,
    Condition::WorkloadUnhealthy,
];

/// Notes until `stop`.
pub async fn observe(door: Arc<NodeDoor>, stop: CancellationToken) {
    let node = door.node.clone();
    let (mut decided, mut record) = (node.decided.clone(), node.group.record());
    let mut notes = Notes { events: door.events(), door: door.clone(), orders: BTreeMap::new() };
    notes.add(Kind::Sidecar, "started", format!("quorate {}", crate::raft::peer::VERSION));
    let mut held: BTreeMap<Condition, String> = BTreeMap::new();
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                notes.add(Kind::Sidecar, "left", String::new());
                return;
            }
            Ok(()) = decided.changed() => {
                let last = decided.borrow_and_update().clone();
                if let Some(last) = last {
                    notes.add(Kind::Decision, last.reason.name(), last.reason.to_string());
                }
            }
            Ok(()) = record.changed() => {
                let seen = record.borrow_and_update().record.clone();
                notes.ownerships(&seen);
                notes.orders(&seen);
            }
            _ = tick.tick() => {
                let mut now = BTreeMap::new();
                let raised = door.raised();
                door.tell_raised(&raised);
                for raised in raised {
                    now.entry(raised.name).or_insert(raised.detail);
                }
                notes.conditions(&held, &now);
                held = now;
            }
        }
    }
}

/// An order in force: what it is called, what it is about, and which it is.
type InForce = BTreeMap<(&'static str, String), (Option<u64>, String)>;

struct Notes {
    events: Events,
    door: Arc<NodeDoor>,
    orders: InForce,
}

impl Notes {
    fn note(&self, event: Event) {
        self.events.add(Event { unix_ms: self.door.clock().wall_ms(), ..event });
    }

    fn add(&self, kind: Kind, name: &str, text: String) {
        self.note(Event { kind, name: name.to_owned(), text, ..Event::default() });
    }

    fn ownerships(&self, record: &Record) {
        for event in ownerships(record, &self.events) {
            self.note(event);
        }
    }

    fn orders(&mut self, record: &Record) {
        let now = in_force(record);
        for event in changed_orders(&self.orders, &now, &self.events) {
            self.note(event);
        }
        self.orders = now;
    }

    fn conditions(&self, held: &BTreeMap<Condition, String>, now: &BTreeMap<Condition, String>) {
        let logged = |condition: &Condition| LOGGED.contains(condition);
        for (condition, detail) in now.iter().filter(|(c, _)| !held.contains_key(c)) {
            self.add(Kind::Condition, condition.name(), detail.clone());
            let (name, meaning) = (condition.name(), condition.meaning());
            match condition.severity() {
                _ if !logged(condition) => {}
                Severity::Critical => tracing::error!(condition = name, "{meaning} ({detail})"),
                Severity::Warning => tracing::warn!(condition = name, "{meaning} ({detail})"),
                Severity::Info => tracing::info!(condition = name, "{meaning} ({detail})"),
            }
        }
        for condition in held.keys().filter(|c| !now.contains_key(c)) {
            let name = condition.name().to_owned();
            self.note(Event { kind: Kind::Condition, name, over: true, ..Event::default() });
            if logged(condition) {
                tracing::info!(condition = condition.name(), "over: {}", condition.meaning());
            }
        }
    }
}

/// The ownerships that began or ended, as far as they are not noted yet.
fn ownerships(record: &Record, events: &Events) -> Vec<Event> {
    let noted = |over: bool| {
        let last = events.find_last(|e| e.kind == Kind::Ownership && e.over == over);
        last.and_then(|event| event.epoch).unwrap_or(0)
    };
    let (begun, ended) = (noted(false), noted(true));
    let mut fresh = Vec::new();
    for change in &record.history {
        let epoch = change.epoch.get();
        let event = |over, text| Event {
            kind: Kind::Ownership,
            name: change.cause.name().to_owned(),
            over,
            device: change.device.to_string(),
            epoch: Some(epoch),
            text,
            ..Event::default()
        };
        if epoch > begun {
            let by = if change.actor.is_empty() { String::new() } else { format!(" (by {})", change.actor) };
            fresh.push(event(false, format!("{}{by}", change.reason)));
        }
        // Who is followed at once has ended with the next one's beginning.
        let released = record.released.as_ref().is_some_and(|r| r.epoch == change.epoch);
        if released && epoch > ended {
            fresh.push(event(true, "it has stopped the workload and given it up".into()));
        }
    }
    fresh
}

fn in_force(record: &Record) -> InForce {
    let note = |note: &Note| (Some(note.id), note.to_string());
    let paused = record.paused.iter().map(|by| (("pause", String::new()), (Some(by.id), pause_in_words(by))));
    let drained = record.drained.iter().map(|(device, by)| (("drain", device.to_string()), note(by)));
    let preferred =
        record.preferred.iter().map(|device| (("prefer", device.to_string()), (None, String::new())));
    let least = record.least_stretch.iter().map(|least| {
        let times = f64::from(*least) / 100.0;
        (("timing", String::new()), (None, format!("at least {times} times the configured timing")))
    });
    paused.chain(drained).chain(preferred).chain(least).collect()
}

/// What was ordered and lifted from `before` to `now`, as far as it is not noted yet.
fn changed_orders(before: &InForce, now: &InForce, events: &Events) -> Vec<Event> {
    let keys: BTreeSet<_> = before.keys().chain(now.keys()).collect();
    let mut fresh = Vec::new();
    for key in keys {
        let (name, device) = key;
        let last = || events.find_last(|e| e.kind == Kind::Order && e.name == *name && e.device == *device);
        let event = |over, order, text: &str| Event {
            kind: Kind::Order,
            name: (*name).to_owned(),
            over,
            device: device.clone(),
            text: text.to_owned(),
            order,
            ..Event::default()
        };
        let is_noted = |over: bool, order: Option<u64>, text: &str| match order {
            Some(id) => events.any(|e| {
                e.kind == Kind::Order && e.order == Some(id) && e.over == over && e.device == *device
            }),
            // It has no number: what was noted last of it is compared.
            None => last().is_some_and(|e| e.over == over && (over || e.text == text)),
        };
        match (before.get(key), now.get(key)) {
            (old, Some((id, text))) if old != Some(&(*id, text.clone())) && !is_noted(false, *id, text) => {
                fresh.push(event(false, *id, text));
            }
            (Some((id, _)), None) if !is_noted(true, *id, "") => fresh.push(event(true, *id, "")),
            _ => {}
        }
    }
    fresh
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        epoch::Epoch,
        id::{DeviceId, Incarnation, SiteId},
        ownership::command::{Claim, Command, Drain, Order, SetPreferred, StopReceipt},
        site::{Member, Role, Site},
        timing::{Settings, Timing},
    };

    fn device(n: u8) -> DeviceId {
        DeviceId::new(format!("edge-{n}")).expect("a name")
    }

    fn record() -> Record {
        let member = |n| Member { device: device(n), address: format!("10.0.0.{n}:7600"), role: Role::Voter };
        Record::new(&Site {
            id: SiteId::new("plant-7").expect("a name"),
            members: (1..=3).map(member).collect(),
            timing: Timing::new(&Settings::default()).expect("holds"),
        })
    }

    fn claim(n: u8, base: u64) -> Command {
        let base = Epoch::new(base).expect("small");
        let incarnation = Incarnation(n.into());
        Command::Claim(Claim { device: device(n), incarnation, base, at_unix_ms: 5, seal: None, proof: None })
    }

    fn order(id: u64) -> Order {
        let (actor, reason) = ("anna".into(), "new switch".into());
        Order { id, actor, reason, at_unix_ms: 7, base: None, expires_unix_ms: 0, until_unix_ms: None }
    }

    /// Notes what a record shows after each of these commands.
    fn tell(events: &Events, commands: &[Command]) -> Vec<String> {
        let (mut record, mut orders) = (record(), InForce::new());
        let from = events.newest();
        for command in commands {
            record.apply(command);
            let now = in_force(&record);
            let fresh = ownerships(&record, events).into_iter().chain(changed_orders(&orders, &now, events));
            fresh.collect::<Vec<_>>().into_iter().for_each(|event| events.add(event));
            orders = now;
        }
        events.since(from).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_the_log_tells_again_after_a_restart_is_not_noted_twice() {
        let device_2 = Some(device(2));
        let receipt = StopReceipt {
            device: device(1),
            incarnation: Incarnation(1),
            epoch: Epoch::new(1).expect("small"),
            successor: Some(device(2)),
            reason: String::new(),
            at_unix_ms: 6,
        };
        let commands = [
            claim(1, 0),
            Command::Pause(order(1)),
            Command::Resume(order(2)),
            Command::Drain(Drain { order: order(3), device: device(3) }),
            Command::SetPreferred(SetPreferred { order: order(4), device: device_2 }),
            Command::StopReceipt(receipt),
            claim(2, 1),
        ];
        let events = Events::default();
        assert_eq!(
            tell(&events, &commands),
            [
                "edge-1 owns, epoch 1: first owner of the site",
                "pause: by anna: new switch",
                "pause ended",
                "drain edge-3: by anna: new switch",
                "prefer edge-2",
                "edge-1 owns no more, epoch 1: it has stopped the workload and given it up",
                "edge-2 owns, epoch 2: planned handover",
            ]
        );
        let events = Events::after(events.last(usize::MAX));
        assert_eq!(tell(&events, &commands), [""; 0], "the same again");
        let more = [
            Command::Undrain(Drain { order: order(5), device: device(3) }),
            Command::Pause(order(6)),
            claim(3, 2),
        ];
        let told = tell(&events, &[&commands[..], &more[..]].concat());
        assert_eq!(told, ["drain edge-3 ended", "pause: by anna: new switch"], "and what is new");
    }

    #[test]
    fn what_happened_while_this_device_was_away_is_noted_when_it_comes_back() {
        let (mut record, events) = (record(), Events::default());
        record.apply(&claim(1, 0));
        ownerships(&record, &events).into_iter().for_each(|event| events.add(event));
        record.apply(&claim(2, 1));
        record.apply(&claim(3, 2));
        let told: Vec<_> = ownerships(&record, &events).iter().map(|e| (e.epoch, e.device.clone())).collect();
        assert_eq!(told, [(Some(2), "edge-2".into()), (Some(3), "edge-3".into())]);
    }
}
