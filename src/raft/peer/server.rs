//! Answers to the other members. Who does not belong here is refused first; votes pass the vote guard; promises and
//! pre-votes are answered from memory.

use std::{pin::Pin, sync::Arc, time::Duration};

use openraft::{
    ServerState,
    error::RaftError,
    raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse},
};
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, service::interceptor::InterceptedService};

use super::{
    OwnersWord, Roster,
    client::MESSAGE_MAX,
    plausible,
    porter::{Porter, caller},
};
use crate::{
    clock::{Clock, Moment, micros},
    epoch::Epoch,
    id::NodeId,
    ownership::command::Command,
    raft::{
        Proposer,
        attest::Attest,
        deference::Deference,
        log::LogStore,
        machine::Machine,
        types::{Raft, Snapshot, ballot},
        vote_guard::{Ballot, VoteGuard, VoteRefusal},
        vouch::Vouch,
        wire::{self, proto},
        words,
    },
    seal::{Receipt, Secret},
};

/// For so long after an append Raft refuses votes.
const AFTER_APPEND: Duration = Duration::from_millis(1);
/// So often is a vote decided anew because of an append.
const APPENDS_IN_A_ROW: u32 = 4;

/// The gRPC service. Clones share everything.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) roster: Arc<Roster>,
    pub(crate) raft: Raft,
    pub(crate) log: LogStore,
    pub(crate) machine: Machine,
    pub(crate) guard: VoteGuard,
    pub(crate) vouch: Vouch,
    pub(crate) deference: Deference,
    pub(crate) attest: Attest,
    pub(crate) proposer: Proposer,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tasks: TaskTracker,
    /// Cancelled when this member stops answering.
    pub(crate) stop: CancellationToken,
}

impl Service {
    /// The service as tonic serves it. Who is calling is looked at before anything of the message is read.
    pub(crate) fn into_server(self) -> InterceptedService<proto::peer_server::PeerServer<Service>, Porter> {
        let porter = Porter::new(self.roster.clone());
        let server = proto::peer_server::PeerServer::new(self)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        InterceptedService::new(server, porter)
    }

    /// What the candidate has heard from the owner's fencer, this member may not have heard.
    fn attested(&self, message: &proto::VoteRequest) {
        let secret = <[u8; 32]>::try_from(message.receipt_secret.as_ref()).map(Secret::from_bytes);
        if let (Ok(secret), Some(epoch)) = (secret, Epoch::new(message.receipt_epoch)) {
            self.attest.hear(Receipt { epoch, secret });
        }
    }

    /// One question for a promise, answered from memory.
    fn promise(&self, caller: NodeId, message: proto::RenewRequest) -> Result<proto::RenewReply, Status> {
        if let Some(device) = self.roster.device_of(caller) {
            self.roster.heard(caller, &device, message.health);
        }
        let from = plausible::ballot(message.ballot, caller, self.term())?;
        let epoch =
            Epoch::new(message.epoch).ok_or_else(|| Status::invalid_argument("the epoch is out of range"))?;
        let ballot = Ballot { term: from.term, node: caller };
        let promised = self.guard.promise(ballot, epoch, Duration::from_micros(message.refusal_us));
        if promised.is_ok() {
            // Who leads needs its turn no longer, and may be lost before that would have ended.
            self.deference.release(caller);
            let asked = Moment::from_nanos(message.echo_ns);
            // No lease has more left than its whole length.
            let left = Duration::from_micros(message.lease_left_us).min(self.machine.timing().hold());
            self.vouch.heard(self.clock.now(), caller, epoch, asked, left);
            let through = (message.uplink != 0).then_some(NodeId(message.uplink));
            self.roster.heard_word(OwnersWord {
                from: caller,
                epoch,
                wanted: message.uplink_wanted,
                through,
            });
        }
        Ok(proto::RenewReply {
            promised: promised.is_ok(),
            reason: promised.err().map(|e| e.to_string()).unwrap_or_default(),
            applied_index: self.raft.metrics().borrow().last_applied.map_or(0, |id| id.index),
            health: None,
            echo_ns: self.clock.now().as_nanos(),
            number: message.number,
        })
    }

    /// Whether this member owns and leads, and means to go on, whether or not it holds a lease just now.
    fn goes_on(&self) -> bool {
        let metrics = self.raft.metrics().borrow().clone();
        let leads = metrics.state == ServerState::Leader && metrics.vote.committed;
        let applied = self.machine.watch();
        let record = &applied.borrow().record;
        let owns = record.owned_by(&self.roster.me, self.roster.incarnation).is_some();
        leads && owns && !record.is_handing_over() && self.attest.proof().is_none() && self.roster.is_fit()
    }

