//! An edgeHub behind its links: it takes what modules say at once, and passes it on when it can.
//!
//! What is acknowledged here is stored here, and no more: a report is pushed to the hub at most every few seconds, and a push
//! that fails is tried again only when the module reports once more or the way to the hub is open again. Twins are read at
//! the hub, and from the last copy while that is away. Clients are let in while the hub is away if they were known before.
//!
//! No lock is held while another is taken, but that the links' own may be held while this one's is asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        State, lock,
        mqtt::{
            Admitted, Answer, Backend, Bag, Links, MESSAGE_MAX, NOT_AUTHORISED, Received, Request,
            introduced, own_twin, reported, status, topic,
        },
    },
    EdgeOptions,
    queue::{Message, Queue},
    routes::{Route, Sink},
    twins::Twins,
};
use crate::{
    clock::Moment,
    hub::{
        mqtt::packet::Connect,
        store::{Entry, Target},
        throttle::Operation,
        twin::{Properties, Section},
    },
};

/// How long after a failure messages are sent to the hub again.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest wait of the worker.
const IDLE: Duration = Duration::from_secs(60);
/// The module that holds the routes.
pub(super) const EDGE_HUB: &str = "$edgeHub";

/// One device's edgeHub.
pub(in crate::emulator) struct Gateway {
    pub(super) state: Arc<State>,
    pub(super) device: String,
    pub(super) links: Links,
    pub(super) options: EdgeOptions,
    inner: Mutex<Inner>,
    upstream: Queue,
    inputs: Mutex<BTreeMap<String, Arc<Queue>>>,
    wake: Notify,
    pub(super) stop: CancellationToken,
}

struct Inner {
    /// Whether a person lets it reach the cloud.
    open: bool,
    /// Whether it reached the hub when it last looked.
    online: bool,
    twins: Twins,
    routes: Vec<Route>,
    /// Who could connect when the hub was last asked.
    known: BTreeSet<Target>,
    pushed: Option<Moment>,
    /// Not before this moment are messages sent to the hub.
    again: Moment,
}

impl Gateway {
    pub(super) fn new(state: &Arc<State>, device: &str, options: EdgeOptions) -> Arc<Gateway> {
        let inner = Inner {
            open: true,
            online: false,
            twins: Twins::default(),
            routes: Vec::new(),
            known: BTreeSet::new(),
            pushed: None,
            again: Moment::default(),
        };
        Arc::new(Gateway {
            state: state.clone(),
            device: device.to_owned(),
            links: Links::new(),
            options,
            inner: Mutex::new(inner),
            upstream: Queue::default(),
            inputs: Mutex::default(),
            wake: Notify::new(),
            stop: state.stop.child_token(),
        })
    }

    /// Who is connected to it.
    pub(in crate::emulator) fn links(&self) -> &Links {
        &self.links
    }

    pub(super) fn module(&self, name: &str) -> Target {
        Target::module(&self.device, name)
    }

    /// Lets it reach the cloud, or not.
    pub(super) fn open(&self, open: bool) {
        lock(&self.inner).open = open;
        self.look();
        self.wake.notify_one();
    }

    /// Whether it reaches the hub.
    pub(in crate::emulator) fn is_online(&self) -> bool {
        lock(&self.inner).online
    }

    /// Whether something that this module has reported is not known to have reached the hub.
    pub(super) fn waits(&self, module: &str) -> bool {
        lock(&self.inner).twins.waits(module)
    }

    /// How many messages wait for the hub.
    pub(super) fn waiting_messages(&self) -> usize {
        self.upstream.len()
    }

    /// Whether this identity could connect when the hub was last asked.
    pub(super) fn knows(&self, who: &Target) -> bool {
        lock(&self.inner).known.contains(who)
    }

