//! What a fencer is told on its command line: everything that stays the same for its whole life.
//!
//! Only our own binary writes and reads it, so the order is fixed and nothing is named. Secrets do not belong here,
//! because every user of the machine can read a command line; they go through the environment.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use super::{limits::Limits, user::User};

/// What the sidecar hands over on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Orders {
    /// The lock file inside the data folder.
    pub(super) lock: PathBuf,
    /// The value of [`MARK`](super::fencer::MARK) for this data folder.
    pub(super) mark: String,
    /// From the deadline to KILL.
    pub(super) kill_after: Duration,
    /// From the order to stop to KILL, as far as the deadline allows it.
    pub(super) stop_timeout: Duration,
    /// The longest lease and its grace: for how long the workload of a frozen or dead sidecar may run at most.
    pub(super) outlives: Duration,
    /// The sidecar's process id.
    pub(super) parent: i32,
    /// The session of a fencer that was lost, whose remains are to be ended.
    pub(super) after_session: Option<i32>,
    /// Whether the workload gets a cgroup of its own, where that is possible.
    pub(super) cgroup: bool,
    /// The site's digest.
    pub(super) site: u64,
    /// Where the other members listen (`host:port`), for a receipt.
    pub(super) members: Vec<String>,
    /// Where the workload runs; the sidecar's own folder if absent.
    pub(super) dir: Option<PathBuf>,
    /// Whom the workload runs as; the sidecar's own user if absent.
    pub(super) user: Option<User>,
    /// What it may use of the device.
    pub(super) limits: Limits,
    /// What undoes whatever the workload leaves behind that is no process, and its arguments. Empty: there is nothing of the kind.
    pub(super) undo: Vec<OsString>,
    /// The program and its arguments. Empty where nothing is ever started, only remains are ended.
    pub(super) command: Vec<OsString>,
}

impl Orders {
    /// The command line, without the program's own name.
    pub(super) fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec![
            "fencer".into(),
            self.lock.clone().into(),
            self.mark.clone().into(),
            self.kill_after.as_nanos().to_string().into(),
            self.stop_timeout.as_nanos().to_string().into(),
            self.outlives.as_nanos().to_string().into(),
            self.parent.to_string().into(),
            self.after_session.unwrap_or(0).to_string().into(),
            u8::from(self.cgroup).to_string().into(),
            self.site.to_string().into(),
            self.members.join(" ").into(),
            self.dir.clone().unwrap_or_default().into(),
        ];
        args.push(self.user.map(|user| user.to_string()).unwrap_or_default().into());
        args.push(self.limits.to_string().into());
        args.push(self.undo.len().to_string().into());
        args.extend(self.undo.iter().chain(&self.command).cloned());
        args
    }

    /// Reads back what [`Orders::to_args`] wrote, after the word `fencer`. `None` if it is not that.
    pub(super) fn from_args(mut args: impl Iterator<Item = OsString>) -> Option<Orders> {
        fn number<N: std::str::FromStr>(arg: Option<OsString>) -> Option<N> {
            arg?.to_str()?.parse().ok()
        }
        Some(Orders {
            lock: args.next()?.into(),
            mark: args.next()?.into_string().ok()?,
            kill_after: Duration::from_nanos(number(args.next())?),
            stop_timeout: Duration::from_nanos(number(args.next())?),
            outlives: Duration::from_nanos(number(args.next())?),
            parent: number(args.next())?,
            after_session: Some(number(args.next())?).filter(|sid| *sid > 0),
            cgroup: number::<u8>(args.next())? == 1,
            site: number(args.next())?,
            members: args.next()?.to_str()?.split_ascii_whitespace().map(Into::into).collect(),
            dir: Some(PathBuf::from(args.next()?)).filter(|dir| !dir.as_os_str().is_empty()),
            user: match args.next()?.to_str()? {
                "" => None,
                user => Some(user.parse().ok()?),
            },
            limits: Limits::from_arg(args.next()?.to_str()?)?,
            undo: {
                let count = number::<u8>(args.next())?;
                (0..count).map(|_| args.next()).collect::<Option<_>>()?
            },
            command: args.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_command_line() {
        for (dir, after_session) in [(None, None), (Some(PathBuf::from("/srv")), Some(12))] {
            let orders = Orders {
                lock: "/data/fencer.lock".into(),
                mark: "0123".into(),
                kill_after: Duration::from_millis(150),
                stop_timeout: Duration::from_secs(10),
                outlives: Duration::from_millis(320),
                parent: 7,
                after_session,
                cgroup: dir.is_some(),
                site: u64::MAX,
                members: vec!["10.0.0.2:7600".into(), "[fe80::1]:7600".into()],
                dir,
                user: after_session.map(|_| User { uid: 1000, gid: 50 }),
                limits: Limits { cpu: after_session.map(|_| 1500), ..Limits::default() },
                undo: if after_session.is_some() { vec!["undo".into(), "".into()] } else { Vec::new() },
                command: vec!["app".into(), "--flag".into(), "".into()],
            };
            assert_eq!(Orders::from_args(orders.to_args().into_iter().skip(1)), Some(orders));
        }
        assert_eq!(Orders::from_args(["a", "b", "1", "1", "2", "0"].map(OsString::from).into_iter()), None);
    }
}
