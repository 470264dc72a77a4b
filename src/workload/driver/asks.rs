//! What handles ask the driver for, and when it is passed on to the fencer.

use std::sync::PoisonError;

use super::{Ask, Driver, Observed, Phase, Reply};
use crate::{
    clock::Moment,
    workload::{Error, Grant, wire::Command},
};

impl Driver {
    pub(super) fn asked(&mut self, ask: Ask) {
        match ask {
            Ask::Ready(reply) if self.ready => drop(reply.send(Ok(()))),
            Ask::Ready(reply) => self.waiting_ready.push(reply),
            Ask::Start(grant, reply) => self.asked_to_start(grant, reply),
            Ask::Extend(until) => self.extend(until),
            Ask::Stop(reply) => self.asked_to_stop(reply),
        }
        // Nobody who has gone away needs an answer.
        self.waiting_ready.retain(|reply| !reply.is_closed());
        self.waiting_stop.retain(|reply| !reply.is_closed());
    }

    pub(super) fn asked_to_start(&mut self, grant: Grant, reply: Reply) {
        let answer = match self.phase {
            _ if self.context.clock.now() >= grant.until => Err(Error::Late),
            _ if self.secrets().burned() == Some(grant.epoch) => Err(Error::Burned(grant.epoch)),
            Phase::Granted(held) if held.epoch == grant.epoch && self.starting.is_none() => {
                self.extend(grant.until);
                Ok(())
            }
            Phase::Granted(Grant { epoch, .. }) | Phase::Ending { grant: Grant { epoch, .. }, .. } => {
                Err(Error::Fencer(format!("has not ended the workload of epoch {epoch}; stop it first")))
            }
            Phase::Idle if self.starting.is_some() => Err(Error::Fencer("is starting it already".into())),
            Phase::Idle => match (&self.trouble, &self.link) {
                (Some(trouble), None) => Err(Error::Fencer(trouble.clone())),
                _ => {
                    self.starting = Some((grant, reply));
                    self.send_start();
                    return;
                }
            },
        };
        let _ = reply.send(answer);
    }

    pub(super) fn send_start(&mut self) {
        if let (true, Phase::Idle, Some((grant, _)), Some(link)) =
            (self.ready, self.phase, &self.starting, &mut self.link)
        {
            let grant = *grant;
            let Grant { epoch, until } = grant;
            // Read before the order leaves: whatever the workload says comes later.
            let now = self.context.clock.now();
            let secret = self.secrets.lock().unwrap_or_else(PoisonError::into_inner).hand_over(epoch);
            link.say(&Command::Start { epoch, until, secret });
            link.say(&Command::Ping);
            self.pulse.begin(now);
            self.nothing_said(now);
            self.phase = Phase::Granted(grant);
            // From here on it may run, whatever is or is not heard.
            self.observed.send_replace(Observed::Running { epoch: grant.epoch, pid: None });
        }
    }

    pub(super) fn extend(&mut self, to: Moment) {
        let now = self.context.clock.now();
        if let (Phase::Granted(grant) | Phase::Ending { grant, .. }, Some(link)) =
            (&mut self.phase, &mut self.link)
            && to > grant.until
            && now < grant.until
        {
            grant.until = to;
            link.extend(grant.epoch, to);
            if self.pulse.ask(now, to.since(now)) {
                link.say(&Command::Ping);
            }
        }
        if let Some((grant, _)) = &mut self.starting {
            grant.until = grant.until.max(to);
        }
    }

    pub(super) fn asked_to_stop(&mut self, reply: Reply) {
        let now = self.context.clock.now();
        match (&mut self.link, self.phase) {
            (Some(link), Phase::Granted(grant)) => {
                link.say(&Command::Stop);
                self.phase =
                    Phase::Ending { grant, patience: now + self.settings.stop_timeout, heard: false };
                self.waiting_stop.push(reply);
            }
            (Some(_), Phase::Ending { .. }) => self.waiting_stop.push(reply),
            _ if self.ready => {
                let _ = reply.send(Ok(()));
            }
            (None, _) if self.trouble.is_some() => {
                let _ = reply.send(Err(Error::Fencer(self.trouble.clone().unwrap_or_default())));
            }
            _ => self.waiting_stop.push(reply),
        }
        // A start that was kept back must not happen after the stop.
        if !matches!(self.phase, Phase::Granted(_)) {
            self.fail_start(|| Error::Fencer("was told to stop before the start".into()));
        }
    }

    pub(super) fn fail_start(&mut self, error: impl FnOnce() -> Error) {
        if let Some((_, reply)) = self.starting.take() {
            let _ = reply.send(Err(error()));
        }
    }
}
