//! The section `hub`: whether and how ownership is mirrored into IoT Hub, what the cloud may ask, and with which credentials.
//!
//! Secrets come from the environment or from files of their own, never from the site's shared file and never from the
//! command line, where others could read them. They are checked for their parts here (`secret.rs`) and never repeated in a
//! fault. Whether the hub accepts them is the mirror's business.

mod identity;
mod secret;

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use super::{
    fault::Where,
    listeners::absolute,
    section::{Notes, Section, Spot},
    source::{Environment, text_of},
};
use crate::hub::{
    FlagPath, MirrorKind, Settings,
    flag::Place,
    settings::{EdgeRuntime, Gate},
};

const REFRESH_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);
const TIMEOUT_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);
const SITES_RANGE: RangeInclusive<u32> = 1..=1_000_000;
const UPDATES_RANGE: RangeInclusive<u32> = 1..=100_000;

const MIRROR_ADVICE: &str = "write \"device-twin\", \"module-twin\", \"both\" or \"off\"";
const CREDENTIALS_ADVICE: &str = "name a file with the hub's connection string in hub.connection_string_file, or set \
                                  QUORATE_HUB__CONNECTION_STRING, or write hub.identity and hub.host";
const MODULE_ADVICE: &str = "run the sidecar as an IoT Edge module, or name a file with its module identity's connection string \
                             in hub.module_connection_string_file";
const PATH_ADVICE: &str = "write names separated by dots, such as \"quorate\" or \"plant.quorate\"";
/// What the cloud may ask for.
const VERBS: [&str; 9] =
    ["status", "why", "transfer", "pause", "resume", "drain", "undrain", "prefer", "timing"];

