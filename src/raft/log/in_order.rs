//! A disk that removes log entries only once a durable snapshot covers them, and never goes back to an older snapshot.
//!
//! openraft hands an installed snapshot to the state machine's task and removes the log behind it at once, without
//! waiting. A power cut between the two would leave a store whose log begins behind its snapshot; it would rightly be
//! called damaged at the next start. It also builds a snapshot on a task of its own, beside which one that the leader sent
//! may be installed and the log removed up to that: the older of the two must not be what stays. Everything else goes
//! straight through.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use super::{BoxFuture, Change, Contents, Disk, decode_snapshot};

/// In place of an index: no snapshot becomes durable any more. No log reaches as far.
const FAILED: u64 = u64::MAX;

/// See the file's head.
pub(crate) struct InOrder {
    disk: Arc<dyn Disk>,
    /// Up to which index a snapshot is durable.
    covered: watch::Sender<Option<u64>>,
    /// Up to which index one was handed in.
    newest: Mutex<Option<u64>>,
}

fn covers(snapshot: &bytes::Bytes) -> Option<u64> {
    decode_snapshot(snapshot).ok()?.0.last_log_id.map(|id| id.index)
}

impl InOrder {
    /// Puts `disk`, which holds `contents`, in order.
    pub(crate) fn new(disk: Arc<dyn Disk>, contents: &Contents) -> InOrder {
        let covered = contents.snapshot.as_ref().and_then(covers);
        InOrder { disk, covered: watch::Sender::new(covered), newest: Mutex::new(covered) }
    }
}

impl Disk for InOrder {
    fn write(&self, change: Change) -> BoxFuture<'_, io::Result<()>> {
        match change {
            Change::PurgeUpTo(id) => Box::pin(async move {
                // It cannot fail: the sender is our own.
                let _ = self.covered.subscribe().wait_for(|c| c.is_some_and(|c| c >= id.index)).await;
                self.disk.write(Change::PurgeUpTo(id)).await
            }),
            Change::Snapshot(bytes) => {
                let up_to = covers(&bytes);
                // Held until the disk has it, so that the order there is the order here.
                let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
                if up_to < *newest {
                    return Box::pin(async move {
                        // A newer one is on its way, and says all that this one does.
                        match self.covered.subscribe().wait_for(|c| *c >= up_to).await.as_deref() {
                            Ok(Some(FAILED)) | Err(_) => {
                                Err(io::Error::other("a newer snapshot was not written"))
                            }
                            Ok(_) => Ok(()),
                        }
                    });
                }
                *newest = up_to;
                let written = self.disk.write(Change::Snapshot(bytes));
                drop(newest);
                Box::pin(async move {
                    let result = written.await;
                    // After an error nothing is written any more, and whoever waits shall hear of it.
                    let up_to = if result.is_ok() { up_to } else { Some(FAILED) };
                    self.covered.send_modify(|covered| *covered = (*covered).max(up_to));
                    result
                })
            }
            other => self.disk.write(other),
        }
    }

    fn contents(&self) -> io::Result<Contents> {
        self.disk.contents()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{StoredLogId, encode_snapshot, load_log_id, memory::MemoryDisk},
        *,
    };
    use crate::raft::types::SnapshotMeta;

    #[tokio::test(start_paused = true)]
    async fn the_log_is_removed_only_behind_a_durable_snapshot() {
        let memory = MemoryDisk::default();
        memory.delay(Duration::from_millis(500));
        let disk = Arc::new(InOrder::new(Arc::new(memory.clone()), &Contents::default()));
        let last = StoredLogId { term: 1, node: 1, index: 300 };
        // As openraft does it: removed first, while the snapshot is still being written.
        let removing = tokio_util::task::TaskTracker::new().spawn({
            let disk = disk.clone();
            async move { disk.write(Change::PurgeUpTo(last)).await }
        });
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(memory.contents().expect("reads").purged, None);
        let meta = SnapshotMeta { last_log_id: Some(load_log_id(last)), ..SnapshotMeta::default() };
        disk.write(Change::Snapshot(encode_snapshot(&meta, b"{}"))).await.expect("written");
        assert_eq!(memory.contents().expect("reads").purged, None, "not before");
        removing.await.expect("ends").expect("written");
        assert_eq!(memory.contents().expect("reads").purged, Some(last));
    }

    #[tokio::test(start_paused = true)]
    async fn no_older_snapshot_replaces_a_newer_one() {
        let memory = MemoryDisk::default();
        memory.delay(Duration::from_millis(500));
        let disk = InOrder::new(Arc::new(memory.clone()), &Contents::default());
        let snapshot = |index| {
            let last = load_log_id(StoredLogId { term: 1, node: 1, index });
            encode_snapshot(&SnapshotMeta { last_log_id: Some(last), ..SnapshotMeta::default() }, b"{}")
        };
        // Built at 100, and overtaken by one that the leader has sent.
        let installed = disk.write(Change::Snapshot(snapshot(300)));
        memory.delay(Duration::from_millis(600));
        let built = disk.write(Change::Snapshot(snapshot(100)));
        let (installed, built) = tokio::join!(installed, built);
        installed.expect("written");
        built.expect("it is covered");
        disk.write(Change::PurgeUpTo(StoredLogId { term: 1, node: 1, index: 300 })).await.expect("written");
        let kept = memory.contents().expect("reads").snapshot;
        assert_eq!(kept, Some(snapshot(300)), "or the log between the two would be missing");
        disk.write(Change::Snapshot(snapshot(301))).await.expect("written");
        assert_eq!(memory.contents().expect("reads").snapshot, Some(snapshot(301)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_disk_keeps_nobody_waiting() {
        let memory = MemoryDisk::default();
        let disk = InOrder::new(Arc::new(memory.clone()), &Contents::default());
        memory.break_down();
        let meta = SnapshotMeta::default();
        disk.write(Change::Snapshot(encode_snapshot(&meta, b"{}"))).await.expect_err("broken");
        disk.write(Change::PurgeUpTo(StoredLogId::default())).await.expect_err("broken");
        let newer = SnapshotMeta { last_log_id: Some(load_log_id(StoredLogId::default())), ..meta.clone() };
        disk.write(Change::Snapshot(encode_snapshot(&newer, b"{}"))).await.expect_err("broken");
        disk.write(Change::Snapshot(encode_snapshot(&meta, b"{}"))).await.expect_err("so is the older");
    }
}
