//! The vote guard: promises and votes of one node, ordered by one lock.
//!
//! Raft alone does not protect a lease, so every way in which a node could help elect a rival goes through here first:
//! its answers to vote and pre-vote requests, and its own candidacy. A node refuses to vote
//! - within the refusal window of its last promise,
//! - within the refusal window of its own boot, because a restart forgets promises,
//! - while its own workload is not confirmed stopped (its own lease is covered by its promise to itself),
//! - for good, once it is barred ([`Bar`]).
//!
//! A committed stop receipt lifts promises given for exactly its epoch; the refusal after boot is never lifted.
//! The other direction matters as much: a node promises nothing to a ballot lower than one that it has voted for, or is
//! voting for right now, and nothing that lasts longer than it would refuse to vote after a restart. Refusing is always safe in Raft (it looks like a lost message), so every doubt refuses.
//!
//! [`Guard`] is a plain value that is handed the time; [`VoteGuard`] is the same behind a lock and a clock.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    clock::{Clock, Moment},
    epoch::Epoch,
    id::NodeId,
};

/// A candidate's number: who asks to lead, in which term. Ordered by term, then node (openraft's `LeaderId`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ballot {
    /// The Raft term.
    pub term: u64,
    /// The candidate or leader.
    pub node: NodeId,
}

impl std::fmt::Display for Ballot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in term {}", self.node, self.term)
    }
}

/// Why a node votes no more in this life. A restart, which checks the store anew, may lift it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Bar {
    /// A write to its disk has failed, so it could not keep a vote. Its promises are kept in memory and still hold:
    /// it goes on promising, so that a healthy owner keeps its lease.
    #[error("its disk has failed")]
    DiskFailed,
    /// It has lost its store, and with it what it voted. It promises nothing either: it may have voted for somebody
    /// higher than who asks.
    #[error("its store was lost, and with it what it voted")]
    Amnesia,
}

/// Why a node does not vote now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VoteRefusal {
    /// It started too recently to know what it promised before.
    #[error("it started less than a refusal window ago ({} ms left)", left.as_millis())]
    Booting {
        /// How long this lasts.
        left: Duration,
    },
    /// It promised the present leader not to vote.
    #[error("it promised {to} not to vote ({} ms left)", left.as_millis())]
    Promised {
        /// The leader that holds the promise.
        to: Ballot,
        /// How long this lasts.
        left: Duration,
    },
    /// It votes no more.
    #[error("{0}")]
    Barred(Bar),
    /// Its own workload is not confirmed stopped.
    #[error("its own workload is not confirmed stopped")]
    WorkloadRuns,
    /// It has seen a higher ballot than the one it was asked for.
    #[error("it has already seen {seen}")]
    Outdated {
        /// The higher ballot.
        seen: Ballot,
    },
}

impl VoteRefusal {
    /// How long the refusal lasts, where that is a matter of time.
    pub fn left(&self) -> Option<Duration> {
        match self {
            VoteRefusal::Booting { left } | VoteRefusal::Promised { left, .. } => Some(*left),
            VoteRefusal::Barred(_) | VoteRefusal::WorkloadRuns | VoteRefusal::Outdated { .. } => None,
        }
    }
}

