//! The group as everybody else sees it: propose, promise, campaign, watch.
//!
//! openraft decides what is committed. When to campaign, whom to promise what, and what that is worth is decided by the
//! callers in `reconcile/`; this file only makes sure that no road to leadership leads around the vote guard.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    time::Duration,
};

use openraft::{
    ChangeMembers,
    error::{ClientWriteError, RaftError},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Server;
use tower::util::MapResponseLayer;

use super::{
    attest::Attest,
    deference::Deference,
    log::{Disk, DiskFailure, InOrder, LogStore, Owner, Watched, load_vote, paces},
    machine::{Applied, Machine},
    members::Step,
    peer::{
        Roster,
        client::{MESSAGE_MAX, Peers},
        probation::Heed,
        server::Service,
        transport::{DialerHandle, Incoming},
    },
    role::{Role, follow},
    types::{self, Device, LogId, Raft},
    vote_guard::{Ballot, Bar, VoteGuard},
    vouch::{Echo, Vouch, Vouched},
    widest::Widest,
    wire::proto,
    words,
};
use crate::{
    clock::{Clock, Moment, micros},
    epoch::Epoch,
    id::{DeviceId, NodeId},
    ownership::{
        command::{Command, Outcome},
        record::Record,
    },
    seal::{MAGIC, Receipt},
    timing::Timing,
};

/// How long a greeting may take that is not waited for.
const GREETING: Duration = Duration::from_millis(500);

/// Why a command was not executed. Whether it will be is not known after [`ProposeError::NoAnswer`].
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// No leader is known.
    #[error("no leader is known: this device does not hear from a majority of the site")]
    NoLeader,
    /// The leader did not answer in time.
    #[error("the site did not commit it in time; it may still happen")]
    NoAnswer,
    /// Raft has stopped.
    #[error("consensus has stopped on this device: {0}")]
    Stopped(String),
    /// The leader refused the call.
    #[error("{0}")]
    Refused(String),
}

/// A member's answer to a renewal.
#[derive(Debug, Clone)]
pub struct Renewed {
    /// Who answered.
    pub node: NodeId,
    /// The ballot and the epoch that was asked for.
    pub ballot: Ballot,
    /// See `ballot`.
    pub epoch: Epoch,
    /// When the question was prepared.
    pub asked: Moment,
    /// Until when the owner may act by this promise, if it is one.
    pub until: Moment,
    /// Whether it promised; else why not.
    pub promised: Result<(), String>,
    /// Its clock, to be sent back with the next question; none of this member itself.
    pub echo: Option<Echo>,
    /// How far it has applied the log.
    pub applied: u64,
}

/// What a renewal asks.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// The ballot that this member leads with.
    pub ballot: Ballot,
    /// The ownership that the promise is for; [`Epoch::ZERO`] before this leader has one.
    pub epoch: Epoch,
    /// When the question was prepared. Read before the call.
    pub asked: Moment,
    /// The timing in use then: what it asks for, and what it is worth.
    pub timing: Timing,
    /// The end of the lease, if one is held.
    pub act_until: Option<Moment>,
    /// How far the record is applied here.
    pub applied: u64,
}

/// What a group is started with.
pub struct Parts {
    /// Who is who.
    pub roster: Arc<Roster>,
    /// The disk, opened and checked.
    pub disk: Arc<dyn Disk>,
    /// How long not to vote after this start.
    pub boot_refusal: Duration,
    /// How other members are reached.
    pub dialer: DialerHandle,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Where tasks are spawned.
    pub tasks: TaskTracker,
}

/// Executes commands here, if this member leads.
#[derive(Clone)]
pub(crate) struct Proposer(Raft);

impl Proposer {
    /// Commits and applies a command. Waits as long as it takes.
    ///
    /// What no follower would take is refused before it is in the log, from which nothing can be taken out again.
    pub(crate) async fn propose_here(&self, command: Command) -> Result<Outcome, ProposeError> {
        let json = serde_json::to_vec(&command).map_err(|e| ProposeError::Refused(e.to_string()))?;
        super::peer::plausible::command(&json)
            .map_err(|status| ProposeError::Refused(status.message().to_owned()))?;
        match self.0.client_write(command).await {
            Ok(reply) => Ok(reply.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(ProposeError::NoLeader),
            Err(RaftError::APIError(e)) => Err(ProposeError::Refused(words::refused(&e))),
            Err(RaftError::Fatal(e)) => Err(ProposeError::Stopped(words::stopped(&e))),
        }
    }
}

/// One member of the group. Clones share everything.
#[derive(Clone)]
pub struct Group {
    pub(super) raft: Raft,
    pub(super) guard: VoteGuard,
    pub(super) peers: Peers,
    pub(super) roster: Arc<Roster>,
    pub(super) log: LogStore,
    vouch: Vouch,
    pub(super) deference: Deference,
    attest: Attest,
    machine: Machine,
    pub(super) role: watch::Receiver<Role>,
    disk_failed: watch::Receiver<Option<DiskFailure>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) tasks: TaskTracker,
    boot_refusal: Duration,
}

