//! How this member campaigns: own guard, pre-vote, vote.
//!
//! A pre-vote costs nothing and promises nothing; it keeps a candidacy that cannot be won from raising the term. It is also
//! where a candidate is courteous: to another that was first (`deference.rs`), and to an owner that was only cut off for a
//! moment ([`Courtesy`]). Whether a vote may be asked for or given is the vote guard's alone to say, and when to try
//! is `reconcile/candidacy.rs`'s.

use std::{collections::BTreeSet, convert::Infallible, time::Duration};

use tokio::sync::mpsc;

use super::{
    deference::PATIENCE_MAX,
    group::Group,
    peer::client::{Peer, VOTE_LIMIT},
    types::{self, LogId},
    vote_guard::{Ballot, VoteRefusal},
    wire::{self, proto},
    words,
};
use crate::{
    clock::{Moment, micros},
    id::NodeId,
    ownership::view::Standing,
};

/// The longest wait for an answer from memory.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// For at most so long others are asked to wait for a candidate whose own disk has not answered yet.
const LONGER_MAX: Duration = Duration::from_secs(1);

/// How a candidacy ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Campaign {
    /// This member leads now.
    Won,
    /// No majority answered.
    Alone,
    /// A majority would not have voted for this member, so it did not even ask.
    Hopeless {
        /// For how long a majority will surely go on refusing.
        wait: Duration,
        /// Why, for the log.
        reason: String,
    },
    /// A majority would vote for this member, but the owner answers and may go on; see [`Courtesy`].
    OwnerAnswers,
    /// It asked and was not elected.
    Lost {
        /// Why, for the log.
        reason: String,
    },
}

/// Who may go on although a majority would vote for this member: links that come and go shall not move the ownership each
/// time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Courtesy {
    /// No majority answered before. The one that answers now is only just together again, and whoever led it may go on.
    pub alone: bool,
    /// The owner's node. If it answers, and leads, and is fit, it may go on.
    pub owner: Option<NodeId>,
}

impl Group {
    /// Until when this member gives way to another candidate.
    pub fn gives_way_until(&self) -> Option<Moment> {
        self.deference.until(self.roster.node)
    }

    /// Campaigns once: own guard, pre-vote, vote. After `losses` lost votes in a row it asks the others for more time.
    /// Out of courtesy it stops after the pre-vote, and has to try again a little later.
    /// Cancel-safe: whatever was begun is finished by itself.
    pub async fn campaign(&self, losses: u32, courtesy: Courtesy) -> Campaign {
        if !self.roster.members().is_voter(self.roster.node) {
            let reason = "this device is not taken in yet".into();
            return Campaign::Hopeless { wait: self.roster.site.timing.refusal(), reason };
        }
        if let Err(refusal) = self.guard.may_vote() {
            return hopeless(&refusal);
        }
        let patience = self.patience(losses);
        self.peers.expect(patience);
        let turn = match self.pre_vote(patience, courtesy).await {
            Ok(turn) => turn,
            Err(ended) => return ended,
        };
        let result = tokio::select! {
            biased;
            result = self.elect() => result,
            never = self.keep_turn(&turn, losses) => match never {},
        };
        // Who may own asks for promises next, and is left alone until it has them. A witness has nothing to ask for: whoever
        // follows it has what it knew, or is refused until then, and need not wait for the witness's disk.
        let site = &self.roster.site;
        let asks_next = site.member(&self.roster.me).is_some_and(|member| member.role.may_own());
        if result != Campaign::Won || !asks_next {
            self.give_turn_back(turn);
        }
        result
    }

    /// How long an election is expected to take.
    fn patience(&self, losses: u32) -> Duration {
        // Own vote, a voter's vote, and both once more as committed: four writes, one after the other.
        let usual = self.answer_limit() * 2 + self.log.slowest_write() * 4;
        (usual * 2u32.saturating_pow(losses.min(8))).min(PATIENCE_MAX)
    }

    async fn elect(&self) -> Campaign {
        // From the ticket on nothing is promised to anybody, until Raft has put our own ballot above theirs.
        let ticket = match self.guard.begin_vote(None) {
            Ok(ticket) => ticket,
            Err(refusal) => return hopeless(&refusal),
        };
        let (raft, guard) = (self.raft.clone(), self.guard.clone());
        let begun = self.tasks.spawn(async move {
            let triggered = raft.trigger().elect().await;
            // Answered behind the election in the same queue. The vote itself may not have been saved by then: what
            // Raft has to write waits while it installs a snapshot. So the guard is told here as well.
            let voted = raft.with_raft_state(|state| types::ballot(state.vote_ref())).await;
            if let Ok(ballot) = &voted {
                guard.observe(*ballot);
            }
            drop(ticket);
            triggered.and(voted.map(|ballot| ballot.term))
        });
        let term = match begun.await {
            Ok(Ok(term)) => term,
            Ok(Err(e)) => return Campaign::Lost { reason: words::stopped(&e) },
            Err(e) => return Campaign::Lost { reason: e.to_string() },
        };
        self.await_election(term).await
    }

