//! Everything that can happen next.
//!
//! Where the product is quick, the model may be as slow as it likes: nothing has to happen, ever. Where the product may be
//! bad, the model is: a workload runs from the moment it may to the end of lease and grace, whatever was decided
//! meanwhile, unless its end was confirmed.

use crate::{
    product::{Does, Owned, STALE, promised},
    rules::{Rule, Scope},
    state::{Message, OWN, Proposed, Role, State},
};

/// One thing that happens. Devices by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Time passes.
    Tick,
    /// `owner` promises itself and asks `member`.
    Ask { owner: usize, member: usize },
    /// A question reaches `member`, and, unless it takes time, its answer the asker.
    Asked { owner: usize, member: usize },
    /// An answer reaches the asker.
    Answered { owner: usize, member: usize },
    /// A renewal is lost.
    Lost { owner: usize, member: usize },
    /// The guard lets a candidacy begin.
    BeginsCandidacy { node: usize },
    /// It campaigns with a ballot just above `above`.
    Campaigns { node: usize, above: u8 },
    /// The guard lets a vote begin.
    BeginsVote { voter: usize, candidate: usize },
    /// It votes.
    Votes { voter: usize, candidate: usize },
    /// The vote comes to nothing.
    GivesUp { node: usize },
    /// The candidate hears that it was elected.
    Wins { node: usize },
    /// A follower takes one entry from its leader, or only its ballot.
    Follows { node: usize, leader: usize },
    /// A claim is proposed.
    Proposes { node: usize },
    /// A claim is committed by a leader and one other.
    Claims { node: usize, leader: usize, with: usize },
    /// The owner's workload is stopped and a receipt proposed.
    Releases { node: usize },
    /// The receipt is committed.
    Released { node: usize, leader: usize, with: usize },
    /// The workload of this device is stopped by its own decision, at once.
    Stops { node: usize },
    /// The fencer lost its sidecar: it stops the workload and gives a receipt.
    Attests { node: usize },
    /// The fencer's receipt reaches a voter.
    Lifts { node: usize, epoch: u8 },
    /// The sidecar restarts.
    Restarts { node: usize },
    /// A leader commits a pause, or its end.
    Pauses { leader: usize, with: usize },
}

/// A step, the state after it, and what is wrong with that state.
pub type Next = (Step, State, Option<&'static str>);

/// Puts every possible next state into `next`.
pub fn successors(state: &State, scope: &Scope, next: &mut Vec<Next>) {
    next.clear();
    let mut all = All { scope, state, next };
    all.time();
    for a in 0..3 {
        all.alone(a);
        for b in (0..3).filter(|b| *b != a) {
            all.pair(a, b);
        }
    }
    for slot in 0..scope.slots {
        all.message(slot);
    }
}

struct All<'a> {
    scope: &'a Scope,
    state: &'a State,
    next: &'a mut Vec<Next>,
}

