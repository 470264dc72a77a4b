//! The data folder: whose it is, and whether there is a store in it.
//!
//! `identity.json` names the site and the device, and says whether the store has been made. It is written before the
//! store is, so that a folder that lost its store can be told from one that never had any: the first is damaged, and
//! only the second is a first start. Nothing here ever resets a folder.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    first_entry,
    sled::{self, OnSync, SledDisk, sync_folder},
};
use crate::{
    clock::Clock,
    id::{DeviceId, SiteId},
    site::Site,
};

/// Why the data folder cannot be used. Every text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not exist.
    #[error(
        "the data folder {0} does not exist; create it (`mkdir -p {0}`), or mount the volume that holds it"
    )]
    Missing(PathBuf),
    /// It is a file.
    #[error("the data folder {0} is not a folder; point storage.path at a folder")]
    NotAFolder(PathBuf),
    /// It cannot be written.
    #[error(
        "the data folder {0} cannot be written: {1}; check its owner, its mount options and the free space"
    )]
    NotWritable(PathBuf, io::Error),
    /// It belongs to another device or site.
    #[error(
        "the data folder {folder} belongs to device {device} of site {site}; point storage.path at this device's own folder"
    )]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// The device that it belongs to.
        device: DeviceId,
        /// Its site.
        site: SiteId,
    },
    /// Another sidecar works in it.
    #[error("the data folder {0} is in use by another sidecar; stop that one first")]
    InUse(PathBuf),
    /// The member list has changed since the store was made.
    #[error(
        "the data folder {folder} was made for the members {then}, and site.members now names {now}; changing members \
         is not possible in this version. Write the old list again on every device"
    )]
    OtherMembers {
        /// The folder.
        folder: PathBuf,
        /// The members then.
        then: String,
        /// The members now.
        now: String,
    },
    /// The store does not pass its checks.
    #[error(
        "the store in {0} is damaged: {1}; this device must not vote with it. Keep the folder for analysis, then see 'A damaged store' in deploy/README.md"
    )]
    Damaged(PathBuf, String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    format: u32,
    site: SiteId,
    device: DeviceId,
    /// The store's number, drawn when it was made.
    #[serde(default)]
    store: u64,
    /// Who votes, as the first log entry has it.
    #[serde(default)]
    members: Vec<String>,
    /// Whether the store has been made. Until then it has never voted.
    ready: bool,
    /// The longest refusal window ever configured here: what a promise before a restart may have been worth.
    refusal_us: u64,
}

/// An opened data folder.
#[derive(Debug)]
pub struct Folder {
    /// The store in it.
    pub disk: SledDisk,
    /// How long this node must not vote after its start.
    pub boot_refusal: Duration,
    /// Whether this is the first start ever.
    pub first_start: bool,
    /// The store's number. A device that shows another one has lost what it voted.
    pub store: u64,
    /// Keeps other sidecars out of the folder until it is dropped.
    pub lock: Lock,
}

/// The folder's lock. Held by this process alone; the system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "it is locked as long as it is open")] File);

/// Opens the folder of `device` at `site`, or makes the store in an empty one, with `fresh` (a random number) as the
/// number of the store.
///
/// # Errors
/// [`Error`]; nothing that was in the folder is changed then.
pub fn open(
    path: &Path,
    site: &Site,
    device: &DeviceId,
    clock: Arc<dyn Clock>,
    fresh: u64,
    on_sync: OnSync,
) -> Result<Folder, Error> {
    let not_writable = |e: io::Error| Error::NotWritable(path.to_owned(), e);
    match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Error::Missing(path.to_owned())),
        Err(e) => return Err(not_writable(e)),
        Ok(meta) if !meta.is_dir() => return Err(Error::NotAFolder(path.to_owned())),
        Ok(_) => {}
    }
    let lock = lock(path)?;
    probe(path).map_err(not_writable)?;
    let damaged = |what: String| Error::Damaged(path.to_owned(), what);
    let refusal_us = u64::try_from(site.timing.refusal().as_micros()).unwrap_or(u64::MAX);
    let known = read(path).map_err(|e| damaged(format!("identity.json cannot be read: {e}")))?;
    if let Some(known) = &known
        && (known.device != *device || known.site != site.id)
    {
        let (device, site) = (known.device.clone(), known.site.clone());
        return Err(Error::Foreign { folder: path.to_owned(), device, site });
    }
    if known.is_none() && (path.join("store").exists() || path.join("mark").exists()) {
        return Err(damaged("there is a store, but its identity.json is gone".into()));
    }
    let mut members: Vec<String> =
        site.members.iter().map(|m| format!("{} ({})", m.device, m.role)).collect();
    members.sort_unstable();
    let first_start = !known.as_ref().is_some_and(|k| k.ready);
    let mut identity = known.unwrap_or_else(|| Identity {
        format: 1,
        site: site.id.clone(),
        device: device.clone(),
        store: fresh,
        members: members.clone(),
        ready: false,
        refusal_us,
    });
    if identity.members != members {
        let (folder, then, now) = (path.to_owned(), identity.members.join(", "), members.join(", "));
        return Err(Error::OtherMembers { folder, then, now });
    }
    if identity.format > 1 {
        return Err(damaged(format!("it was written by a newer version (format {})", identity.format)));
    }
    let longest = identity.refusal_us.max(refusal_us);
    if first_start || longest != identity.refusal_us {
        identity.refusal_us = longest;
        write(path, &identity).map_err(not_writable)?;
    }
    let opened = if first_start {
        let first = first_entry(site).map_err(not_writable)?;
        SledDisk::create(path, first, clock, on_sync)
    } else {
        SledDisk::open(path, clock, on_sync)
    };
    let disk = opened.map_err(|e| match e {
        sled::Error::Damaged(what) => damaged(what),
        sled::Error::InUse => Error::InUse(path.to_owned()),
        sled::Error::Io(e) => not_writable(e),
    })?;
    if first_start {
        identity.ready = true;
        write(path, &identity).map_err(not_writable)?;
    }
    Ok(Folder {
        disk,
        boot_refusal: Duration::from_micros(longest),
        first_start,
        store: identity.store,
        lock,
    })
}

fn read(folder: &Path) -> io::Result<Option<Identity>> {
    match fs::read(folder.join("identity.json")) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Replaces identity.json as a whole: a new file, synced, renamed over the old one, and the folder synced.
fn write(folder: &Path, identity: &Identity) -> io::Result<()> {
    let fresh = folder.join("identity.json.new");
    let mut file = File::create(&fresh)?;
    file.write_all(&serde_json::to_vec_pretty(identity)?)?;
    file.sync_all()?;
    fs::rename(&fresh, folder.join("identity.json"))?;
    sync_folder(folder)
}

/// Locks the folder itself, before anything in it is touched.
fn lock(folder: &Path) -> Result<Lock, Error> {
    let file = File::open(folder).map_err(|e| Error::NotWritable(folder.to_owned(), e))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::InUse(folder.to_owned())),
        // Some file systems cannot lock a folder. The store's own lock is left then.
        Ok(()) | Err(_) => Ok(Lock(file)),
    }
}

/// Finds out whether the folder can be written, by doing it. Leaves nothing behind.
fn probe(folder: &Path) -> io::Result<()> {
    let path = folder.join(".probe");
    File::create(&path)?;
    fs::remove_file(path)
}

#[cfg(test)]
mod tests;