    /// Asks those who give way for more time while an election takes longer than it was expected to: a disk that was
    /// quick for years may be slow at the next write, and rivals would depose each other before any of them had the
    /// chance to learn it.
    async fn keep_turn(&self, turn: &Asked, losses: u32) -> Infallible {
        let begun = self.clock.now();
        loop {
            tokio::time::sleep(self.answer_limit()).await;
            let patience = self.patience(losses);
            let took = self.clock.now().since(begun);
            if took > patience.max(LONGER_MAX) || !self.deference.extend(self.roster.node, patience) {
                std::future::pending::<()>().await;
            }
            self.peers.expect(patience);
            self.ask_again(turn, patience);
        }
    }

    /// The same question to those who gave way, for another time.
    fn ask_again(&self, turn: &Asked, patience: Duration) {
        let message = proto::VoteRequest { patience_us: micros(patience), ..turn.message.clone() };
        let limit = self.timing().hold();
        for peer in turn.granted.iter().filter_map(|node| self.peers.get(*node)) {
            let message = message.clone();
            self.tasks.spawn(async move {
                let _ = peer.pre_vote(message, limit).await;
            });
        }
    }

    /// Nobody needs to give way to this member any longer. If that is not heard, the turn ends by itself a little later.
    fn give_turn_back(&self, turn: Asked) {
        self.deference.release(self.roster.node);
        self.ask_again(&turn, Duration::ZERO);
    }

    async fn await_election(&self, term: u64) -> Campaign {
        let mut role = self.role.clone();
        let mut rejections = self.peers.rejections();
        let me = self.roster.node;
        let work = async {
            loop {
                {
                    let role = role.borrow_and_update();
                    if role.standing != Standing::Follower {
                        return Campaign::Won;
                    }
                    if role.ballot > (Ballot { term, node: me }) {
                        let reason = format!("{} was faster", role.ballot);
                        return Campaign::Lost { reason };
                    }
                }
                {
                    let (of, against, why) = &*rejections.borrow_and_update();
                    if *of == term && !self.roster.members().is_quorum(|node| !against.contains(node)) {
                        return Campaign::Lost { reason: why.clone() };
                    }
                }
                tokio::select! {
                    biased;
                    changed = role.changed() => if changed.is_err() { break },
                    changed = rejections.changed() => if changed.is_err() { break },
                }
            }
            Campaign::Lost { reason: "consensus has stopped".into() }
        };
        let late = Campaign::Lost { reason: "no majority answered in time".into() };
        tokio::time::timeout(VOTE_LIMIT, work).await.unwrap_or(late)
    }

    /// How long to wait for an answer from memory: longer where the network was slow of late, or a site on slow links
    /// could never elect, and so never agree on a wider timing.
    fn answer_limit(&self) -> Duration {
        let contacts = self.roster.contacts();
        let slowest = contacts.values().filter_map(|c| c.round_trip).max().unwrap_or_default();
        (self.timing().hold() / 2).max(slowest * 2).min(ANSWER_MAX)
    }

