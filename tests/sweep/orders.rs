//! What people and the cloud order of a site in trouble: through the corridor that gRPC uses, by direct method, and by a module's
//! desired properties; some of it expired, some about an ownership that is over. What is void must never be executed.

use std::time::Duration;

use quorate::{
    epoch::Epoch,
    hub::{link::Event, wall},
    ownership::command::Command,
    reconcile::commands::{Order, Wish},
};
use serde_json::{Map, Value, json};

use super::trial::Trial;
use crate::stage::Stage;

const S: Duration = Duration::from_secs(1);
/// How long the cloud's orders are valid.
const VALID: Duration = Duration::from_secs(4);
/// The longest that an order may wait for a leader (`node/corridor.rs`).
const UNDER_WAY: Duration = Duration::from_secs(11);
/// The hub's wall clock at the beginning, and everybody's who did not set his.
const WALL_MS: u64 = 1_800_000_000_000;

/// What was ordered so far.
#[derive(Default)]
pub struct Orders {
    given: u64,
    /// The numbers of those that must not be executed.
    void: Vec<u64>,
    /// When the last one is over, whatever becomes of it.
    settled: Duration,
}

/// One order, however it is given.
#[derive(Clone, Copy)]
enum Want {
    Transfer,
    Pause(bool),
    Drain(bool),
    Prefer(bool),
}

impl Want {
    fn wish(self, stage: &Stage, n: usize) -> Order {
        let device = stage.devices[n].id.clone();
        match self {
            Want::Transfer => Order::Transfer(Some(device)),
            Want::Pause(true) => Order::Pause(None),
            Want::Pause(false) => Order::Resume,
            Want::Drain(true) => Order::Drain(device),
            Want::Drain(false) => Order::Undrain(device),
            Want::Prefer(some) => Order::Prefer(some.then_some(device)),
        }
    }

    /// The direct method of it, and its own field.
    fn method(self, device: &str) -> (&'static str, Option<(&'static str, Value)>) {
        match self {
            Want::Transfer => ("transfer", Some(("to", json!(device)))),
            Want::Pause(on) => (if on { "pause" } else { "resume" }, None),
            Want::Drain(on) => (if on { "drain" } else { "undrain" }, Some(("device", json!(device)))),
            Want::Prefer(some) => ("prefer", Some(("device", json!(some.then_some(device))))),
        }
    }

    /// The desired property of it, and its own field.
    fn desired(self, device: &str) -> (&'static str, (&'static str, Value)) {
        match self {
            Want::Transfer => ("transfer", ("to", json!(device))),
            Want::Pause(on) => ("pause", ("on", json!(on))),
            Want::Drain(on) => {
                ("drain", ("devices", json!([device].iter().filter(|_| on).collect::<Vec<_>>())))
            }
            Want::Prefer(some) => ("prefer", ("device", json!(some.then_some(device)))),
        }
    }

    /// The word by which the record's number of it is made.
    fn verb(self, by_twin: bool) -> &'static str {
        match self {
            Want::Drain(false) if by_twin => "drain",
            _ => self.method("").0,
        }
    }
}

/// The number under which the record knows an order of the cloud.
fn number(verb: &str, id: &str) -> u64 {
    let hash = ring::digest::digest(&ring::digest::SHA256, format!("{verb}\0{id}").as_bytes());
    hash.as_ref().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl Trial {
    /// Somebody orders something.
    pub(super) fn order(&mut self) -> String {
        let (at, n) = self.two();
        let on = !self.dice.throw().is_multiple_of(4);
        let want = match self.dice.throw() % 8 {
            0..=1 => Want::Pause(on),
            2..=3 => Want::Drain(on),
            4 => Want::Prefer(on),
            _ => Want::Transfer,
        };
        let (way, stale, late) =
            (self.dice.throw() % 3, self.dice.throw().is_multiple_of(5), self.dice.throw().is_multiple_of(5));
        let now = self.stage.sim.elapsed();
        self.orders.given += 1;
        self.orders.settled = now + VALID + UNDER_WAY;
        let before =
            Epoch::new(self.stage.epoch().saturating_sub(1)).filter(|_| stale && self.stage.epoch() > 0);
        let device = self.stage.devices[n].id.to_string();
        let id = format!("order-{}", self.orders.given);
        let wall = WALL_MS + u64::try_from(now.as_millis()).expect("short");
        let expires = match late {
            true => wall.saturating_sub(1000),
            false => wall + u64::try_from(VALID.as_millis()).expect("short"),
        };
        let mut fields = Map::new();
        fields.insert("id".into(), json!(id));
        fields.insert("expires".into(), json!(wall::rfc3339(expires)));
        if let Some(before) = before {
            fields.insert("base_epoch".into(), json!(before.get()));
        }
        let (number, how, void) = match way {
            0 => {
                let number = self.dice.throw();
                let wish = Wish {
                    id: Some(number),
                    order: want.wish(&self.stage, n),
                    reason: "the plant is inspected".into(),
                    actor: "anna".into(),
                    base: before,
                    expires_unix_ms: 0,
                };
                self.stage.wish(at, wish);
                (number, "a person", before.is_some())
            }
            1 => {
                let (method, field) = want.method(&device);
                fields.extend(field.map(|(name, value)| (name.to_owned(), value)));
                let call =
                    Event::Call { id: id.clone(), method: method.into(), payload: Value::Object(fields) };
                self.stage.cloud_calls(at, call);
                (number(want.verb(false), &id), "a method", before.is_some() || late)
            }
            _ => {
                let (key, (name, value)) = want.desired(&device);
                fields.insert(name.into(), value);
                self.stage.cloud_desires(at, &json!({ key: fields }));
                (number(want.verb(true), &id), "a desired property", before.is_some() || late)
            }
        };
        if void {
            self.orders.void.push(number);
        }
        let (verb, void) = (want.verb(false), if void { ", void" } else { "" });
        format!("{how} at {at} orders: {verb} {n}{void}")
    }

    /// Waits until every order is over, then lifts those that are in force: what is demanded then is an owner.
    pub(super) fn lift_orders(&mut self) {
        if self.orders.given == 0 {
            return;
        }
        let nothing = json!({"pause": null, "drain": null, "prefer": null, "transfer": null});
        let count = self.stage.devices.len();
        (0..count).for_each(|n| self.stage.cloud_desires(n, &nothing));
        let limit = self.orders.settled.max(self.stage.sim.elapsed()) + S * 60;
        for at in (0..count).cycle() {
            assert!(self.stage.sim.elapsed() < limit, "a paused or drained site does not obey any more");
            // After a start it takes a moment until anybody knows anything.
            if let Some(record) = self.stage.record() {
                let drained = |n: &usize| record.drained.contains_key(&self.stage.devices[*n].id);
                let drained: Vec<usize> = (0..count).filter(drained).collect();
                let lifted = record.paused.is_none() && drained.is_empty();
                if lifted && self.stage.sim.elapsed() >= self.orders.settled {
                    break;
                }
                if record.paused.is_some() {
                    self.stage.order(at, Command::Resume);
                }
                drained.into_iter().for_each(|n| self.stage.undrain(at, n));
            }
            self.pass(S);
        }
        let record = self.stage.record().expect("just seen");
        for number in &self.orders.void {
            assert_eq!(record.executed(*number), None, "an order that was void was executed");
        }
    }
}
