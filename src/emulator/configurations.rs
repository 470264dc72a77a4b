//! Automatic deployments and configurations: their requests, and the moment they take effect.
//!
//! How it is unlike the real hub: they take effect with the request that changes what fits, not minutes later; content is
//! not checked against the schemas of `$edgeAgent` and `$edgeHub`; modules that leave a deployment keep their identity.
//! As there, a section is written when the set of configurations that a device gets changes, and left alone in
//! between; and a device that leaves all conditions keeps what it has.

use std::collections::BTreeMap;

use axum::{
    http::{Method, request::Parts},
    response::Response,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    State,
    answer::{Failure, empty, json_response},
    deploy::{self, Configuration, Kind},
    lock,
    query::Query,
    registry,
    routes::{json, text, twin_json},
};
use crate::{
    clock::Moment,
    hub::{
        store::{IfMatch, Target},
        twin::{Change, Manner, Properties},
    },
};

/// Azure's own limit for a paid hub.
const MOST: usize = 100;

/// All configurations, and what each twin has got of them.
#[derive(Debug, Default)]
pub(super) struct Configurations {
    all: BTreeMap<String, Configuration>,
    /// The orders of the configurations that were last put on, and when.
    applied: BTreeMap<Target, (Vec<u64>, Moment)>,
    counter: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    #[serde(default)]
    schema_version: Option<String>,
    #[serde(default)]
    labels: Value,
    #[serde(default)]
    priority: u64,
    #[serde(default)]
    target_condition: Option<String>,
    #[serde(default)]
    content: Option<Map<String, Value>>,
    #[serde(default)]
    metrics: Option<Metrics>,
}

#[derive(Deserialize)]
struct Metrics {
    #[serde(default)]
    queries: Option<Properties>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Test {
    #[serde(default)]
    target_condition: Option<String>,
    #[serde(default)]
    custom_metric_queries: Option<Properties>,
}

/// The answer to a request below `/configurations`.
pub(super) fn answer(
    state: &State,
    method: &Method,
    path: &[&str],
    parts: &Parts,
    body: &[u8],
) -> Result<Response, Failure> {
    let if_match = text(&parts.headers, "if-match");
    match (method, path) {
        (&Method::GET, []) => {
            let top = registry::top(parts)?;
            let twins = state.twins();
            let configurations = lock(&state.configurations);
            let shown = configurations.all.values().take(top).map(|c| configurations.show(c, &twins));
            Ok(json_response(200, &shown.collect(), &[]))
        }
        (&Method::POST, ["testQueries"]) => test(body),
        (&Method::GET, [id]) => {
            let twins = state.twins();
            let configurations = lock(&state.configurations);
            Ok(configurations.response(200, configurations.get(id)?, &twins))
        }
        (&Method::PUT, [id]) => put(state, id, if_match, body),
        (&Method::DELETE, [id]) => {
            let mut configurations = lock(&state.configurations);
            configurations.guard(id, &IfMatch::from_header(if_match))?;
            configurations.all.remove(*id);
            Ok(empty(204))
        }
        _ => Err(Failure::new(405, "InvalidOperation", "Method not allowed.")),
    }
}

fn put(state: &State, id: &str, if_match: Option<&str>, body: &[u8]) -> Result<Response, Failure> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-+%_*!',.:=@".contains(c);
    if id.is_empty() || id.len() > 128 || !id.chars().all(plain) {
        return Err(Failure::argument(format!(
            "The id {id:?} is not up to 128 lowercase letters, digits and -+%_*!',.:=@"
        )));
    }
    let body: Body = serde_json::from_slice(body)
        .map_err(|why| Failure::new(400, "FormatError", format!("The body is no configuration: {why}")))?;
    let condition = body.target_condition.unwrap_or_default();
    conditional(&condition).map_err(|why| Failure::new(400, "InvalidConfigurationTargetCondition", why))?;
    let metrics = body.metrics.and_then(|metrics| metrics.queries).unwrap_or_default();
    for (name, query) in &metrics {
        measurable(query).map_err(|why| {
            Failure::new(400, "InvalidConfigurationCustomMetricsQuery", format!("{name}: {why}"))
        })?;
    }
    let content = body.content.unwrap_or_default();
    let twins = state.twins();
    let mut configurations = lock(&state.configurations);
    let now = state.at();
    configurations.counter += 1;
    let counter = configurations.counter;
    let made = match if_match {
        // Without If-Match a PUT creates; with it, it changes what exists.
        None => {
            if configurations.all.contains_key(id) {
                return Err(Failure::new(409, "ConfigurationAlreadyExists", id));
            }
            if configurations.all.len() >= MOST {
                return Err(Failure::new(
                    403,
                    "ConfigurationCountLimitExceeded",
                    format!("There are {MOST}."),
                ));
            }
            deploy::check(&content).map_err(|why| Failure::new(400, "InvalidConfigurationContent", why))?;
            Configuration {
                id: id.to_owned(),
                schema_version: body.schema_version.unwrap_or_else(|| "1.0".into()),
                labels: body.labels,
                priority: body.priority,
                target_condition: condition,
                content,
                metrics,
                created: now.clone(),
                updated: now,
                order: counter,
                etag: counter,
            }
        }
        Some(header) => {
            let old = configurations.guard(id, &IfMatch::from_header(Some(header)))?.clone();
            if !content.is_empty() && content != old.content {
                let words = "The content of a configuration cannot be changed; create another one.";
                return Err(Failure::new(400, "CannotModifyImmutableConfigurationContent", words));
            }
            Configuration {
                labels: body.labels,
                priority: body.priority,
                target_condition: condition,
                metrics,
                updated: now,
                etag: counter,
                ..old
            }
        }
    };
    let status = if if_match.is_some() { 200 } else { 201 };
    configurations.all.insert(id.to_owned(), made.clone());
    Ok(configurations.response(status, &made, &twins))
}

