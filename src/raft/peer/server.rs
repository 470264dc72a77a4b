//! Answers to the other members. Who does not belong here is refused first; votes pass the vote guard; promises and
//! pre-votes are answered from memory.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use openraft::{
    ServerState,
    error::RaftError,
    raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest},
};
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Request, Response, Status,
    service::{Interceptor, interceptor::InterceptedService},
};

use super::{Roster, client::MESSAGE_MAX, plausible, transport};
use crate::{
    clock::{Clock, Moment, micros},
    epoch::Epoch,
    id::{DeviceId, NodeId},
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
    },
    seal::{Receipt, Secret},
    timing::Timing,
};

/// What a caller says of itself is cut to this many bytes; names have at most 128.
const NAME_MAX: usize = 129;
const ANOTHER_STORE: &str =
    "came back with another store, so what it voted and promised is lost; see 'A damaged store'";
const REPLACED_STORE: &str = "came back with a store that was replaced by a newer one, such as an old copy of its data folder; \
                              empty that folder and start it again";
/// Where a refusal says which store of the caller's device is known here.
pub(super) const KNOWN_STORE: &str = "quorate-known-store";

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
        let porter = Porter(self.roster.clone());
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
            self.roster.heard(caller, &device, None);
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

/// Which member is calling.
#[derive(Debug, Clone, Copy)]
struct Caller(NodeId);

fn caller<T>(request: &Request<T>) -> Result<NodeId, Status> {
    let admitted = request.extensions().get::<Caller>();
    admitted.map(|caller| caller.0).ok_or_else(|| Status::internal("nobody looked at who is calling"))
}

/// Stands at the door.
#[derive(Clone)]
pub(crate) struct Porter(Arc<Roster>);

impl Interceptor for Porter {
    /// Lets a member in, and notes which one it is.
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let node = self.recognise(&request)?;
        if let Some(from) = request.extensions().get::<transport::From>() {
            from.recognised.store(true, Ordering::Relaxed);
        }
        request.extensions_mut().insert(Caller(node));
        Ok(request)
    }
}

impl Porter {
    /// Checks that the caller belongs here, and says which member it is.
    fn recognise(&self, request: &Request<()>) -> Result<NodeId, Status> {
        let roster = &self.0;
        let said = |key| {
            let text = request.metadata().get(key).and_then(|v| v.to_str().ok()).unwrap_or_default();
            // Whatever it is, it is kept and shown: no name is longer.
            text.get(..NAME_MAX).unwrap_or(text)
        };
        let (site, device, digest) = (said("quorate-site"), said("quorate-device"), said("quorate-digest"));
        let own = &roster.site;
        let known = DeviceId::new(device).ok().filter(|d| own.member(d).is_some());
        let mut another_store = None;
        let reason = match known {
            _ if site.is_empty() && device.is_empty() => {
                "it does not introduce itself as a sidecar".to_owned()
            }
            _ if site != own.id.as_str() => format!("it belongs to site {site:?}, this is site {}", own.id),
            None => format!("{device:?} is not in the member list of this site"),
            Some(_) if device == roster.me.as_str() => {
                format!("it calls itself {device}, which is this device")
            }
            Some(_) if digest != format!("{:016x}", own.digest()) => {
                let there = request.metadata().get("quorate-timing").and_then(|v| v.to_str().ok());
                let differences = there
                    .and_then(|json| serde_json::from_str::<Timing>(json).ok())
                    .map(|there| own.timing.differences(&there))
                    .unwrap_or_default();
                match differences.is_empty() {
                    true => format!("{device} was given another member list or other timing"),
                    false => format!("{device} was given other timing: {}", differences.join(", ")),
                }
            }
            Some(_) if !["", roster.me.as_str()].contains(&said("quorate-to-device")) => format!(
                "{device} takes this device, {}, for {}: device.id is wrong here, or an address in its site.members",
                roster.me,
                said("quorate-to-device"),
            ),
            Some(known) => match self.stores_fit(&known, &said) {
                Ok(node) => {
                    roster.heard(node, &known, None);
                    return Ok(node);
                }
                Err((reason, another)) => {
                    another_store = another;
                    format!("{device} {reason}")
                }
            },
        };
        let from = request.extensions().get::<transport::From>().map_or("unknown", |f| f.address.as_str());
        roster.refused(device, from, reason.clone());
        let mut status = Status::failed_precondition(format!("refused by {}: {reason}", roster.me));
        if let Some(known) = another_store.and_then(|store| format!("{store:016x}").parse().ok()) {
            status.metadata_mut().insert(KNOWN_STORE, known);
        }
        Err(status)
    }

    /// Which node the caller is, if it still has the store that it had, and means the store that this member has. A
    /// member of another version may leave any of it out.
    ///
    /// # Errors
    /// Why not, and the store that is known instead of the caller's.
    fn stores_fit<'a>(
        &self,
        device: &DeviceId,
        said: &impl Fn(&'static str) -> &'a str,
    ) -> Result<NodeId, (&'static str, Option<u64>)> {
        let number = |key| u64::from_str_radix(said(key), 16).ok();
        let its = number("quorate-store");
        let node = number("quorate-node").map_or(device.first_node(), NodeId);
        if node != device.first_node() && its.is_none_or(|store| node != device.later_node(store)) {
            return Err(("names a node that is none of its own", None));
        }
        // A device whose later store is a member never comes back as its first.
        let members = self.0.members();
        let instead = members.voter_of(device).filter(|_| !members.nodes.contains_key(&node));
        if let Some(voter) = instead.filter(|_| node == device.first_node()) {
            let store = members.nodes.get(&voter).and_then(|n| n.store);
            return Err((REPLACED_STORE, Some(store.unwrap_or_default())));
        }
        let known = self.0.known_store(node, its);
        if its.is_some() && known != its {
            return Err((ANOTHER_STORE, known));
        }
        let other_node = number("quorate-to-node").is_some_and(|to| to != self.0.node.0);
        let other_store = number("quorate-to-store").is_some_and(|to| to != self.0.store.number);
        if other_node || other_store {
            return Err(("knows another store of this device, whose data folder was replaced", None));
        }
        Ok(node)
    }
}

