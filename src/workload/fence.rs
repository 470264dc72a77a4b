//! The rules of the fencer as a pure state machine: moments and facts in, deeds out.
//!
//! It promises: whatever comes in, and in whatever order, from the deadline on the workload is being stopped, from the
//! deadline plus `kill_after` on it is being killed (sooner, if it was told to stop and has had `stop_timeout`), and neither ever ends before nothing is left. The deadline only
//! moves forward, and one that has passed cannot be revived. Every call first looks at the clock and only then at the
//! message, so a late "extend" that waited in the pipe changes nothing.
//!
//! Restarting after a crash lives here and not in the sidecar, because "may it be started again now?" is a question
//! about the deadline, and the deadline must be asked in one place only; a frozen sidecar then costs no restart either.
//!
//! It does not know processes, pipes or poll: that is `fencer.rs`.

use std::time::Duration;

use super::wire::{Command, Event, Text};
use crate::{
    clock::Moment,
    epoch::Epoch,
    seal::{Receipt, Secret},
};

/// The first pause after the workload ended by itself; doubles each time.
pub(super) const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// The longest pause.
pub(super) const PAUSE_LONGEST: Duration = Duration::from_secs(30);
/// A run of this length clears the count of failures.
pub(super) const STEADY: Duration = Duration::from_secs(60);
/// No lease reaches further into the future than `timing::Timing` allows for `hold`; a deadline beyond that is a
/// fault, and is cut to this, so that no broken line can free the workload for good.
pub(super) const HORIZON: Duration = Duration::from_secs(60);

/// A fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    /// Only time has passed.
    Tick,
    /// The sidecar said this.
    Said(Command),
    /// The sidecar is gone, or talks nonsense.
    SidecarGone,
    /// A process exists for the last [`Deed::Spawn`].
    Spawned {
        /// Its process id, which is also its group's.
        pid: u32,
    },
    /// That process has become the workload's program.
    Executed,
    /// The program cannot be executed. A process that exists still ends with [`Input::MainEnded`].
    CannotStart {
        /// What the system said.
        reason: Text,
        /// Whether a process was created at all.
        spawned: bool,
    },
    /// The main process ended and has been reaped.
    MainEnded {
        /// How.
        how: Text,
    },
    /// No child and no orphan of the workload is left.
    NothingLeft,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Deed {
    /// Create the workload's process, in a group of its own.
    Spawn(Epoch),
    /// Ask the whole group to end.
    Term,
    /// Kill the whole group.
    Kill,
    /// Tell the sidecar.
    Tell(Event),
    /// Show the other members that the workload has stopped for good. [`Deed::Leave`] follows.
    Attest(Receipt),
    /// End the fencer; nothing of the workload runs.
    Leave,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Idle,
    /// The main process exists, or is about to.
    Alive {
        epoch: Epoch,
        until: Moment,
        failures: u32,
        since: Moment,
        pid: u32,
        cannot: Option<Text>,
    },
    /// The main process ended by itself; what it left behind is being killed.
    Clearing {
        epoch: Epoch,
        until: Moment,
        failures: u32,
        how: Text,
        cannot: bool,
    },
    /// Nothing runs; the next try is due at `retry_at`.
    Pausing {
        epoch: Epoch,
        until: Moment,
        failures: u32,
        retry_at: Moment,
    },
    /// It is being stopped for good.
    Ending {
        epoch: Epoch,
        /// The deadline. While it is stopping as it was told to, the deadline can still move.
        until: Moment,
        /// It is killed then, deadline or not.
        patience: Moment,
        killing: bool,
    },
}

/// The state machine. See the file's head for its promise.
#[derive(Debug)]
pub(super) struct Fence {
    kill_after: Duration,
    stop_timeout: Duration,
    state: State,
    sidecar_gone: bool,
    /// What to show if the sidecar is lost in the middle of this run.
    receipt: Option<Receipt>,
}

impl Fence {
    /// A fence with nothing inside. `kill_after` is the time from the deadline to KILL, `stop_timeout` the time from
    /// the order to stop to KILL, as far as the deadline allows it.
    pub(super) fn new(kill_after: Duration, stop_timeout: Duration) -> Fence {
        Fence { kill_after, stop_timeout, state: State::Idle, sidecar_gone: false, receipt: None }
    }

