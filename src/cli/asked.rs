//! What a person gives with an order: who asks, why, and which device, looked at before any sidecar is bothered.
//!
//! The sidecar looks at all of it again; here the answer can say which argument to write anew, and how.

use super::{USAGE, client::Trouble};
use crate::{
    config::Environment,
    id::DeviceId,
    reconcile::commands::{ACTOR_MAX, REASON_MAX},
    workload::user::name_of,
};

/// Who asks: the name that the session gives, else the user's own.
pub(super) fn actor(environment: &Environment) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    named(environment, rustix::process::getuid().as_raw(), &passwd)
}

fn named(environment: &Environment, uid: u32, passwd: &str) -> String {
    let fits = |name: &&str| name.len() <= ACTOR_MAX && !name.chars().any(char::is_control);
    let given = ["USER", "LOGNAME"].into_iter().filter_map(|name| environment.get(name));
    let name = given.chain(name_of(uid, passwd)).find(fits);
    name.map_or_else(|| format!("uid {uid}"), str::to_owned)
}

/// A reason that can be kept.
///
/// # Errors
/// [`Trouble`] with exit code 64.
pub(super) fn reason(text: &str) -> Result<(), Trouble> {
    let wrong = |what: String| Trouble {
        message: format!("the text of --reason {what}"),
        hint: format!("write one plain line of at most {REASON_MAX} bytes, such as --reason \"disk swap\""),
        code: USAGE,
    };
    if let Some(c) = text.chars().find(|c| c.is_control()) {
        return Err(wrong(format!("holds the control character {c:?}")));
    }
    match text.len() {
        ..=REASON_MAX => Ok(()),
        long => Err(wrong(format!("is {long} bytes long"))),
    }
}

/// A name that a device can have.
///
/// # Errors
/// [`Trouble`] with exit code 64.
pub(super) fn device(text: &str) -> Result<(), Trouble> {
    DeviceId::new(text).map(|_| ()).map_err(|why| Trouble {
        message: format!("{text:?} is no device id: it {why}"),
        hint: "write it as `quorate status` shows it".into(),
        code: USAGE,
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn who_asks_is_never_nobody() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\n";
        let named = |variables: &[(&str, &str)], uid, passwd| {
            let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            named(&Environment { variables, run_dir: PathBuf::new() }, uid, passwd)
        };
        assert_eq!(named(&[("USER", "bea"), ("LOGNAME", "eva")], 1000, passwd), "bea");
        assert_eq!(named(&[("USER", ""), ("LOGNAME", "eva")], 1000, passwd), "eva");
        assert_eq!(named(&[], 1000, passwd), "ann");
        assert_eq!(named(&[], 0, ""), "uid 0", "a container without the file");
        assert_eq!(named(&[("USER", "a\nb")], 7, passwd), "uid 7", "the sidecar would refuse it");
        assert_eq!(named(&[("USER", &"x".repeat(129))], 0, passwd), "root");
    }

    #[test]
    fn what_cannot_be_kept_is_named_without_being_repeated_raw() {
        for (given, said) in [("two\nlines", "'\\n'"), ("\u{1b}[2J", "'\\u{1b}'"), ("\u{7f}", "'\\u{7f}'")] {
            let trouble = reason(given).expect_err("is no plain line");
            assert!(trouble.message.contains(said) && trouble.code == USAGE, "{trouble}");
            assert!(!trouble.message.chars().any(char::is_control), "{trouble}");
        }
        assert!(reason(&"x".repeat(REASON_MAX + 1)).is_err_and(|t| t.message.contains("257 bytes")));
        assert!(reason("").is_ok() && reason("größer, mit Umlaut").is_ok());
        let trouble = device("edge\u{1b}[2J").expect_err("is no name");
        assert!(!trouble.message.chars().any(char::is_control), "{trouble}");
        assert!(device("edge-2").is_ok());
    }
}
