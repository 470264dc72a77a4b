//! What people and programs may order, and the one corridor that all orders go through.
//!
//! A person at the command line, a program over gRPC and the cloud (`execute`) differ in how they ask and in what they
//! may ask for; what then happens is the same: a [`Corridor`] looks at who is alive and proposes one command to the
//! record, which executes it once. Nothing else that comes from outside can change who owns. This file deliberately
//! does not know how a request travels: whoever has a link to the hub hands requests in and outcomes back.

mod parse;

use std::{fmt, ops::RangeInclusive, time::Duration};

use ring::digest;
use serde_json::{Value, json};

pub use self::parse::{Malformed, desired, method};
use crate::{
    epoch::Epoch,
    hub::{
        BoxFuture,
        verbs::{Allowed, Verb},
        wall,
    },
    id::{DeviceId, SiteId},
};

/// The longest reason that is kept, in bytes.
pub const REASON_MAX: usize = 256;
/// The longest name of who asks, in bytes.
pub const ACTOR_MAX: usize = 128;
/// The longest reason that a twin is told, in bytes: one value too long, and the hub refuses all that is said with it.
const TOLD_MAX: usize = 512;
/// A command from the cloud is valid for at most so long.
const VALID_MAX_MS: u64 = 7 * 24 * 3600 * 1000;
/// The first moment of 2024: no clock that is right shows less.
pub(crate) const CLOCK_MIN_MS: u64 = 1_704_067_200_000;
/// How many milliseconds a pause that ends by itself may last: a second to a year.
pub const PAUSE_MS: RangeInclusive<u64> = 1_000..=366 * 24 * 3600 * 1000;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// A planned handover; `None` lets the site choose.
    Transfer(Option<DeviceId>),
    /// Nobody takes over of its own accord any more; for so long, or until somebody resumes.
    Pause(Option<Duration>),
    /// Everybody may take over again.
    Resume,
    /// This device shall not own.
    Drain(DeviceId),
    /// It may again.
    Undrain(DeviceId),
    /// Exactly these devices shall not own.
    DrainExactly(Vec<DeviceId>),
    /// This device comes first where one is chosen; `None` for no preference.
    Prefer(Option<DeviceId>),
    /// The timing gets no narrower than so many hundredths of the configured one; `None` lifts that.
    Timing(Option<u32>),
}

impl fmt::Display for Order {
    /// As it is written on the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Order::Transfer(None) => f.write_str("transfer"),
            Order::Transfer(Some(to)) => write!(f, "transfer --to {to}"),
            Order::Pause(None) => f.write_str("pause"),
            Order::Pause(Some(time)) => write!(f, "pause --for {}s", time.as_secs()),
            Order::Resume => f.write_str("resume"),
            Order::Drain(device) => write!(f, "drain {device}"),
            Order::Undrain(device) => write!(f, "undrain {device}"),
            Order::DrainExactly(devices) => {
                let names: Vec<&str> = devices.iter().map(DeviceId::as_str).collect();
                write!(f, "drain exactly [{}]", names.join(", "))
            }
            Order::Prefer(None) => f.write_str("prefer --none"),
            Order::Prefer(Some(device)) => write!(f, "prefer {device}"),
            Order::Timing(None) => f.write_str("timing as configured"),
            Order::Timing(Some(least)) => {
                write!(f, "timing at least {} times as long", f64::from(*least) / 100.0)
            }
        }
    }
}

/// An order with everything that is said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Two wishes with the same number are one. `None` for a wish that nobody repeats.
    pub id: Option<u64>,
    /// What is wanted.
    pub order: Order,
    /// Why: at most [`REASON_MAX`] bytes, no control characters; may be empty.
    pub reason: String,
    /// Who asks: at most [`ACTOR_MAX`] bytes, no control characters, never empty.
    pub actor: String,
    /// The epoch that it is about, if it is void once another ownership began.
    pub base: Option<Epoch>,
    /// Until when it may be repeated, by wall clocks; 0 for a wish that nobody keeps.
    pub expires_unix_ms: u64,
}

/// What came of a wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fulfilled {
    /// It had been executed before, or is so already, and nothing was done now.
    pub repeated: bool,
    /// The record's epoch after it was executed.
    pub epoch: Epoch,
    /// Who owns after it, where it was about that.
    pub owner: Option<DeviceId>,
}

/// Why a wish was not fulfilled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A device that is named is not a member of this site.
    #[error("{0}")]
    NoSuchDevice(String),
    /// The target may not own, or nobody else may, or it owns already.
    #[error("{0}")]
    Unfit(String),
    /// Another ownership began, or another change came first.
    #[error("{0}")]
    Stale(String),
    /// It cannot be decided now: no quorum, no leader, another handover under way.
    #[error("{0}")]
    NotNow(String),
    /// It was begun, and whether it took effect is not known. The same wish again tells.
    #[error("{0}")]
    Unconfirmed(String),
}

