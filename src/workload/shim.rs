//! The workload's main process as the fencer sees it, from before it is the workload: it is started while nothing has to
//! run, does what is slow, and waits for its epoch (`fencer_exec.rs` is its own side).
//!
//! A shim that waits is no part of a workload: it has not executed anything but our own binary, and without a word of the
//! fencer it never will. It dies with the fencer.

use std::{
    io::{ErrorKind, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::Stdio,
};

use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use super::{
    fencer::{MARK, SELF},
    fencer_exec::{INSIDE, OUTSIDE},
    footing::Footing,
    limits::Rlimits,
    orders::Orders,
    wire::Text,
};
use crate::epoch::Epoch;

/// More than this no shim has to say.
const WORDS_MAX: usize = 1024;

/// What was heard of a shim.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Nothing new.
    Nothing,
    /// It is in the workload's cgroup, or why it is not.
    Place(Result<(), Text>),
    /// It has become the workload's program.
    Executed,
    /// Why it has not.
    Cannot(Text),
}

/// A process that is, or will be, the workload's main process, and is not reaped yet.
pub(super) struct Shim {
    pub(super) pid: Pid,
    pub(super) pidfd: Option<OwnedFd>,
    /// Open until it is known whether it has become the program.
    socket: Option<UnixStream>,
    heard: Vec<u8>,
}

impl Shim {
    /// Starts one. Only our own binary is executed here, so a program on a slow disk delays the shim and not the fencer.
    /// `waits` only names it, for whoever looks at the list of processes.
    #[expect(clippy::disallowed_methods, reason = "the fencer is where the workload's process is started")]
    pub(super) fn start(
        orders: &Orders,
        cgroup: Option<&Path>,
        footing: Footing,
        rlimits: Rlimits,
        waits: bool,
    ) -> Result<Shim, Text> {
        let failed = |e: std::io::Error| Text::new(e.to_string());
        let (socket, theirs) = UnixStream::pair().map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let child = std::process::Command::new(SELF)
            .arg(if waits { "fencer-wait" } else { "fencer-shim" })
            .arg(footing.to_arg())
            .arg(cgroup.unwrap_or(Path::new("")))
            .arg(orders.user.map(|user| user.to_string()).unwrap_or_default())
            .arg(rlimits.to_string())
            .arg(getpid().to_string())
            .arg(orders.dir.clone().unwrap_or_default())
            .args(&orders.command)
            .env(MARK, &orders.mark)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let id = child.id();
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Text::new(format!("process id {id} is out of range")))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok();
        Ok(Shim { pid, pidfd, socket: Some(socket), heard: Vec::new() })
    }

    /// Lets it become the workload of this epoch. False if it cannot any more.
    pub(super) fn go(&mut self, epoch: Epoch) -> bool {
        let line = format!("{epoch}\n");
        let written = self.socket.as_mut().map(|socket| socket.write(line.as_bytes()));
        matches!(written, Some(Ok(n)) if n == line.len())
    }

    /// What it says next. Never waits.
    pub(super) fn hear(&mut self) -> Word {
        let Some(socket) = &mut self.socket else { return Word::Nothing };
        let mut bytes = [0; 512];
        let ended = loop {
            match socket.read(&mut bytes) {
                Ok(n) if n > 0 && self.heard.len() < WORDS_MAX => {
                    self.heard.extend_from_slice(bytes.get(..n).unwrap_or_default());
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break false,
                _ => break true,
            }
        };
        if let Some(place) = self.place() {
            return Word::Place(place);
        }
        if !ended {
            return Word::Nothing;
        }
        self.socket = None;
        if self.heard.is_empty() {
            Word::Executed
        } else {
            Word::Cannot(Text::new(String::from_utf8_lossy(&self.heard)))
        }
    }

    /// Takes the line about its place off what was heard.
    fn place(&mut self) -> Option<Result<(), Text>> {
        let end = self.heard.iter().position(|b| *b == b'\n')?;
        let line = String::from_utf8_lossy(self.heard.get(..end)?).into_owned();
        let place = match line.strip_prefix(OUTSIDE) {
            Some(why) => Err(Text::new(why)),
            None if line == INSIDE => Ok(()),
            None => return None,
        };
        self.heard.drain(..=end);
        Some(place)
    }

    /// What to wait for to hear more.
    pub(super) fn socket(&self) -> Option<&UnixStream> {
        self.socket.as_ref()
    }
}
