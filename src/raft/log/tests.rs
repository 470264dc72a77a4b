use openraft::{
    CommittedLeaderId,
    storage::{RaftLogStorageExt as _, RaftStateMachine as _},
};
use proptest::prelude::*;

use super::{memory::MemoryDisk, *};
use crate::{
    clock::BootClock,
    epoch::Epoch,
    id::{NodeId, SiteId},
    ownership::{
        command::{Command, SetTiming, SettleTiming},
        record::Record,
    },
    raft::{
        machine::Machine,
        vote_guard::{Ballot, Bar, PromiseRefusal, VoteRefusal},
    },
    timing::{Settings, Timing},
};

/// Node 1, which has others to ask.
fn owner() -> Owner {
    Owner { node: 1, alone: false, tasks: TaskTracker::new() }
}

fn store(disk: &MemoryDisk) -> (LogStore, VoteGuard) {
    let clock: Arc<dyn Clock> = Arc::new(BootClock);
    let contents = disk.contents().expect("reads");
    let guard = VoteGuard::new(clock.clone(), Duration::ZERO, Duration::ZERO, Ballot::default());
    let widest = Widest::new(paces(&contents).expect("reads"), guard.clone());
    let log = LogStore::new(Arc::new(disk.clone()), &contents, guard.clone(), widest, clock, owner())
        .expect("takes over");
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

fn blank(term: u64, node: u64, index: u64) -> Entry {
    Entry { log_id: LogId::new(CommittedLeaderId::new(term, node), index), payload: EntryPayload::Blank }
}

/// A candidate asks for votes, and a leader sends its entries, while the own disk writes; nobody else is ahead of it.
#[tokio::test(start_paused = true)]
async fn only_own_writes_are_ahead_of_the_disk() {
    let disk = MemoryDisk::default();
    let (mut log, _guard) = store(&disk);
    let found = || disk.contents().expect("reads");
    disk.delay(Duration::from_secs(1));
    log.save_vote(&Vote::new(3, 1)).await.expect("begins");
    assert_eq!(found().vote, None);
    log.ahead().all().await.expect("writes");
    assert_eq!(found().vote.map(|vote| vote.term), Some(3));
    log.blocking_append([blank(3, 1, 1)]).await.expect("begins");
    log.blocking_append([blank(3, 1, 2)]).await.expect("begins");
    assert!(found().entries.is_empty());
    log.ahead().up_to(1).await.expect("writes");
    assert_eq!(found().entries.keys().collect::<Vec<_>>(), [&1], "in order");
    log.ahead().up_to(2).await.expect("writes");
    assert_eq!(found().entries.len(), 2);

    // An own write that is under way does not arrive after what came later.
    log.blocking_append([blank(3, 1, 3)]).await.expect("begins");
    log.save_vote(&Vote::new(4, 2)).await.expect("writes");
    assert_eq!((found().vote.map(|vote| vote.term), found().entries.len()), (Some(4), 3));
    log.blocking_append([blank(4, 2, 4)]).await.expect("writes");
    assert_eq!(found().entries.len(), 4, "another's entry is answered for");
    log.blocking_append([blank(3, 1, 5)]).await.expect("writes");
    assert_eq!(found().entries.len(), 5, "and so is an own one that comes back from another");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_applied_before_it_is_durable_here() {
    let disk = MemoryDisk::default();
    let (mut log, guard) = store(&disk);
    disk.delay(Duration::from_secs(1));
    log.save_vote(&Vote::new(3, 1)).await.expect("begins");
    log.blocking_append([blank(3, 1, 1)]).await.expect("begins");
    let contents = disk.contents().expect("reads");
    let widest = Widest::new(paces(&contents).expect("reads"), guard.clone());
    let shared = Arc::new(disk.clone());
    let machine = Machine::new(shared, &contents, guard, widest, log.ahead(), (empty(), configured()));
    let mut machine = machine.expect("starts");
    let applied = machine.watch();
    machine.apply([blank(3, 1, 1)]).await.expect("applies");
    assert_eq!(disk.contents().expect("reads").entries.len(), 1);
    assert_eq!(applied.borrow().index, Some(1));
    disk.break_down();
    log.blocking_append([blank(3, 1, 2)]).await.expect("begins");
    machine.apply([blank(3, 1, 2)]).await.expect_err("it never will be");
    assert_eq!(applied.borrow().index, Some(1));
    log.blocking_append([blank(3, 1, 3)]).await.expect_err("nor will anything else");
    log.save_vote(&Vote::new(4, 2)).await.expect_err("nor will a vote");
}

#[tokio::test]
async fn a_failed_write_bars_the_vote() {
    let memory = MemoryDisk::default();
    let guard = VoteGuard::new(Arc::new(BootClock), Duration::ZERO, Duration::ZERO, Ballot::default());
    let disk = Watched::new(Arc::new(memory.clone()), guard.clone());
    disk.write(Change::Vote(StoredVote::default())).await.expect("writes");
    assert_eq!(guard.may_vote(), Ok(()));
    memory.break_down();
    disk.write(Change::Vote(StoredVote::default())).await.expect_err("broken");
    assert_eq!(guard.may_vote(), Err(VoteRefusal::Barred(Bar::DiskFailed)));
    assert_eq!(disk.failed().borrow().as_ref().map(|f| f.full), Some(false));
}

/// A disk that looks at the guard while it writes: a power cut may come before or after any change.
struct Witness {
    disk: MemoryDisk,
    guard: VoteGuard,
}

impl Witness {
    /// Whatever a restart would find: it refuses for at least as long as the guard promises now.
    fn check(&self, found: &Contents, when: &str) {
        let waits = paces(found).expect("reads").widest().max(configured().refusal());
        let asked = waits + Duration::from_micros(1);
        let promised = self.guard.promise(Ballot::default(), Epoch::ZERO, asked);
        assert!(
            matches!(promised, Err(PromiseRefusal::TooLong { .. })),
            "{when} it promises for {asked:?}, and a restart would wait {waits:?}"
        );
    }
}

impl Disk for Witness {
    fn write(&self, change: Change) -> BoxFuture<'_, io::Result<()>> {
        let before = self.disk.contents().expect("reads");
        let mut after = before.clone();
        after.apply(change.clone());
        self.check(&before, "before it has written");
        self.check(&after, "while it writes");
        self.disk.write(change)
    }

    fn contents(&self) -> io::Result<Contents> {
        self.disk.contents()
    }
}

fn configured() -> Timing {
    Timing::new(&Settings::default()).expect("defaults hold")
}

/// What happens to a log, as Raft may do it.
#[derive(Debug, Clone)]
enum Deed {
    Append(Vec<Command>),
    /// Another leader's entries take the place of the last ones.
    Truncate(u64),
    /// A snapshot of the first so many hundredths of the log, which then begins behind it.
    Snapshot(u64),
    Restart,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let set = (0u64..6, 1u32..9).prop_map(|(base, times)| {
        let stretch = times * 100;
        let refusal_us = u64::try_from(configured().stretched(stretch).refusal().as_micros()).expect("short");
        Command::SetTiming(SetTiming { base, stretch, refusal_us, reason: String::new(), at_unix_ms: 0 })
    });
    let settle = (0u64..6).prop_map(|base| Command::SettleTiming(SettleTiming { base }));
    let append = proptest::collection::vec(prop_oneof![3 => set, 2 => settle], 1..4).prop_map(Deed::Append);
    let deed = prop_oneof![
        6 => append,
        2 => (1u64..5).prop_map(Deed::Truncate),
        1 => (0u64..101).prop_map(Deed::Snapshot),
        1 => Just(Deed::Restart),
    ];
    proptest::collection::vec(deed, 1..30)
}

proptest! {
    /// Whenever the power goes: no promise is longer than the next start refuses to vote.
    #[test]
    fn no_restart_forgets_how_long_was_promised(deeds in deeds()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("builds");
        runtime.block_on(async {
            let disk = MemoryDisk::default();
            let clock: Arc<dyn Clock> = Arc::new(BootClock);
            let start = || {
                let contents = disk.contents().expect("reads");
                let guard = VoteGuard::new(clock.clone(), configured().refusal(), Duration::ZERO, Ballot::default());
                let witness = Arc::new(Witness { disk: disk.clone(), guard: guard.clone() });
                let widest = Widest::new(paces(&contents).expect("reads"), guard.clone());
                let log = LogStore::new(witness.clone(), &contents, guard, widest.clone(), clock.clone(), owner());
                (log.expect("takes over"), widest, witness)
            };
            let id = |index| LogId::new(CommittedLeaderId::new(1, 1), index);
            let (mut log, mut widest, mut witness) = start();
            let mut next = 1;
            let mut first = 1;
            for deed in deeds {
                match deed {
                    Deed::Append(commands) => {
                        let entries: Vec<Entry> = commands
                            .into_iter()
                            .zip(next..)
                            .map(|(c, index)| Entry { log_id: id(index), payload: EntryPayload::Normal(c) })
                            .collect();
                        next += entries.len() as u64;
                        log.blocking_append(entries).await.expect("appends");
                    }
                    Deed::Truncate(count) => {
                        next = next.saturating_sub(count).max(first);
                        log.truncate(id(next)).await.expect("truncates");
                    }
                    Deed::Snapshot(percent) => {
                        let upto = first - 1 + (next - first) * percent / 100;
                        if upto < first {
                            continue;
                        }
                        // The record as it would have been applied so far.
                        let mut record = match &disk.contents().expect("reads").snapshot {
                            Some(bytes) => serde_json::from_slice(&decode_snapshot(bytes).expect("reads").1).expect("reads"),
                            None => empty(),
                        };
                        for entry in log.try_get_log_entries(first..=upto).await.expect("reads") {
                            if let EntryPayload::Normal(command) = &entry.payload {
                                record.apply(command);
                            }
                        }
                        let meta = SnapshotMeta { last_log_id: Some(id(upto)), ..SnapshotMeta::default() };
                        let data = serde_json::to_vec(&record).expect("encodes");
                        widest.before(|paces| paces.snapshot(upto, &record));
                        witness.write(Change::Snapshot(encode_snapshot(&meta, &data))).await.expect("writes");
                        widest.after(|paces| paces.snapshot(upto, &record));
                        log.purge(id(upto)).await.expect("purges");
                        first = upto + 1;
                    }
                    Deed::Restart => (log, widest, witness) = start(),
                }
                witness.check(&disk.contents().expect("reads"), "now");
            }
        });
    }
}

fn empty() -> Record {
    let id = SiteId::new("plant-7").expect("a name");
    Record::new(&Site { id, members: Vec::new(), timing: configured() })
}