fn conditional(text: &str) -> Result<(), String> {
    if text.trim().is_empty() { Ok(()) } else { Query::condition(text).map(|_| ()) }
}

fn measurable(query: &Value) -> Result<(), String> {
    Query::parse(query.as_str().ok_or("it is not a text")?).map(|_| ())
}

fn test(body: &[u8]) -> Result<Response, Failure> {
    let test: Test = serde_json::from_slice(body)
        .map_err(|why| Failure::new(400, "FormatError", format!("The body is no test: {why}")))?;
    let condition = test.target_condition.and_then(|text| conditional(&text).err());
    let metrics: Map<String, Value> = test
        .custom_metric_queries
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(name, query)| Some((name, Value::String(measurable(&query).err()?))))
        .collect();
    let body = json!({ "targetConditionError": condition, "customMetricQueryErrors": metrics });
    Ok(json_response(200, &body, &[]))
}

/// Puts content on one edge device at once.
pub(super) fn apply_to(state: &State, device: &str, body: &[u8]) -> Result<Response, Failure> {
    let target = Target::device(device);
    if !lock(&state.store).get(&target)?.edge {
        return Err(Failure::argument(format!("{device} is not an IoT Edge device.")));
    }
    let Value::Object(content) = json(body)? else {
        return Err(Failure::argument("The body is not an object."));
    };
    if !content.contains_key("modulesContent") {
        return Err(Failure::new(400, "InvalidConfigurationContent", "modulesContent is missing."));
    }
    deploy::check(&content).map_err(|why| Failure::new(400, "InvalidConfigurationContent", why))?;
    for (module, (section, whole)) in deploy::modules(&[&content]) {
        state.set_desired(&Target::module(device, &module), section, whole)?;
    }
    Ok(empty(204))
}

impl Configurations {
    fn get(&self, id: &str) -> Result<&Configuration, Failure> {
        self.all.get(id).ok_or_else(|| Failure::new(404, "ConfigurationNotFound", id))
    }

    fn guard(&self, id: &str, if_match: &IfMatch) -> Result<&Configuration, Failure> {
        let found = self.get(id)?;
        match if_match {
            IfMatch::Etag(wanted) if *wanted != etag(found) => Err(Failure::new(
                412,
                "PreconditionFailed",
                "Precondition failed: the etag is not the newest",
            )),
            _ => Ok(found),
        }
    }

    fn response(&self, status: u16, configuration: &Configuration, twins: &[Value]) -> Response {
        let headers = [("etag", format!("\"{}\"", etag(configuration)))];
        json_response(status, &self.show(configuration, twins), &headers)
    }

    fn show(&self, configuration: &Configuration, twins: &[Value]) -> Value {
        let targeted = twins.iter().filter(|twin| configuration.targets(twin)).count();
        let has = |twin: &&Value| {
            target(twin)
                .and_then(|target| self.applied.get(&target))
                .is_some_and(|(got, _)| got.contains(&configuration.order))
        };
        let applied: Vec<&Value> = twins.iter().filter(has).collect();
        let mut system = json!({ "targetedCount": targeted, "appliedCount": applied.len() });
        if configuration.kind() == Kind::Edge {
            let devices: Vec<&str> = applied.iter().filter_map(|twin| twin["deviceId"].as_str()).collect();
            let (good, bad) = reported(&devices, twins);
            system["reportedSuccessfulCount"] = good.into();
            system["reportedFailedCount"] = bad.into();
        }
        let measured = configuration.metrics.iter().filter_map(|(name, query)| {
            let rows = Query::parse(query.as_str()?).ok()?.run(twins);
            Some((name.clone(), rows.len().into()))
        });
        let measured: Map<String, Value> = measured.collect();
        json!({
            "id": configuration.id,
            "schemaVersion": configuration.schema_version,
            "labels": configuration.labels,
            "content": configuration.content,
            "targetCondition": configuration.target_condition,
            "createdTimeUtc": configuration.created,
            "lastUpdatedTimeUtc": configuration.updated,
            "priority": configuration.priority,
            "systemMetrics": { "results": system, "queries": {} },
            "metrics": { "results": measured, "queries": configuration.metrics },
            "etag": etag(configuration),
        })
    }
}

