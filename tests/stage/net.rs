//! The simulated LAN: connections between hosts over links that take time, lose packets, and are cut.
//!
//! A connection behaves as TCP does for those who use it: bytes come in order or not at all. A lost packet comes later
//! (after 200 ms, then twice that, and so on) and holds up what was sent behind it. What was under way on a link when it
//! was cut is sent again when the link is back, or never (`forgets`), as when a firewall in between has lost its state.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf, Bytes};
use quorate::{
    dice::Dice,
    raft::peer::transport::{Connection, Dialer, Incoming},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{mpsc, oneshot},
};

use super::hash::EventHash;

const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(5);
/// As long as the product's real dialer tries.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// One direction between two hosts.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    pub cut: bool,
    /// Whether connections that had something under way when it was cut are dead for good.
    pub forgets: bool,
    pub latency: (Duration, Duration),
    /// The share of packets that have to be sent again.
    pub loss: f64,
}

enum Packet {
    Bytes(Bytes),
    Fin,
    Reset,
}

enum Flight {
    Packet(u64, Packet),
    Retry(u64),
    Syn { from: usize, to: usize, answer: oneshot::Sender<io::Result<Stream>> },
    Answer { from: usize, to: usize, answer: oneshot::Sender<io::Result<Stream>>, result: io::Result<Stream> },
}

#[derive(Default)]
struct Pipe {
    from: usize,
    to: usize,
    inbox: VecDeque<Bytes>,
    closed: bool,
    reset: bool,
    waker: Option<Waker>,
    /// When the last packet arrives: none overtakes another.
    last: Duration,
    /// What waits to be sent again.
    unsent: VecDeque<Packet>,
    retry: Duration,
    dead: bool,
    /// The end that writes has said that nothing more comes.
    finished: bool,
    reader_gone: bool,
}

#[derive(Default)]
struct Port {
    /// Whether there is power, so that at least the kernel answers.
    powered: bool,
    listener: Option<mpsc::UnboundedSender<Stream>>,
}

struct Lan {
    now: Duration,
    dice: Dice,
    ports: Vec<Port>,
    links: Vec<Vec<Link>>,
    pipes: BTreeMap<u64, Pipe>,
    flights: BTreeMap<(Duration, u64), Flight>,
    count: u64,
    hash: EventHash,
}

/// The LAN. Clones are the same.
#[derive(Clone)]
pub struct Net(Arc<Mutex<Lan>>);

/// Pipes come in pairs: even from whoever dialled, odd back.
fn back(pipe: u64) -> u64 {
    pipe ^ 1
}

impl Lan {
    fn latency(&mut self, from: usize, to: usize) -> Duration {
        let (least, most) = self.links[from][to].latency;
        // Mostly near the least, seldom near the most.
        let u = (self.dice.throw() >> 11) as f64 / (1u64 << 53) as f64;
        least + (most - least).mul_f64((-(1.0 - u).ln() / 5.0).min(1.0))
    }

    fn passes(&mut self, from: usize, to: usize) -> bool {
        let link = self.links[from][to];
        let lost = link.loss > 0.0 && ((self.dice.throw() >> 11) as f64 / (1u64 << 53) as f64) < link.loss;
        !link.cut && !lost
    }

    fn fly(&mut self, at: Duration, flight: Flight) {
        self.count += 1;
        self.flights.insert((at, self.count), flight);
    }

    fn finish(&mut self, id: u64) {
        let Some(pipe) = self.pipes.get_mut(&id) else { return };
        if !std::mem::replace(&mut pipe.finished, true) {
            self.send(id, Packet::Fin);
        }
    }

