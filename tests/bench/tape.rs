//! The tick records of a whole benchmark, read as they grow and kept as runs.

use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt as _, path::PathBuf};

use anyhow::{Context as _, Result};
use quorate::workload::ticks::{self, RECORD, Run, Tick};

pub(super) struct Tape {
    /// Each device's file, and how many of its records are known.
    files: Vec<(PathBuf, u64)>,
    runs: BTreeMap<(u64, String), Run>,
}

impl Tape {
    pub(super) fn new(files: impl IntoIterator<Item = PathBuf>) -> Tape {
        Tape { files: files.into_iter().map(|file| (file, 0)).collect(), runs: BTreeMap::new() }
    }

    /// Reads what was added. A record that is being written is left for the next time.
    pub(super) fn wind(&mut self) -> Result<()> {
        for (path, known) in &mut self.files {
            let Ok(file) = File::open(&*path) else { continue };
            let whole = file.metadata()?.len() / RECORD as u64;
            let fresh = usize::try_from(whole - *known)?;
            let mut bytes = vec![0; fresh * RECORD];
            file.read_exact_at(&mut bytes, *known * RECORD as u64)?;
            let parse = |record: &[u8]| {
                Tick::parse(std::str::from_utf8(record).ok()?.strip_suffix('\n')?)
                    .filter(|tick| tick.epoch.get() > 0)
            };
            let fresh: Option<Vec<Tick>> = bytes.chunks_exact(RECORD).map(parse).collect();
            let fresh =
                fresh.with_context(|| format!("{} holds something that is not a tick", path.display()))?;
            *known = whole;
            for run in ticks::runs(&fresh) {
                let key = (run.epoch.get(), run.device.clone());
                let known = self.runs.entry(key).or_insert_with(|| Run { ticks: 0, ..run.clone() });
                known.first = known.first.min(run.first);
                known.last = known.last.max(run.last);
                known.ticks += run.ticks;
            }
        }
        Ok(())
    }

    /// The runs known so far, by epoch.
    pub(super) fn runs(&self) -> impl DoubleEndedIterator<Item = &Run> {
        self.runs.values()
    }
}
