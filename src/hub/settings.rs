//! The `hub` section of the configuration: what to mirror, where, and with which credentials.
//!
//! The file is the same on every device of a site. The connection string is a secret: it comes from a file of its own,
//! from the environment or from the configuration file, never from a command line, and it is never shown.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{
    flag::FlagPath,
    sas::{Credentials, Secret},
};
use crate::timing::Fault;

/// Where the ownership is mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MirrorKind {
    /// Nowhere: the site lives without a hub.
    #[default]
    Off,
    /// In the desired properties of every device's twin.
    DeviceTwin,
    /// In the reported properties of each sidecar's own module twin.
    ModuleTwin,
    /// In both.
    Both,
}

/// The `hub` section.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where the ownership is mirrored: `off` or `device-twin`. Default `off`.
    pub mirror: MirrorKind,
    /// Where the flag stands under `properties.desired`: keys joined by dots. Default `quorate`.
    pub flag: FlagPath,
    /// The connection string of a shared access policy with the ServiceConnect right. Prefer `connection_string_file`.
    pub connection_string: Option<Secret>,
    /// A file that holds the connection string and nothing else. It is read again when the hub refuses the key, so a
    /// rotated key needs no restart. Give one of the two.
    pub connection_string_file: Option<PathBuf>,
    /// A PEM file with further certificate authorities to trust, beside the public ones built in.
    pub ca_file: Option<PathBuf>,
    /// How often all twins are read and compared again, jittered by a fifth. 1m to 24h. Default 10m.
    #[serde(deserialize_with = "duration")]
    pub refresh: Duration,
    /// How long one call to the hub may take. 1s to 60s. Default 10s.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            mirror: MirrorKind::Off,
            flag: FlagPath::default(),
            connection_string: None,
            connection_string_file: None,
            ca_file: None,
            refresh: Duration::from_secs(600),
            timeout: Duration::from_secs(10),
        }
    }
}

impl Settings {
    /// Every fault that can be seen without touching the disk or the network. `setting` names a key of this section.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut fault = |setting, problem: String, advice: &str| {
            faults.push(Fault { setting, problem, advice: advice.into() });
        };
        if matches!(self.mirror, MirrorKind::ModuleTwin | MirrorKind::Both) {
            fault(
                "mirror",
                "mirroring into module twins is not available in this version".into(),
                "use \"device-twin\", or \"off\"",
            );
        }
        let given = (&self.connection_string, &self.connection_string_file);
        match given {
            (Some(_), Some(_)) => fault(
                "connection_string",
                "is given here and as connection_string_file".into(),
                "keep connection_string_file and remove the other",
            ),
            (None, None) if self.mirror != MirrorKind::Off => fault(
                "connection_string_file",
                "the mirror needs credentials, and none are given".into(),
                "put the service policy's connection string into a file and name it here, or set mirror = \"off\"",
            ),
            _ => {}
        }
        if let Some(Err(why)) = self.connection_string.as_ref().map(|text| Credentials::parse(text.reveal()))
        {
            fault("connection_string", why.to_string(), CONNECTION_STRING_ADVICE);
        }
        let minute = Duration::from_secs(60);
        if !(minute..=minute * 1440).contains(&self.refresh) {
            fault("refresh", format!("{:?} is outside 1m to 24h", self.refresh), "use 10m");
        }
        if !(Duration::from_secs(1)..=minute).contains(&self.timeout) {
            fault("timeout", format!("{:?} is outside 1s to 60s", self.timeout), "use 10s");
        }
        faults
    }
}

/// What to do about a connection string that cannot be read.
pub(super) const CONNECTION_STRING_ADVICE: &str = "copy the policy's connection string as the portal shows it: \
     HostName=…;SharedAccessKeyName=…;SharedAccessKey=…";

/// `250ms`, `10s`, `5m` or `2h`.
fn duration<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let per_unit = match unit.trim() {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    number
        .parse::<u64>()
        .ok()
        .zip(per_unit)
        .and_then(|(number, unit)| number.checked_mul(unit))
        .map(Duration::from_millis)
        .ok_or_else(|| {
            serde::de::Error::custom(format!("{text:?} is not a duration; write 250ms, 10s, 5m or 2h"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn defaults_need_nothing() {
        assert_eq!(parse("").expect("parses"), Settings::default());
        assert!(Settings::default().faults().is_empty());
    }

    #[test]
    fn every_fault_at_once() {
        let settings = parse(
            "mirror = 'both'\nconnection_string = 'SharedAccessKey=hush'\nconnection_string_file = 'f'\nrefresh = '1s'\ntimeout = '5m'",
        )
        .expect("parses");
        let faults = settings.faults();
        let keys: Vec<_> = faults.iter().map(|f| f.setting).collect();
        assert_eq!(keys, ["mirror", "connection_string", "connection_string", "refresh", "timeout"]);
        assert!(!format!("{faults:?} {settings:?}").contains("hush"));
        let bare = parse("mirror = 'device-twin'").expect("parses").faults();
        assert_eq!(bare.len(), 1);
    }

    #[test]
    fn bad_texts_are_refused() {
        for bad in [
            "mirror = 'x'",
            "refresh = '10'",
            "refresh = '9999999999999999999h'",
            "flag = 'a b'",
            "colour = 1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse("refresh = '2h'").expect("parses").refresh, Duration::from_secs(7200));
    }
}
