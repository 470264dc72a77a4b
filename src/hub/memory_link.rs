//! A module's link to a hub in memory, straight or through an edgeHub of its own, for simulated sites and for tests.
//!
//! The edgeHub behaves as IoT Edge's does where that matters: it takes a patch at once and without a version, pushes what has
//! gathered upstream every five seconds at most, tries a push that failed again only at the next patch or when the cloud is
//! back, and answers a reading from its own copy while the cloud is away. Deterministic, like the hub itself; no credentials.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tokio::sync::mpsc;

use super::{
    BoxFuture, Error, Hub,
    link::{Connected, Event, Link, Message, Module, OwnTwin},
    memory::MemoryHub,
    target::Target,
    twin::{Properties, Twin, merge},
};
use crate::clock::Moment;

/// How long a message takes from one end of a link to the other.
const TRAVEL: Duration = Duration::from_millis(10);
/// How often a link looks whether the other side has something to say.
const LOOK: Duration = Duration::from_millis(500);
/// An edgeHub pushes upstream this often at most.
const PUSH: Duration = Duration::from_secs(5);
/// Events that may wait to be taken.
const EVENTS: usize = 64;

/// What a module has said besides its twin, oldest first.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// It answered a call.
    Answer(String, u16, Value),
    /// It sent a message to an output.
    Sent(String, Message),
    /// It settled an input.
    Settled(u64),
}

/// A module's line to a hub in memory. Clones are the same line.
#[derive(Debug, Clone)]
pub struct MemoryModule {
    hub: MemoryHub,
    target: Target,
    /// Between the module and whatever it connects to.
    cut: Arc<AtomicBool>,
    edge: Option<Arc<Mutex<EdgeHub>>>,
    events: Arc<Mutex<Option<mpsc::Sender<Event>>>>,
    said: Arc<Mutex<Vec<Said>>>,
}

/// What an edgeHub keeps for its module, also while that is not connected.
#[derive(Debug, Default)]
struct EdgeHub {
    /// Between the edgeHub and the cloud.
    cut: bool,
    stored: OwnTwin,
    pending: Properties,
    /// When the next push may begin; `None` after one that failed.
    due: Option<Moment>,
    pushed: Option<Moment>,
    was_away: bool,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unreachable(what: &str) -> Error {
    Error::Unreachable(what.to_owned())
}

fn own(twin: Twin) -> OwnTwin {
    OwnTwin {
        desired: twin.desired.values,
        desired_version: twin.desired.version,
        reported: twin.reported.values,
        reported_version: twin.reported.version,
    }
}

impl MemoryModule {
    /// The line of a module that exists in the hub; with `edge` through an edgeHub.
    pub fn new(hub: MemoryHub, target: Target, edge: bool) -> MemoryModule {
        MemoryModule {
            hub,
            target,
            cut: Arc::default(),
            edge: edge.then(Arc::default),
            events: Arc::default(),
            said: Arc::default(),
        }
    }

    /// Cuts or mends the line between the module and what it connects to.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }

    /// Cuts or mends the line to the cloud: the edgeHub's, where there is one.
    pub fn cut_off_the_cloud(&self, cut: bool) {
        match &self.edge {
            Some(edge) => lock(edge).cut = cut,
            None => self.cut(cut),
        }
    }

    /// Something comes in. `false` if the module is not connected.
    pub fn push(&self, event: Event) -> bool {
        lock(&self.events).as_ref().is_some_and(|events| events.try_send(event).is_ok())
    }

    /// What the module has said besides its twin.
    pub fn said(&self) -> Vec<Said> {
        lock(&self.said).clone()
    }

    fn checked(&self) -> Result<(), Error> {
        match self.cut.load(Ordering::SeqCst) {
            true => Err(unreachable("the line is cut")),
            false => Ok(()),
        }
    }

    /// The cloud, if it can be reached from the edgeHub, or from the module where there is none.
    fn cloud(&self) -> Result<&MemoryHub, Error> {
        match self.edge.as_ref().is_some_and(|edge| lock(edge).cut) {
            true => Err(unreachable("the line to the cloud is cut")),
            false => Ok(&self.hub),
        }
    }

