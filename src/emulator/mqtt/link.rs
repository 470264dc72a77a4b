//! One client's connection, from its first packet to its end.
//!
//! Whatever a client sends, nothing but its own connection suffers: what cannot be understood closes it, what comes too
//! slowly closes it, and a client that does not read is not waited for. What requests mean is the [`Backend`]'s to say.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::oneshot,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    links::{Joined, Links, Outgoing},
    topic::{self, Bag, Sent},
};
use crate::hub::{
    mqtt::packet::{Accepted, Connect, Packet, Publish},
    store::Target,
};

/// How long a client may take for its first packet.
const FIRST: Duration = Duration::from_secs(10);
/// How long a client may take to read what is written to it.
const WRITE: Duration = Duration::from_secs(10);
/// The longest silence that a client can ask for.
const SILENCE_MAX: Duration = Duration::from_secs(1767);
/// The most filters in one request; the hub has seven.
const FILTERS_MAX: usize = 20;
/// The most answers that are held back at once.
const HELD_MAX: usize = 256;
/// The most messages under way that a client has not acknowledged.
const UNACKED_MAX: usize = 1024;
/// The hub's "not available" and "bad user name or password" (MQTT 3.1.1, section 3.2.2.3).
pub(in crate::emulator) const UNAVAILABLE: u8 = 3;
pub(in crate::emulator) const BAD_NAME: u8 = 4;
pub(in crate::emulator) const NOT_AUTHORISED: u8 = 5;

/// A client that may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::emulator) struct Admitted {
    pub(in crate::emulator) who: Target,
    /// How long its token is good for.
    pub(in crate::emulator) life: Duration,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::emulator) enum Request {
    /// Its twin.
    Get { rid: String },
    /// To keep these properties as reported.
    Report { rid: String, body: Bytes },
    /// To take this message.
    Event { properties: Bag, body: Bytes },
}

/// What a client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::emulator) enum Answer {
    /// An acknowledgement and, for a twin's request, a message to this topic; after this delay.
    Given { after: Duration, message: Option<(String, Bytes)> },
    /// The link is cut instead.
    Cut,
}

/// What stands behind the links: the hub itself, or a gateway.
pub(in crate::emulator) trait Backend: Send + Sync + 'static {
    /// Who is connected.
    fn links(&self) -> &Links;
    /// Whether this client may come in; if not, the code for its refusal.
    fn admit(&self, connect: &Connect) -> Result<Admitted, u8>;
    /// `who` has come, or has gone.
    fn present(&self, who: &Target, is: bool);
    /// Does what a client asks for, at once; what it hears of that, and when, is in the answer.
    fn take(&self, from: &Target, request: Request) -> Answer;
}

