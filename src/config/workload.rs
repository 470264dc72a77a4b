//! The section `workload`: what runs on the owner. `stop_grace` is read here and checked with the timing.

use std::{collections::BTreeMap, time::Duration};

use crate::workload::{STOP_TIMEOUT, Settings};

use super::{
    Workload,
    listeners::absolute,
    section::{Notes, Section, Spot},
};

const KIND_ADVICE: &str =
    "write kind = \"process\" (with command) or kind = \"none\" (others only ask who owns)";
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

/// The rest of the section.
pub(super) fn read(mut section: Section, notes: &mut Notes) -> Option<Workload> {
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
    section.not_yet("health", notes, "leave it out; a workload that ends is restarted on the owner");

    let is_process = match (&kind, &command) {
        (Some(kind), _) => kind.value,
        (None, Some(command)) => {
            if !kind_broken {
                notes.fault(&command.at, &kind_key, "is missing although there is a command", KIND_ADVICE);
            }
            true
        }
        (None, None) => false,
    };
    let file = section.file();
    let command_key = section.full("command");
    section.done(notes);
    match (is_process, command) {
        (true, Some(command)) => {
            if command.value.first().is_none_or(|program| program.trim().is_empty()) {
                notes.fault(&command.at, &command_key, "names no program", COMMAND_ADVICE);
            }
            if command.value.iter().any(|part| part.contains('\0')) {
                notes.fault(&command.at, &command_key, "holds a zero byte", COMMAND_ADVICE);
            }
            Some(Workload::Process { command: command.value, working_dir, env, stop_timeout })
        }
        (true, None) => {
            if !command_broken {
                let at = kind.map_or(file, |s| s.at);
                notes.fault(&at, &command_key, "is missing, and kind is \"process\"", COMMAND_ADVICE);
            }
            None
        }
        (false, Some(command)) => {
            if kind.is_some() {
                notes.fault(
                    &command.at,
                    &command_key,
                    "would never run, because kind is \"none\"",
                    "write kind = \"process\", or remove the command",
                );
            }
            None
        }
        (false, None) => Some(Workload::None),
    }
}

/// True for a process.
fn kind(text: &str) -> Result<bool, String> {
    match text {
        "process" => Ok(true),
        "none" => Ok(false),
        "module" | "gate" => Err(format!("{text:?} is not available in this version")),
        other => Err(format!("{other:?} is not a kind of workload")),
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
