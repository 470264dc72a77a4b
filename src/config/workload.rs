//! The section `workload`: what runs on the owner. `stop_grace` is read here and checked with the timing.

use std::{collections::BTreeMap, path::Path, time::Duration};

use crate::workload::{STOP_TIMEOUT, Settings};

use super::{
    Workload,
    listeners::{SOCKET_PATH_MAX, absolute},
    section::{Notes, Section, Spot},
};

const KIND_ADVICE: &str = "write kind = \"process\" (with command), \"gate\" (it runs everywhere and asks whether it may act) or \"none\" (others only ask who owns)";
const COMMAND_ADVICE: &str =
    "write a list: the program, then its arguments, such as [\"/usr/bin/app\", \"--fast\"]";

/// `workload.stop_grace`, and whether it was written but cannot be read.
pub(super) fn stop_grace(section: &mut Section, notes: &mut Notes) -> (Option<Spot<Duration>>, bool) {
    section.duration("stop_grace", notes)
}

/// `workload.stop_timeout`.
fn stop_timeout(section: &mut Section, notes: &mut Notes) -> Duration {
    let key = section.full("stop_timeout");
    let Some(spot) = section.duration("stop_timeout", notes).0 else {
        return Settings::default().stop_timeout;
    };
    if !STOP_TIMEOUT.contains(&spot.value) {
        let problem = format!("{} is outside 10ms to 60s", super::show_duration(spot.value));
        notes.fault(&spot.at, &key, problem, "use the time your workload needs to end in good order");
    }
    spot.value
}

/// The rest of the section. `control` is the control socket.
pub(super) fn read(mut section: Section, control: Option<&Path>, notes: &mut Notes) -> Option<Workload> {
    let kind_key = section.full("kind");
    let before = notes.faults.len();
    let kind = section.parsed("kind", notes, kind, KIND_ADVICE);
    let kind_broken = notes.faults.len() > before;
    let command_before = notes.faults.len();
    let command = section.texts("command", notes, COMMAND_ADVICE);
    let command_broken = notes.faults.len() > command_before;
    let advice = "write an absolute path of a folder on this device";
    let working_dir = section.parsed("working_dir", notes, |t| absolute(t, 4000), advice).map(|s| s.value);
    let env = environment(section.section("env", notes), notes);
    let stop_timeout = stop_timeout(&mut section, notes);
    let gate = gate(&mut section, control, kind.as_ref().map(|kind| kind.value), notes);
    section.not_yet("health", notes, "leave it out; a workload that ends is restarted on the owner");

    let chosen = match (&kind, &command) {
        (Some(kind), _) => kind.value,
        (None, Some(command)) => {
            if !kind_broken {
                notes.fault(&command.at, &kind_key, "is missing although there is a command", KIND_ADVICE);
            }
            Kind::Process
        }
        (None, None) => Kind::None,
    };
    let file = section.file();
    let command_key = section.full("command");
    section.done(notes);
    match (chosen, command) {
        (Kind::Process, Some(command)) => {
            if command.value.first().is_none_or(|program| program.trim().is_empty()) {
                notes.fault(&command.at, &command_key, "names no program", COMMAND_ADVICE);
            }
            if command.value.iter().any(|part| part.contains('\0')) {
                notes.fault(&command.at, &command_key, "holds a zero byte", COMMAND_ADVICE);
            }
            Some(Workload::Process { command: command.value, working_dir, env, stop_timeout })
        }
        (Kind::Process, None) => {
            if !command_broken {
                let at = kind.map_or(file, |s| s.at);
                notes.fault(&at, &command_key, "is missing, and kind is \"process\"", COMMAND_ADVICE);
            }
            None
        }
        (kind @ (Kind::None | Kind::Gate), Some(command)) => {
            let name = if kind == Kind::Gate { "gate" } else { "none" };
            notes.fault(
                &command.at,
                &command_key,
                format!("would never run, because kind is \"{name}\""),
                "write kind = \"process\", or remove the command",
            );
            None
        }
        (Kind::None, None) => Some(Workload::None),
        (Kind::Gate, None) => Some(gate),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    Process,
    Gate,
}

fn kind(text: &str) -> Result<Kind, String> {
    match text {
        "process" => Ok(Kind::Process),
        "gate" => Ok(Kind::Gate),
        "none" => Ok(Kind::None),
        "module" | "container" => Err(format!("{text:?} is not available in this version")),
        other => Err(format!("{other:?} is not a kind of workload")),
    }
}

/// What only a gate has: where programs ask.
fn gate(section: &mut Section, control: Option<&Path>, kind: Option<Kind>, notes: &mut Notes) -> Workload {
    let parse = |text: &str| match text {
        "off" => Ok(None),
        text => absolute(text, SOCKET_PATH_MAX).map(Some),
    };
    let advice =
        "write an absolute path of at most 107 bytes, such as \"/run/quorate/gate.sock\", or \"off\"";
    let socket = section.parsed("socket", notes, parse, advice);
    let advice = "write an absolute path in a folder in memory, such as \"/run/quorate/lease.json\"";
    let named = |text: &str| {
        let path = absolute(text, 4000)?;
        match path.file_name() {
            Some(_) if !text.ends_with('/') => Ok(path),
            _ => Err(format!("{text:?} names no file")),
        }
    };
    let lease_file = section.parsed("lease_file", notes, named, advice);
    if kind != Some(Kind::Gate) {
        let places =
            [("socket", socket.as_ref().map(|s| &s.at)), ("lease_file", lease_file.as_ref().map(|s| &s.at))];
        for (key, at) in places {
            if let Some(at) = at {
                let key = section.full(key);
                notes.fault(
                    at,
                    &key,
                    "is for a gate, and kind is another",
                    "write kind = \"gate\", or remove it",
                );
            }
        }
    }
    let beside = || control.and_then(Path::parent).map(|folder| folder.join("gate.sock"));
    Workload::Gate {
        socket: socket.map_or_else(beside, |s| s.value),
        lease_file: lease_file.map(|s| s.value),
    }
}

fn environment(section: Section, notes: &mut Notes) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let full = |name: &str| format!("workload.env.{name}");
    for (name, spot) in section.free_texts(notes) {
        if name.is_empty() || name.contains(['=', '\0']) || spot.value.contains('\0') {
            let advice = "write NAME = \"value\"; a name holds no equals sign, neither holds a zero byte";
            notes.fault(&spot.at, &full(&name), "is not an environment variable", advice);
        } else if ["QUORATE_EPOCH", "QUORATE_DEVICE", "QUORATE_SITE", "QUORATE_CONTROL_SOCKET"]
            .contains(&&*name)
        {
            notes.fault(&spot.at, &full(&name), "is set by the sidecar itself", "remove it");
        } else {
            env.insert(name, spot.value);
        }
    }
    env
}
