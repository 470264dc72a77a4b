//! What sidecar and fencer say to each other, as values and as lines of text.
//!
//! One line is one message, in plain ASCII words, so that `strace` shows what happened. [`Lines`] cuts a byte stream
//! into lines and never holds more than [`LINE_MAX`] bytes. Both ends treat a line that they cannot read as the loss
//! of the other end, which stops the workload: there is no "skip and hope".
//!
//! This file does no I/O and knows nothing of what the messages lead to (`fence.rs`, `process.rs`).

use std::fmt;

use crate::{clock::Moment, epoch::Epoch, seal::Secret};

/// The longest line in bytes, without its end.
pub(super) const LINE_MAX: usize = 1024;
/// The longest free text inside a message, in bytes.
const TEXT_MAX: usize = 300;

/// A free text that fits into one line: control characters become spaces, and it is cut at 300 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Text(String);

impl Text {
    /// Makes any text fit.
    pub(super) fn new(text: impl AsRef<str>) -> Text {
        let mut fitting = String::new();
        for c in text.as_ref().chars() {
            let c = if c.is_control() { ' ' } else { c };
            if fitting.len() + c.len_utf8() > TEXT_MAX {
                break;
            }
            fitting.push(c);
        }
        Text(fitting)
    }

    /// The text itself.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// From the sidecar to the fencer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// Run the workload under this epoch until this moment of the boot clock.
    Start {
        /// The fencing token.
        epoch: Epoch,
        /// The deadline.
        until: Moment,
        /// What to show to the other members if the sidecar is lost while it runs. Absent: nothing.
        secret: Option<Secret>,
    },
    /// The deadline of this epoch is at least this moment now.
    Extend {
        /// The epoch that the lease belongs to.
        epoch: Epoch,
        /// The new deadline.
        until: Moment,
    },
    /// Stop the workload now.
    Stop,
    /// Give a sign of life.
    Ping,
}

/// From the fencer to the sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// The answer to [`Command::Ping`].
    Alive,
    /// Somebody else has held the lock of the data folder for longer than a fencer of an earlier life should.
    Held {
        /// Their process id.
        pid: u32,
        /// Who that is, and what was done about it.
        what: Text,
    },
    /// The workload's process is in a cgroup of its own.
    Confined {
        /// Where that lies.
        dir: Text,
    },
    /// There is no cgroup for the workload, or its process cannot be moved there.
    Loose {
        /// Why.
        why: Text,
    },
    /// The fencer holds the lock of the data folder, and nothing of any earlier workload runs.
    Ready,
    /// The workload's program runs.
    Running {
        /// Its epoch.
        epoch: Epoch,
        /// Its process id.
        pid: u32,
    },
    /// It ended by itself, nothing of it runs now, and it will be started again.
    Exited {
        /// Its epoch.
        epoch: Epoch,
        /// How often in a row.
        failures: u32,
        /// How it ended.
        how: Text,
    },
    /// Its program could not be started, and will be tried again.
    CannotStart {
        /// Its epoch.
        epoch: Epoch,
        /// How often in a row.
        failures: u32,
        /// What the system said.
        reason: Text,
    },
    /// It is being stopped, or its deadline passed.
    Stopping {
        /// Its epoch.
        epoch: Epoch,
    },
    /// The stop receipt: nothing of it runs, and nothing will until the next start.
    Stopped {
        /// Its epoch.
        epoch: Epoch,
        /// When that was seen.
        at: Moment,
    },
    /// What undoes the rest of the workload has failed, and is tried again. Until it succeeds the end is not reported.
    NotUndone {
        /// How it ended.
        how: Text,
    },
    /// A start that was not carried out because its deadline had passed.
    Late {
        /// The epoch of that start.
        epoch: Epoch,
    },
    /// A start that was not carried out because another run has not ended.
    Busy {
        /// The epoch of that start.
        epoch: Epoch,
    },
    /// The fencer cannot do its job and ends.
    Failed {
        /// Why.
        reason: Text,
    },
}

/// Why a line is not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// The line is longer than [`LINE_MAX`].
    #[error("a line is longer than {LINE_MAX} bytes")]
    TooLong,
    /// The line is not a known message.
    #[error("cannot read {0:?}")]
    Unknown(String),
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Start { epoch, until, secret: None } => write!(f, "START {epoch} {}", until.as_nanos()),
            Command::Start { epoch, until, secret: Some(secret) } => {
                write!(f, "START {epoch} {} {}", until.as_nanos(), secret.to_hex())
            }
            Command::Extend { epoch, until } => write!(f, "EXTEND {epoch} {}", until.as_nanos()),
            Command::Stop => f.write_str("STOP"),
            Command::Ping => f.write_str("PING"),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Alive => f.write_str("ALIVE"),
            Event::Held { pid, what } => write!(f, "HELD {pid} {what}"),
            Event::Confined { dir } => write!(f, "CONFINED {dir}"),
            Event::Loose { why } => write!(f, "LOOSE {why}"),
            Event::Ready => f.write_str("READY"),
            Event::Running { epoch, pid } => write!(f, "RUNNING {epoch} {pid}"),
            Event::Exited { epoch, failures, how } => write!(f, "EXITED {epoch} {failures} {how}"),
            Event::CannotStart { epoch, failures, reason } => write!(f, "CANNOT {epoch} {failures} {reason}"),
            Event::Stopping { epoch } => write!(f, "STOPPING {epoch}"),
            Event::Stopped { epoch, at } => write!(f, "STOPPED {epoch} {}", at.as_nanos()),
            Event::NotUndone { how } => write!(f, "NOTUNDONE {how}"),
            Event::Late { epoch } => write!(f, "LATE {epoch}"),
            Event::Busy { epoch } => write!(f, "BUSY {epoch}"),
            Event::Failed { reason } => write!(f, "FAILED {reason}"),
        }
    }
}

