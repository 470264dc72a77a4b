//! The real hub: IoT Hub's service REST API over TLS.
//!
//! It promises that nothing but the configured hub gets the credentials: redirects are never followed, proxies are not
//! taken from the environment, plain HTTP is not spoken. Every call ends within one deadline and is tried once; trouble
//! is told apart by who can mend it (`error.rs`). Answers are read up to a limit, whatever they claim to be.
//! Of the hub itself, only this file asks with reqwest; tokens come from `sas.rs` and `entra.rs`.

mod answer;

use std::{
    error::Error as StdError,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use percent_encoding::utf8_percent_encode;
use reqwest::{
    Method, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, IF_MATCH},
};
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio_rustls::TlsConnector;

use super::{
    BoxFuture, Error, Hub,
    entra::{Entra, TokenSource},
    sas::{Credentials, Tokens, UNRESERVED},
    settings::{CONNECTION_STRING_ADVICE, Identity, Settings},
    target::Target,
    twin::{Change, Twin},
};
use crate::{clock::Clock, timing::Fault};

const API_VERSION: &str = "2021-04-12";
/// A twin at all of the hub's limits, with its metadata, stays well below this.
const ANSWER_MAX: usize = 1024 * 1024;
/// A body from this length on is read beside the loops, which keep a lease alive meanwhile.
const AT_ONCE_MAX: usize = 64 * 1024;
/// How long a knock waits for the door: longer than a satellite takes.
const KNOCK: Duration = Duration::from_secs(2);

/// The hub over REST.
#[derive(Debug)]
pub struct RestHub {
    client: reqwest::Client,
    tls: Arc<ClientConfig>,
    tokens: TokenSource,
    host: String,
    /// Where the connection string came from, if from a file: keys are rotated by writing it anew.
    file: Option<PathBuf>,
    timeout: Duration,
    clock: Arc<dyn Clock>,
}

impl RestHub {
    /// Reads the files that `settings` names and prepares the connection; nothing is sent yet.
    ///
    /// # Errors
    /// All faults at once, each naming a key of the `hub` section. None quotes a secret.
    pub fn open(settings: &Settings, clock: Arc<dyn Clock>) -> Result<RestHub, Vec<Fault>> {
        Self::from_source(source(settings, &clock), settings, clock)
    }

