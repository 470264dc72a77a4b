//! The packets of MQTT 3.1.1 (OASIS standard, 29 October 2014), read from and written to bytes.
//!
//! Pure and total: any bytes give a packet, "not yet all there", or a reason. What IoT Hub does not do is not here: quality of
//! service 2 (its packets are refused), wills (read and dropped: the hub turns one into telemetry, and nobody here sends one).
//! Sections named in comments are the standard's.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The largest packet that is read: the hub's largest message, 256 KiB, with room for its topic.
pub const PACKET_MAX: usize = 300 * 1024;

/// Why bytes are not a packet. The connection must be closed (section 4.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The length field says more than [`PACKET_MAX`], or is itself too long.
    #[error("a packet is longer than {PACKET_MAX} bytes")]
    TooLong,
    /// No such kind, or flags that this kind does not have.
    #[error("a packet is of no known kind")]
    Kind,
    /// A field goes beyond its packet, or bytes are left over.
    #[error("a packet's fields do not fit into it")]
    Fields,
    /// A text is not UTF-8, or holds a null character.
    #[error("a text is not UTF-8")]
    Text,
    /// Not `MQTT`, level 4.
    #[error("another protocol than MQTT 3.1.1")]
    Protocol,
    /// Quality of service 2, or a reserved value.
    #[error("a quality of service other than 0 and 1")]
    Quality,
}

/// The first packet of a client (section 3.1).
#[derive(Clone, PartialEq, Eq)]
pub struct Connect {
    /// `{device}` or `{device}/{module}`.
    pub client_id: String,
    /// Seconds; zero means never.
    pub keep_alive: u16,
    /// Whether earlier subscriptions are forgotten.
    pub clean_session: bool,
    /// `{hub}/{client id}/?api-version=…`
    pub username: Option<String>,
    /// A token. Never shown.
    pub password: Option<Bytes>,
}

impl std::fmt::Debug for Connect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connect")
            .field("client_id", &self.client_id)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Whether a connection is accepted (section 3.2.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// 0: yes.
    Yes,
    /// 1 to 5, or a number that means nothing: no. 3 is "not available", 4 and 5 are about the credentials.
    No(u8),
}

/// A message (section 3.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Where to.
    pub topic: String,
    /// The packet id that its receiver acknowledges; `None` for quality of service 0.
    pub id: Option<u16>,
    /// Sent before, perhaps.
    pub duplicate: bool,
    /// The hub turns it into a property; nothing is retained.
    pub retain: bool,
    /// The message itself.
    pub payload: Bytes,
}

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// A client introduces itself.
    Connect(Connect),
    /// And is let in or not.
    ConnAck {
        /// Whether earlier subscriptions were kept.
        session_present: bool,
        /// The answer.
        accepted: Accepted,
    },
    /// A message.
    Publish(Publish),
    /// The message with this id has arrived.
    PubAck(u16),
    /// Filters, each with the quality of service wanted, 0 or 1 (2 is read as 1: the hub grants no more).
    Subscribe(u16, Vec<(String, u8)>),
    /// What was granted: 0, 1, or 0x80 for a refusal.
    SubAck(u16, Vec<u8>),
    /// Filters no longer wanted.
    Unsubscribe(u16, Vec<String>),
    /// They are gone.
    UnsubAck(u16),
    /// Are you there?
    PingReq,
    /// Yes.
    PingResp,
    /// The client leaves in good order.
    Disconnect,
}

const CONNECT: u8 = 1;
const CONNACK: u8 = 2;
const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;
const SUBSCRIBE: u8 = 8;
const SUBACK: u8 = 9;
const UNSUBSCRIBE: u8 = 10;
const UNSUBACK: u8 = 11;
const PINGREQ: u8 = 12;
const PINGRESP: u8 = 13;
const DISCONNECT: u8 = 14;

