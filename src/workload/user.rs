//! Whom the workload runs as.
//!
//! A sidecar that has to be root for its door (cgroups, a socket) need not run the workload as root. The change is made last, by the
//! process that becomes the workload; the fencer stays what it is, so that it may end whatever the workload becomes.

use std::{fmt, str::FromStr};

/// A user and the group that it runs in, by number. It has no other groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

impl User {
    /// The user that `text` names: `1000:1000`, `1000` (the group has the same number), or a name that stands in `passwd`, the contents of a file as in passwd(5).
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn named(text: &str, passwd: &str) -> Result<User, String> {
        if let Ok(user) = text.parse() {
            return Ok(user);
        }
        let line = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let found = line.filter(|fields| fields.first() == Some(&text)).find_map(|fields| {
            Some(User { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? })
        });
        found.ok_or_else(|| format!("{text:?} is neither a number nor a user in /etc/passwd"))
    }
}

/// The name that a user's number has in `passwd`, the contents of a file as in passwd(5).
pub fn name_of(uid: u32, passwd: &str) -> Option<&str> {
    let lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut of_it = lines.filter(|fields| fields.get(2).and_then(|n| n.parse().ok()) == Some(uid));
    of_it.find_map(|fields| fields.first().copied().filter(|name| !name.is_empty()))
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

impl FromStr for User {
    type Err = ();

    fn from_str(text: &str) -> Result<User, ()> {
        let number = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
            // The last one means "no change" to the kernel.
            true => text.parse().ok().filter(|n| *n != u32::MAX).ok_or(()),
            false => Err(()),
        };
        let (uid, gid) = text.split_once(':').unwrap_or((text, text));
        Ok(User { uid: number(uid)?, gid: number(gid)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken:x\napp:x:1001:33::/srv:/bin/false\n";
        let named = |text| User::named(text, passwd);
        assert_eq!(named("app"), Ok(User { uid: 1001, gid: 33 }));
        assert_eq!(named("7"), Ok(User { uid: 7, gid: 7 }));
        assert_eq!(named("7:8"), Ok(User { uid: 7, gid: 8 }));
        for wrong in ["", "nobody", "broken", "7:", ":7", "-1", "4294967295", "99999999999", "7:8:9"] {
            assert!(named(wrong).is_err(), "{wrong}");
        }
        assert_eq!((name_of(1001, passwd), name_of(33, passwd)), (Some("app"), None));
        assert_eq!((name_of(0, ""), name_of(0, "::0:0\n:x:0")), (None, None));
        assert_eq!(User { uid: 1, gid: 2 }.to_string().parse(), Ok(User { uid: 1, gid: 2 }));
    }
}
