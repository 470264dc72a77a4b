//! Reads the configuration file and the environment into one tree in which every value knows where it was written.
//!
//! The environment wins: `QUORATE_SECTION__KEY` replaces `section.key`, deeper keys with more double underscores.
//! Lists and tables may be given there in TOML, for instance `QUORATE_WORKLOAD__COMMAND='["/app/run"]'`. This is the
//! only file that reads the process environment; everything else gets an [`Environment`] by hand, as tests do. It
//! knows nothing of what the settings mean.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::fault::{Fault, Where};

/// Larger than any honest configuration.
const FILE_MAX_BYTES: u64 = 1024 * 1024;

/// Variables that other parts of the product read; not settings.
const NOT_SETTINGS: &[&str] = &["QUORATE_CONTROL_SOCKET", "QUORATE_ENDPOINT", "QUORATE_CONFIG"];

/// What a process can be told from outside besides its arguments.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The environment variables.
    pub variables: BTreeMap<String, String>,
    /// The folder for sockets of running services, where it exists: `/run`.
    pub run_dir: PathBuf,
}

impl Environment {
    /// The environment of this process. Names or values that are not UTF-8 come with the replacement character.
    pub fn real() -> Environment {
        let text = |s: std::ffi::OsString| s.to_string_lossy().into_owned();
        Environment {
            variables: std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect(),
            run_dir: PathBuf::from("/run"),
        }
    }

    /// A variable, if it is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// The names that are settings: `QUORATE_` and at least one double underscore.
    fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables
            .iter()
            .filter(|(name, _)| name.starts_with(PREFIX) && name.contains("__"))
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Names that begin like ours but have no double underscore, and are none of ours.
    pub(super) fn suspicious(&self) -> impl Iterator<Item = &str> {
        self.variables
            .keys()
            .map(String::as_str)
            .filter(|n| n.starts_with(PREFIX) && !n.contains("__") && !NOT_SETTINGS.contains(n))
    }
}

const PREFIX: &str = "QUORATE_";

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) at: Where,
}

impl Node {
    /// `key = "word"` where others write a section means `key = { preset = "word" }`.
    pub(super) fn text_as_preset(&mut self) {
        if let Value::Text(_) = self.value {
            let text = Node {
                value: std::mem::replace(&mut self.value, Value::Boolean(false)),
                at: self.at.clone(),
            };
            self.value = Value::Table([("preset".to_owned(), text)].into());
        }
    }
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Boolean(bool),
    List(Vec<Node>),
    Table(BTreeMap<String, Node>),
    /// A number with a fraction, a date, an integer too large: written in TOML, but nothing that any setting takes.
    Other(&'static str),
}

impl Value {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "a text",
            Value::Integer(_) => "a number",
            Value::Boolean(_) => "true or false",
            Value::List(_) => "a list",
            Value::Table(_) => "a section",
            Value::Other(kind) => kind,
        }
    }
}

/// The file and the environment together. `required`: whether the file must exist although the environment holds
/// settings. Returns the tree, unless the file cannot be read, and what is wrong so far.
pub(super) fn read(path: &Path, required: bool, environment: &Environment) -> (Option<Node>, Vec<Fault>) {
    let mut faults = Vec::new();
    let name = path.display().to_string();
    let at = Where::File { path: name.clone(), line: None };
    let mut root = Node { value: Value::Table(BTreeMap::new()), at: at.clone() };
    match text_of(path, FILE_MAX_BYTES) {
        Ok(text) => {
            let (table, errors) = toml::de::DeTable::parse_recoverable(&text);
            for e in errors {
                let line = e.span().map(|span| line_of(&text, span.start));
                faults.push(Fault::new(
                    Where::File { path: name.clone(), line },
                    "",
                    format!("is not TOML: {}", e.message()),
                    "mend this line; the settings themselves are checked once the file can be read",
                ));
            }
            let place = |start: usize| Where::File { path: name.clone(), line: Some(line_of(&text, start)) };
            root.value = Value::Table(convert_table(table.get_ref(), &place));
        }
        Err(Unreadable::Missing) if !required && environment.settings().next().is_some() => {}
        Err(unreadable) => {
            let (problem, mut advice) = unreadable.words();
            if matches!(unreadable, Unreadable::Missing) {
                advice += "; every setting may also come as QUORATE_SECTION__KEY";
            }
            faults.push(Fault::new(at, "", problem, advice));
        }
    }
    if !faults.is_empty() {
        return (None, faults);
    }
    for (variable, text) in environment.settings() {
        overlay(&mut root, variable, text, &mut faults);
    }
    (Some(root), faults)
}