    /// A candidate that asks again after it has lost an election is bound to the ballot of that election. As long as this
    /// member leads with a lower one, it can neither promise nor follow; nobody would tell, because a quorum promises all
    /// the same. So Raft is made to meet it, which ends this leadership: better now than whenever the next entry is written.
    async fn let_go_of_the_term(&self, message: &proto::VoteRequest) {
        let (leads, own) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            (metrics.state == ServerState::Leader, ballot(&metrics.vote).term)
        };
        // It asks for a term above the highest that it has seen.
        if leads && message.ballot.as_ref().is_some_and(|asks| asks.term > own.saturating_add(1)) {
            // An error means that Raft has stopped, which the role says already.
            let _ = self.raft.trigger().heartbeat().await;
        }
    }

    /// The node's highest term, which bounds what others may come with.
    fn term(&self) -> u64 {
        self.guard.highest().term
    }

    /// Nothing is answered before all that this member has written itself is durable.
    async fn durable(&self) -> Result<(), Status> {
        self.log.ahead().all().await.map_err(|e| Status::unavailable(e.to_string()))
    }
}

/// A refusal by the guard, as the candidate reads it.
fn refused(refusal: VoteRefusal) -> Status {
    Status::aborted(refusal.to_string())
}

fn failed(error: &RaftError<u64>) -> Status {
    Status::unavailable(words::failed(error))
}