    /// Like [`RestHub::open`], for the hub at `host` with tokens from elsewhere.
    ///
    /// # Errors
    /// All faults at once, each naming a key of the `hub` section.
    pub fn with_tokens(
        host: String,
        tokens: TokenSource,
        settings: &Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<RestHub, Vec<Fault>> {
        Self::from_source(Ok((host, tokens)), settings, clock)
    }

    fn from_source(
        source: Result<(String, TokenSource), Fault>,
        settings: &Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<RestHub, Vec<Fault>> {
        let (source, roots) = match (source, roots(settings.ca_file.as_deref())) {
            (Ok(source), Ok(roots)) => (source, roots),
            (source, roots) => return Err(source.err().into_iter().chain(roots.err()).collect()),
        };
        Self::with(source, roots, settings, clock).map_err(|why| {
            vec![Fault {
                setting: "mirror",
                problem: format!("the HTTPS client cannot be built: {why}"),
                advice: "report this as a defect".into(),
            }]
        })
    }

    fn with(
        (host, tokens): (String, TokenSource),
        roots: RootCertStore,
        settings: &Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<RestHub, Box<dyn StdError + Send + Sync>> {
        let timeout = settings.timeout;
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let for_knocks = Arc::new(tls.clone());
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("quorate/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(timeout / 2)
            .timeout(timeout)
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(Duration::from_secs(30))
            .build()?;
        Ok(RestHub {
            client,
            tls: for_knocks,
            host,
            tokens,
            file: settings.connection_string_file.clone().filter(|_| settings.connection_string.is_none()),
            timeout,
            clock,
        })
    }

    async fn call(
        &self,
        method: Method,
        target: &Target,
        change: Option<&Change>,
        if_match: Option<&str>,
    ) -> Result<Twin, Error> {
        let rejected = |detail: &str| Error::Rejected { status: 0, detail: detail.to_owned() };
        let names = [Some(&target.device), target.module.as_ref()];
        if names.iter().flatten().any(|name| matches!(name.as_str(), "." | "..")) {
            return Err(rejected("an identity of this name cannot be addressed over HTTP"));
        }
        let mut path = format!("/twins/{}", utf8_percent_encode(&target.device, UNRESERVED));
        if let Some(module) = &target.module {
            path += &format!("/modules/{}", utf8_percent_encode(module, UNRESERVED));
        }
        let mut headers = HeaderMap::new();
        if let Some(etag) = if_match {
            // Without the quotes the hub would ignore the etag and write in any case.
            let quoted = HeaderValue::from_str(&format!("\"{etag}\""))
                .map_err(|_| rejected("the etag does not fit into a header"))?;
            headers.insert(IF_MATCH, quoted);
        }
        let body = change.map(|change| change.to_json().to_string());
        let (_, body) = self.ask(method, &path, headers, body, &target.to_string(), ANSWER_MAX).await?;
        if body.len() < AT_ONCE_MAX {
            return answer::twin(&body, target);
        }
        let target = target.clone();
        let read = tokio::task::spawn_blocking(move || answer::twin(&body, &target)).await;
        read.unwrap_or_else(|e| Err(Error::NotTheHub(format!("its twin could not be read: {e}"))))
    }

    /// One request, and the headers and body of a 200. `about` names the identity that a 404 is about; a body longer than
    /// `most` bytes is not the hub's.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        mut headers: HeaderMap,
        body: Option<String>,
        about: &str,
        most: usize,
    ) -> Result<(HeaderMap, Vec<u8>), Error> {
        let token = self.tokens.authorization(&*self.clock).await?;
        let mut token = HeaderValue::from_str(token.reveal()).map_err(|_| Error::Rejected {
            status: 0,
            detail: "the policy's name does not fit into a header".into(),
        })?;
        token.set_sensitive(true);
        headers.insert(AUTHORIZATION, token);
        let writes = method == Method::PATCH;
        let url = format!("https://{}{path}?api-version={API_VERSION}", self.host);
        let mut request = self.client.request(method, url);
        if let Some(body) = body {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
            request = request.body(body);
        }
        let answer = request.headers(headers).send().await.map_err(|why| self.broken(why))?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = self.body(answer, most).await?;
        if status == StatusCode::OK {
            return Ok((headers, body));
        }
        let error = answer::refused(status, &headers, &body, about, self.clock.wall_ms());
        if let Error::Unauthorized { status, detail } = error {
            self.refresh_credentials().await;
            return Err(Error::Unauthorized {
                status,
                detail: format!("{detail}; {}", self.tokens.needs(writes)),
            });
        }
        Err(error)
    }

    /// The hub refused our token. The next one is made or asked for anew, a policy's with the key that the file holds by then.
    async fn refresh_credentials(&self) {
        self.tokens.refused().await;
        let (TokenSource::Sas(tokens), Some(file)) = (&self.tokens, &self.file) else { return };
        let Ok(text) = tokio::fs::read_to_string(file).await else { return };
        match Credentials::parse(&text) {
            Ok(credentials) if credentials.host() == self.host => tokens.replace(credentials),
            Ok(_) => tracing::warn!(file = %file.display(), "names another hub now; restart to use it"),
            Err(why) => {
                tracing::warn!(file = %file.display(), "no longer holds a connection string: it {why}")
            }
        }
    }

    /// The answer's body, up to the limit.
    async fn body(&self, mut answer: Response, most: usize) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|why| self.broken(why))? {
            if body.len() + chunk.len() > most {
                return Err(Error::NotTheHub(format!("its answer is longer than {most} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// As far as a call goes before it is one. A front end whose hub is away may take connections and end them at once.
    async fn handshake(&self) -> Result<(), Error> {
        let unreachable = |why: io::Error| Error::Unreachable(why.to_string());
        let (host, address) = match self.host.rsplit_once(':') {
            Some((host, _)) => (host, self.host.clone()),
            None => (self.host.as_str(), format!("{}:443", self.host)),
        };
        #[expect(clippy::disallowed_methods, reason = "the hub is not on the LAN")]
        let stream = tokio::net::TcpStream::connect(address).await.map_err(unreachable)?;
        // What is no name for TLS is for the call to say.
        let Ok(name) = ServerName::try_from(host.to_owned()) else { return Ok(()) };
        match TlsConnector::from(self.tls.clone()).connect(name, stream).await {
            Ok(_) => Ok(()),
            // It answers. What is wrong with its answer is for the call to say as well.
            Err(why) if why.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => Ok(()),
            Err(why) => Err(unreachable(why)),
        }
    }

    /// No answer, or not all of it.
    fn broken(&self, why: reqwest::Error) -> Error {
        broken(why, self.timeout)
    }
}

/// What a request that got no answer, or not all of it, met. It names no address.
pub(super) fn broken(why: reqwest::Error, timeout: Duration) -> Error {
    let why = why.without_url();
    if let Some(tls) = cause::<rustls::Error>(&why) {
        return tls_error(tls);
    }
    if why.is_connect() {
        return Error::Unreachable(if why.is_timeout() {
            "no connection within the time allowed".into()
        } else {
            innermost(&why)
        });
    }
    if why.is_timeout() {
        return Error::TimedOut { after: timeout };
    }
    Error::Unreachable(format!("the connection broke: {}", innermost(&why)))
}

impl Hub for RestHub {
    fn name(&self) -> &str {
        &self.host
    }

    fn knock(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            tokio::time::timeout(KNOCK, self.handshake())
                .await
                .unwrap_or(Err(Error::TimedOut { after: KNOCK }))
        })
    }

    fn get_twin<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Twin, Error>> {
        Box::pin(self.call(Method::GET, target, None, None))
    }

    fn patch_twin<'a>(
        &'a self,
        target: &'a Target,
        change: &'a Change,
        if_match: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Twin, Error>> {
        Box::pin(self.call(Method::PATCH, target, Some(change), if_match))
    }
}

/// The hub's host, and where tokens for it come from.
fn source(settings: &Settings, clock: &Arc<dyn Clock>) -> Result<(String, TokenSource), Fault> {
    let Some(identity) = &settings.identity else {
        let credentials = credentials(settings)?;
        return Ok((credentials.host().to_owned(), TokenSource::Sas(Tokens::new(credentials))));
    };
    // Arc is asked twice for a token, and the hub after that: all of it within twice the time of a call.
    let (timeout, clock) = (settings.timeout / 2, clock.clone());
    let source = match identity {
        Identity::Arc { endpoint } => Entra::arc(endpoint.as_deref(), None, timeout, clock),
        Identity::Imds { endpoint, client_id } => {
            Entra::imds(endpoint.as_deref(), client_id.as_deref(), timeout, clock)
        }
        Identity::Client(registration) => {
            Entra::client(registration, roots(settings.ca_file.as_deref())?, timeout, clock)
        }
    };
    let fault = |setting, problem, advice: &str| Fault { setting, problem, advice: advice.to_owned() };
    let source =
        source.map_err(|why| fault("identity", format!("its service {why}"), "report this as a defect"))?;
    let host = settings.host.clone().ok_or_else(|| {
        fault(
            "host",
            "is missing, and identity needs it".into(),
            "write the hub's host, NAME.azure-devices.net",
        )
    })?;
    Ok((host, TokenSource::Entra(source)))
}

/// The connection string, from the setting or its file.
fn credentials(settings: &Settings) -> Result<Credentials, Fault> {
    let fault =
        |setting, problem: String, advice: &str| Fault { setting, problem, advice: advice.to_owned() };
    let (setting, text) = match (&settings.connection_string, &settings.connection_string_file) {
        (Some(text), _) => ("connection_string", text.reveal().to_owned()),
        (None, Some(file)) => {
            let text = fs::read_to_string(file).map_err(|why| {
                fault(
                    "connection_string_file",
                    format!("{} cannot be read: {why}", file.display()),
                    "name a file that this process may read",
                )
            })?;
            ("connection_string_file", text)
        }
        (None, None) => {
            return Err(fault(
                "connection_string_file",
                "no credentials are given".into(),
                "put the service policy's connection string into a file and name it here",
            ));
        }
    };
    Credentials::parse(&text).map_err(|why| fault(setting, why.to_string(), CONNECTION_STRING_ADVICE))
}

/// The public authorities built in, and those of the file.
fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, Fault> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let Some(file) = ca_file else { return Ok(roots) };
    let fault = |problem| Fault {
        setting: "ca_file",
        problem: format!("{} {problem}", file.display()),
        advice: "name a PEM file with the certificates of the authorities to trust".into(),
    };
    let pem = fs::read(file).map_err(|why| fault(format!("cannot be read: {why}")))?;
    let mut found = 0;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|why| fault(format!("is not PEM: {why}")))?;
        roots
            .add(certificate)
            .map_err(|why| fault(format!("holds a certificate that cannot be used: {why}")))?;
        found += 1;
    }
    if found == 0 {
        return Err(fault("holds no certificate".into()));
    }
    Ok(roots)
}

/// Why a TLS connection failed.
pub(super) fn tls_error(error: &rustls::Error) -> Error {
    match error {
        rustls::Error::InvalidCertificate(reason) => Error::Untrusted(certificate(reason)),
        rustls::Error::InvalidMessage(_) => Error::NotTheHub("it does not speak TLS".into()),
        other => Error::Unreachable(format!("the TLS handshake failed: {other}")),
    }
}

fn certificate(reason: &CertificateError) -> String {
    match reason {
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            format!("{reason}; if the certificate is in order, this device's wall clock is not")
        }
        other => other.to_string(),
    }
}

/// The first cause of this type, also inside of an `io::Error`.
fn cause<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(found) = current.downcast_ref::<T>() {
            return Some(found);
        }
        next = match current.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => current.source(),
        };
    }
    None
}

/// The last cause in the chain: the one that says what happened.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut current = error;
    while let Some(next) = current.source() {
        current = next;
    }
    current.to_string()
}