/// Puts one variable into the tree.
fn overlay(root: &mut Node, variable: &str, text: &str, faults: &mut Vec<Fault>) {
    let at = Where::Environment(variable.to_owned());
    let mut path: Vec<String> = variable[PREFIX.len()..].split("__").map(str::to_lowercase).collect();
    // Names inside workload.env are the workload's own: their case counts, and so may their underscores.
    let free = variable[PREFIX.len()..].to_ascii_uppercase();
    if let Some(rest) = free.strip_prefix("WORKLOAD__ENV__") {
        path = vec!["workload".into(), "env".into(), variable[variable.len() - rest.len()..].into()];
    }
    let key = path.join(".");
    if path.iter().any(String::is_empty) {
        faults.push(Fault::new(
            at,
            "",
            "does not name a setting",
            "write QUORATE_SECTION__KEY, for instance QUORATE_LOG__LEVEL",
        ));
        return;
    }
    if text.contains('\u{FFFD}') {
        faults.push(Fault::new(at, key, "is not UTF-8", "set it to plain text"));
        return;
    }
    let value = match from_variable(text, &at) {
        Ok(value) => value,
        Err(message) => {
            faults.push(Fault::new(
                at,
                key,
                format!("begins like a list or section but is not TOML: {message}"),
                "write it as in the file, for instance '[\"/app/run\", \"--fast\"]'",
            ));
            return;
        }
    };
    let mut node = root;
    let below_timing = path.len() > 2 && path[..2] == ["site", "timing"];
    for (depth, part) in path.into_iter().enumerate() {
        if below_timing && depth == 2 {
            node.text_as_preset();
        }
        if !matches!(node.value, Value::Table(_)) {
            node.value = Value::Table(BTreeMap::new());
        }
        let Value::Table(table) = &mut node.value else { return };
        node = table
            .entry(part)
            .or_insert_with(|| Node { value: Value::Table(BTreeMap::new()), at: at.clone() });
    }
    *node = Node { value, at };
}

fn from_variable(text: &str, at: &Where) -> Result<Value, String> {
    if !text.trim_start().starts_with(['[', '{']) {
        return Ok(Value::Text(text.to_owned()));
    }
    let line = format!("value = {}", text.trim());
    let table = toml::de::DeTable::parse(&line).map_err(|e| e.message().to_owned())?;
    let mut table = convert_table(table.get_ref(), &|_| at.clone());
    if table.len() != 1 {
        return Err("more than one value".into());
    }
    table.remove("value").map(|node| node.value).ok_or_else(|| "no value".into())
}

fn convert_table(table: &toml::de::DeTable<'_>, place: &dyn Fn(usize) -> Where) -> BTreeMap<String, Node> {
    table
        .iter()
        .map(|(key, value)| {
            let node = Node { value: convert(value.get_ref(), place), at: place(key.span().start) };
            (key.get_ref().to_string(), node)
        })
        .collect()
}

fn convert(value: &toml::de::DeValue<'_>, place: &dyn Fn(usize) -> Where) -> Value {
    use toml::de::DeValue;
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("a number that is too large"), Value::Integer),
        DeValue::Float(_) => Value::Other("a number with a fraction"),
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(list) => Value::List(
            list.iter()
                .map(|v| Node { value: convert(v.get_ref(), place), at: place(v.span().start) })
                .collect(),
        ),
        DeValue::Table(table) => Value::Table(convert_table(table, place)),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

/// Why a file could not be read as text.
#[derive(Debug)]
pub(super) enum Unreadable {
    Missing,
    Folder,
    TooLarge(u64),
    NotUtf8,
    Other(io::Error),
}

impl Unreadable {
    /// The problem, and what to do.
    pub(super) fn words(&self) -> (String, String) {
        match self {
            Unreadable::Missing => ("does not exist".into(), "create it, or name another file".into()),
            Unreadable::Folder => ("is a folder".into(), "name the file inside it".into()),
            Unreadable::TooLarge(max) => (
                format!("is larger than {} KiB", max / 1024),
                "name the right file; this one cannot be it".into(),
            ),
            Unreadable::NotUtf8 => ("is not UTF-8 text".into(), "save it as UTF-8".into()),
            Unreadable::Other(e) if e.kind() == io::ErrorKind::PermissionDenied => (
                "may not be read by this user".into(),
                "let the user that runs the sidecar read it (chmod, chown)".into(),
            ),
            Unreadable::Other(e) => (format!("cannot be read: {e}"), "mend the file or its disk".into()),
        }
    }
}

/// The text of a regular file of at most `max_bytes`. A pipe or device file is not opened, so nothing blocks.
pub(super) fn text_of(path: &Path, max_bytes: u64) -> Result<String, Unreadable> {
    let meta = fs::metadata(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Unreadable::Missing,
        _ => Unreadable::Other(e),
    })?;
    if meta.is_dir() {
        return Err(Unreadable::Folder);
    }
    if !meta.is_file() {
        return Err(Unreadable::Other(io::Error::other("it is not a regular file")));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(max_bytes + 1).read_to_end(&mut bytes))
        .map_err(Unreadable::Other)?;
    if bytes.len() as u64 > max_bytes {
        return Err(Unreadable::TooLarge(max_bytes));
    }
    String::from_utf8(bytes).map_err(|_| Unreadable::NotUtf8)
}