/// Raft's decision. It refuses every vote for a millisecond after each append (`types::config`); but the entry that makes a
/// vote right, such as a receipt, comes as an append, and the candidate heard of it as soon as this member. So it is asked
/// again, for which no candidate needs to wait before it begins.
async fn vote_behind_appends(
    raft: &Raft,
    request: VoteRequest<u64>,
) -> Result<VoteResponse<u64>, RaftError<u64>> {
    let mut reply = raft.vote(request.clone()).await?;
    for _ in 0..APPENDS_IN_A_ROW {
        let may_win = ballot(&reply.vote) < ballot(&request.vote) && reply.last_log_id <= request.last_log_id;
        if reply.vote_granted || !may_win {
            break;
        }
        tokio::time::sleep(AFTER_APPEND).await;
        reply = raft.vote(request.clone()).await?;
    }
    Ok(reply)
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl proto::peer_server::Peer for Service {
    async fn vote(&self, request: Request<proto::VoteRequest>) -> Answer<proto::VoteReply> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        plausible::candidate(&message, caller, self.term())?;
        self.attested(&message);
        let vote = wire::take_vote(message.ballot)?;
        let ticket = match self.guard.begin_vote(Some(ballot(&vote))) {
            Ok(ticket) => ticket,
            // Said as Raft says it, or the candidate would come back one term higher at a time.
            Err(VoteRefusal::Outdated { seen }) => {
                let ballot = proto::Ballot { term: seen.term, node: seen.node.0, committed: false };
                return Ok(Response::new(proto::VoteReply { ballot: Some(ballot), ..Default::default() }));
            }
            Err(refusal) => return Err(refused(refusal)),
        };
        // The vote counts whoever's turn it is; from now on it is this candidate's, if it can win and it is nobody else's.
        let candidate = NodeId(vote.leader_id.node_id);
        let theirs = message.last_log_id.map(wire::take_log_id);
        if theirs >= self.log.last_log_id() {
            let _ = self.deference.give_way(candidate, Duration::from_micros(message.patience_us));
        }
        let request = VoteRequest { vote, last_log_id: theirs };
        // On a task of its own: the ticket must live until Raft has decided, even if the candidate hangs up.
        let raft = self.raft.clone();
        let decided = self.tasks.spawn(async move {
            let reply = vote_behind_appends(&raft, request).await;
            drop(ticket);
            reply
        });
        let reply = decided.await.map_err(|e| Status::internal(e.to_string()))?.map_err(|e| failed(&e))?;
        self.durable().await?;
        Ok(Response::new(proto::VoteReply {
            ballot: Some(wire::put_vote(&reply.vote)),
            granted: reply.vote_granted,
            last_log_id: reply.last_log_id.as_ref().map(wire::put_log_id),
        }))
    }

    async fn pre_vote(&self, request: Request<proto::VoteRequest>) -> Answer<proto::PreVoteReply> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        plausible::candidate(&message, caller, self.term())?;
        self.attested(&message);
        self.let_go_of_the_term(&message).await;
        let patience = Duration::from_micros(message.patience_us);
        let theirs = message.last_log_id.map(wire::take_log_id);
        if theirs > self.log.last_log_id() {
            // Whoever has less cannot win against it, and while it asks a device that is gone it would hold this one up.
            self.deference.withdraw(self.roster.node);
        }
        let reply = match self.guard.may_vote() {
            Err(refusal) => proto::PreVoteReply {
                would_grant: false,
                reason: refusal.to_string(),
                wait_us: refusal.left().map_or(0, micros),
                goes_on: self.goes_on(),
            },
            Ok(()) if theirs < self.log.last_log_id() => {
                // Its turn, if it had one, can come to nothing any more.
                self.deference.release(caller);
                proto::PreVoteReply {
                    would_grant: false,
                    reason: "its log is older than this member's".into(),
                    wait_us: 0,
                    goes_on: self.goes_on(),
                }
            }
            Ok(()) => match self.deference.give_way(caller, patience) {
                Ok(()) => {
                    proto::PreVoteReply { would_grant: true, goes_on: self.goes_on(), ..Default::default() }
                }
                Err(left) => proto::PreVoteReply {
                    would_grant: false,
                    reason: "another candidate was first".into(),
                    wait_us: micros(left),
                    goes_on: self.goes_on(),
                },
            },
        };
        Ok(Response::new(reply))
    }

    async fn append(&self, request: Request<proto::AppendRequest>) -> Answer<proto::AppendReply> {
        use proto::append_reply::Outcome;
        let caller = caller(&request)?;
        let message = request.into_inner();
        plausible::append(&message, caller, self.term())?;
        let entries = message.entries.into_iter().map(wire::take_entry).collect::<Result<Vec<_>, _>>()?;
        let request = AppendEntriesRequest {
            vote: wire::take_vote(message.ballot)?,
            prev_log_id: message.prev.map(wire::take_log_id),
            leader_commit: message.committed.map(wire::take_log_id),
            entries,
        };
        let reply = self.raft.append_entries(request).await.map_err(|e| failed(&e))?;
        self.durable().await?;
        let (outcome, partial_none) = match reply {
            AppendEntriesResponse::Success => (Outcome::Success(true), false),
            AppendEntriesResponse::PartialSuccess(Some(id)) => {
                (Outcome::Partial(wire::put_log_id(&id)), false)
            }
            AppendEntriesResponse::PartialSuccess(None) => (Outcome::Partial(proto::LogId::default()), true),
            AppendEntriesResponse::Conflict => (Outcome::Conflict(true), false),
            AppendEntriesResponse::HigherVote(vote) => (Outcome::Higher(wire::put_vote(&vote)), false),
        };
        Ok(Response::new(proto::AppendReply { outcome: Some(outcome), partial_none }))
    }

    async fn snapshot(&self, request: Request<proto::SnapshotRequest>) -> Answer<proto::SnapshotReply> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        plausible::snapshot(&message, caller, self.term())?;
        let vote = wire::take_vote(message.ballot)?;
        let meta = wire::take_snapshot_meta(message.meta)?;
        let snapshot = Snapshot { meta, snapshot: Box::new(message.data.to_vec()) };
        let reply = self
            .raft
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(|e| Status::unavailable(words::stopped(&e)))?;
        self.durable().await?;
        Ok(Response::new(proto::SnapshotReply { ballot: Some(wire::put_vote(&reply.vote)) }))
    }

    type RenewStream = Pin<Box<dyn Stream<Item = Result<proto::RenewReply, Status>> + Send>>;

    async fn renew(
        &self,
        request: Request<tonic::Streaming<proto::RenewRequest>>,
    ) -> Answer<Self::RenewStream> {
        let caller = caller(&request)?;
        let (service, mut told) = (self.clone(), None);
        let answers = request.into_inner().map(move |question| {
            let mut reply = service.promise(caller, question?)?;
            let health = service.roster.health();
            if told.as_ref() != Some(&health) {
                reply.health = Some(health.clone());
                told = Some(health);
            }
            Ok(reply)
        });
        // A stream has no end of its own, and this member shall not wait for one.
        let until = self.stop.clone().cancelled_owned();
        Ok(Response::new(Box::pin(futures_util::StreamExt::take_until(answers, until))))
    }

    async fn propose(&self, request: Request<proto::ProposeRequest>) -> Answer<proto::ProposeReply> {
        caller(&request)?;
        let json = request.into_inner().command;
        plausible::command(&json)?;
        let command: Command = serde_json::from_slice(&json)
            .map_err(|e| Status::invalid_argument(format!("not a command: {e}")))?;
        if !command.travels() {
            return Err(Status::invalid_argument("only who leads claims"));
        }
        let outcome =
            self.proposer.propose_here(command).await.map_err(|e| Status::unavailable(e.to_string()))?;
        let outcome = serde_json::to_vec(&outcome).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(proto::ProposeReply { outcome: outcome.into() }))
    }

    async fn greet(&self, request: Request<proto::GreetRequest>) -> Answer<proto::GreetReply> {
        let caller = caller(&request)?;
        if let Some(device) = self.roster.device_of(caller) {
            self.roster.heard(caller, &device, request.into_inner().health);
        }
        Ok(Response::new(proto::GreetReply { health: Some(self.roster.health()) }))
    }
}
