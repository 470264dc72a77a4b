//! The line on which the owner asks one member for its promises.
//!
//! One stream on a connection of its own, so that nothing else that is said can hold a renewal up, and that a renewal is
//! a few bytes. A stream that does not answer by the next question, although it was quick before, may have lost its
//! connection or a segment: another one is opened beside it at once, both are asked, and the first that answers
//! stays. Answers are matched with their questions by number, so one that travelled for long is worth what its question
//! was worth, and a member cannot make its promise look younger than it is.
//!
//! What a promise is worth is not known here.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tonic::{Code, Status};

use super::client::{Peer, describe};
use crate::{
    clock::Moment,
    raft::{Question, Renewed, vouch::Echo, wire::proto},
};

/// The line to one member. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Line(Arc<Mutex<Streams>>);

#[derive(Default)]
struct Streams {
    /// At most two, the newest last.
    open: Vec<Open>,
    /// Questions that may still be answered, by number.
    asked: BTreeMap<u64, Asked>,
    /// The number of the newest question, and of the newest stream.
    numbers: (u64, u64),
    /// The last answer's round trip.
    round_trip: Duration,
}

struct Asked {
    question: Question,
    sent: Moment,
    answers: mpsc::UnboundedSender<Renewed>,
}

struct Open {
    id: u64,
    questions: mpsc::UnboundedSender<proto::RenewRequest>,
    /// How this member is, as it was last said on it.
    told: Option<proto::Health>,
    /// When the oldest question was asked on it that it has not answered.
    waiting: Option<Moment>,
    _end: DropGuard,
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Streams> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks a question. Its answer, if one comes within four hold times, goes to `answers`: after one hold time it is worth
    /// nothing as a promise, but tells that the network is slow. How this member is goes with it where that is news. Returns at
    /// once.
    pub(crate) fn ask(
        &self,
        peer: &Peer,
        question: Question,
        (mut message, health): (proto::RenewRequest, &proto::Health),
        answers: &mpsc::UnboundedSender<Renewed>,
        tasks: &TaskTracker,
    ) {
        let timing = question.timing;
        let now = peer.roster.clock.now();
        let mut streams = self.lock();
        streams.asked.retain(|_, asked| now.since(asked.sent) < timing.hold() * 4);
        streams.open.retain(|open| !open.questions.is_closed());
        // Without an answer the next question comes this long after the last, give or take the timer's grain.
        // A round trip across a freeze of this device says nothing about the network.
        let usual = (streams.round_trip * 4).min(timing.hold() * 4);
        let patience = (timing.ask_again() * 3 / 4).max(usual);
        let late = |open: &Open, patience| open.waiting.is_some_and(|since| now.since(since) >= patience);
        let open = match streams.open.as_slice() {
            [] => true,
            [one] => late(one, patience),
            // Each gets a fair chance: a member that stands still is not helped by many connections.
            [.., newest] => late(newest, patience.max(timing.hold() / 2)),
        };
        if open {
            if streams.open.len() > 1 {
                streams.open.remove(0);
                peer.roster.answered(peer.node, now, Err("no answer in time".into()), false);
            }
            let fresh = self.open(&mut streams.numbers.1, peer, tasks);
            streams.open.push(fresh);
        }
        streams.numbers.0 += 1;
        message.number = streams.numbers.0;
        for open in &mut streams.open {
            open.waiting.get_or_insert(now);
            let news = (open.told.as_ref() != Some(health)).then(|| health.clone());
            if news.is_some() {
                open.told.clone_from(&news);
            }
            // An error means that the stream has just ended.
            let _ = open.questions.send(proto::RenewRequest { health: news, ..message.clone() });
        }
        streams.asked.insert(message.number, Asked { question, sent: now, answers: answers.clone() });
    }

    /// Ends all streams: nothing more is asked.
    pub(crate) fn hang_up(&self) {
        let mut streams = self.lock();
        streams.open.clear();
        streams.asked.clear();
    }

    fn open(&self, ids: &mut u64, peer: &Peer, tasks: &TaskTracker) -> Open {
        *ids += 1;
        let (id, end) = (*ids, CancellationToken::new());
        let (questions, receiver) = mpsc::unbounded_channel();
        let (line, peer, ended) = (self.clone(), peer.clone(), end.clone());
        tasks.spawn(async move {
            let reads = line.read(id, &peer, UnboundedReceiverStream::new(receiver));
            let result = tokio::select! {
                biased;
                () = ended.cancelled() => return,
                result = reads => result,
            };
            line.lock().open.retain(|open| open.id != id);
            if let Err(status) = result {
                let refused = status.code() == Code::FailedPrecondition;
                peer.roster.answered(peer.node, Moment::default(), Err(describe(&status)), refused);
            }
        });
        Open { id, questions, told: None, waiting: None, _end: end.drop_guard() }
    }

    async fn read(
        &self,
        id: u64,
        peer: &Peer,
        questions: UnboundedReceiverStream<proto::RenewRequest>,
    ) -> Result<(), Status> {
        let mut answers = peer.way.stub().renew(peer.addressed(questions)).await?.into_inner();
        while let Some(reply) = answers.message().await? {
            self.answered(id, peer, reply);
        }
        Ok(())
    }

    fn answered(&self, id: u64, peer: &Peer, reply: proto::RenewReply) {
        peer.heard(reply.health);
        let mut streams = self.lock();
        let waiting =
            streams.asked.range(reply.number.saturating_add(1)..).next().map(|(_, asked)| asked.sent);
        if let Some(place) = streams.open.iter().position(|open| open.id == id) {
            // Those before it were slower to answer than it was to be opened.
            streams.open.drain(..place);
            if let Some(open) = streams.open.first_mut() {
                open.waiting = waiting;
            }
        }
        // Unknown: it came too late to be worth anything, or another stream was faster.
        let Some(Asked { question, sent, answers }) = streams.asked.remove(&reply.number) else { return };
        let heard = peer.roster.clock.now();
        streams.round_trip = heard.since(sent);
        drop(streams);
        peer.roster.answered(peer.node, sent, Ok(()), false);
        let promised = if reply.promised { Ok(()) } else { Err(reply.reason) };
        let Question { ballot, epoch, asked, timing, .. } = question;
        let until = asked + timing.hold();
        let echo = Some(Echo { theirs: Moment::from_nanos(reply.echo_ns), heard });
        let answer = Renewed {
            node: peer.node,
            ballot,
            epoch,
            asked,
            until,
            promised,
            echo,
            applied: reply.applied_index,
        };
        // The loop that listens may have ended; then nobody needs the answer.
        let _ = answers.send(answer);
    }
}
