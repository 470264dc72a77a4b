//! The data folder: whose it is, and whether there is a store in it.
//!
//! `identity.json` names the site and the device, and says whether the store has been made. It is written before the
//! store is, so that a folder that lost its store can be told from one that never had any: the first is damaged, and
//! only the second is a first start. A store that is damaged or gone is moved aside whole ([`quarantine`]), and the device
//! begins anew with another number and with amnesia: it knows that it has forgotten, so it is another Raft node from then
//! on, without a vote until the others take it in. So does a store that was never of use, when the others know that there
//! was another one before ([`start_over`]).

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Amnesia, first_entry, quarantine, room,
    sled::{self, OnSync, SledDisk, sync_folder},
};
use crate::{
    clock::Clock,
    condition::Condition,
    id::{DeviceId, SiteId, StoreId},
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
        "the data folder {0} cannot be used: {1}; check the owner and the rights of it and of all that is in it, its mount options and the free space"
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
    #[error(
        "the data folder {0} is in use by another sidecar, or by `quorate check-workload`; stop that one first"
    )]
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
    /// A newer version wrote it.
    #[error(
        "the data folder {0} was written by a newer version (format {1}); run that version, or see 'A damaged store' in deploy/README.md"
    )]
    Newer(PathBuf, u64),
    /// Not even a new store could be made.
    #[error(
        "the store in {0} is damaged: {1}; this device must not vote with it. Keep the folder for analysis, then see 'A damaged store' in deploy/README.md"
    )]
    Damaged(PathBuf, String),
}

/// Since format 2 there is a checksum in it.
const FORMAT: u32 = 2;
const CRC: &str = "crc";

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
    /// What is known about an earlier store that was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    amnesia: Option<Amnesia>,
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
    /// Which store it is. A device that shows another one has lost what it voted.
    pub store: StoreId,
    /// Set if an earlier store of this device was lost, at this start or before: it has forgotten what it voted.
    pub amnesia: Option<Amnesia>,
    /// Keeps other sidecars out of the folder until it is dropped.
    pub lock: Lock,
}

/// The folder's lock. Held by this process alone; the system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "it is locked as long as it is open")] File);

/// Opens the folder of `device` at `site`, or makes the store in an empty one or in place of a damaged one, with `fresh`
/// (a random number) as the number of the store.
///
/// # Errors
/// [`Error`]; no store that was in the folder is changed then.
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
    room::give_back(path);
    probe(path).map_err(not_writable)?;
    let refusal_us = u64::try_from(site.timing.refusal().as_micros()).unwrap_or(u64::MAX);
    let mut members: Vec<String> =
        site.members.iter().map(|m| format!("{} ({})", m.device, m.role)).collect();
    members.sort_unstable();
    let there = |name: &str| path.join(name).try_exists().map_err(not_writable);
    let (known, mut fault) = match read(path).map_err(not_writable)? {
        Found::Nothing if there("store")? || there("mark")? => {
            (None, Some("there is a store, but its identity.json is gone".to_owned()))
        }
        Found::Nothing => (None, None),
        Found::Newer(format) => return Err(Error::Newer(path.to_owned(), format)),
        Found::Unreadable(why) => (None, Some(format!("identity.json cannot be read: {why}"))),
        Found::Identity(known) => (Some(known), None),
    };
    if let Some(known) = &known {
        if known.device != *device || known.site != site.id {
            let (device, site) = (known.device.clone(), known.site.clone());
            return Err(Error::Foreign { folder: path.to_owned(), device, site });
        }
        if known.members != members {
            let (folder, then, now) = (path.to_owned(), known.members.join(", "), members.join(", "));
            return Err(Error::OtherMembers { folder, then, now });
        }
    }
    let first_start = fault.is_none() && !known.as_ref().is_some_and(|k| k.ready);
    let fresh = Identity {
        format: FORMAT,
        site: site.id.clone(),
        device: device.clone(),
        store: fresh,
        members,
        ready: false,
        refusal_us,
        amnesia: None,
    };
    let mut identity = known.unwrap_or_else(|| fresh.clone());
    let longest = identity.refusal_us.max(refusal_us);
    if fault.is_none() && (first_start || longest != identity.refusal_us) {
        identity.refusal_us = longest;
        write(path, &identity).map_err(not_writable)?;
    }
    // Who comes back knows nothing: not even who the members are by now.
    let first_of = |identity: &Identity| match identity.amnesia {
        Some(_) => Ok(None),
        None => first_entry(site).map(Some).map_err(not_writable),
    };
    let mut disk = None;
    if fault.is_none() {
        let opened = if first_start {
            SledDisk::create(path, first_of(&identity)?, clock.clone(), on_sync.clone())
        } else {
            SledDisk::open(path, clock.clone(), on_sync.clone())
        };
        match opened {
            Ok(opened) => disk = Some(opened),
            Err(sled::Error::Damaged(what)) => fault = Some(what),
            Err(other) => return Err(refuse(path, other)),
        }
    }
    let mut disk = match (disk, fault) {
        (Some(disk), _) => disk,
        (None, fault) => {
            let found = fault.unwrap_or_default();
            let renewed = Identity { refusal_us: longest, ..fresh };
            identity = begin_anew(path, &identity, renewed, found, clock.as_ref()).map_err(not_writable)?;
            SledDisk::create(path, None, clock, on_sync).map_err(|e| refuse(path, e))?
        }
    };
    if !identity.ready {
        identity.ready = true;
        write(path, &identity).map_err(not_writable)?;
    }
    room::set_aside(path);
    disk.contents.amnesia.clone_from(&identity.amnesia);
    Ok(Folder {
        disk,
        boot_refusal: Duration::from_micros(longest),
        first_start,
        store: StoreId { number: identity.store, later: identity.amnesia.is_some() },
        amnesia: identity.amnesia,
        lock,
    })
}