/// Serves one client until either side ends it or `cut` is cancelled.
pub(super) async fn run<S>(stream: S, backend: &Arc<dyn Backend>, cut: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut wire = Wire { stream, read: BytesMut::new(), write: BytesMut::new() };
    let first = tokio::select! {
        () = cut.cancelled() => return,
        first = timeout(FIRST, wire.next()) => first,
    };
    let Ok(Ok(Packet::Connect(connect))) = first else {
        tracing::debug!("a client that did not introduce itself was turned away");
        return;
    };
    let admitted = match backend.admit(&connect) {
        Ok(admitted) => admitted,
        Err(code) => {
            tracing::debug!(?connect, code, "a client was refused");
            let refusal = Packet::ConnAck { session_present: false, accepted: Accepted::No(code) };
            let _told = wire.send(&refusal).await.is_ok();
            let _closed = timeout(WRITE, wire.stream.shutdown()).await.is_ok();
            return;
        }
    };
    let who = admitted.who.clone();
    let joined = backend.links().join(&who, connect.clean_session, cut.child_token());
    let number = joined.number;
    backend.present(&who, true);
    let mut link =
        Link { wire, backend: backend.clone(), who, joined, held: Vec::new(), unacked: Vec::new(), id: 0 };
    let ended = link.serve(&connect, admitted.life).await;
    let _closed = timeout(WRITE, link.wire.stream.shutdown()).await.is_ok();
    tracing::debug!(device = link.who.device, module = link.who.module, why = %ended, "a link ended");
    if backend.links().leave(&link.who, number) {
        backend.present(&link.who, false);
    }
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the client left")]
    Left,
    #[error("the client sent what the hub does not take: {0}")]
    Forbidden(&'static str),
    #[error("the client was silent for too long, or did not read")]
    Silent,
    #[error("the client's token has expired")]
    Expired,
    #[error("it was cut: by a newer link, a trouble, or the end of the emulator")]
    Cut,
}

struct Wire<S> {
    stream: S,
    read: BytesMut,
    write: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Wire<S> {
    /// The next packet. Cancel-safe: what has been read is kept.
    async fn next(&mut self) -> Result<Packet, End> {
        loop {
            match Packet::read(&mut self.read) {
                Ok(Some(packet)) => return Ok(packet),
                Ok(None) => {}
                Err(why) => {
                    tracing::debug!(%why, "not a packet");
                    return Err(End::Forbidden("not a packet"));
                }
            }
            // A client may end without TLS's own farewell, which is an error to the library and an end to us.
            match self.stream.read_buf(&mut self.read).await {
                Ok(0) | Err(_) => return Err(End::Left),
                Ok(_) => {}
            }
        }
    }

    async fn send(&mut self, packet: &Packet) -> Result<(), End> {
        packet.write(&mut self.write);
        let sent = async {
            self.stream.write_all(&self.write).await?;
            self.stream.flush().await
        };
        let sent = timeout(WRITE, sent).await;
        self.write.clear();
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Left),
            Err(_) => Err(End::Silent),
        }
    }
}

