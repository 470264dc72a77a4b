//! A disk that removes log entries only once a durable snapshot covers them.
//!
//! openraft hands an installed snapshot to the state machine's task and removes the log behind it at once, without
//! waiting. A power cut between the two would leave a store whose log begins behind its snapshot; it would rightly be
//! called damaged at the next start. Everything else goes straight through.

use std::{io, sync::Arc};

use tokio::sync::watch;

use super::{BoxFuture, Change, Contents, Disk, decode_snapshot};

/// See the file's head.
pub(crate) struct InOrder {
    disk: Arc<dyn Disk>,
    /// Up to which index a snapshot is durable.
    covered: watch::Sender<Option<u64>>,
}

fn covers(snapshot: &bytes::Bytes) -> Option<u64> {
    decode_snapshot(snapshot).ok()?.0.last_log_id.map(|id| id.index)
}

impl InOrder {
    /// Puts `disk`, which holds `contents`, in order.
    pub(crate) fn new(disk: Arc<dyn Disk>, contents: &Contents) -> InOrder {
        let covered = contents.snapshot.as_ref().and_then(covers);
        InOrder { disk, covered: watch::Sender::new(covered) }
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
                let written = self.disk.write(Change::Snapshot(bytes));
                Box::pin(async move {
                    let result = written.await;
                    // After an error nothing is written any more, and whoever waits shall hear of it.
                    let up_to = if result.is_ok() { up_to } else { Some(u64::MAX) };
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
    async fn a_broken_disk_keeps_nobody_waiting() {
        let memory = MemoryDisk::default();
        let disk = InOrder::new(Arc::new(memory.clone()), &Contents::default());
        memory.break_down();
        let meta = SnapshotMeta::default();
        disk.write(Change::Snapshot(encode_snapshot(&meta, b"{}"))).await.expect_err("broken");
        disk.write(Change::PurgeUpTo(StoredLogId::default())).await.expect_err("broken");
    }
}
