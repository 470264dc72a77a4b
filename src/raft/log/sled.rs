//! The real disk: sled, made durable and checked.
//!
//! sled 0.34's `flush()` ends in `sync_file_range(2)`, which a power cut undoes, so `durable()` adds the sync that
//! counts. One flipped bit can make sled open an older state without an error, so every value carries a CRC over its
//! key and content, the log must be without gaps, and the whole is compared with the [`MarkFile`] on open.
//!
//! What an earlier life wrote may have reached the page cache and not the disk, and after a failed sync the two differ
//! for good. So a store is synced and dropped from the cache before it is read, and the mark is brought up to what was
//! read: whatever this device acts on from then on is on the disk, and is missed if it goes.
//!
//! One thread of its own does all writing, in order, so that a slow disk delays nothing but what must wait for it.
//! After the first error it writes nothing more. Nothing is written while nothing changes.

mod files;
mod soundness;
mod values;

use std::{
    any::Any,
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::oneshot;

pub(super) use self::files::sync_folder;
use self::{
    files::{copy_folder, in_use, remove_copy, remove_half_made_snapshots, settle, sync_files},
    soundness::check,
    values::{decode_log_id, decode_vote, encode_log_id, encode_vote, log_key, seal, unseal},
};
use super::{
    BoxFuture, Change, Contents, Disk, StoredLogId, StoredVote,
    mark::{Mark, MarkFile},
    room,
};
use crate::clock::Clock;

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store does not pass its checks. It must not vote, and it is left as it is.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// Another process has it open.
    #[error("the store is in use by another process")]
    InUse,
    /// The system reported an error.
    #[error("the store cannot be opened: {0}")]
    Io(#[from] io::Error),
}

/// Is told how long each durable write took.
pub type OnSync = Arc<dyn Fn(Duration) + Send + Sync>;

/// How often, and for how long in all, sled's threads are waited for.
const LET_GO_LOOK: Duration = Duration::from_millis(2);
const LET_GO_LOOKS: u32 = 1000;
/// How long sled may take to read a store. On a damaged one it may never end.
const READ_LIMIT: Duration = Duration::from_secs(30);

/// sled's unit of space. A page larger than a quarter of it goes into a file of its own, which sled never syncs and
/// removes too early; sixteen entries and the largest record stay far below.
const SEGMENT: usize = 256 << 10;

const VOTE: &[u8] = b"v";
const PURGED: &[u8] = b"p";
const SNAPSHOT: &[u8] = b"s";

type Job = (Change, oneshot::Sender<io::Result<()>>);

/// The disk. Dropping it ends its thread once what was handed in is written.
#[derive(Debug)]
pub struct SledDisk {
    jobs: mpsc::Sender<Job>,
    pub(super) contents: Contents,
}

impl SledDisk {
    /// Creates an empty store in `folder`, which the caller has made sure holds none that matters, with `first`, if any,
    /// as its log. Repeating this after a crash in the middle of it gives the same store.
    ///
    /// # Errors
    /// [`Error::Damaged`] if there is a store that has already voted.
    pub fn create(
        folder: &Path,
        first: impl Into<Option<(StoredLogId, Bytes)>>,
        clock: Arc<dyn Clock>,
        on_sync: OnSync,
    ) -> Result<SledDisk, Error> {
        let mark_path = folder.join("mark");
        if mark_path.try_exists()? {
            match MarkFile::open(&mark_path) {
                Ok(mark) if mark.mark().vote.is_some() => {
                    return Err(Error::Damaged("its identity is missing, but it has already voted".into()));
                }
                // Never voted: left behind by a first start that was cut short.
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {}
                Err(e) => return Err(e.into()),
            }
            fs::remove_file(&mark_path)?;
        }
        let store = folder.join("store");
        if store.try_exists()? {
            await_let_go(&store);
            fs::remove_dir_all(&store)?;
        }
        // Who may open the log could hold sled's lock on it.
        fs::DirBuilder::new().mode(0o700).create(&store)?;
        let mark = MarkFile::create(&mark_path)?;
        let mut writer = Writer::open(folder, mark)?;
        writer.write(Change::Append(first.into().into_iter().collect()))?;
        sync_folder(&store)?;
        sync_folder(folder)?;
        Ok(writer.start(clock, on_sync)?)
    }

    /// Opens the store in `folder` and checks it.
    ///
    /// # Errors
    /// [`Error::Damaged`] if any check fails. Nothing is changed then.
    pub fn open(folder: &Path, clock: Arc<dyn Clock>, on_sync: OnSync) -> Result<SledDisk, Error> {
        let damaged = |what: &str| Error::Damaged(what.to_owned());
        // Gone is only what is known to be gone: what may not be looked at is as it was.
        if !folder.join("store").join("db").try_exists()? {
            return Err(damaged("its file store/db is gone"));
        }
        let mark = match MarkFile::open(&folder.join("mark")) {
            Ok(mark) => mark,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(damaged("its file mark is gone")),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(Error::Damaged(e.to_string())),
            Err(e) => return Err(e.into()),
        };
        let promised = mark.mark();
        let store = folder.join("store");
        if in_use(&store.join("db"))? {
            return Err(Error::InUse);
        }
        settle(&folder.join("mark"))?;
        settle(&store.join("db"))?;
        sync_folder(&store)?;
        sync_folder(folder)?;
        check_copy(folder, &promised)?;
        let mut writer = Writer::open(folder, mark)?;
        check(&writer.contents, &promised)?;
        writer.adopt()?;
        Ok(writer.start(clock, on_sync)?)
    }

    /// What can still be read of a damaged store, which is left as it is.
    pub(super) fn salvage(folder: &Path) -> (Mark, Contents) {
        let mark = MarkFile::open(&folder.join("mark")).map(|m| m.mark()).unwrap_or_default();
        let mut found = Contents::default();
        if folder.join("store").join("db").exists() {
            // Whatever goes wrong: then it cannot be read.
            let _ = with_copy(folder, |contents| {
                found = contents;
                Ok(())
            });
        }
        (mark, found)
    }
}

impl Disk for SledDisk {
    fn write(&self, change: Change) -> BoxFuture<'_, io::Result<()>> {
        let (done, written) = oneshot::channel();
        let sent = self.jobs.send((change, done));
        Box::pin(async move {
            let gone = || io::Error::other("the store's thread has ended");
            sent.map_err(|_| gone())?;
            written.await.map_err(|_| gone())?
        })
    }

    fn contents(&self) -> io::Result<Contents> {
        Ok(self.contents.clone())
    }
}

