//! Room on the disk, set aside while there is some, so that a full disk stops no election.
//!
//! Two things need room. A running store grows: its blocks are allocated ahead of its end, without changing its length.
//! A starting store writes a small file beside itself (sled's snapshot of its page table) and whatever the check needs:
//! for these a file of fixed size, `reserve`, is given back when room is short, and taken again afterwards. Somebody else
//! may fill the disk between the two; then the start fails, and the next one finds what room there is.
//!
//! File systems that never write in place (btrfs, ZFS) may need fresh room for every write; nothing here helps there.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FallocateFlags, fallocate, statvfs},
    io::Errno,
};

/// How many bytes a running store has ahead of its end at least: some hundred takeovers.
const AHEAD: u64 = 2 << 20;
/// What is given back for a start, in bytes.
const RESERVE: u64 = 1 << 20;
/// The reserve does not grow by less, in bytes.
const SMALLEST: u64 = 4096;
/// With less than this many bytes free, a person is told.
pub const LOW: u64 = 16 << 20;

/// Allocates blocks for a file of `len` bytes and [`AHEAD`] more, in steps: otherwise every start on a full disk would take
/// a little of the reserve for it. The file's length stays.
pub(super) fn ahead(file: &File, len: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::KEEP_SIZE, 0, (len / AHEAD + 2) * AHEAD) {
        // A file system without the means: then there is no more to be done.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        other => Ok(other?),
    }
}

/// How many bytes are free for this user where `folder` lies.
///
/// # Errors
/// What the system reported.
pub fn free(folder: &Path) -> io::Result<u64> {
    let stat = statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn reserve(folder: &Path) -> PathBuf {
    folder.join("reserve")
}

/// Gives the reserve back if room is short. Whether there is enough then is found out by using it.
pub(super) fn give_back(folder: &Path) {
    if free(folder).is_ok_and(|free| free < RESERVE) && fs::remove_file(reserve(folder)).is_ok() {
        tracing::warn!("the disk of {} is full: the reserve is given back for this start", folder.display());
    }
}

/// Takes what is missing of the reserve, as far as there is room. Not having it is no error.
pub fn set_aside(folder: &Path) {
    let has = fs::metadata(reserve(folder)).map_or(0, |m| m.len());
    let wants = RESERVE.min(has.saturating_add(free(folder).unwrap_or(0)));
    if wants < has + SMALLEST {
        return;
    }
    // With no room for it after all, the next look may find some.
    let _ = File::options()
        .create(true)
        .append(true)
        .open(reserve(folder))
        .and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, wants)?));
}