impl Group {
    /// Starts this member on its disk. It votes for nobody before `boot_refusal` is over.
    ///
    /// # Errors
    /// If the disk cannot be read, or holds something that does not fit.
    pub async fn start(parts: Parts) -> anyhow::Result<Group> {
        let Parts { roster, disk, boot_refusal, dialer, clock, tasks } = parts;
        let mut contents = disk.contents()?;
        let me = roster.node;
        // Who led before its restart leads no more: openraft would have it go on in the same term, where it may give
        // another entry the number of one that it sent to others and does not have itself.
        if let Some(vote) = contents.vote.as_mut().filter(|vote| vote.node == me.0) {
            vote.committed = false;
        }
        let mut voted = contents.vote.map(|v| types::ballot(&load_vote(v))).unwrap_or_default();
        let (configured, paces) = (roster.site.timing, paces(&contents)?);
        let mut boot_refusal = boot_refusal.max(paces.widest());
        if contents.amnesia.is_some() {
            // What was agreed may be lost as well: as wide as it can have been.
            boot_refusal = boot_refusal.max(configured.stretched(u32::MAX).refusal());
        }
        // Who knows that it lost a store is another node, whose votes nobody counts before the membership says so.
        let forgot = contents.amnesia.as_ref().filter(|_| !roster.store.later);
        if let Some(lost) = forgot {
            voted = voted.max(Ballot { term: lost.term, node: NodeId(0) });
        }
        let guard = VoteGuard::new(clock.clone(), configured.refusal(), boot_refusal, voted);
        if forgot.is_some() {
            guard.bar(Bar::Amnesia);
        }
        let watched = Watched::new(disk, guard.clone());
        let disk_failed = watched.failed();
        let disk: Arc<dyn Disk> = Arc::new(InOrder::new(Arc::new(watched), &contents));
        let widest = Widest::new(paces, guard.clone());
        let owner =
            Owner { node: roster.node.0, alone: roster.site.members.len() == 1, tasks: tasks.clone() };
        let log =
            LogStore::new(disk.clone(), &contents, guard.clone(), widest.clone(), clock.clone(), owner)?;
        let empty = (Record::new(&roster.site), configured);
        let machine = Machine::new(disk, &contents, guard.clone(), widest, log.ahead(), empty)?;
        let attest = Attest::new(machine.watch(), guard.clone(), roster.site.digest());
        let peers = Peers::new(&roster, &dialer, attest.clone(), log.ahead())?;
        let config = Arc::new(types::config(roster.site.id.as_str()));
        let raft = Raft::new(me.0, config, peers.clone(), log.clone(), machine.clone())
            .await
            .map_err(|e| io::Error::other(words::stopped(&e)))?;
        let role = follow(&raft, &machine, &roster, &tasks);
        let (vouch, deference) = (Vouch::new(clock.now()), Deference::new(clock.clone()));
        Ok(Group {
            raft,
            guard,
            peers,
            roster,
            log,
            vouch,
            deference,
            attest,
            machine,
            role,
            disk_failed,
            clock,
            tasks,
            boot_refusal,
        })
    }

    /// Answers the other members until `stop`.
    ///
    /// # Errors
    /// What the transport reported.
    pub async fn serve(
        &self,
        incoming: Incoming,
        stop: CancellationToken,
    ) -> Result<(), tonic::transport::Error> {
        let service = Service {
            roster: self.roster.clone(),
            raft: self.raft.clone(),
            log: self.log.clone(),
            guard: self.guard.clone(),
            vouch: self.vouch.clone(),
            deference: self.deference.clone(),
            attest: self.attest.clone(),
            machine: self.machine.clone(),
            proposer: Proposer(self.raft.clone()),
            clock: self.clock.clone(),
            tasks: self.tasks.clone(),
            stop: stop.clone(),
        };
        let attest = self.attest.clone();
        let heed: Heed = Arc::new(move |line| attest.hear_line(line));
        let incoming = incoming.map(move |connection| connection.map(|c| c.heeding(MAGIC, heed.clone())));
        Server::builder()
            // Only so that the remains of lost members do not pile up; who calls pings more often.
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .http2_keepalive_timeout(Some(Duration::from_secs(2)))
            .http2_max_header_list_size(16 * 1024)
            .http2_max_pending_accept_reset_streams(Some(20))
            .max_concurrent_streams(64)
            .max_frame_size(Some(64 << 10))
            .initial_stream_window_size(Some(u32::try_from(MESSAGE_MAX).unwrap_or(u32::MAX)))
            .layer(MapResponseLayer::new(undated))
            .add_service(service.into_server())
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await
    }