/// Why a node does not promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PromiseRefusal {
    /// It voted for, or follows, a higher ballot.
    #[error("it has voted for {seen}")]
    Higher {
        /// That ballot.
        seen: Ballot,
    },
    /// A vote is being decided right now.
    #[error("it is deciding a vote")]
    Voting,
    /// It does not know what it has voted.
    #[error("{0}")]
    Barred(Bar),
    /// It was asked for longer than it would refuse to vote after a restart.
    #[error("it was asked to promise {} ms, and its disk knows of {} ms at most", asked.as_millis(), ceiling.as_millis())]
    TooLong {
        /// For how long it was asked.
        asked: Duration,
        /// The longest that it may promise.
        ceiling: Duration,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Promise {
    to: Ballot,
    epoch: Epoch,
    until: Moment,
}

/// The guard as a plain value.
#[derive(Debug, Clone)]
pub struct Guard {
    refusal: Duration,
    ceiling: Duration,
    boot_refusal_until: Moment,
    highest: Ballot,
    voting: u32,
    promise: Option<Promise>,
    lifted: Option<Epoch>,
    workload_runs: bool,
    barred: Option<Bar>,
}

impl Guard {
    /// A guard for a node that started at `booted` and whose disk says it last voted for `voted`.
    ///
    /// `boot_refusal` is the largest refusal window that anybody may have been promised before the restart.
    pub fn new(booted: Moment, refusal: Duration, boot_refusal: Duration, voted: Ballot) -> Guard {
        Guard {
            refusal,
            ceiling: refusal,
            boot_refusal_until: booted + boot_refusal.max(refusal),
            highest: voted,
            voting: 0,
            promise: None,
            lifted: None,
            workload_runs: false,
            barred: None,
        }
    }

    /// A restart refuses to vote for at least `widest`, by what is durable on this node's disk. Nothing longer is
    /// promised, for a restart would forget it: not yet, if the owner was faster than this disk; never, if it is at
    /// fault, and a promise cannot be taken back.
    pub fn durable(&mut self, widest: Duration) {
        self.ceiling = self.refusal.max(widest);
    }

    /// Promises `to` not to vote for anybody else for `asked` or the own refusal window, whichever is longer.
    ///
    /// # Errors
    /// [`PromiseRefusal`]; then nothing was promised.
    pub fn promise(
        &mut self,
        now: Moment,
        to: Ballot,
        epoch: Epoch,
        asked: Duration,
    ) -> Result<(), PromiseRefusal> {
        if let Some(bar @ Bar::Amnesia) = self.barred {
            return Err(PromiseRefusal::Barred(bar));
        }
        if self.voting > 0 {
            return Err(PromiseRefusal::Voting);
        }
        if to < self.highest {
            return Err(PromiseRefusal::Higher { seen: self.highest });
        }
        if asked > self.ceiling {
            return Err(PromiseRefusal::TooLong { asked, ceiling: self.ceiling });
        }
        self.highest = to;
        let fresh = Promise { to, epoch, until: now + asked.max(self.refusal) };
        self.promise = Some(match self.promise {
            // From the same leader it only grows. A question for an earlier ownership may have been overtaken by one
            // for a later: taken at its word, the receipt for the earlier would lift what was promised to the later.
            Some(old) if old.to == to => {
                Promise { to, epoch: fresh.epoch.max(old.epoch), until: fresh.until.max(old.until) }
            }
            // A new leader was elected only after the old promise had ended for a quorum.
            _ => fresh,
        });
        Ok(())
    }

    /// Would this node vote now, as far as promises go? Changes nothing.
    ///
    /// # Errors
    /// [`VoteRefusal`]: the reason that lasts longest comes first.
    pub fn may_vote(&self, now: Moment) -> Result<(), VoteRefusal> {
        if let Some(bar) = self.barred {
            return Err(VoteRefusal::Barred(bar));
        }
        if self.workload_runs {
            return Err(VoteRefusal::WorkloadRuns);
        }
        let left = self.boot_refusal_until.since(now);
        if !left.is_zero() {
            return Err(VoteRefusal::Booting { left });
        }
        if let Some(promise) = self.promise
            && self.lifted != Some(promise.epoch)
        {
            let left = promise.until.since(now);
            if !left.is_zero() {
                return Err(VoteRefusal::Promised { to: promise.to, left });
            }
        }
        Ok(())
    }

    /// Begins deciding about a vote for `ballot`, or an own candidacy (`None`: its term is not known yet). Until
    /// [`Guard::end_vote`], nothing is promised to anybody.
    ///
    /// # Errors
    /// [`VoteRefusal`]; then nothing began.
    pub fn begin_vote(&mut self, now: Moment, ballot: Option<Ballot>) -> Result<(), VoteRefusal> {
        self.may_vote(now)?;
        if let Some(ballot) = ballot
            && ballot < self.highest
        {
            return Err(VoteRefusal::Outdated { seen: self.highest });
        }
        self.voting += 1;
        Ok(())
    }

    /// Ends what [`Guard::begin_vote`] began. If the vote was given, [`Guard::observe`] has been told before.
    pub fn end_vote(&mut self) {
        self.voting = self.voting.saturating_sub(1);
    }

    /// Raft has adopted `ballot`: by voting for it, by following it, or by campaigning with it.
    pub fn observe(&mut self, ballot: Ballot) {
        self.highest = self.highest.max(ballot);
    }

    /// A stop receipt for `epoch` is committed, or its fencer has proven the stop: promises given for that epoch, and no
    /// other, bind no longer.
    pub fn lift(&mut self, epoch: Epoch) {
        self.lifted = self.lifted.max(Some(epoch));
    }

    /// Whether anything of this device's own workload may be running. Told before it is started, and again only
    /// after its end is confirmed.
    pub fn workload(&mut self, runs: bool) {
        self.workload_runs = runs;
    }

    /// From here on it votes no more in this life. Who has forgotten its votes stays barred for that.
    pub fn bar(&mut self, bar: Bar) {
        if self.barred != Some(Bar::Amnesia) {
            self.barred = Some(bar);
        }
    }

    /// The highest ballot seen.
    pub fn highest(&self) -> Ballot {
        self.highest
    }
}

/// The guard behind its lock, with the clock it reads. Never waits for anything but the lock.
#[derive(Debug, Clone)]
pub struct VoteGuard {
    clock: Arc<dyn Clock>,
    guard: Arc<Mutex<Guard>>,
}

impl VoteGuard {
    /// See [`Guard::new`]; the moment of booting is now.
    pub fn new(clock: Arc<dyn Clock>, refusal: Duration, boot_refusal: Duration, voted: Ballot) -> VoteGuard {
        let guard = Guard::new(clock.now(), refusal, boot_refusal, voted);
        VoteGuard { clock, guard: Arc::new(Mutex::new(guard)) }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Guard, Moment) -> T) -> T {
        // A panic while the lock was held leaves a guard that still refuses at least as much.
        let mut guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock, so that the order of moments is the order of decisions.
        let now = self.clock.now();
        f(&mut guard, now)
    }

    /// See [`Guard::promise`].
    ///
    /// # Errors
    /// [`PromiseRefusal`].
    pub fn promise(&self, to: Ballot, epoch: Epoch, asked: Duration) -> Result<(), PromiseRefusal> {
        self.with(|g, now| g.promise(now, to, epoch, asked))
    }

    /// See [`Guard::durable`].
    pub fn durable(&self, widest: Duration) {
        self.with(|g, _| g.durable(widest));
    }

    /// See [`Guard::may_vote`].
    ///
    /// # Errors
    /// [`VoteRefusal`].
    pub fn may_vote(&self) -> Result<(), VoteRefusal> {
        self.with(|g, now| g.may_vote(now))
    }

    /// See [`Guard::begin_vote`]. The vote is over when the ticket is dropped.
    ///
    /// # Errors
    /// [`VoteRefusal`].
    pub fn begin_vote(&self, ballot: Option<Ballot>) -> Result<VoteTicket, VoteRefusal> {
        self.with(|g, now| g.begin_vote(now, ballot))?;
        Ok(VoteTicket(self.clone()))
    }

    /// See [`Guard::observe`].
    pub fn observe(&self, ballot: Ballot) {
        self.with(|g, _| g.observe(ballot));
    }

    /// See [`Guard::lift`].
    pub fn lift(&self, epoch: Epoch) {
        self.with(|g, _| g.lift(epoch));
    }

    /// See [`Guard::workload`].
    pub fn workload(&self, runs: bool) {
        self.with(|g, _| g.workload(runs));
    }

    /// See [`Guard::bar`].
    pub fn bar(&self, bar: Bar) {
        self.with(|g, _| g.bar(bar));
    }

    /// See [`Guard::highest`].
    pub fn highest(&self) -> Ballot {
        self.with(|g, _| g.highest())
    }
}

/// A vote being decided. Must be held until Raft has answered, even if whoever asked has gone away.
#[derive(Debug)]
pub struct VoteTicket(VoteGuard);

impl Drop for VoteTicket {
    fn drop(&mut self) {
        self.0.with(|g, _| g.end_vote());
    }
}

#[cfg(test)]
mod tests;
