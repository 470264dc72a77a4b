use super::{memory::MemoryDisk, *};
use crate::{
    clock::BootClock,
    epoch::Epoch,
    id::NodeId,
    raft::vote_guard::{Ballot, PromiseRefusal},
};

fn store(disk: &MemoryDisk) -> (LogStore, VoteGuard) {
    let clock: Arc<dyn Clock> = Arc::new(BootClock);
    let contents = disk.contents().expect("reads");
    let guard = VoteGuard::new(clock.clone(), Duration::ZERO, Duration::ZERO, Ballot::default());
    let log = LogStore::new(Arc::new(disk.clone()), &contents, guard.clone(), clock).expect("takes over");
    (log, guard)
}

/// A vote binds from the moment at which it goes to the disk, not from the moment at which it is on it.
#[tokio::test(start_paused = true)]
async fn while_a_vote_is_written_nothing_lower_is_promised() {
    let disk = MemoryDisk::default();
    disk.delay(Duration::from_secs(1));
    let (mut log, guard) = store(&disk);
    let older = Ballot { term: 2, node: NodeId(1) };
    guard.promise(older, Epoch::ZERO, Duration::ZERO).expect("nothing higher was seen");
    let vote = Vote::new(3, 2);
    let mut same = log.clone();
    let write = same.save_vote(&vote);
    tokio::pin!(write);
    // Polled once: on its way, and not durable.
    assert!(futures_util::poll!(&mut write).is_pending());
    let refused = guard.promise(older, Epoch::ZERO, Duration::ZERO).expect_err("a higher vote is on its way");
    assert_eq!(refused, PromiseRefusal::Higher { seen: Ballot { term: 3, node: NodeId(2) } });
    write.await.expect("writes");
    assert_eq!(log.read_vote().await.expect("reads"), Some(vote));
}

#[tokio::test]
async fn a_disk_that_fails_gives_no_vote() {
    let disk = MemoryDisk::default();
    let (mut log, _guard) = store(&disk);
    disk.break_down();
    assert!(log.save_vote(&Vote::new(3, 2)).await.is_err());
    assert_eq!(log.read_vote().await.expect("reads"), None, "what is not durable is not said");
}
