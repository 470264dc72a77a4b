//! What the steps do to a state, and what is wrong with it afterwards.

use crate::{
    guard::To,
    product::{Does, Owned, REFUSAL, STALE, decides, promised, runs_for},
    rules::{Rule, Scope},
    state::{Message, OWN, Proposed, Role, State},
};

impl State {
    pub fn decides(&self, node: usize) -> Does {
        let n = &self.nodes[node];
        let running = if n.runs > 0 { n.runs_under } else { 0 };
        let held = runs_for(n.lease, node, true) > 0;
        let owned = Owned { paused: n.paused, ..self.owned(n.key) };
        decides(node, n.role == Role::Leader, owned, held, running, n.burned)
    }

    /// Whether the guard would begin a vote.
    pub fn may_vote(&self, node: usize, scope: &Scope) -> bool {
        let mut guard = self.nodes[node].guard;
        if !scope.holds(Rule::PromiseWindow) {
            (guard.left, guard.epoch) = (0, 0);
        }
        guard.may_vote()
    }

    /// The guard begins a vote for this ballot's rank plus one, or for itself.
    pub fn begin_vote(&mut self, node: usize, voting: u8) {
        self.nodes[node].voting = voting;
        self.nodes[node].guard.voting = true;
    }

    /// The vote is over.
    pub fn end_vote(&mut self, node: usize) {
        self.nodes[node].voting = 0;
        self.nodes[node].guard.voting = false;
    }

    /// The guard is told that Raft has adopted a ballot.
    pub fn observe(&mut self, node: usize, ballot: u8) {
        let n = &mut self.nodes[node];
        if ballot > n.highest {
            n.highest = ballot;
            n.guard.to_highest = false;
        }
    }

    /// Asks the guard for a promise. Says whether it was given.
    pub fn promise(&mut self, node: usize, ballot: u8, epoch: u8, scope: &Scope) -> bool {
        let n = &mut self.nodes[node];
        let mut guard = n.guard;
        let mut to = match ballot.cmp(&n.highest) {
            std::cmp::Ordering::Less => To::Lower,
            std::cmp::Ordering::Equal => To::Highest,
            std::cmp::Ordering::Greater => To::Higher,
        };
        if to == To::Lower && !scope.holds(Rule::HigherVote) {
            to = To::Highest;
        }
        if !scope.holds(Rule::PromiseWhileVoting) {
            guard.voting = false;
        }
        if !scope.holds(Rule::LateQuestion) {
            (guard.left, guard.epoch) = (0, 0);
        }
        let epoch = if scope.holds(Rule::EpochInPromise) { epoch } else { 1 };
        let Some(given) = guard.promise(to, epoch, scope.refusal()) else { return false };
        let voting = n.guard.voting;
        n.guard = given;
        n.guard.voting = voting;
        n.highest = n.highest.max(ballot);
        true
    }

    /// An answer reaches the asker.
    pub fn answered(&mut self, message: &Message, scope: &Scope) {
        let (owner, member) = (usize::from(message.from), usize::from(message.to));
        let asks = self.owns(owner);
        let n = &mut self.nodes[owner];
        if n.role == Role::Leader && n.ballot == message.ballot && asks == message.epoch {
            let age = if scope.holds(Rule::FromBeforeAsking) { message.age } else { 0 };
            n.lease = promised(n.lease, member, age);
        }
    }

    /// `node` adopts the ballot of `leader`.
    pub fn follow(&mut self, node: usize, leader: usize) {
        let ballot = self.nodes[leader].ballot;
        if self.nodes[node].ballot < ballot {
            self.nodes[node].ballot = ballot;
            self.nodes[node].role = Role::Follower;
        }
        self.observe(node, ballot);
    }

    /// `node` takes the next entry that it lacks from `leader`.
    pub fn learn(&mut self, node: usize, leader: usize, scope: &Scope) {
        let key = self.nodes[node].key;
        if key < self.nodes[leader].key {
            let next = if key % 2 == 1 && !self.released[usize::from(key / 2)] { key + 2 } else { key + 1 };
            self.apply(node, next, scope);
        } else {
            self.nodes[node].paused = self.nodes[leader].paused;
        }
    }

    /// A leader has committed the record of this key with the help of one other.
    pub fn committed(&mut self, leader: usize, with: usize, key: u8, scope: &Scope) {
        self.top = key;
        self.apply(leader, key, scope);
        self.apply(with, key, scope);
    }

    fn apply(&mut self, node: usize, key: u8, scope: &Scope) {
        self.nodes[node].key = key;
        self.nodes[node].burned = false;
        if scope.holds(Rule::LeasePerEpoch) {
            self.nodes[node].lease = [0; 3];
        }
        if key.is_multiple_of(2) {
            self.lift(node, key / 2, scope);
        }
    }

    /// A receipt for this epoch lifts promises.
    pub fn lift(&mut self, node: usize, epoch: u8, scope: &Scope) {
        self.nodes[node].guard.lifted = if scope.holds(Rule::EpochInPromise) { epoch } else { 1 };
    }

    /// The sidecar restarts: what was not durable is gone.
    pub fn restart(&mut self, node: usize, scope: &Scope) {
        let boot = if scope.holds(Rule::BootRefusal) { scope.refusal() } else { 0 };
        let n = &mut self.nodes[node];
        if n.role != Role::Leader {
            n.role = Role::Follower;
        }
        n.guard = crate::guard::Seen { boot, ..Default::default() };
        n.highest = n.ballot;
        (n.voting, n.burned, n.lease) = (0, false, [0; 3]);
        // Its orphans are ended before it does anything.
        n.runs = 0;
        if scope.holds(Rule::NewIncarnation) {
            if n.claim == Proposed::Now {
                n.claim = Proposed::Before;
            }
            for (claimer, present) in &mut self.claimed {
                *present &= usize::from(*claimer) != node;
            }
        }
    }

