//! What a store must satisfy before its device may vote with it: against itself, and against what was promised.

use super::{
    super::{Contents, StoredVote, decode, decode_snapshot, mark::Mark, store_log_id},
    Error,
};

/// Everything the log must satisfy against itself and against what was promised.
pub(super) fn check(contents: &Contents, promised: &Mark) -> Result<(), Error> {
    let damaged = |what: String| Err(Error::Damaged(what));
    if contents.vote < promised.vote {
        let words = |vote: Option<StoredVote>| vote.map_or("no vote".into(), |vote| vote.to_string());
        let (now, then) = (words(contents.vote), words(promised.vote));
        return damaged(format!("it holds {now}, but it once held {then}"));
    }
    let snapshot = match contents.snapshot.as_ref().map(decode_snapshot) {
        None => None,
        Some(Ok((meta, _))) => meta.last_log_id,
        Some(Err(e)) => return damaged(format!("its snapshot cannot be read: {e}")),
    };
    let mut next = contents.purged.map_or(0, |p| p.index + 1);
    for index in contents.entries.keys() {
        if *index != next {
            return damaged(format!("log entry {next} is missing"));
        }
        next += 1;
    }
    // An installed snapshot replaces the log before it, which is removed a moment later.
    next = next.max(snapshot.map_or(0, |s| s.index + 1));
    if let Some(last) = promised.last
        && next <= last.index
    {
        return damaged(format!("its log ends before entry {next}, but it once held entry {}", last.index));
    }
    // The same place may hold an older leader's entry, if what replaced it was lost.
    if let Some(last) = promised.last
        && let Some(bytes) = contents.entries.get(&last.index)
    {
        match decode(bytes).map(|entry| store_log_id(&entry.log_id)) {
            Ok(id) if id < last => {
                return damaged(format!("log entry {} is older than it once was", last.index));
            }
            Ok(_) => {}
            Err(e) => return damaged(format!("log entry {} cannot be read: {e}", last.index)),
        }
    }
    if let Some(purged) = contents.purged
        && snapshot.is_none_or(|s| s.index < purged.index)
    {
        return damaged(format!("its snapshot does not reach purged entry {}", purged.index));
    }
    Ok(())
}
