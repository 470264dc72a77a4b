//! Calls to the other members: one kept connection per peer, a deadline on every call.
//!
//! The connection is opened when it is first needed and again after it broke, or after a call on it was not answered in
//! time: a peer that vanished without closing (power loss) and came back is reached by the next call. HTTP/2 pings
//! notice that too, where nobody calls. A call that may wait for the other's disk is given long; but while it waits, a
//! greeting now and then, answered from memory, tells a slow disk from a connection that is dead. Renewals have a
//! connection of their own (`line.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use openraft::{
    error::{Fatal, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory},
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};
use tokio::sync::watch;
use tonic::{
    Code, Request, Status,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint, Uri},
};

use super::{Roster, line::Line, plausible, porter::KNOWN_STORE, transport::DialerHandle};
use crate::{
    id::{DeviceId, NodeId},
    raft::{
        attest::Attest,
        log::Ahead,
        types::{Device, Snapshot, Types, Vote},
        wire::{self, proto},
    },
};

/// Within which a vote must be answered: two disks have to write in that time.
pub(crate) const VOTE_LIMIT: Duration = Duration::from_secs(5);
/// Within which an append must be answered: the follower's disk has to write in that time.
pub(crate) const APPEND_LIMIT: Duration = Duration::from_secs(5);
/// Within which a snapshot must be answered.
pub(crate) const SNAPSHOT_LIMIT: Duration = Duration::from_secs(20);
/// At the least so long a call waits, and then a greeting, before its connection counts as dead.
const SIGN_OF_LIFE: Duration = Duration::from_millis(250);
/// At the most.
const SIGN_OF_LIFE_MAX: Duration = Duration::from_secs(2);
/// The largest message between members. A record with full history is some 30 kB.
pub(crate) const MESSAGE_MAX: usize = 4 << 20;

/// Says who is calling, on every call.
#[derive(Debug, Clone)]
pub(crate) struct Introduction {
    site: AsciiMetadataValue,
    device: AsciiMetadataValue,
    digest: AsciiMetadataValue,
    /// Only so that a difference can be named.
    timing: AsciiMetadataValue,
    store: AsciiMetadataValue,
    node: AsciiMetadataValue,
}

impl Introduction {
    fn new(roster: &Roster) -> Result<Introduction, tonic::metadata::errors::InvalidMetadataValue> {
        Ok(Introduction {
            site: roster.site.id.as_str().parse()?,
            device: roster.me.as_str().parse()?,
            digest: format!("{:016x}", roster.site.digest()).parse()?,
            timing: serde_json::to_string(&roster.site.timing).unwrap_or_default().parse()?,
            store: format!("{:016x}", roster.store.number).parse()?,
            node: format!("{}", roster.node).parse()?,
        })
    }
}

impl Interceptor for Introduction {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert("quorate-site", self.site.clone());
        metadata.insert("quorate-device", self.device.clone());
        metadata.insert("quorate-digest", self.digest.clone());
        metadata.insert("quorate-timing", self.timing.clone());
        metadata.insert("quorate-store", self.store.clone());
        metadata.insert("quorate-node", self.node.clone());
        Ok(request)
    }
}

type Stub = proto::peer_client::PeerClient<InterceptedService<Channel, Introduction>>;

/// How one other device is reached.
#[derive(Clone)]
pub(crate) struct Way {
    endpoint: Endpoint,
    dialer: DialerHandle,
    address: String,
    introduction: Introduction,
}

impl Way {
    /// A new connection, which is dialled when it is first used.
    pub(super) fn stub(&self) -> Stub {
        let (dialer, address) = (self.dialer.clone(), self.address.clone());
        let connector = tower::service_fn(move |_: Uri| {
            let dialled = dialer.dial(address.clone());
            async move { dialled.await.map(hyper_util::rt::TokioIo::new) }
        });
        let channel = self.endpoint.connect_with_connector_lazy(connector);
        proto::peer_client::PeerClient::with_interceptor(channel, self.introduction.clone())
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }
}

/// One node of another device. Clones share the connection, which all nodes of a device do.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(super) node: NodeId,
    device: DeviceId,
    pub(super) way: Arc<Way>,
    stub: Arc<Mutex<Stub>>,
    /// Where it is asked for promises.
    pub(crate) line: Line,
    pub(super) roster: Arc<Roster>,
}

