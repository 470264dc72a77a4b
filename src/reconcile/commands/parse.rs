//! What the cloud wrote, read strictly: a request that is not understood whole is not executed in part.
//!
//! Total on everything that JSON can say. A field that this version does not know is refused, because it may say when
//! *not* to execute the rest; an entry of the section that is no command is left alone. Faults quote at most a few
//! characters of what was sent.

use std::time::Duration;

use serde_json::{Map, Value};

use super::{Order, PAUSE_MS, REASON_MAX, Request};
use crate::{
    epoch::Epoch,
    hub::{verbs::Verb, wall},
    id::DeviceId,
    ownership::pace::{CONFIGURED, STRETCH_MAX},
};

/// The longest id.
const ID_MAX: usize = 64;
/// The longest text of a moment that is looked at.
const MOMENT_MAX: usize = 40;
/// The most devices that are named at once.
const DEVICES_MAX: usize = 64;
/// What lifts an order by a method. A property says what shall be, so it lifts the order itself.
const METHODS_ALONE: [(Verb, &str); 2] = [
    (Verb::Resume, "write pause with a new id and \"on\": false"),
    (Verb::Undrain, "write drain with a new id and, in \"devices\", all that shall stay drained"),
];
/// What every command may say.
const COMMON: [&str; 5] = ["id", "expires", "base_epoch", "site", "reason"];

/// A request that cannot be executed, whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// What it was meant to be, if that can be told.
    pub(super) verb: Option<Verb>,
    /// It is told under its own name, because it is none of the commands that this would otherwise be the outcome of.
    pub(super) own_key: bool,
    /// Its id, if that can be read.
    pub(super) id: String,
    /// 400, or 404 for a method that there is not.
    pub(super) status: u16,
    /// What is wrong and what to write instead.
    pub(super) reason: String,
}