    fn send(&mut self, id: u64, packet: Packet) {
        let Some(pipe) = self.pipes.get(&id) else { return };
        let (from, to) = (pipe.from, pipe.to);
        if pipe.dead || !self.ports[from].powered {
            return;
        }
        let waits = !pipe.unsent.is_empty();
        if !waits && self.passes(from, to) {
            let at = self.now + self.latency(from, to);
            let Some(pipe) = self.pipes.get_mut(&id) else { return };
            pipe.last = pipe.last.max(at);
            let at = pipe.last;
            self.fly(at, Flight::Packet(id, packet));
            return;
        }
        let link = self.links[from][to];
        let Some(pipe) = self.pipes.get_mut(&id) else { return };
        pipe.dead = link.cut && link.forgets;
        pipe.unsent.push_back(packet);
        if !waits {
            pipe.retry = RETRY_FIRST;
            let at = self.now + RETRY_FIRST;
            self.fly(at, Flight::Retry(id));
        }
    }

    fn retry(&mut self, id: u64) {
        let Some(pipe) = self.pipes.get(&id) else { return };
        let (from, to) = (pipe.from, pipe.to);
        if pipe.dead || !self.ports[from].powered {
            return;
        }
        let passes = self.passes(from, to);
        let at = self.now + self.latency(from, to);
        let now = self.now;
        let Some(pipe) = self.pipes.get_mut(&id) else { return };
        if passes {
            pipe.last = pipe.last.max(at);
            let (at, unsent) = (pipe.last, std::mem::take(&mut pipe.unsent));
            for packet in unsent {
                self.fly(at, Flight::Packet(id, packet));
            }
        } else {
            pipe.retry = (pipe.retry * 2).min(RETRY_LAST);
            let at = now + pipe.retry;
            self.fly(at, Flight::Retry(id));
        }
    }

    /// What was under way comes again later, or never.
    /// Returns what must be dropped when the lock is free again.
    fn interrupt(&mut self, from: usize, to: usize) -> Vec<Flight> {
        let forgets = self.links[from][to].forgets;
        let (mut lost, mut kept) = (BTreeMap::<u64, VecDeque<Packet>>::new(), BTreeMap::new());
        let mut dropped = Vec::new();
        for (at, flight) in std::mem::take(&mut self.flights) {
            match flight {
                Flight::Packet(id, packet)
                    if self.pipes.get(&id).is_some_and(|p| (p.from, p.to) == (from, to)) =>
                {
                    lost.entry(id).or_default().push_back(packet);
                }
                Flight::Syn { from: f, to: t, .. } | Flight::Answer { from: f, to: t, .. }
                    if (f, t) == (from, to) =>
                {
                    dropped.push(flight);
                }
                flight => {
                    kept.insert(at, flight);
                }
            }
        }
        self.flights = kept;
        for (id, mut packets) in lost {
            let Some(pipe) = self.pipes.get_mut(&id) else { continue };
            pipe.dead |= forgets;
            let waits = !pipe.unsent.is_empty();
            packets.append(&mut pipe.unsent);
            pipe.unsent = packets;
            if !waits {
                pipe.retry = RETRY_FIRST;
                let at = self.now + RETRY_FIRST;
                self.fly(at, Flight::Retry(id));
            }
        }
        dropped
    }

    fn observe(&mut self, kind: u64, from: usize, to: usize, bytes: &[u8]) {
        self.hash
            .word(u64::try_from(self.now.as_micros()).unwrap_or(0) << 16 | (from as u64) << 8 | to as u64);
        self.hash.word(kind);
        self.hash.bytes(bytes);
    }

    fn arrive(&mut self, id: u64, packet: Packet) -> Option<Waker> {
        let pipe = self.pipes.get_mut(&id)?;
        let (from, to) = (pipe.from, pipe.to);
        if !self.ports[to].powered {
            return None;
        }
        if pipe.reader_gone {
            if matches!(packet, Packet::Bytes(_)) {
                self.send(back(id), Packet::Reset);
            }
            return None;
        }
        let waker = pipe.waker.take();
        match packet {
            Packet::Bytes(bytes) => {
                pipe.inbox.push_back(bytes.clone());
                self.observe(1, from, to, &bytes);
            }
            Packet::Fin => {
                pipe.closed = true;
                self.observe(2, from, to, &[]);
            }
            Packet::Reset => {
                pipe.reset = true;
                self.observe(3, from, to, &[]);
            }
        }
        waker
    }

