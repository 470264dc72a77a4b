//! The sidecar as the fencer sees it: a socket at standard input that may freeze, close or talk nonsense at any time.
//!
//! Nothing here blocks, whatever the other end does; only [`Sidecar::idle`] waits, for as long as it is told, and it is
//! used before anything was started. A sidecar that is gone stays gone. `link.rs` is the other end.

use std::{
    io::{ErrorKind, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::getppid,
};

use super::{
    fencer::timespec,
    wire::{Command, Event, Lines},
};

/// Events that a silent sidecar may leave unread, in bytes, before it counts as gone.
const UNREAD_MAX: usize = 64 * 1024;

/// The link to the sidecar. Nothing here blocks.
pub(super) struct Sidecar {
    socket: UnixStream,
    lines: Lines,
    unsent: Vec<u8>,
    parent: i32,
    /// Whether it is gone. It never comes back.
    pub(super) gone: bool,
}

impl Sidecar {
    /// The sidecar with the process id `parent`, at the other end of standard input.
    pub(super) fn at_stdin(parent: i32) -> std::io::Result<Sidecar> {
        let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        socket.set_nonblocking(true)?;
        Ok(Sidecar { socket, lines: Lines::default(), unsent: Vec::new(), parent, gone: false })
    }

    /// Passes an event on, at once or later.
    pub(super) fn tell(&mut self, event: &Event) {
        if self.gone {
            return;
        }
        self.unsent.extend_from_slice(format!("{event}\n").as_bytes());
        self.flush();
    }

    /// Writes what can be written now.
    pub(super) fn flush(&mut self) {
        while !self.unsent.is_empty() && !self.gone {
            match self.socket.write(&self.unsent) {
                Ok(n) if n > 0 => drop(self.unsent.drain(..n)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                _ => self.gone = true,
            }
        }
        self.gone |= self.unsent.len() > UNREAD_MAX;
    }

    /// Everything that has arrived. Sets `gone` when the sidecar is.
    pub(super) fn commands(&mut self) -> Vec<Command> {
        let mut commands = Vec::new();
        let mut bytes = [0; 4096];
        // Bounded, so that a sidecar that never stops talking cannot keep the loop from its clock.
        for _ in 0..16 {
            match self.socket.read(&mut bytes) {
                Ok(0) => self.gone = true,
                Ok(n) => self.lines.push(bytes.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.gone = true,
            }
            loop {
                match self.lines.next_line().and_then(|line| line.map(|l| Command::parse(&l)).transpose()) {
                    Ok(Some(command)) => commands.push(command),
                    Ok(None) => break,
                    Err(_) => {
                        self.gone = true;
                        break;
                    }
                }
            }
            if self.gone {
                break;
            }
        }
        self.gone |= !self.is_parent();
        if self.gone {
            // What a dead sidecar wanted started is not started.
            commands.clear();
        }
        commands
    }

    /// Waits a little before anything was started; `Err` if the sidecar is gone, for then there is nothing to do.
    pub(super) fn idle(&mut self, pause: Duration) -> Result<(), ()> {
        let mut peek = PollFd::new(&self.socket, PollFlags::HUP);
        let hung_up = poll(std::slice::from_mut(&mut peek), Some(&timespec(pause))).is_ok()
            && peek.revents().contains(PollFlags::HUP);
        if hung_up || !self.is_parent() { Err(()) } else { Ok(()) }
    }

    /// Whether bytes wait to be written.
    pub(super) fn unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// A dead sidecar's children get another parent.
    fn is_parent(&self) -> bool {
        getppid().map(|pid| pid.as_raw_nonzero().get()) == Some(self.parent)
    }
}

impl AsFd for Sidecar {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
