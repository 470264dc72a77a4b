//! A disk in memory that survives a simulated crash, except for what was not durable yet.
//!
//! A write takes [`MemoryDisk::delay`]; if its node dies before that is over, the write is lost, as with a real disk.
//! Used by tests and the simulator; a product that kept its votes here would forget them.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{BoxFuture, Change, Contents, Disk};

#[derive(Debug, Default)]
struct State {
    contents: Contents,
    delay: Duration,
    broken: bool,
    writes: u64,
}

/// The disk. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<State>>);

impl MemoryDisk {
    /// A disk that already holds `contents`.
    pub fn with(contents: Contents) -> MemoryDisk {
        MemoryDisk(Arc::new(Mutex::new(State { contents, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long each write takes from now on.
    pub fn delay(&self, delay: Duration) {
        self.state().delay = delay;
    }

    /// Every write fails from now on.
    pub fn break_down(&self) {
        self.state().broken = true;
    }

    /// The disk works again, for who starts on it afresh.
    pub fn mend(&self) {
        self.state().broken = false;
    }

    /// What the real disk makes of a damaged store: a new one that holds `first`, and the knowledge of what is missing.
    pub fn lose(&self, first: (u64, bytes::Bytes), amnesia: super::Amnesia) {
        self.state().contents =
            Contents { entries: [first].into(), amnesia: Some(amnesia), ..Contents::default() };
    }

    /// How many writes have become durable.
    pub fn writes(&self) -> u64 {
        self.state().writes
    }
}

impl Disk for MemoryDisk {
    fn write(&self, change: Change) -> BoxFuture<'_, io::Result<()>> {
        let delay = self.state().delay;
        Box::pin(async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let mut state = self.state();
            if state.broken {
                return Err(io::Error::other("the disk is broken"));
            }
            state.contents.apply(change);
            state.writes += 1;
            Ok(())
        })
    }

    fn contents(&self) -> io::Result<Contents> {
        Ok(self.state().contents.clone())
    }
}

impl Contents {
    /// Makes one change. What the real disk does with trees, in plain maps.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Vote(vote) => self.vote = Some(vote),
            Change::Append(entries) => self.entries.extend(entries.into_iter().map(|(id, e)| (id.index, e))),
            Change::TruncateFrom(index, _) => {
                self.entries.split_off(&index);
            }
            Change::PurgeUpTo(id) => {
                self.purged = Some(id);
                self.entries = self.entries.split_off(&(id.index + 1));
            }
            Change::Snapshot(bytes) => self.snapshot = Some(bytes),
        }
    }
}
