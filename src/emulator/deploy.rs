//! Which configurations a device gets, and what they make of its twins.
//!
//! Pure: configurations and twins in, desired properties out. A device gets one base deployment (of those that fit, the
//! one with the highest priority, then the newest) and over it, in order of priority, all layered ones that fit and stand
//! above it. It does not know who owns what: a section that a deployment names whole is replaced whole.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::query::Query;
use crate::hub::twin::Properties;

/// The key under which content names a whole section, and the beginning of keys that name a part of it.
const SECTION: &str = "properties.desired";

/// An automatic deployment or configuration.
#[derive(Debug, Clone)]
pub(super) struct Configuration {
    pub(super) id: String,
    pub(super) schema_version: String,
    pub(super) labels: Value,
    pub(super) priority: u64,
    pub(super) target_condition: String,
    pub(super) content: Map<String, Value>,
    /// Custom metrics: a query for each name.
    pub(super) metrics: Properties,
    pub(super) created: String,
    pub(super) updated: String,
    /// Unique among all that ever were; later ones are larger.
    pub(super) order: u64,
    pub(super) etag: u64,
}

/// What a configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Modules of IoT Edge devices, by `modulesContent`.
    Edge,
    /// Device twins, by `deviceContent`.
    Device,
    /// Module twins, by `moduleContent`.
    Module,
}

impl Configuration {
    pub(super) fn kind(&self) -> Kind {
        if self.content.contains_key("modulesContent") {
            Kind::Edge
        } else if self.content.contains_key("moduleContent") {
            Kind::Module
        } else {
            Kind::Device
        }
    }

    /// Whether it is for the device or module of this twin.
    pub(super) fn targets(&self, twin: &Value) -> bool {
        let kind = match twin.get("moduleId") {
            Some(_) => Kind::Module,
            None if self.kind() == Kind::Edge => {
                if twin.pointer("/capabilities/iotEdge") != Some(&Value::Bool(true)) {
                    return false;
                }
                Kind::Edge
            }
            None => Kind::Device,
        };
        // A condition without text is for nobody.
        kind == self.kind()
            && !self.target_condition.trim().is_empty()
            && Query::condition(&self.target_condition).is_ok_and(|condition| condition.finds(twin))
    }

    /// Whether it only adds to a base deployment: it names no whole section of `$edgeAgent`.
    fn is_layered(&self) -> bool {
        let agent = self.content.get("modulesContent").and_then(|content| content.get("$edgeAgent"));
        agent.and_then(Value::as_object).is_some_and(|agent| !agent.contains_key(SECTION))
    }
}

/// What of `all` takes effect on this twin, in the order in which it is put on.
pub(super) fn layers<'a>(all: &[&'a Configuration], twin: &Value) -> Vec<&'a Configuration> {
    let mut fit: Vec<&Configuration> = all.iter().copied().filter(|c| c.targets(twin)).collect();
    fit.sort_by_key(|c| (c.priority, c.order));
    if fit.first().is_none_or(|c| c.kind() != Kind::Edge) {
        return fit;
    }
    match fit.iter().rposition(|c| !c.is_layered()) {
        Some(base) => {
            let mut layers = vec![fit[base]];
            layers.extend(fit[base + 1..].iter().filter(|c| c.is_layered()));
            layers
        }
        // Layers without a base do nothing.
        None => Vec::new(),
    }
}

/// The desired properties of each module of an edge device. `false` beside them: only parts are named, so what else stands
/// in the section stays.
pub(super) fn modules(contents: &[&Map<String, Value>]) -> BTreeMap<String, (Properties, bool)> {
    let mut modules = BTreeMap::new();
    for content in contents {
        let named = content.get("modulesContent").and_then(Value::as_object);
        for (module, parts) in named.into_iter().flatten() {
            let (section, whole) = modules.entry(module.clone()).or_default();
            put(section, whole, parts);
        }
    }
    modules
}

/// The desired properties of a device or module by plain configurations.
pub(super) fn section(contents: &[&Map<String, Value>]) -> (Properties, bool) {
    let (mut section, mut whole) = (Properties::new(), false);
    for content in contents {
        let parts = content.get("deviceContent").or_else(|| content.get("moduleContent"));
        put(&mut section, &mut whole, parts.unwrap_or(&Value::Null));
    }
    (section, whole)
}

/// Puts one layer's word on a section over what the layers below say.
fn put(section: &mut Properties, whole: &mut bool, parts: &Value) {
    for (key, value) in parts.as_object().into_iter().flatten() {
        if key == SECTION {
            *section = value.as_object().cloned().unwrap_or_default();
            *whole = true;
        } else if let Some(path) = key.strip_prefix(SECTION).and_then(|rest| rest.strip_prefix('.')) {
            set(section, path, value.clone());
        }
    }
}

fn set(section: &mut Properties, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            section.insert(path.to_owned(), value);
        }
        Some((first, rest)) => {
            let inner = section.entry(first).or_insert_with(|| Value::Object(Map::new()));
            if !inner.is_object() {
                *inner = Value::Object(Map::new());
            }
            if let Some(inner) = inner.as_object_mut() {
                set(inner, rest, value);
            }
        }
    }
}

