//! The section `hub`: whether and how ownership is mirrored into IoT Hub, and with which credentials.
//!
//! The connection string comes from the environment or from a file of its own, never from the site's shared file and
//! never from the command line, where others could read it. It is checked for its parts here and never repeated in a
//! fault. Whether the hub accepts it is the mirror's business.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use super::{
    Hub, Secret,
    fault::Where,
    listeners::absolute,
    section::{Notes, Section, Spot},
    source::text_of,
};

/// Default of `hub.refresh`.
const REFRESH: Duration = Duration::from_secs(600);
const REFRESH_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(86_400);
const SECRET_MAX_BYTES: u64 = 64 * 1024;

const MIRROR_ADVICE: &str = "write mirror = \"device-twin\" or mirror = \"off\"";
const CREDENTIALS_ADVICE: &str = "name a file with the hub's connection string in hub.connection_string_file, or set \
                                  QUORATE_HUB__CONNECTION_STRING";
const SHAPE_ADVICE: &str = "use a shared access policy's: HostName=NAME.azure-devices.net;SharedAccessKeyName=NAME;SharedAccessKey=KEY";

/// The whole section.
pub(super) fn read(mut section: Section, notes: &mut Notes) -> Hub {
    let place = section.file();
    let (mirror_key, secret_key) = (section.full("mirror"), section.full("connection_string"));
    let before = notes.faults.len();
    let mirror = section.parsed("mirror", notes, mirror, MIRROR_ADVICE);
    let mirror_broken = notes.faults.len() > before;
    let flag_advice = "write names separated by dots, such as \"quorate\" or \"plant.quorate\"";
    let flag = section.parsed("flag", notes, flag_path, flag_advice);
    let ca_file = ca_file(&mut section, notes);
    let refresh = refresh(&mut section, notes);
    let before = notes.faults.len();
    let secret = connection_string(&mut section, notes);
    let secret_broken = notes.faults.len() > before;
    section.done(notes);

    if mirror.is_none() && !mirror_broken && secret.is_some() {
        let at = secret.as_ref().map_or(place.clone(), |(s, _)| s.at.clone());
        notes.fault(&at, &mirror_key, "is missing although there are credentials for a hub", MIRROR_ADVICE);
    }
    if !mirror.as_ref().is_some_and(|m| m.value) {
        return Hub::Off;
    }
    let Some((secret, file)) = secret else {
        if !secret_broken {
            let at = mirror.map_or(place, |m| m.at);
            notes.fault(&at, &secret_key, "is missing, and mirror is on", CREDENTIALS_ADVICE);
        }
        return Hub::Off;
    };
    Hub::DeviceTwin {
        flag_path: flag.map_or_else(|| vec!["quorate".to_owned()], |s| s.value),
        connection_string: Secret(secret.value),
        connection_string_file: file,
        ca_file,
        refresh,
    }
}

fn mirror(text: &str) -> Result<bool, String> {
    match text {
        "device-twin" => Ok(true),
        "off" => Ok(false),
        "module-twin" | "both" => Err(format!("{text:?} is not available in this version")),
        other => Err(format!("{other:?} is not a mirror")),
    }
}

/// Names below `properties.desired`. IoT Hub refuses dots, blanks, `$` and control characters in a name.
fn flag_path(text: &str) -> Result<Vec<String>, String> {
    let parts: Vec<String> = text.split('.').map(str::to_owned).collect();
    let good = |part: &String| {
        (1..=64).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    };
    if !parts.iter().all(good) {
        return Err(format!("{text:?} is not a path inside a twin: letters, digits, - and _ make a name"));
    }
    // The flag's own fields lie one level deeper, and a twin holds ten.
    if parts.len() > 8 {
        return Err(format!("{text:?} is more than 8 levels deep"));
    }
    Ok(parts)
}

fn ca_file(section: &mut Section, notes: &mut Notes) -> Option<PathBuf> {
    let advice = "write an absolute path of a file with PEM certificates";
    let spot = section.parsed("ca_file", notes, |t| absolute(t, 4000), advice)?;
    match text_of(&spot.value, 1024 * 1024) {
        Ok(text) if text.contains("-----BEGIN CERTIFICATE-----") => {}
        Ok(_) => notes.fault(
            &spot.at,
            &section.full("ca_file"),
            format!("{} holds no PEM certificate", spot.value.display()),
            "name a file that begins with -----BEGIN CERTIFICATE-----",
        ),
        Err(e) => {
            let (problem, advice) = e.words();
            notes.fault(
                &spot.at,
                &section.full("ca_file"),
                format!("{} {problem}", spot.value.display()),
                advice,
            );
        }
    }
    Some(spot.value)
}

fn refresh(section: &mut Section, notes: &mut Notes) -> Duration {
    let Some(spot) = section.duration("refresh", notes).0 else { return REFRESH };
    if !REFRESH_RANGE.contains(&spot.value) {
        notes.fault(
            &spot.at,
            &section.full("refresh"),
            "is outside 1s to 24h",
            "write \"10m\"; changes are mirrored at once anyway",
        );
    }
    spot.value
}

/// The connection string from the environment, or from its file and which. The environment wins.
fn connection_string(section: &mut Section, notes: &mut Notes) -> Option<(Spot<String>, Option<PathBuf>)> {
    let inline = section.text("connection_string", notes);
    let advice = "write an absolute path of a file that holds the connection string";
    let file = section.parsed("connection_string_file", notes, |t| absolute(t, 4000), advice);
    let key = section.full("connection_string");
    let spot = match inline {
        Some(spot) if matches!(spot.at, Where::Environment(_)) => spot,
        Some(spot) => {
            notes.fault(&spot.at, &key, "is a secret and does not belong into this file", CREDENTIALS_ADVICE);
            return None;
        }
        None => {
            let file = file?;
            let key = section.full("connection_string_file");
            let text = match text_of(&file.value, SECRET_MAX_BYTES) {
                Ok(text) => text.trim().to_owned(),
                Err(e) => {
                    let (problem, advice) = e.words();
                    notes.fault(&file.at, &key, format!("{} {problem}", file.value.display()), advice);
                    return None;
                }
            };
            if let Err(problem) = shape(&text) {
                notes.fault(&file.at, &key, format!("{} {problem}", file.value.display()), SHAPE_ADVICE);
                return None;
            }
            return Some((Spot { value: text, at: file.at }, Some(file.value)));
        }
    };
    let text = spot.value.trim().to_owned();
    match shape(&text) {
        Ok(()) => Some((Spot { value: text, at: spot.at }, None)),
        Err(problem) => {
            notes.fault(&spot.at, &key, problem, SHAPE_ADVICE);
            None
        }
    }
}

/// Whether all parts are there. The texts never repeat any of it.
fn shape(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty".into());
    }
    if text.contains(char::is_control) {
        return Err("holds more than one line".into());
    }
    let parts: BTreeMap<&str, &str> = text.split(';').filter_map(|part| part.split_once('=')).collect();
    if parts.contains_key("DeviceId") {
        return Err("is a device's connection string; the mirror needs the service's".into());
    }
    for name in ["HostName", "SharedAccessKeyName", "SharedAccessKey"] {
        if parts.get(name).is_none_or(|value| value.is_empty()) {
            return Err(format!("has no {name}"));
        }
    }
    Ok(())
}