/// The way from an order to the record.
pub trait Corridor: Send + Sync {
    /// The site.
    fn site(&self) -> &SiteId;

    /// The record's epoch, as far as this device knows.
    fn epoch(&self) -> Epoch;

    /// Everything that this sidecar knows about its site: the document of `GET /v1/status`.
    fn status(&self) -> Value;

    /// The last decision of this device and the last ownerships: `{"decision", "decided_unix_ms", "changes"}`.
    fn why(&self) -> Value;

    /// The epoch after which a wish with this number was executed, if it was and is remembered here.
    fn executed(&self, id: u64) -> Option<Epoch>;

    /// Fulfils a wish, or says why not. Returns when it is committed; a handover, when the next owner has claimed, or
    /// after about a minute. Dropping the future does not undo anything.
    ///
    /// # Errors
    /// [`Refusal`], with the reason to show.
    fn order(&self, wish: Wish) -> BoxFuture<'_, Result<Fulfilled, Refusal>>;
}

/// A well-formed request from the cloud. Made by [`method`] and [`desired`] alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    verb: Verb,
    /// The verbs that it takes; more than one where it could undo what another did.
    takes: &'static [Verb],
    /// The text by which a repeat is known; empty for questions.
    id: String,
    /// `None` for questions.
    order: Option<Order>,
    expires_unix_ms: u64,
    base: Option<Epoch>,
    site: Option<String>,
    reason: String,
    actor: &'static str,
    /// An earlier attempt was begun, and what became of it is not known.
    begun: bool,
}

impl Request {
    /// What is asked for, as the twin's key says it.
    pub fn verb(&self) -> Verb {
        self.verb
    }

    /// The same, and whether an earlier attempt at it was begun ([`Outcome::is_begun`]).
    #[must_use]
    pub fn tried(self, begun: bool) -> Request {
        Request { begun, ..self }
    }

    /// The number by which the record knows a repeat.
    pub fn number(&self) -> u64 {
        let hash = digest::digest(&digest::SHA256, format!("{}\0{}", self.verb, self.id).as_bytes());
        hash.as_ref().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

/// Whether `commands`, as it was reported before ([`Outcome::reported`]), answers this very request. Then it is not to be
/// executed again: a sidecar that restarts reads old requests once more.
pub fn is_answered(request: &Result<Request, Malformed>, commands: &Value) -> bool {
    let (key, id, reason) = match request {
        Ok(request) => (Some(key(request.verb)), &request.id, None),
        Err(malformed) => (malformed.key(), &malformed.id, Some(&malformed.reason)),
    };
    let Some(said) = key.and_then(|key| commands.get(key)) else { return false };
    let says = |field: &str, text: &str| said.get(field).and_then(Value::as_str) == Some(text);
    says("id", id) && reason.is_none_or(|reason| says("reason", reason))
}

/// The key in the twin: what lifts an order is reported in that order's place.
fn key(verb: Verb) -> &'static str {
    match verb {
        Verb::Resume => Verb::Pause.name(),
        Verb::Undrain => Verb::Drain.name(),
        verb => verb.name(),
    }
}

impl Malformed {
    fn key(&self) -> Option<&'static str> {
        self.verb.map(|verb| if self.own_key { verb.name() } else { key(verb) })
    }
}

/// What became of a request, to be told to the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Under which key it is kept; `None` for a question, or something that has no name.
    key: Option<&'static str>,
    id: String,
    status: u16,
    said: &'static str,
    reason: String,
    epoch: Epoch,
    answer: Option<Value>,
    /// Something was proposed, and what became of it is not known.
    begun: bool,
}

impl Outcome {
    /// The status of a direct method's answer: 200 done, done before or answered; 400 malformed; 403 not allowed by
    /// `hub.commands`; 404 no such device or method; 409 expired, superseded or for another site; 422 unfit; 503 not now, or not
    /// confirmed.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Whether the same request again would get the same outcome. If not, a desired property is tried again until it is.
    pub fn is_final(&self) -> bool {
        self.status != 503
    }

    /// Whether it was begun, and what became of it is not known: it may take effect later, even after it has expired.
    pub fn is_begun(&self) -> bool {
        self.begun
    }

    /// The payload of a direct method's answer: the document asked for, or `{"outcome", "reason", "epoch"}`.
    pub fn reply(&self) -> Value {
        let Outcome { said, reason, epoch, answer, .. } = self;
        answer.clone().unwrap_or_else(|| json!({"outcome": said, "reason": reason, "epoch": epoch}))
    }

