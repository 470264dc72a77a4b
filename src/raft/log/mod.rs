//! The log and the vote: in memory to be read, on a [`Disk`] before anybody is told.
//!
//! The log of a site is a few hundred small entries, so all of it is mirrored in memory and the disk is only written.
//! Whatever is answered to a member has been made durable first: votes and entries alike; only a leader's and a candidate's
//! own writes go on while it asks the others (`ahead.rs`). A disk that reports an error
//! once is not used again (`watched.rs`); the error ends Raft on this device until its sidecar has started afresh.
//!
//! [`folder`] opens the data folder, and [`quarantine`] takes what must not be used. [`sled`] is the real disk, [`memory`] one that loses what was not yet durable, for tests and the simulator. Which
//! store lies behind is decided in this room alone.

mod ahead;
pub mod folder;
mod in_order;
pub mod mark;
pub mod memory;
pub mod quarantine;
pub mod room;
pub mod sled;
mod watched;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::Future,
    io,
    ops::{Bound, RangeBounds},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub(crate) use ahead::Ahead;
use bytes::Bytes;
pub(crate) use in_order::InOrder;
use openraft::{
    EntryPayload, ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader, StorageIOError,
    storage::{LogFlushed, RaftLogStorage},
};
use prost::Message as _;
pub use quarantine::Amnesia;
use tokio_util::task::TaskTracker;
pub use watched::DiskFailure;
pub(crate) use watched::Watched;

use super::{
    types::{Device, Entry, LogId, Membership, SnapshotMeta, StorageError, Types, Vote, ballot},
    vote_guard::VoteGuard,
    widest::{Paces, Widest, matters},
    wire,
};
use crate::{
    clock::Clock,
    id::NodeId,
    site::{Member, Site},
};

/// One change for the disk. Each is durable as a whole or not at all.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The vote.
    Vote(StoredVote),
    /// Entries to append, with their indexes: consecutive and directly behind the last one.
    Append(Vec<(StoredLogId, Bytes)>),
    /// Remove this index and all behind it; the log then ends with the given id.
    TruncateFrom(u64, Option<StoredLogId>),
    /// Remove everything up to and including this one.
    PurgeUpTo(StoredLogId),
    /// Replace the snapshot.
    Snapshot(Bytes),
}

/// A vote as it lies on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredVote {
    /// The Raft term.
    pub term: u64,
    /// Voted for.
    pub node: u64,
    /// Whether a quorum is known to have voted so.
    pub committed: bool,
}

impl fmt::Display for StoredVote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let won = if self.committed { ", which won" } else { "" };
        write!(f, "a vote in term {} for {}{won}", self.term, NodeId(self.node))
    }
}

/// A log position as it lies on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredLogId {
    /// The leader's term.
    pub term: u64,
    /// The leader.
    pub node: u64,
    /// The position.
    pub index: u64,
}

/// Everything a disk holds, as read when it was opened.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// The last vote.
    pub vote: Option<StoredVote>,
    /// Everything up to here was purged.
    pub purged: Option<StoredLogId>,
    /// The entries, consecutive.
    pub entries: BTreeMap<u64, Bytes>,
    /// The snapshot.
    pub snapshot: Option<Bytes>,
    /// What is known about an earlier store of this device, if that was lost.
    pub amnesia: Option<Amnesia>,
}

/// A boxed future, so that disks can be handed in behind a pointer.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where changes are made durable.
pub trait Disk: Send + Sync + 'static {
    /// Makes the change durable: when this returns `Ok`, a power cut does not undo it. Changes become durable in the
    /// order of the calls. Dropping the future does not undo the change.
    ///
    /// # Errors
    /// What the system reported. Nothing is known about the change then, and every later write fails too.
    fn write(&self, change: Change) -> BoxFuture<'_, io::Result<()>>;

    /// Reads everything, as it was durable when the disk was opened. Called once.
    ///
    /// # Errors
    /// What the system reported.
    fn contents(&self) -> io::Result<Contents>;
}

/// The first entry of every member's log, made from the member list that all devices share. Because it is the same
/// everywhere, no device needs to be the first, and a device that comes an hour later fits in.
pub fn first_entry(site: &Site) -> io::Result<(StoredLogId, Bytes)> {
    // Nobody knows the others' stores yet; the first leader notes them.
    let node = |m: &Member| (m.device.first_node().0, Device { device: m.device.to_string(), store: 0 });
    let nodes: BTreeMap<u64, Device> = site.members.iter().map(node).collect();
    let voters: BTreeSet<u64> = nodes.keys().copied().collect();
    let entry = Entry {
        log_id: LogId::default(),
        payload: EntryPayload::Membership(Membership::new(vec![voters], nodes)),
    };
    Ok((store_log_id(&entry.log_id), encode(&entry)?))
}

fn encode(entry: &Entry) -> io::Result<Bytes> {
    Ok(wire::put_entry(entry).map_err(io::Error::other)?.encode_to_vec().into())
}

