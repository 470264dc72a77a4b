//! A hub in memory with the real hub's rules, for simulated sites and for tests.
//!
//! It is deterministic: chance only from a seed, no threads, time only through the clock it is given and tokio's
//! (pausable) timer. Trouble is switched on from outside, for the hub ([`MemoryHub::trouble`], [`MemoryHub::add_trouble`])
//! or for one device's line to it ([`Line`]), and limits by a plan ([`MemoryHub::limit`]). It checks no credentials, but
//! its troubles refuse them; the emulator checks them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub use super::trouble::Trouble;
use super::{
    BoxFuture, Error, Hub,
    store::{IfMatch, Refusal, Stamp, Store, Target, Write},
    throttle::{Count, Operation, Plan, Throttle, Verdict},
    trouble::{Asked, Fate, Rule, Troubles, Turned},
    twin::{Change, Manner, Properties, Twin},
};
use crate::{
    clock::{Clock, Moment},
    id::DeviceId,
};

/// How long a call waits for an answer, as the real client would.
const DEADLINE: Duration = Duration::from_secs(10);
/// How far clocks may differ before tokens are refused.
const SKEW_S: u64 = 300;
/// The most writes remembered.
const LOG_MAX: usize = 100_000;

#[derive(Debug, Default)]
struct Inner {
    store: Store,
    troubles: Troubles,
    throttle: Option<Throttle>,
    log: Vec<Write>,
    rollbacks: Vec<Rollback>,
    requests: u64,
    /// The number of each module's newest link.
    links: BTreeMap<Target, u64>,
}

/// The hub has lost writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rollback {
    /// When, on the hub's clock.
    pub at: Moment,
    /// Everything after this moment is lost.
    pub to: Moment,
    /// How many changes are lost.
    pub lost: usize,
}

/// The hub. Cheap to clone: all clones are the same hub.
#[derive(Debug, Clone)]
pub struct MemoryHub {
    inner: Arc<Mutex<Inner>>,
    clock: Arc<dyn Clock>,
}

impl MemoryHub {
    /// A hub that knows nobody.
    pub fn new(clock: Arc<dyn Clock>) -> MemoryHub {
        MemoryHub { inner: Arc::default(), clock }
    }

    /// Creates a device; one that exists stays as it is.
    pub fn create(&self, device: &DeviceId) {
        let at = self.stamp();
        let created = self.lock().store.create(&Target::device(device.as_str()), true, at).is_ok();
        tracing::trace!(%device, created, "device created in the hub in memory");
    }

    /// Deletes a device and its twin, if it exists.
    pub fn delete(&self, device: &DeviceId) {
        let at = self.stamp();
        let deleted = self.lock().store.delete(&Target::device(device.as_str()), &IfMatch::Any, at).is_ok();
        tracing::trace!(%device, deleted, "device deleted from the hub in memory");
    }

    /// Deletes a device and creates one of the same name: another identity, with an empty twin.
    pub fn recreate(&self, device: &DeviceId) {
        self.delete(device);
        self.create(device);
    }

    /// Enables or disables a device; one that does not exist stays so. Its twin can be read and written all the same.
    pub fn enable(&self, device: &DeviceId, enabled: bool) {
        let (at, target) = (self.stamp(), Target::device(device.as_str()));
        let changed = self.lock().store.update(&target, enabled, true, &IfMatch::Any, at).is_ok();
        tracing::trace!(%device, enabled, changed, "device switched in the hub in memory");
    }

    /// A device's twin, past all trouble.
    pub fn twin(&self, device: &DeviceId) -> Option<Twin> {
        self.lock().store.get(&Target::device(device.as_str())).ok().map(|entry| entry.twin.clone())
    }

    /// A write by somebody else, past all trouble. `false` if the hub refuses it.
    pub fn meddle(&self, device: &DeviceId, change: &Change) -> bool {
        self.write(&device.into(), change, &IfMatch::Any).is_ok()
    }