/// The whole section.
pub(super) fn read(mut section: Section, environment: &Environment, notes: &mut Notes) -> Settings {
    let place = section.file();
    let before = notes.faults.len();
    let mirror = section.parsed("mirror", notes, mirror, MIRROR_ADVICE);
    let mirror_broken = notes.faults.len() > before;
    let flag = section.parsed("flag", notes, path, PATH_ADVICE);
    let part = section.parsed("place", notes, part, "write \"desired\", \"tags\" or \"both\"");
    let plain = section.parsed("plain", notes, path, PATH_ADVICE);
    let workload_module = section.parsed(
        "workload_module",
        notes,
        |text| name(text, "a module's name"),
        "write the name of a module as in the deployment",
    );
    let before = notes.faults.len();
    let service = secret::service(&mut section, notes);
    let identity = identity::read(&mut section, environment, notes);
    let host = section.parsed("host", notes, host, "write the hub's host, NAME.azure-devices.net");
    let service_broken = notes.faults.len() > before;
    let before = notes.faults.len();
    let module_file = secret::module_file(&mut section, notes);
    let gateway = section.parsed("gateway", notes, host_name, "write the host name of a device's edgeHub");
    let edge = edge(environment, notes);
    let module_broken = notes.faults.len() > before;
    let defaults = Settings::default();
    let settings = Settings {
        mirror: mirror.as_ref().map_or(
            match edge {
                Some(_) => MirrorKind::ModuleTwin,
                None => MirrorKind::Off,
            },
            |m| m.value,
        ),
        flag: flag.map_or(defaults.flag, |s| s.value),
        place: part.map_or(defaults.place, |s| s.value),
        plain: plain.as_ref().map(|s| s.value.clone()),
        workload_module: workload_module.map(|s| s.value),
        ca_file: ca_file(&mut section, notes),
        refresh: duration(&mut section, "refresh", &REFRESH_RANGE, "1s to 24h", "1h", notes)
            .unwrap_or(defaults.refresh),
        timeout: duration(&mut section, "timeout", &TIMEOUT_RANGE, "1s to 60s", "10s", notes)
            .unwrap_or(defaults.timeout),
        sites: number(&mut section, "sites", &SITES_RANGE, notes).unwrap_or(defaults.sites),
        updates_per_second: number(&mut section, "updates_per_second", &UPDATES_RANGE, notes)
            .unwrap_or(defaults.updates_per_second),
        commands: commands(&mut section, notes).unwrap_or(defaults.commands),
        gate: gate(section.section("gate", notes), notes),
        connection_string: service.as_ref().and_then(|s| s.text.clone()),
        connection_string_file: service.as_ref().and_then(|s| s.file.clone()),
        identity: identity.as_ref().and_then(|s| s.value.clone()),
        host: host.as_ref().map(|s| s.value.clone()),
        module_connection_string_file: module_file.as_ref().map(|s| s.value.clone()),
        gateway: gateway.as_ref().map(|s| s.value.clone()),
        edge,
    };

    let at_mirror = || mirror.as_ref().map_or_else(|| place.clone(), |m| m.at.clone());
    if let Some(plain) = plain.filter(|plain| plain.value.meets(&settings.flag)) {
        let problem = format!("{} and hub.flag {} cannot both stand there", plain.value, settings.flag);
        notes.fault(&plain.at, &section.full("plain"), problem, "choose a path beside the flag");
    }
    let extra = identity.as_ref().filter(|_| service.is_some());
    if let Some(identity) = extra {
        let problem = "is given although there is a connection string";
        notes.fault(&identity.at, &section.full("identity"), problem, "keep one of the two");
    }
    match (&identity, &host) {
        (Some(identity), None) if !service_broken => {
            let advice = "write the hub's host, NAME.azure-devices.net";
            notes.fault(&identity.at, &section.full("host"), "is missing, and identity needs it", advice);
        }
        (None, Some(host)) if !service_broken => {
            let problem = "is only used with hub.identity";
            notes.fault(
                &host.at,
                &section.full("host"),
                problem,
                "leave it out, or write identity = \"arc\"",
            );
        }
        _ => {}
    }
    if let (Some(gateway), None, false) = (&gateway, &module_file, module_broken) {
        let problem = "is only used with hub.module_connection_string_file";
        notes.fault(&gateway.at, &section.full("gateway"), problem, "leave it out");
    }
    let credentials = service
        .as_ref()
        .map(|s| &s.at)
        .or(identity.as_ref().map(|s| &s.at))
        .or(module_file.as_ref().map(|s| &s.at));
    if let (None, false, Some(at)) = (&mirror, mirror_broken, credentials) {
        let problem = "is missing although there are credentials for a hub";
        notes.fault(at, &section.full("mirror"), problem, MIRROR_ADVICE);
    }
    if settings.mirror.devices() && service.is_none() && identity.is_none() && !service_broken {
        let problem = "is missing, and device twins are mirrored";
        notes.fault(&at_mirror(), &section.full("connection_string_file"), problem, CREDENTIALS_ADVICE);
    }
    if settings.mirror.modules() && settings.edge.is_none() && module_file.is_none() && !module_broken {
        let problem = "is missing, and the module twin is mirrored outside IoT Edge";
        notes.fault(&at_mirror(), &section.full("module_connection_string_file"), problem, MODULE_ADVICE);
    }
    if let Some(gate) = settings.gate.as_ref().filter(|_| !settings.mirror.modules()) {
        let problem = format!("has input {:?}, and without the module twin no message comes in", gate.input);
        notes.fault(
            &at_mirror(),
            &section.full("gate"),
            problem,
            "write mirror = \"module-twin\" or \"both\"",
        );
    }
    section.done(notes);
    settings
}

fn mirror(text: &str) -> Result<MirrorKind, String> {
    [MirrorKind::DeviceTwin, MirrorKind::ModuleTwin, MirrorKind::Both, MirrorKind::Off]
        .into_iter()
        .find(|kind| kind.name() == text)
        .ok_or_else(|| format!("{text:?} is not a mirror"))
}

fn part(text: &str) -> Result<Place, String> {
    match text {
        "desired" => Ok(Place::Desired),
        "tags" => Ok(Place::Tags),
        "both" => Ok(Place::Both),
        other => Err(format!("{other:?} is not a part of a twin that the cloud can write")),
    }
}

/// Names below a part of a twin. IoT Hub refuses dots, blanks, `$` and control characters in a name.
fn path(text: &str) -> Result<FlagPath, String> {
    let good = |part: &str| {
        (1..=64).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    };
    if !text.split('.').all(good) {
        return Err(format!("{text:?} is not a path inside a twin: letters, digits, - and _ make a name"));
    }
    // The flag's own fields lie one level deeper, and a twin holds ten.
    if text.split('.').count() > 8 {
        return Err(format!("{text:?} is more than 8 levels deep"));
    }
    FlagPath::try_from(text.to_owned())
}

/// What IoT Hub allows in the name of a module, its input or output.
fn name(text: &str, what: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-.+%_#*?!(),:=@$'".contains(&b);
    match (1..=128).contains(&text.len()) && text.bytes().all(good) && !matches!(text, "." | "..") {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not {what}")),
    }
}

