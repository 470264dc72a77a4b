//! `quorate support-bundle`: one file with all that somebody needs who was not there, and without what nobody may see.
//!
//! What the sidecar says, what the events on disk say if it says nothing, the configuration, and facts about this device. Every text
//! passes `redact.rs` before it is written; nothing is sent anywhere.

mod facts;
mod redact;
mod tar;

use std::{
    fs::OpenOptions,
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use self::{
    redact::{Known, REMOVED, is_secret, settings},
    tar::Archive,
};
use super::{
    DONE, NO, REFUSED, Stop,
    client::{ANSWER_TIME, Target, Trouble, read_report},
    events, say, tell,
    when::date_seconds,
};
use crate::{
    clock::{BootClock, Clock as _},
    config::{self, DEFAULT_FILE, Environment},
    control::proto::GetEventsRequest,
    status::{plan::plan, ring::Ring},
};

/// No honest configuration or credential is larger.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// Write one file for whoever helps: status, history, events, configuration, facts of this device
///
/// A tar archive, readable by you alone. Left out are credentials, what the workload is
/// told (its arguments and environment), and whatever looks like a key; read it before you
/// hand it on all the same. Where the sidecar does not answer, what its files say is taken.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  quorate support-bundle\n  quorate support-bundle /tmp/edge-1.tar && tar -tf /tmp/edge-1.tar\n\n\
                        Exit codes: 0 done, 1 done without what the sidecar says, because it does not answer, 2 the\n\
                        file cannot be written."
)]
pub(super) struct Args {
    /// Where to write it [default: quorate-support-DEVICE-DATE-TIME.tar in this folder]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The configuration file [default: QUORATE_CONFIG, then /etc/quorate/quorate.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

/// What goes in: a name and a text each, before anything is struck out.
type Texts = Vec<(&'static str, String)>;

pub(super) async fn run(args: Args, environment: &Environment) -> Result<u8, Stop> {
    let mut known = Known::default();
    let mut texts = Texts::new();
    let folder = configuration(args.config.as_deref(), environment, &mut known, &mut texts);
    let said = sidecar(&args.target, environment, &mut texts).await;
    let device = match &said {
        Ok(device) => device.clone(),
        Err(trouble) => {
            texts.push(("sidecar.txt", trouble.to_string()));
            from_disk(folder.as_deref(), &mut texts);
            environment.get("IOTEDGE_DEVICEID").unwrap_or("device").to_owned()
        }
    };
    texts.push(("facts.json", pretty(&facts::all(folder.as_deref()))));
    let now = BootClock.wall_ms();
    let when: String = date_seconds(now).chars().filter(char::is_ascii_digit).collect();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '_' };
    let name = format!("quorate-support-{}-{when}", device.chars().take(40).map(plain).collect::<String>());
    let mut archive = Archive::new(name.clone(), now / 1000);
    texts.insert(0, ("README.txt", about(&device, now, &texts)));
    for (name, text) in &texts {
        archive.add(name, known.strike(text).as_bytes());
    }
    let file = args.file.unwrap_or_else(|| PathBuf::from(format!("{name}.tar")));
    write(&file, &archive.end()).map_err(|e| unwritten(&file, &e))?;
    say(&file.display().to_string())?;
    match said {
        Ok(_) => Ok(DONE),
        Err(trouble) => {
            tell(&trouble.to_string());
            Ok(NO)
        }
    }
}

/// Nobody else may read it, and nothing is overwritten. Half a file is none.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    // It was made a moment ago, here.
    written.inspect_err(|_| drop(std::fs::remove_file(path)))
}

fn unwritten(file: &Path, why: &io::Error) -> Trouble {
    let hint = match why.kind() {
        io::ErrorKind::AlreadyExists => {
            "name a file that is not there yet: `quorate support-bundle FILE`".into()
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new("."));
            let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
            format!(
                "make room in {}, or name a file on another file system, such as \
                 `quorate support-bundle /dev/shm/support.tar`",
                folder.display()
            )
        }
        _ => "name a file in a folder that you may write: `quorate support-bundle FILE`".into(),
    };
    Trouble { message: format!("cannot write {}: {why}", file.display()), hint, code: REFUSED }
}

fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

