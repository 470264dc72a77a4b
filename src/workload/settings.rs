//! The `workload` section of the configuration.
//!
//! Reading refuses what is misspelt; [`Settings::faults`] names everything that is contradictory, all at once.
//! Whether the program exists is not looked at here: that is found out, and said, when it is started.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, de};

use super::{fencer::SELF, runtime::Api, user::User};
use crate::timing::{Fault, Timing};

/// How long a planned stop may wait for a workload.
pub const STOP_TIMEOUT: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(60);

/// What kind of thing the workload is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// Nothing is started here; others ask who owns.
    #[default]
    None,
    /// A process that the sidecar starts, and that is ended when the lease ends.
    Process,
}

/// The `workload` section. Each line here is also the manual.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `"process"`: the sidecar starts `command` on the owner. `"none"` (default): nothing is started, others ask.
    pub kind: Kind,
    /// The program and its arguments, as an array: `["/usr/bin/app", "--flag"]`. No shell is involved.
    #[serde(deserialize_with = "command")]
    pub command: Vec<String>,
    /// What undoes whatever the workload leaves behind that is no process (an address, a container), and its arguments. It is run after
    /// each end of the workload and before its first start, until it exits with 0. It must do no harm where there is nothing to undo.
    #[serde(deserialize_with = "command")]
    pub undo: Vec<String>,
    /// The folder to run in. Default: the sidecar's own.
    pub working_dir: Option<PathBuf>,
    /// Whom it runs as. Default: as the sidecar does. Only root may start it as another user.
    #[serde(skip)]
    pub user: Option<User>,
    /// Environment variables for the workload, besides those the sidecar itself has. Names starting with `QUORATE_`
    /// belong to Quorate.
    pub env: BTreeMap<String, String>,
    /// From the end of the lease to the workload's certain death: TERM at once, KILL after three quarters of it.
    /// `"10ms"` to `"60s"`; the same on all devices of a site. Default `"80ms"`.
    #[serde(deserialize_with = "duration")]
    pub stop_grace: Duration,
    /// How long a planned stop (handover, SIGTERM) waits for the workload before KILL, while the lease is renewed.
    /// `"10ms"` to `"60s"`; each device may have its own. Default `"10s"`.
    #[serde(deserialize_with = "duration")]
    pub stop_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            kind: Kind::None,
            command: Vec::new(),
            undo: Vec::new(),
            working_dir: None,
            user: None,
            env: BTreeMap::new(),
            stop_grace: crate::timing::Settings::default().stop_grace,
            stop_timeout: Duration::from_secs(10),
        }
    }
}

impl Settings {
    /// A container in place of a process: what runs it, what ends it, and until when.
    pub fn container(api: Api, socket: &Path, name: &str, stop_timeout: Duration) -> Settings {
        let words = |what: &str| {
            let socket = socket.to_string_lossy().into_owned();
            let patience = stop_timeout.as_millis().to_string();
            vec![SELF.into(), what.into(), api.noun().into(), socket, name.into(), patience]
        };
        Settings {
            kind: Kind::Process,
            command: words("workload-runner"),
            undo: words("workload-undo"),
            stop_timeout,
            ..Settings::default()
        }
    }

    /// Hooks in place of a process: one when this device becomes the owner, one when it is the owner no more.
    pub fn hooks(on_owner: &[String], on_standby: &[String]) -> Settings {
        let hold = [SELF.to_owned(), "workload-hold".to_owned()];
        Settings {
            kind: Kind::Process,
            command: hold.into_iter().chain(on_owner.iter().cloned()).collect(),
            undo: on_standby.to_vec(),
            ..Settings::default()
        }
    }

    /// From the deadline to KILL. What has to be undone afterwards needs its part of the grace.
    pub(super) fn kill_after(&self, timing: &Timing) -> Duration {
        if self.undo.is_empty() { timing.kill_after() } else { timing.stop_grace() / 2 }
    }