    /// The end for whoever dials, or the end that nobody took.
    fn accept(&mut self, net: &Net, from: usize, to: usize) -> Option<(io::Result<Stream>, Option<Stream>)> {
        if !self.ports[to].powered {
            return None;
        }
        self.observe(4, from, to, &[]);
        let Some(listener) = self.ports[to].listener.clone() else {
            return Some((Err(io::ErrorKind::ConnectionRefused.into()), None));
        };
        self.count += 1;
        let there = self.count * 2;
        self.pipes.insert(there, Pipe { from, to, ..Pipe::default() });
        self.pipes.insert(back(there), Pipe { from: to, to: from, ..Pipe::default() });
        let server = Stream { net: net.clone(), read: there, write: back(there), from };
        let client = Stream { net: net.clone(), read: back(there), write: there, from: to };
        match listener.send(server) {
            Ok(()) => Some((Ok(client), None)),
            Err(unwanted) => Some((Ok(client), Some(unwanted.0))),
        }
    }
}

impl Net {
    pub fn new(hosts: usize, dice: Dice, link: Link) -> Net {
        let ports = (0..hosts).map(|_| Port { powered: true, listener: None }).collect();
        Net(Arc::new(Mutex::new(Lan {
            now: Duration::ZERO,
            dice,
            ports,
            links: vec![vec![link; hosts]; hosts],
            pipes: BTreeMap::new(),
            flights: BTreeMap::new(),
            count: 0,
            hash: EventHash::default(),
        })))
    }

    fn lan(&self) -> MutexGuard<'_, Lan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Delivers what has arrived by `now`.
    pub fn deliver(&self, now: Duration) {
        let mut lan = self.lan();
        lan.now = now;
        let mut wakers = Vec::new();
        // What must be dropped or answered when the lock is free again.
        let mut answers = Vec::new();
        while let Some(entry) = lan.flights.first_entry() {
            if entry.key().0 > now {
                break;
            }
            match entry.remove() {
                Flight::Packet(id, packet) => wakers.extend(lan.arrive(id, packet)),
                Flight::Retry(id) => lan.retry(id),
                Flight::Syn { from, to, answer } => {
                    if let Some((result, unwanted)) = lan.accept(self, from, to) {
                        answers.extend(unwanted.map(|stream| (None, Ok(stream))));
                        if lan.passes(to, from) {
                            let at = now + lan.latency(to, from);
                            lan.fly(at, Flight::Answer { from: to, to: from, answer, result });
                        } else {
                            answers.push((None, result));
                        }
                    }
                }
                Flight::Answer { answer, result, .. } => answers.push((Some(answer), result)),
            }
        }
        drop(lan);
        for waker in wakers {
            waker.wake();
        }
        for (answer, result) in answers {
            if let Some(answer) = answer {
                let _ = answer.send(result);
            }
        }
    }

    /// What was delivered so far, as one number.
    pub fn hash(&self) -> u64 {
        self.lan().hash.get()
    }

    /// The power of a host goes or comes: without it nothing is sent, received or answered.
    pub fn power(&self, n: usize, on: bool) {
        let mut lan = self.lan();
        lan.ports[n].powered = on;
        let listener = lan.ports[n].listener.take();
        for pipe in lan.pipes.values_mut().filter(|p| p.from == n && !on) {
            pipe.dead = true;
        }
        drop(lan);
        drop(listener);
    }

    /// The host listens no more.
    pub fn unlisten(&self, n: usize) {
        let listener = self.lan().ports[n].listener.take();
        drop(listener);
    }