    /// Would a majority vote for this member? Asks everybody at once and returns with the deciding answer.
    async fn pre_vote(&self, patience: Duration, courtesy: Courtesy) -> Result<Asked, Campaign> {
        let members = self.roster.members();
        let me = self.roster.node;
        let last: Option<LogId> = self.log.last_log_id();
        let message = proto::VoteRequest {
            ballot: Some(proto::Ballot {
                term: self.guard.highest().term.saturating_add(1),
                node: me.0,
                committed: false,
            }),
            last_log_id: last.as_ref().map(wire::put_log_id),
            patience_us: micros(patience),
            ..self.peers.request()
        };
        // One's own vote is not promised to two candidates either.
        if let Err(left) = self.deference.stand(me, patience) {
            return Err(Campaign::Hopeless { wait: left, reason: "another candidate was first".into() });
        }
        let (sender, mut answers) = mpsc::unbounded_channel();
        let limit = self.answer_limit();
        for (node, peer) in self.peers.all().into_iter().filter(|(node, _)| members.is_voter(*node)) {
            let (message, sender, short) = (message.clone(), sender.clone(), self.timing().stagger());
            self.tasks.spawn(async move {
                let _ = sender.send((node, ask(&peer, message, limit, short).await));
            });
        }
        drop(sender);
        let mut count = Count { granted: BTreeSet::from([me]), ..Count::default() };
        let mut awaits_owner = courtesy.owner.is_some();
        let mut majority_since = None;
        loop {
            let majority = members.is_quorum(|node| count.granted.contains(node));
            if majority && !awaits_owner {
                break;
            }
            let left = majority.then(|| {
                let now = self.clock.now();
                let since = *majority_since.get_or_insert(now);
                // On a LAN its answer comes with the others'; a lost owner's never does.
                (since + self.timing().stagger()).since(now)
            });
            let answer = match left {
                None => answers.recv().await,
                Some(left) => tokio::time::timeout(left, answers.recv()).await.unwrap_or(None),
            };
            let Some((node, answer)) = answer else {
                if majority {
                    break;
                }
                let failed = count.verdict(|voted| members.is_quorum(|node| voted.contains(node)));
                self.give_turn_back(Asked { message, granted: count.granted });
                return Err(failed);
            };
            if courtesy.owner == Some(node) {
                awaits_owner = false;
                count.owner_goes_on = answer.as_ref().is_ok_and(|reply| reply.goes_on);
            }
            count.note(node, answer.ok());
        }
        let stops = if courtesy.alone {
            let reason = "a majority is only just together again, and who led it may go on".into();
            Some(Campaign::Hopeless { wait: self.timing().heartbeat() * 3, reason })
        } else if count.owner_goes_on {
            Some(Campaign::OwnerAnswers)
        } else if !self.deference.encouraged(me) {
            let reason = "it has given way to another candidate".into();
            Some(Campaign::Hopeless { wait: Duration::ZERO, reason })
        } else {
            None
        };
        let turn = Asked { message, granted: count.granted };
        match stops {
            None => Ok(turn),
            Some(stops) => {
                self.give_turn_back(turn);
                Err(stops)
            }
        }
    }
}

fn hopeless(refusal: &VoteRefusal) -> Campaign {
    Campaign::Hopeless { wait: refusal.left().unwrap_or_default(), reason: refusal.to_string() }
}

/// One member's answer to a pre-vote.
async fn ask(
    peer: &Peer,
    message: proto::VoteRequest,
    limit: Duration,
    short: Duration,
) -> Result<proto::PreVoteReply, tonic::Status> {
    let first = peer.pre_vote(message.clone(), limit).await;
    match &first {
        // Promises do not end everywhere in the same millisecond. To give up for that, and to come back later, would be to
        // come back in the next candidate's turn.
        Ok(reply) if !reply.would_grant && (1..micros(short)).contains(&reply.wait_us) => {
            let again = Duration::from_micros(reply.wait_us) + Duration::from_millis(1);
            tokio::time::sleep(again).await;
            peer.pre_vote(message, limit).await
        }
        _ => first,
    }
}

/// A pre-vote: what was asked, and who would vote.
struct Asked {
    message: proto::VoteRequest,
    granted: BTreeSet<NodeId>,
}

/// The answers to a pre-vote so far.
#[derive(Default)]
struct Count {
    granted: BTreeSet<NodeId>,
    /// Who refuses, and for how long it surely will.
    waits: Vec<(Duration, NodeId)>,
    reasons: Vec<String>,
    owner_goes_on: bool,
}

impl Count {
    fn note(&mut self, node: NodeId, answer: Option<proto::PreVoteReply>) {
        match answer {
            Some(reply) if reply.would_grant => {
                self.granted.insert(node);
            }
            Some(reply) => {
                self.waits.push((Duration::from_micros(reply.wait_us), node));
                self.reasons.push(reply.reason);
            }
            None => {}
        }
    }

    /// How a candidacy ends in which nobody else answers and these are no majority.
    fn verdict(&mut self, is_quorum: impl Fn(&BTreeSet<NodeId>) -> bool) -> Campaign {
        let mut then = self.granted.clone();
        then.extend(self.waits.iter().map(|(_, node)| *node));
        if !is_quorum(&then) {
            return Campaign::Alone;
        }
        // The majority becomes possible when enough of those who refuse for a time have had it.
        self.waits.sort_unstable();
        then.clone_from(&self.granted);
        let enough = self.waits.iter().find(|(_, node)| {
            then.insert(*node);
            is_quorum(&then)
        });
        let wait = enough.map_or(Duration::ZERO, |(wait, _)| *wait);
        let reason = if self.reasons.is_empty() { "nobody answered".into() } else { self.reasons.join("; ") };
        Campaign::Hopeless { wait, reason }
    }
}