    /// Everything that is contradictory; empty if nothing is. The range of `stop_grace` is `timing`'s business.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut fault = |setting, problem: &str, advice: &str| {
            faults.push(Fault { setting, problem: problem.into(), advice: advice.into() });
        };
        match (self.kind, self.command.first()) {
            (Kind::Process, None) => fault(
                "command",
                "is empty, but kind is \"process\"",
                "name the program and its arguments: command = [\"/usr/bin/app\", \"--flag\"]",
            ),
            (Kind::Process, Some(program)) if program.is_empty() => {
                fault("command", "starts with an empty text", "put the program's path first");
            }
            (Kind::None, Some(_)) => fault(
                "command",
                "is set, but kind is \"none\", so it would never be started",
                "set kind = \"process\", or take command out",
            ),
            _ => {}
        }
        if self.command.iter().any(|word| word.contains('\0')) {
            fault("command", "holds a zero character", "take it out");
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                fault("env", "holds a name or value that no environment can hold", "use NAME = \"value\"");
            } else if name.starts_with("QUORATE_") {
                fault(
                    "env",
                    "sets a name that starts with QUORATE_",
                    "those are set by Quorate; use another name",
                );
            }
        }
        faults
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        match word.as_str() {
            "none" => Ok(Kind::None),
            "process" => Ok(Kind::Process),
            "module" | "container" | "gate" => Err(de::Error::custom(format!(
                "kind {word:?} is not supported by this version; use \"process\" to have a program started, or \
                 \"none\" to let the workload ask who owns"
            ))),
            _ => Err(de::Error::custom(format!("kind {word:?} is unknown; use \"process\" or \"none\""))),
        }
    }
}

fn command<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Words;
    impl<'de> de::Visitor<'de> for Words {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array of texts such as [\"/usr/bin/app\", \"--flag\"]")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let words: Vec<_> = text.split_whitespace().collect();
            Err(E::custom(format!(
                "command is one text, and there is no shell that would take it apart; write an array: \
                 command = {words:?}"
            )))
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut words = Vec::new();
            while let Some(word) = seq.next_element()? {
                words.push(word);
            }
            Ok(words)
        }
    }
    deserializer.deserialize_any(Words)
}

/// A duration as people write it: a whole number and `ms`, `s`, `m` or `h`.
fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).ok_or_else(|| {
        de::Error::custom(format!(
            "{text:?} is not a duration; write a whole number and a unit, such as \"200ms\""
        ))
    })
}

fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, String> {
        toml::from_str(text).map_err(|e| e.message().to_owned())
    }

    #[test]
    fn a_full_section() {
        let settings = read(
            "kind = 'process'\ncommand = ['/bin/app', '-v']\nworking_dir = '/srv'\nstop_grace = '1s'\nenv = { A = 'b' }",
        )
        .expect("is well formed");
        assert_eq!(settings.command, ["/bin/app", "-v"]);
        assert_eq!(settings.stop_grace, Duration::from_secs(1));
        assert_eq!(settings.faults(), []);
        assert_eq!(read("").expect("all has defaults"), Settings::default());
    }

    #[test]
    fn refusals_say_what_to_write() {
        let one_text = read("command = '/bin/app -v'").expect_err("one text");
        assert!(one_text.contains(r#"command = ["/bin/app", "-v"]"#), "{one_text}");
        let module = read("kind = 'module'").expect_err("not yet");
        assert!(module.contains("not supported by this version"), "{module}");
        assert!(read("kind = 'proces'").expect_err("misspelt").contains("unknown"));
        assert!(read("comand = []").is_err());
        for wrong in ["200", "ms", "-1s", "1.5s", "1 s", ""] {
            let refusal = read(&format!("stop_grace = '{wrong}'")).expect_err(wrong);
            assert!(refusal.contains("200ms"), "{refusal}");
        }
    }

    #[test]
    fn contradictions_are_all_named() {
        let settings = Settings {
            command: vec!["/bin/app".into()],
            env: [("QUORATE_EPOCH".into(), "1".into()), ("A=B".into(), String::new())].into(),
            ..Settings::default()
        };
        let faults: Vec<_> = settings.faults().iter().map(|f| f.setting).collect();
        assert_eq!(faults, ["command", "env", "env"]);
        let empty = Settings { kind: Kind::Process, ..Settings::default() };
        assert_eq!(empty.faults().len(), 1);
    }
}
