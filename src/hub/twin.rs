//! A twin as a value, and the rules by which IoT Hub changes one.
//!
//! Everything here is pure: no clock, no network, no etag of its own making. The client reads twins with it, the hub in
//! memory and the emulator apply changes with it, so both sides mean the same. A patch merges object by object
//! (RFC 7396): `null` deletes, an absent key is untouched, a scalar or array replaces as a whole. Where the hub's own
//! behaviour is not documented, the choice made is written beside it.

use serde_json::{Map, Value, json};

/// A JSON object: tags, or one section's properties.
pub type Properties = Map<String, Value>;

/// The largest total of one twin's tags, in bytes of keys and values.
pub const TAGS_MAX: usize = 8 * 1024;
/// The largest total of the desired or of the reported properties, in bytes of keys and values.
pub const SECTION_MAX: usize = 32 * 1024;
/// The deepest nesting of objects.
pub const DEPTH_MAX: usize = 10;
/// The longest key, in bytes.
pub const KEY_MAX: usize = 1024;
/// The longest string value, in bytes.
pub const TEXT_MAX: usize = 4 * 1024;
/// Integers must lie in -2^52 ..= 2^52 - 1.
pub const INTEGER_MAX: i64 = (1 << 52) - 1;

/// Why a text is not a twin, or a change is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A part that every twin has is missing or of the wrong type.
    #[error("{0} is missing or not what a twin has there")]
    Part(&'static str),
    /// A change breaks one of the hub's limits.
    #[error("{0}")]
    Limit(String),
}

/// The desired or the reported properties, with what the hub keeps about them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Section {
    /// The properties, without `$metadata` and `$version`.
    pub values: Properties,
    /// Grows by one with every accepted change of this section.
    pub version: u64,
    /// When each key was last changed, as the hub shows it under `$metadata`.
    pub metadata: Properties,
}

/// One twin of a device or a module.
#[derive(Debug, Clone, PartialEq)]
pub struct Twin {
    /// The device it belongs to.
    pub device: String,
    /// The module, for a module's twin.
    pub module: Option<String>,
    /// Changes with every change of the twin. Bare: the quotes belong to HTTP.
    pub etag: String,
    /// Grows with every change of the twin.
    pub version: u64,
    /// Whether the identity may not connect: somebody has disabled it.
    pub disabled: bool,
    /// What only the cloud sees.
    pub tags: Properties,
    /// What the cloud wants of the device. The flag lives here.
    pub desired: Section,
    /// What the device says of itself. The cloud cannot write it.
    pub reported: Section,
}

/// A change from the cloud's side. `None` leaves the part alone.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Change {
    /// Merged into, or put in the place of, the tags.
    pub tags: Option<Properties>,
    /// Merged into, or put in the place of, the desired properties.
    pub desired: Option<Properties>,
}

/// How a [`Change`] is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// PATCH: merge.
    Merge,
    /// PUT: replace the parts that are present. (What the hub does with absent ones is not documented.)
    Replace,
}

impl Twin {
    /// The twin of an identity that was just created, as the hub starts it: version 2, both sections at version 1.
    pub fn new(device: &str, module: Option<&str>, etag: String, at: &str) -> Twin {
        let mut desired = Section { version: 1, ..Section::default() };
        stamp(&mut desired.metadata, at, Some(1));
        let mut reported = Section { version: 1, ..Section::default() };
        stamp(&mut reported.metadata, at, None);
        Twin {
            device: device.to_owned(),
            module: module.map(str::to_owned),
            etag,
            version: 2,
            disabled: false,
            tags: Properties::new(),
            desired,
            reported,
        }
    }