fn etag(configuration: &Configuration) -> String {
    STANDARD.encode(configuration.etag.to_string())
}

/// Whose twin this is.
fn target(twin: &Value) -> Option<Target> {
    let name = |key: &str| twin.get(key).and_then(Value::as_str).map(str::to_owned);
    Some(Target { device: name("deviceId")?, module: name("moduleId") })
}

/// How many of the devices say that they have, or could not, put on the newest desired properties of `$edgeAgent`.
fn reported(devices: &[&str], twins: &[Value]) -> (usize, usize) {
    let (mut good, mut bad) = (0, 0);
    let agents = twins.iter().filter(|twin| twin.get("moduleId").is_some_and(|id| id == "$edgeAgent"));
    for agent in agents.filter(|agent| agent["deviceId"].as_str().is_some_and(|id| devices.contains(&id))) {
        let properties = &agent["properties"];
        let code = properties["reported"]["lastDesiredStatus"]["code"].as_u64();
        let newest = properties["reported"]["lastDesiredVersion"] == properties["desired"]["$version"];
        match code {
            Some(200) if newest => good += 1,
            Some(code) if code != 200 && newest => bad += 1,
            _ => {}
        }
    }
    (good, bad)
}

impl State {
    fn twins(&self) -> Vec<Value> {
        lock(&self.store).all().map(|entry| twin_json(self, entry)).collect()
    }

    /// Puts on every twin what it has to get by now. To be called after whatever may change what fits.
    pub(super) fn deploy(&self) {
        let (mut configurations, now) = (lock(&self.configurations), self.clock.now());
        if configurations.all.is_empty() {
            return;
        }
        let twins = self.twins();
        let Configurations { all, applied, .. } = &mut *configurations;
        let all: Vec<&Configuration> = all.values().collect();
        for twin in &twins {
            let Some(target) = target(twin) else { continue };
            let layers = deploy::layers(&all, twin);
            let orders: Vec<u64> = layers.iter().map(|layer| layer.order).collect();
            if applied.get(&target).map_or(orders.is_empty(), |(got, _)| *got == orders) {
                continue;
            }
            let contents: Vec<&Map<String, Value>> = layers.iter().map(|layer| &layer.content).collect();
            let edge = layers.first().is_some_and(|layer| layer.kind() == Kind::Edge);
            let sections: Vec<(Target, (Properties, bool))> = if edge {
                let modules = deploy::modules(&contents).into_iter();
                modules.map(|(module, made)| (Target::module(&target.device, &module), made)).collect()
            } else if layers.is_empty() {
                Vec::new()
            } else {
                vec![(target.clone(), deploy::section(&contents))]
            };
            for (target, (section, whole)) in sections {
                if let Err(failure) = self.set_desired(&target, section, whole) {
                    tracing::warn!(%target, why = failure.text, "a deployment does not fit into a twin");
                }
            }
            applied.insert(target, (orders, now));
        }
        applied.retain(|target, _| lock(&self.store).get(target).is_ok());
    }

    /// The hub has lost everything after `then`: what was put on since has to be put on again.
    pub(super) fn deploy_again(&self, then: Moment) {
        lock(&self.configurations).applied.retain(|_, (_, at)| *at <= then);
        self.deploy();
    }

    /// An identity of this name is gone: one that comes is another, and has got nothing yet.
    pub(super) fn deploy_anew(&self, device: &str) {
        lock(&self.configurations).applied.retain(|target, _| target.device != device);
        self.deploy();
    }

    /// Writes a section, or parts of it, and makes the module if need be.
    fn set_desired(&self, target: &Target, section: Properties, whole: bool) -> Result<(), Failure> {
        if target.module.is_some() && lock(&self.store).get(target).is_err() {
            lock(&self.store).create(target, false, self.stamp())?;
        }
        let manner = if whole { Manner::Replace } else { Manner::Merge };
        let change = Change { tags: None, desired: Some(section) };
        self.change(target, &change, manner, &IfMatch::Any)?;
        Ok(())
    }
}