    /// What the device says of itself, past all trouble. `false` if the hub refuses it.
    pub fn report(&self, device: &DeviceId, patch: &Properties) -> bool {
        let at = self.stamp();
        self.lock().store.report(&Target::device(device.as_str()), patch, at).is_ok()
    }

    /// Creates a module of a device that exists; one that exists stays as it is.
    pub fn create_module(&self, target: &Target) {
        let at = self.stamp();
        let created = self.lock().store.create(target, false, at).is_ok();
        tracing::trace!(%target, created, "module created in the hub in memory");
    }

    /// Deletes a module and creates one of the same name: another identity, with an empty twin.
    pub fn recreate_module(&self, target: &Target) {
        let at = self.stamp();
        let deleted = self.lock().store.delete(target, &IfMatch::Any, at).is_ok();
        tracing::trace!(%target, deleted, "module deleted from the hub in memory");
        self.create_module(target);
    }

    /// A module's twin, past all trouble.
    pub fn module_twin(&self, target: &Target) -> Option<Twin> {
        self.lock().store.get(target).ok().map(|entry| entry.twin.clone())
    }

    /// A write to a module's twin by somebody else, past all trouble. `false` if the hub refuses it.
    pub fn meddle_with_module(&self, target: &Target, change: &Change) -> bool {
        self.write(target, change, &IfMatch::Any).is_ok()
    }

    /// What a module says of itself, through all limits and troubles. Returns the section's new version.
    pub(super) async fn report_of_module(&self, target: &Target, patch: &Properties) -> Result<u64, Error> {
        let bytes = serde_json::Value::Object(patch.clone()).to_string().len();
        let write = || {
            let at = self.stamp();
            Ok(self.lock().store.report(target, patch, at)?.twin.reported.version)
        };
        self.call(target, Operation::TwinUpdate, bytes as u64, write).await
    }

    /// A link of this identity is made, through all limits and troubles; it ends the one before. Returns its number.
    pub(super) async fn link_of_module(&self, target: &Target) -> Result<u64, Error> {
        let connect = || {
            let mut inner = self.lock();
            let enabled = inner.store.get(target)?.enabled;
            let link = inner.links.entry(target.clone()).or_default();
            *link += 1;
            Ok(Some(*link).filter(|_| enabled))
        };
        let disabled = || Error::Unauthorized { status: 401, detail: "the identity is disabled".into() };
        self.call(target, Operation::Connection, 0, connect).await?.ok_or_else(disabled)
    }

    /// The desired properties and their version, if it is another one than `known`.
    pub(super) fn newer_desired(&self, target: &Target, known: Option<u64>) -> Option<(u64, Properties)> {
        let inner = self.lock();
        let desired = &inner.store.get(target).ok()?.twin.desired;
        (Some(desired.version) != known).then(|| (desired.version, desired.values.clone()))
    }

    /// The hub's own clock.
    pub(super) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Whether this is still the identity's link.
    pub(super) fn link_stands(&self, target: &Target, link: u64) -> bool {
        let mut inner = self.lock();
        !inner.troubles.is_cut_off(self.clock.now()) && inner.links.get(target) == Some(&link)
    }

    /// Ends all troubles and switches to this one.
    pub fn trouble(&self, trouble: Trouble) {
        let at = self.stamp();
        self.lock().troubles.only(trouble, at.moment, at.wall_ms);
    }

    /// Switches a trouble on beside the others and returns its number.
    ///
    /// # Errors
    /// One sentence, if the rule is wrong or too many are on.
    pub fn add_trouble(&self, rule: Rule) -> Result<u64, String> {
        let at = self.stamp();
        self.lock().troubles.add(rule, at.moment, at.wall_ms)
    }

    /// Switches the trouble of this number off.
    pub fn end_trouble(&self, id: u64) {
        let _was_on = self.lock().troubles.remove(id);
    }