macro_rules! call {
    ($peer:expr, $method:ident, $message:expr, $limit:expr) => {
        call!($peer, $method, $message, $limit, at_once)
    };
    ($peer:expr, $method:ident, $message:expr, $limit:expr, $awaited:ident) => {{
        let peer: &Peer = $peer;
        let mut stub = peer.stub();
        let same = stub.clone();
        let asked = peer.roster.clock.now();
        let call = stub.$method(peer.addressed($message));
        let answer = tokio::time::timeout($limit, peer.$awaited(same, call)).await;
        let result = match answer {
            Ok(Some(Ok(answer))) => Ok(answer.into_inner()),
            Ok(Some(Err(status))) => Err(status),
            Ok(None) | Err(_) => {
                peer.dial_anew();
                Err(Status::deadline_exceeded("no answer in time"))
            }
        };
        let refused = matches!(&result, Err(status) if status.code() == Code::FailedPrecondition);
        if let Err(status) = &result
            && status.metadata().contains_key(KNOWN_STORE)
        {
            peer.roster.told_of_another_store(&peer.device);
        }
        peer.roster.answered(peer.node, asked, result.as_ref().map(|_| ()).map_err(describe), refused);
        result
    }};
}

impl Peer {
    fn stub(&self) -> Stub {
        self.stub.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The next call gets a new connection. Calls that are under way keep the old one.
    fn dial_anew(&self) {
        *self.stub.lock().unwrap_or_else(PoisonError::into_inner) = self.way.stub();
    }

    /// An answer from memory needs nothing but time.
    async fn at_once<T>(&self, _: Stub, call: impl Future<Output = T>) -> Option<T> {
        Some(call.await)
    }

    /// An answer that may have to wait for a disk, or for other members: waits as long as the connection shows signs of
    /// life. `None` once it does not.
    async fn in_its_time<T>(&self, mut same: Stub, call: impl Future<Output = T>) -> Option<T> {
        let pause = self.roster.site.timing.hold().max(SIGN_OF_LIFE);
        tokio::pin!(call);
        loop {
            let sign = async {
                tokio::time::sleep(pause).await;
                let usual = self.roster.contact(&self.device).and_then(|c| c.round_trip).unwrap_or_default();
                let patience = (usual * 4).clamp(pause, SIGN_OF_LIFE_MAX.max(pause));
                let greeting = proto::GreetRequest { health: Some(self.roster.health()) };
                tokio::time::timeout(patience, same.greet(self.addressed(greeting))).await.is_ok()
            };
            tokio::select! {
                biased;
                answer = &mut call => return Some(answer),
                lives = sign => if !lives { return None },
            }
        }
    }

    /// The message, for this node and for the store that it is known to have, and for no other: what answers at an
    /// address may be anybody. Who is no member yet knows no nodes, only devices.
    pub(super) fn addressed<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Ok(device) = self.device.as_str().parse() {
            request.metadata_mut().insert("quorate-to-device", device);
        }
        if self.roster.members().nodes.contains_key(&self.node)
            && let Ok(node) = self.node.to_string().parse()
        {
            request.metadata_mut().insert("quorate-to-node", node);
        }
        let known = self.roster.known_store(self.node, None);
        if let Some(store) = known.and_then(|store| format!("{store:016x}").parse().ok()) {
            request.metadata_mut().insert("quorate-to-store", store);
        }
        request
    }

    pub(crate) async fn vote(&self, message: proto::VoteRequest) -> Result<proto::VoteReply, Status> {
        call!(self, vote, message, VOTE_LIMIT, in_its_time)
    }

    pub(crate) async fn pre_vote(
        &self,
        message: proto::VoteRequest,
        limit: Duration,
    ) -> Result<proto::PreVoteReply, Status> {
        call!(self, pre_vote, message, limit)
    }

    pub(crate) async fn append(&self, message: proto::AppendRequest) -> Result<proto::AppendReply, Status> {
        call!(self, append, message, APPEND_LIMIT, in_its_time)
    }

    pub(crate) async fn snapshot(
        &self,
        message: proto::SnapshotRequest,
    ) -> Result<proto::SnapshotReply, Status> {
        call!(self, snapshot, message, SNAPSHOT_LIMIT, in_its_time)
    }

    /// Who answered says which node it is.
    pub(super) fn heard(&self, health: Option<proto::Health>) {
        let named = health.as_ref().filter(|h| h.node != 0);
        let fits = named.is_none_or(|h| {
            [self.device.first_node(), self.device.later_node(h.store)].contains(&NodeId(h.node))
        });
        if fits {
            self.roster.heard(named.map_or(self.node, |h| NodeId(h.node)), &self.device, health.clone());
        }
    }

    pub(crate) async fn propose(
        &self,
        message: proto::ProposeRequest,
        limit: Duration,
    ) -> Result<proto::ProposeReply, Status> {
        call!(self, propose, message, limit, in_its_time)
    }