    /// Spawns a task that leaving waits for.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Who is who, and when they were heard.
    pub fn roster(&self) -> &Arc<Roster> {
        &self.roster
    }

    /// The guard that votes pass.
    pub fn guard(&self) -> &VoteGuard {
        &self.guard
    }

    /// The timing in use, as far as the record is applied here.
    pub fn timing(&self) -> Timing {
        self.machine.timing()
    }

    /// How long this member votes for nobody after its start.
    pub fn boot_refusal(&self) -> Duration {
        self.boot_refusal
    }

    /// About how long the slower of the last durable writes took.
    pub fn slowest_write(&self) -> Duration {
        self.log.slowest_write()
    }

    /// Where this member stands, now and on every change.
    pub fn role(&self) -> watch::Receiver<Role> {
        self.role.clone()
    }

    /// How this device's disk has failed, once it has. It votes no more then.
    pub fn disk_failed(&self) -> watch::Receiver<Option<DiskFailure>> {
        self.disk_failed.clone()
    }

    /// The record, now and on every change.
    pub fn record(&self) -> watch::Receiver<Applied> {
        self.machine.watch()
    }

    /// What the owner last said of its lease, lapsed or not, now and on every change.
    pub fn vouched(&self) -> watch::Receiver<Option<Vouched>> {
        self.vouch.watch()
    }

    /// The proof of the present owner's fencer that the ownership has ended, if it has shown one.
    pub fn proof(&self) -> Option<Receipt> {
        self.attest.proof()
    }

    /// What a fencer has proven last, of whatever epoch, now and on every change.
    pub fn proofs(&self) -> watch::Receiver<Option<Receipt>> {
        self.attest.watch()
    }

    /// Takes in what somebody says is a fencer's receipt. Whatever it is, it is safe to do so.
    pub fn attested(&self, receipt: Receipt) {
        self.attest.hear(receipt);
    }

