//! Probes that connect to somebody: a port, a web server, a gRPC server.
//!
//! Without TLS: what is asked stands in the plant's own network, and to be there is all that it is asked about. Of an answer only
//! the beginning is read.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{Place, Probe, alone::Alone};
use crate::workload::BoxFuture;

/// How much of an answer is read.
const ANSWER_MAX: usize = 512;
/// How large an answer of a health service may be.
const MESSAGE_MAX: usize = 4096;

/// Finds the addresses of a place.
struct Resolver {
    place: Place,
    asking: Alone<io::Result<Vec<SocketAddr>>>,
}

impl Resolver {
    fn new(place: Place) -> Resolver {
        Resolver { place, asking: Alone::default() }
    }

    async fn addresses(&mut self) -> Result<Vec<SocketAddr>, String> {
        let Place { host, port } = self.place.clone();
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        // A resolver may take many times as long as the whole probe.
        let name = host.clone();
        let found = self.asking.run(move || (name.as_str(), port).to_socket_addrs().map(Iterator::collect));
        match found.await? {
            Ok(addresses) if !Vec::is_empty(&addresses) => Ok(addresses),
            Ok(_) => Err(format!("{host} has no address")),
            Err(e) => Err(format!("{host}: {e}")),
        }
    }

    async fn connect(&mut self) -> Result<TcpStream, String> {
        let addresses = self.addresses().await?;
        #[expect(clippy::disallowed_methods, reason = "a probe connects to what the site's owner named")]
        let stream = TcpStream::connect(&addresses[..]).await;
        stream.map_err(|e| format!("{}:{}: {e}", self.place.host, self.place.port))
    }
}

/// Whether a connection is accepted.
pub(super) struct Tcp(Resolver);

impl Tcp {
    pub(super) fn new(place: Place) -> Tcp {
        Tcp(Resolver::new(place))
    }
}

impl Probe for Tcp {
    fn ask(&mut self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { self.0.connect().await.map(drop) })
    }
}

/// Whether `GET` is answered with 2xx or 3xx.
pub(super) struct Http {
    resolver: Resolver,
    request: String,
}

impl Http {
    pub(super) fn new(place: Place, authority: String, path: String) -> Http {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: quorate\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        );
        Http { resolver: Resolver::new(place), request }
    }

    async fn status(&mut self) -> Result<u16, String> {
        let mut stream = self.resolver.connect().await?;
        let failed = |e: io::Error| format!("it does not answer: {e}");
        stream.write_all(self.request.as_bytes()).await.map_err(failed)?;
        let mut got = Vec::new();
        let mut chunk = [0; ANSWER_MAX];
        while !got.contains(&b'\n') && got.len() < ANSWER_MAX {
            match stream.read(&mut chunk).await.map_err(failed)? {
                0 => break,
                n => got.extend_from_slice(&chunk[..n]),
            }
        }
        status_of(&got).ok_or_else(|| "what answers does not speak HTTP".to_owned())
    }
}

/// The code in a status line.
fn status_of(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|b| *b == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?;
    let code = line.split_ascii_whitespace().nth(1)?;
    code.parse().ok().filter(|code| (100..600).contains(code))
}

impl Probe for Http {
    fn ask(&mut self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            match self.status().await? {
                200..400 => Ok(()),
                code => Err(format!("it answers {code}")),
            }
        })
    }
}

/// Whether the standard health service says `SERVING`.
pub(super) struct Grpc {
    resolver: Resolver,
    service: String,
    timeout: Duration,
}

impl Grpc {
    pub(super) fn new(place: Place, service: String, timeout: Duration) -> Grpc {
        Grpc { resolver: Resolver::new(place), service, timeout }
    }

    async fn serves(&mut self) -> Result<(), String> {
        let addresses = self.resolver.addresses().await?;
        let address = addresses.first().ok_or("it has no address")?;
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| e.to_string())?;
        let channel = endpoint.connect_timeout(self.timeout).timeout(self.timeout).connect().await;
        let channel = channel.map_err(|e| format!("{address}: {}", root(&e)))?;
        let mut client = HealthClient::new(channel).max_decoding_message_size(MESSAGE_MAX);
        let request = HealthCheckRequest { service: self.service.clone() };
        match client.check(request).await {
            Ok(answer) => match answer.into_inner().status() {
                ServingStatus::Serving => Ok(()),
                other => Err(format!("it says {}", other.as_str_name())),
            },
            Err(status) => Err(format!("{:?}: {}", status.code(), status.message())),
        }
    }
}

fn root(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

impl Probe for Grpc {
    fn ask(&mut self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.serves())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_and_what_is_none() {
        for (text, code) in [
            ("HTTP/1.1 200 OK\r\n", Some(200)),
            ("HTTP/1.0 503\r\n", Some(503)),
            ("HTTP/1.1 20000 OK\r\n", None),
            ("HTTP/1.1 \r\n", None),
            ("SSH-2.0-OpenSSH\r\n", None),
            ("", None),
        ] {
            assert_eq!(status_of(text.as_bytes()), code, "{text:?}");
        }
        assert_eq!(status_of(&[0xff; 512]), None);
    }
}