/// Marks the folder, in which no sidecar works any more, so that its store is made anew at the next [`open`]: as a later one,
/// with the number `fresh`. A store that has voted is not lost by that: it goes into quarantine.
///
/// # Errors
/// What the system reported.
pub fn start_over(path: &Path, fresh: u64, clock: &dyn Clock) -> io::Result<()> {
    let Found::Identity(mut identity) = read(path)? else { return Err(io::ErrorKind::InvalidData.into()) };
    let found = "it is empty, and the other members know another store of this device".to_owned();
    identity.amnesia = Some(Amnesia { found, at_unix_ms: clock.wall_ms(), ..Amnesia::default() });
    (identity.store, identity.ready) = (fresh, false);
    write(path, &identity)
}

fn refuse(path: &Path, error: sled::Error) -> Error {
    match error {
        sled::Error::Damaged(what) => Error::Damaged(path.to_owned(), what),
        sled::Error::InUse => Error::InUse(path.to_owned()),
        sled::Error::Io(e) => Error::NotWritable(path.to_owned(), e),
    }
}

/// Moves the store of `old` into quarantine and leaves the folder as before a first start, but for the amnesia. Returns
/// the new identity.
fn begin_anew(
    path: &Path,
    old: &Identity,
    mut renewed: Identity,
    found: String,
    clock: &dyn Clock,
) -> io::Result<Identity> {
    // Cut short the last time: what was found then is the reason.
    let found = old.amnesia.iter().find(|_| !old.ready).map_or(found, |a| a.found.clone());
    let mut amnesia = Amnesia { found, at_unix_ms: clock.wall_ms(), ..Amnesia::default() };
    let (mark, contents) = SledDisk::salvage(path);
    amnesia.remember(&mark, &contents, old.amnesia.as_ref());
    let story = format!(
        "The store of device {} of site {} must not be used: {}\n\n\
         Its number: {}. The sidecar that found this: quorate {}.\n\
         The highest term that could still be read is {}, the highest epoch {}.\n\
         What it once held: {mark}.\n\n\
         The device began anew under store number {} and has no vote until the others take it in again.\n\
         What to do: 'A damaged store' in deploy/README.md. Only the newest three of these folders are kept.\n",
        renewed.device,
        renewed.site,
        amnesia.found,
        old.store,
        env!("CARGO_PKG_VERSION"),
        amnesia.term,
        amnesia.epoch,
        renewed.store,
    );
    let place = quarantine::open(path, &amnesia, &story)?;
    tracing::error!(
        condition = Condition::StoreQuarantined.name(),
        "the store is damaged ({}); it is moved to {} and this device begins anew, without a vote",
        amnesia.found,
        place.display()
    );
    renewed.amnesia = Some(amnesia);
    // From here on no crash makes a first start of this.
    write(path, &renewed)?;
    quarantine::fill(path, &place)?;
    Ok(renewed)
}

/// What identity.json says.
enum Found {
    Nothing,
    /// Of a newer version, with its format.
    Newer(u64),
    Unreadable(String),
    Identity(Identity),
}

fn read(folder: &Path) -> io::Result<Found> {
    let bytes = match fs::read(folder.join("identity.json")) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(e) => return Err(e),
    };
    let value: Value = match serde_json::from_slice(&bytes) {
        Ok(value) => value,
        Err(e) => return Ok(Found::Unreadable(e.to_string())),
    };
    // Looked at alone: a newer version may have changed all the rest, but not what the checksum is.
    let format = value.get("format").and_then(Value::as_u64).unwrap_or(0);
    let said = value.get(CRC).and_then(Value::as_u64);
    if said.map_or(format == 0 || format == 2, |said| said != u64::from(checksum(&value))) {
        return Ok(Found::Unreadable("its checksum is wrong".into()));
    }
    if format > u64::from(FORMAT) {
        return Ok(Found::Newer(format));
    }
    Ok(match serde_json::from_value(value) {
        Ok(identity) => Found::Identity(identity),
        Err(e) => Found::Unreadable(e.to_string()),
    })
}

/// Over everything but itself, whatever fields this version knows.
fn checksum(identity: &Value) -> u32 {
    let mut rest = identity.clone();
    if let Some(fields) = rest.as_object_mut() {
        fields.remove(CRC);
    }
    crc32fast::hash(rest.to_string().as_bytes())
}

/// Replaces identity.json as a whole: a new file, synced, renamed over the old one, and the folder synced.
fn write(folder: &Path, identity: &Identity) -> io::Result<()> {
    let mut value = serde_json::to_value(identity)?;
    value[CRC] = checksum(&value).into();
    let fresh = folder.join("identity.json.new");
    let mut file = File::create(&fresh)?;
    file.write_all(&serde_json::to_vec_pretty(&value)?)?;
    file.sync_all()?;
    fs::rename(&fresh, folder.join("identity.json"))?;
    sync_folder(folder)
}

/// Locks the folder itself, before anything in it is touched: no sidecar works in it, and none begins, until the lock is dropped.
///
/// # Errors
/// [`Error`].
pub fn lock(folder: &Path) -> Result<Lock, Error> {
    let file = File::open(folder).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::Missing(folder.to_owned()),
        _ => Error::NotWritable(folder.to_owned(), e),
    })?;
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