    /// Works until it is stopped.
    pub(super) async fn work(self: Arc<Self>) {
        let mut touched = self.state.touched.subscribe();
        loop {
            self.look();
            let next = [self.push_reports(), self.forward()].into_iter().flatten().min();
            let wait = next.map_or(IDLE, |next| next.since(self.state.clock.now()));
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = self.wake.notified() => {}
                changed = touched.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(wait) => {}
            }
        }
        lock(&self.inner).open = false;
        self.look();
    }

    /// Notices whether the way to the hub has opened or closed.
    pub(super) fn look(&self) {
        let away = self.state.is_cut_off();
        let (was, is) = {
            let mut inner = lock(&self.inner);
            let is = inner.open && !away;
            (std::mem::replace(&mut inner.online, is), is)
        };
        if was == is {
            return;
        }
        tracing::debug!(device = self.device, online = is, "the way to the hub changed");
        let (connected, at) = (self.links.all(), self.state.at());
        for who in connected.iter().chain([&self.module(EDGE_HUB)]) {
            self.state.devices.present(who, is, &at);
        }
        if is {
            self.registry_changed();
            self.reconnected(&connected);
        }
    }

    /// The hub's registry may have changed: who may no longer connect is cut off, if the hub can be asked.
    pub(in crate::emulator) fn registry_changed(&self) {
        if !self.is_online() {
            return;
        }
        let names: Vec<Target> = {
            let store = lock(&self.state.store);
            let own = store.all().filter(|entry| entry.twin.device == self.device);
            own.filter_map(|entry| entry.twin.module.as_deref()).map(|name| self.module(name)).collect()
        };
        let known: BTreeSet<Target> = names.into_iter().filter(|who| self.state.may_connect(who)).collect();
        self.links.cut(|who| !known.contains(who));
        lock(&self.inner).known = known;
    }

    /// The way to the hub is open again: what waits for those who are connected is pushed, and what they missed is made up for.
    fn reconnected(&self, connected: &[Target]) {
        let now = self.state.clock.now();
        let entry = |name: &str| lock(&self.state.store).get(&self.module(name)).ok().cloned();
        if let Some(own) = entry(EDGE_HUB) {
            lock(&self.inner).routes = routes(&own.twin.desired.values);
        }
        for who in connected {
            let Some(name) = who.module.as_deref() else { continue };
            lock(&self.inner).twins.ask_again(name);
            // Only who listens is told, so only who listens is compared.
            if !self.links.listens(who, &topic::desired(0)) {
                continue;
            }
            let Some(entry) = entry(name) else { continue };
            let missed = lock(&self.inner).twins.sync(name, &entry.twin, now, self.options.sync_every);
            if let Some((patch, version)) = missed {
                self.tell(who, patch, version);
            }
        }
        self.wake.notify_one();
    }

    /// The hub has changed the desired properties of a module by this patch.
    pub(in crate::emulator) fn desired(&self, entry: &Entry, patch: &Properties) {
        let Some(name) = entry.twin.module.as_deref() else { return };
        {
            let mut inner = lock(&self.inner);
            if !inner.online {
                return;
            }
            inner.twins.refresh_desired(name, &entry.twin);
            if name == EDGE_HUB {
                inner.routes = routes(&entry.twin.desired.values);
            }
        }
        self.tell(&self.module(name), patch.clone(), entry.twin.desired.version);
    }

    fn tell(&self, who: &Target, mut patch: Properties, version: u64) {
        patch.insert("$version".into(), version.into());
        let body = Bytes::from(Value::Object(patch).to_string());
        let _heard = self.links.push(who, topic::desired(version), body, None);
    }

    /// Pushes what is due, if it is time; else says when.
    fn push_reports(&self) -> Option<Moment> {
        let now = self.state.clock.now();
        let due = {
            let mut inner = lock(&self.inner);
            if !inner.twins.is_due() {
                return None;
            }
            let next = inner.pushed.map_or(now, |pushed| pushed + self.options.report_every);
            if now < next {
                return Some(next);
            }
            inner.pushed = Some(now);
            inner.twins.take_due()
        };
        for (name, patches) in due {
            let who = self.module(&name);
            let mut left = patches.into_iter();
            while let Some(patch) = left.next() {
                let taken = self.push_report(&who, &patch);
                tracing::debug!(%who, taken, "a report was pushed to the hub");
                if !taken {
                    lock(&self.inner).twins.failed(&name, std::iter::once(patch).chain(left).collect());
                    break;
                }
            }
        }
        None
    }

    /// Whether the hub is known to have taken it.
    fn push_report(&self, who: &Target, patch: &Properties) -> bool {
        if !self.is_online() {
            return false;
        }
        let bytes = Value::Object(patch.clone()).to_string().len();
        match self.state.receive(Operation::TwinUpdate, who, bytes) {
            Received::Served { lost, .. } => self.state.report(who, patch).is_ok() && !lost,
            Received::Turned { .. } | Received::Never => false,
        }
    }

    /// Sends waiting messages to the hub, and says when to come again.
    fn forward(&self) -> Option<Moment> {
        let now = self.state.clock.now();
        let (online, again) = {
            let inner = lock(&self.inner);
            (inner.online, inner.again)
        };
        if !online {
            return None;
        }
        while let Some((_, message)) = self.upstream.first(now) {
            if now < again {
                return Some(again);
            }
            let Message { from, properties, body, .. } = &message;
            let received = self.state.receive(Operation::Telemetry, from, body.len());
            if let Received::Served { lost, .. } = received {
                let at = self.state.at();
                lock(&self.state.devices.messages).keep(at, from, properties.clone(), body.clone());
                if !lost {
                    self.upstream.done(&message);
                    continue;
                }
            }
            lock(&self.inner).again = now + AGAIN;
            return Some(now + AGAIN);
        }
        None
    }

    /// Puts a message into the lines of all routes that take it.
    fn route(self: &Arc<Self>, from: &Target, properties: &Bag, body: &Bytes) {
        let name = from.module.as_deref().unwrap_or_default();
        let sinks: BTreeSet<Sink> = {
            let inner = lock(&self.inner);
            inner
                .routes
                .iter()
                .filter(|route| route.takes(name, properties))
                .map(|route| route.sink.clone())
                .collect()
        };
        let (now, life) = (self.state.clock.now(), self.options.time_to_live);
        for sink in sinks {
            let message = |input: String, properties: Bag| Message {
                from: from.clone(),
                input,
                properties,
                body: body.clone(),
            };
            match sink {
                Sink::Upstream => self.upstream.put(message(String::new(), properties.clone()), now, life),
                Sink::Input { module, input } => {
                    let mut properties = properties.clone();
                    properties.remove("$.on");
                    properties.insert("$.cdid".into(), from.device.clone());
                    properties.insert("$.cmid".into(), name.to_owned());
                    self.line_to(&module).put(message(input, properties), now, life);
                }
            }
        }
        self.wake.notify_one();
    }

    /// The line to a module, with somebody who empties it.
    fn line_to(self: &Arc<Self>, module: &str) -> Arc<Queue> {
        let mut inputs = lock(&self.inputs);
        if let Some(line) = inputs.get(module) {
            return line.clone();
        }
        let line = Arc::new(Queue::default());
        inputs.insert(module.to_owned(), line.clone());
        self.state.tasks.spawn(self.clone().empty(self.module(module), line.clone()));
        line
    }

    /// Hands a module its messages one by one, each until it is acknowledged.
    async fn empty(self: Arc<Self>, who: Target, line: Arc<Queue>) {
        let mut changes = self.links.changes();
        while !self.stop.is_cancelled() {
            let now = self.state.clock.now();
            let Some((end, message)) = line.first(now) else {
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = line.more() => continue,
                }
            };
            changes.mark_unchanged();
            let (acked, taken) = oneshot::channel();
            let topic = topic::input(&who, &message.input, &message.properties);
            if self.links.push(&who, topic, message.body.clone(), Some(acked)) {
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    taken = taken => if taken.is_ok() { line.done(&message) },
                }
                continue;
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = changes.changed() => {}
                () = tokio::time::sleep(end.since(now)) => {}
            }
        }
    }
}

