//! One MQTT connection of a module, from CONNECT to its end, over any stream of bytes.
//!
//! It does one thing at a time in one future: read, write, ping. Whatever it holds is bounded: requests that wait for an
//! answer, messages that wait for their end, events that nobody has taken; where a bound is reached the link ends, and
//! what was not settled comes again. It never connects anew, knows no TLS and makes no tokens.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use serde_json::{Map, Value};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    packet::{Accepted, Connect, Packet, Publish},
    refusal,
    topic::{self, Topic},
};
use crate::hub::{
    BoxFuture, Error,
    link::{Connected, Event, Link, Message, OwnTwin},
    target::Target,
    twin::Properties,
};

/// Events that may wait to be taken.
const EVENTS: usize = 64;
/// Orders that may wait to be sent.
const ORDERS: usize = 16;
/// Requests that may wait for their answers.
const WAITING: usize = 64;
/// Bytes of messages for inputs that may wait for their end: more than an edgeHub has on its way at once.
const INPUT_BYTES: usize = 4 * 1024 * 1024;

/// How a session is begun.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The first packet.
    pub connect: Connect,
    /// Whose module this is.
    pub target: Target,
    /// Whether messages for its inputs are wanted.
    pub inputs: bool,
    /// How long the other side may take for an answer, and for taking in what is written.
    pub timeout: Duration,
    /// After this long it is time to connect anew, because the token ends.
    pub renew: Duration,
}

/// Introduces the module, subscribes, and returns the link.
///
/// # Errors
/// [`Error`]. What the other side said in its refusal is in it.
pub async fn open<S>(stream: S, opening: Opening) -> Result<Connected, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let timeout = opening.timeout;
    tokio::time::timeout(timeout, handshake(stream, opening))
        .await
        .unwrap_or(Err(Error::TimedOut { after: timeout }))
}

async fn handshake<S>(stream: S, opening: Opening) -> Result<Connected, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (events, taken) = mpsc::channel(EVENTS);
    let (orders, to_do) = mpsc::channel(ORDERS);
    let (timeout, renew) = (opening.timeout, opening.renew);
    // Half of what the hub was promised: it counts one and a half times that before it gives up.
    let keep_alive = Duration::from_secs(u64::from(opening.connect.keep_alive)) / 2;
    let now = Instant::now();
    let mut session = Session {
        stream,
        read: BytesMut::new(),
        target: opening.target,
        timeout,
        orders: to_do,
        events,
        answers: BTreeMap::new(),
        acks: BTreeMap::new(),
        inputs: BTreeMap::new(),
        input_bytes: 0,
        numbers: 0,
        packet: 0,
        keep_alive,
        sent: now,
        pinged: None,
        renew: now + renew,
    };
    session.write(&Packet::Connect(opening.connect)).await?;
    let accepted = match session.next().await? {
        Packet::ConnAck { accepted: Accepted::No(code), .. } => return Err(refusal::of_link(code)),
        Packet::ConnAck { session_present, .. } => session_present,
        _ => return Err(Error::NotTheHub("its first packet is not the answer to ours".into())),
    };
    let inputs = topic::inputs(&session.target);
    if let (true, false, Some(filter)) = (accepted, opening.inputs, &inputs) {
        // An earlier life of this module may have wanted them, and the session was kept.
        let id = session.packet_id();
        session.write(&Packet::Unsubscribe(id, vec![filter.clone()])).await?;
    }
    // Calls and pushes come once or not at all: a call that is delivered again after minutes would be worse than none.
    let mut filters: Vec<(String, u8)> =
        [topic::ANSWERS, topic::DESIRED, topic::CALLS].map(|filter| (filter.to_owned(), 0)).into();
    filters.extend(inputs.filter(|_| opening.inputs).map(|filter| (filter, 1)));
    let id = session.packet_id();
    session.write(&Packet::Subscribe(id, filters)).await?;
    let granted = loop {
        match session.next().await? {
            Packet::SubAck(answered, granted) if answered == id => break granted,
            other => session.take(other).await?,
        }
    };
    if granted.iter().any(|quality| *quality > 1) {
        return Err(Error::Rejected { status: 0, detail: "it refuses one of the subscriptions".into() });
    }
    let link = Arc::new(Orders { orders, target: session.target.clone(), timeout });
    Ok(Connected { link, events: taken, runs: Box::pin(session.run()) })
}