struct Link<S> {
    wire: Wire<S>,
    backend: Arc<dyn Backend>,
    who: Target,
    joined: Joined,
    /// Answers that are due later, in no order.
    held: Vec<(Instant, Packet)>,
    /// Who waits for the acknowledgement of which message.
    unacked: Vec<(u16, oneshot::Sender<()>)>,
    id: u16,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Link<S> {
    async fn serve(&mut self, connect: &Connect, life: Duration) -> End {
        let welcome =
            Packet::ConnAck { session_present: self.joined.session_present, accepted: Accepted::Yes };
        if let Err(end) = self.wire.send(&welcome).await {
            return end;
        }
        let silence = match connect.keep_alive {
            0 => SILENCE_MAX,
            seconds => (Duration::from_secs(u64::from(seconds)) * 3 / 2).min(SILENCE_MAX),
        };
        let expiry = Instant::now() + life;
        let mut heard = Instant::now();
        loop {
            let due = self.held.iter().map(|(due, _)| *due).min();
            let done = tokio::select! {
                biased;
                () = self.joined.cut.cancelled() => Err(End::Cut),
                () = tokio::time::sleep_until(expiry) => Err(End::Expired),
                () = tokio::time::sleep_until(due.unwrap_or(expiry)), if due.is_some() => self.release().await,
                outgoing = self.joined.queue.recv() => match outgoing {
                    Some(outgoing) => self.deliver(outgoing).await,
                    None => Err(End::Cut),
                },
                packet = self.wire.next() => match packet {
                    Ok(packet) => {
                        heard = Instant::now();
                        self.take(packet).await
                    }
                    Err(end) => Err(end),
                },
                () = tokio::time::sleep_until(heard + silence) => Err(End::Silent),
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    async fn take(&mut self, packet: Packet) -> Result<(), End> {
        match packet {
            Packet::Publish(publish) => self.published(publish).await,
            Packet::PubAck(id) => {
                if let Some(at) = self.unacked.iter().position(|(unacked, _)| *unacked == id) {
                    let _waits = self.unacked.swap_remove(at).1.send(()).is_ok();
                }
                Ok(())
            }
            Packet::Subscribe(id, filters) => {
                if filters.len() > FILTERS_MAX {
                    return Err(End::Forbidden("too many filters"));
                }
                let granted = filters.into_iter().map(|(filter, quality)| {
                    if !topic::may_subscribe(&filter, &self.who) {
                        return 0x80;
                    }
                    self.backend.links().subscribe(&self.who, self.joined.number, filter, quality.min(1));
                    quality.min(1)
                });
                let granted = granted.collect();
                self.wire.send(&Packet::SubAck(id, granted)).await
            }
            Packet::Unsubscribe(id, filters) => {
                for filter in &filters {
                    self.backend.links().unsubscribe(&self.who, self.joined.number, filter);
                }
                self.wire.send(&Packet::UnsubAck(id)).await
            }
            Packet::PingReq => self.wire.send(&Packet::PingResp).await,
            Packet::Disconnect => Err(End::Left),
            Packet::Connect(_) => Err(End::Forbidden("a second introduction")),
            Packet::ConnAck { .. } | Packet::SubAck(..) | Packet::UnsubAck(_) | Packet::PingResp => {
                Err(End::Forbidden("a server's packet"))
            }
        }
    }

    async fn published(&mut self, publish: Publish) -> Result<(), End> {
        let request = match Sent::parse(&publish.topic, &self.who) {
            None => return Err(End::Forbidden("a topic that is not its own")),
            Some(Sent::MethodReply { status, rid }) => {
                self.backend.links().replied(&self.who, &rid, status, publish.payload);
                return self.acknowledge(publish.id).await;
            }
            Some(Sent::Get { rid }) => Request::Get { rid },
            Some(Sent::Report { rid }) => Request::Report { rid, body: publish.payload },
            Some(Sent::Event { mut properties }) => {
                // Nothing is retained; the hub makes this a property.
                if publish.retain {
                    properties.insert("mqtt-retain".into(), "true".into());
                }
                Request::Event { properties, body: publish.payload }
            }
        };
        let is_event = matches!(request, Request::Event { .. });
        let Answer::Given { after, message } = self.backend.take(&self.who, request) else {
            return Err(End::Cut);
        };
        // A twin's request is acknowledged at once, its answer is a message of its own. An event has no other answer.
        if is_event && !after.is_zero() {
            return publish.id.map_or(Ok(()), |id| self.hold(after, Packet::PubAck(id)));
        }
        self.acknowledge(publish.id).await?;
        let Some((topic, payload)) = message else { return Ok(()) };
        // Whoever asks without having subscribed hears nothing.
        if !self.backend.links().listens(&self.who, &topic) {
            return Ok(());
        }
        let packet = Packet::Publish(Publish { topic, id: None, duplicate: false, retain: false, payload });
        if after.is_zero() { self.wire.send(&packet).await } else { self.hold(after, packet) }
    }

    async fn acknowledge(&mut self, id: Option<u16>) -> Result<(), End> {
        match id {
            Some(id) => self.wire.send(&Packet::PubAck(id)).await,
            None => Ok(()),
        }
    }

    fn hold(&mut self, after: Duration, packet: Packet) -> Result<(), End> {
        if self.held.len() >= HELD_MAX {
            return Err(End::Forbidden("too many requests under way"));
        }
        self.held.push((Instant::now() + after, packet));
        Ok(())
    }

    /// Sends what is due, in the order in which it was held.
    async fn release(&mut self) -> Result<(), End> {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.held).into_iter().partition(|(due, _)| *due <= now);
        self.held = later;
        let due: Vec<(Instant, Packet)> = due;
        for (_, packet) in due {
            self.wire.send(&packet).await?;
        }
        Ok(())
    }

    async fn deliver(&mut self, outgoing: Outgoing) -> Result<(), End> {
        let Outgoing { topic, payload, quality, acked } = outgoing;
        let mut id = None;
        if quality > 0 {
            self.id = self.id.checked_add(1).unwrap_or(1);
            id = Some(self.id);
            if let Some(acked) = acked {
                if self.unacked.len() >= UNACKED_MAX {
                    return Err(End::Silent);
                }
                self.unacked.push((self.id, acked));
            }
        } else if let Some(acked) = acked {
            // At quality 0 sent is done.
            let _waits = acked.send(()).is_ok();
        }
        self.wire
            .send(&Packet::Publish(Publish { topic, id, duplicate: false, retain: false, payload }))
            .await
    }
}
