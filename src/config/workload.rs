//! The section `workload`: what runs on the owner. `stop_grace` is read here and checked with the timing.

mod demands;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    timing::Timing,
    workload::{STOP_TIMEOUT, Settings, User, runtime::Api},
};

use self::demands::{limits, readiness};
use super::{
    Where, Workload,
    listeners::{SOCKET_PATH_MAX, absolute},
    section::{Notes, Section, Spot},
};

const KIND_ADVICE: &str = "write kind = \"process\" (with command), \"module\" or \"container\" (with its name), \"hooks\" (with on_owner \
     and on_standby), \"gate\" (it runs everywhere and asks whether it may act) or \"none\" (others only ask who owns)";
/// The least grace for what is started and stopped by asking somebody else.
const CONTAINER_GRACE: Duration = Duration::from_secs(1);
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

/// `workload.fingerprint_files`.
pub(super) fn fingerprint_files(section: &mut Section, notes: &mut Notes) -> Vec<PathBuf> {
    let advice = "write a list of absolute paths, such as [\"/srv/model.onnx\"]";
    let Some(spot) = section.texts("fingerprint_files", notes, advice) else { return Vec::new() };
    let mut files = Vec::new();
    for text in &spot.value {
        match absolute(text, 4000) {
            Ok(path) => files.push(path),
            Err(problem) => notes.fault(&spot.at, &section.full("fingerprint_files"), problem, advice),
        }
    }
    files
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
    let user = user(&mut section, kind.as_ref(), notes);
    let limits = limits(&mut section, kind.as_ref(), notes);
    let ready = readiness(&mut section, kind.as_ref(), notes);
    let container = container(&mut section, kind.as_ref(), stop_timeout, notes);
    let [on_owner, on_standby] = hooks(&mut section, kind.as_ref(), notes);
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
            Some(Workload::Process {
                command: command.value,
                working_dir,
                env,
                stop_timeout,
                on_standby,
                user,
                limits,
                ready,
            })
        }
        (Kind::Process, None) => {
            if !command_broken {
                let at = kind.map_or(file, |s| s.at);
                notes.fault(&at, &command_key, "is missing, and kind is \"process\"", COMMAND_ADVICE);
            }
            None
        }
        (kind, Some(command)) => {
            notes.fault(
                &command.at,
                &command_key,
                format!("would never run, because kind is \"{}\"", kind.name()),
                "write kind = \"process\", or remove the command",
            );
            None
        }
        (Kind::None, None) => Some(Workload::None),
        (Kind::Gate, None) => Some(gate),
        (Kind::Module | Kind::Container, None) => container,
        (Kind::Hooks, None) => Some(Workload::Hooks { on_owner, on_standby, working_dir, env }),
    }
}

/// What a site's timing must leave for a workload that others start and stop.
pub(super) fn fits(workload: &Workload, timing: &Timing, file: &Path, notes: &mut Notes) {
    if matches!(workload, Workload::Container { .. }) && timing.stop_grace() < CONTAINER_GRACE {
        let at = Where::File { path: file.display().to_string(), line: None };
        let problem = format!(
            "is {}, and a container is not ended for certain in less than {}",
            super::show_duration(timing.stop_grace()),
            super::show_duration(CONTAINER_GRACE)
        );
        notes.fault(
            &at,
            "workload.stop_grace",
            problem,
            "write stop_grace = \"2s\"; a takeover takes as much longer",
        );
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    Process,
    Module,
    Container,
    Hooks,
    Gate,
}

impl Kind {
    const ALL: [Kind; 6] =
        [Kind::None, Kind::Process, Kind::Module, Kind::Container, Kind::Hooks, Kind::Gate];

    fn name(self) -> &'static str {
        match self {
            Kind::None => "none",
            Kind::Process => "process",
            Kind::Module => "module",
            Kind::Container => "container",
            Kind::Hooks => "hooks",
            Kind::Gate => "gate",
        }
    }
}

fn kind(text: &str) -> Result<Kind, String> {
    Kind::ALL
        .into_iter()
        .find(|kind| kind.name() == text)
        .ok_or_else(|| format!("{text:?} is not a kind of workload"))
}

/// The key belongs to other kinds than this.
fn foreign<T>(section: &Section, key: &str, spot: Option<&Spot<T>>, of: &str, notes: &mut Notes) {
    if let Some(spot) = spot {
        let problem = format!("is for kind = {of}, and kind is another");
        notes.fault(&spot.at, &section.full(key), problem, "change kind, or remove it");
    }
}

