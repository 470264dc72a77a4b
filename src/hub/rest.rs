//! The real hub: IoT Hub's service REST API over TLS.
//!
//! It promises that nothing but the configured hub gets the credentials: redirects are never followed, proxies are not
//! taken from the environment, plain HTTP is not spoken. Every call ends within one deadline and is tried once; trouble
//! is told apart by who can mend it (`error.rs`). Answers are read up to a limit, whatever they claim to be.
//! Only this file knows reqwest.

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
    header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, IF_MATCH, LOCATION, RETRY_AFTER},
};
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde_json::Value;

use super::{
    BoxFuture, Error, Hub,
    sas::{Credentials, Tokens, UNRESERVED},
    settings::{CONNECTION_STRING_ADVICE, Settings},
    twin::{Change, Twin},
    wall,
};
use crate::{clock::Clock, id::DeviceId, timing::Fault};

const API_VERSION: &str = "2021-04-12";
/// A twin at all of the hub's limits, with its metadata, stays well below this.
const ANSWER_MAX: usize = 2 * 1024 * 1024;
/// Wall clocks further apart than this are worth a hint; the hub itself allows five minutes.
const SKEW_S: u64 = 240;

/// The hub over REST.
#[derive(Debug)]
pub struct RestHub {
    client: reqwest::Client,
    tokens: Tokens,
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
        let credentials = credentials(settings);
        let roots = roots(settings.ca_file.as_deref());
        let (credentials, roots) = match (credentials, roots) {
            (Ok(credentials), Ok(roots)) => (credentials, roots),
            (credentials, roots) => return Err(credentials.err().into_iter().chain(roots.err()).collect()),
        };
        Self::with(credentials, roots, settings, clock).map_err(|why| {
            vec![Fault {
                setting: "mirror",
                problem: format!("the HTTPS client cannot be built: {why}"),
                advice: "report this as a defect".into(),
            }]
        })
    }

    fn with(
        credentials: Credentials,
        roots: RootCertStore,
        settings: &Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<RestHub, Box<dyn StdError + Send + Sync>> {
        let timeout = settings.timeout;
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
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
            host: credentials.host().to_owned(),
            tokens: Tokens::new(credentials),
            file: settings.connection_string_file.clone().filter(|_| settings.connection_string.is_none()),
            timeout,
            clock,
        })
    }

    async fn call(
        &self,
        method: Method,
        device: &DeviceId,
        change: Option<&Change>,
        if_match: Option<&str>,
    ) -> Result<Twin, Error> {
        let rejected = |detail: &str| Error::Rejected { status: 0, detail: detail.to_owned() };
        if matches!(device.as_str(), "." | "..") {
            return Err(rejected("a device of this name cannot be addressed over HTTP"));
        }
        let url = format!(
            "https://{}/twins/{}?api-version={API_VERSION}",
            self.host,
            utf8_percent_encode(device.as_str(), UNRESERVED)
        );
        let mut token = HeaderValue::from_str(&self.tokens.get(&*self.clock))
            .map_err(|_| rejected("the policy's name does not fit into a header"))?;
        token.set_sensitive(true);
        let mut request = self.client.request(method, url).header(AUTHORIZATION, token);
        if let Some(change) = change {
            request = request
                .header(CONTENT_TYPE, "application/json; charset=utf-8")
                .body(change.to_json().to_string());
        }
        if let Some(etag) = if_match {
            // Without the quotes the hub would ignore the etag and write in any case.
            let quoted = HeaderValue::from_str(&format!("\"{etag}\""))
                .map_err(|_| rejected("the etag does not fit into a header"))?;
            request = request.header(IF_MATCH, quoted);
        }
        let answer = request.send().await.map_err(|why| self.broken(why))?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = self.body(answer).await?;
        if status == StatusCode::OK {
            return twin(&body, device);
        }
        let error = self.refused(status, &headers, &body, device);
        if matches!(error, Error::Unauthorized { .. }) {
            self.refresh_credentials().await;
        }
        Err(error)
    }

    /// The hub refused our token. The next one is made anew, with the key that the file holds by then.
    async fn refresh_credentials(&self) {
        self.tokens.refused();
        let Some(file) = &self.file else { return };
        let Ok(text) = tokio::fs::read_to_string(file).await else { return };
        match Credentials::parse(&text) {
            Ok(credentials) if credentials.host() == self.host => self.tokens.replace(credentials),
            Ok(_) => tracing::warn!(file = %file.display(), "names another hub now; restart to use it"),
            Err(why) => {
                tracing::warn!(file = %file.display(), "no longer holds a connection string: it {why}")
            }
        }
    }

    /// The answer's body, up to the limit.
    async fn body(&self, mut answer: Response) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|why| self.broken(why))? {
            if body.len() + chunk.len() > ANSWER_MAX {
                return Err(Error::NotTheHub(format!("its answer is longer than {ANSWER_MAX} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// An answer other than 200.
    fn refused(&self, status: StatusCode, headers: &HeaderMap, body: &[u8], device: &DeviceId) -> Error {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let retry_after = text(RETRY_AFTER).and_then(|v| v.trim().parse().ok()).map(Duration::from_secs);
        let number = status.as_u16();
        let message = message(body);
        let code = headers.get("iothub-errorcode").and_then(|v| v.to_str().ok()).unwrap_or_default();
        let says = |name: &str| code == name || message.as_deref().is_some_and(|m| m.contains(name));
        let detail = || message.clone().unwrap_or_else(|| "no reason given".into());
        // Front ends answer these with HTML of their own when the hub behind them is away.
        if status.is_server_error() || number == 408 {
            return Error::Unavailable { status: number, retry_after, detail: detail() };
        }
        if number == 429 {
            return Error::Throttled { status: number, retry_after };
        }
        if status.is_redirection() {
            let to = text(LOCATION).and_then(|l| reqwest::Url::parse(l).ok());
            let to = to.as_ref().and_then(reqwest::Url::host_str).unwrap_or("elsewhere");
            return Error::NotTheHub(format!("a redirect ({number}) to {to}, which is not followed"));
        }
        if message.is_none() && code.is_empty() {
            return Error::NotTheHub(format!("{number} with {}", kind(headers, body)));
        }
        match number {
            403 if says("IotHubQuotaExceeded") => Error::Throttled { status: number, retry_after },
            401 | 403 => Error::Unauthorized { status: number, detail: detail() + &self.skew(text(DATE)) },
            404 if says("DeviceNotFound") || says("ModuleNotFound") => {
                Error::DeviceMissing { device: device.as_str().to_owned() }
            }
            404 => Error::NotTheHub(format!("404, but not for a device: {}", detail())),
            412 => Error::Changed,
            _ => Error::Rejected { status: number, detail: detail() },
        }
    }

    /// A hint if this device's wall clock and the hub's differ: the usual cause of a refused token.
    fn skew(&self, date: Option<&str>) -> String {
        let here = self.clock.wall_ms() / 1000;
        match date.and_then(wall::http_date).map(|hub| (hub, hub.abs_diff(here))) {
            Some((hub, apart)) if apart > SKEW_S => {
                let side = if here < hub { "behind" } else { "ahead of" };
                format!("; this device's wall clock is {apart} s {side} the hub's")
            }
            _ => String::new(),
        }
    }

    /// No answer, or not all of it.
    fn broken(&self, why: reqwest::Error) -> Error {
        let why = why.without_url();
        if let Some(tls) = cause::<rustls::Error>(&why) {
            return match tls {
                rustls::Error::InvalidCertificate(reason) => Error::Untrusted(certificate(reason)),
                rustls::Error::InvalidMessage(_) => Error::NotTheHub("it does not speak TLS".into()),
                other => Error::Unreachable(format!("the TLS handshake failed: {other}")),
            };
        }
        if why.is_connect() {
            return Error::Unreachable(if why.is_timeout() {
                "no connection within the time allowed".into()
            } else {
                innermost(&why)
            });
        }
        if why.is_timeout() {
            return Error::TimedOut { after: self.timeout };
        }
        Error::Unreachable(format!("the connection broke: {}", innermost(&why)))
    }
}

impl Hub for RestHub {
    fn name(&self) -> &str {
        &self.host
    }

    fn get_twin<'a>(&'a self, device: &'a DeviceId) -> BoxFuture<'a, Result<Twin, Error>> {
        Box::pin(self.call(Method::GET, device, None, None))
    }

    fn patch_twin<'a>(
        &'a self,
        device: &'a DeviceId,
        change: &'a Change,
        if_match: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Twin, Error>> {
        Box::pin(self.call(Method::PATCH, device, Some(change), if_match))
    }
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

/// The twin in a 200, which must be the one asked for.
fn twin(body: &[u8], device: &DeviceId) -> Result<Twin, Error> {
    let json: Value = serde_json::from_slice(body)
        .map_err(|_| Error::NotTheHub(format!("200 with {}", kind(&HeaderMap::new(), body))))?;
    let twin =
        Twin::from_json(&json).map_err(|why| Error::NotTheHub(format!("200 without a twin: {why}")))?;
    if twin.device != device.as_str() || twin.module.is_some() {
        return Err(Error::NotTheHub("200 with the twin of another device".into()));
    }
    Ok(twin)
}

/// The hub's own words in an error body: `ErrorCode:Name;text`, or a JSON document as a string with a `message`.
fn message(body: &[u8]) -> Option<String> {
    let json: Value = serde_json::from_slice(body).ok()?;
    let text = json.get("Message").or_else(|| json.get("message"))?.as_str()?;
    let inner = serde_json::from_str::<Value>(text).ok();
    let words = inner.as_ref().and_then(|inner| inner.get("message")?.as_str()).unwrap_or(text);
    Some(words.chars().filter(|c| !c.is_control()).take(200).collect())
}

/// What a body is, for people.
fn kind(headers: &HeaderMap, body: &[u8]) -> &'static str {
    let html = headers.get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"text/html"));
    match body.iter().find(|b| !b.is_ascii_whitespace()) {
        _ if html => "HTML",
        None => "an empty body",
        Some(b'<') => "HTML",
        Some(b'{' | b'[') => "other JSON, or JSON that is cut off",
        Some(_) => "something that is not JSON",
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
