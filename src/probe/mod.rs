//! Asks one thing, once: does the PLC answer, does the workload work? What the answers come to is decided elsewhere
//! ([`crate::ownership::probe`]), and how often is asked as well (`reconcile/probes.rs`).
//!
//! Whatever is asked may hang, flood or be gone. An answer takes a bounded time and memory here: a connection is given up at
//! the time limit, of what comes back only the beginning is read, and what can block a thread (a name to look up, a file, a
//! program to start) is done on a thread of its own, one at a time per probe. Nothing here delays the other tasks.

mod alone;
mod net;

use std::{path::PathBuf, sync::Arc, time::Duration};

use self::alone::Alone;
use crate::{
    ownership::probe::Thresholds,
    workload::{BoxFuture, ask_command},
};

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// What this device sees of the plant: asked on every device, all the time.
    Plant,
    /// How the workload itself is: asked where it runs.
    Workload,
}

impl Role {
    /// The name as written in `site.probes`.
    pub fn name(self) -> &'static str {
        match self {
            Role::Plant => "plant",
            Role::Workload => "workload",
        }
    }
}

/// A host and a port, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Whether a connection is accepted.
    Tcp(Place),
    /// Whether `GET` is answered with 2xx or 3xx.
    Http {
        /// Where.
        place: Place,
        /// What stands in `Host`.
        authority: String,
        /// From the slash on.
        path: String,
    },
    /// Whether the standard health service says `SERVING`.
    Grpc {
        /// Where.
        place: Place,
        /// Of which service; empty: of the whole server.
        service: String,
    },
    /// Whether a command exits with 0.
    Exec(Vec<String>),
    /// Whether a file was written or touched since it was last looked at.
    Heartbeat(PathBuf),
}

impl Target {
    /// The kind as written in `site.probes`.
    pub fn kind(&self) -> &'static str {
        match self {
            Target::Tcp(_) => "tcp",
            Target::Http { .. } => "http",
            Target::Grpc { .. } => "grpc",
            Target::Exec(_) => "exec",
            Target::Heartbeat(_) => "heartbeat",
        }
    }
}

/// One probe as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// What is asked.
    pub target: Target,
    /// How often.
    pub every: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How many answers in a row change the verdict.
    pub thresholds: Thresholds,
}

/// Something that can be asked again and again.
pub trait Probe: Send + 'static {
    /// Asks once. May be dropped at any moment, and asked again then.
    ///
    /// # Errors
    /// What is wrong, in a few words.
    fn ask(&mut self) -> BoxFuture<'_, Result<(), String>>;
}

/// The real probe of these settings.
pub fn open(settings: &Settings) -> Box<dyn Probe> {
    let timeout = settings.timeout;
    match &settings.target {
        Target::Tcp(place) => Box::new(net::Tcp::new(place.clone())),
        Target::Http { place, authority, path } => {
            Box::new(net::Http::new(place.clone(), authority.clone(), path.clone()))
        }
        Target::Grpc { place, service } => Box::new(net::Grpc::new(place.clone(), service.clone(), timeout)),
        Target::Exec(command) => {
            Box::new(Exec { command: command.clone().into(), timeout, running: Alone::default() })
        }
        Target::Heartbeat(path) => {
            Box::new(Heartbeat { path: path.clone(), last: None, looking: Alone::default() })
        }
    }
}

struct Exec {
    command: Arc<[String]>,
    timeout: Duration,
    running: Alone<Result<(), String>>,
}

impl Probe for Exec {
    fn ask(&mut self) -> BoxFuture<'_, Result<(), String>> {
        let (command, timeout) = (self.command.clone(), self.timeout);
        Box::pin(async move { self.running.run(move || ask_command(&command, timeout)).await? })
    }
}

/// What changes of a file when it is written or touched.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    size: u64,
    inode: u64,
}

fn stamp(path: &std::path::Path) -> Result<Stamp, String> {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let modified = (found.mtime(), found.mtime_nsec());
    Ok(Stamp { modified, size: found.len(), inode: found.ino() })
}

struct Heartbeat {
    path: PathBuf,
    last: Option<Stamp>,
    looking: Alone<Result<Stamp, String>>,
}

impl Probe for Heartbeat {
    fn ask(&mut self) -> BoxFuture<'_, Result<(), String>> {
        let path = self.path.clone();
        Box::pin(async move {
            // Its time is only compared with itself: wall clocks jump.
            let seen = self.looking.run(move || stamp(&path)).await??;
            let last = self.last.replace(seen.clone());
            match last {
                Some(last) if last != seen => Ok(()),
                Some(_) => {
                    Err(format!("{} was not touched since it was last looked at", self.path.display()))
                }
                None => Err(format!("{} was seen once only", self.path.display())),
            }
        })
    }
}

#[cfg(test)]
mod tests;
