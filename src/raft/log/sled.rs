//! The real disk: sled, made durable and checked.
//!
//! sled 0.34's `flush()` ends in `sync_file_range(2)`, which a power cut undoes, so `durable()` adds the sync that
//! counts. One flipped bit can make sled open an older state without an error, so every value carries a CRC over its
//! key and content, the log must be without gaps, and the whole is compared with the [`MarkFile`] on open.
//!
//! One thread of its own does all writing, in order, so that a slow disk delays nothing but what must wait for it.
//! After the first error it writes nothing more. Nothing is written while nothing changes.

use std::{
    any::Any,
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    BoxFuture, Change, Contents, Disk, StoredLogId, StoredVote,
    mark::{Mark, MarkFile},
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
pub type OnSync = Box<dyn Fn(Duration) + Send>;

/// How often, and for how long in all, sled's threads are waited for.
const LET_GO_LOOK: Duration = Duration::from_millis(2);
const LET_GO_LOOKS: u32 = 1000;

const LOG: u8 = b'l';
const VOTE: &[u8] = b"v";
const PURGED: &[u8] = b"p";
const SNAPSHOT: &[u8] = b"s";

type Job = (Change, oneshot::Sender<io::Result<()>>);

/// The disk. Dropping it ends its thread once what was handed in is written.
#[derive(Debug)]
pub struct SledDisk {
    jobs: mpsc::Sender<Job>,
    contents: Contents,
}

impl SledDisk {
    /// Creates an empty store in `folder`, which the caller has made sure holds none that matters, with `first` as
    /// its log. Repeating this after a crash in the middle of it gives the same store.
    ///
    /// # Errors
    /// [`Error::Damaged`] if there is a store that has already voted.
    pub fn create(
        folder: &Path,
        first: (StoredLogId, Bytes),
        clock: Arc<dyn Clock>,
        on_sync: OnSync,
    ) -> Result<SledDisk, Error> {
        let mark_path = folder.join("mark");
        if mark_path.exists() {
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
        if store.exists() {
            fs::remove_dir_all(&store)?;
        }
        let mark = MarkFile::create(&mark_path)?;
        let mut writer = Writer::open(folder, mark)?;
        writer.write(Change::Append(vec![first]))?;
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
        if !folder.join("store").join("db").exists() {
            return Err(damaged("its file store/db is gone"));
        }
        let mark = match MarkFile::open(&folder.join("mark")) {
            Ok(mark) => mark,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(damaged("its file mark is gone")),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(Error::Damaged(e.to_string())),
            Err(e) => return Err(e.into()),
        };
        let promised = mark.mark();
        check_copy(folder, &promised)?;
        let writer = Writer::open(folder, mark)?;
        check(&writer.contents, &promised)?;
        Ok(writer.start(clock, on_sync)?)
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

/// Everything the log must satisfy against itself and against what was promised.
fn check(contents: &Contents, promised: &Mark) -> Result<(), Error> {
    let damaged = |what: String| Err(Error::Damaged(what));
    if contents.vote < promised.vote {
        return damaged(format!("its vote is {:?}, but it once held {:?}", contents.vote, promised.vote));
    }
    let mut next = contents.purged.map_or(0, |p| p.index + 1);
    for index in contents.entries.keys() {
        if *index != next {
            return damaged(format!("log entry {next} is missing"));
        }
        next += 1;
    }
    if let Some(last) = promised.last
        && next <= last.index
    {
        return damaged(format!("its log ends before entry {next}, but it once held entry {}", last.index));
    }
    // The same place may hold an older leader's entry, if what replaced it was lost.
    if let Some(last) = promised.last
        && let Some(bytes) = contents.entries.get(&last.index)
    {
        match super::decode(bytes).map(|entry| super::store_log_id(&entry.log_id)) {
            Ok(id) if id < last => {
                return damaged(format!("log entry {} is older than it once was", last.index));
            }
            Ok(_) => {}
            Err(e) => return damaged(format!("log entry {} cannot be read: {e}", last.index)),
        }
    }
    if let Some(purged) = contents.purged {
        let covered = match &contents.snapshot {
            None => None,
            Some(bytes) => match super::decode_snapshot(bytes) {
                Ok((meta, _)) => meta.last_log_id,
                Err(e) => return damaged(format!("its snapshot cannot be read: {e}")),
            },
        };
        if covered.is_none_or(|c| c.index < purged.index) {
            return damaged(format!("its snapshot does not reach purged entry {}", purged.index));
        }
    }
    Ok(())
}

/// sled mends what it finds broken by throwing it away, while it opens a store. So that a damaged store stays as it was
/// found, a copy of it is opened and checked first.
fn check_copy(folder: &Path, promised: &Mark) -> Result<(), Error> {
    let (store, copy) = (folder.join("store"), folder.join("store.check"));
    remove_copy(&copy)?;
    if in_use(&store.join("db"))? {
        return Err(Error::InUse);
    }
    copy_folder(&store, &copy)?;
    let checked = match open_store(&copy) {
        Ok((db, contents)) => {
            drop(db);
            check(&contents, promised)
        }
        Err(e) => Err(e),
    };
    // sled lets go of its files a moment after its handle is dropped, and complains if they are gone by then.
    for _ in 0..LET_GO_LOOKS {
        if !in_use(&copy.join("db")).unwrap_or(false) {
            break;
        }
        thread::park_timeout(LET_GO_LOOK);
    }
    remove_copy(&copy)?;
    checked
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn remove_copy(copy: &Path) -> io::Result<()> {
    match fs::remove_dir_all(copy) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Whether somebody holds sled's lock on its file.
fn in_use(db: &Path) -> io::Result<bool> {
    let file = match File::open(db) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Ok(()) | Err(_) => Ok(false),
    }
}

fn open_store(store: &Path) -> Result<(sled::Db, Contents), Error> {
    remove_half_made_snapshots(store)?;
    // sled reports some damage by panicking.
    let opened = std::panic::catch_unwind(|| {
        let db = sled::Config::new()
            .path(store)
            .mode(sled::Mode::LowSpace)
            .cache_capacity(1 << 20)
            .segment_size(64 << 10)
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

struct Writer {
    db: sled::Db,
    /// A second handle on sled's file: the one that is really synced.
    file: File,
    mark: MarkFile,
    contents: Contents,
}

impl Writer {
    fn open(folder: &Path, mark: MarkFile) -> Result<Writer, Error> {
        let store = folder.join("store");
        let (db, contents) = open_store(&store)?;
        let file = File::options().read(true).write(true).open(store.join("db"))?;
        Ok(Writer { db, file, mark, contents })
    }

    fn write(&mut self, change: Change) -> io::Result<()> {
        let mut mark = self.mark.mark();
        let mut batch = sled::Batch::default();
        let mut put = |key: &[u8], content: &[u8]| batch.insert(key, seal(key, content));
        match change {
            Change::Vote(vote) => {
                put(VOTE, &encode_vote(vote));
                mark.vote = Some(vote);
            }
            Change::Append(entries) => {
                for (id, content) in &entries {
                    put(&log_key(id.index), content);
                }
                mark.last = entries.last().map(|(id, _)| *id).or(mark.last);
            }
            Change::Snapshot(content) => put(SNAPSHOT, &content),
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
        })?;
        Ok(SledDisk { jobs, contents })
    }
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
            [LOG, index @ ..] => {
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

fn log_key(index: u64) -> [u8; 9] {
    let mut key = [LOG; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

/// A value with the CRC of its key and content in front.
fn seal(key: &[u8], content: &[u8]) -> Vec<u8> {
    let mut value = checksum(key, content).to_le_bytes().to_vec();
    value.extend_from_slice(content);
    value
}

fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let (crc, content) = value.split_at_checked(4)?;
    (checksum(key, content).to_le_bytes() == crc).then_some(content)
}

fn checksum(key: &[u8], content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(content);
    hasher.finalize()
}

fn encode_vote(vote: StoredVote) -> [u8; 17] {
    let mut out = [0; 17];
    out[..8].copy_from_slice(&vote.term.to_le_bytes());
    out[8..16].copy_from_slice(&vote.node.to_le_bytes());
    out[16] = u8::from(vote.committed);
    out
}

fn decode_vote(bytes: &[u8]) -> Option<StoredVote> {
    Some(StoredVote { term: number(bytes, 0)?, node: number(bytes, 8)?, committed: *bytes.get(16)? != 0 })
}

fn encode_log_id(id: StoredLogId) -> [u8; 24] {
    let mut out = [0; 24];
    for (place, number) in out.chunks_exact_mut(8).zip([id.term, id.node, id.index]) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    out
}

fn decode_log_id(bytes: &[u8]) -> Option<StoredLogId> {
    Some(StoredLogId { term: number(bytes, 0)?, node: number(bytes, 8)?, index: number(bytes, 16)? })
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

fn into_io(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(e) => e,
        other => io::Error::other(other),
    }
}

/// sled writes `snap.N.generating`, renames it, and is confused by one that was left behind (spacejam/sled#1527). It is
/// only a cache; without it sled reads its log.
fn remove_half_made_snapshots(store: &Path) -> io::Result<()> {
    let Ok(files) = fs::read_dir(store) else { return Ok(()) };
    for file in files {
        let path = file?.path();
        if path.extension().is_some_and(|e| e == "generating") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("sled cannot read it ({})", text.unwrap_or("no reason given"))
}

#[cfg(test)]
mod tests;