/// The links' side of a gateway.
pub(super) struct Face(pub(super) Arc<Gateway>);

impl Backend for Face {
    fn links(&self) -> &Links {
        &self.0.links
    }

    fn admit(&self, connect: &Connect) -> Result<Admitted, u8> {
        let Face(gateway) = self;
        let who = introduced(connect, &gateway.state.devices.names)?;
        if who.device != gateway.device || who.module.is_none() {
            return Err(NOT_AUTHORISED);
        }
        if gateway.is_online() {
            let may = gateway.state.may_connect(&who);
            let known = &mut lock(&gateway.inner).known;
            if may {
                known.insert(who.clone())
            } else {
                known.remove(&who)
            };
        }
        if !lock(&gateway.inner).known.contains(&who) {
            return Err(NOT_AUTHORISED);
        }
        let token = connect.password.as_deref().and_then(|token| std::str::from_utf8(token).ok());
        let now_s = gateway.state.clock.wall_ms() / 1000;
        let life = token.and_then(|token| gateway.state.signed(token, &who, now_s)).ok_or(NOT_AUTHORISED)?;
        Ok(Admitted { who, life })
    }

    fn present(&self, who: &Target, is: bool) {
        if self.0.is_online() {
            self.0.state.devices.present(who, is, &self.0.state.at());
        }
    }