impl Packet {
    /// Takes the first packet off `bytes`; `None` while it is not all there, and nothing is taken then.
    ///
    /// # Errors
    /// [`Malformed`]: what follows cannot be understood either, so the connection has to end.
    pub fn read(bytes: &mut BytesMut) -> Result<Option<Packet>, Malformed> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let Some((length, header)) = length(bytes.get(1..).unwrap_or_default())? else { return Ok(None) };
        if length > PACKET_MAX {
            return Err(Malformed::TooLong);
        }
        if bytes.len() < 1 + header + length {
            return Ok(None);
        }
        bytes.advance(1 + header);
        let mut body = bytes.split_to(length).freeze();
        let packet = one(first, &mut body)?;
        if body.has_remaining() {
            return Err(Malformed::Fields);
        }
        Ok(Some(packet))
    }

    /// Appends the packet. Texts beyond 65,535 bytes are cut off at that, as their length field demands; nobody here
    /// makes any.
    pub fn write(&self, to: &mut BytesMut) {
        let mut body = BytesMut::new();
        let first = match self {
            Packet::Connect(connect) => {
                put_connect(connect, &mut body);
                CONNECT << 4
            }
            Packet::ConnAck { session_present, accepted } => {
                body.put_u8(u8::from(*session_present));
                body.put_u8(match accepted {
                    Accepted::Yes => 0,
                    Accepted::No(code) => (*code).max(1),
                });
                CONNACK << 4
            }
            Packet::Publish(publish) => {
                put_text(&publish.topic, &mut body);
                if let Some(id) = publish.id {
                    body.put_u16(id);
                }
                body.put_slice(&publish.payload);
                let quality = u8::from(publish.id.is_some());
                PUBLISH << 4 | u8::from(publish.duplicate) << 3 | quality << 1 | u8::from(publish.retain)
            }
            Packet::PubAck(id) => {
                body.put_u16(*id);
                PUBACK << 4
            }
            Packet::Subscribe(id, filters) => {
                body.put_u16(*id);
                for (filter, quality) in filters {
                    put_text(filter, &mut body);
                    body.put_u8(*quality);
                }
                SUBSCRIBE << 4 | 2
            }
            Packet::SubAck(id, granted) => {
                body.put_u16(*id);
                body.put_slice(granted);
                SUBACK << 4
            }
            Packet::Unsubscribe(id, filters) => {
                body.put_u16(*id);
                filters.iter().for_each(|filter| put_text(filter, &mut body));
                UNSUBSCRIBE << 4 | 2
            }
            Packet::UnsubAck(id) => {
                body.put_u16(*id);
                UNSUBACK << 4
            }
            Packet::PingReq => PINGREQ << 4,
            Packet::PingResp => PINGRESP << 4,
            Packet::Disconnect => DISCONNECT << 4,
        };
        to.put_u8(first);
        put_length(body.len(), to);
        to.put_slice(&body);
    }
}

/// The length field and how many bytes it takes (section 2.2.3); `None` while it is not all there.
fn length(bytes: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let mut length = 0;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((length, at + 1)));
        }
    }
    if bytes.len() >= 4 { Err(Malformed::TooLong) } else { Ok(None) }
}

fn put_length(mut length: usize, to: &mut BytesMut) {
    loop {
        let low = u8::try_from(length & 0x7f).unwrap_or_default();
        length >>= 7;
        to.put_u8(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            return;
        }
    }
}

fn one(first: u8, body: &mut Bytes) -> Result<Packet, Malformed> {
    let (kind, flags) = (first >> 4, first & 0x0f);
    let expected = match kind {
        PUBLISH => flags,
        SUBSCRIBE | UNSUBSCRIBE => 2,
        _ => 0,
    };
    if flags != expected {
        return Err(Malformed::Kind);
    }
    Ok(match kind {
        CONNECT => Packet::Connect(take_connect(body)?),
        CONNACK => {
            let session_present = take_u8(body)? & 1 == 1;
            let accepted = match take_u8(body)? {
                0 => Accepted::Yes,
                code => Accepted::No(code),
            };
            Packet::ConnAck { session_present, accepted }
        }
        PUBLISH => {
            let topic = take_text(body)?;
            let id = match flags >> 1 & 3 {
                0 => None,
                1 => Some(take_id(body)?),
                _ => return Err(Malformed::Quality),
            };
            let payload = body.split_off(0);
            Packet::Publish(Publish { topic, id, duplicate: flags & 8 != 0, retain: flags & 1 != 0, payload })
        }
        PUBACK => Packet::PubAck(take_id(body)?),
        SUBSCRIBE => {
            let id = take_id(body)?;
            let mut filters = Vec::new();
            while body.has_remaining() {
                let filter = take_text(body)?;
                match take_u8(body)? {
                    quality @ 0..=2 => filters.push((filter, quality.min(1))),
                    _ => return Err(Malformed::Quality),
                }
            }
            // A request for nothing breaks the protocol (section 3.8.3).
            if filters.is_empty() {
                return Err(Malformed::Fields);
            }
            Packet::Subscribe(id, filters)
        }
        SUBACK => Packet::SubAck(take_id(body)?, body.split_off(0).to_vec()),
        UNSUBSCRIBE => {
            let id = take_id(body)?;
            let mut filters = Vec::new();
            while body.has_remaining() {
                filters.push(take_text(body)?);
            }
            if filters.is_empty() {
                return Err(Malformed::Fields);
            }
            Packet::Unsubscribe(id, filters)
        }
        UNSUBACK => Packet::UnsubAck(take_id(body)?),
        PINGREQ => Packet::PingReq,
        PINGRESP => Packet::PingResp,
        DISCONNECT => Packet::Disconnect,
        _ => return Err(Malformed::Kind),
    })
}