    /// Takes in one fact at the moment `now`. Call it at [`Fence::wake_at`] at the latest.
    pub(super) fn step(&mut self, now: Moment, input: Input) -> Vec<Deed> {
        let mut deeds = Vec::new();
        self.mind_the_clock(now, &mut deeds);
        match input {
            Input::Tick => {}
            Input::Said(Command::Start { epoch, until, secret }) => {
                self.start(now, epoch, until, secret, &mut deeds);
            }
            Input::Said(Command::Extend { epoch, until }) => self.extend(now, epoch, until),
            Input::Said(Command::Ping) => deeds.push(Deed::Tell(Event::Alive)),
            Input::Said(Command::Stop) => self.end(now, self.stop_timeout, &mut deeds),
            Input::SidecarGone => {
                if self.state == State::Idle {
                    // Its end was reported already: no run was interrupted.
                    self.receipt = None;
                }
                self.sidecar_gone = true;
                self.end(now, self.kill_after, &mut deeds);
            }
            Input::Spawned { pid: new } => {
                if let State::Alive { pid, .. } = &mut self.state {
                    *pid = new;
                }
            }
            Input::Executed => {
                if let State::Alive { epoch, pid, since, .. } = &mut self.state {
                    *since = now;
                    deeds.push(Deed::Tell(Event::Running { epoch: *epoch, pid: *pid }));
                }
            }
            Input::CannotStart { reason, spawned } => {
                if let State::Alive { cannot, .. } = &mut self.state {
                    *cannot = Some(reason);
                    if !spawned {
                        self.main_ended(now, Text::default());
                    }
                }
            }
            Input::MainEnded { how } => self.main_ended(now, how),
            Input::NothingLeft => self.nothing_left(now, &mut deeds),
        }
        if self.sidecar_gone && self.state == State::Idle {
            deeds.extend(self.receipt.take().map(Deed::Attest));
            deeds.push(Deed::Leave);
        }
        deeds
    }

    /// When [`Fence::step`] must be called again even if nothing happens.
    pub(super) fn wake_at(&self) -> Option<Moment> {
        match &self.state {
            State::Idle | State::Ending { killing: true, .. } => None,
            State::Alive { until, .. } | State::Clearing { until, .. } => Some(*until),
            State::Pausing { until, retry_at, .. } => Some(*until.min(retry_at)),
            State::Ending { until, patience, .. } => Some(self.kill_at(*until, *patience)),
        }
    }

    /// Whether whatever is left must be killed, again and again, until nothing is.
    pub(super) fn killing(&self) -> bool {
        matches!(self.state, State::Clearing { .. } | State::Ending { killing: true, .. })
    }

    /// Whether nothing runs, and nothing will without another order.
    pub(super) fn idle(&self) -> bool {
        self.state == State::Idle
    }

    /// Whether something of the workload may run, so that [`Input::NothingLeft`] is waited for.
    pub(super) fn occupied(&self) -> bool {
        matches!(self.state, State::Alive { .. } | State::Clearing { .. } | State::Ending { .. })
    }

    /// Whether it is only waited that the rest ends: the end has been asked for or has happened.
    pub(super) fn emptying(&self) -> bool {
        matches!(self.state, State::Clearing { .. } | State::Ending { .. })
    }

    fn mind_the_clock(&mut self, now: Moment, deeds: &mut Vec<Deed>) {
        match &self.state {
            State::Alive { until, .. } | State::Clearing { until, .. } | State::Pausing { until, .. }
                if now >= *until =>
            {
                self.end(now, self.kill_after, deeds);
            }
            State::Pausing { epoch, until, failures, retry_at } if now >= *retry_at => {
                let (epoch, until, failures) = (*epoch, *until, *failures);
                self.spawn(now, epoch, until, failures, deeds);
            }
            _ => {}
        }
        if let State::Ending { until, patience, killing: false, .. } = self.state
            && now >= self.kill_at(until, patience)
            && let State::Ending { killing, .. } = &mut self.state
        {
            *killing = true;
            deeds.push(Deed::Kill);
        }
    }

