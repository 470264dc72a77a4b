//! The configuration: one TOML file that serves every device of the site, plus the environment, made into one value
//! that cannot be contradictory.
//!
//! [`load`] returns either a [`Config`] or all [`Faults`] at once, each with the file or variable, the key, what is
//! wrong and what to write instead; the caller exits with code 78, because a restart will not help. Nothing here
//! listens, connects or creates: it only reads the file, the secret's file and the certificate's file. The sections
//! are read in one file each; `section.rs` holds how, `source.rs` from where.

mod duration;
mod fault;
mod hub;
mod listeners;
mod probe;
mod section;
mod site;
mod source;
#[cfg(test)]
mod tests;
mod workload;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use self::section::{Notes, Section};
pub use self::{
    duration::{parse as parse_duration, show as show_duration},
    fault::{Fault, Faults, Where},
    source::Environment,
};
use crate::{
    id::DeviceId,
    ownership::{moves::Policy, record::BuildPolicy},
    site::{Member, Site},
    timing::Timing,
    workload::{Demand, Kind, Limits, Settings, User, fingerprint::Covered, runtime::Api},
};

/// Where the file is looked for if nobody says otherwise.
pub const DEFAULT_FILE: &str = "/etc/quorate/quorate.toml";

/// Everything a sidecar must know before it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file it came from; it may not exist if all settings came from the environment.
    pub file: PathBuf,
    /// The site: the same on all members.
    pub site: Site,
    /// This device; one of `site.members`.
    pub me: DeviceId,
    /// Where members reach this sidecar.
    pub peer: Peer,
    /// Where people and workloads reach it.
    pub control: Control,
    /// Where browsers, probes and metrics collectors reach it.
    pub http: Http,
    /// Where it keeps what it promised.
    pub storage: Storage,
    /// What runs on the owner.
    pub workload: Workload,
    /// `workload.fingerprint_files`: what belongs to the workload's build besides its program. Absolute paths.
    pub fingerprint_files: Vec<PathBuf>,
    /// Whether and how the cloud is told.
    pub hub: crate::hub::Settings,
    /// What is asked, to know how well off this device is.
    pub probes: Vec<crate::probe::Settings>,
    /// How willingly the ownership moves.
    pub moves: Policy,
    /// `site.differing_builds`: whether a device owns while it runs something else than the site does.
    pub differing_builds: BuildPolicy,
    /// What is logged and how.
    pub log: Log,
}

impl Config {
    /// This device as a member of the site.
    pub fn my_member(&self) -> Option<&Member> {
        self.site.member(&self.me)
    }

    /// What is allowed but deserves a line in the log: one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(listen) = self.control.listen.filter(|l| !l.ip().is_loopback()) {
            warnings.push(format!(
                "control.listen is {listen}: whoever reaches it can move the workload; it has no encryption and no \
                 password in this version"
            ));
        }
        let voters = self.site.members.len();
        if voters.is_multiple_of(2) {
            warnings.push(format!(
                "site.members has {voters} votes: an even number survives no more losses than {}; a witness helps",
                voters - 1
            ));
        }
        warnings
    }
}

/// Section `peer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// `peer.listen`. Default: all interfaces, on the port of this device's address in `site.members`.
    pub listen: SocketAddr,
}

/// Section `control`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// `control.listen`. Default `127.0.0.1:7601`; `"off"` for none.
    pub listen: Option<SocketAddr>,
    /// `control.socket`, at most 107 bytes. Default `/run/quorate/control.sock` if this user may use or create that
    /// folder, else `control.sock` in `storage.path`; `"off"` for none.
    pub socket: Option<PathBuf>,
}

/// Section `http`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// `http.listen`. Default `0.0.0.0:9600`.
    pub listen: SocketAddr,
}

/// Section `storage`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// `storage.path`, absolute. Default `/var/lib/quorate`.
    pub path: PathBuf,
}

