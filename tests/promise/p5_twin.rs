//! P5: a twin shows no epoch that the site has not reached, and never goes back, unless the hub itself has lost what it was
//! told; then it shows what it showed at the moment that the hub went back to. No two devices are ever shown as active
//! under one epoch, in whichever twin and whenever. That the twins follow is demanded where the hub can be reached
//! (`Stage::twins_follow`).
//!
//! And one writes at a time. A sidecar has at most one call to the device twins under way, and one report about its own.
//! Two devices may have writes of one epoch under way only while it may not be known everywhere who of them is to write:
//! for as long as a word of the owner's is believed, from its last change or the last thaw on.

use std::{collections::BTreeMap, sync::PoisonError, time::Duration};

use quorate::clock::Moment;

use crate::stage::{Stage, calls::Patch, world::now};

/// What twins have shown so far.
#[derive(Default)]
pub struct Shown {
    /// Each twin's epochs, since when, oldest first.
    twins: BTreeMap<String, Vec<(Moment, u64)>>,
    /// Which device was shown as active under an epoch.
    active: BTreeMap<u64, String>,
}

impl Shown {
    /// A twin of this device shows this.
    ///
    /// # Errors
    /// If it must not.
    pub fn shows(
        &mut self,
        at: Moment,
        twin: &str,
        device: &str,
        epoch: u64,
        active: bool,
    ) -> Result<(), String> {
        let newest = match self.twins.get_mut(twin) {
            Some(epochs) => epochs,
            None => self.twins.entry(twin.to_owned()).or_default(),
        };
        let before = newest.last().map_or(0, |(_, epoch)| *epoch);
        if epoch < before {
            return Err(format!("{twin} went back from {before} to {epoch}"));
        }
        if epoch > before {
            newest.push((at, epoch));
        }
        if active {
            let first = self.active.entry(epoch).or_insert_with(|| device.to_owned());
            if *first != device {
                return Err(format!("{twin} shows {device} as active at epoch {epoch}; {first} was"));
            }
        }
        Ok(())
    }

    /// The hub has lost what it was told after this moment.
    pub fn rolled_back(&mut self, to: Moment) {
        for epochs in self.twins.values_mut() {
            epochs.retain(|(at, _)| *at <= to);
        }
    }
}

/// A simulated site's twins, and who writes them.
#[derive(Default)]
pub struct Twins {
    requests: u64,
    rollbacks: usize,
    shown: Shown,
    /// What each device takes for the owner's word on who writes.
    words: BTreeMap<usize, (u64, Option<u64>)>,
    /// When that changed last anywhere, or anybody stood still.
    moved: Duration,
}

impl Twins {
    /// `reached`: the newest epoch that any device has known.
    pub fn check(&mut self, stage: &Stage, reached: u64) -> Result<(), String> {
        self.twins(stage, reached)?;
        self.writers(stage)
    }

    /// Nothing is read while nobody has asked the hub for anything.
    fn twins(&mut self, stage: &Stage, reached: u64) -> Result<(), String> {
        let hub = &stage.hub;
        let rollbacks = hub.memory.rollbacks();
        for rollback in &rollbacks[self.rollbacks..] {
            self.shown.rolled_back(rollback.to);
        }
        let back = std::mem::replace(&mut self.rollbacks, rollbacks.len()) != rollbacks.len();
        let requests = hub.memory.requests();
        if std::mem::replace(&mut self.requests, requests) == requests && !back {
            return Ok(());
        }
        let at = Moment::from_nanos(u64::try_from(now().as_nanos()).expect("a short simulation"));
        for device in hub.devices() {
            let twins = [("the twin", hub.seen(device)), ("the module twin", hub.said(device))];
            for (what, seen) in twins {
                let twin = format!("{what} of {device}");
                self.shown.shows(at, &twin, device.as_str(), seen.epoch, seen.active)?;
                if seen.epoch > reached {
                    return Err(format!("{twin} shows {}, the site is at {reached}", seen.epoch));
                }
            }
        }
        Ok(())
    }

    fn writers(&mut self, stage: &Stage) -> Result<(), String> {
        let mut writes = Vec::new();
        for (n, device) in stage.devices.iter().enumerate() {
            let (calls, reports) = (device.line.calls.most(), device.module.reports.most());
            if calls.max(reports) > 1 {
                return Err(format!("{}: {calls} calls or {reports} reports under way at once", device.id));
            }
            writes.extend(device.line.calls.patches().into_iter().map(|patch| (n, patch)));
            let live = device.live.lock().unwrap_or_else(PoisonError::into_inner);
            let word = live.as_ref().and_then(|live| *live.roster.word().borrow());
            let word = word.map(|word| (word.epoch.get(), word.through.map(|node| node.0)));
            let new = word.is_some_and(|word| self.words.insert(n, word) != Some(word));
            if new || stage.sim.frozen(n).is_some() {
                self.moved = now();
            }
        }
        one_writer(&writes, self.moved + stage.site.timing.refusal())
    }
}

/// Whether one device alone writes under each epoch, of those that began after it was known everywhere who it is.
pub fn one_writer(writes: &[(usize, Patch)], known: Duration) -> Result<(), String> {
    for (n, (one, a)) in writes.iter().enumerate() {
        let rival = |(other, b): &&(usize, Patch)| other != one && b.epoch == a.epoch;
        if let Some((other, b)) = writes[n + 1..].iter().find(rival)
            && a.begun.min(b.begun) > known
        {
            return Err(format!("{one} and {other} both write under one epoch: {a:?}, {b:?}"));
        }
    }
    Ok(())
}
