//! Answers to the other members. Who does not belong here is refused first; votes pass the vote guard; promises and
//! pre-votes are answered from memory.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use openraft::{
    error::RaftError,
    raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest},
};
use tokio_util::task::TaskTracker;
use tonic::{
    Request, Response, Status,
    service::{Interceptor, interceptor::InterceptedService},
};

use super::{Roster, client::MESSAGE_MAX, plausible, transport};
use crate::{
    clock::{Clock, Moment},
    epoch::Epoch,
    id::{DeviceId, NodeId},
    ownership::command::Command,
    raft::{
        Proposer,
        deference::Deference,
        log::LogStore,
        types::{Raft, Snapshot, ballot},
        vote_guard::{Ballot, VoteGuard, VoteRefusal},
        vouch::Vouch,
        wire::{self, proto},
    },
};

/// What a caller says of itself is cut to this many bytes; names have at most 128.
const NAME_MAX: usize = 129;

/// The gRPC service. Clones share everything.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) roster: Arc<Roster>,
    pub(crate) raft: Raft,
    pub(crate) log: LogStore,
    pub(crate) guard: VoteGuard,
    pub(crate) vouch: Vouch,
    pub(crate) deference: Deference,
    pub(crate) proposer: Proposer,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tasks: TaskTracker,
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

    /// The node's highest term, which bounds what others may come with.
    fn term(&self) -> u64 {
        self.guard.highest().term
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
        let known = DeviceId::new(device).ok().and_then(|d| own.member(&d).map(|m| m.node_id()));
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
                format!("{device} was given another member list or other timing")
            }
            Some(_) if !["", roster.me.as_str()].contains(&said("quorate-to-device")) => format!(
                "{device} takes this device, {}, for {}: device.id is wrong here, or an address in its site.members",
                roster.me,
                said("quorate-to-device"),
            ),
            Some(node) => match self.stores_fit(node, said("quorate-store"), said("quorate-to-store")) {
                Ok(()) => {
                    roster.heard(node, None);
                    return Ok(node);
                }
                Err(reason) => format!("{device} {reason}"),
            },
        };
        let from = request.extensions().get::<transport::From>().map_or("unknown", |f| f.address.as_str());
        roster.refused(device, from, reason.clone());
        Err(Status::failed_precondition(format!("refused by {}: {reason}", roster.me)))
    }

    /// Whether the caller still has the store that it had, and means the store that this member has. A member of
    /// another version may leave either out.
    fn stores_fit(&self, node: NodeId, its: &str, to: &str) -> Result<(), &'static str> {
        let number = |text| u64::from_str_radix(text, 16).ok();
        if let Some(its) = number(its)
            && self.0.known_store(node, Some(its)) != Some(its)
        {
            return Err(
                "came back with another store, so what it voted and promised is lost; see 'A damaged store'",
            );
        }
        match number(to) {
            Some(to) if to != self.0.store => {
                Err("knows another store of this device, whose data folder was replaced")
            }
            _ => Ok(()),
        }
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
        let vote = wire::take_vote(message.ballot)?;
        let ticket = self.guard.begin_vote(Some(ballot(&vote))).map_err(refused)?;
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
        let patience = Duration::from_micros(message.patience_us);
        let theirs = message.last_log_id.map(wire::take_log_id);
        let reply = match self.guard.may_vote() {
            Err(refusal) => proto::PreVoteReply {
                would_grant: false,
                reason: refusal.to_string(),
                wait_us: refusal.left().map_or(0, micros),
            },
            Ok(()) if theirs < self.log.last_log_id() => proto::PreVoteReply {
                would_grant: false,
                reason: "its log is older than this member's".into(),
                wait_us: 0,
            },
            Ok(()) => match self.deference.give_way(caller, patience) {
                Ok(()) => proto::PreVoteReply { would_grant: true, ..Default::default() },
                Err(left) => proto::PreVoteReply {
                    would_grant: false,
                    reason: "another candidate was first".into(),
                    wait_us: micros(left),
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
        Ok(Response::new(proto::SnapshotReply { ballot: Some(wire::put_vote(&reply.vote)) }))
    }

    async fn renew(&self, request: Request<proto::RenewRequest>) -> Answer<proto::RenewReply> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        let from = plausible::ballot(message.ballot, caller, self.term())?;
        let epoch =
            Epoch::new(message.epoch).ok_or_else(|| Status::invalid_argument("the epoch is out of range"))?;
        let ballot = Ballot { term: from.term, node: caller };
        let promised = self.guard.promise(ballot, epoch, Duration::from_micros(message.refusal_us));
        if promised.is_ok() {
            let asked = Moment::from_nanos(message.echo_ns);
            // No lease has more left than its whole length.
            let left = Duration::from_micros(message.lease_left_us).min(self.roster.site.timing.hold());
            self.vouch.heard(self.clock.now(), caller, epoch, asked, left);
        }
        let applied = self.raft.metrics().borrow().last_applied.map_or(0, |id| id.index);
        Ok(Response::new(proto::RenewReply {
            promised: promised.is_ok(),
            reason: promised.err().map(|e| e.to_string()).unwrap_or_default(),
            applied_index: applied,
            health: Some(self.roster.health()),
            echo_ns: self.clock.now().as_nanos(),
        }))
    }

    async fn propose(&self, request: Request<proto::ProposeRequest>) -> Answer<proto::ProposeReply> {
        caller(&request)?;
        let json = request.into_inner().command;
        plausible::command(&json)?;
        let command: Command = serde_json::from_slice(&json)
            .map_err(|e| Status::invalid_argument(format!("not a command: {e}")))?;
        let outcome =
            self.proposer.propose_here(command).await.map_err(|e| Status::unavailable(e.to_string()))?;
        let outcome = serde_json::to_vec(&outcome).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(proto::ProposeReply { outcome: outcome.into() }))
    }

    async fn greet(&self, request: Request<proto::GreetRequest>) -> Answer<proto::GreetReply> {
        let caller = caller(&request)?;
        self.roster.heard(caller, request.into_inner().health);
        Ok(Response::new(proto::GreetReply { health: Some(self.roster.health()) }))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::BootClock,
        id::{Incarnation, SiteId},
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
        Porter(Arc::new(Roster::new(site, name(2), Incarnation(1), 2, Arc::new(BootClock))))
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
        assert_eq!(node, DeviceId::new("edge-1").expect("a name").node_id());
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
    fn one_name_has_one_store() {
        let porter = porter();
        knock(&porter, "edge-1", "7", "edge-2", "2").expect("the first is taken at its word");
        let refused = knock(&porter, "edge-1", "8", "edge-2", "2").expect_err("another store");
        assert!(refused.contains("came back with another store"), "{refused}");
        knock(&porter, "edge-1", "7", "edge-2", "2").expect("the first is still the one");
        knock(&porter, "edge-3", "8", "edge-2", "2").expect("each has its own");
    }
}