/// A host name, with a port if it has one.
fn host_name(text: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b".-:[]_".contains(&b);
    match (1..=255).contains(&text.len()) && text.bytes().all(good) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not a host name")),
    }
}

/// Tokens of an identity are good for every hub of the company, so they are sent to a full name only.
fn host(text: &str) -> Result<String, String> {
    host_name(text).and_then(|host| match host.contains('.') || host.starts_with("localhost") {
        true => Ok(host),
        false => Err(format!("{text:?} is not the full host name of a hub")),
    })
}

/// What the runtime says, all of it or none.
fn edge(environment: &Environment, notes: &mut Notes) -> Option<EdgeRuntime> {
    const WORKLOAD: &str = "IOTEDGE_WORKLOADURI";
    let workload_uri = environment.get(WORKLOAD)?.to_owned();
    let mut get = |name: &str| {
        if environment.get(name).is_none() {
            let problem = format!("is missing although {WORKLOAD} is set");
            let advice = "IoT Edge sets both; outside of it, unset the other";
            notes.fault(&Where::Environment(name.to_owned()), "", problem, advice);
        }
        environment.get(name).unwrap_or_default().to_owned()
    };
    Some(EdgeRuntime {
        workload_uri,
        hub: get("IOTEDGE_IOTHUBHOSTNAME"),
        device: get("IOTEDGE_DEVICEID"),
        module: get("IOTEDGE_MODULEID"),
        generation: get("IOTEDGE_MODULEGENERATIONID"),
        gateway: get("IOTEDGE_GATEWAYHOSTNAME"),
        api_version: get("IOTEDGE_APIVERSION"),
    })
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
            let problem = format!("{} {problem}", spot.value.display());
            notes.fault(&spot.at, &section.full("ca_file"), problem, advice);
        }
    }
    Some(spot.value)
}

fn duration(
    section: &mut Section,
    key: &'static str,
    range: &RangeInclusive<Duration>,
    words: &str,
    usual: &str,
    notes: &mut Notes,
) -> Option<Duration> {
    let spot = section.duration(key, notes).0?;
    if !range.contains(&spot.value) {
        let advice = format!("write \"{usual}\"; changes are mirrored at once anyway");
        notes.fault(&spot.at, &section.full(key), format!("is outside {words}"), advice);
    }
    Some(spot.value)
}

fn number(
    section: &mut Section,
    key: &'static str,
    range: &RangeInclusive<u32>,
    notes: &mut Notes,
) -> Option<u32> {
    let spot = section.number(key, notes).0?;
    if !range.contains(&spot.value) {
        let problem = format!("is outside {} to {}", range.start(), range.end());
        notes.fault(&spot.at, &section.full(key), problem, "write a number within, or leave it out");
    }
    Some(spot.value)
}

/// Verbs, or one word for all or none of them.
fn commands(section: &mut Section, notes: &mut Notes) -> Option<Vec<String>> {
    let advice = format!("write \"all\", \"none\" or a list out of {}", VERBS.join(", "));
    let spot: Spot<Vec<String>> = section.word_or_texts("commands", notes, &advice)?;
    let known =
        |verb: &str| VERBS.contains(&verb) || (spot.value.len() == 1 && matches!(verb, "all" | "none"));
    for verb in spot.value.iter().filter(|verb| !known(verb)) {
        notes.fault(
            &spot.at,
            &section.full("commands"),
            format!("{verb:?} is not a command"),
            advice.as_str(),
        );
    }
    Some(spot.value)
}

fn gate(mut section: Section, notes: &mut Notes) -> Option<Gate> {
    let advice = "write the name of an input or output as the routes have it";
    let mut end = |key: &'static str, notes: &mut Notes| {
        section.parsed(key, notes, |text| name(text, "the name of an input or output"), advice)
    };
    let before = notes.faults.len();
    let (input, output) = (end("input", notes), end("output", notes));
    let broken = notes.faults.len() > before;
    let gate = match (input, output) {
        (Some(input), Some(output)) => Some(Gate { input: input.value, output: output.value }),
        (None, None) => None,
        (Some(one), None) | (None, Some(one)) => {
            if !broken {
                notes.fault(&one.at, &section.full(""), "needs both input and output", advice);
            }
            None
        }
    };
    section.done(notes);
    gate
}
