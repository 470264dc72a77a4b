//! HTTP by hand, over TLS or plain: what a client may send that no library would.

use std::{net::SocketAddr, sync::Arc};

use quorate::{emulator::Emulator, hub::sas::Credentials};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::hub::Site;

/// An answer. Status 0: the connection ended without one.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|why| panic!("{why}: {self:?}"))
    }

    /// A header, by its name in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn read(text: &str) -> Answer {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        assert!(!chunked, "the hub's answers have a length: {head}");
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    )
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, text: &str) -> Answer {
    // A hub in trouble cuts at any moment: what was read until then is the answer.
    let _sent = stream.write_all(text.as_bytes()).await.is_ok();
    let mut answer = Vec::new();
    let _whole = stream.read_to_end(&mut answer).await.is_ok();
    Answer::read(&String::from_utf8_lossy(&answer))
}

fn connect(address: SocketAddr) -> tokio::net::TcpStream {
    let stream = std::net::TcpStream::connect(address).expect("connects");
    stream.set_nonblocking(true).expect("a socket");
    tokio::net::TcpStream::from_std(stream).expect("a socket")
}

/// One request over plain HTTP.
pub(super) async fn plain(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let headers = [&[("host", "localhost")], headers].concat();
    exchange(connect(address), &request(method, path, &headers, body)).await
}

/// One request to the emulated hub over TLS.
pub(super) async fn https(
    site: &Site,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    over_tls(&site.emulator, method, path, headers, body).await
}

async fn over_tls(
    emulator: &Emulator,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(emulator.ca_pem().as_bytes()).expect("PEM");
    roots.add(ca).expect("an authority");
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let tcp = connect(emulator.address());
    let Ok(stream) = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, tcp).await else {
        return Answer::read("");
    };
    let host = format!("localhost:{}", emulator.address().port());
    let headers = [&[("host", host.as_str())], headers].concat();
    exchange(stream, &request(method, path, &headers, body)).await
}

/// One request with all rights; `path` gets its api-version.
pub(super) async fn owner(
    site: &Site,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    as_owner(&site.emulator, method, path, headers, body).await
}

/// The same for a hub that is no test bench's.
pub(crate) async fn as_owner(
    emulator: &Emulator,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let token =
        Credentials::parse(&emulator.owner_connection_string()).expect("a string").token(u64::MAX / 2);
    let headers = [&[("authorization", token.as_str())], headers].concat();
    let joint = if path.contains('?') { '&' } else { '?' };
    over_tls(emulator, method, &format!("{path}{joint}api-version=2021-04-12"), &headers, body).await
}
