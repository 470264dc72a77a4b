//! How the store's keys and values look on the disk. A change here needs a new version of the store.

use super::super::{StoredLogId, StoredVote};

/// How the key of a log entry begins.
pub(super) const LOG: u8 = b'l';

pub(super) fn log_key(index: u64) -> [u8; 9] {
    let mut key = [LOG; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

/// A value with the CRC of its key and content in front.
pub(super) fn seal(key: &[u8], content: &[u8]) -> Vec<u8> {
    let mut value = checksum(key, content).to_le_bytes().to_vec();
    value.extend_from_slice(content);
    value
}

pub(super) fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let (crc, content) = value.split_at_checked(4)?;
    (checksum(key, content).to_le_bytes() == crc).then_some(content)
}

fn checksum(key: &[u8], content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(content);
    hasher.finalize()
}

pub(super) fn encode_vote(vote: StoredVote) -> [u8; 17] {
    let mut out = [0; 17];
    out[..8].copy_from_slice(&vote.term.to_le_bytes());
    out[8..16].copy_from_slice(&vote.node.to_le_bytes());
    out[16] = u8::from(vote.committed);
    out
}

pub(super) fn decode_vote(bytes: &[u8]) -> Option<StoredVote> {
    Some(StoredVote { term: number(bytes, 0)?, node: number(bytes, 8)?, committed: *bytes.get(16)? != 0 })
}

pub(super) fn encode_log_id(id: StoredLogId) -> [u8; 24] {
    let mut out = [0; 24];
    for (place, number) in out.chunks_exact_mut(8).zip([id.term, id.node, id.index]) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    out
}

pub(super) fn decode_log_id(bytes: &[u8]) -> Option<StoredLogId> {
    Some(StoredLogId { term: number(bytes, 0)?, node: number(bytes, 8)?, index: number(bytes, 16)? })
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}
