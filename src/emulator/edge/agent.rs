//! edgeAgent: makes the device's processes what `$edgeAgent`'s twin wants, again and again, and tells the twin how they are.
//!
//! What a local supervisor has to live with is the real one's: a module that shall run and has any restart policy but `never` is
//! started again after whatever end, ever later and at last no more; with `never` it is started once after it was made and then
//! left alone, started or stopped; one that shall be stopped is stopped within a loop. How it is unlike the real one: images are
//! looked up in a table, `createOptions` count for their `StopTimeout` alone, and a deployment takes effect at the next loop.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Map, Value, json};

use super::{
    Host,
    management::{describe, word},
    process::{GRACE, Image, Processes, Spec, Status, Turn},
};
use crate::{
    clock::Moment,
    emulator::lock,
    hub::{twin::Properties, wall},
};

/// After so many restarts it is given up.
const RESTARTS_MAX: u32 = 20;
/// A module that ran for this long begins anew.
const CARE: Duration = Duration::from_secs(600);
/// The longest cool-off, in units.
const COOL_OFF_MAX: u32 = 30;

/// How a module is to be.
#[derive(Debug, Clone, PartialEq)]
struct Wanted {
    image: String,
    environment: BTreeMap<String, String>,
    grace: Duration,
    running: bool,
    once: bool,
    order: u64,
}

/// What the agent remembers of a module that it made.
#[derive(Debug, Clone, PartialEq)]
struct Made {
    as_wanted: Wanted,
    restarts: u32,
}

/// What is due for one module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Nothing,
    Start,
    Restart,
    Stop,
    /// To be started again at that moment.
    Wait(Moment),
    /// Never again.
    Failed,
}

/// The loop's own state.
pub(super) struct Agent {
    host: Arc<Host>,
    processes: Arc<Processes>,
    images: BTreeMap<String, Image>,
    /// Where the modules' sockets are.
    folder: PathBuf,
    made: BTreeMap<String, Made>,
    /// The newest deployment that was seen, with its version.
    deployment: (Properties, u64),
    said: Properties,
}

impl Agent {
    pub(super) fn new(
        host: Arc<Host>,
        processes: Arc<Processes>,
        images: BTreeMap<String, Image>,
        folder: PathBuf,
    ) -> Agent {
        let deployment = (Properties::new(), 0);
        Agent { host, processes, images, folder, made: BTreeMap::new(), deployment, said: Properties::new() }
    }

