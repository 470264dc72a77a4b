//! When the workload ran, in true time: the simulated workload writes it down, the promises are checked on it.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use quorate::{epoch::Epoch, id::DeviceId};

use super::world::now;

/// One stretch of running, in true (simulated) time since the beginning.
#[derive(Debug, Clone)]
pub struct Run {
    pub device: DeviceId,
    pub epoch: Epoch,
    pub from: Duration,
    /// `None` while it lasts.
    pub to: Option<Duration>,
    /// Its machine was frozen and thawed past its certain death: it runs until its fencer gets a turn.
    pub thawed: bool,
}

#[derive(Default)]
struct Book {
    runs: Vec<Run>,
    open: Vec<usize>,
    version: u64,
}

/// All runs of all devices. Clones share it.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Mutex<Book>>);

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, device: &DeviceId, epoch: Epoch, thawed: bool) {
        let mut book = self.book();
        book.version += 1;
        let number = book.runs.len();
        book.open.push(number);
        book.runs.push(Run { device: device.clone(), epoch, from: now(), to: None, thawed });
    }

    pub(super) fn end(&self, device: &DeviceId) {
        let mut book = self.book();
        book.version += 1;
        let Book { runs, open, .. } = &mut *book;
        open.retain(|number| {
            let run = &mut runs[*number];
            if run.device == *device {
                run.to = Some(now());
            }
            run.to.is_none()
        });
    }

    /// Grows with every start and every end.
    pub fn version(&self) -> u64 {
        self.book().version
    }

    /// The first that runs now.
    pub fn first(&self) -> Option<DeviceId> {
        let book = self.book();
        book.open.first().map(|number| book.runs[*number].device.clone())
    }

    /// Who runs now.
    pub fn open(&self) -> Vec<Run> {
        let book = self.book();
        book.open.iter().map(|number| book.runs[*number].clone()).collect()
    }

    /// Runs that have begun since there were `known` of them.
    pub fn since(&self, known: usize) -> Vec<Run> {
        self.book().runs.get(known..).unwrap_or_default().to_vec()
    }

    /// The epochs in the order of their starts; a run that a freeze has interrupted counts once.
    pub fn epochs(&self) -> Vec<u64> {
        let mut epochs: Vec<u64> = self.book().runs.iter().map(|r| r.epoch.get()).collect();
        epochs.dedup();
        epochs
    }

    /// All runs, for a failure's text.
    pub fn tell(&self) -> String {
        let mut text = String::new();
        for run in &self.book().runs {
            let thawed = if run.thawed { ", thawed too late" } else { "" };
            let end = run.to.map_or_else(|| "now".to_owned(), |to| format!("{to:?}"));
            let _ = writeln!(text, "{} epoch {} from {:?} to {end}{thawed}", run.device, run.epoch, run.from);
        }
        text
    }
}