    /// From now on the chances of troubles are thrown from this seed.
    pub fn seed(&self, seed: u64) {
        self.lock().troubles.seed(seed);
    }

    /// Limits the hub to what this plan allows; `None`: not at all, as at first.
    pub fn limit(&self, plan: Option<Plan>) {
        self.lock().throttle = plan.map(Throttle::new);
    }

    /// What the limits have let through so far, of this kind of operation.
    pub fn count(&self, operation: Operation) -> Count {
        let counts = |throttle: &Throttle| throttle.counts().get(&operation).copied();
        self.lock().throttle.as_ref().and_then(counts).unwrap_or_default()
    }

    /// Loses the changes of the last while, as a failover to another region does.
    pub fn rollback(&self, by: Duration) -> Rollback {
        let at = self.clock.now();
        let mut inner = self.lock();
        let rollback = Rollback { at, to: at.before(by), lost: inner.store.rollback(by, at) };
        inner.rollbacks.push(rollback);
        rollback
    }

    /// Every [`rollback`](Self::rollback) so far, oldest first.
    pub fn rollbacks(&self) -> Vec<Rollback> {
        self.lock().rollbacks.clone()
    }

    /// Every accepted write so far, oldest first, also those by [`meddle`](Self::meddle).
    pub fn log(&self) -> Vec<Write> {
        self.lock().log.clone()
    }

    /// How many requests have arrived, answered or not.
    pub fn requests(&self) -> u64 {
        self.lock().requests
    }

