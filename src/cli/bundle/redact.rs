//! What is taken out before anything leaves the device.
//!
//! Three sieves, one behind the other. Settings whose names say that they are secret, and all that a workload is told (its arguments and
//! its environment), are left out whatever they hold. What is known to be secret (the files and variables that hold credentials) is
//! struck out of every text, in whatever file it turns up. And so is what looks like a credential.

use serde_json::Value;

/// Written in place of what was taken out.
pub(super) const REMOVED: &str = "(removed)";
/// A shorter secret would strike out innocent text.
const SECRET_MIN: usize = 6;
/// Parts of a connection string that are no secret, and are wanted.
const OPEN: [&str; 5] = ["hostname", "deviceid", "moduleid", "sharedaccesskeyname", "gatewayhostname"];
/// What is behind these, up to the next blank or separator, is struck out. In lower case.
const MARKS: [&str; 10] = [
    "sharedaccesskey=",
    "sig=",
    "password=",
    "passwd=",
    "secret=",
    "token=",
    "access_key=",
    "apikey=",
    "api_key=",
    "bearer ",
];

/// Whether a setting of this name holds a secret. A path of a file that holds one is none.
pub(super) fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let words = ["secret", "password", "passwd", "token", "connection_string", "credential", "private"];
    let named = words.iter().any(|word| name.contains(word)) || name.ends_with("key");
    named && !name.ends_with("_file")
}

/// Whether a command stands there.
fn is_command(path: &str) -> bool {
    ["workload.command", "workload.on_owner", "workload.on_standby", "site.probes.target"].contains(&path)
}

/// A configuration without its secrets. `path` is where this part of it stands, such as `workload.env`.
pub(super) fn settings(value: Value, path: &str) -> Value {
    let name = path.rsplit('.').next().unwrap_or_default();
    match value {
        // Names alone: what they hold is the workload's business.
        Value::Object(fields) if path.starts_with("workload.env") => {
            fields.into_iter().map(|(name, _)| (name, Value::from(REMOVED))).collect()
        }
        _ if path.starts_with("workload.env") || is_secret(name) => REMOVED.into(),
        // The program, and how many arguments it gets. A probe's command is its target.
        Value::Array(words) if path.starts_with("workload.") || path == "site.probes.target" => {
            let arguments = words.len().saturating_sub(1);
            let told = (arguments > 0).then(|| format!("({arguments} arguments removed)").into());
            words.into_iter().take(1).chain(told).collect()
        }
        // As one text, which is a fault: nobody knows where the program ends.
        Value::String(text) if is_command(path) && text.contains(char::is_whitespace) => REMOVED.into(),
        Value::Object(fields) => {
            let deeper =
                |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            fields
                .into_iter()
                .map(|(name, value)| {
                    let value = settings(value, &deeper(&name));
                    (name, value)
                })
                .collect()
        }
        Value::Array(items) => items.into_iter().map(|item| settings(item, path)).collect(),
        other => other,
    }
}

/// Secrets that are known, to be struck out wherever they turn up.
#[derive(Default)]
pub(super) struct Known(Vec<String>);

impl Known {
    /// A text that is secret as a whole, line by line, and in each part that it gives a name.
    pub(super) fn learn(&mut self, text: &str) {
        let parts = || text.split([';', '\n']).map(str::trim);
        let named = parts().filter_map(|part| part.split_once('='));
        let hidden = named.filter(|(name, _)| !OPEN.contains(&name.to_ascii_lowercase().as_str()));
        let lines = parts().filter(|_| !text.contains(';'));
        for secret in [text.trim()].into_iter().chain(hidden.map(|(_, value)| value)).chain(lines) {
            if secret.len() >= SECRET_MIN && !self.0.iter().any(|known| known == secret) {
                self.0.push(secret.to_owned());
            }
        }
        // The longest first: a part must not be struck out of the whole before.
        self.0.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    }

    /// The text without anything that is known to be secret, or looks like it.
    pub(super) fn strike(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.0 {
            text = text.replace(secret.as_str(), REMOVED);
            // As it stands in JSON, and in an address.
            let json = serde_json::to_string(secret).unwrap_or_default();
            text = text.replace(json.trim_matches('"'), REMOVED);
            text = text.replace(&in_address(secret), REMOVED);
        }
        keys(&marked(&text))
    }
}

fn in_address(secret: &str) -> String {
    let mut out = String::new();
    for byte in secret.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Strikes out what stands behind a [`MARKS`].
fn marked(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let next = MARKS.iter().filter_map(|mark| Some((at + lower[at..].find(mark)?, mark.len()))).min();
        let Some((found, length)) = next else { break };
        let begin = found + length;
        let ends = |c: char| c.is_whitespace() || ";&\"'`,)}]\\".contains(c);
        let end = text[begin..].find(ends).map_or(text.len(), |n| begin + n);
        out.push_str(&text[at..begin]);
        if end > begin {
            out.push_str(REMOVED);
        }
        at = end;
    }
    out.push_str(&text[at..]);
    out
}