fn about(device: &str, now: u64, texts: &Texts) -> String {
    let files: Vec<&str> = texts.iter().map(|(name, _)| *name).collect();
    format!(
        "Quorate {}: what device {device} knew at {} UTC by its own clock.\n\n\
         {}\n\n\
         Credentials, the workload's arguments and environment, and whatever looks like a key were replaced by {REMOVED}.\n",
        env!("CARGO_PKG_VERSION"),
        date_seconds(now),
        files.join("\n"),
    )
}

/// What the sidecar says, and the name of its device.
async fn sidecar(target: &Target, environment: &Environment, texts: &mut Texts) -> Result<String, Trouble> {
    let mut client = target.connect(environment, ANSWER_TIME).await?;
    let report = read_report(&client.status().await?)?;
    let device = report.device.clone();
    texts.push(("status.json", pretty(&json!(report))));
    texts.push((
        "history.json",
        pretty(&json!({ "last_decision": report.last_decision, "history": report.history })),
    ));
    texts.push(("plan.json", pretty(&json!(plan(&report)))));
    let reply = client.stub.get_events(GetEventsRequest { last: 0 }).await;
    let reply = reply.map_err(|status| client.trouble(&status))?;
    texts.push(("events.jsonl", events::json(&reply.into_inner().events)));
    Ok(device)
}

/// The events, where there is no sidecar to ask.
fn from_disk(folder: Option<&Path>, texts: &mut Texts) {
    let Some(folder) = folder else { return };
    let (_, events) = Ring::open(folder);
    let lines = events.iter().filter_map(|event| serde_json::to_string(event).ok());
    texts.push(("events.jsonl", lines.map(|line| line + "\n").collect()));
}

/// The configuration, the variables, and the faults in them; learns on the way what is secret. Returns the data folder.
fn configuration(
    named: Option<&Path>,
    environment: &Environment,
    known: &mut Known,
    texts: &mut Texts,
) -> Option<PathBuf> {
    let path = named.map(Path::to_owned).or_else(|| environment.get("QUORATE_CONFIG").map(PathBuf::from));
    let path = path.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    let mut variables = serde_json::Map::new();
    for (name, value) in &environment.variables {
        let Some(key) = name.strip_prefix("QUORATE_") else {
            if name.starts_with("IOTEDGE_") {
                variables.insert(name.clone(), value.clone().into());
            }
            continue;
        };
        let key = key.to_lowercase().replace("__", ".");
        if is_secret(&key) {
            known.learn(value);
        }
        // A list is written as TOML there.
        let listed = key.starts_with("workload.") && value.trim_start().starts_with(['[', '{']);
        let value = if listed { REMOVED.into() } else { settings(value.clone().into(), &key) };
        variables.insert(name.clone(), value);
    }
    texts.push(("environment.json", pretty(&Value::Object(variables))));
    let config = read(&path).and_then(|text| {
        toml::from_str::<Value>(&text)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.message().to_owned()))
    });
    match config {
        Ok(config) => {
            learn_files(&config, known);
            texts.push(("config.json", pretty(&settings(config, ""))));
        }
        Err(e) => texts.push(("config.txt", format!("{}: {e}\n", path.display()))),
    }
    for (name, value) in &environment.variables {
        if name.starts_with("QUORATE_") && name.to_lowercase().ends_with("_file") {
            learn_file(value, known);
        }
    }
    match config::load(named, environment) {
        Ok(config) => Some(config.storage.path),
        Err(faults) => {
            texts.push(("config-faults.txt", format!("{faults}\n")));
            let data = environment.get("QUORATE_STORAGE__PATH").unwrap_or("/var/lib/quorate");
            Some(PathBuf::from(data))
        }
    }
}

/// All files that a setting names and that hold a credential.
fn learn_files(config: &Value, known: &mut Known) {
    match config {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str() {
                    Some(file) if name.ends_with("_file") && is_secret(name.trim_end_matches("_file")) => {
                        learn_file(file, known);
                    }
                    Some(text) if is_secret(name) => known.learn(text),
                    _ => learn_files(value, known),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| learn_files(item, known)),
        _ => {}
    }
}

fn learn_file(file: &str, known: &mut Known) {
    if let Ok(text) = read(Path::new(file)) {
        known.learn(&text);
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}