fn take_connect(body: &mut Bytes) -> Result<Connect, Malformed> {
    if take_text(body)? != "MQTT" || take_u8(body)? != 4 {
        return Err(Malformed::Protocol);
    }
    let flags = take_u8(body)?;
    let keep_alive = take_u16(body)?;
    // The reserved bit, and a password without a name (section 3.1.2).
    if flags & 1 != 0 || flags & 0xc0 == 0x40 {
        return Err(Malformed::Fields);
    }
    let client_id = take_text(body)?;
    if flags & 4 != 0 {
        take_text(body)?;
        take_bytes(body)?;
    }
    let username = if flags & 0x80 != 0 { Some(take_text(body)?) } else { None };
    let password = if flags & 0x40 != 0 { Some(take_bytes(body)?) } else { None };
    Ok(Connect { client_id, keep_alive, clean_session: flags & 2 != 0, username, password })
}

fn put_connect(connect: &Connect, body: &mut BytesMut) {
    put_text("MQTT", body);
    body.put_u8(4);
    let name = u8::from(connect.username.is_some()) << 7;
    let password = u8::from(connect.username.is_some() && connect.password.is_some()) << 6;
    body.put_u8(name | password | u8::from(connect.clean_session) << 1);
    body.put_u16(connect.keep_alive);
    put_text(&connect.client_id, body);
    if let Some(username) = &connect.username {
        put_text(username, body);
        if let Some(password) = &connect.password {
            put_bytes(password, body);
        }
    }
}

fn take_u8(body: &mut Bytes) -> Result<u8, Malformed> {
    body.try_get_u8().map_err(|_| Malformed::Fields)
}

fn take_u16(body: &mut Bytes) -> Result<u16, Malformed> {
    body.try_get_u16().map_err(|_| Malformed::Fields)
}

/// A packet id is never zero (section 2.3.1).
fn take_id(body: &mut Bytes) -> Result<u16, Malformed> {
    take_u16(body).and_then(|id| if id == 0 { Err(Malformed::Fields) } else { Ok(id) })
}

fn take_bytes(body: &mut Bytes) -> Result<Bytes, Malformed> {
    let length = usize::from(take_u16(body)?);
    if body.len() < length { Err(Malformed::Fields) } else { Ok(body.split_to(length)) }
}

fn take_text(body: &mut Bytes) -> Result<String, Malformed> {
    let text = String::from_utf8(take_bytes(body)?.to_vec()).map_err(|_| Malformed::Text)?;
    if text.contains('\0') { Err(Malformed::Text) } else { Ok(text) }
}

fn put_bytes(bytes: &[u8], body: &mut BytesMut) {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    body.put_u16(length);
    body.put_slice(bytes.get(..usize::from(length)).unwrap_or(bytes));
}