/// sled mends what it finds broken by throwing it away, while it opens a store. So that a damaged store stays as it was
/// found, a copy of it is opened and checked first. Without room for a copy the store has to do.
fn check_copy(folder: &Path, promised: &Mark) -> Result<(), Error> {
    match with_copy(folder, |contents| check(&contents, promised)) {
        Err(Error::Io(e)) if e.kind() == io::ErrorKind::StorageFull => {
            tracing::warn!("the disk is full, so the store is opened without checking a copy of it first");
            Ok(())
        }
        other => other,
    }
}

/// Reads a copy of the store.
fn with_copy(folder: &Path, look: impl FnOnce(Contents) -> Result<(), Error>) -> Result<(), Error> {
    let (store, copy) = (folder.join("store"), folder.join("store.check"));
    remove_copy(&copy)?;
    if let Err(e) = copy_folder(&store, &copy) {
        remove_copy(&copy)?;
        return Err(e.into());
    }
    let looked = match open_within(&copy, READ_LIMIT) {
        Ok((db, contents)) => {
            drop(db);
            look(contents)
        }
        Err(e) => Err(e),
    };
    await_let_go(&copy);
    remove_copy(&copy)?;
    looked
}

/// sled lets go of its files a moment after its handle is dropped, and complains if they are gone by then.
fn await_let_go(store: &Path) {
    for _ in 0..LET_GO_LOOKS {
        if !in_use(&store.join("db")).unwrap_or(false) {
            break;
        }
        thread::park_timeout(LET_GO_LOOK);
    }
}

/// Opens a store on a thread of its own, which is left behind if it does not come to an end.
fn open_within(store: &Path, limit: Duration) -> Result<(sled::Db, Contents), Error> {
    let (done, opened) = mpsc::channel();
    let path = store.to_owned();
    thread::Builder::new().name("store-check".into()).spawn(move || {
        // Nobody listens after the limit.
        let _ = done.send(open_store(&path));
    })?;
    opened.recv_timeout(limit).unwrap_or_else(|_| {
        Err(Error::Damaged(format!("sled did not come to an end with it within {} s", limit.as_secs())))
    })
}