    /// The link's own work: it ends when the link does.
    async fn run(self, link: Option<u64>, alive: mpsc::Sender<()>) -> Result<(), Error> {
        let mut desired = None;
        loop {
            tokio::select! {
                () = alive.closed() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
            self.checked()?;
            if link.is_some_and(|link| !self.hub.link_stands(&self.target, link)) {
                return Err(unreachable("the hub has closed the link"));
            }
            if let Some(edge) = &self.edge {
                self.forward(edge).await;
            }
            let known = desired.as_ref().map(|(version, _)| *version);
            let newer = self.cloud().ok().and_then(|hub| hub.newer_desired(&self.target, known));
            let Some((version, values)) = newer else { continue };
            if let Some((_, before)) = desired.replace((version, values.clone())) {
                let mut patch = values;
                for gone in
                    before.keys().filter(|name| !patch.contains_key(*name)).cloned().collect::<Vec<_>>()
                {
                    patch.insert(gone, Value::Null);
                }
                self.push(Event::Desired { patch, version });
            }
        }
    }

    /// The edgeHub's push, when it is time for one.
    async fn forward(&self, edge: &Mutex<EdgeHub>) {
        let away = self.cloud().is_err() || self.hub.knock().await.is_err();
        let patch = {
            let mut edge = lock(edge);
            let back = std::mem::replace(&mut edge.was_away, away) && !away;
            if back {
                edge.due = Some(self.hub.now());
            }
            match edge.due {
                Some(due) if due <= self.hub.now() && !edge.pending.is_empty() => edge.pending.clone(),
                _ => return,
            }
        };
        let pushed = match self.cloud() {
            Ok(hub) => hub.report_of_module(&self.target, &patch).await.map(drop),
            Err(error) => Err(error),
        };
        let mut edge = lock(edge);
        edge.due = None;
        edge.pushed = Some(self.hub.now());
        if pushed.is_ok() && edge.pending == patch {
            edge.pending.clear();
        }
    }
}

impl Module for MemoryModule {
    fn name(&self) -> &str {
        "memory"
    }

    fn target(&self) -> &Target {
        &self.target
    }

    fn stores_and_forwards(&self) -> bool {
        self.edge.is_some()
    }

    fn knock(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.checked()?;
            if self.edge.is_some() { Ok(()) } else { self.hub.knock().await }
        })
    }

    fn connect(&self) -> BoxFuture<'_, Result<Connected, Error>> {
        Box::pin(async move {
            tokio::time::sleep(TRAVEL).await;
            self.checked()?;
            let link = match self.edge {
                Some(_) => None,
                None => Some(self.hub.link_of_module(&self.target).await?),
            };
            let (sender, events) = mpsc::channel(EVENTS);
            *lock(&self.events) = Some(sender);
            // Lives as long as the link's users do.
            let (alive, held) = mpsc::channel(1);
            let users = Users { module: self.clone(), _held: held };
            Ok(Connected { link: Arc::new(users), events, runs: Box::pin(self.clone().run(link, alive)) })
        })
    }
}

struct Users {
    module: MemoryModule,
    _held: mpsc::Receiver<()>,
}

impl Users {
    async fn travel(&self) -> Result<&MemoryModule, Error> {
        tokio::time::sleep(TRAVEL).await;
        self.module.checked()?;
        Ok(&self.module)
    }

    async fn say(&self, said: Said) -> Result<(), Error> {
        let module = self.travel().await?;
        lock(&module.said).push(said);
        Ok(())
    }
}

impl Link for Users {
    fn get_twin(&self) -> BoxFuture<'_, Result<OwnTwin, Error>> {
        Box::pin(async move {
            let module = self.travel().await?;
            let asked = match module.cloud() {
                Ok(hub) => hub.get_twin(&module.target).await.map(own),
                Err(error) => Err(error),
            };
            let Some(edge) = &module.edge else { return asked };
            let mut edge = lock(edge);
            if let Ok(twin) = asked {
                edge.stored = twin.clone();
                return Ok(twin);
            }
            Ok(edge.stored.clone())
        })
    }

    fn report<'a>(&'a self, patch: &'a Properties) -> BoxFuture<'a, Result<Option<u64>, Error>> {
        Box::pin(async move {
            let module = self.travel().await?;
            let Some(edge) = &module.edge else {
                return module.hub.report_of_module(&module.target, patch).await.map(Some);
            };
            let mut edge = lock(edge);
            merge(&mut edge.stored.reported, patch);
            gather(&mut edge.pending, patch);
            let now = module.hub.now();
            edge.due = Some(edge.pushed.map_or(now, |pushed| now.max(pushed + PUSH)));
            Ok(None)
        })
    }

    fn answer<'a>(
        &'a self,
        call: &'a str,
        status: u16,
        payload: &'a Value,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.say(Said::Answer(call.to_owned(), status, payload.clone())))
    }

    fn send<'a>(&'a self, output: &'a str, message: &'a Message) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.say(Said::Sent(output.to_owned(), message.clone())))
    }

    fn settle(&self, input: u64) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.say(Said::Settled(input)))
    }
}

/// Two patches as one: what deletes stays in it.
fn gather(into: &mut Properties, patch: &Properties) {
    for (name, value) in patch {
        match (into.get_mut(name), value) {
            (Some(Value::Object(below)), Value::Object(more)) => gather(below, more),
            _ => {
                into.insert(name.clone(), value.clone());
            }
        }
    }
}