/// Strikes out private keys in PEM, whole.
fn keys(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(begin) = rest.find("-----BEGIN ") {
        let head = &rest[begin..];
        let line = head.lines().next().unwrap_or_default();
        if !line.contains("PRIVATE KEY") {
            out.push_str(&rest[..begin + 11]);
            rest = &rest[begin + 11..];
            continue;
        }
        out.push_str(&rest[..begin]);
        out.push_str(REMOVED);
        rest = match head.find("-----END ") {
            Some(end) => head[end + 9..].find("-----").map_or("", |n| &head[end + 9 + n + 5..]),
            // Cut off: the rest is part of the key.
            None => "",
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const KEY: &str = "c2VjcmV0LWtleS1vZi10aGUtaHVi/+w=";

    #[test]
    fn settings_keep_what_helps_and_lose_what_is_secret() {
        let config = json!({
            "site": {"id": "plant-7", "members": [{"device": "edge-1", "address": "10.0.0.11:7600"}]},
            "hub": {"connection_string": "HostName=h;SharedAccessKey=x", "connection_string_file": "/etc/q/cs",
                "client_secret": "s", "client_secret_file": "/etc/q/s"},
            "workload": {"kind": "process", "command": ["/app/run", "--password", "hunter2"], "stop_timeout": "10s",
                "env": {"DB_URL": "postgres://u:p@h", "MODE": "x"}},
        });
        assert_eq!(
            settings(config, ""),
            json!({
                "site": {"id": "plant-7", "members": [{"device": "edge-1", "address": "10.0.0.11:7600"}]},
                "hub": {"connection_string": REMOVED, "connection_string_file": "/etc/q/cs",
                    "client_secret": REMOVED, "client_secret_file": "/etc/q/s"},
                "workload": {"kind": "process", "command": ["/app/run", "(2 arguments removed)"], "stop_timeout": "10s",
                    "env": {"DB_URL": REMOVED, "MODE": REMOVED}},
            })
        );
        // An environment that is no table, and a secret that is no text.
        let odd = json!({"workload": {"env": "DB=1"}, "hub": {"client_secret": ["a", "b"]}});
        assert_eq!(
            settings(odd, ""),
            json!({"workload": {"env": REMOVED}, "hub": {"client_secret": REMOVED}})
        );
    }

    #[test]
    fn a_known_secret_is_struck_out_wherever_it_turns_up() {
        let mut known = Known::default();
        known.learn(&format!(
            "HostName=h.azure-devices.net;SharedAccessKeyName=mirror;SharedAccessKey={KEY}\n"
        ));
        known.learn("a \"quoted\" password\n");
        let encoded = in_address(KEY);
        for text in [
            format!("{{\"detail\":\"{KEY}\"}}"),
            format!("x{KEY}x"),
            format!("https://h/?sr=1&x={encoded}"),
            "{\"t\":\"a \\\"quoted\\\" password\"}".into(),
        ] {
            let struck = known.strike(&text);
            assert!(struck.contains(REMOVED), "{struck}");
            assert!(
                !struck.contains(KEY) && !struck.contains(&encoded) && !struck.contains("quoted"),
                "{struck}"
            );
        }
        assert_eq!(known.strike("h.azure-devices.net as mirror"), "h.azure-devices.net as mirror");
    }

    #[test]
    fn what_looks_like_a_credential_is_struck_out() {
        let known = Known::default();
        for (text, struck) in [
            ("HostName=h;SharedAccessKey=abc=;X=1", "HostName=h;SharedAccessKey=(removed);X=1"),
            ("SharedAccessSignature sr=h&sig=a%2Bb&se=1", "SharedAccessSignature sr=h&sig=(removed)&se=1"),
            ("Authorization: Bearer eyJ.x.y next", "Authorization: Bearer (removed) next"),
            ("PASSWORD=hunter2", "PASSWORD=(removed)"),
            ("{\"a\":\"token=1\"}", "{\"a\":\"token=(removed)\"}"),
            ("password=", "password="),
            ("nothing of that kind", "nothing of that kind"),
        ] {
            assert_eq!(known.strike(text), struck);
        }
        let pem = "a\n-----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY-----\nb -----BEGIN CERTIFICATE-----\nx";
        assert_eq!(known.strike(pem), "a\n(removed)\nb -----BEGIN CERTIFICATE-----\nx");
        assert_eq!(known.strike("-----BEGIN PRIVATE KEY-----\nMHc"), REMOVED);
    }

    proptest! {
        #[test]
        fn total_and_never_leaks(before in "\\PC{0,20}", after in "\\PC{0,20}") {
            let mut known = Known::default();
            known.learn(KEY);
            let struck = known.strike(&format!("{before}{KEY}{after}"));
            prop_assert!(!struck.contains(KEY));
        }
    }
}
