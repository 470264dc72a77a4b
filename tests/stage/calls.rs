//! What is under way to the hub: which calls, since when, and about which epoch. The promises are checked on it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::world::now;

/// A write that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patch {
    /// The epoch that it tells.
    pub epoch: u64,
    /// When it was begun, in true time.
    pub begun: Duration,
}

#[derive(Debug, Default)]
struct Book {
    last: u64,
    open: BTreeMap<u64, Option<Patch>>,
    most: usize,
}

/// The calls of one caller. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Calls(Arc<Mutex<Book>>);

/// A call is under way for as long as this lives: whoever gives a call up drops it.
pub(super) struct UnderWay(Calls, u64);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.book().open.remove(&self.1);
    }
}

impl Calls {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call begins; a write names its epoch.
    pub(super) fn begin(&self, epoch: Option<u64>) -> UnderWay {
        let mut book = self.book();
        book.last += 1;
        let (number, patch) = (book.last, epoch.map(|epoch| Patch { epoch, begun: now() }));
        book.open.insert(number, patch);
        book.most = book.most.max(book.open.len());
        UnderWay(self.clone(), number)
    }

    /// The most that were ever under way at once.
    pub fn most(&self) -> usize {
        self.book().most
    }

    /// The writes that are under way.
    pub fn patches(&self) -> Vec<Patch> {
        self.book().open.values().copied().flatten().collect()
    }
}
