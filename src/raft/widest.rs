//! How long a restart of this member would have to refuse votes, by what is durable on its disk.
//!
//! The timing is agreed through the log, so a log entry on disk, committed or not, is what a member may promise by: the
//! guard is told after such an entry was written, and before one is written that allows less. The same computation runs
//! at the start, over the same bytes. So no restart can forget a promise.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use openraft::EntryPayload;

use super::{types::Entry, vote_guard::VoteGuard};
use crate::ownership::{command::Command, pace::Pace, record::Record};

/// The agreed timing after each entry of the log that changes it, the snapshot's first.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Paces(BTreeMap<u64, Pace>);

impl Paces {
    /// A snapshot that covers everything up to `index` says so.
    pub(crate) fn snapshot(&mut self, index: u64, record: &Record) {
        let behind = self.0.split_off(&(index + 1));
        self.0 = [(index, record.pace.clone())].into();
        self.0.extend(behind);
    }

    /// An entry of the log.
    pub(crate) fn entry(&mut self, entry: &Entry) {
        let EntryPayload::Normal(command) = &entry.payload else { return };
        let index = entry.log_id.index;
        // The snapshot knows better.
        if !matters(command) || self.0.last_key_value().is_some_and(|(last, _)| *last >= index) {
            return;
        }
        let mut pace = self.0.last_key_value().map(|(_, pace)| pace.clone()).unwrap_or_default();
        // What does not fit is refused here as it will be when it is applied.
        if pace.apply(command).is_ok() {
            self.0.insert(index, pace);
        }
    }

    /// The entry `from` and all behind it are removed.
    pub(crate) fn truncate(&mut self, from: u64) {
        self.0.split_off(&from);
    }

    /// How long a restart must wait, besides what was ever configured.
    pub(crate) fn widest(&self) -> Duration {
        self.0.last_key_value().map_or(Duration::ZERO, |(_, pace)| pace.widest())
    }
}

/// Whether a command changes how long may be promised.
pub(crate) fn matters(command: &Command) -> bool {
    matches!(command, Command::SetTiming(_) | Command::SettleTiming(_))
}

/// Keeps the guard's ceiling at what is durable. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct Widest {
    paces: Arc<Mutex<Paces>>,
    guard: VoteGuard,
}

impl Widest {
    /// Begins with what was found on the disk.
    pub(crate) fn new(paces: Paces, guard: VoteGuard) -> Widest {
        guard.durable(paces.widest());
        Widest { paces: Arc::new(Mutex::new(paces)), guard }
    }

    fn paces(&self) -> MutexGuard<'_, Paces> {
        self.paces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Such a change is about to be written: what it takes away is not promised any more.
    pub(crate) fn before(&self, change: impl FnOnce(&mut Paces)) {
        let paces = self.paces();
        let mut after = paces.clone();
        change(&mut after);
        self.guard.durable(paces.widest().min(after.widest()));
    }

    /// It is durable: what it adds may be promised.
    pub(crate) fn after(&self, change: impl FnOnce(&mut Paces)) {
        let mut paces = self.paces();
        change(&mut paces);
        self.guard.durable(paces.widest());
    }
}
