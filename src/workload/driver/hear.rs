//! What the driver makes of the fencer's words, and of the workload's own.

use super::{CRASHING, Driver, HeldBy, Observed, Phase, RESPAWN};
use crate::{
    clock::Moment,
    condition::Condition,
    workload::{Error, Words, readiness::Ready, wire::Event},
};

impl Driver {
    pub(super) fn hear(&mut self, event: Event) {
        tracing::debug!(%event, "fencer");
        let now = self.context.clock.now();
        self.pulse.heard(now);
        match event {
            Event::Alive => {}
            Event::Held { pid, what } => {
                let folder = self.context.data.display();
                tracing::warn!(%folder, pid, %what, "another process holds fencer.lock");
            }
            Event::Confined { dir } => {
                if self.held_by.send_replace(Some(HeldBy::Cgroup)) != Some(HeldBy::Cgroup) {
                    tracing::info!(%dir, "the workload gets a cgroup of its own");
                }
            }
            Event::Loose { why } => {
                if self.held_by.send_replace(Some(HeldBy::Reaper)) != Some(HeldBy::Reaper) {
                    tracing::info!(%why, "the workload gets no cgroup of its own; the fencer holds it as the reaper of its orphans");
                }
            }
            Event::Ready => {
                (self.trouble, self.lost_session) = (None, None);
                self.spawn_pause = *RESPAWN.start();
                self.rest_until = Some(now + self.rest());
                self.use_fencer(now);
            }
            Event::Running { epoch, pid } => {
                tracing::info!(%epoch, pid, "the workload runs");
                self.lower(Condition::WorkloadCannotStart);
                self.lower(Condition::WorkloadCannotStop);
                self.readiness.iter_mut().for_each(|readiness| readiness.runs(now));
                self.observed.send_replace(Observed::Running { epoch, pid: Some(pid) });
                if let Some((_, reply)) = self.starting.take() {
                    let _ = reply.send(Ok(()));
                }
            }
            Event::Exited { epoch, failures, how } => {
                self.nothing_said(now);
                self.lower(Condition::WorkloadCannotStop);
                tracing::warn!(%epoch, failures, %how, "the workload ended by itself; it is started again");
                if failures >= CRASHING {
                    self.raise(
                        Condition::WorkloadCrashing,
                        format!("{failures} times in a row; last: {how}"),
                    );
                }
                let last = how.as_str().to_owned();
                self.observed.send_replace(Observed::BackingOff { epoch, failures, last });
                // It was started, and is gone again: the start itself was carried out.
                if let Some((_, reply)) = self.starting.take() {
                    let _ = reply.send(Ok(()));
                }
            }
            Event::CannotStart { epoch, failures, reason } => {
                self.nothing_said(now);
                let program = self.settings.command.first().cloned().unwrap_or_default();
                let reason = reason.as_str().to_owned();
                tracing::error!(%epoch, failures, program, reason, "the workload cannot be started");
                self.raise(Condition::WorkloadCannotStart, format!("{program}: {reason}"));
                let last = format!("cannot start: {reason}");
                self.observed.send_replace(Observed::BackingOff { epoch, failures, last });
                self.fail_start(|| Error::CannotStart { program, reason });
            }
            Event::Stopping { epoch } => {
                self.observed.send_replace(Observed::Stopping { epoch });
                if let Phase::Granted(grant) = self.phase {
                    // Its own deadline made the fencer stop: no later extension can be meant for this run.
                    self.phase = Phase::Ending { grant, patience: grant.until, heard: true };
                } else if let Phase::Ending { heard, .. } = &mut self.phase {
                    *heard = true;
                }
                self.fail_start(|| Error::Late);
            }
            Event::NotUndone { how } => {
                let detail = how.as_str().to_owned();
                let known = self.raised.get(&Condition::WorkloadCannotStop);
                if known.is_none_or(|(known, _)| *known != detail) {
                    tracing::error!("what ends the workload has failed, and is tried again: {detail}");
                }
                self.raise(Condition::WorkloadCannotStop, detail);
                // It has ended by itself, and is not started again before the rest of it is gone.
                self.observed.send_if_modified(|observed| {
                    let Observed::Running { epoch, .. } = *observed else { return false };
                    let last = format!("it ended, and what it left cannot be undone: {how}");
                    *observed = Observed::BackingOff { epoch, failures: 1, last };
                    true
                });
            }
            Event::Stopped { epoch, .. } => {
                tracing::info!(%epoch, "the workload is stopped");
                self.fail_start(|| Error::Late);
                self.stopped();
            }
            Event::Late { .. } => {
                self.fail_start(|| Error::Late);
                self.stopped();
            }
            Event::Busy { epoch } => self.lost(format!("and the sidecar disagree: busy at epoch {epoch}")),
            Event::Failed { reason } => self.trouble = Some(reason.as_str().to_owned()),
        }
    }

    /// Nothing of the workload runs, so from now on its words are those of another run.
    pub(super) fn nothing_said(&mut self, now: Moment) {
        self.readiness.iter_mut().for_each(|readiness| readiness.begin(now));
    }

    /// Publishes what the workload's words come to at this moment.
    pub(super) fn mind_its_words(&mut self, now: Moment) {
        let Some(readiness) = &self.readiness else { return };
        let said = self.said.borrow_and_update();
        let status = readiness.status(&said).map(str::to_owned);
        let words = Words { ready: readiness.verdict(now, &said), status };
        drop(said);
        self.words.send_if_modified(|shown| {
            if *shown == words {
                return false;
            }
            match &words.ready {
                ready if *ready == shown.ready => {}
                Ready::Ready { after } => tracing::info!(?after, "the workload says that it is ready"),
                Ready::Fails(why) => tracing::warn!("the workload is not well: {why}"),
                Ready::Absent | Ready::Starting => {}
            }
            *shown = words;
            true
        });
    }
}