    /// Reads the hub's JSON. Fields it does not know are ignored.
    ///
    /// # Errors
    /// [`Malformed::Part`] names the first part that is not a twin's.
    pub fn from_json(json: &Value) -> Result<Twin, Malformed> {
        let text = |name: &'static str| {
            json.get(name)
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
                .ok_or(Malformed::Part(name))
        };
        let properties = json.get("properties").ok_or(Malformed::Part("properties"))?;
        Ok(Twin {
            device: text("deviceId")?,
            module: json.get("moduleId").and_then(Value::as_str).map(str::to_owned),
            etag: text("etag")?,
            version: json.get("version").and_then(Value::as_u64).ok_or(Malformed::Part("version"))?,
            disabled: json.get("status").and_then(Value::as_str) == Some("disabled"),
            tags: match json.get("tags") {
                None | Some(Value::Null) => Properties::new(),
                Some(Value::Object(tags)) => tags.clone(),
                Some(_) => return Err(Malformed::Part("tags")),
            },
            desired: Section::from_json(properties.get("desired"), "properties.desired")?,
            reported: Section::from_json(properties.get("reported"), "properties.reported")?,
        })
    }

    /// The twin as the hub shows it; what an identity registry knows beside it is added by the emulator.
    pub fn to_json(&self) -> Value {
        let mut json = json!({
            "deviceId": self.device,
            "etag": self.etag,
            "version": self.version,
            "tags": self.tags,
            "properties": { "desired": self.desired.to_json(), "reported": self.reported.to_json() },
        });
        if let (Some(module), Some(map)) = (&self.module, json.as_object_mut()) {
            map.insert("moduleId".into(), module.clone().into());
        }
        json
    }

    /// Applies a change from the cloud's side; `at` is the hub's time, RFC 3339. The etag is the caller's to change.
    ///
    /// # Errors
    /// [`Malformed::Limit`]; then the twin is unchanged.
    pub fn change(&mut self, change: &Change, manner: Manner, at: &str) -> Result<(), Malformed> {
        let mut next = self.clone();
        if let Some(tags) = &change.tags {
            check(tags, "tags")?;
            if manner == Manner::Replace {
                next.tags.clear();
            }
            merge(&mut next.tags, tags);
            check_size(&next.tags, TAGS_MAX, "tags")?;
        }
        if let Some(desired) = &change.desired {
            let desired = without_dollars(desired);
            check(&desired, "properties.desired")?;
            next.desired.apply(&desired, manner, at, true);
            check_size(&next.desired.values, SECTION_MAX, "properties.desired")?;
        }
        next.version += 1;
        *self = next;
        Ok(())
    }

    /// Merges what the device says of itself; `at` is the hub's time, RFC 3339. The etag is the caller's to change.
    ///
    /// # Errors
    /// [`Malformed::Limit`]; then the twin is unchanged.
    pub fn report(&mut self, patch: &Properties, at: &str) -> Result<(), Malformed> {
        check(patch, "properties.reported")?;
        let mut next = self.reported.clone();
        next.apply(patch, Manner::Merge, at, false);
        check_size(&next.values, SECTION_MAX, "properties.reported")?;
        self.reported = next;
        self.version += 1;
        Ok(())
    }
}

impl Section {
    fn from_json(json: Option<&Value>, name: &'static str) -> Result<Section, Malformed> {
        let mut values = match json {
            None | Some(Value::Null) => return Ok(Section::default()),
            Some(Value::Object(values)) => values.clone(),
            Some(_) => return Err(Malformed::Part(name)),
        };
        let version = values.remove("$version").as_ref().and_then(Value::as_u64).unwrap_or(0);
        let metadata = match values.remove("$metadata") {
            Some(Value::Object(metadata)) => metadata,
            _ => Properties::new(),
        };
        Ok(Section { values, version, metadata })
    }

    fn to_json(&self) -> Value {
        let mut json = self.values.clone();
        json.insert("$metadata".into(), Value::Object(self.metadata.clone()));
        json.insert("$version".into(), self.version.into());
        Value::Object(json)
    }

    fn apply(&mut self, patch: &Properties, manner: Manner, at: &str, desired: bool) {
        self.version += 1;
        if manner == Manner::Replace {
            self.values.clear();
            self.metadata.clear();
        }
        merge(&mut self.values, patch);
        annotate(&mut self.metadata, patch, at, desired.then_some(self.version));
    }
}

impl Change {
    /// Reads the body of a PATCH or PUT. Parts that the cloud cannot write (`reported`, `etag`, ids) are ignored, as
    /// the hub ignores them.
    ///
    /// # Errors
    /// [`Malformed::Part`] if the body, `tags` or `properties.desired` is not an object.
    pub fn from_json(json: &Value) -> Result<Change, Malformed> {
        let part = |value: Option<&Value>, name| match value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map.clone())),
            Some(_) => Err(Malformed::Part(name)),
        };
        if !json.is_object() {
            return Err(Malformed::Part("the body"));
        }
        let properties = part(json.get("properties"), "properties")?.unwrap_or_default();
        Ok(Change {
            tags: part(json.get("tags"), "tags")?,
            desired: part(properties.get("desired"), "properties.desired")?,
        })
    }

    /// The body of a PATCH or PUT.
    pub fn to_json(&self) -> Value {
        let mut json = Properties::new();
        if let Some(tags) = &self.tags {
            json.insert("tags".into(), Value::Object(tags.clone()));
        }
        if let Some(desired) = &self.desired {
            json.insert("properties".into(), json!({ "desired": desired }));
        }
        Value::Object(json)
    }
}

/// Merges `patch` into `target`, object by object (RFC 7396).
pub fn merge(target: &mut Properties, patch: &Properties) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Object(inner) => {
                let slot = target.entry(key.clone()).or_insert_with(|| Value::Object(Properties::new()));
                if !slot.is_object() {
                    *slot = Value::Object(Properties::new());
                }
                if let Value::Object(below) = slot {
                    merge(below, inner);
                }
            }
            other => {
                target.insert(key.clone(), other.clone());
            }
        }
    }
}

