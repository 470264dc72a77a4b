//! A client that speaks MQTT packet by packet, so that a test can say exactly what goes over the wire.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use quorate::hub::{
    mqtt::packet::{Accepted, Connect, Packet, Publish},
    sas::UNRESERVED,
    store::Target,
};
use ring::hmac;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Nothing here takes this long, unless it never comes.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Client {
    stream: TlsStream<TcpStream>,
    read: BytesMut,
    id: u16,
}

/// The value of `name` in a connection string.
pub(super) fn part<'a>(string: &'a str, name: &str) -> &'a str {
    string
        .split(';')
        .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
        .unwrap_or_else(|| panic!("no {name}"))
}

/// A token as Microsoft's device SDK makes it, of a connection string.
pub(super) fn token(string: &str, resource: &str, expiry: u64) -> String {
    let key = STANDARD.decode(part(string, "SharedAccessKey")).expect("base64");
    let resource = percent_encoding::utf8_percent_encode(resource, UNRESERVED).to_string();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let signature = STANDARD.encode(hmac::sign(&key, format!("{resource}\n{expiry}").as_bytes()));
    let signature = percent_encoding::utf8_percent_encode(&signature, UNRESERVED);
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}")
}

/// A first packet as Microsoft's device SDK makes it.
pub(super) fn connect(string: &str, who: &Target, expiry: u64) -> Connect {
    let host = part(string, "HostName");
    let resource = match &who.module {
        None => format!("{host}/devices/{}", who.device),
        Some(module) => format!("{host}/devices/{}/modules/{module}", who.device),
    };
    Connect {
        client_id: who.to_string(),
        keep_alive: 60,
        clean_session: false,
        username: Some(format!("{host}/{who}/?api-version=2019-10-01&DeviceClientType=test%2F1")),
        password: Some(Bytes::from(token(string, &resource, expiry))),
    }
}

pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come"),
    }
}

/// A connection with TLS.
#[expect(clippy::disallowed_methods, reason = "a test dials the emulator")]
pub(super) async fn dial(address: SocketAddr, ca_pem: &str) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).expect("a certificate")).expect("is taken");
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(address).await.expect("connects");
    let name = ServerName::from(address.ip());
    TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.expect("shakes hands")
}

impl Client {
    /// TLS up to here; nothing is sent.
    pub(super) async fn dial(address: SocketAddr, ca_pem: &str) -> Client {
        Client { stream: dial(address, ca_pem).await, read: BytesMut::new(), id: 0 }
    }
    pub(super) async fn bytes(&mut self, bytes: &[u8]) {
        // The other side may have closed already, which the test sees by other means.
        let _sent = self.stream.write_all(bytes).await.is_ok() && self.stream.flush().await.is_ok();
    }

    pub(super) async fn send(&mut self, packet: &Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes);
        self.bytes(&bytes).await;
    }

    /// The next packet; `None` once the link has ended.
    pub(super) async fn next(&mut self) -> Option<Packet> {
        within("a packet", async {
            loop {
                if let Some(packet) = Packet::read(&mut self.read).expect("a packet") {
                    return Some(packet);
                }
                if !matches!(self.stream.read_buf(&mut self.read).await, Ok(n) if n > 0) {
                    return None;
                }
            }
        })
        .await
    }

    /// Introduces itself and returns the answer with whether subscriptions were kept.
    pub(super) async fn introduce(&mut self, connect: Connect) -> Option<(Accepted, bool)> {
        self.send(&Packet::Connect(connect)).await;
        match self.next().await? {
            Packet::ConnAck { session_present, accepted } => Some((accepted, session_present)),
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn subscribe(&mut self, filters: &[&str]) -> Vec<u8> {
        self.id += 1;
        let wanted = filters.iter().map(|filter| ((*filter).to_owned(), 1)).collect();
        self.send(&Packet::Subscribe(self.id, wanted)).await;
        match self.next().await {
            Some(Packet::SubAck(id, granted)) if id == self.id => granted,
            other => panic!("{other:?}"),
        }
    }

    /// Publishes at quality 1; the acknowledgement is left to be read.
    pub(super) async fn publish(&mut self, topic: &str, payload: &str) {
        self.id += 1;
        let payload = Bytes::from(payload.to_owned());
        let publish =
            Publish { topic: topic.into(), id: Some(self.id), duplicate: false, retain: false, payload };
        self.send(&Packet::Publish(publish)).await;
    }

    /// The next message, past acknowledgements; answered if it asks for that.
    pub(super) async fn message(&mut self) -> Option<(String, Bytes)> {
        loop {
            match self.next().await? {
                Packet::Publish(publish) => {
                    if let Some(id) = publish.id {
                        self.send(&Packet::PubAck(id)).await;
                    }
                    return Some((publish.topic, publish.payload));
                }
                Packet::PubAck(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The same with its body as JSON.
    pub(super) async fn json(&mut self) -> (String, Value) {
        let (topic, payload) = self.message().await.expect("a message");
        let body = serde_json::from_slice(&payload).unwrap_or(Value::Null);
        (topic, body)
    }

    /// Waits for the other side to end the link; what it still says is read.
    pub(super) async fn ended(&mut self) {
        while self.next().await.is_some() {}
    }
}