/// Says what is wrong with a configuration's content.
pub(super) fn check(content: &Map<String, Value>) -> Result<(), String> {
    let parts = ["modulesContent", "deviceContent", "moduleContent"];
    let [only] = parts.iter().filter(|part| content.contains_key(**part)).collect::<Vec<_>>()[..] else {
        return Err(
            "The content needs exactly one of modulesContent, deviceContent and moduleContent.".into()
        );
    };
    let Some(inner) = content.get(*only).and_then(Value::as_object) else {
        return Err(format!("{only} is not an object."));
    };
    if *only == "modulesContent" {
        if !inner.contains_key("$edgeAgent") {
            return Err("modulesContent has no $edgeAgent.".into());
        }
        return inner.iter().try_for_each(|(module, parts)| keys(module, parts));
    }
    keys(only, &Value::Object(inner.clone()))
}

fn keys(name: &str, parts: &Value) -> Result<(), String> {
    let Some(parts) = parts.as_object() else { return Err(format!("{name} is not an object.")) };
    for (key, value) in parts {
        let path = key.strip_prefix(SECTION);
        let fit = path.is_some_and(|path| path.is_empty() || path.starts_with('.') && !path.contains(".."));
        if !fit || path.is_some_and(|path| path.split('.').count() > 10) {
            return Err(format!("{name} has the key {key:?}, which does not begin with properties.desired."));
        }
        if key == SECTION && !value.is_object() {
            return Err(format!("{key} of {name} is not an object."));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn configuration(id: &str, priority: u64, order: u64, condition: &str, content: Value) -> Configuration {
        let Value::Object(content) = content else { panic!("an object") };
        check(&content).expect("content");
        Configuration {
            id: id.into(),
            schema_version: "1.0".into(),
            labels: Value::Null,
            priority,
            target_condition: condition.into(),
            content,
            metrics: Properties::new(),
            created: String::new(),
            updated: String::new(),
            order,
            etag: 0,
        }
    }

    fn base(image: &str) -> Value {
        json!({"modulesContent": {
            "$edgeAgent": {"properties.desired": {"modules": {"work": {"image": image}}}},
            "$edgeHub": {"properties.desired": {"routes": {"up": "FROM /* INTO $upstream"}}},
            "work": {"properties.desired": {"a": 1, "b": {"c": 2}}},
        }})
    }

    #[test]
    fn the_highest_base_wins_and_layers_above_it_are_put_on() {
        let layer = |n: u64| {
            json!({"modulesContent": {
                "$edgeAgent": {"properties.desired.modules.ha": {"image": format!("ha:{n}")}},
                "work": {"properties.desired.b.d": n},
            }})
        };
        let all = [
            configuration("low", 5, 1, "tags.site = 's'", base("low")),
            configuration("high", 10, 2, "tags.site = 's'", base("high")),
            configuration("newer", 10, 3, "*", base("newer")),
            configuration("elsewhere", 99, 4, "tags.site = 't'", base("elsewhere")),
            configuration("nobody", 99, 5, "", base("nobody")),
            configuration("top", 30, 6, "deviceId = 'edge-1'", layer(30)),
            configuration("next", 20, 7, "*", layer(20)),
            configuration("below", 7, 8, "*", layer(7)),
        ];
        let all: Vec<&Configuration> = all.iter().collect();
        let mut twin =
            json!({"deviceId": "edge-1", "tags": {"site": "s"}, "capabilities": {"iotEdge": true}});
        let found = layers(&all, &twin);
        let ids: Vec<&str> = found.iter().map(|c| c.id.as_str()).collect();
        assert_eq!(ids, ["newer", "next", "top"]);
        let contents: Vec<_> = found.iter().map(|c| &c.content).collect();
        let made = modules(&contents);
        assert_eq!(
            Value::Object(made["$edgeAgent"].0.clone()),
            json!({"modules": {"work": {"image": "newer"}, "ha": {"image": "ha:30"}}})
        );
        assert_eq!(Value::Object(made["work"].0.clone()), json!({"a": 1, "b": {"c": 2, "d": 30}}));
        assert!(made["work"].1);
        // A device that is no edge device gets no modules, and layers alone do nothing.
        assert!(layers(&all[5..], &twin).is_empty());
        twin["capabilities"]["iotEdge"] = false.into();
        assert!(layers(&all, &twin).is_empty());
    }

    #[test]
    fn plain_configurations_set_parts_of_devices_or_modules() {
        let device =
            configuration("d", 1, 1, "*", json!({"deviceContent": {"properties.desired.x": {"y": 1}}}));
        let module = configuration(
            "m",
            1,
            2,
            "FROM devices.modules WHERE moduleId = 'ha'",
            json!({"moduleContent": {"properties.desired.z": 1}}),
        );
        let (on_device, on_module) = (json!({"deviceId": "d"}), json!({"deviceId": "d", "moduleId": "ha"}));
        assert!(device.targets(&on_device) && !device.targets(&on_module));
        assert!(module.targets(&on_module) && !module.targets(&on_device));
        let (section, whole) = section(&[&device.content]);
        assert_eq!((Value::Object(section), whole), (json!({"x": {"y": 1}}), false));
    }

    #[test]
    fn content_that_cannot_be_is_named() {
        for wrong in [
            json!({}),
            json!({"deviceContent": {}, "modulesContent": {"$edgeAgent": {}}}),
            json!({"modulesContent": {"work": {}}}),
            json!({"modulesContent": {"$edgeAgent": {"tags.x": 1}}}),
            json!({"modulesContent": {"$edgeAgent": {"properties.desired": 1}}}),
            json!({"modulesContent": {"$edgeAgent": []}}),
            json!({"deviceContent": {"properties.desired..x": 1}}),
            json!({"deviceContent": {"properties.desiredx": 1}}),
            json!({"deviceContent": 7}),
        ] {
            assert!(check(wrong.as_object().expect("an object")).is_err(), "{wrong}");
        }
    }
}