/// Keeps `$metadata` beside a merge: every object that the patch touched and every value that it set gets a stamp.
fn annotate(metadata: &mut Properties, patch: &Properties, at: &str, version: Option<u64>) {
    stamp(metadata, at, version);
    for (key, value) in patch {
        match value {
            Value::Null => {
                metadata.remove(key);
            }
            Value::Object(inner) => {
                let slot = metadata.entry(key.clone()).or_insert_with(|| Value::Object(Properties::new()));
                if let Value::Object(below) = slot {
                    annotate(below, inner, at, version);
                }
            }
            _ => {
                let mut leaf = Properties::new();
                stamp(&mut leaf, at, version);
                metadata.insert(key.clone(), Value::Object(leaf));
            }
        }
    }
}

fn stamp(metadata: &mut Properties, at: &str, version: Option<u64>) {
    metadata.insert("$lastUpdated".into(), at.into());
    if let Some(version) = version {
        metadata.insert("$lastUpdatedVersion".into(), version.into());
    }
}

/// A client may send a section back as it was read: the hub's own two keys are ignored, not refused. (Undocumented.)
fn without_dollars(section: &Properties) -> Properties {
    section
        .iter()
        .filter(|(key, _)| *key != "$metadata" && *key != "$version")
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Checks keys, nesting, texts and integers of a patch.
fn check(patch: &Properties, part: &str) -> Result<(), Malformed> {
    fn value(value: &Value, at: &str, depth: usize) -> Result<(), Malformed> {
        match value {
            Value::Object(map) => object(map, at, depth + 1),
            Value::Array(items) => items.iter().try_for_each(|item| value_in_array(item, at, depth)),
            Value::String(text) if text.len() > TEXT_MAX => {
                Err(Malformed::Limit(format!("{at} is longer than {TEXT_MAX} bytes")))
            }
            Value::Number(number) => {
                let fits = match (number.as_i64(), number.as_u64()) {
                    (Some(n), _) => (-INTEGER_MAX - 1..=INTEGER_MAX).contains(&n),
                    (None, Some(_)) => false,
                    (None, None) => true,
                };
                fits.then_some(())
                    .ok_or_else(|| Malformed::Limit(format!("{at} is outside -2^52 to 2^52 - 1")))
            }
            _ => Ok(()),
        }
    }
    fn value_in_array(item: &Value, at: &str, depth: usize) -> Result<(), Malformed> {
        // Arrays nest too; without this a deep array would pass unchecked.
        if depth >= DEPTH_MAX {
            return Err(Malformed::Limit(format!("{at} is nested deeper than {DEPTH_MAX} levels")));
        }
        value(item, at, if item.is_array() { depth + 1 } else { depth })
    }
    fn object(map: &Properties, at: &str, depth: usize) -> Result<(), Malformed> {
        if depth > DEPTH_MAX {
            return Err(Malformed::Limit(format!("{at} is nested deeper than {DEPTH_MAX} levels")));
        }
        for (key, inner) in map {
            key_is_allowed(key).map_err(|why| Malformed::Limit(format!("a key under {at} {why}")))?;
            value(inner, &format!("{at}.{key}"), depth)?;
        }
        Ok(())
    }
    object(patch, part, 0)
}

/// The hub's rules for a key: 1 to 1024 bytes; no `.`, `$`, space or control character.
///
/// # Errors
/// The rule that it breaks, as the rest of a sentence.
pub fn key_is_allowed(key: &str) -> Result<(), String> {
    if key.is_empty() {
        return Err("is empty".into());
    }
    if key.len() > KEY_MAX {
        return Err(format!("is longer than {KEY_MAX} bytes"));
    }
    match key.chars().find(|c| matches!(c, '.' | '$' | ' ') || c.is_control()) {
        Some(c) => Err(format!("holds {c:?}, which a twin's key cannot")),
        None => Ok(()),
    }
}

fn check_size(values: &Properties, most: usize, part: &str) -> Result<(), Malformed> {
    let size = size_of(values);
    if size > most {
        return Err(Malformed::Limit(format!("{part} would hold {size} bytes; {most} are allowed")));
    }
    Ok(())
}

/// The size by the hub's count: bytes of keys and texts, 8 for a number, 4 for a boolean.
fn size_of(values: &Properties) -> usize {
    fn one(value: &Value) -> usize {
        match value {
            Value::Null => 0,
            Value::Bool(_) => 4,
            Value::Number(_) => 8,
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(one).sum(),
            Value::Object(map) => size_of(map),
        }
    }
    values.iter().map(|(key, value)| key.len() + one(value)).sum()
}

#[cfg(test)]
mod tests;