/// A refusal by the guard, as the candidate reads it.
fn refused(refusal: VoteRefusal) -> Status {
    Status::aborted(refusal.to_string())
}

fn failed(error: &RaftError<u64>) -> Status {
    Status::unavailable(error.to_string())
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
            let reply = raft.vote(request).await;
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
            .map_err(|e| Status::unavailable(e.to_string()))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::BootClock,
        id::{Incarnation, SiteId, StoreId},
        site::{Member, Role, Site},
        timing::{Settings, Timing},
    };

    /// The door of edge-2, whose store is number 2, in a site of three.
    fn porter() -> Porter {
        let name = |n: u8| DeviceId::new(format!("edge-{n}")).expect("a name");
        let member =
            |n: u8| Member { device: name(n), address: format!("10.0.0.{n}:7600"), role: Role::Voter };
        let site = Site {
            id: SiteId::new("plant-7").expect("a name"),
            members: vec![member(1), member(2), member(3)],
            timing: Timing::new(&Settings::default()).expect("consistent"),
        };
        Porter(Arc::new(Roster::new(
            site,
            name(2),
            Incarnation(1),
            StoreId { number: 2, later: false },
            Arc::new(BootClock),
        )))
    }

    /// A knock of `device`, whose store is number `store`, meant for `to` and its store `to_store`.
    fn knock(porter: &Porter, device: &str, store: &str, to: &str, to_store: &str) -> Result<NodeId, String> {
        let mut request = Request::new(());
        let digest = format!("{:016x}", porter.0.site.digest());
        for (key, value) in [
            ("quorate-site", "plant-7"),
            ("quorate-device", device),
            ("quorate-digest", digest.as_str()),
            ("quorate-store", store),
            ("quorate-to-device", to),
            ("quorate-to-store", to_store),
        ] {
            request.metadata_mut().insert(key, value.parse().expect("ASCII"));
        }
        porter.recognise(&request).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn a_member_is_let_in() {
        let node = knock(&porter(), "edge-1", "7", "edge-2", "2").expect("it belongs here");
        assert_eq!(node, DeviceId::new("edge-1").expect("a name").first_node());
    }

    #[test]
    fn who_answers_is_who_was_meant() {
        // Another device was given this device's name, or this one sits at another's address.
        let refused = knock(&porter(), "edge-1", "7", "edge-3", "").expect_err("it means another");
        assert!(refused.contains("takes this device, edge-2, for edge-3"), "{refused}");
        let refused = knock(&porter(), "edge-1", "7", "edge-2", "9").expect_err("it knows another store");
        assert!(refused.contains("knows another store of this device"), "{refused}");
    }

    #[test]
    fn a_later_store_is_another_node_and_the_first_never_comes_back() {
        let porter = porter();
        let (name, other) = ("edge-1", DeviceId::new("edge-3").expect("a name"));
        let device = DeviceId::new(name).expect("a name");
        let knock = |node: NodeId, store: u64| {
            let (node, store) = (node.to_string(), format!("{store:x}"));
            let said = |key| match key {
                "quorate-node" => node.as_str(),
                "quorate-store" => store.as_str(),
                _ => "",
            };
            porter.stores_fit(&device, &said)
        };
        assert_eq!(knock(device.later_node(7), 7), Ok(device.later_node(7)));
        for foreign in [device.later_node(8), other.first_node()] {
            knock(foreign, 7).expect_err("it is none of its nodes");
        }
        // What the site has noted counts, whatever this sidecar remembers.
        let node = |store| crate::raft::members::Node { device: device.clone(), store: Some(store) };
        let members = |id: NodeId, store| crate::raft::members::Members {
            voters: vec![[id].into()],
            nodes: [(id, node(store))].into(),
        };
        porter.0.now_members(&members(device.first_node(), 1));
        assert_eq!(knock(device.first_node(), 2).map_err(|(_, known)| known), Err(Some(1)));
        assert_eq!(knock(device.first_node(), 1), Ok(device.first_node()));
        porter.0.now_members(&members(device.later_node(7), 7));
        assert_eq!(knock(device.first_node(), 2).map_err(|(_, known)| known), Err(Some(7)));
        assert_eq!(knock(device.first_node(), 1).map_err(|(_, known)| known), Err(Some(7)));
        assert_eq!(knock(device.later_node(7), 7), Ok(device.later_node(7)));
    }

    #[test]
    fn one_name_has_one_store() {
        let porter = porter();
        knock(&porter, "edge-1", "7", "edge-2", "2").expect("the first is taken at its word");
        let refused = knock(&porter, "edge-1", "8", "edge-2", "2").expect_err("another store");
        assert!(refused.contains("came back with another store"), "{refused}");
        knock(&porter, "edge-1", "7", "edge-2", "2").expect("the first is still the one");
        knock(&porter, "edge-3", "8", "edge-2", "2").expect("each has its own");
    }
}