/// What the user of a link wants of the session.
enum Order {
    /// A request; the reply to it has this id.
    Ask { topic: Box<dyn Fn(&str) -> String + Send>, body: Bytes, reply: oneshot::Sender<Answer> },
    /// A publication that nobody answers.
    Tell { topic: String, body: Bytes, reply: oneshot::Sender<()> },
    /// A publication that the other side acknowledges once it has it.
    Deliver { topic: String, body: Bytes, reply: oneshot::Sender<()> },
    /// An input is dealt with.
    Settle { number: u64, reply: oneshot::Sender<()> },
}

struct Answer {
    status: u16,
    version: Option<u64>,
    body: Bytes,
}

struct Session<S> {
    stream: S,
    read: BytesMut,
    target: Target,
    timeout: Duration,
    orders: mpsc::Receiver<Order>,
    events: mpsc::Sender<Event>,
    /// Who waits for which request's answer.
    answers: BTreeMap<u64, oneshot::Sender<Answer>>,
    /// Who waits for which packet's acknowledgement.
    acks: BTreeMap<u16, oneshot::Sender<()>>,
    /// Inputs that are not settled yet: their packet ids and sizes.
    inputs: BTreeMap<u64, (u16, usize)>,
    input_bytes: usize,
    numbers: u64,
    packet: u16,
    keep_alive: Duration,
    /// When something was written last.
    sent: Instant,
    /// When a ping was written that is not answered yet.
    pinged: Option<Instant>,
    renew: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    async fn run(mut self) -> Result<(), Error> {
        loop {
            while let Some(packet) = self.buffered()? {
                self.take(packet).await?;
            }
            let tick = match self.pinged {
                Some(at) => at + self.timeout,
                None => self.sent + self.keep_alive,
            };
            tokio::select! {
                read = self.stream.read_buf(&mut self.read) => arrived(read)?,
                order = self.orders.recv() => match order {
                    Some(order) => self.obey(order).await?,
                    None => return self.write(&Packet::Disconnect).await,
                },
                () = tokio::time::sleep_until(tick) => {
                    if self.pinged.is_some() {
                        return Err(Error::TimedOut { after: self.timeout });
                    }
                    self.write(&Packet::PingReq).await?;
                    self.pinged = Some(Instant::now());
                }
                () = tokio::time::sleep_until(self.renew) => {
                    return self.write(&Packet::Disconnect).await;
                }
            }
        }
    }

    fn buffered(&mut self) -> Result<Option<Packet>, Error> {
        Packet::read(&mut self.read).map_err(|why| Error::NotTheHub(why.to_string()))
    }

    /// The next packet, whatever it is.
    async fn next(&mut self) -> Result<Packet, Error> {
        loop {
            if let Some(packet) = self.buffered()? {
                return Ok(packet);
            }
            arrived(self.stream.read_buf(&mut self.read).await)?;
        }
    }