fn open_store(store: &Path) -> Result<(sled::Db, Contents), Error> {
    remove_half_made_snapshots(store)?;
    // sled reports some damage by panicking.
    let opened = std::panic::catch_unwind(|| {
        let db = sled::Config::new()
            .path(store)
            .mode(sled::Mode::LowSpace)
            .cache_capacity(1 << 20)
            .segment_size(segment_size(store))
            .flush_every_ms(None)
            .open()?;
        let contents = read(&db);
        Ok((db, contents))
    });
    match opened {
        Ok(Ok((db, contents))) => Ok((db, contents?)),
        Ok(Err(sled::Error::Io(e))) if e.kind() == io::ErrorKind::WouldBlock => Err(Error::InUse),
        // sled wraps the lock's error in one of kind Other.
        Ok(Err(sled::Error::Io(e))) if e.to_string().contains("could not acquire lock") => Err(Error::InUse),
        Ok(Err(sled::Error::Io(e))) => Err(e.into()),
        Ok(Err(e)) => Err(Error::Damaged(e.to_string())),
        Err(panic) => Err(Error::Damaged(panic_text(panic.as_ref()))),
    }
}

/// It cannot be changed once a store is made.
fn segment_size(store: &Path) -> usize {
    let conf = fs::read_to_string(store.join("conf")).unwrap_or_default();
    let known = conf.lines().find_map(|line| line.strip_prefix("segment_size: ")?.trim().parse().ok());
    // sled refuses, by panicking, what is no power of two or too large; a broken file is for it to find.
    known.filter(|size: &usize| size.is_power_of_two() && (256..=1 << 24).contains(size)).unwrap_or(SEGMENT)
}

struct Writer {
    db: sled::Db,
    /// A second handle on sled's file: the one that is really synced.
    file: File,
    mark: MarkFile,
    contents: Contents,
    /// The length of sled's file for which room was set aside last.
    roomy: u64,
    /// Where sled puts pages that are too large for a segment.
    blobs: PathBuf,
}

impl Writer {
    fn open(folder: &Path, mark: MarkFile) -> Result<Writer, Error> {
        let store = folder.join("store");
        let (db, contents) = open_store(&store)?;
        let file = File::options().read(true).write(true).open(store.join("db"))?;
        sync_files(&store)?;
        let mut writer = Writer { db, file, mark, contents, roomy: u64::MAX, blobs: store.join("blobs") };
        writer.make_room();
        Ok(writer)
    }

    /// sled's file grows and shrinks by segments, and shrinking gives away what was allocated behind its end.
    fn make_room(&mut self) {
        let Ok(length) = self.file.metadata().map(|m| m.len()) else { return };
        // Without room the write itself shall fail, not this; and it is tried again with the next.
        if length != self.roomy && room::ahead(&self.file, length).is_ok() {
            self.roomy = length;
        }
    }

    /// Makes what was read durable, and what is missed if it goes.
    fn adopt(&mut self) -> io::Result<()> {
        durable(&self.db, &self.file)?;
        let mut mark = self.mark.mark();
        mark.vote = mark.vote.max(self.contents.vote);
        if let Some(bytes) = self.contents.entries.values().next_back() {
            let last = super::store_log_id(&super::decode(bytes)?.log_id);
            mark.last = mark.last.max(Some(last));
        }
        mark.last = mark.last.max(covered(self.contents.snapshot.as_ref())?);
        self.mark.set(mark)
    }