    /// A line to this hub of its own, which can be cut.
    pub fn line(&self) -> Line {
        Line { hub: self.clone(), cut: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stamp(&self) -> Stamp {
        Stamp::now(&*self.clock)
    }

    fn write(&self, target: &Target, change: &Change, if_match: &IfMatch) -> Result<Twin, Refusal> {
        let at = self.stamp();
        let mut inner = self.lock();
        let entry = inner.store.change(target, change, Manner::Merge, if_match, at)?;
        let twin = Twin { disabled: !entry.enabled, ..entry.twin.clone() };
        if inner.log.len() < LOG_MAX {
            inner.log.push(Write {
                at: at.moment,
                target: target.clone(),
                change: change.clone(),
                version: twin.version,
            });
        }
        Ok(twin)
    }

    /// One request of `bytes`, through all limits and troubles.
    async fn call<T>(
        &self,
        target: &Target,
        operation: Operation,
        bytes: u64,
        act: impl FnOnce() -> Result<T, Refusal> + Send,
    ) -> Result<T, Error> {
        let fate = {
            let now = self.clock.now();
            let mut inner = self.lock();
            inner.requests += 1;
            inner.troubles.fate(&Asked { operation, device: Some(&target.device) }, now)
        };
        refused_by(&fate)?;
        let wait = self.admit(operation, bytes)?;
        // Shaped requests are applied when their turn comes; a slow hub applies first and answers late.
        if wait > Duration::ZERO {
            tokio::time::sleep(wait.min(DEADLINE)).await;
        }
        let result = act().map_err(error);
        if fate.answer_lost && operation == Operation::TwinUpdate {
            return Err(Error::Unreachable("the connection broke before the answer".into()));
        }
        if fate.delay.saturating_add(wait) >= DEADLINE {
            tokio::time::sleep(DEADLINE.saturating_sub(wait)).await;
            return Err(Error::TimedOut { after: DEADLINE });
        }
        if fate.delay > Duration::ZERO {
            tokio::time::sleep(fate.delay).await;
        }
        result
    }

    fn admit(&self, operation: Operation, bytes: u64) -> Result<Duration, Error> {
        let at = self.stamp();
        let Some(throttle) = &mut self.lock().throttle else { return Ok(Duration::ZERO) };
        match throttle.admit(operation, bytes, at.moment, at.wall_ms) {
            Verdict::After(wait) => Ok(wait),
            Verdict::Refused => Err(Error::Throttled { status: 429, retry_after: None }),
            Verdict::QuotaExceeded => Err(Error::Throttled { status: 403, retry_after: None }),
        }
    }
}

/// What the request meets before it is looked at.
fn refused_by(fate: &Fate) -> Result<(), Error> {
    let unauthorized = |detail: &str| Err(Error::Unauthorized { status: 401, detail: detail.to_owned() });
    if fate.unreachable {
        return Err(Error::Unreachable("the hub in memory is switched off".into()));
    }
    match fate.turned {
        Some(Turned::Throttled { retry_after_s }) => {
            Err(Error::Throttled { status: 429, retry_after: retry_after_s.map(Duration::from_secs) })
        }
        Some(Turned::Failing { status }) => {
            Err(Error::Unavailable { status, retry_after: None, detail: "switched on".into() })
        }
        Some(Turned::Quota) => Err(Error::Throttled { status: 403, retry_after: None }),
        None if fate.token_expired => unauthorized("the token has expired"),
        None if fate.ahead_s.unsigned_abs() > SKEW_S => unauthorized("the hub's clock is another"),
        None => Ok(()),
    }
}

fn error(refusal: Refusal) -> Error {
    match refusal {
        Refusal::DeviceNotFound(device) => Error::DeviceMissing { device },
        Refusal::ModuleNotFound(device, module) => {
            Error::DeviceMissing { device: Target::module(&device, &module).to_string() }
        }
        Refusal::PreconditionFailed => Error::Changed,
        Refusal::Exists(_) => Error::Rejected { status: 409, detail: refusal.to_string() },
        Refusal::Malformed(_) | Refusal::Name(_) => {
            Error::Rejected { status: 400, detail: refusal.to_string() }
        }
    }
}

impl Hub for MemoryHub {
    fn name(&self) -> &str {
        "memory"
    }

    fn knock(&self) -> BoxFuture<'_, Result<(), Error>> {
        let away = self.lock().troubles.is_cut_off(self.clock.now());
        let why = || Error::Unreachable("the hub in memory is switched off".into());
        Box::pin(async move { if away { Err(why()) } else { Ok(()) } })
    }

    fn get_twin<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Twin, Error>> {
        let read = move || {
            let store = &self.lock().store;
            let entry = store.get(target)?;
            Ok(Twin { disabled: !entry.enabled, ..entry.twin.clone() })
        };
        Box::pin(self.call(target, Operation::TwinRead, 0, read))
    }

    fn patch_twin<'a>(
        &'a self,
        target: &'a Target,
        change: &'a Change,
        if_match: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Twin, Error>> {
        let if_match = if_match.map_or(IfMatch::Any, |etag| IfMatch::Etag(etag.to_owned()));
        let write = move || self.write(target, change, &if_match);
        let bytes = change.to_json().to_string().len();
        Box::pin(self.call(target, Operation::TwinUpdate, bytes as u64, write))
    }
}

/// One device's own line to a hub in memory. Clones are the same line.
#[derive(Debug, Clone)]
pub struct Line {
    hub: MemoryHub,
    cut: Arc<AtomicBool>,
}

impl Line {
    /// Cuts or mends this line. Calls that are under way still end.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }

    fn checked(&self) -> Result<&MemoryHub, Error> {
        match self.cut.load(Ordering::SeqCst) {
            true => Err(Error::Unreachable("the line is cut".into())),
            false => Ok(&self.hub),
        }
    }
}

impl Hub for Line {
    fn name(&self) -> &str {
        self.hub.name()
    }

    fn knock(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.checked()?.knock().await })
    }

    fn get_twin<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Twin, Error>> {
        Box::pin(async move { self.checked()?.get_twin(target).await })
    }

    fn patch_twin<'a>(
        &'a self,
        target: &'a Target,
        change: &'a Change,
        if_match: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Twin, Error>> {
        Box::pin(async move { self.checked()?.patch_twin(target, change, if_match).await })
    }
}