    async fn write(&mut self, packet: &Packet) -> Result<(), Error> {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes);
        let write = async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        };
        match tokio::time::timeout(self.timeout, write).await {
            Ok(Ok(())) => {
                self.sent = Instant::now();
                Ok(())
            }
            Ok(Err(why)) => Err(broken(&why)),
            Err(_) => Err(Error::TimedOut { after: self.timeout }),
        }
    }

    fn packet_id(&mut self) -> u16 {
        loop {
            self.packet = self.packet.checked_add(1).unwrap_or(1);
            // Never more than `WAITING` of them are in use.
            if !self.acks.contains_key(&self.packet) {
                return self.packet;
            }
        }
    }

    /// What a packet means.
    async fn take(&mut self, packet: Packet) -> Result<(), Error> {
        match packet {
            Packet::Publish(publish) => self.heard(publish).await,
            Packet::PubAck(id) => {
                if let Some(reply) = self.acks.remove(&id) {
                    // Whoever waited may have given up.
                    let _ = reply.send(());
                }
                Ok(())
            }
            Packet::PingResp => {
                self.pinged = None;
                Ok(())
            }
            Packet::SubAck(..) | Packet::UnsubAck(_) => Ok(()),
            Packet::Connect(_)
            | Packet::ConnAck { .. }
            | Packet::Subscribe(..)
            | Packet::Unsubscribe(..)
            | Packet::PingReq
            | Packet::Disconnect => Err(Error::NotTheHub("it sends what only a client sends".into())),
        }
    }

    async fn heard(&mut self, publish: Publish) -> Result<(), Error> {
        let Publish { topic, id, payload, .. } = publish;
        let event = match topic::read(&topic, &self.target) {
            Topic::Answer { status, rid, version } => {
                let waits = rid.parse().ok().and_then(|rid: u64| self.answers.remove(&rid));
                if let Some(reply) = waits {
                    let _ = reply.send(Answer { status, version, body: payload });
                }
                None
            }
            Topic::Desired { version } => {
                let mut patch = object(&payload)
                    .ok_or_else(|| Error::NotTheHub("a change of desired properties is no object".into()))?;
                let inside = patch.remove("$version").and_then(|version| version.as_u64());
                patch.remove("$metadata");
                let version = version.or(inside).ok_or_else(|| {
                    Error::NotTheHub("a change of desired properties has no version".into())
                })?;
                Some(Event::Desired { patch, version })
            }
            Topic::Call { method, rid } => {
                let payload = serde_json::from_slice(&payload).unwrap_or(Value::Null);
                Some(Event::Call { id: rid, method, payload })
            }
            Topic::Input { input, properties, system } => {
                self.numbers += 1;
                let size = payload.len() + topic.len();
                // Without a packet id nobody waits for its end.
                if let Some(id) = id {
                    self.input_bytes += size;
                    self.inputs.insert(self.numbers, (id, size));
                }
                let message = Message { properties, system, body: Bytes::copy_from_slice(&payload) };
                let event = Event::Input { number: self.numbers, input, message };
                if self.input_bytes > INPUT_BYTES {
                    return Err(overrun());
                }
                self.events.try_send(event).map_err(|_| overrun())?;
                return Ok(());
            }
            // What a newer hub may say, and this version does not know.
            Topic::Other => None,
        };
        if let Some(event) = event {
            self.events.try_send(event).map_err(|_| overrun())?;
        }
        match id {
            Some(id) => self.write(&Packet::PubAck(id)).await,
            None => Ok(()),
        }
    }

    async fn obey(&mut self, order: Order) -> Result<(), Error> {
        match order {
            Order::Ask { topic, body, reply } => {
                self.answers.retain(|_, waits| !waits.is_closed());
                if self.answers.len() < WAITING {
                    self.numbers += 1;
                    let topic = topic(&self.numbers.to_string());
                    self.answers.insert(self.numbers, reply);
                    self.publish(topic, body, None).await?;
                }
                Ok(())
            }
            Order::Tell { topic, body, reply } => {
                self.publish(topic, body, None).await?;
                let _ = reply.send(());
                Ok(())
            }
            // Whoever gave up may have lost the right to say it.
            Order::Deliver { reply, .. } if reply.is_closed() => Ok(()),
            Order::Deliver { topic, body, reply } => {
                self.acks.retain(|_, waits| !waits.is_closed());
                if self.acks.len() < WAITING {
                    let id = self.packet_id();
                    self.acks.insert(id, reply);
                    self.publish(topic, body, Some(id)).await?;
                }
                Ok(())
            }
            Order::Settle { number, reply } => {
                if let Some((id, size)) = self.inputs.remove(&number) {
                    self.input_bytes -= size;
                    self.write(&Packet::PubAck(id)).await?;
                }
                let _ = reply.send(());
                Ok(())
            }
        }
    }

    async fn publish(&mut self, topic: String, payload: Bytes, id: Option<u16>) -> Result<(), Error> {
        self.write(&Packet::Publish(Publish { topic, id, duplicate: false, retain: false, payload })).await
    }
}