type Fault = String;
/// An order, the verbs that it takes, and its own fields.
type Own = (Order, &'static [Verb], &'static [&'static str]);

/// A direct method: `status` and `why`, and each other verb but `timing` with `{"id", "expires", ...}`.
///
/// # Errors
/// [`Malformed`], to be handed to [`super::execute`] all the same.
pub fn method(name: &str, payload: &Value) -> Result<Request, Malformed> {
    let Some(verb) = name.parse::<Verb>().ok().filter(|verb| *verb != Verb::Timing) else {
        let reason = "there is no such method; there are status, why, transfer, pause, resume, drain, undrain and prefer";
        return Err(Malformed {
            verb: None,
            own_key: false,
            id: String::new(),
            status: 404,
            reason: reason.into(),
        });
    };
    if verb.asks() {
        return Ok(question(verb));
    }
    read(verb, payload, |fields| {
        Ok(match verb {
            Verb::Transfer => {
                (Order::Transfer(device_or_null(fields, "to")?), &[Verb::Transfer][..], &["to"][..])
            }
            Verb::Resume => (Order::Resume, &[Verb::Resume], &[]),
            Verb::Drain => (Order::Drain(device(fields, "device")?), &[Verb::Drain], &["device"]),
            Verb::Undrain => (Order::Undrain(device(fields, "device")?), &[Verb::Undrain], &["device"]),
            Verb::Prefer => {
                let named = required(fields, "device").and_then(|_| device_or_null(fields, "device"))?;
                (Order::Prefer(named), &[Verb::Prefer], &["device"])
            }
            Verb::Pause | Verb::Status | Verb::Why | Verb::Timing => {
                (Order::Pause(lasts(fields)?), &[Verb::Pause], &["for_ms"])
            }
        })
    })
    .map(|request| Request { actor: "IoT Hub method", ..request })
}

/// The commands in the `quorate` section of a module twin's desired properties: `prefer`, `drain`, `pause`, `transfer` and
/// `timing`, each with `{"id", "expires", ...}`. Each is one request; to withdraw one, write another or `null`. `resume` and
/// `undrain` are methods alone: as properties they are refused with what to write instead.
pub fn desired(section: &Value) -> Vec<Result<Request, Malformed>> {
    const VERBS: [Verb; 5] = [Verb::Pause, Verb::Prefer, Verb::Drain, Verb::Timing, Verb::Transfer];
    let entries =
        VERBS.into_iter().filter_map(|verb| Some((verb, section.get(verb.name()).filter(|v| !v.is_null())?)));
    let known = entries.map(|(verb, entry)| one_desired(verb, entry));
    let methods = METHODS_ALONE.iter().filter_map(|(verb, instead)| {
        let entry = section.get(verb.name()).filter(|v| !v.is_null())?;
        let id = entry.as_object().and_then(|fields| id(fields).ok()).unwrap_or_default();
        let reason = format!("there is no property {verb}; {instead}, and null here");
        Some(Err(Malformed { verb: Some(*verb), own_key: true, id, status: 400, reason }))
    });
    known.chain(methods).collect()
}

fn one_desired(verb: Verb, entry: &Value) -> Result<Request, Malformed> {
    let request = read(verb, entry, |fields| {
        Ok(match verb {
            Verb::Prefer => {
                let named = required(fields, "device").and_then(|_| device_or_null(fields, "device"))?;
                (Order::Prefer(named), &[Verb::Prefer][..], &["device"][..])
            }
            // What is not in the list is undrained.
            Verb::Drain => (
                Order::DrainExactly(devices(fields, "devices")?),
                &[Verb::Drain, Verb::Undrain],
                &["devices"],
            ),
            Verb::Transfer => (Order::Transfer(Some(device(fields, "to")?)), &[Verb::Transfer], &["to"]),
            Verb::Timing => (Order::Timing(stretch(fields)?), &[Verb::Timing], &["stretch"]),
            _ => match required(fields, "on")? {
                Value::Bool(true) => (Order::Pause(lasts(fields)?), &[Verb::Pause], &["on", "for_ms"]),
                Value::Bool(false) => (Order::Resume, &[Verb::Resume], &["on"]),
                _ => return Err("on: is neither true nor false".into()),
            },
        })
    });
    let actor = "IoT Hub twin";
    request.map(|request| match request.order {
        Some(Order::Resume) => Request { verb: Verb::Resume, actor, ..request },
        _ => Request { actor, ..request },
    })
}

fn question(verb: Verb) -> Request {
    let takes: &[Verb] = if verb == Verb::Why { &[Verb::Why] } else { &[Verb::Status] };
    Request {
        verb,
        takes,
        id: String::new(),
        order: None,
        expires_unix_ms: 0,
        base: None,
        site: None,
        reason: String::new(),
        actor: "",
        begun: false,
    }
}

/// Reads what all commands have in common. `own` reads the rest, and says which verbs the order takes and which fields
/// are its own.
fn read(
    verb: Verb,
    payload: &Value,
    own: impl FnOnce(&Map<String, Value>) -> Result<Own, Fault>,
) -> Result<Request, Malformed> {
    let malformed =
        |id: String, reason: Fault| Malformed { verb: Some(verb), own_key: false, id, status: 400, reason };
    let Value::Object(fields) = payload else {
        return Err(malformed(
            String::new(),
            "the payload is not an object; write at least {\"id\", \"expires\"}".into(),
        ));
    };
    let id = id(fields).map_err(|reason| malformed(String::new(), reason))?;
    let rest = || {
        let (order, takes, its_own) = own(fields)?;
        if let Some(other) =
            fields.keys().find(|key| !COMMON.contains(&key.as_str()) && !its_own.contains(&key.as_str()))
        {
            return Err(format!("{}: is not a field of this command", shown(other)));
        }
        Ok(Request {
            verb,
            takes,
            id: id.clone(),
            order: Some(order),
            expires_unix_ms: expires(fields)?,
            base: base(fields)?,
            site: text(fields, "site", 128)?,
            reason: text(fields, "reason", REASON_MAX)?.unwrap_or_default(),
            actor: "",
            begun: false,
        })
    };
    rest().map_err(|reason| malformed(id.clone(), reason))
}

/// The beginning of a text, without anything that could disturb a log.
fn shown(text: &str) -> String {
    text.chars().take(32).map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn required<'a>(fields: &'a Map<String, Value>, key: &str) -> Result<&'a Value, Fault> {
    fields.get(key).ok_or_else(|| format!("{key}: is missing"))
}

fn id(fields: &Map<String, Value>) -> Result<String, Fault> {
    let fits = |id: &&str| {
        (1..=ID_MAX).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.:-".contains(&b))
    };
    let id = required(fields, "id")?.as_str().filter(fits);
    id.map(str::to_owned).ok_or_else(|| {
        "id: is not a text of 1 to 64 letters, digits and _ . : -; write one that is used once".into()
    })
}

fn expires(fields: &Map<String, Value>) -> Result<u64, Fault> {
    let moment = required(fields, "expires")?.as_str().filter(|text| text.len() <= MOMENT_MAX);
    moment
        .and_then(wall::from_rfc3339)
        .ok_or_else(|| "expires: is no moment in UTC such as 2026-11-02T08:15:30Z".into())
}

fn base(fields: &Map<String, Value>) -> Result<Option<Epoch>, Fault> {
    match fields.get("base_epoch") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().and_then(Epoch::new) {
            Some(epoch) => Ok(Some(epoch)),
            None => {
                Err("base_epoch: is no epoch; write the number that the twins show, or leave it out".into())
            }
        },
    }
}