    pub(crate) async fn greet(&self, limit: Duration) -> Result<proto::GreetReply, Status> {
        let message = proto::GreetRequest { health: Some(self.roster.health()) };
        let reply = call!(self, greet, message, limit)?;
        self.heard(reply.health.clone());
        Ok(reply)
    }
}

/// A status as one readable line.
pub(super) fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    if text.is_empty() {
        text = status.code().description().to_owned();
    }
    let mut source = std::error::Error::source(status);
    while let Some(deeper) = source {
        let line = deeper.to_string();
        if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
        source = deeper.source();
    }
    text
}

/// Who refused or did not answer in an election: its term, the nodes, the last reason.
pub(crate) type Rejections = (u64, BTreeSet<NodeId>, String);

/// Each device's ways: for calls, and the stub on it.
type Ways = BTreeMap<DeviceId, (Arc<Way>, Arc<Mutex<Stub>>)>;

/// The ways to all other members.
#[derive(Clone)]
pub(crate) struct Peers {
    roster: Arc<Roster>,
    ways: Arc<Ways>,
    lines: Arc<Mutex<BTreeMap<NodeId, Line>>>,
    rejections: Arc<watch::Sender<Rejections>>,
    /// What this member's next election is expected to take, in microseconds.
    patience_us: Arc<AtomicU64>,
    attest: Attest,
    /// What openraft believes to be on the own disk, and is not yet.
    ahead: Ahead,
}

impl Peers {
    /// Prepares a connection to every other member. Nothing is dialled yet.
    pub(crate) fn new(
        roster: &Arc<Roster>,
        dialer: &DialerHandle,
        attest: Attest,
        ahead: Ahead,
    ) -> anyhow::Result<Peers> {
        let introduction = Introduction::new(roster)?;
        let mut ways = BTreeMap::new();
        for member in roster.site.members.iter().filter(|m| m.device != roster.me) {
            let endpoint = Endpoint::from_shared(format!("http://{}", member.address))?
                .tcp_nodelay(true)
                .http2_keep_alive_interval(Duration::from_secs(3))
                .keep_alive_timeout(Duration::from_secs(1))
                .keep_alive_while_idle(true);
            let (dialer, address) = (dialer.clone(), member.address.clone());
            let way = Arc::new(Way { endpoint, dialer, address, introduction: introduction.clone() });
            let stub = Arc::new(Mutex::new(way.stub()));
            ways.insert(member.device.clone(), (way, stub));
        }
        Ok(Peers {
            roster: roster.clone(),
            ways: Arc::new(ways),
            lines: Arc::default(),
            rejections: Arc::default(),
            patience_us: Arc::default(),
            attest,
            ahead,
        })
    }

    /// The way to one node; `None` for this one and for strangers.
    pub(crate) fn get(&self, node: NodeId) -> Option<Peer> {
        self.way(node, self.roster.device_of(node)?)
    }

    fn way(&self, node: NodeId, device: DeviceId) -> Option<Peer> {
        let (way, stub) = self.ways.get(&device)?.clone();
        // A line is addressed to one node: two of one device are asked apart.
        let line = self.lines().entry(node).or_default().clone();
        Some(Peer { node, device, way, stub, line, roster: self.roster.clone() })
    }

    /// The rejections of the newest election that this member began.
    pub(crate) fn rejections(&self) -> watch::Receiver<Rejections> {
        self.rejections.subscribe()
    }