    /// Starts what may run, says what is wrong, and forgets what is of no matter any more.
    pub fn settle(&mut self, scope: &Scope) -> Option<&'static str> {
        let mut wrong = None;
        for node in 0..3 {
            let owns = self.owns(node);
            if owns == 0 || self.nodes[node].role != Role::Leader {
                if owns == 0 {
                    self.nodes[node].burned = false;
                }
                if scope.holds(Rule::LeasePerEpoch) || self.nodes[node].role != Role::Leader {
                    self.nodes[node].lease = [0; 3];
                }
                continue;
            }
            let n = &self.nodes[node];
            let runs = runs_for(n.lease, node, scope.holds(Rule::LeaseQuorum));
            let running = if n.runs > 0 { n.runs_under } else { 0 };
            let does = decides(node, true, self.owned(n.key), runs > 0, running, n.burned);
            if does == Does::Runs {
                if owns < self.started {
                    wrong = Some("a workload runs under an older epoch than one before");
                }
                let n = &mut self.nodes[node];
                (n.runs, n.runs_under) = (n.runs.max(runs), owns);
                self.started = self.started.max(owns);
            }
        }
        if self.nodes.iter().filter(|n| n.runs > 0).count() > 1 {
            wrong = Some("two workloads run");
        }
        self.forget(scope);
        wrong
    }

    /// Brings states that can never be told apart into one form.
    fn forget(&mut self, scope: &Scope) {
        let top = self.owned(self.top);
        let last = self.top == scope.epochs * 2;
        for node in 0..3 {
            let n = &mut self.nodes[node];
            if n.runs == 0 {
                n.runs_under = 0;
            }
            n.receipt &= top.owner.is_some_and(|(owner, _)| owner == node);
            if last || top.epoch == scope.epochs {
                n.claim = Proposed::Nothing;
            }
            // Of three answers the oldest will never be the one that counts.
            for (a, b, c) in [(0, 1, 2), (1, 0, 2), (2, 0, 1)] {
                if n.lease[b] > 0 && n.lease[c] > 0 && n.lease[a] > n.lease[b].max(n.lease[c]) {
                    n.lease[a] = 0;
                }
            }
            n.guard = n.guard.normal();
        }
        let reached = self.nodes.iter().map(|n| n.key).min().unwrap_or(0);
        for epoch in 1..=3u8 {
            let at = usize::from(epoch - 1);
            if reached > epoch * 2 - 1 {
                self.claimed[at] = (3, false);
                self.attested &= !(1 << epoch);
            }
            if reached >= epoch * 2 {
                self.released[at] = false;
            }
        }
        for slot in 0..3 {
            let m = self.messages[slot];
            if m.epoch == 0 {
                continue;
            }
            let (asker, member) = (&self.nodes[usize::from(m.from)], &self.nodes[usize::from(m.to)]);
            let current = asker.role == Role::Leader
                && asker.ballot == m.ballot
                && self.owns(usize::from(m.from)) == m.epoch;
            let worthless = m.answer && (!current || scope.holds(Rule::FromBeforeAsking) && m.age >= *STALE);
            let refused = !m.answer
                && m.ballot < member.highest
                && scope.holds(Rule::HigherVote)
                && member.guard.promise(To::Lower, m.epoch, scope.refusal()).is_none();
            if worthless || refused {
                self.messages[slot] = Message::default();
            }
        }
        for node in 0..3 {
            let n = &self.nodes[node];
            let asks = self.messages.iter().any(|m| m.epoch > 0 && usize::from(m.from) == node);
            let above = (0..3).filter(|o| self.nodes[*o].ballot > n.ballot).count();
            let hopeless = match n.role {
                Role::Follower => false,
                // Nobody is left that could still vote for it.
                Role::Candidate => (0..3).all(|o| o == node || self.nodes[o].ballot >= n.ballot),
                // Nobody is left that would still follow it or promise it anything. It may not know; that it may now stand
                // again only allows more.
                Role::Elected | Role::Leader => above == 2 && !asks && n.runs == 0,
            };
            if hopeless && scope.holds(Rule::VoteQuorum) && scope.holds(Rule::HigherVote) {
                self.nodes[node].role = Role::Follower;
                self.nodes[node].lease = [0; 3];
            }
        }
        self.sort_messages();
        self.compress();
    }

    /// Those under way first, so that a free slot is found behind them.
    pub fn sort_messages(&mut self) {
        self.messages.sort_unstable_by(|a, b| b.cmp(a));
    }

    /// Changes every ballot.
    pub fn each_rank(&mut self, mut change: impl FnMut(&mut u8)) {
        for n in &mut self.nodes {
            change(&mut n.ballot);
            change(&mut n.highest);
            if n.voting != 0 && n.voting != OWN {
                n.voting -= 1;
                change(&mut n.voting);
                n.voting += 1;
            }
        }
        for m in self.messages.iter_mut().filter(|m| m.epoch > 0) {
            change(&mut m.ballot);
        }
    }

    /// The highest rank in use.
    pub fn highest_rank(&self) -> u8 {
        let mut highest = 0;
        let mut state = *self;
        state.each_rank(|rank| highest = highest.max(*rank));
        highest
    }

    /// Numbers the ballots anew, without gaps.
    fn compress(&mut self) {
        let mut present = 0u64;
        self.each_rank(|rank| present |= 1 << *rank);
        self.each_rank(|rank| *rank = (present & ((1 << *rank) - 1)).count_ones() as u8);
    }
}

impl Scope {
    fn refusal(&self) -> u8 {
        if self.holds(Rule::WindowOutlastsLease) { *REFUSAL } else { *REFUSAL - 1 }
    }
}
