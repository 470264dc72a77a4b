//! The workload door: start it, stop it, say what was observed, always under a deadline.
//!
//! A workload runs only between [`Workload::start`] and the deadline that was given last, and the deadline only moves
//! forward. What makes that true when the sidecar is frozen or dead is the fencer (`fencer.rs`), not this process.
//! This room decides nothing: who may run is `ownership/`'s business.

mod asked;
mod cgroup;
mod driver;
pub mod exam;
mod fence;
mod fencer;
mod fencer_exec;
pub mod fingerprint;
mod footing;
mod holder;
mod internal;
mod limits;
mod link;
pub mod none;
mod notify;
mod open;
mod orders;
mod orphans;
mod output;
pub mod process;
mod program;
mod pulse;
mod readiness;
mod receipt;
mod runner;
pub mod runtime;
mod secrets;
mod settings;
mod shim;
mod sidecar;
mod ticker;
pub mod ticks;
mod undo;
mod undo_kept;
pub mod user;
mod wire;

use std::{future::Future, pin::Pin, sync::Arc};

use tokio::sync::watch;

use crate::{clock::Moment, epoch::Epoch, seal::Seal};

pub use self::{
    asked::ask_command,
    internal::internal_command,
    limits::Limits,
    none::OwnershipOnly,
    open::{Opened, open},
    orphans::{adopt, signal_children},
    process::{Context, ProcessWorkload},
    program::find_program,
    readiness::{Demand, Ready},
    settings::{Kind, STOP_TIMEOUT, Settings},
    ticker::EVERY as TICK_EVERY,
    user::User,
};

/// A boxed future, so that workloads can be handed in behind a pointer.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What was observed of the workload. Never what was wished for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// Nothing of it runs on this device, and its fencer has confirmed that.
    Stopped,
    /// It runs, or may run, under this epoch.
    Running {
        /// The epoch it was started with.
        epoch: Epoch,
        /// Its process id, where there is one.
        pid: Option<u32>,
    },
    /// It ended by itself and is started again later, still under this epoch. Nothing of it ran when that was seen,
    /// but the fencer starts it again without asking, so this is no substitute for [`Observed::Stopped`].
    BackingOff {
        /// The epoch it was started with.
        epoch: Epoch,
        /// How often in a row it has ended by itself.
        failures: u32,
        /// What happened last: `exit code 3`, `killed by signal 9`, `cannot start: …`.
        last: String,
    },
    /// It was told to stop, or its deadline passed; parts of it may still run.
    Stopping {
        /// The epoch it was started with.
        epoch: Epoch,
    },
}

impl Observed {
    /// Whether anything of the workload may be running, or may be started without a further word from here. Only
    /// [`Observed::Stopped`] rules that out.
    pub fn may_run(&self) -> bool {
        *self != Observed::Stopped
    }

    /// The epoch it was started with, unless it is stopped.
    pub fn epoch(&self) -> Option<Epoch> {
        match self {
            Observed::Stopped => None,
            Observed::Running { epoch, .. }
            | Observed::BackingOff { epoch, .. }
            | Observed::Stopping { epoch } => Some(*epoch),
        }
    }
}

/// Permission to run: the epoch, and the end of the lease on the boot clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The fencing token the workload gets.
    pub epoch: Epoch,
    /// From here on it is being stopped, whatever else happens; all of it is gone `stop_grace` later.
    pub until: Moment,
}

/// What a workload says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words {
    /// Whether it is ready.
    pub ready: Ready,
    /// What it is at, in its own words; at most 300 bytes on one line.
    pub status: Option<String>,
}

/// What keeps a workload's processes together, so that none outlives its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldBy {
    /// A cgroup of its own, besides what [`HeldBy::Reaper`] does.
    Cgroup,
    /// The fencer, which every orphan becomes a child of.
    Reaper,
}

impl HeldBy {
    /// The word for it in the status.
    pub fn name(self) -> &'static str {
        match self {
            HeldBy::Cgroup => "cgroup",
            HeldBy::Reaper => "reaper",
        }
    }
}

/// Why a workload could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The workload's program could not be started; it is tried again with growing pauses.
    #[error("cannot start {program:?}: {reason}")]
    CannotStart {
        /// The program named in `workload.command`.
        program: String,
        /// What the system said.
        reason: String,
    },
    /// The fencer could not be started, or is gone. The workload is dead or dying with it.
    #[error("the fencer {0}")]
    Fencer(String),
    /// The fencer of this epoch was lost, and may have told the other members that it has ended.
    #[error("the fencer of epoch {0} was lost, so nothing is started under it any more")]
    Burned(Epoch),
    /// A deadline was given that has already passed.
    #[error("the lease is already over")]
    Late,
}

/// A workload that obeys a lease.
pub trait Workload: Send + Sync + 'static {
    /// Starts it under `grant`. Returns when the fencer holds the deadline and the start has been tried. If it ends
    /// by itself it is started again, with growing pauses, until it is stopped. Dropping the future does not undo
    /// the start.
    ///
    /// Starting what runs under the same epoch is an extension; under another epoch it is refused until it was
    /// stopped. A deadline more than 60 s ahead, which no lease reaches, is cut to that.
    ///
    /// # Errors
    /// [`Error::Late`], [`Error::Burned`] and [`Error::Fencer`]: nothing runs, and nothing will. [`Error::CannotStart`]: nothing runs
    /// yet, and it is tried again until it is stopped or its deadline passes.
    fn start(&self, grant: Grant) -> BoxFuture<'_, Result<(), Error>>;

    /// Moves the deadline forward, of a run that was told to stop as well. An earlier moment than the last is ignored.
    /// Never waits.
    fn extend(&self, until: Moment);

    /// Stops it and waits until nothing of it runs: TERM to its whole process group, KILL after `stop_timeout` or, if
    /// that is sooner, when the grace after the deadline is over.
    /// Stopping what is stopped succeeds at once. Dropping the future does not undo the stop.
    ///
    /// # Errors
    /// [`Error::Fencer`] if the end could not be confirmed; then treat it as running until its deadline and grace.
    fn stop(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// What is observed, now and on every change.
    fn observe(&self) -> watch::Receiver<Observed>;

    /// The seal for the next claim; the start under the epoch that it wins hands the secret behind it to the fencer.
    /// `None` where there is no fencer that could give a receipt.
    fn seal(&self) -> Option<Seal> {
        None
    }

    /// What it says of itself, now and on every change. `None` if it is ready once it is started.
    fn words(&self) -> Option<watch::Receiver<Words>> {
        None
    }

    /// What it was granted, where nothing stops whoever acts on an answer: nobody is told of more, for a stop waits for no
    /// more. `None` where a fencer ends it.
    fn granted(&self) -> Option<watch::Receiver<Option<Grant>>> {
        None
    }

    /// What keeps its processes together. `None` until that is known, and where there are none.
    fn held_by(&self) -> Option<HeldBy> {
        None
    }

    /// The epoch under which nothing is started here any more, because its fencer was lost and may give its receipt.
    fn burned(&self) -> Option<Epoch> {
        None
    }
}

/// A workload behind a pointer.
pub type Handle = Arc<dyn Workload>;