fn put_text(text: &str, body: &mut BytesMut) {
    let mut end = text.len().min(usize::from(u16::MAX));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    put_bytes(text.get(..end).unwrap_or_default().as_bytes(), body);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text() -> impl Strategy<Value = String> {
        "[a-zé/#$+ ]{0,20}"
    }

    fn packet() -> impl Strategy<Value = Packet> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..400).prop_map(Bytes::from);
        let id = || 1..=u16::MAX;
        prop_oneof![
            (text(), any::<u16>(), any::<bool>(), text(), bytes()).prop_map(
                |(client_id, keep_alive, clean_session, name, password)| {
                    Packet::Connect(Connect {
                        client_id,
                        keep_alive,
                        clean_session,
                        username: Some(name),
                        password: Some(password),
                    })
                }
            ),
            (any::<bool>(), 0..9_u8).prop_map(|(session_present, code)| Packet::ConnAck {
                session_present,
                accepted: if code == 0 { Accepted::Yes } else { Accepted::No(code) },
            }),
            (text(), proptest::option::of(id()), any::<bool>(), any::<bool>(), bytes()).prop_map(
                |(topic, id, duplicate, retain, payload)| Packet::Publish(Publish {
                    topic,
                    id,
                    duplicate,
                    retain,
                    payload
                })
            ),
            id().prop_map(Packet::PubAck),
            (id(), proptest::collection::vec((text(), 0..2_u8), 1..4))
                .prop_map(|(id, filters)| Packet::Subscribe(id, filters)),
            (id(), proptest::collection::vec(any::<u8>(), 0..4))
                .prop_map(|(id, granted)| Packet::SubAck(id, granted)),
            (id(), proptest::collection::vec(text(), 1..4))
                .prop_map(|(id, filters)| Packet::Unsubscribe(id, filters)),
            id().prop_map(Packet::UnsubAck),
            Just(Packet::PingReq),
            Just(Packet::PingResp),
            Just(Packet::Disconnect),
        ]
    }

    proptest! {
        #[test]
        fn packets_survive_the_wire_in_any_pieces(packets in proptest::collection::vec(packet(), 1..5), piece in 1..64_usize) {
            let mut wire = BytesMut::new();
            packets.iter().for_each(|packet| packet.write(&mut wire));
            let (mut got, mut read) = (Vec::new(), BytesMut::new());
            for bytes in wire.chunks(piece) {
                read.extend_from_slice(bytes);
                while let Some(packet) = Packet::read(&mut read).expect("is well formed") {
                    got.push(packet);
                }
            }
            prop_assert_eq!(got, packets);
            prop_assert!(read.is_empty());
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut read = BytesMut::from(bytes.as_slice());
            while let Ok(Some(_)) = Packet::read(&mut read) {}
        }

        #[test]
        fn spoilt_packets_are_an_error_or_another_packet(packet in packet(), at in any::<prop::sample::Index>(), bit in 0..8_u32) {
            let mut wire = BytesMut::new();
            packet.write(&mut wire);
            let at = at.index(wire.len());
            wire[at] ^= 1 << bit;
            while let Ok(Some(_)) = Packet::read(&mut wire) {}
        }
    }

    fn read(bytes: &[u8]) -> Result<Option<Packet>, Malformed> {
        Packet::read(&mut BytesMut::from(bytes))
    }

    #[test]
    fn what_the_standard_forbids_is_refused() {
        assert_eq!(read(&[0x30, 0xff, 0xff, 0xff, 0xff]), Err(Malformed::TooLong));
        assert_eq!(read(&[0x30, 0xff, 0xff, 0xff, 0x7f]), Err(Malformed::TooLong));
        assert_eq!(read(&[0x36, 0x04, 0, 0, 0, 1]), Err(Malformed::Quality));
        assert_eq!(read(&[0x40, 0x02, 0, 0]), Err(Malformed::Fields), "a packet id of zero");
        assert_eq!(read(&[0x80, 0x02, 0, 1]), Err(Malformed::Kind), "without its flags");
        assert_eq!(read(&[0x82, 0x02, 0, 1]), Err(Malformed::Fields), "a subscription to nothing");
        assert_eq!(read(&[0xe0, 0x01, 0]), Err(Malformed::Fields), "bytes left over");
        assert_eq!(read(&[0x10, 0x07, 0, 4, b'M', b'Q', b'T', b'T', 5]), Err(Malformed::Protocol));
        assert_eq!(read(&[0xf0, 0x00]), Err(Malformed::Kind));
        assert_eq!(read(&[0x30]), Ok(None));
    }

    #[test]
    fn a_token_is_not_shown() {
        let connect = Connect {
            client_id: "d/m".into(),
            keep_alive: 60,
            clean_session: false,
            username: None,
            password: Some(Bytes::from_static(b"hush")),
        };
        assert!(!format!("{connect:?}").contains("hush"));
    }
}
