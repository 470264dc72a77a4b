//! What is done to sled's files from the outside: synced, copied, forgotten by the page cache, cleared of half-made ones.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// Makes the system forget what it believes to be in a file, so that the disk itself is read.
pub(super) fn settle(path: &Path) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    file.sync_data()?;
    // Only pages that are on the disk are dropped; a file system that cannot drop any has none that differ.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    Ok(())
}

pub(super) fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
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

pub(super) fn remove_copy(copy: &Path) -> io::Result<()> {
    match fs::remove_dir_all(copy) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Whether somebody holds sled's lock on its file.
pub(super) fn in_use(db: &Path) -> io::Result<bool> {
    let file = match File::open(db) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Ok(()) | Err(_) => Ok(false),
    }
}

/// sled writes `snap.N.generating`, renames it, and is confused by one that was left behind (spacejam/sled#1527). It is
/// only a cache; without it sled reads its log.
pub(super) fn remove_half_made_snapshots(store: &Path) -> io::Result<()> {
    let Ok(files) = fs::read_dir(store) else { return Ok(()) };
    for file in files {
        let path = file?.path();
        if path.extension().is_some_and(|e| e == "generating") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// While it opens a store, sled writes files beside its log and relies on them from then on, but syncs neither all of
/// them nor their names.
pub(super) fn sync_files(store: &Path) -> io::Result<()> {
    for file in fs::read_dir(store)? {
        let path = file?.path();
        if path.is_file() {
            File::open(path)?.sync_all()?;
        }
    }
    sync_folder(store)
}

pub(in super::super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
