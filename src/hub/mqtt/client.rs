//! The module's line to the hub, or to the edgeHub of its device: TCP, TLS, a fresh token, and a session on it.
//!
//! Each [`connect`](Module::connect) is one attempt within one deadline; whoever calls it decides about the next. The token
//! is made for each link and lives longer than a link does, so that there is always time to connect anew before the hub
//! ends it: one identity has one link, so the old and the new cannot overlap.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use percent_encoding::utf8_percent_encode;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{packet::Connect, session};
use crate::{
    clock::Clock,
    hub::{
        BoxFuture, Error,
        edge::Identity,
        link::{Connected, Module},
        rest,
        sas::UNRESERVED,
        target::Target,
        wall,
    },
};

/// The port of MQTT over TLS.
const PORT: u16 = 8883;
/// What the user name says of the protocol's version.
const API_VERSION: &str = "2021-04-12";
/// The hub gives a silent link up after one and a half times this. Short enough for whatever stands between to keep the
/// connection in mind.
const KEEP_ALIVE_S: u16 = 120;
/// How long a TCP connection may take: longer than a satellite needs, short enough to try again soon.
const REACH: Duration = Duration::from_secs(2);
/// How long a link lives, if nothing ends it. Each new one costs the hub a connection and a read.
pub const LINK_LIFE: Duration = Duration::from_secs(12 * 3600);
/// A token is good for this long after the end of its link: more than the hub's allowance for clocks that differ.
const TOKEN_LEFT: Duration = Duration::from_secs(600);

/// What the line needs to know.
#[derive(Debug, Clone)]
pub struct Line {
    /// Who it is.
    pub identity: Identity,
    /// Whether messages for the module's inputs are wanted.
    pub inputs: bool,
    /// A PEM file with further authorities to trust. Read at every connection.
    pub ca_file: Option<PathBuf>,
    /// How long connecting, and each call, may take.
    pub timeout: Duration,
}

/// The line.
#[derive(Debug)]
pub struct Client {
    line: Line,
    clock: Arc<dyn Clock>,
    name: String,
}

impl Client {
    /// Nothing is sent yet.
    pub fn new(line: Line, clock: Arc<dyn Clock>) -> Client {
        let name = match line.identity.gateway() {
            Some(gateway) => format!("{} through {gateway}", line.identity.hub()),
            None => line.identity.hub().to_owned(),
        };
        Client { line, clock, name }
    }

    /// Where it connects to.
    fn host(&self) -> &str {
        self.line.identity.gateway().unwrap_or(self.line.identity.hub())
    }

    /// Goes as far as the TLS handshake, and hangs up without a word: whoever is linked under the same identity stays so. Returns
    /// where that was.
    ///
    /// # Errors
    /// [`Error`], as [`connect`](Module::connect) would meet it on this way.
    pub async fn shake_hands(&self) -> Result<String, Error> {
        let timeout = self.line.timeout;
        let shake = async {
            let tls = Arc::new(self.tls().await?);
            dial(self.host(), tls).await.map(drop)
        };
        let shaken = tokio::time::timeout(timeout, shake).await;
        shaken.unwrap_or(Err(Error::TimedOut { after: timeout }))?;
        let (host, port) = address(self.host())?;
        Ok(format!("{host}:{port}"))
    }

    async fn link(&self) -> Result<Connected, Error> {
        let identity = &self.line.identity;
        let tls = Arc::new(self.tls().await?);
        let stream = dial(self.host(), tls).await?;
        let wall_ms = self.clock.wall_ms();
        let token = identity.token(wall_ms / 1000 + (LINK_LIFE + TOKEN_LEFT).as_secs()).await?;
        let client_id = identity.target().to_string();
        let agent =
            utf8_percent_encode(concat!("quorate/", env!("CARGO_PKG_VERSION")), UNRESERVED).to_string();
        // The hub's own name, also where an edgeHub is dialled.
        let username =
            format!("{}/{client_id}/?api-version={API_VERSION}&DeviceClientType={agent}", identity.hub());
        let connect = Connect {
            client_id,
            keep_alive: KEEP_ALIVE_S,
            // As Microsoft's own clients do, which is what hubs are tried with. Nothing depends on what is kept: every link
            // subscribes to all that it wants and reads the twin.
            clean_session: false,
            username: Some(username),
            password: Some(token.reveal().to_owned().into()),
        };
        let opening = session::Opening {
            connect,
            target: identity.target().clone(),
            inputs: self.line.inputs,
            timeout: self.line.timeout,
            renew: LINK_LIFE,
        };
        session::open(stream, opening).await.map_err(|error| match error {
            Error::Unauthorized { status, detail } => {
                let detail = format!(
                    "{detail}; the other side says no more. Either the key is wrong, or this device's wall clock, which says {}; or the \
                     module {} or its device was deleted, disabled or made anew in the hub{}",
                    wall::rfc3339(wall_ms),
                    identity.target(),
                    if identity.gateway().is_some() { ", or the edgeHub has not heard of it yet" } else { "" }
                );
                Error::Unauthorized { status, detail }
            }
            other => other,
        })
    }