/// Takes words off the front of a line.
struct Words<'a>(Option<&'a str>);

impl<'a> Words<'a> {
    fn word(&mut self) -> Option<&'a str> {
        let rest = self.0?;
        let (word, rest) = match rest.split_once(' ') {
            Some((word, rest)) => (word, Some(rest)),
            None => (rest, None),
        };
        self.0 = rest;
        Some(word)
    }

    /// Digits only: `str::parse` would also take a sign.
    fn number<N: std::str::FromStr>(&mut self) -> Option<N> {
        let word = self.word()?;
        if word.bytes().all(|b| b.is_ascii_digit()) { word.parse().ok() } else { None }
    }

    fn epoch(&mut self) -> Option<Epoch> {
        Epoch::new(self.number()?)
    }

    fn moment(&mut self) -> Option<Moment> {
        self.number().map(Moment::from_nanos)
    }

    /// The last word, if there is one more.
    fn secret(&mut self) -> Option<Option<Secret>> {
        match self.0.take() {
            Some(word) => Secret::parse(word).map(Some),
            None => Some(None),
        }
    }

    fn text(&mut self) -> Option<Text> {
        self.0.take().map(Text::new)
    }

    fn end(&self) -> Option<()> {
        self.0.is_none().then_some(())
    }
}

impl Command {
    /// Reads one line without its end.
    ///
    /// # Errors
    /// [`Error::Unknown`] for anything that is not exactly a command.
    pub(super) fn parse(line: &str) -> Result<Command, Error> {
        Self::words(&mut Words(Some(line))).ok_or_else(|| Error::Unknown(Text::new(line).0))
    }

    fn words(w: &mut Words<'_>) -> Option<Command> {
        let command = match w.word()? {
            "START" => Command::Start { epoch: w.epoch()?, until: w.moment()?, secret: w.secret()? },
            "EXTEND" => Command::Extend { epoch: w.epoch()?, until: w.moment()? },
            "STOP" => Command::Stop,
            "PING" => Command::Ping,
            _ => return None,
        };
        w.end().map(|()| command)
    }
}

impl Event {
    /// Reads one line without its end.
    ///
    /// # Errors
    /// [`Error::Unknown`] for anything that is not exactly an event.
    pub(super) fn parse(line: &str) -> Result<Event, Error> {
        Self::words(&mut Words(Some(line))).ok_or_else(|| Error::Unknown(Text::new(line).0))
    }

    fn words(w: &mut Words<'_>) -> Option<Event> {
        let event = match w.word()? {
            "ALIVE" => Event::Alive,
            "HELD" => Event::Held { pid: w.number()?, what: w.text()? },
            "CONFINED" => Event::Confined { dir: w.text()? },
            "LOOSE" => Event::Loose { why: w.text()? },
            "READY" => Event::Ready,
            "RUNNING" => Event::Running { epoch: w.epoch()?, pid: w.number()? },
            "EXITED" => Event::Exited { epoch: w.epoch()?, failures: w.number()?, how: w.text()? },
            "CANNOT" => Event::CannotStart { epoch: w.epoch()?, failures: w.number()?, reason: w.text()? },
            "STOPPING" => Event::Stopping { epoch: w.epoch()? },
            "STOPPED" => Event::Stopped { epoch: w.epoch()?, at: w.moment()? },
            "NOTUNDONE" => Event::NotUndone { how: w.text()? },
            "LATE" => Event::Late { epoch: w.epoch()? },
            "BUSY" => Event::Busy { epoch: w.epoch()? },
            "FAILED" => Event::Failed { reason: w.text()? },
            _ => return None,
        };
        w.end().map(|()| event)
    }
}

/// Cuts a byte stream into lines.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<u8>);

impl Lines {
    /// Adds what was read.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Whether a whole line waits.
    pub(super) fn has_line(&self) -> bool {
        self.0.contains(&b'\n')
    }

    /// The next whole line without its end; `None` while there is none. Call it until `None` after each push.
    ///
    /// # Errors
    /// [`Error::TooLong`] once more than [`LINE_MAX`] bytes hold no line end; [`Error::Unknown`] if it is not UTF-8.
    pub(super) fn next_line(&mut self) -> Result<Option<String>, Error> {
        let Some(end) = self.0.iter().take(LINE_MAX + 1).position(|b| *b == b'\n') else {
            return if self.0.len() > LINE_MAX { Err(Error::TooLong) } else { Ok(None) };
        };
        let mut line: Vec<u8> = self.0.drain(..=end).collect();
        line.pop();
        String::from_utf8(line)
            .map(Some)
            .map_err(|e| Error::Unknown(Text::new(String::from_utf8_lossy(e.as_bytes())).0))
    }
}

#[cfg(test)]
mod tests;