/// Section `workload`. Its `stop_grace` is part of the site's timing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Workload {
    /// `kind = "none"`, the default: nothing is started, others only ask who owns.
    None,
    /// `kind = "gate"`: it runs on every device and asks whether it may act.
    Gate {
        /// `workload.socket`, at most 107 bytes. Default `gate.sock` beside `control.socket`; `"off"` for none.
        socket: Option<PathBuf>,
        /// `workload.lease_file`, absolute and in memory. Default: none.
        lease_file: Option<PathBuf>,
    },
    /// `kind = "module"` or `kind = "container"`: started on the owner by whoever runs containers here, and stopped.
    Container {
        /// By IoT Edge's daemon, or by Docker.
        api: Api,
        /// `workload.runtime_socket`. Default: where it usually is.
        socket: PathBuf,
        /// `workload.module` or `workload.container`: its name. Never empty.
        name: String,
        /// As for a process.
        stop_timeout: Duration,
    },
    /// `kind = "hooks"`: commands that are carried out when this device becomes the owner, and when it is that no more.
    Hooks {
        /// `workload.on_owner`: the program and its arguments; never empty.
        on_owner: Vec<String>,
        /// `workload.on_standby`: never empty.
        on_standby: Vec<String>,
        /// As for a process.
        working_dir: Option<PathBuf>,
        /// As for a process.
        env: BTreeMap<String, String>,
    },
    /// `kind = "process"`.
    Process {
        /// The program and its arguments. Never empty.
        command: Vec<String>,
        /// Where it runs; the sidecar's own folder if absent.
        working_dir: Option<PathBuf>,
        /// Added to what the sidecar sets.
        env: BTreeMap<String, String>,
        /// How long a planned stop waits before KILL. 10 ms to 60 s. Default 10 s.
        stop_timeout: Duration,
        /// `workload.on_standby`: what undoes the rest of it; may be empty.
        on_standby: Vec<String>,
        /// `workload.user`: whom it runs as; as the sidecar if absent.
        user: Option<User>,
        /// `workload.limits`: what it may use of the device.
        limits: Limits,
        /// `workload.ready`, `ready_within` and `watchdog`: whether it has to say that it is ready.
        ready: Option<Demand>,
    },
}

impl Workload {
    /// What the workload's door is told, and the kind's name.
    pub fn settings(&self, timing: &Timing) -> (Settings, &'static str) {
        let stop_grace = timing.stop_grace();
        match self {
            Workload::None => (Settings { stop_grace, ..Settings::default() }, "none"),
            Workload::Gate { .. } => (Settings { stop_grace, ..Settings::default() }, "gate"),
            Workload::Process {
                command,
                working_dir,
                env,
                stop_timeout,
                on_standby,
                user,
                limits,
                ready,
            } => {
                let settings = Settings {
                    kind: Kind::Process,
                    command: command.clone(),
                    undo: on_standby.clone(),
                    working_dir: working_dir.clone(),
                    user: *user,
                    limits: *limits,
                    ready: *ready,
                    env: env.clone(),
                    stop_grace,
                    stop_timeout: *stop_timeout,
                };
                (settings, "process")
            }
            Workload::Container { api, socket, name, stop_timeout } => {
                let settings = Settings::container(*api, socket, name, *stop_timeout);
                (Settings { stop_grace, ..settings }, api.noun())
            }
            Workload::Hooks { on_owner, on_standby, working_dir, env } => {
                let (working_dir, env) = (working_dir.clone(), env.clone());
                let settings = Settings::hooks(on_owner, on_standby);
                (Settings { stop_grace, working_dir, env, ..settings }, "hooks")
            }
        }
    }
}

impl Config {
    /// What a device's build is made of: its workload, and what all devices of a site are told alike. Where each of them listens and
    /// keeps its data is its own business.
    pub fn covered(&self) -> Covered {
        Covered {
            settings: self.workload.settings(&self.site.timing).0,
            files: self.fingerprint_files.clone(),
            configuration: format!("{:?}", (&self.site, &self.probes, &self.moves, self.differing_builds)),
        }
    }
}

/// Section `log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// `log.level`: `error`, `warn`, `info`, `debug` or `trace`. Default `info`.
    pub level: tracing::Level,
    /// `log.format`: `text` (the default; lines as IoT Edge's own modules write them) or `json`.
    pub format: LogFormat,
    /// `log.megabytes_per_day`: how much is written within a day, in millions of bytes; 0: any amount. Default 20.
    pub megabytes_per_day: u32,
}

/// Enough for weeks of a sidecar's own lines, and for a workload's that prints a hundred bytes a second.
const LOG_MEGABYTES_PER_DAY: u32 = 20;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `<6> 2026-11-02 08:15:30.123 +00:00 [INF] - text`
    Text,
    /// One JSON object a line.
    Json,
}