    /// Has the site execute a command: here, or by the leader. Waits at most `limit`.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub async fn propose(&self, command: Command, limit: Duration) -> Result<Outcome, ProposeError> {
        let work = async {
            match Proposer(self.raft.clone()).propose_here(command.clone()).await {
                Err(ProposeError::NoLeader) if command.travels() => self.forward(&command, limit).await,
                other => other,
            }
        };
        tokio::time::timeout(limit, work).await.unwrap_or(Err(ProposeError::NoAnswer))
    }

    async fn forward(&self, command: &Command, limit: Duration) -> Result<Outcome, ProposeError> {
        let leader = self.role.borrow().ballot.node;
        let peer = self.peers.get(leader).ok_or(ProposeError::NoLeader)?;
        let json = serde_json::to_vec(command).map_err(|e| ProposeError::Refused(e.to_string()))?;
        let reply = peer
            .propose(proto::ProposeRequest { command: json.into() }, limit)
            .await
            .map_err(|status| ProposeError::Refused(status.message().to_owned()))?;
        serde_json::from_slice(&reply.outcome).map_err(|e| ProposeError::Refused(e.to_string()))
    }

    /// Asks every node, this member and learners included, for a promise. Answers arrive in `answers`, each at its own time;
    /// what does not arrive within four times the hold never does. Returns at once.
    pub fn renew(
        &self,
        question: Question,
        echoes: &BTreeMap<NodeId, Echo>,
        answers: &mpsc::UnboundedSender<Renewed>,
    ) {
        let Question { ballot, epoch, asked, timing, act_until, applied } = question;
        let (refusal, until) = (timing.refusal(), asked + timing.hold());
        let own = Renewed {
            node: self.roster.node,
            ballot,
            epoch,
            asked,
            until,
            promised: self.guard.promise(ballot, epoch, refusal).map_err(|e| e.to_string()),
            echo: None,
            applied,
        };
        // The loop that listens may have ended; then nobody needs the answer.
        let _ = answers.send(own);
        let (word, health) = (self.roster.own_word(epoch), self.roster.health());
        for (node, peer) in self.peers.all() {
            let echo = echoes.get(&node);
            // Without an echo it has nothing to count from.
            let left = echo.zip(act_until).map_or(Duration::ZERO, |(echo, until)| echo.left(until));
            let message = proto::RenewRequest {
                ballot: Some(proto::Ballot { term: ballot.term, node: ballot.node.0, committed: true }),
                epoch: epoch.get(),
                refusal_us: micros(refusal),
                lease_left_us: micros(left),
                echo_ns: echo.map_or(0, |echo| echo.theirs.as_nanos()),
                number: 0,
                uplink_wanted: word.is_some_and(|word| word.wanted),
                uplink: word.and_then(|word| word.through).map_or(0, |node| node.0),
                health: None,
            };
            peer.line.ask(&peer, question, (message, &health), answers, &self.tasks);
        }
    }

    /// Ends what [`Group::renew`] keeps open. Later questions open it again.
    pub fn hang_up(&self) {
        self.peers.all().iter().for_each(|(_, peer)| peer.line.hang_up());
    }

    /// Brings followers that missed the last commit up to date.
    pub async fn nudge(&self) {
        // An error means that Raft has stopped, which the role says already.
        let _ = self.raft.trigger().heartbeat().await;
    }

    /// Asks a device how it is. The answer is kept on the roster.
    pub async fn greet(&self, device: &DeviceId, limit: Duration) -> bool {
        match self.peers.get(self.roster.node_of(device)) {
            Some(peer) => peer.greet(limit).await.is_ok(),
            None => false,
        }
    }

    /// Tells every other member at once how this one is, and asks the same. For what has changed and must not wait: what others
    /// send to whom need not carry it.
    pub fn greet_all(&self) {
        for member in self.roster.site.members.iter().filter(|m| m.device != self.roster.me) {
            let (group, device) = (self.clone(), member.device.clone());
            self.spawn(async move {
                group.greet(&device, GREETING).await;
            });
        }
    }

    /// Whether this member's store has never been of use to anybody: no vote given, nothing taken from a leader.
    pub fn is_unused(&self) -> bool {
        self.log.is_unused()
    }

    /// The other nodes that have everything that is applied here, if this member leads.
    pub fn caught_up(&self) -> BTreeSet<NodeId> {
        let metrics = self.raft.metrics().borrow().clone();
        let matched = metrics.replication.unwrap_or_default();
        let has_all = |(node, id): (u64, Option<LogId>)| (id >= metrics.last_applied).then_some(NodeId(node));
        matched.into_iter().filter_map(has_all).collect()
    }

    /// Has the site commit a step of a change of its members. Waits at most `limit`; it may still happen after that.
    ///
    /// # Errors
    /// [`ProposeError`]
    pub(crate) async fn change_members(&self, step: Step, limit: Duration) -> Result<(), ProposeError> {
        let device = |device: DeviceId, store: u64| Device { device: device.to_string(), store };
        let change = match step {
            Step::Note { stores } => {
                let node = |(node, (of, store)): (NodeId, (DeviceId, u64))| (node.0, device(of, store));
                ChangeMembers::SetNodes(stores.into_iter().map(node).collect())
            }
            Step::Admit { node, device: of, store } => {
                ChangeMembers::AddNodes([(node.0, device(of, store))].into())
            }
            Step::Drop { node } => ChangeMembers::RemoveNodes([node.0].into()),
            Step::Exchange { voters } => {
                ChangeMembers::ReplaceAllVoters(voters.into_iter().map(|node| node.0).collect())
            }
            // Nobody is added to the newer set of voters, which leaves that set alone in force.
            Step::Finish => ChangeMembers::AddVoterIds(BTreeSet::new()),
        };
        let work = async {
            let changed = self.raft.change_membership(change, false).await;
            // Raft takes a change into account before the own copy of it is durable.
            let _ = self.log.ahead().all().await;
            changed
        };
        match tokio::time::timeout(limit, work).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Err(ProposeError::NoLeader),
            Ok(Err(RaftError::APIError(e))) => Err(ProposeError::Refused(words::refused(&e))),
            Ok(Err(RaftError::Fatal(e))) => Err(ProposeError::Stopped(words::stopped(&e))),
            Err(_) => Err(ProposeError::NoAnswer),
        }
    }

    /// Stops Raft. Calls after this fail.
    pub async fn shutdown(&self) {
        if let Err(e) = self.raft.shutdown().await {
            tracing::warn!("consensus did not stop cleanly: {e}");
        }
    }
}

/// Members do not tell each other the wall time: nobody reads it, and hyper would take it from the machine's own clock
/// wherever this header is missing.
fn undated<B>(mut answer: http::Response<B>) -> http::Response<B> {
    answer.headers_mut().insert(http::header::DATE, http::HeaderValue::from_static(""));
    answer
}

#[cfg(test)]
mod tests;
