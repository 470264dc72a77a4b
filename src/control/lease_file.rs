//! The lease file: the gate for whatever can read a file and nothing else.
//!
//! The file is replaced as a whole (written beside it and renamed), so a reader finds the old word or the new one. It stands in memory
//! (tmpfs): it is replaced several times a second, which no flash bears for years, and after a loss of power its moment
//! would mean nothing. A device that cannot write it may not own, because whoever reads the file would stand still.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::status::{door::Handle, watch::tell, word::Word};

/// A write that takes longer than this counts as failed: the lease would be old when it is read.
const WRITE_TIME: Duration = Duration::from_secs(1);
/// After a failed write it is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// File systems without a disk behind them, by their numbers in statfs(2): tmpfs and ramfs.
const IN_MEMORY: [rustix::fs::FsWord; 2] = [0x0102_1994, 0x8584_58f6];

type Write = tokio::task::JoinHandle<Result<(), String>>;

/// Where the file is, and who writes it.
#[derive(Debug, Clone)]
pub struct LeaseFile(PathBuf);

impl LeaseFile {
    /// The file at this path, which need not exist; its folder has to.
    pub fn at(path: PathBuf) -> LeaseFile {
        LeaseFile(path)
    }

    /// Whether it can be kept there, without touching the file itself. Blocks as long as the file system does.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub fn try_out(&self) -> Result<(), String> {
        self.is_in_memory()?;
        if self.0.is_dir() {
            return Err(format!("{} is a folder; name a file in it", self.0.display()));
        }
        let trial = self.beside("trial");
        let tried = fs::write(&trial, b"{}").and_then(|()| fs::remove_file(&trial));
        tried.map_err(|e| format!("{}: {e}", trial.display()))
    }

    fn is_in_memory(&self) -> Result<(), String> {
        let folder = self.folder();
        let found = rustix::fs::statfs(folder).map_err(|e| {
            format!("{}: {e}; the folder of the lease file has to be there", folder.display())
        })?;
        if IN_MEMORY.contains(&found.f_type) {
            return Ok(());
        }
        Err(format!(
            "{} is not in memory; name a file on a tmpfs, such as /run/quorate/lease.json",
            folder.display()
        ))
    }

    fn folder(&self) -> &Path {
        self.0.parent().unwrap_or(Path::new("/"))
    }

    fn beside(&self, what: &str) -> PathBuf {
        let name = self.0.file_name().unwrap_or_default().to_string_lossy();
        self.folder().join(format!(".{name}.{what}"))
    }

    fn replace(&self, line: &[u8]) -> Result<(), String> {
        self.is_in_memory()?;
        let fresh = self.beside("new");
        let replaced = fs::write(&fresh, line).and_then(|()| fs::rename(&fresh, &self.0));
        replaced.map_err(|e| format!("{}: {e}", self.0.display()))
    }

    /// Keeps the file until `stop`, and says after each write why it failed, if it did. The last word is that nobody here may act.
    pub async fn keep(self, door: Handle, tell_of: impl Fn(Option<String>), stop: CancellationToken) {
        let file = Arc::new(self);
        let mut hangs = None;
        loop {
            let Ok(slot) = Arc::new(Semaphore::new(1)).acquire_owned().await else { return };
            let words = tell(door.permits(), door.clock(), slot, stop.clone());
            tokio::pin!(words);
            while let Some((permit, _)) = words.next().await {
                let why = file.clone().write(Word::of(&*door, permit), &mut hangs).await;
                let failed = why.is_some();
                tell_of(why);
                if failed {
                    break;
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
        tell_of(file.write(Word::last(&*door), &mut hangs).await);
    }

    /// Why it failed, if it did. The file system may hang, and nothing else on this device shall wait for it; a write that `hangs` is
    /// waited for before the next begins, so that no older word comes after a newer one.
    async fn write(self: Arc<Self>, word: Word, hangs: &mut Option<Write>) -> Option<String> {
        let shown = self.0.display().to_string();
        let slow = || format!("{shown} takes longer than {} s to write", WRITE_TIME.as_secs());
        if let Some(before) = hangs {
            if tokio::time::timeout(WRITE_TIME, before).await.is_err() {
                return Some(slow());
            }
            *hangs = None;
        }
        let mut write = tokio::task::spawn_blocking(move || self.replace(&word.json()));
        match tokio::time::timeout(WRITE_TIME, &mut write).await {
            Ok(Ok(written)) => written.err(),
            Ok(Err(e)) => Some(format!("{shown}: {e}")),
            Err(_) => {
                *hangs = Some(write);
                Some(slow())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    /// A file system that hangs, played by a pipe that nobody reads in place of the file that is written first.
    #[tokio::test]
    async fn one_write_at_a_time_hangs_and_a_newer_word_comes_after_it() {
        let folder =
            tempfile::Builder::new().prefix("quorate-test-").tempdir_in("/dev/shm").expect("a tmpfs");
        let file = Arc::new(LeaseFile::at(folder.path().join("lease.json")));
        let pipe = file.beside("new");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).expect("a pipe");
        let word = |epoch| Word {
            active: true,
            epoch,
            until_boottime_ns: 1,
            device: "edge-1".into(),
            site: "plant-7".into(),
            reason: String::new(),
        };
        let mut hangs = None;
        for epoch in [1, 2] {
            let why = file.clone().write(word(epoch), &mut hangs).await.expect("it hangs");
            assert!(why.contains("takes longer") && hangs.is_some(), "{why}");
        }
        let reader = fs::OpenOptions::new().read(true).open(&pipe).expect("opens");
        assert_eq!(file.clone().write(word(3), &mut hangs).await, None);
        assert!(hangs.is_none());
        assert_eq!(fs::read(folder.path().join("lease.json")).expect("is there"), word(3).json());
        drop(reader);
    }
}