/// The container that kind names, if it does.
fn container(
    section: &mut Section,
    kind: Option<&Spot<Kind>>,
    stop_timeout: Duration,
    notes: &mut Notes,
) -> Option<Workload> {
    let named = |text: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.-$".contains(c);
        match !text.is_empty() && text.len() <= 128 && text.chars().all(plain) {
            true => Ok(text.to_owned()),
            false => Err(format!("{text:?} is not a name")),
        }
    };
    let advice = "write its name, as IoT Edge or Docker shows it";
    let names = [
        (Kind::Module, Api::Edge, section.parsed("module", notes, named, advice)),
        (Kind::Container, Api::Docker, section.parsed("container", notes, named, advice)),
    ];
    let advice = "write an absolute path of a socket, such as \"/var/run/iotedge/mgmt.sock\"";
    let socket = section.parsed("runtime_socket", notes, |t| absolute(t, SOCKET_PATH_MAX), advice);
    let mut found = None;
    for (of, api, name) in names {
        if kind.is_none_or(|kind| kind.value != of) {
            foreign(section, api.noun(), name.as_ref(), &format!("{:?}", of.name()), notes);
            continue;
        }
        let Some(name) = name else {
            let (at, key) = (kind.map_or_else(|| section.file(), |k| k.at.clone()), section.full(api.noun()));
            notes.missing(&at, &key, "write its name, as IoT Edge or Docker shows it");
            continue;
        };
        let path = socket.as_ref().map_or_else(|| api.usual_socket().into(), |s| s.value.clone());
        found = Some(Workload::Container { api, socket: path, name: name.value, stop_timeout });
    }
    if !kind.is_some_and(|kind| matches!(kind.value, Kind::Module | Kind::Container)) {
        foreign(section, "runtime_socket", socket.as_ref(), "\"module\" or \"container\"", notes);
    }
    found
}

/// `workload.user`. Names are looked up on this device.
fn user(section: &mut Section, kind: Option<&Spot<Kind>>, notes: &mut Notes) -> Option<User> {
    let named = |text: &str| {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        User::named(text, &passwd)
    };
    let advice = "write a user of this device, or numbers: \"1000:1000\"";
    let spot = section.parsed("user", notes, named, advice);
    if !kind.is_some_and(|kind| kind.value == Kind::Process) {
        foreign(section, "user", spot.as_ref(), "\"process\"", notes);
    } else if let Some(spot) = &spot
        && !rustix::process::geteuid().is_root()
        && spot.value.uid != rustix::process::geteuid().as_raw()
    {
        let problem = "is another user, and this sidecar does not run as root";
        notes.fault(&spot.at, &section.full("user"), problem, "run the sidecar as root or as that user");
    }
    spot.map(|spot| spot.value)
}

/// `on_owner` and `on_standby`.
fn hooks(section: &mut Section, kind: Option<&Spot<Kind>>, notes: &mut Notes) -> [Vec<String>; 2] {
    let [on_owner, on_standby] =
        ["on_owner", "on_standby"].map(|key| section.texts(key, notes, COMMAND_ADVICE));
    for (key, spot) in [("on_owner", &on_owner), ("on_standby", &on_standby)] {
        if let Some(spot) = spot
            && spot.value.first().is_none_or(|program| program.trim().is_empty())
        {
            notes.fault(&spot.at, &section.full(key), "names no program", COMMAND_ADVICE);
        }
    }
    let kind_is = |kinds: &[Kind]| kind.is_some_and(|kind| kinds.contains(&kind.value));
    if !kind_is(&[Kind::Hooks]) {
        foreign(section, "on_owner", on_owner.as_ref(), "\"hooks\"", notes);
    } else {
        let at = kind.map_or_else(|| section.file(), |k| k.at.clone());
        if on_owner.is_none() {
            let advice = "write the command that takes what the owner has, or [\"true\"] if there is none";
            notes.missing(&at, &section.full("on_owner"), advice);
        }
        if on_standby.is_none() {
            let advice = "write the command that undoes what on_owner does";
            notes.missing(&at, &section.full("on_standby"), advice);
        }
    }
    if !kind_is(&[Kind::Hooks, Kind::Process]) {
        foreign(section, "on_standby", on_standby.as_ref(), "\"hooks\" or \"process\"", notes);
    }
    [on_owner, on_standby].map(|spot| spot.map(|spot| spot.value).unwrap_or_default())
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
        foreign(section, "socket", socket.as_ref(), "\"gate\"", notes);
        foreign(section, "lease_file", lease_file.as_ref(), "\"gate\"", notes);
    }
    if let (Some(spot), Some(control)) = (&socket, control)
        && spot.value.as_deref() == Some(control)
    {
        let problem = "is control.socket, where something else is spoken";
        let advice = "write another path, such as \"/run/quorate/gate.sock\"";
        notes.fault(&spot.at, &section.full("socket"), problem, advice);
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