    /// A process is gone: the kernel closes what it had open, the oldest first. Without this the connections would end
    /// in the order in which tokio drops a runtime's tasks, which is by numbers that count on from run to run.
    pub fn exit(&self, n: usize) {
        let mut lan = self.lan();
        let listener = lan.ports[n].listener.take();
        let written: Vec<u64> = lan.pipes.iter().filter(|(_, p)| p.from == n).map(|(id, _)| *id).collect();
        for id in written {
            lan.finish(id);
        }
        drop(lan);
        drop(listener);
    }

    /// Changes one direction.
    pub fn change(&self, from: usize, to: usize, change: impl FnOnce(&mut Link)) {
        let mut lan = self.lan();
        let before = lan.links[from][to].cut;
        change(&mut lan.links[from][to]);
        let dropped = if lan.links[from][to].cut && !before { lan.interrupt(from, to) } else { Vec::new() };
        drop(lan);
        drop(dropped);
    }

    pub fn link(&self, from: usize, to: usize) -> Link {
        self.lan().links[from][to]
    }

    /// What a host hears from.
    pub fn listen(&self, n: usize) -> Incoming {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.lan().ports[n].listener = Some(sender);
        Box::pin(futures_util::stream::unfold(receiver, |mut receiver| async {
            let stream: Stream = receiver.recv().await?;
            let from = format!("edge-{}", stream.from + 1);
            Some((Ok(Connection::open(stream, from)), receiver))
        }))
    }
}

/// One host's way to the others.
pub struct SimDialer {
    pub net: Net,
    pub from: usize,
}

impl Dialer for SimDialer {
    fn dial(&self, address: String) -> Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>> {
        let (net, from) = (self.net.clone(), self.from);
        Box::pin(async move {
            let number = address.split(':').next().and_then(|name| name.strip_prefix("edge-"));
            let to: usize = number.and_then(|n| n.parse().ok()).ok_or(io::ErrorKind::InvalidInput)?;
            let to = to - 1;
            let (answer, answered) = oneshot::channel();
            {
                let mut lan = net.lan();
                if lan.passes(from, to) {
                    let at = lan.now + lan.latency(from, to);
                    lan.fly(at, Flight::Syn { from, to, answer });
                }
            }
            let late = || io::Error::from(io::ErrorKind::TimedOut);
            let stream = tokio::time::timeout(CONNECT_LIMIT, async {
                match answered.await {
                    Ok(result) => result,
                    Err(_) => std::future::pending().await,
                }
            });
            Ok(Connection::open(stream.await.map_err(|_| late())??, address))
        })
    }
}

/// One end of a connection.
struct Stream {
    net: Net,
    read: u64,
    write: u64,
    from: usize,
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut lan = self.net.lan();
        let Some(pipe) = lan.pipes.get_mut(&self.read) else { return Poll::Ready(Ok(())) };
        if pipe.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        while buf.remaining() > 0
            && let Some(bytes) = pipe.inbox.front_mut()
        {
            let part = bytes.len().min(buf.remaining());
            buf.put_slice(&bytes[..part]);
            bytes.advance(part);
            if bytes.is_empty() {
                pipe.inbox.pop_front();
            }
        }
        if !buf.filled().is_empty() || pipe.closed {
            return Poll::Ready(Ok(()));
        }
        pipe.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut lan = self.net.lan();
        let finished = lan.pipes.get(&self.write).is_none_or(|p| p.finished);
        if finished || lan.pipes.get(&self.read).is_none_or(|p| p.reset) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        lan.send(self.write, Packet::Bytes(Bytes::copy_from_slice(buf)));
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.net.lan().finish(self.write);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut lan = self.net.lan();
        lan.finish(self.write);
        let mut waker = None;
        if let Some(pipe) = lan.pipes.get_mut(&self.read) {
            pipe.reader_gone = true;
            pipe.inbox.clear();
            waker = pipe.waker.take();
        }
        let both = [self.read, self.write].map(|id| lan.pipes.get(&id).is_none_or(|p| p.reader_gone));
        if both == [true, true] {
            lan.pipes.remove(&self.read);
            lan.pipes.remove(&self.write);
        }
        drop(lan);
        drop(waker);
    }
}
