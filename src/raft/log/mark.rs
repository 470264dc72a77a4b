//! The high-water mark: what this device has once promised, in a file that the store does not manage.
//!
//! A store can come back older than it was without noticing (a flipped bit, a truncated tail, a restored backup). A
//! node that then votes again in a term it has already voted in can split its group. So every vote and every append is
//! also noted here, after the store has it, and on open the store is compared with the mark: behind it means damaged.
//!
//! The file has two slots of 4 KiB that are written in turn, each with a sequence number and a CRC. A torn write
//! damages one slot, and the other still holds the promise before.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use super::{StoredLogId, StoredVote};

const SLOT: usize = 4096;
const BODY: usize = 8 + 8 + 1 + 17 + 24;
const MAGIC: &[u8; 8] = b"quormrk1";

/// What was promised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mark {
    /// The last vote.
    pub vote: Option<StoredVote>,
    /// The last log entry.
    pub last: Option<StoredLogId>,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vote {
            Some(vote) => write!(f, "{vote}, ")?,
            None => f.write_str("no vote, ")?,
        }
        match self.last {
            Some(last) => write!(f, "and the log up to entry {} of term {}", last.index, last.term),
            None => f.write_str("and no log"),
        }
    }
}

/// The file.
#[derive(Debug)]
pub struct MarkFile {
    file: File,
    sequence: u64,
    mark: Mark,
}

impl MarkFile {
    /// Creates the file with an empty mark. The caller syncs the folder.
    ///
    /// # Errors
    /// What the system reported; also if the file exists.
    pub fn create(path: &Path) -> io::Result<MarkFile> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        file.write_all_at(&[0; SLOT * 2], 0)?;
        let mut mark = MarkFile { file, sequence: 0, mark: Mark::default() };
        mark.write(Mark::default())?;
        mark.file.sync_all()?;
        Ok(mark)
    }

    /// Opens the file and reads the newer of its intact slots.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if no slot is intact; else what the system reported.
    pub fn open(path: &Path) -> io::Result<MarkFile> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let newest =
            [0, 1].into_iter().filter_map(|slot| read(&file, slot)).max_by_key(|(sequence, _)| *sequence);
        let (sequence, mark) = newest.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "neither slot of the mark is intact")
        })?;
        Ok(MarkFile { file, sequence, mark })
    }

    /// What was promised last.
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Replaces the mark, durably. Writes nothing if it says the same already.
    ///
    /// # Errors
    /// What the system reported.
    pub fn set(&mut self, mark: Mark) -> io::Result<()> {
        if mark == self.mark { Ok(()) } else { self.write(mark) }
    }

    fn write(&mut self, mark: Mark) -> io::Result<()> {
        let sequence = self.sequence + 1;
        let at = if sequence.is_multiple_of(2) { 0 } else { SLOT as u64 };
        self.file.write_all_at(&encode(sequence, mark), at)?;
        self.file.sync_data()?;
        self.sequence = sequence;
        self.mark = mark;
        Ok(())
    }
}

fn encode(sequence: u64, mark: Mark) -> Vec<u8> {
    let mut out = Vec::with_capacity(BODY + 4);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&sequence.to_le_bytes());
    out.push(u8::from(mark.vote.is_some()) | u8::from(mark.last.is_some()) << 1);
    let vote = mark.vote.unwrap_or_default();
    out.extend_from_slice(&vote.term.to_le_bytes());
    out.extend_from_slice(&vote.node.to_le_bytes());
    out.push(u8::from(vote.committed));
    let last = mark.last.unwrap_or_default();
    for number in [last.term, last.node, last.index] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

fn read(file: &File, slot: u64) -> Option<(u64, Mark)> {
    let mut bytes = [0; BODY + 4];
    file.read_exact_at(&mut bytes, slot * SLOT as u64).ok()?;
    decode(&bytes)
}

fn decode(bytes: &[u8; BODY + 4]) -> Option<(u64, Mark)> {
    let (body, crc) = bytes.split_at(BODY);
    if crc32fast::hash(body).to_le_bytes() != crc || !body.starts_with(MAGIC) {
        return None;
    }
    let number = |at: usize| body.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let flags = body[16];
    let vote = StoredVote { term: number(17)?, node: number(25)?, committed: body[33] != 0 };
    let last = StoredLogId { term: number(34)?, node: number(42)?, index: number(50)? };
    let mark = Mark { vote: (flags & 1 != 0).then_some(vote), last: (flags & 2 != 0).then_some(last) };
    Some((number(8)?, mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(term: u64) -> Mark {
        Mark {
            vote: Some(StoredVote { term, node: 7, committed: true }),
            last: Some(StoredLogId { term, node: 7, index: term * 10 }),
        }
    }

    #[test]
    fn people_can_read_it() {
        let words = "a vote in term 3 for 0000000000000007, which won, and the log up to entry 30 of term 3";
        assert_eq!(vote(3).to_string(), words);
        assert_eq!(Mark::default().to_string(), "no vote, and no log");
    }

    #[test]
    fn the_newest_intact_slot_counts() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("mark");
        let mut file = MarkFile::create(&path).expect("creates");
        for term in 1..=5 {
            file.set(vote(term)).expect("writes");
            assert_eq!(MarkFile::open(&path).expect("opens").mark(), vote(term));
        }
        // A torn write of the sixth leaves the fifth.
        let newest = if file.sequence.is_multiple_of(2) { 0 } else { SLOT as u64 };
        let older = SLOT as u64 - newest;
        let raw = OpenOptions::new().write(true).open(&path).expect("opens");
        raw.write_all_at(&encode(99, vote(6))[..30], older).expect("tears");
        assert_eq!(MarkFile::open(&path).expect("opens").mark(), vote(5));
        raw.write_all_at(b"x", newest + 20).expect("flips");
        let error = MarkFile::open(&path).expect_err("both slots are gone");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = encode(3, vote(4));
        for bit in 0..good.len() * 8 {
            let mut bad: [u8; BODY + 4] = good.clone().try_into().expect("its own size");
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bad), None, "bit {bit}");
        }
    }
}