    /// Works until the device is stopped.
    pub(super) async fn work(mut self) {
        let stop = self.host.gateway.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.once() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.host.gateway.options.reconcile_every) => {}
            }
        }
    }

    async fn once(&mut self) {
        self.look();
        let wanted = wanted(&self.deployment.0);
        let processes = self.processes.clone();
        let turn = processes.turn().await;
        for gone in turn.names().iter().filter(|name| !wanted.contains_key(*name)) {
            let _removed = turn.remove(gone).await.is_ok();
            self.made.remove(gone);
        }
        let mut order: Vec<(&String, &Wanted)> = wanted.iter().collect();
        order.sort_by_key(|(name, wanted)| (wanted.order, (*name).clone()));
        for (name, wanted) in order {
            self.settle(&turn, name, wanted).await;
        }
        let now = self.host.gateway.state.clock.now();
        let modules: Map<String, Value> = wanted
            .iter()
            .map(|(name, wanted)| {
                let status = turn.look(name).ok().map(|(_, status)| status);
                (name.clone(), self.told(name, wanted, status.as_ref(), now))
            })
            .collect();
        drop(turn);
        self.report(modules);
    }

    /// The newest deployment, if the hub can be asked.
    fn look(&mut self) {
        let gateway = &self.host.gateway;
        if !gateway.is_online() {
            return;
        }
        let entry = lock(&gateway.state.store).get(&gateway.module("$edgeAgent")).ok().cloned();
        if let Some(entry) = entry {
            self.deployment = (entry.twin.desired.values, entry.twin.desired.version);
        }
    }

    async fn settle(&mut self, turn: &Turn<'_>, name: &str, wanted: &Wanted) {
        let same = |made: &Made| {
            let now = &made.as_wanted;
            (&now.image, &now.environment, now.grace) == (&wanted.image, &wanted.environment, wanted.grace)
        };
        if !self.made.get(name).is_some_and(same) {
            let Some(spec) = self.spec(name, wanted) else { return };
            turn.create(name, spec).await;
            self.made.insert(name.to_owned(), Made { as_wanted: wanted.clone(), restarts: 0 });
        }
        let (Some(made), Ok((_, status))) = (self.made.get_mut(name), turn.look(name)) else { return };
        let gateway = &self.host.gateway;
        let (now, unit) = (gateway.state.clock.now(), gateway.options.cool_off);
        if status.pid.is_some() && now.since(status.since) >= CARE {
            made.restarts = 0;
        }
        let begins = wanted.running && !made.as_wanted.running;
        made.as_wanted = wanted.clone();
        let done = match due(wanted, begins, made.restarts, &status, now, unit) {
            Due::Nothing | Due::Wait(_) | Due::Failed => Ok(()),
            Due::Stop => turn.stop(name).await,
            Due::Start => turn.start(name),
            Due::Restart => {
                made.restarts += 1;
                turn.start(name)
            }
        };
        if let Err(why) = done {
            tracing::debug!(name, %why, "a module of the emulated device");
        }
    }

    /// What a module is made from; `None` if there is no such image.
    fn spec(&self, name: &str, wanted: &Wanted) -> Option<Spec> {
        let image = self.images.get(&wanted.image)?;
        if let Err(why) = self.host.ensure_workload(name, &self.folder.join(format!("{name}.sock"))) {
            tracing::warn!(name, %why, "a module of the emulated device has no socket");
        }
        let mut environment = image.environment.clone();
        environment.extend(wanted.environment.clone());
        environment.extend(self.host.environment_with_port(name));
        Some(Spec {
            image: wanted.image.clone(),
            command: image.command.clone(),
            environment,
            grace: wanted.grace,
        })
    }

    fn told(&self, name: &str, wanted: &Wanted, status: Option<&Status>, now: Moment) -> Value {
        let Some(status) = status else {
            let why = format!("no image {} on this device", wanted.image);
            return json!({ "runtimeStatus": "unknown", "statusDescription": why });
        };
        let restarts = self.made.get(name).map_or(0, |made| made.restarts);
        let unit = self.host.gateway.options.cool_off;
        let word = match due(wanted, false, restarts, status, now, unit) {
            Due::Wait(_) | Due::Restart => "backoff",
            Due::Failed => "failed",
            _ => word(status),
        };
        let mut told = json!({
            "runtimeStatus": word,
            "statusDescription": describe(status),
            "restartCount": restarts,
            "exitCode": status.ended.map_or(0, |(_, code)| code),
        });
        if let Some(started) = status.started_ms {
            told["lastStartTimeUtc"] = json!(wall::rfc3339(started));
        }
        if let Some((at, _)) = status.ended {
            told["lastExitTimeUtc"] = json!(wall::rfc3339(at));
        }
        told
    }

    /// Tells the twin what is new.
    fn report(&mut self, modules: Map<String, Value>) {
        let gateway = &self.host.gateway;
        if !gateway.is_online() {
            return;
        }
        let whole = Properties::from_iter([
            ("lastDesiredVersion".to_owned(), json!(self.deployment.1)),
            ("lastDesiredStatus".to_owned(), json!({ "code": 200 })),
            ("modules".to_owned(), Value::Object(modules)),
        ]);
        let patch = crate::emulator::mqtt::difference(&self.said, &whole);
        if !patch.is_empty() && gateway.state.report(&gateway.module("$edgeAgent"), &patch).is_ok() {
            self.said = whole;
        }
    }
}

fn due(wanted: &Wanted, begins: bool, restarts: u32, status: &Status, now: Moment, unit: Duration) -> Due {
    match (wanted.running, status.pid.is_some()) {
        (false, true) => Due::Stop,
        (false, false) | (true, true) => Due::Nothing,
        (true, false) if status.started_ms.is_none() || begins => Due::Start,
        (true, false) if wanted.once => Due::Nothing,
        (true, false) if restarts >= RESTARTS_MAX => Due::Failed,
        (true, false) => {
            let factor = 2_u32.checked_pow(restarts).map_or(COOL_OFF_MAX, |factor| factor.min(COOL_OFF_MAX));
            let again = status.since + unit * factor;
            if now >= again { Due::Restart } else { Due::Wait(again) }
        }
    }
}