fn decode(bytes: &Bytes) -> io::Result<Entry> {
    let entry = wire::proto::Entry::decode(bytes.as_ref()).map_err(invalid)?;
    wire::take_entry(entry).map_err(invalid)
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn store_log_id(id: &LogId) -> StoredLogId {
    StoredLogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

fn load_log_id(id: StoredLogId) -> LogId {
    wire::take_log_id(wire::proto::LogId { term: id.term, node: id.node, index: id.index })
}

#[derive(Debug, Default)]
struct Mirror {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
}

/// openraft's log storage over a [`Disk`]. Cheap to clone; clones share everything.
#[derive(Clone)]
pub(crate) struct LogStore {
    mirror: Arc<Mutex<Mirror>>,
    disk: Arc<dyn Disk>,
    guard: VoteGuard,
    widest: Widest,
    clock: Arc<dyn Clock>,
    slowest_write_ns: Arc<AtomicU64>,
    /// Whose own writes may be ahead of the disk, and which are.
    own: Option<u64>,
    ahead: Ahead,
    tasks: TaskTracker,
}

/// Whose log it is.
pub(crate) struct Owner {
    /// The Raft node.
    pub(crate) node: u64,
    /// Whether there are others to ask.
    pub(crate) alone: bool,
    /// Where its own writes end.
    pub(crate) tasks: TaskTracker,
}

impl LogStore {
    /// Takes over what the disk holds.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        contents: &Contents,
        guard: VoteGuard,
        widest: Widest,
        clock: Arc<dyn Clock>,
        owner: Owner,
    ) -> io::Result<LogStore> {
        let mut mirror = Mirror { purged: contents.purged.map(load_log_id), ..Mirror::default() };
        mirror.vote = contents.vote.map(load_vote);
        for (index, bytes) in &contents.entries {
            mirror.entries.insert(*index, decode(bytes)?);
        }
        Ok(LogStore {
            mirror: Arc::new(Mutex::new(mirror)),
            disk,
            guard,
            widest,
            clock,
            slowest_write_ns: Arc::default(),
            own: Some(owner.node).filter(|_| !owner.alone),
            ahead: Ahead::default(),
            tasks: owner.tasks,
        })
    }

    /// The own writes that are under way.
    pub(crate) fn ahead(&self) -> Ahead {
        self.ahead.clone()
    }

    fn mirror(&self) -> MutexGuard<'_, Mirror> {
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write(&self, change: Change) -> io::Result<()> {
        self.ahead.all().await?;
        self.write_now(change).await
    }

    /// Writes without waiting for it, after all that is under way. `first` is the first entry's index; 0 for a vote. See
    /// [`ahead`].
    fn write_ahead(&self, first: u64, change: Change) {
        let (log, number) = (self.clone(), self.ahead.begin(first));
        self.tasks.spawn(async move {
            let written = match log.ahead.before(number).await {
                Ok(()) => log.write_now(change).await,
                Err(e) => Err(e),
            };
            log.ahead.end(number, &written);
        });
    }

    async fn write_now(&self, change: Change) -> io::Result<()> {
        let begun = self.clock.now();
        let written = self.disk.write(change).await;
        let took = u64::try_from(self.clock.now().since(begun).as_nanos()).unwrap_or(u64::MAX);
        // A slow write is remembered, and forgotten by halves.
        let old = self.slowest_write_ns.load(Ordering::Relaxed);
        self.slowest_write_ns.store(took.max(old / 2), Ordering::Relaxed);
        written
    }

    /// Whether this member writes this as a candidate or leader, and asks others meanwhile.
    fn is_own(&self, term: u64, node: u64) -> bool {
        let vote = self.mirror().vote;
        self.own == Some(node)
            && vote.is_some_and(|vote| vote.leader_id.term == term && vote.leader_id.node_id == node)
    }

    /// About how long the slower of the last writes took.
    pub(crate) fn slowest_write(&self) -> Duration {
        Duration::from_nanos(self.slowest_write_ns.load(Ordering::Relaxed))
    }

    /// Whether this store has never been of use to anybody: no vote given, nothing taken from a leader.
    pub(crate) fn is_unused(&self) -> bool {
        let mirror = self.mirror();
        mirror.vote.is_none() && mirror.purged.is_none() && mirror.entries.keys().all(|index| *index == 0)
    }

    /// The last log id, purged or not.
    pub(crate) fn last_log_id(&self) -> Option<LogId> {
        let mirror = self.mirror();
        mirror.entries.last_key_value().map(|(_, e)| e.log_id).or(mirror.purged)
    }
}

pub(crate) fn load_vote(stored: StoredVote) -> Vote {
    let mut vote = Vote::new(stored.term, stored.node);
    if stored.committed {
        vote.commit();
    }
    vote
}

pub(crate) fn storage_error(subject: ErrorSubject<u64>, verb: ErrorVerb, error: &io::Error) -> StorageError {
    StorageIOError::new(subject, verb, openraft::AnyError::new(error)).into()
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + std::fmt::Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        // BTreeMap::range panics on a range whose end lies before its start.
        let start = match range.start_bound() {
            Bound::Included(i) => *i,
            Bound::Excluded(i) => i.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let within = |i: &u64| match range.end_bound() {
            Bound::Included(end) => i <= end,
            Bound::Excluded(end) => i < end,
            Bound::Unbounded => true,
        };
        let mirror = self.mirror();
        Ok(mirror.entries.range(start..).take_while(|(i, _)| within(i)).map(|(_, e)| e.clone()).collect())
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let last_log_id = self.last_log_id();
        Ok(LogState { last_purged_log_id: self.mirror().purged, last_log_id })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        // From here on nothing lower is promised anything, whether the disk is quick or slow.
        self.guard.observe(ballot(vote));
        let stored =
            StoredVote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed };
        if self.own == Some(stored.node) && !stored.committed {
            let vote_failed = |e| storage_error(ErrorSubject::Vote, ErrorVerb::Write, &e);
            self.ahead.check().map_err(vote_failed)?;
            self.mirror().vote = Some(*vote);
            self.write_ahead(0, Change::Vote(stored));
            return Ok(());
        }
        let written = self.write(Change::Vote(stored)).await;
        written.map_err(|e| storage_error(ErrorSubject::Vote, ErrorVerb::Write, &e))?;
        self.mirror().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.mirror().vote)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let failed = |e: &io::Error| storage_error(ErrorSubject::Logs, ErrorVerb::Write, e);
        let (mut stored, mut timings) = (Vec::new(), Vec::new());
        let mut own = true;
        for entry in entries {
            stored.push((store_log_id(&entry.log_id), encode(&entry).map_err(|e| failed(&e))?));
            if matches!(&entry.payload, EntryPayload::Normal(command) if matters(command)) {
                timings.push(entry.clone());
            }
            own &= self.is_own(entry.log_id.leader_id.term, entry.log_id.leader_id.node_id);
            self.mirror().entries.insert(entry.log_id.index, entry);
        }
        // How long may be promised depends on which timings are durable, so these are waited for.
        if let Some((first, _)) = stored.first().filter(|_| own && timings.is_empty()) {
            self.ahead.check().map_err(|e| failed(&e))?;
            self.write_ahead(first.index, Change::Append(stored));
            callback.log_io_completed(Ok(()));
            return Ok(());
        }
        let change = |paces: &mut Paces| timings.iter().for_each(|entry| paces.entry(entry));
        if !timings.is_empty() {
            self.widest.before(change);
        }
        let written = self.write(Change::Append(stored)).await;
        if !timings.is_empty() && written.is_ok() {
            self.widest.after(change);
        }
        let result = match &written {
            Ok(()) => Ok(()),
            Err(e) => Err(failed(e)),
        };
        callback.log_io_completed(written);
        result
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.mirror().entries.split_off(&log_id.index);
        let last = self.last_log_id().as_ref().map(store_log_id);
        self.widest.before(|paces| paces.truncate(log_id.index));
        let written = self.write(Change::TruncateFrom(log_id.index, last)).await;
        written.map_err(|e| storage_error(ErrorSubject::Log(log_id), ErrorVerb::Delete, &e))?;
        self.widest.after(|paces| paces.truncate(log_id.index));
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        {
            let mut mirror = self.mirror();
            mirror.purged = Some(log_id);
            mirror.entries = mirror.entries.split_off(&(log_id.index + 1));
        }
        let written = self.write(Change::PurgeUpTo(store_log_id(&log_id))).await;
        written.map_err(|e| storage_error(ErrorSubject::Log(log_id), ErrorVerb::Delete, &e))
    }
}