impl All<'_> {
    fn add(&mut self, step: Step, mut state: State) {
        let wrong = state.settle(self.scope);
        if wrong.is_some() || state != *self.state {
            self.next.push((step, state, wrong));
        }
    }

    fn time(&mut self) {
        let mut s = *self.state;
        for node in 0..3 {
            let owns = s.owns(node);
            let n = &mut s.nodes[node];
            n.guard = n.guard.tick();
            for age in n.lease.iter_mut().filter(|age| **age > 0) {
                *age = if *age < *STALE { *age + 1 } else { 0 };
            }
            let loose = !self.scope.holds(Rule::PauseKeepsTheLease) && n.paused && owns > 0;
            if !loose {
                n.runs = n.runs.saturating_sub(1);
            }
        }
        for message in s.messages.iter_mut().filter(|m| m.epoch > 0) {
            message.age = (message.age + 1).min(*STALE);
        }
        self.add(Step::Tick, s);
    }

    /// What a device does by itself.
    fn alone(&mut self, node: usize) {
        let scope = self.scope;
        let (s, n) = (self.state, &self.state.nodes[node]);
        let owns = s.owns(node);
        let may_vote = s.may_vote(node, scope);
        if n.voting == OWN {
            self.campaigns(node);
            let mut after = *s;
            after.end_vote(node);
            self.add(Step::GivesUp { node }, after);
        } else if n.voting == 0 && n.role != Role::Leader && may_vote {
            if scope.slow_votes {
                let mut after = *s;
                after.begin_vote(node, OWN);
                self.add(Step::BeginsCandidacy { node }, after);
            } else {
                self.campaigns(node);
            }
        }
        if n.role == Role::Elected || n.role == Role::Candidate && !scope.holds(Rule::VoteQuorum) {
            let mut after = *s;
            after.nodes[node].role = Role::Leader;
            self.add(Step::Wins { node }, after);
        }
        let does = s.decides(node);
        if scope.late_claims && does == Does::Claims && self.may_claim(node) && n.claim == Proposed::Nothing {
            let mut after = *s;
            after.nodes[node].claim = Proposed::Now;
            self.add(Step::Proposes { node }, after);
        }
        if does == Does::Stops && n.runs > 0 {
            let mut after = *s;
            after.nodes[node].runs = 0;
            self.add(Step::Stops { node }, after);
        }
        if (scope.receipts || n.burned) && owns > 0 && !n.receipt && s.top == n.key {
            let mut after = *s;
            after.nodes[node].receipt = true;
            if scope.holds(Rule::StopBeforeReceipt) {
                after.nodes[node].runs = 0;
            }
            if scope.holds(Rule::BurnedByProposal) {
                after.nodes[node].burned = true;
            }
            self.add(Step::Releases { node }, after);
        }
        if scope.fencers {
            let owned = s.owned(n.key);
            let bit = 1 << owned.epoch;
            if owned.owner.is_some_and(|(owner, _)| owner == node)
                && s.attested & bit == 0
                && s.started >= owned.epoch
            {
                let mut after = *s;
                after.attested |= bit;
                after.nodes[node].runs = 0;
                if owns > 0 && scope.holds(Rule::BurnedByFencer) {
                    after.nodes[node].burned = true;
                }
                self.add(Step::Attests { node }, after);
            }
            if s.attested & bit != 0 && n.key % 2 == 1 {
                let mut after = *s;
                after.lift(node, owned.epoch, scope);
                self.add(Step::Lifts { node, epoch: owned.epoch }, after);
            }
        }
        if scope.restarts {
            let mut after = *s;
            after.restart(node, scope);
            self.add(Step::Restarts { node }, after);
        }
    }

    fn campaigns(&mut self, node: usize) {
        let ballot = self.state.nodes[node].ballot;
        for above in ballot..=self.state.highest_rank() {
            let mut s = *self.state;
            s.each_rank(|rank| *rank *= 2);
            let n = &mut s.nodes[node];
            n.ballot = above * 2 + 1;
            n.role = Role::Candidate;
            s.observe(node, above * 2 + 1);
            s.end_vote(node);
            self.add(Step::Campaigns { node, above }, s);
        }
    }

    fn may_claim(&self, node: usize) -> bool {
        let n = &self.state.nodes[node];
        n.key == self.state.top && self.state.top.div_ceil(2) < self.scope.epochs
    }

    /// What `a` does with `b`.
    fn pair(&mut self, a: usize, b: usize) {
        let scope = self.scope;
        let s = self.state;
        let (na, nb) = (&s.nodes[a], &s.nodes[b]);
        // b asks a for its vote.
        if matches!(nb.role, Role::Candidate | Role::Elected) && nb.ballot > na.ballot && nb.key >= na.key {
            let begun = na.voting == nb.ballot + 1 && na.voting != OWN;
            if begun || !scope.slow_votes && nb.ballot >= na.highest && s.may_vote(a, scope) {
                let mut after = *s;
                after.nodes[a].ballot = nb.ballot;
                after.nodes[a].role = Role::Follower;
                after.observe(a, nb.ballot);
                after.end_vote(a);
                after.nodes[b].role = Role::Elected;
                self.add(Step::Votes { voter: a, candidate: b }, after);
            } else if scope.slow_votes && na.voting == 0 && nb.ballot >= na.highest && s.may_vote(a, scope) {
                let mut after = *s;
                after.begin_vote(a, nb.ballot + 1);
                self.add(Step::BeginsVote { voter: a, candidate: b }, after);
            }
        }
        if na.role != Role::Leader {
            return;
        }
        let epoch = s.owns(a);
        if epoch > 0
            && let Some(slot) = (0..scope.slots).find(|slot| s.messages[*slot].epoch == 0)
        {
            let mut after = *s;
            if after.promise(a, na.ballot, epoch, scope) {
                after.nodes[a].lease = promised(na.lease, a, 0);
            }
            let (ballot, from, to) = (na.ballot, a as u8, b as u8);
            after.messages[slot] = Message { ballot, epoch, age: 0, answer: false, from, to };
            self.add(Step::Ask { owner: a, member: b }, after);
        }
        if nb.ballot > na.ballot {
            return;
        }
        let mut followed = *s;
        followed.follow(b, a);
        let mut after = followed;
        after.learn(b, a, scope);
        self.add(Step::Follows { node: b, leader: a }, after);
        if na.key != s.top {
            return;
        }
        while followed.nodes[b].key < s.top {
            followed.learn(b, a, scope);
        }
        followed.nodes[b].paused = s.pause == 1;
        self.commits(a, b, &followed);
    }

    /// What `leader` commits with `with`, which has all that came before.
    fn commits(&mut self, leader: usize, with: usize, before: &State) {
        let scope = self.scope;
        let top = Owned { paused: before.pause == 1, ..before.owned(before.top) };
        let now = !scope.late_claims && before.decides(leader) == Does::Claims && self.may_claim(leader);
        for node in 0..3 {
            let proposed = before.nodes[node].claim;
            let due = node == leader && now;
            if !due && (proposed == Proposed::Nothing || top.epoch >= scope.epochs) {
                continue;
            }
            if let Some(owned) = top.claim(node, due || proposed == Proposed::Now, top.epoch) {
                let mut after = *before;
                let (owner, present) = owned.owner.expect("it claimed");
                after.claimed[usize::from(owned.epoch - 1)] = (owner as u8, present);
                after.nodes[node].claim = Proposed::Nothing;
                after.committed(leader, with, owned.epoch * 2 - 1, scope);
                self.add(Step::Claims { node, leader, with }, after);
            }
        }
        for node in (0..3).filter(|n| before.nodes[*n].receipt) {
            let (_, present) = top.owner.expect("else the receipt would be void");
            if top.release(node, present, top.epoch).is_some() {
                let mut after = *before;
                after.released[usize::from(top.epoch - 1)] = true;
                after.committed(leader, with, top.epoch * 2, scope);
                self.add(Step::Released { node, leader, with }, after);
            }
        }
        if scope.pause && before.pause < 2 {
            let mut after = *before;
            after.pause += 1;
            after.nodes[leader].paused = after.pause == 1;
            after.nodes[with].paused = after.pause == 1;
            self.add(Step::Pauses { leader, with }, after);
        }
    }

    fn message(&mut self, slot: usize) {
        let scope = self.scope;
        let message = self.state.messages[slot];
        if message.epoch == 0 {
            return;
        }
        let (owner, member) = (usize::from(message.from), usize::from(message.to));
        let mut after = *self.state;
        after.messages[slot] = Message::default();
        self.add(Step::Lost { owner, member }, after);
        if message.answer {
            after.answered(&message, scope);
            self.add(Step::Answered { owner, member }, after);
        } else if after.promise(member, message.ballot, message.epoch, scope) {
            if scope.late_answers {
                after.messages[slot] = Message { answer: true, ..message };
            } else {
                after.answered(&message, scope);
            }
            self.add(Step::Asked { owner, member }, after);
        }
    }
}