    fn take(&self, from: &Target, request: Request) -> Answer {
        let Face(gateway) = self;
        let Some(name) = from.module.as_deref() else { return Answer::Cut };
        let answered = |after, status, rid: &str, body| Answer::Given {
            after,
            message: Some((topic::twin_answer(status, rid, None), body)),
        };
        match request {
            Request::Get { rid } => {
                let (after, twin) = gateway.twin(name, from);
                answered(after, 200, &rid, twin)
            }
            Request::Report { rid, body } => {
                let taken = reported(&body).and_then(|patch| {
                    let at = gateway.state.at();
                    Ok(lock(&gateway.inner).twins.report(&gateway.device, name, &patch, &at)?)
                });
                gateway.wake.notify_one();
                match taken {
                    Ok(()) => answered(Duration::ZERO, 204, &rid, Bytes::new()),
                    Err(refusal) => {
                        answered(Duration::ZERO, status(&refusal), &rid, Bytes::from(refusal.to_string()))
                    }
                }
            }
            Request::Event { body, .. } if body.len() > MESSAGE_MAX => Answer::Cut,
            Request::Event { properties, body } => {
                gateway.route(from, &properties, &body);
                Answer::Given { after: Duration::ZERO, message: None }
            }
        }
    }
}

impl Gateway {
    /// The hub's twin, or the last copy, or an empty one; and how long it takes.
    fn twin(&self, name: &str, who: &Target) -> (Duration, Bytes) {
        let mut delay = Duration::ZERO;
        if self.is_online()
            && let Received::Served { after, .. } = self.state.receive(Operation::TwinRead, who, 0)
        {
            let entry = lock(&self.state.store).get(who).ok().cloned();
            if let Some(entry) = entry {
                lock(&self.inner).twins.refresh(name, &entry.twin);
            }
            delay = after;
        }
        let inner = lock(&self.inner);
        let empty = Section::default();
        let (desired, reported) =
            inner.twins.copy(name).map_or((&empty, &empty), |twin| (&twin.desired, &twin.reported));
        (delay, own_twin(desired, reported))
    }
}

/// The routes that `$edgeHub` is to follow. Without any, everything goes to the hub, as in the usual first deployment.
fn routes(desired: &Properties) -> Vec<Route> {
    let Some(Value::Object(named)) = desired.get("routes") else {
        return Route::parse("FROM /messages/* INTO $upstream").into_iter().collect();
    };
    let mut routes = Vec::new();
    for (name, route) in named {
        // A text, or an object with the text in it.
        let text = route.as_str().or_else(|| route.get("route").and_then(Value::as_str)).unwrap_or_default();
        match Route::parse(text) {
            Ok(route) => routes.push(route),
            Err(why) => tracing::warn!(name, why, "a route of the emulated edgeHub is left out"),
        }
    }
    routes
}
