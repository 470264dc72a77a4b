//! A hub in memory with the real hub's rules, for simulated sites and for tests.
//!
//! It is deterministic: no chance, no threads, time only through the clock it is given and tokio's (pausable) timer.
//! Trouble is switched on from outside, for the whole hub ([`MemoryHub::trouble`]) or for one device's line to it
//! ([`Line`]). It checks no credentials; the emulator does that.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    BoxFuture, Error, Hub,
    store::{IfMatch, Refusal, Store, Target, Write},
    twin::{Change, Manner, Properties, Twin},
    wall,
};
use crate::{clock::Clock, id::DeviceId};

/// What a hub can suffer from. One trouble at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Trouble {
    /// None.
    #[default]
    None,
    /// No connection is accepted, and the existing ones are cut.
    Unreachable,
    /// Every answer takes this long; the request is applied before it.
    Slow {
        /// Milliseconds.
        delay_ms: u64,
    },
    /// Every request is answered with 429.
    Throttled {
        /// Seconds for the `Retry-After` header; without it there is no such header.
        #[serde(default)]
        retry_after_s: Option<u64>,
    },
    /// Every request is answered with this status.
    Failing {
        /// 500 to 599.
        status: u16,
    },
    /// Writes are applied, and the connection is cut instead of answering. Reads are answered.
    DropAnswer,
}

/// How long a call waits for an answer, as the real client would.
const DEADLINE: Duration = Duration::from_secs(10);
/// The most writes remembered.
const LOG_MAX: usize = 100_000;

#[derive(Debug, Default)]
struct Inner {
    store: Store,
    trouble: Trouble,
    log: Vec<Write>,
    requests: u64,
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
        let at = self.at();
        let created = self.lock().store.create(&Target::device(device.as_str()), true, &at).is_ok();
        tracing::trace!(%device, created, "device created in the hub in memory");
    }

    /// Deletes a device and its twin, if it exists.
    pub fn delete(&self, device: &DeviceId) {
        let deleted = self.lock().store.delete(&Target::device(device.as_str()), &IfMatch::Any).is_ok();
        tracing::trace!(%device, deleted, "device deleted from the hub in memory");
    }

    /// A device's twin, past all trouble.
    pub fn twin(&self, device: &DeviceId) -> Option<Twin> {
        self.lock().store.get(&Target::device(device.as_str())).ok().map(|entry| entry.twin.clone())
    }

    /// A write by somebody else, past all trouble. `false` if the hub refuses it.
    pub fn meddle(&self, device: &DeviceId, change: &Change) -> bool {
        self.write(device, change, &IfMatch::Any).is_ok()
    }

    /// What the device says of itself, past all trouble. `false` if the hub refuses it.
    pub fn report(&self, device: &DeviceId, patch: &Properties) -> bool {
        let at = self.at();
        self.lock().store.report(&Target::device(device.as_str()), patch, &at).is_ok()
    }

    /// Switches to this trouble.
    pub fn trouble(&self, trouble: Trouble) {
        self.lock().trouble = trouble;
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

    fn at(&self) -> String {
        wall::rfc3339(self.clock.wall_ms())
    }

    fn write(&self, device: &DeviceId, change: &Change, if_match: &IfMatch) -> Result<Twin, Refusal> {
        let (at, now) = (self.at(), self.clock.now());
        let target = Target::device(device.as_str());
        let mut inner = self.lock();
        let twin = inner.store.change(&target, change, Manner::Merge, if_match, &at)?.twin.clone();
        if inner.log.len() < LOG_MAX {
            inner.log.push(Write { at: now, target, change: change.clone(), version: twin.version });
        }
        Ok(twin)
    }

    async fn call<T>(
        &self,
        writes: bool,
        act: impl FnOnce() -> Result<T, Refusal> + Send,
    ) -> Result<T, Error> {
        let trouble = {
            let mut inner = self.lock();
            inner.requests += 1;
            inner.trouble
        };
        match trouble {
            Trouble::DropAnswer if writes => {
                let _applied = act().is_ok();
                Err(Error::Unreachable("the connection broke before the answer".into()))
            }
            Trouble::None | Trouble::DropAnswer => act().map_err(error),
            Trouble::Unreachable => Err(Error::Unreachable("the hub in memory is switched off".into())),
            Trouble::Throttled { retry_after_s } => {
                Err(Error::Throttled { status: 429, retry_after: retry_after_s.map(Duration::from_secs) })
            }
            Trouble::Failing { status } => {
                Err(Error::Unavailable { status, retry_after: None, detail: "switched on".into() })
            }
            Trouble::Slow { delay_ms } => {
                let result = act().map_err(error);
                let delay = Duration::from_millis(delay_ms);
                if delay >= DEADLINE {
                    tokio::time::sleep(DEADLINE).await;
                    return Err(Error::TimedOut { after: DEADLINE });
                }
                tokio::time::sleep(delay).await;
                result
            }
        }
    }
}

fn error(refusal: Refusal) -> Error {
    match refusal {
        Refusal::DeviceNotFound(device) | Refusal::ModuleNotFound(device, _) => {
            Error::DeviceMissing { device }
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

    fn get_twin<'a>(&'a self, device: &'a DeviceId) -> BoxFuture<'a, Result<Twin, Error>> {
        Box::pin(
            self.call(false, move || {
                Ok(self.lock().store.get(&Target::device(device.as_str()))?.twin.clone())
            }),
        )
    }

    fn patch_twin<'a>(
        &'a self,
        device: &'a DeviceId,
        change: &'a Change,
        if_match: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Twin, Error>> {
        let if_match = if_match.map_or(IfMatch::Any, |etag| IfMatch::Etag(etag.to_owned()));
        Box::pin(self.call(true, move || self.write(device, change, &if_match)))
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

    fn get_twin<'a>(&'a self, device: &'a DeviceId) -> BoxFuture<'a, Result<Twin, Error>> {
        Box::pin(async move { self.checked()?.get_twin(device).await })
    }

    fn patch_twin<'a>(
        &'a self,
        device: &'a DeviceId,
        change: &'a Change,
        if_match: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Twin, Error>> {
        Box::pin(async move { self.checked()?.patch_twin(device, change, if_match).await })
    }
}