    /// Says how long the election that begins now is expected to take; told to the voters.
    pub(crate) fn expect(&self, patience: Duration) {
        self.patience_us.store(u64::try_from(patience.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// A request for a vote as far as it is the same for every voter: how long the candidate needs, and what makes
    /// them believe that they may vote.
    pub(crate) fn request(&self) -> proto::VoteRequest {
        let proof = self.attest.proof();
        proto::VoteRequest {
            patience_us: self.patience_us.load(Ordering::Relaxed),
            receipt_epoch: proof.map_or(0, |proof| proof.epoch.get()),
            receipt_secret: proof.map_or_else(Default::default, |p| p.secret.as_bytes().to_vec().into()),
            ..Default::default()
        }
    }

    /// All other nodes of the membership, learners included.
    pub(crate) fn all(&self) -> Vec<(NodeId, Peer)> {
        let members = self.roster.members();
        // Whoever is no member any more is asked nothing.
        self.lines().retain(|node, _| members.nodes.contains_key(node));
        members.nodes.keys().filter_map(|node| Some((*node, self.get(*node)?))).collect()
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<NodeId, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Network;

    async fn new_client(&mut self, target: u64, device: &Device) -> Network {
        // The membership that openraft is about to use may be newer than the roster's.
        let device = DeviceId::new(device.device.as_str()).ok();
        let peer = device.and_then(|device| self.way(NodeId(target), device));
        Network { peer, peers: self.clone() }
    }
}

/// One member as openraft calls it.
pub(crate) struct Network {
    peer: Option<Peer>,
    peers: Peers,
}

impl Network {
    fn peer(&self) -> Result<&Peer, Unreachable> {
        self.peer
            .as_ref()
            .ok_or_else(|| Unreachable::new(&std::io::Error::other("not a member of this site")))
    }

    fn rejected(&self, term: u64, why: String) {
        let Some(node) = self.peer.as_ref().map(|peer| peer.node) else { return };
        self.peers.rejections.send_modify(|(of, nodes, last)| {
            if *of != term {
                nodes.clear();
            }
            nodes.insert(node);
            *of = term;
            *last = why;
        });
    }
}

/// Every failure looks the same to openraft: not reachable now, try again after a pause.
fn unreachable(error: &(impl std::error::Error + 'static)) -> Unreachable {
    Unreachable::new(error)
}

/// The vote that a member answers with to one of this term.
fn answered(ballot: Option<proto::Ballot>, term: u64) -> Result<Vote, Unreachable> {
    let ballot = plausible::answer(ballot, term).map_err(|e| unreachable(&e))?;
    wire::take_vote(ballot).map_err(|e| unreachable(&e))
}

type CallError = RPCError<u64, Device, RaftError<u64>>;

impl RaftNetwork<Types> for Network {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, CallError> {
        use proto::append_reply::Outcome;
        let entries = request.entries.iter().map(wire::put_entry).collect::<Result<Vec<_>, _>>();
        let term = request.vote.leader_id.term;
        let message = proto::AppendRequest {
            ballot: Some(wire::put_vote(&request.vote)),
            prev: request.prev_log_id.as_ref().map(wire::put_log_id),
            committed: request.leader_commit.as_ref().map(wire::put_log_id),
            entries: entries.map_err(|e| unreachable(&e))?,
        };
        // The others may apply what they are told is committed.
        if let Some(committed) = &request.leader_commit {
            self.peers.ahead.up_to(committed.index).await.map_err(|e| unreachable(&e))?;
        }
        let reply = self.peer()?.append(message).await.map_err(|e| unreachable(&e))?;
        Ok(match reply.outcome {
            Some(Outcome::Success(_)) => AppendEntriesResponse::Success,
            Some(Outcome::Partial(id)) => {
                AppendEntriesResponse::PartialSuccess((!reply.partial_none).then(|| wire::take_log_id(id)))
            }
            Some(Outcome::Conflict(_)) => AppendEntriesResponse::Conflict,
            Some(Outcome::Higher(ballot)) => AppendEntriesResponse::HigherVote(answered(Some(ballot), term)?),
            None => return Err(unreachable(&wire::Error::Missing("outcome")).into()),
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, CallError> {
        let message = proto::VoteRequest {
            ballot: Some(wire::put_vote(&request.vote)),
            last_log_id: request.last_log_id.as_ref().map(wire::put_log_id),
            ..self.peers.request()
        };
        let term = request.vote.leader_id.term;
        let reply = match self.peer()?.vote(message).await {
            Ok(reply) => reply,
            Err(status) => {
                self.rejected(term, describe(&status));
                return Err(unreachable(&status).into());
            }
        };
        // Counted together with the own vote, which openraft believes to be on the disk. (It would wait at its next write.)
        self.peers.ahead.all().await.map_err(|e| unreachable(&e))?;
        let vote = answered(reply.ballot, term).inspect_err(|e| self.rejected(term, e.to_string()))?;
        if !reply.granted {
            self.rejected(term, format!("refused: the voter is at {vote}"));
        }
        Ok(VoteResponse {
            vote,
            vote_granted: reply.granted,
            last_log_id: reply.last_log_id.map(wire::take_log_id),
        })
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        _cancel: impl Future<Output = ReplicationClosed> + openraft::OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<Types, Fatal<u64>>> {
        let message = proto::SnapshotRequest {
            ballot: Some(wire::put_vote(&vote)),
            meta: Some(wire::put_snapshot_meta(&snapshot.meta)),
            data: (*snapshot.snapshot).into(),
        };
        let reply = self.peer()?.snapshot(message).await.map_err(|e| unreachable(&e))?;
        Ok(SnapshotResponse { vote: answered(reply.ballot, vote.leader_id.term)? })
    }

    fn backoff(&self) -> Backoff {
        let pauses = [20, 50, 100, 200].into_iter().chain(std::iter::repeat(500));
        Backoff::new(pauses.map(Duration::from_millis))
    }
}