/// The agreed timings that a disk knows of. See [`Widest`].
pub(crate) fn paces(contents: &Contents) -> io::Result<Paces> {
    let mut paces = Paces::default();
    if let Some(bytes) = &contents.snapshot {
        let (meta, data) = decode_snapshot(bytes)?;
        paces.snapshot(meta.last_log_id.map_or(0, |id| id.index), &serde_json::from_slice(&data)?);
    }
    for bytes in contents.entries.values() {
        paces.entry(&decode(bytes)?);
    }
    Ok(paces)
}

/// A snapshot as it lies on disk: its meta data and the record.
pub(crate) fn encode_snapshot(meta: &SnapshotMeta, data: &[u8]) -> Bytes {
    let meta = Some(wire::put_snapshot_meta(meta));
    wire::proto::SnapshotRequest { ballot: None, meta, data: data.to_vec().into() }.encode_to_vec().into()
}

/// The inverse of [`encode_snapshot`].
pub(crate) fn decode_snapshot(bytes: &Bytes) -> io::Result<(SnapshotMeta, Vec<u8>)> {
    let stored = wire::proto::SnapshotRequest::decode(bytes.as_ref()).map_err(invalid)?;
    Ok((wire::take_snapshot_meta(stored.meta).map_err(invalid)?, stored.data.to_vec()))
}

#[cfg(test)]
mod images;
#[cfg(test)]
mod tape;
#[cfg(test)]
mod tests;