    /// Whom to trust: an edgeHub is vouched for by its device's own authorities, the hub by the public ones.
    async fn tls(&self) -> Result<ClientConfig, Error> {
        let mut roots = RootCertStore::empty();
        if self.line.identity.gateway().is_some()
            && let Some(pem) = self.line.identity.trust_bundle().await?
        {
            add(&mut roots, pem.as_bytes(), "IoT Edge's trust bundle")?;
        } else {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        if let Some(file) = &self.line.ca_file {
            add(&mut roots, &read(file).await?, &file.display().to_string())?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|why| Error::Untrusted(why.to_string()))?;
        Ok(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

impl Module for Client {
    fn name(&self) -> &str {
        &self.name
    }

    fn target(&self) -> &Target {
        self.line.identity.target()
    }

    fn stores_and_forwards(&self) -> bool {
        self.line.identity.gateway().is_some()
    }

    fn knock(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let (host, port) = address(self.host())?;
            reach(&host, port).await.map(drop)
        })
    }

    fn connect(&self) -> BoxFuture<'_, Result<Connected, Error>> {
        Box::pin(async move {
            let timeout = self.line.timeout;
            tokio::time::timeout(timeout, self.link())
                .await
                .unwrap_or(Err(Error::TimedOut { after: timeout }))
        })
    }
}

async fn read(file: &Path) -> Result<Vec<u8>, Error> {
    tokio::fs::read(file)
        .await
        .map_err(|why| Error::Untrusted(format!("{} cannot be read: {why}", file.display())))
}

fn add(roots: &mut RootCertStore, pem: &[u8], whence: &str) -> Result<(), Error> {
    let bad = |why: String| Error::Untrusted(format!("{whence} holds no usable certificate: {why}"));
    let before = roots.len();
    let mut last = "it is empty".to_owned();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|why| bad(why.to_string()))?;
        // A bundle may also name what nobody can use; the rest counts.
        if let Err(why) = roots.add(certificate) {
            last = why.to_string();
        }
    }
    if roots.len() == before { Err(bad(last)) } else { Ok(()) }
}

/// The host without brackets, and the port.
fn address(host: &str) -> Result<(String, u16), Error> {
    let authority: http::uri::Authority =
        host.parse().map_err(|_| Error::Unreachable(format!("{host:?} is not a host name")))?;
    let bare = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok((bare, authority.port_u16().unwrap_or(PORT)))
}

async fn reach(host: &str, port: u16) -> Result<TcpStream, Error> {
    #[expect(clippy::disallowed_methods, reason = "the hub is not on the LAN")]
    let connect = TcpStream::connect((host, port));
    match tokio::time::timeout(REACH, connect).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(why)) => Err(Error::Unreachable(why.to_string())),
        Err(_) => Err(Error::Unreachable(format!("no connection within {} s", REACH.as_secs()))),
    }
}

async fn dial(host: &str, tls: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, Error> {
    let (host, port) = address(host)?;
    let stream = reach(&host, port).await?;
    let name = ServerName::try_from(host.clone())
        .map_err(|_| Error::Unreachable(format!("{host:?} is not a host name")))?;
    // Small packets that wait for each other.
    let _ = stream.set_nodelay(true);
    TlsConnector::from(tls).connect(name, stream).await.map_err(|why| {
        match why.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => rest::tls_error(error),
            None => Error::Unreachable(format!("the connection broke: {why}")),
        }
    })
}
