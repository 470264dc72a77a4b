//! One fencer after the other: started, used once it is ready, and buried when it is lost. Nothing is said to have stopped before one is
//! ready again.

use std::{sync::atomic::Ordering, time::Duration};

use super::{Driver, Link, Observed, Phase, RESPAWN, STEADY, pause_after};
use crate::{clock::Moment, condition::Condition, workload::Error};

impl Driver {
    /// How long a fencer that is ready is not used, because those before it were lost one after the other. Meanwhile
    /// this device confirms nothing and claims nothing, and another one becomes owner.
    pub(super) fn rest(&self) -> Duration {
        if self.losses < 2 { Duration::ZERO } else { pause_after(self.losses - 1).min(*RESPAWN.end()) }
    }

    /// From here on the fencer that reported ready counts, if its rest is over.
    pub(super) fn use_fencer(&mut self, now: Moment) {
        if self.rest_until.take_if(|until| now >= *until).is_none() {
            return;
        }
        (self.ready, self.ready_since) = (true, now);
        self.stopped();
        for reply in self.waiting_ready.drain(..) {
            let _ = reply.send(Ok(()));
        }
        self.send_start();
    }

    /// Nothing runs, and that is certain.
    pub(super) fn stopped(&mut self) {
        self.phase = Phase::Idle;
        self.pulse.rest();
        self.nothing_said(self.context.clock.now());
        self.lower(Condition::WorkloadCannotStart);
        self.lower(Condition::WorkloadCrashing);
        self.lower(Condition::WorkloadCannotStop);
        self.observed.send_replace(Observed::Stopped);
        for reply in self.waiting_stop.drain(..) {
            let _ = reply.send(Ok(()));
        }
    }

    pub(super) fn spawn_fencer(&mut self, now: Moment) {
        self.spawn_pause = (self.spawn_pause * 2).min(*RESPAWN.end());
        self.spawn_at = now + self.spawn_pause;
        match Link::spawn(&self.settings, &self.context, self.lost_session) {
            Ok(link) => {
                self.session.store(link.session().unwrap_or(0), Ordering::Relaxed);
                self.link = Some(link);
            }
            Err(e) => {
                let trouble = format!("cannot be started: {e}");
                tracing::error!("the fencer {trouble}");
                self.in_trouble(trouble);
            }
        }
    }

    /// The link broke, or the fencer is given up. Whatever ran is killed; the next fencer makes sure of it.
    pub(super) fn lost(&mut self, why: String) {
        let Some(link) = self.link.take() else { return };
        self.lost_session = link.session();
        // Before anybody can see that it is gone.
        self.secrets().lost();
        self.pulse.rest();
        self.nothing_said(self.context.clock.now());
        let rested = self.rest_until.take().is_some();
        self.phase = Phase::Idle;
        if std::mem::take(&mut self.ready) || rested {
            let now = self.context.clock.now();
            let short = rested || now.since(self.ready_since) < STEADY;
            self.losses = if short { self.losses.saturating_add(1) } else { 1 };
            let epoch = self.observed.borrow().epoch().unwrap_or_default();
            tracing::error!("the fencer was lost ({why}); its workload dies with it");
            self.observed.send_replace(Observed::Stopping { epoch });
            self.raise(Condition::FencerLost, format!("the fencer was lost: {why}"));
            self.fail_start(|| Error::Fencer(format!("was lost: {why}")));
            // The first try comes at once: the remains must be ended.
            self.spawn_at = Moment::default();
            self.burial = Some(link.bury(&self.context));
        } else {
            let trouble = self.trouble.take().unwrap_or_else(|| format!("did not get ready: {why}"));
            tracing::error!("the fencer {trouble}");
            self.in_trouble(trouble);
            link.abandon(&self.context.tracker);
        }
    }

    pub(super) fn in_trouble(&mut self, trouble: String) {
        let replies = self.waiting_ready.drain(..).chain(self.waiting_stop.drain(..));
        for reply in replies.chain(self.starting.take().map(|(_, reply)| reply)) {
            let _ = reply.send(Err(Error::Fencer(trouble.clone())));
        }
        self.trouble = Some(trouble);
    }
}