/// Reads and checks everything.
///
/// `file` is what `--config` or `QUORATE_CONFIG` names; without it [`DEFAULT_FILE`] is read, and may be absent if the
/// environment holds settings.
///
/// # Errors
/// All [`Faults`].
pub fn load(file: Option<&Path>, environment: &Environment) -> Result<Config, Faults> {
    let named = file.map(Path::to_path_buf).or_else(|| environment.get("QUORATE_CONFIG").map(PathBuf::from));
    let path = named.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    let (node, faults) = source::read(&path, named.is_some(), environment);
    let Some(node) = node else { return Err(Faults(faults)) };
    let mut notes = Notes { faults, ..Notes::default() };
    let notes = &mut notes;
    let mut root = Section::new("", node, notes);

    let mut section = root.section("site", notes);
    let id = site::site_id(&mut section, notes);
    let (members, whole) = site::members(&mut section, notes);
    let mut device = root.section("device", notes);
    let me = site::me(&mut device, (&members, whole), environment, notes);
    device.done(notes);
    let mut work = root.section("workload", notes);
    let grace = workload::stop_grace(&mut work, notes);
    let timing = site::timing(&mut section, grace, &work, notes);
    let probes = probe::probes(&mut section, notes);
    let moves = probe::policy(&mut section, notes);
    let differing_builds = probe::differing_builds(&mut section, notes);
    section.done(notes);
    let mine = me.as_ref().and_then(|me| members.iter().find(|m| m.device == *me));
    let (peer, control, http, storage) = listeners::all(&mut root, mine, environment, notes);
    let fingerprint_files = workload::fingerprint_files(&mut work, notes);
    let workload = workload::read(work, control.socket.as_deref(), notes);
    let hub = hub::read(root.section("hub", notes), environment, notes);
    let log = log(root.section("log", notes), notes);
    root.done(notes);
    misnamed(environment, notes);
    if let (Some(workload), Some(timing)) = (&workload, &timing) {
        workload::fits(workload, timing, &path, notes);
    }

    match (id, timing, me, workload) {
        (Some(id), Some(timing), Some(me), Some(workload)) if notes.faults.is_empty() => Ok(Config {
            file: path,
            site: Site { id, members, timing },
            me,
            peer,
            control,
            http,
            storage,
            workload,
            fingerprint_files,
            hub,
            probes,
            moves,
            differing_builds,
            log,
        }),
        _ => {
            let mut faults = std::mem::take(&mut notes.faults);
            faults.sort_by(|a, b| a.at.cmp(&b.at));
            Err(Faults(faults))
        }
    }
}

fn log(mut section: Section, notes: &mut Notes) -> Log {
    let level = |text: &str| match text {
        "error" => Ok(tracing::Level::ERROR),
        "warn" => Ok(tracing::Level::WARN),
        "info" => Ok(tracing::Level::INFO),
        "debug" => Ok(tracing::Level::DEBUG),
        "trace" => Ok(tracing::Level::TRACE),
        other => Err(format!("{other:?} is not a level")),
    };
    let level =
        section.parsed("level", notes, level, "write \"error\", \"warn\", \"info\", \"debug\" or \"trace\"");
    let format = |text: &str| match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(format!("{other:?} is not a format")),
    };
    let format = section.parsed("format", notes, format, "write \"text\" or \"json\"");
    let (daily, _) = section.number("megabytes_per_day", notes);
    section.done(notes);
    Log {
        megabytes_per_day: daily.map_or(LOG_MEGABYTES_PER_DAY, |s| s.value),
        level: level.map_or(tracing::Level::INFO, |s| s.value),
        format: format.map_or(LogFormat::Text, |s| s.value),
    }
}

/// `QUORATE_HUB_MIRROR` would be ignored in silence, although it looks like a setting.
fn misnamed(environment: &Environment, notes: &mut Notes) {
    for name in environment.suspicious() {
        let right = |key: &&String| {
            let variable = format!("QUORATE_{}", key.to_uppercase().replace('.', "_"));
            variable == name
        };
        if let Some(key) = notes.known.iter().find(right).cloned() {
            let variable = format!("QUORATE_{}", key.to_uppercase().replace('.', "__"));
            let at = Where::Environment(name.to_owned());
            notes.fault(&at, &key, "is not set by this", format!("write {variable}, with two underscores"));
        }
    }
}