/// The modules of a deployment, by name.
fn wanted(desired: &Properties) -> BTreeMap<String, Wanted> {
    let Some(Value::Object(modules)) = desired.get("modules") else { return BTreeMap::new() };
    modules.iter().filter_map(|(name, module)| Some((name.clone(), one(module)?))).collect()
}

fn one(module: &Value) -> Option<Wanted> {
    let settings = module.get("settings")?;
    let text = |json: &Value, name: &str| json.get(name).and_then(Value::as_str).map(str::to_owned);
    // Long options are split: createOptions, createOptions01 and so on.
    let parts = (1..100).map_while(|n| text(settings, &format!("createOptions{n:02}")));
    let options: String = text(settings, "createOptions").into_iter().chain(parts).collect();
    let options: Value = serde_json::from_str(&options).unwrap_or_default();
    let environment = module.get("env").and_then(Value::as_object).into_iter().flatten();
    let value = |value: &Value| match value.get("value") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(other) => Some(other.to_string()),
        None => None,
    };
    Some(Wanted {
        image: text(settings, "image")?,
        environment: environment.filter_map(|(name, json)| Some((name.clone(), value(json)?))).collect(),
        grace: options.get("StopTimeout").and_then(Value::as_u64).map_or(GRACE, Duration::from_secs),
        running: text(module, "status").as_deref() == Some("running"),
        once: text(module, "restartPolicy").as_deref() == Some("never"),
        order: module.get("startupOrder").and_then(Value::as_u64).unwrap_or(u64::from(u32::MAX)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(json: Value) -> Properties {
        let Value::Object(map) = json else { panic!("an object") };
        map
    }

    #[test]
    fn a_deployment_is_read_as_tools_write_it() {
        let found = wanted(&map(json!({ "schemaVersion": "1.1", "modules": {
            "work": {
                "type": "docker", "status": "running", "restartPolicy": "never", "startupOrder": 2,
                "env": { "A": { "value": "b" }, "N": { "value": 7 }, "wrong": 1 },
                "settings": { "image": "r.io/work:2", "createOptions": "{\"StopTi", "createOptions01": "meout\":5}" },
            },
            "idle": { "status": "stopped", "restartPolicy": "always", "settings": { "image": "i" } },
            "broken": { "settings": {} },
        }})));
        assert_eq!(found.keys().collect::<Vec<_>>(), ["idle", "work"]);
        let work = &found["work"];
        let environment = [("A", "b"), ("N", "7")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(work.environment, environment.into());
        assert_eq!(
            (work.grace, work.running, work.once, work.order),
            (Duration::from_secs(5), true, true, 2)
        );
        assert_eq!((found["idle"].grace, found["idle"].running, found["idle"].once), (GRACE, false, false));
        assert!(wanted(&Properties::new()).is_empty());
    }

    #[test]
    fn what_the_agent_does_about_a_module_that_somebody_else_started_or_stopped() {
        let unit = Duration::from_secs(10);
        let at = |s| Moment::default() + Duration::from_secs(s);
        let module = |running, once| Wanted {
            image: "i".into(),
            environment: BTreeMap::new(),
            grace: GRACE,
            running,
            once,
            order: 0,
        };
        let never_started = Status::default();
        let runs = Status { pid: Some(7), started_ms: Some(1), ..Status::default() };
        let ended = Status { started_ms: Some(1), ended: Some((2, 0)), since: at(100), ..Status::default() };
        for once in [false, true] {
            let due = |running, begins, status| {
                super::due(&module(running, once), begins, 0, status, at(100), unit)
            };
            assert_eq!(due(true, false, &never_started), Due::Start);
            assert_eq!(due(true, true, &ended), Due::Start, "a deployment that changes its status starts it");
            assert_eq!(due(true, false, &runs), Due::Nothing);
            assert_eq!(due(false, false, &runs), Due::Stop);
            assert_eq!(due(false, false, &ended), Due::Nothing);
        }
        let due =
            |once, restarts, now| super::due(&module(true, once), false, restarts, &ended, at(now), unit);
        assert_eq!(due(true, 0, 100_000), Due::Nothing, "never means left alone");
        for (restarts, wait) in [(0, 10), (1, 20), (4, 160), (5, 300), (19, 300)] {
            assert_eq!(due(false, restarts, 100 + wait - 1), Due::Wait(at(100 + wait)), "{restarts}");
            assert_eq!(due(false, restarts, 100 + wait), Due::Restart, "{restarts}");
        }
        assert_eq!(due(false, 20, 100_000), Due::Failed);
    }
}
