//! Applies committed commands to the record, takes snapshots of it, and tells everybody who watches.
//!
//! It has no rules of its own: what a command does is [`Record::apply`]'s business. The one thing it does besides is
//! to lift promises in the vote guard when a stop receipt is committed, because only here is that known for certain.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use openraft::{
    EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder, storage::RaftStateMachine,
};
use tokio::sync::watch;

use super::{
    log::{Ahead, Change, Contents, Disk, decode_snapshot, encode_snapshot, storage_error},
    types::{Entry, LogId, Snapshot, SnapshotMeta, StorageError, StoredMembership, Types},
    vote_guard::VoteGuard,
    widest::Widest,
};
use crate::{
    ownership::{
        command::{Command, Outcome},
        record::Record,
    },
    timing::Timing,
};

/// The record as far as it has been applied here.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The record.
    pub record: Arc<Record>,
    /// The index of the last applied entry; `None` before the first.
    pub index: Option<u64>,
    /// The leader whose entry was applied last: term and node.
    pub by: (u64, u64),
}

struct State {
    record: Record,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    snapshot: Option<(SnapshotMeta, Vec<u8>)>,
}

/// openraft's state machine. Clones share everything.
#[derive(Clone)]
pub(crate) struct Machine {
    state: Arc<Mutex<State>>,
    disk: Arc<dyn Disk>,
    guard: VoteGuard,
    widest: Widest,
    ahead: Ahead,
    configured: Timing,
    applied: Arc<watch::Sender<Applied>>,
}

impl Machine {
    /// Starts from the snapshot on the disk, or from `empty`.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        contents: &Contents,
        guard: VoteGuard,
        widest: Widest,
        ahead: Ahead,
        (empty, configured): (Record, Timing),
    ) -> io::Result<Machine> {
        let mut state = State {
            record: empty,
            last_applied: None,
            membership: StoredMembership::default(),
            snapshot: None,
        };
        if let Some(bytes) = &contents.snapshot {
            let (meta, data) = decode_snapshot(bytes)?;
            state.restore(meta, data)?;
        }
        let applied = Arc::new(watch::Sender::new(state.applied()));
        Ok(Machine { state: Arc::new(Mutex::new(state)), disk, guard, widest, ahead, configured, applied })
    }

    /// The timing in use, as far as the record is applied here.
    pub(crate) fn timing(&self) -> Timing {
        self.applied.borrow().record.pace.timing(&self.configured)
    }

    /// The record, now and on every change.
    pub(crate) fn watch(&self) -> watch::Receiver<Applied> {
        self.applied.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self) {
        let applied = self.state().applied();
        // Before anybody can act on the record: the promises for what it says is over.
        if let Some(released) = &applied.record.released {
            self.guard.lift(released.epoch);
        }
        self.applied.send_replace(applied);
    }
}

impl State {
    fn applied(&self) -> Applied {
        let by = self.last_applied.map_or((0, 0), |id| (id.leader_id.term, id.leader_id.node_id));
        Applied { record: Arc::new(self.record.clone()), index: self.last_applied.map(|id| id.index), by }
    }

    fn restore(&mut self, meta: SnapshotMeta, data: Vec<u8>) -> io::Result<()> {
        self.record = serde_json::from_slice(&data)?;
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.snapshot = Some((meta, data));
        Ok(())
    }

    fn apply(&mut self, entry: Entry) -> Outcome {
        self.last_applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Outcome::Nothing,
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Outcome::Nothing
            }
            EntryPayload::Normal(command) => self.apply_command(&command),
        }
    }

    fn apply_command(&mut self, command: &Command) -> Outcome {
        let outcome = self.record.apply(command);
        tracing::debug!(?command, ?outcome, "applied");
        outcome
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Machine;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let state = self.state();
        Ok((state.last_applied, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        if let Some(last) = entries.last().map(|entry| entry.log_id) {
            let durable = self.ahead.up_to(last.index).await;
            durable.map_err(|e| storage_error(ErrorSubject::Apply(last), ErrorVerb::Write, &e))?;
        }
        let outcomes = {
            let mut state = self.state();
            entries.into_iter().map(|entry| state.apply(entry)).collect()
        };
        self.publish();
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Vec<u8>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Vec<u8>>,
    ) -> Result<(), StorageError> {
        let failed = |e: &io::Error| storage_error(ErrorSubject::Snapshot(None), ErrorVerb::Write, e);
        // What cannot be read must not be what the next start finds.
        let record = serde_json::from_slice::<Record>(&snapshot).map_err(|e| failed(&e.into()))?;
        let index = meta.last_log_id.map_or(0, |id| id.index);
        self.widest.before(|paces| paces.snapshot(index, &record));
        self.disk.write(Change::Snapshot(encode_snapshot(meta, &snapshot))).await.map_err(|e| failed(&e))?;
        self.widest.after(|paces| paces.snapshot(index, &record));
        self.state().restore(meta.clone(), *snapshot).map_err(|e| failed(&e))?;
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let state = self.state();
        Ok(state
            .snapshot
            .as_ref()
            .map(|(meta, data)| Snapshot { meta: meta.clone(), snapshot: Box::new(data.clone()) }))
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let failed = |e: &io::Error| storage_error(ErrorSubject::Snapshot(None), ErrorVerb::Write, e);
        let (meta, data) = {
            let state = self.state();
            let data = serde_json::to_vec(&state.record).map_err(|e| failed(&e.into()))?;
            let at =
                state.last_applied.map_or_else(String::new, |id| format!("{}-{}", id.leader_id, id.index));
            let meta = SnapshotMeta {
                last_log_id: state.last_applied,
                last_membership: state.membership.clone(),
                snapshot_id: at,
            };
            (meta, data)
        };
        self.disk.write(Change::Snapshot(encode_snapshot(&meta, &data))).await.map_err(|e| failed(&e))?;
        // One that was installed meanwhile is newer.
        let mut state = self.state();
        if state.snapshot.as_ref().is_none_or(|(present, _)| present.last_log_id <= meta.last_log_id) {
            state.snapshot = Some((meta.clone(), data.clone()));
        }
        drop(state);
        Ok(Snapshot { meta, snapshot: Box::new(data) })
    }
}
