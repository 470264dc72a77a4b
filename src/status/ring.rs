//! The events on disk: two small files in the data folder that outlive a loss of power.
//!
//! One line for each event, `CRC JSON`. Lines are only ever added; when the newer file, `events.log`, is full, it takes the place of the older one,
//! `events.old`, whole. So a thousand events are always there, and never more than [`BYTES_MAX`] twice. A line that a loss
//! of power tore, or a disk has changed, fails its checksum and is left out; the others stand for themselves.
//!
//! It is written half a second after something happened, all of that time at once: a takeover has the disk for itself, and the site that has
//! nothing to tell writes nothing. Nothing waits for it, and a disk that is full or fails costs these files and no more: what could
//! not be written is not tried again, and is still in memory.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::events::{EVENTS_MAX, Event, Events};

const NEWER: &str = "events.log";
const OLDER: &str = "events.old";
/// The most bytes of one file.
pub const BYTES_MAX: u64 = 1 << 20;
/// From the first event that is not written yet to the writing.
const GATHER: Duration = Duration::from_millis(500);

/// The two files.
#[derive(Debug)]
pub struct Ring {
    folder: PathBuf,
    /// The newer file, once it was written to; `None` again after a failure.
    file: Option<File>,
    lines: usize,
    bytes: u64,
    /// The newer file may end in the middle of a line.
    torn: bool,
}

impl Ring {
    /// Reads what is there, the oldest first; what cannot be read is not there.
    pub fn open(folder: &Path) -> (Ring, Vec<Event>) {
        let (newer, older) = (read(&folder.join(NEWER)), read(&folder.join(OLDER)));
        let ring = Ring {
            folder: folder.to_owned(),
            file: None,
            lines: newer.events.len(),
            bytes: newer.bytes,
            torn: newer.torn,
        };
        let mut events = older.events;
        events.extend(newer.events);
        let skipped = events.len().saturating_sub(EVENTS_MAX);
        events.drain(..skipped);
        (ring, events)
    }

    /// Adds the events, and returns when they are durable.
    ///
    /// # Errors
    /// What the disk said. Some of them may have been written; the next ones are tried anew.
    pub fn append(&mut self, events: &[Event]) -> io::Result<()> {
        let written = self.try_append(events);
        if written.is_err() {
            (self.file, self.torn) = (None, true);
        }
        written
    }

    fn try_append(&mut self, events: &[Event]) -> io::Result<()> {
        let mut fresh = self.file.is_none();
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.create()?,
        };
        for part in events.chunks(64) {
            let mut text = part.iter().map(line).collect::<io::Result<Vec<_>>>()?.concat();
            if self.lines + part.len() > EVENTS_MAX || self.bytes + text.len() as u64 + 1 > BYTES_MAX {
                file.sync_data()?;
                fs::rename(self.folder.join(NEWER), self.folder.join(OLDER))?;
                (self.lines, self.bytes, self.torn) = (0, 0, false);
                (file, fresh) = (self.create()?, true);
            }
            if self.torn {
                text.insert(0, b'\n');
            }
            self.torn = true;
            file.write_all(&text)?;
            self.torn = false;
            self.lines += part.len();
            self.bytes += text.len() as u64;
        }
        file.sync_data()?;
        if fresh {
            File::open(&self.folder)?.sync_all()?;
        }
        self.file = Some(file);
        Ok(())
    }

    fn create(&self) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).open(self.folder.join(NEWER))
    }

    /// Writes whatever is added to `events` from now on, until `stop`, and then what is left.
    pub async fn keep(mut self, events: Events, stop: CancellationToken) {
        let mut added = events.watch();
        let mut written = events.newest();
        let mut fails = false;
        loop {
            let ends = tokio::select! {
                biased;
                () = stop.cancelled() => true,
                Ok(_) = added.wait_for(|newest| *newest > written) => false,
                else => true,
            };
            if !ends {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(GATHER) => {}
                }
            }
            let batch = events.since(written);
            if let Some(last) = batch.last() {
                written = last.seq;
                // The disk may hang. This task waits for it, and nobody waits for this task.
                let done = tokio::task::spawn_blocking(move || {
                    let result = self.append(&batch);
                    (self, result)
                });
                let Ok((ring, result)) = done.await else { return };
                self = ring;
                match &result {
                    Err(e) if !fails => {
                        tracing::warn!("the events cannot be written: {e}; they are kept in memory alone")
                    }
                    Ok(()) if fails => tracing::info!("the events are written again"),
                    _ => {}
                }
                fails = result.is_err();
            }
            if ends {
                return;
            }
        }
    }
}

fn line(event: &Event) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(event)?;
    let mut line = format!("{:08x} ", crc32fast::hash(&json)).into_bytes();
    line.extend(json);
    line.push(b'\n');
    Ok(line)
}

#[derive(Default)]
struct Kept {
    events: Vec<Event>,
    bytes: u64,
    torn: bool,
}

/// All whole lines of a file. Of one that is longer than it can be, the end.
fn read(path: &Path) -> Kept {
    let open = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(BYTES_MAX * 2)))?;
        let mut bytes = Vec::new();
        file.take(BYTES_MAX * 2).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = match open() {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Kept::default(),
        Err(e) => {
            tracing::warn!("the events in {} cannot be read: {e}", path.display());
            return Kept { torn: true, ..Kept::default() };
        }
    };
    Kept {
        events: bytes.split(|byte| *byte == b'\n').filter_map(whole).collect(),
        bytes: bytes.len() as u64,
        torn: bytes.last().is_some_and(|byte| *byte != b'\n'),
    }
}

/// The event of a line, if its checksum says that it is one.
fn whole(line: &[u8]) -> Option<Event> {
    let (crc, json) = line.split_at_checked(9)?;
    let crc = std::str::from_utf8(crc).ok()?.strip_suffix(' ')?;
    let crc = u32::from_str_radix(crc, 16).ok()?;
    if crc != crc32fast::hash(json) {
        return None;
    }
    serde_json::from_slice(json).ok()
}

#[cfg(test)]
mod tests;