    fn write(&mut self, change: Change) -> io::Result<()> {
        self.make_room();
        let mut mark = self.mark.mark();
        let mut batch = sled::Batch::default();
        let mut put = |key: &[u8], content: &[u8]| batch.insert(key, seal(key, content));
        match change {
            Change::Vote(vote) => {
                put(VOTE, &encode_vote(vote));
                if mark.vote == Some(StoredVote { committed: false, ..vote }) {
                    // The vote itself is durable. That it won goes to the disk with the next write, ahead of all that
                    // is taken from the new leader: without that, it is as if the news had not come.
                    return self.db.apply_batch(batch).map_err(into_io);
                }
                mark.vote = Some(vote);
            }
            Change::Append(entries) => {
                for (id, content) in &entries {
                    put(&log_key(id.index), content);
                }
                mark.last = entries.last().map(|(id, _)| *id).or(mark.last);
            }
            Change::Snapshot(content) => {
                put(SNAPSHOT, &content);
                // One that was sent by the leader stands for entries that never were in this log.
                mark.last = mark.last.max(covered(Some(&content))?);
            }
            Change::TruncateFrom(from, last) => {
                // The only change that takes a promise back, so the mark goes first: a mark behind the store is
                // harmless, a store behind its mark is not.
                mark.last = last;
                self.mark.set(mark)?;
                self.remove(&mut batch, &log_key(from)..&log_key(u64::MAX))?;
            }
            Change::PurgeUpTo(id) => {
                put(PURGED, &encode_log_id(id));
                self.remove(&mut batch, &log_key(0)..&log_key(id.index + 1))?;
            }
        }
        self.db.apply_batch(batch).map_err(into_io)?;
        durable(&self.db, &self.file)?;
        if self.blobs.read_dir()?.next().is_some() {
            sync_files(&self.blobs)?;
        }
        self.mark.set(mark)
    }

    fn remove(&self, batch: &mut sled::Batch, range: std::ops::Range<&[u8; 9]>) -> io::Result<()> {
        for key in self.db.range(range.start.to_vec()..range.end.to_vec()).keys() {
            batch.remove(key.map_err(into_io)?);
        }
        Ok(())
    }

    fn start(mut self, clock: Arc<dyn Clock>, on_sync: OnSync) -> io::Result<SledDisk> {
        let contents = std::mem::take(&mut self.contents);
        let contents = if contents.entries.is_empty() && contents.purged.is_none() {
            read(&self.db).map_err(io::Error::other)?
        } else {
            contents
        };
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::Builder::new().name("store".into()).spawn(move || {
            let mut failed: Option<String> = None;
            while let Ok((change, done)) = queue.recv() {
                let result = match &failed {
                    Some(first) => {
                        Err(io::Error::other(format!("not written after an earlier error: {first}")))
                    }
                    None => {
                        let begun = clock.now();
                        let result = self.write(change);
                        on_sync(clock.now().since(begun));
                        result
                    }
                };
                if let Err(e) = &result {
                    failed.get_or_insert_with(|| e.to_string());
                }
                // Whoever asked may have gone; the write counts all the same.
                let _ = done.send(result);
            }
            if failed.is_some() {
                // Dropped, sled would try once more to write what has failed.
                std::mem::forget(self.db);
            }
        })?;
        Ok(SledDisk { jobs, contents })
    }
}

/// Up to where a snapshot stands for the log.
fn covered(snapshot: Option<&Bytes>) -> io::Result<Option<StoredLogId>> {
    let Some(bytes) = snapshot else { return Ok(None) };
    Ok(super::decode_snapshot(bytes)?.0.last_log_id.as_ref().map(super::store_log_id))
}

/// Makes everything that was written to `db` survive a power cut: sled's own flush, then the sync that it leaves out.
fn durable(db: &sled::Db, file: &File) -> io::Result<()> {
    db.flush().map_err(into_io)?;
    file.sync_data()
}

fn read(db: &sled::Db) -> Result<Contents, Error> {
    let mut contents = Contents::default();
    let mut entries = BTreeMap::new();
    for item in db.iter() {
        let (key, value) = item.map_err(|e| Error::Damaged(e.to_string()))?;
        let content = unseal(&key, &value).ok_or_else(|| {
            Error::Damaged(format!("the checksum of {:?} is wrong", key.escape_ascii().to_string()))
        })?;
        let short = || Error::Damaged(format!("{:?} is too short", key.escape_ascii().to_string()));
        match key.as_ref() {
            VOTE => contents.vote = Some(decode_vote(content).ok_or_else(short)?),
            PURGED => contents.purged = Some(decode_log_id(content).ok_or_else(short)?),
            SNAPSHOT => contents.snapshot = Some(Bytes::copy_from_slice(content)),
            [values::LOG, index @ ..] => {
                let index = u64::from_be_bytes(index.try_into().map_err(|_| short())?);
                entries.insert(index, Bytes::copy_from_slice(content));
            }
            // Written by a newer version; not needed to vote.
            _ => {}
        }
    }
    contents.entries = entries;
    Ok(contents)
}

fn into_io(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(e) => e,
        other => io::Error::other(other),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("sled cannot read it ({})", text.unwrap_or("no reason given"))
}

#[cfg(test)]
mod tests;