fn arrived(read: std::io::Result<usize>) -> Result<(), Error> {
    match read {
        // The hub says no more when a newer connection of the same module takes over, or a token has expired.
        Ok(0) => Err(Error::Unreachable("the hub has closed the link".into())),
        Ok(_) => Ok(()),
        Err(why) => Err(broken(&why)),
    }
}

fn broken(why: &std::io::Error) -> Error {
    Error::Unreachable(format!("the link broke: {why}"))
}

fn overrun() -> Error {
    Error::Unreachable("more arrived than could be dealt with, so the link was ended".into())
}

fn object(body: &[u8]) -> Option<Properties> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Some(map),
        _ => None,
    }
}

/// The link as its users hold it.
struct Orders {
    orders: mpsc::Sender<Order>,
    target: Target,
    timeout: Duration,
}

impl Orders {
    async fn give<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order + Send) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::Unreachable("the link has ended".into());
        let asked = async {
            self.orders.send(order(reply)).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())
        };
        tokio::time::timeout(self.timeout, asked)
            .await
            .unwrap_or(Err(Error::TimedOut { after: self.timeout }))
    }

    /// An answer of the 200s, or what the other one means.
    async fn ask(
        &self,
        topic: impl Fn(&str) -> String + Send + 'static,
        body: Bytes,
    ) -> Result<Answer, Error> {
        let answer = self.give(|reply| Order::Ask { topic: Box::new(topic), body, reply }).await?;
        match answer.status {
            200..=299 => Ok(answer),
            status => Err(refusal::of_request(status, &answer.body, &self.target)),
        }
    }
}

impl Link for Orders {
    fn get_twin(&self) -> BoxFuture<'_, Result<OwnTwin, Error>> {
        Box::pin(async move {
            // Microsoft's clients send a space: an empty body never had to work.
            let answer = self.ask(topic::get_twin, Bytes::from_static(b" ")).await?;
            twin(&answer.body)
                .ok_or_else(|| Error::NotTheHub("it answered with something that is no twin".into()))
        })
    }

    fn report<'a>(&'a self, patch: &'a Properties) -> BoxFuture<'a, Result<Option<u64>, Error>> {
        Box::pin(async move {
            let body = Bytes::from(Value::Object(patch.clone()).to_string());
            Ok(self.ask(topic::report, body).await?.version)
        })
    }

    fn answer<'a>(
        &'a self,
        call: &'a str,
        status: u16,
        payload: &'a Value,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let (topic, body) = (topic::answer(status, call), Bytes::from(payload.to_string()));
            self.give(|reply| Order::Tell { topic, body, reply }).await
        })
    }

    fn send<'a>(&'a self, output: &'a str, message: &'a Message) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let (topic, body) = (topic::message(&self.target, output, message), message.body.clone());
            self.give(|reply| Order::Deliver { topic, body, reply }).await
        })
    }

    fn settle(&self, input: u64) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.give(|reply| Order::Settle { number: input, reply }).await })
    }
}

/// A section may be left out by an edgeHub that has never reached the cloud; it is empty then.
fn twin(body: &[u8]) -> Option<OwnTwin> {
    let mut sections = object(body)?;
    let mut section = |name| match sections.remove(name) {
        None | Some(Value::Null) => Some((Map::new(), 0)),
        Some(Value::Object(mut values)) => {
            let version = values.remove("$version").and_then(|version| version.as_u64()).unwrap_or(0);
            values.remove("$metadata");
            Some((values, version))
        }
        Some(_) => None,
    };
    let ((desired, desired_version), (reported, reported_version)) =
        (section("desired")?, section("reported")?);
    Some(OwnTwin { desired, desired_version, reported, reported_version })
}

#[cfg(test)]
mod tests;
