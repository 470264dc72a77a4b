//! Where a store goes that must not be used any more, with everything that may tell why.
//!
//! A device that has lost its store has forgotten whom it voted for, and must say so: [`Amnesia`] is written into the
//! new identity before anything is moved, so that a crash at any moment leaves either the damaged store or a device that
//! knows what it is missing, never one that believes it starts for the first time.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use openraft::EntryPayload;
use serde::{Deserialize, Serialize};

use super::{Contents, decode, decode_snapshot, mark::Mark, sled::sync_folder};
use crate::{
    epoch::Epoch,
    ownership::{command::Command, record::Record},
};

/// How many are kept; the oldest go first.
const KEPT: usize = 3;
const PREFIX: &str = "quarantine-";
/// What of a data folder belongs to the store.
const STORE: [&str; 2] = ["store", "mark"];

/// What a device knows about a store that it has lost. As long as this stands in its identity, it votes for nobody and
/// promises nothing under the name that the lost store had.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amnesia {
    /// What was wrong with it.
    pub found: String,
    /// When that was found, on the wall clock.
    pub at_unix_ms: u64,
    /// The highest term that could still be read: nothing below may be promised or voted for again.
    pub term: u64,
    /// The highest epoch that could still be read, committed or not.
    pub epoch: Epoch,
}

impl Amnesia {
    /// Takes in what can still be read, and what was known of an earlier loss.
    pub(super) fn remember(&mut self, mark: &Mark, contents: &Contents, earlier: Option<&Amnesia>) {
        let terms = [mark.vote, contents.vote].into_iter().flatten().map(|v| v.term);
        let mut term = terms.chain(mark.last.map(|l| l.term)).max().unwrap_or(0);
        let (mut epoch, mut floor) = (Epoch::ZERO, Epoch::ZERO);
        let record = contents.snapshot.as_ref().and_then(|bytes| decode_snapshot(bytes).ok());
        if let Some(record) = record.and_then(|(_, data)| serde_json::from_slice::<Record>(&data).ok()) {
            (epoch, floor) = (record.epoch, record.floor);
        }
        for entry in contents.entries.values().filter_map(|bytes| decode(bytes).ok()) {
            term = term.max(entry.log_id.leader_id.term);
            if let EntryPayload::Normal(Command::Claim(claim)) = entry.payload {
                epoch = epoch.max(claim.base.max(floor).next().unwrap_or(Epoch::MAX));
            }
        }
        self.term = term.max(earlier.map_or(0, |e| e.term));
        self.epoch = epoch.max(earlier.map_or(Epoch::ZERO, |e| e.epoch));
    }
}

/// The quarantined stores in `folder`, oldest first.
pub fn list(folder: &Path) -> Vec<PathBuf> {
    let number = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?.strip_prefix(PREFIX)?;
        name.rsplit('-').next()?.parse::<u32>().ok()
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> =
        entries.filter_map(|e| Some((number(&e.path())?, e.path()))).collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// Makes a place for what is found wrong in `folder`, with its story and a copy of its identity. Nothing is moved yet.
pub(super) fn open(folder: &Path, amnesia: &Amnesia, story: &str) -> io::Result<PathBuf> {
    let number = list(folder)
        .last()
        .and_then(|last| last.to_str()?.rsplit('-').next()?.parse::<u32>().ok())
        .map_or(1, |n| n.saturating_add(1));
    let place = folder.join(format!("{PREFIX}{}-{number}", amnesia.at_unix_ms / 1000));
    fs::create_dir(&place)?;
    let mut file = File::create(place.join("found.txt"))?;
    file.write_all(story.as_bytes())?;
    file.sync_all()?;
    match fs::copy(folder.join("identity.json"), place.join("identity.json")) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    sync_folder(&place)?;
    sync_folder(folder)?;
    Ok(place)
}

/// Moves the store into `place`, and removes what is older than the newest three.
pub(super) fn fill(folder: &Path, place: &Path) -> io::Result<()> {
    for name in STORE {
        match fs::rename(folder.join(name), place.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    let all = list(folder);
    for old in &all[..all.len().saturating_sub(KEPT)] {
        if let Err(e) = fs::remove_dir_all(old) {
            tracing::warn!("an old quarantine folder, {}, cannot be removed: {e}", old.display());
        }
    }
    sync_folder(place)?;
    sync_folder(folder)
}