    /// What the twin's `reported` says of it, as a patch to `commands`: `{<key>: {"id", "outcome", "reason", "epoch", "at"}}`.
    /// Only the newest of each kind is kept, so it stays small. `None` if there is nothing to keep: a question, or
    /// something that has no name.
    pub fn reported(&self, wall_ms: u64) -> Option<Value> {
        Some(json!({ self.key?: self.told(wall_ms) }))
    }

    /// The same for a direct method, `method_<key>`: it must not hide what became of a desired property, which would then
    /// be executed anew.
    pub fn reported_of_method(&self, wall_ms: u64) -> Option<Value> {
        Some(json!({ format!("method_{}", self.key?): self.told(wall_ms) }))
    }

    fn told(&self, wall_ms: u64) -> Value {
        let Outcome { id, said, reason, epoch, .. } = self;
        let at = wall::rfc3339(wall_ms);
        json!({"id": id, "outcome": said, "reason": cut(reason), "epoch": epoch, "at": at})
    }
}

/// Executes a request from the cloud, if it is allowed, in time and for this site. `wall_ms` is this device's wall clock: what
/// may be done until a certain time can be judged by nothing else.
///
/// Cancel-safe as [`Corridor::order`] is.
pub async fn execute(
    corridor: &dyn Corridor,
    allowed: &Allowed,
    wall_ms: u64,
    request: Result<Request, Malformed>,
) -> Outcome {
    let outcome = |key, id: &str, status, said, reason: String| Outcome {
        key,
        id: id.to_owned(),
        status,
        said,
        reason,
        epoch: corridor.epoch(),
        answer: None,
        begun: false,
    };
    let request = match request {
        Ok(request) => request,
        Err(malformed) => {
            let key = malformed.key();
            let Malformed { id, status, reason, .. } = malformed;
            return outcome(key, &id, status, "refused", reason);
        }
    };
    let id = request.id.clone();
    let key = Some(key(request.verb)).filter(|_| !request.verb.asks());
    let refused = |status, reason| outcome(key, &id, status, "refused", reason);
    if let Some(missing) = request.takes.iter().find(|verb| !allowed.allows(**verb)) {
        return refused(403, format!("this site takes no {missing} from the cloud: see hub.commands"));
    }
    if let Some(site) = request.site.as_ref().filter(|site| *site != corridor.site().as_str()) {
        let shown: String = site.chars().take(128).collect();
        return refused(409, format!("it is for the site {shown}, and this is {}", corridor.site()));
    }
    let Some(order) = request.order.clone() else {
        let answer = if request.verb == Verb::Why { corridor.why() } else { corridor.status() };
        return Outcome { answer: Some(answer), ..outcome(key, "", 200, "done", String::new()) };
    };
    let number = request.number();
    if corridor.executed(number).is_none()
        && let Err((status, reason)) = in_time(request.expires_unix_ms, wall_ms)
    {
        return match request.begun && status == 409 {
            true => {
                let reason = format!("{reason}; it was begun before, and may still take effect");
                outcome(key, &id, status, "unconfirmed", reason)
            }
            false => Outcome { begun: request.begun, ..refused(status, reason) },
        };
    }
    tracing::info!(id, "{} asks for {}", request.actor, request.verb);
    let wish = Wish {
        id: Some(number),
        order,
        reason: request.reason,
        actor: request.actor.into(),
        base: request.base,
        expires_unix_ms: request.expires_unix_ms,
    };
    match corridor.order(wish).await {
        Ok(Fulfilled { repeated, epoch, owner }) => {
            let said = if repeated { "repeated" } else { "done" };
            let reason = owner.map_or_else(String::new, |owner| format!("{owner} owns"));
            Outcome { epoch, ..outcome(key, &id, 200, said, reason) }
        }
        Err(refusal) => {
            let status = match &refusal {
                Refusal::NoSuchDevice(_) => 404,
                Refusal::Unfit(_) => 422,
                Refusal::Stale(_) => 409,
                Refusal::NotNow(_) | Refusal::Unconfirmed(_) => 503,
            };
            let begun = request.begun || matches!(refusal, Refusal::Unconfirmed(_));
            Outcome { begun, ..refused(status, refusal.to_string()) }
        }
    }
}

/// As much of a reason as a twin takes.
fn cut(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(TOLD_MAX)]
}

fn in_time(expires: u64, now: u64) -> Result<(), (u16, String)> {
    if now < CLOCK_MIN_MS {
        let shown = wall::rfc3339(now);
        return Err((503, format!("this device's clock shows {shown}, so it cannot tell what has expired")));
    }
    if expires <= now {
        let (expires, now) = (wall::rfc3339(expires), wall::rfc3339(now));
        return Err((409, format!("it expired at {expires}, and it is {now} here")));
    }
    if expires - now > VALID_MAX_MS {
        return Err((400, "expires: is more than 7 days ahead; write an earlier moment".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
