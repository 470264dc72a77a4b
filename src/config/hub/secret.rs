//! Connection strings: where they may stand, and whether all their parts are there.
//!
//! No text here ever repeats any part of one.

use std::{collections::BTreeMap, path::PathBuf};

use super::CREDENTIALS_ADVICE;
use crate::{
    config::{
        fault::Where,
        listeners::absolute,
        section::{Notes, Section, Spot},
        source::text_of,
    },
    hub::sas::Secret,
};

const SECRET_MAX_BYTES: u64 = 64 * 1024;
const SERVICE_SHAPE: &str = "use a shared access policy's: HostName=NAME.azure-devices.net;SharedAccessKeyName=NAME;SharedAccessKey=KEY";
const MODULE_SHAPE: &str = "use a module identity's: HostName=NAME.azure-devices.net;DeviceId=NAME;ModuleId=NAME;SharedAccessKey=KEY";

/// The service's connection string: a text from the environment, or a file.
pub(super) struct Service {
    pub(super) text: Option<Secret>,
    pub(super) file: Option<PathBuf>,
    pub(super) at: Where,
}

/// From the environment, or from its file and which. The environment wins.
pub(super) fn service(section: &mut Section, notes: &mut Notes) -> Option<Service> {
    let inline = section.text("connection_string", notes);
    let file = file(section, "connection_string_file", service_shape, SERVICE_SHAPE, notes, inline.is_none());
    let key = section.full("connection_string");
    let Some(spot) = inline else {
        return file.map(|spot| Service { text: None, file: Some(spot.value), at: spot.at });
    };
    if !matches!(spot.at, Where::Environment(_)) {
        notes.fault(&spot.at, &key, "is a secret and does not belong into this file", CREDENTIALS_ADVICE);
        return None;
    }
    let text = spot.value.trim().to_owned();
    match service_shape(&text) {
        Ok(()) => Some(Service { text: Some(text.into()), file: None, at: spot.at }),
        Err(problem) => {
            notes.fault(&spot.at, &key, problem, SERVICE_SHAPE);
            None
        }
    }
}

/// The file with the connection string of the sidecar's own module identity.
pub(super) fn module_file(section: &mut Section, notes: &mut Notes) -> Option<Spot<PathBuf>> {
    file(section, "module_connection_string_file", module_shape, MODULE_SHAPE, notes, true)
}

/// A file with a connection string; `used`: whether what it holds matters.
fn file(
    section: &mut Section,
    key: &'static str,
    shape: fn(&str) -> Result<(), String>,
    right: &str,
    notes: &mut Notes,
    used: bool,
) -> Option<Spot<PathBuf>> {
    let advice = "write an absolute path of a file that holds the connection string";
    let spot = section.parsed(key, notes, |t| absolute(t, 4000), advice).filter(|_| used)?;
    let full = section.full(key);
    let (problem, advice) = match text_of(&spot.value, SECRET_MAX_BYTES) {
        Ok(text) => match shape(text.trim()) {
            Ok(()) => return Some(spot),
            Err(problem) => (problem, right.to_owned()),
        },
        Err(e) => e.words(),
    };
    notes.fault(&spot.at, &full, format!("{} {problem}", spot.value.display()), advice);
    None
}

fn service_shape(text: &str) -> Result<(), String> {
    let parts = parts(text)?;
    if parts.contains_key("DeviceId") {
        return Err("is a device's connection string; the mirror needs the service's".into());
    }
    complete(&parts, &["HostName", "SharedAccessKeyName", "SharedAccessKey"])
}

fn module_shape(text: &str) -> Result<(), String> {
    let parts = parts(text)?;
    if parts.contains_key("SharedAccessKeyName") {
        return Err("is a policy's connection string; here it is a module identity's".into());
    }
    complete(&parts, &["HostName", "DeviceId", "ModuleId", "SharedAccessKey"])
}

fn parts(text: &str) -> Result<BTreeMap<&str, &str>, String> {
    if text.is_empty() {
        return Err("is empty".into());
    }
    if text.contains(char::is_control) {
        return Err("holds more than one line".into());
    }
    Ok(text.split(';').filter_map(|part| part.split_once('=')).collect())
}

fn complete(parts: &BTreeMap<&str, &str>, names: &[&str]) -> Result<(), String> {
    match names.iter().find(|name| parts.get(**name).is_none_or(|value| value.is_empty())) {
        Some(name) => Err(format!("has no {name}")),
        None => Ok(()),
    }
}
