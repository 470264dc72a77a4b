//! A disk whose first error bars its device from voting.
//!
//! After a failed write nothing is known about what is on the disk: the page cache may show what the disk never got
//! (fsync reports an error once and then forgets it). So nothing is tried again on the same handles. The vote is barred
//! here, before Raft hears of the error; [`super::sled`] writes nothing more; and only a fresh start, which reads what
//! the disk really holds, may end it.

use std::{io, sync::Arc};

use tokio::sync::watch;

use super::{BoxFuture, Change, Contents, Disk};
use crate::raft::vote_guard::{Bar, VoteGuard};

/// What a disk failed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFailure {
    /// The error, as the system reported it.
    pub error: String,
    /// Whether there was no room left, which somebody may make.
    pub full: bool,
}

/// See the file's head.
pub(crate) struct Watched {
    disk: Arc<dyn Disk>,
    guard: VoteGuard,
    failed: watch::Sender<Option<DiskFailure>>,
}

impl Watched {
    /// Watches over `disk`, whose device votes through `guard`.
    pub(crate) fn new(disk: Arc<dyn Disk>, guard: VoteGuard) -> Watched {
        Watched { disk, guard, failed: watch::Sender::new(None) }
    }

    /// How the disk has failed, once it has.
    pub(crate) fn failed(&self) -> watch::Receiver<Option<DiskFailure>> {
        self.failed.subscribe()
    }
}

impl Disk for Watched {
    fn write(&self, change: Change) -> BoxFuture<'_, io::Result<()>> {
        // Begun now, so that the order of the calls is kept.
        let written = self.disk.write(change);
        Box::pin(async move {
            let result = written.await;
            if let Err(e) = &result {
                self.guard.bar(Bar::DiskFailed);
                let full = matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
                self.failed.send_if_modified(|failed| {
                    let first = failed.is_none();
                    failed.get_or_insert_with(|| DiskFailure { error: e.to_string(), full });
                    first
                });
            }
            result
        })
    }

    fn contents(&self) -> io::Result<Contents> {
        self.disk.contents()
    }
}