    fn start(
        &mut self,
        now: Moment,
        epoch: Epoch,
        until: Moment,
        secret: Option<Secret>,
        deeds: &mut Vec<Deed>,
    ) {
        if self.state != State::Idle || self.sidecar_gone {
            deeds.push(Deed::Tell(Event::Busy { epoch }));
        } else if now >= until {
            deeds.push(Deed::Tell(Event::Late { epoch }));
        } else {
            self.receipt = secret.map(|secret| Receipt { epoch, secret });
            self.spawn(now, epoch, until.min(now + HORIZON), 0, deeds);
        }
    }

    fn spawn(&mut self, now: Moment, epoch: Epoch, until: Moment, failures: u32, deeds: &mut Vec<Deed>) {
        self.state = State::Alive { epoch, until, failures, since: now, pid: 0, cannot: None };
        deeds.push(Deed::Spawn(epoch));
    }

    fn extend(&mut self, now: Moment, of: Epoch, to: Moment) {
        if let State::Alive { epoch, until, .. }
        | State::Clearing { epoch, until, .. }
        | State::Pausing { epoch, until, .. }
        | State::Ending { epoch, until, .. } = &mut self.state
            && *epoch == of
            && now < *until
        {
            *until = (*until).max(to.min(now + HORIZON));
        }
    }

    fn kill_at(&self, until: Moment, patience: Moment) -> Moment {
        (until + self.kill_after).min(patience)
    }

    /// Begins the end: TERM now, KILL after `patience`, but no later than `kill_after` after the deadline.
    fn end(&mut self, now: Moment, patience: Duration, deeds: &mut Vec<Deed>) {
        let (epoch, until) = match &mut self.state {
            State::Idle => return,
            State::Ending { patience: held, .. } => {
                *held = (*held).min(now + patience);
                return;
            }
            State::Pausing { epoch, .. } => {
                deeds.push(Deed::Tell(Event::Stopped { epoch: *epoch, at: now }));
                self.state = State::Idle;
                return;
            }
            State::Clearing { epoch, until, .. } => {
                // It is being killed already, and must go on being killed.
                deeds.push(Deed::Tell(Event::Stopping { epoch: *epoch }));
                self.state = State::Ending { epoch: *epoch, until: *until, patience: now, killing: true };
                return;
            }
            State::Alive { epoch, until, .. } => (*epoch, *until),
        };
        self.state = State::Ending { epoch, until, patience: now + patience, killing: false };
        deeds.push(Deed::Term);
        deeds.push(Deed::Tell(Event::Stopping { epoch }));
    }

    fn main_ended(&mut self, now: Moment, how: Text) {
        if let State::Alive { epoch, until, failures, since, cannot, .. } = &self.state {
            let failures = if cannot.is_none() && now.since(*since) >= STEADY { 0 } else { *failures };
            self.state = State::Clearing {
                epoch: *epoch,
                until: *until,
                failures: failures.saturating_add(1),
                cannot: cannot.is_some(),
                how: cannot.clone().unwrap_or(how),
            };
        }
    }

    fn nothing_left(&mut self, now: Moment, deeds: &mut Vec<Deed>) {
        match &self.state {
            State::Clearing { epoch, until, failures, how, cannot } => {
                let (epoch, failures) = (*epoch, *failures);
                deeds.push(Deed::Tell(if *cannot {
                    Event::CannotStart { epoch, failures, reason: how.clone() }
                } else {
                    Event::Exited { epoch, failures, how: how.clone() }
                }));
                self.state =
                    State::Pausing { epoch, until: *until, failures, retry_at: now + pause_after(failures) };
            }
            State::Ending { epoch, .. } => {
                deeds.push(Deed::Tell(Event::Stopped { epoch: *epoch, at: now }));
                self.state = State::Idle;
            }
            State::Idle | State::Alive { .. } | State::Pausing { .. } => {}
        }
    }
}

/// The pause after so many failures in a row: 200 ms, doubling to 30 s.
pub(super) fn pause_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (PAUSE_FIRST * (1 << doublings)).min(PAUSE_LONGEST)
}

#[cfg(test)]
mod tests;