fn text(fields: &Map<String, Value>, key: &str, max: usize) -> Result<Option<String>, Fault> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.len() <= max && !text.chars().any(char::is_control) => {
            Ok(Some(text.clone()))
        }
        Some(_) => Err(format!("{key}: is not one plain line of at most {max} bytes")),
    }
}

fn name(value: &Value, key: &str) -> Result<DeviceId, Fault> {
    let text = value.as_str().ok_or_else(|| format!("{key}: is not the name of a device"))?;
    DeviceId::new(text).map_err(|why| format!("{key}: the name {why}"))
}

fn device(fields: &Map<String, Value>, key: &str) -> Result<DeviceId, Fault> {
    name(required(fields, key)?, key)
}

fn device_or_null(fields: &Map<String, Value>, key: &str) -> Result<Option<DeviceId>, Fault> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => name(value, key).map(Some),
    }
}

fn devices(fields: &Map<String, Value>, key: &str) -> Result<Vec<DeviceId>, Fault> {
    match required(fields, key)? {
        Value::Array(all) if all.len() <= DEVICES_MAX => all.iter().map(|value| name(value, key)).collect(),
        _ => Err(format!("{key}: is not a list of at most {DEVICES_MAX} names")),
    }
}

fn stretch(fields: &Map<String, Value>) -> Result<Option<u32>, Fault> {
    match required(fields, "stretch")? {
        Value::Null => Ok(None),
        value => match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
            Some(n) if (CONFIGURED..=STRETCH_MAX).contains(&n) => Ok(Some(n)),
            _ => Err(format!(
                "stretch: is neither null nor a number of hundredths from {CONFIGURED} to {STRETCH_MAX}"
            )),
        },
    }
}

/// For how long, if it says so.
fn lasts(fields: &Map<String, Value>) -> Result<Option<Duration>, Fault> {
    match fields.get("for_ms") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().filter(|ms| PAUSE_MS.contains(ms)) {
            Some(ms) => Ok(Some(Duration::from_millis(ms))),
            None => Err(format!(
                "for_ms: is no number of milliseconds from {} to {}; leave it out for a pause without an end",
                PAUSE_MS.start(),
                PAUSE_MS.end()
            )),
        },
    }
}
