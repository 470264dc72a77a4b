//! Tokens of Entra ID: from this machine's own identity (Azure Arc's agent, or a virtual machine's metadata service), or from the
//! directory itself for a registered application (`entra/client.rs`).
//!
//! With the machine's own identity nothing secret is configured or stored: the agent hands out tokens for an hour or a day, and
//! what they may do is said by a role assignment at the hub. Both services speak plain HTTP, so only addresses that never leave
//! the machine are asked (loopback and link-local), proxies are not used and redirects are not followed. Arc proves who may ask
//! by a file that only its group can read; which file is the agent's word, so it must lie in the agent's own folder and be small.
//! A token is kept until five sixths of its life are over, and after that for as long as it holds if no newer one can
//! be had. This file makes no requests to the hub.

pub mod client;

use std::{
    fmt, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use reqwest::{
    Client, Response, StatusCode, Url,
    header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE},
};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::{io::AsyncReadExt, sync::Mutex};

use self::client::Registered;
use super::{
    Error,
    sas::{Secret, Tokens},
    settings::Registration,
};
use crate::clock::{Clock, Moment};

/// Whom the tokens are for: all hubs; the role assignment says which.
const RESOURCE: &str = "https://iothubs.azure.net";
/// Where Azure Arc's agent listens unless told otherwise.
const ARC: &str = "http://localhost:40342/metadata/identity/oauth2/token";
/// Where its agent puts the files that prove who asks.
const ARC_FOLDER: &str = "/var/opt/azcmagent/tokens";
/// Where the metadata service is on every virtual machine in Azure.
const IMDS: &str = "http://169.254.169.254/metadata/identity/oauth2/token";
/// The longest file of Arc's that is read, as Microsoft's clients have it.
const KEY_MAX: u64 = 4096;
/// The longest answer that is read.
const ANSWER_MAX: usize = 64 * 1024;
/// After a failure with an older token in hand, the service is left alone for this long.
const PAUSE: Duration = Duration::from_secs(30);
/// Nobody is believed to give longer tokens than this.
const LIFE_MAX: u64 = 7 * 86_400;

/// Where the `Authorization` of a request comes from.
#[derive(Debug)]
pub enum TokenSource {
    /// The key of a shared access policy.
    Sas(Tokens),
    /// An identity of Entra ID.
    Entra(Entra),
}

impl TokenSource {
    /// What reading twins needs, or writing them: a refusal does not always say it.
    pub fn needs(&self, writes: bool) -> String {
        let (does, action) = if writes { ("writing", "write") } else { ("reading", "read") };
        match self {
            TokenSource::Sas(_) => format!(
                "{does} twins needs the right ServiceConnect, which the policy service has, and registryRead and registryReadWrite have not"
            ),
            TokenSource::Entra(_) => format!(
                "{does} twins needs the action twins/{action}, which the role IoT Hub Twin Contributor has"
            ),
        }
    }

    /// The text for the `Authorization` header.
    ///
    /// Dropping the future gives up asking; the next call asks anew.
    ///
    /// # Errors
    /// Never for a policy's key. [`Error::NoToken`]; for an application's identity also what tells that the directory cannot
    /// be reached or is not trusted.
    pub async fn authorization(&self, clock: &dyn Clock) -> Result<Secret, Error> {
        match self {
            TokenSource::Sas(tokens) => Ok(tokens.get(clock).into()),
            TokenSource::Entra(entra) => entra.authorization().await,
        }
    }

    /// The hub has refused the newest token: the next one is made or asked for anew.
    pub async fn refused(&self) {
        match self {
            TokenSource::Sas(tokens) => tokens.refused(),
            TokenSource::Entra(entra) => entra.kept.lock().await.current = None,
        }
    }
}

/// Why an address is not asked for tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Not `http://` with a host.
    #[error("is not an address that begins with http://")]
    NotHttp,
    /// Not `https://` with a host and nothing after it.
    #[error("is not https:// and a host alone")]
    NotHttps,
    /// Tokens would cross a network in plain text.
    #[error("leaves this machine; a token service is on localhost or a link-local address")]
    Remote,
    /// The HTTP client cannot be made.
    #[error("cannot be asked, because no HTTP client can be made: {0}")]
    Client(String),
}

/// An identity that is given tokens.
pub struct Entra {
    client: Client,
    endpoint: Url,
    place: Place,
    clock: Arc<dyn Clock>,
    kept: Mutex<Kept>,
}

enum Place {
    Arc { folder: PathBuf },
    Imds,
    Client(Registered),
}

#[derive(Default)]
struct Kept {
    current: Option<Current>,
    /// Not asked again before.
    quiet_until: Moment,
}

struct Current {
    header: Secret,
    renew: Moment,
    ends: Moment,
}

impl fmt::Debug for Entra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entra({} at {})", self.name(), self.endpoint)
    }
}

impl Entra {
    /// The identity of a server with Azure Arc. `endpoint` and `folder` are the agent's usual ones unless given;
    /// `timeout` is for one token. Nothing is asked yet.
    ///
    /// # Errors
    /// [`Unfit`], if the endpoint is.
    pub fn arc(
        endpoint: Option<&str>,
        folder: Option<&Path>,
        timeout: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Entra, Unfit> {
        let folder = folder.unwrap_or(Path::new(ARC_FOLDER)).to_owned();
        Self::local(endpoint.unwrap_or(ARC), "2020-06-01", Place::Arc { folder }, timeout, clock)
    }

    /// The identity of a virtual machine in Azure. `endpoint` is the usual one unless given; `client_id` picks one of several
    /// identities; `timeout` is for one token. Nothing is asked yet.
    ///
    /// # Errors
    /// [`Unfit`], if the endpoint is.
    pub fn imds(
        endpoint: Option<&str>,
        client_id: Option<&str>,
        timeout: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Entra, Unfit> {
        let mut entra = Self::local(endpoint.unwrap_or(IMDS), "2018-02-01", Place::Imds, timeout, clock)?;
        if let Some(client_id) = client_id {
            entra.endpoint.query_pairs_mut().append_pair("client_id", client_id);
        }
        Ok(entra)
    }

    /// The identity of a registered application, whose directory is asked over TLS and trusted by `roots`. `timeout` is for one
    /// token. Nothing is read or asked yet.
    ///
    /// # Errors
    /// [`Unfit`], if the authority is.
    pub fn client(
        registration: &Registration,
        roots: RootCertStore,
        timeout: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Entra, Unfit> {
        let endpoint = client::endpoint(registration).ok_or(Unfit::NotHttps)?;
        let client = http_client(roots, timeout, true)?;
        let place = Place::Client(Registered::new(registration.clone(), timeout));
        Ok(Entra { client, endpoint, place, clock, kept: Mutex::default() })
    }

    fn local(
        endpoint: &str,
        api_version: &str,
        place: Place,
        timeout: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Entra, Unfit> {
        let mut endpoint = on_this_machine(endpoint)?;
        endpoint.query_pairs_mut().append_pair("api-version", api_version).append_pair("resource", RESOURCE);
        // No TLS is spoken, so nobody needs to be trusted.
        let client = http_client(RootCertStore::empty(), timeout, false)?;
        Ok(Entra { client, endpoint, place, clock, kept: Mutex::default() })
    }

    fn name(&self) -> &str {
        match &self.place {
            Place::Arc { .. } => "Azure Arc's agent",
            Place::Imds => "the metadata service",
            Place::Client(_) => self.endpoint.host_str().unwrap_or("the directory"),
        }
    }

    async fn authorization(&self) -> Result<Secret, Error> {
        // One question at a time: whoever waits here finds the answer of the one before.
        let mut kept = self.kept.lock().await;
        let now = self.clock.now();
        let held = kept.current.as_ref().filter(|current| now < current.ends);
        if let Some(current) = held
            && (now < current.renew || now < kept.quiet_until)
        {
            return Ok(current.header.clone());
        }
        match self.fetch().await {
            Ok((header, life)) => {
                // Counted from before the question, so never for too long.
                let (renew, ends) = (now + life * 5 / 6, now + life);
                kept.current = Some(Current { header: header.clone(), renew, ends });
                Ok(header)
            }
            Err(why) => {
                let Some(current) = held else {
                    return Err(why);
                };
                tracing::debug!(from = self.name(), %why, "no newer token; the older one still holds");
                let header = current.header.clone();
                kept.quiet_until = self.clock.now() + PAUSE;
                Ok(header)
            }
        }
    }

    /// Asks for a token; with how long it is good for.
    async fn fetch(&self) -> Result<(Secret, Duration), Error> {
        if let Place::Client(registered) = &self.place {
            return registered.fetch(&self.client, &self.endpoint).await;
        }
        self.fetch_here().await.map_err(|why| Error::NoToken(format!("{}: {why}", self.name())))
    }

    async fn fetch_here(&self) -> Result<(Secret, Duration), String> {
        let mut answer = self.ask(None).await?;
        if let Place::Arc { folder } = &self.place {
            let key = challenged(&answer, folder).await?;
            answer = self.ask(Some(key)).await?;
        }
        let status = answer.status();
        let body = read(answer).await?;
        let json: Value = serde_json::from_slice(&body)
            .map_err(|_| format!("it answers {} with something that is not JSON", status.as_u16()))?;
        if status != StatusCode::OK {
            let words = json.get("error_description").or_else(|| json.get("error"));
            let words = words.and_then(Value::as_str).unwrap_or("no reason given");
            return Err(format!("it answers {}: {}", status.as_u16(), plain(words)));
        }
        token(&json)
    }

    async fn ask(&self, key: Option<HeaderValue>) -> Result<Response, String> {
        let mut request = self.client.get(self.endpoint.clone()).header("Metadata", "true");
        if let Some(key) = key {
            request = request.header(AUTHORIZATION, key);
        }
        request.send().await.map_err(|why| {
            let said = if why.is_timeout() { "no answer in time".into() } else { innermost(&why) };
            format!("it cannot be asked: {said}")
        })
    }
}

/// An address that does not leave this machine.
///
/// # Errors
/// [`Unfit`], if it may.
pub fn on_this_machine(endpoint: &str) -> Result<Url, Unfit> {
    let endpoint = Url::parse(endpoint).map_err(|_| Unfit::NotHttp)?;
    let host = endpoint.host_str().ok_or(Unfit::NotHttp)?;
    if endpoint.scheme() != "http" {
        return Err(Unfit::NotHttp);
    }
    let here = match host.trim_matches(['[', ']']).parse() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_link_local(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unicast_link_local(),
        Err(_) => host == "localhost",
    };
    if here { Ok(endpoint) } else { Err(Unfit::Remote) }
}

fn http_client(roots: RootCertStore, timeout: Duration, https_only: bool) -> Result<Client, Unfit> {
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|why| Unfit::Client(why.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(https_only)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("quorate/", env!("CARGO_PKG_VERSION")))
        .timeout(timeout)
        .pool_max_idle_per_host(0)
        .build()
        .map_err(|why| Unfit::Client(innermost(&why)))
}

/// The proof that Arc's agent asks for, from the file that it names.
async fn challenged(answer: &Response, folder: &Path) -> Result<HeaderValue, String> {
    if answer.status() != StatusCode::UNAUTHORIZED {
        return Err(format!("it answers {} where it should ask for proof", answer.status().as_u16()));
    }
    let realm = answer.headers().get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
    let path = realm.and_then(|text| text.trim().strip_prefix("Basic realm="));
    let path = PathBuf::from(path.ok_or("it does not say which file proves who asks")?.trim_matches('"'));
    let text = read_key(&path, folder).await?;
    let mut header = HeaderValue::from_str(&format!("Basic {}", text.trim_end_matches(['\r', '\n'])))
        .map_err(|_| format!("{} does not hold a key", path.display()))?;
    header.set_sensitive(true);
    Ok(header)
}

/// Reads a file that lies directly in `folder`, is named `.key` and is small.
async fn read_key(path: &Path, folder: &Path) -> Result<String, String> {
    let shown = path.display();
    let outside = || format!("it names {shown}, which is not a .key file directly in {}", folder.display());
    if path.parent() != Some(folder) || path.extension().is_none_or(|extension| extension != "key") {
        return Err(outside());
    }
    let unreadable = |why: io::Error| {
        let hint = "this process must be in the group himds; in a container, bind the folder read-only";
        format!("{shown} cannot be read: {why} ({hint})")
    };
    let real = tokio::fs::canonicalize(path).await.map_err(unreadable)?;
    let real_folder = tokio::fs::canonicalize(folder).await.map_err(unreadable)?;
    if real.parent() != Some(real_folder.as_path()) {
        return Err(outside());
    }
    // A pipe or a device would make the reader wait; both are no regular files.
    if !tokio::fs::metadata(&real).await.map_err(unreadable)?.is_file() {
        return Err(outside());
    }
    let file = tokio::fs::File::open(&real).await.map_err(unreadable)?;
    let mut text = String::new();
    file.take(KEY_MAX + 1).read_to_string(&mut text).await.map_err(unreadable)?;
    if text.len() as u64 > KEY_MAX {
        return Err(format!("{shown} is longer than {KEY_MAX} bytes"));
    }
    Ok(text)
}

async fn read(mut answer: Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|why| innermost(&why))? {
        if body.len() + chunk.len() > ANSWER_MAX {
            return Err(format!("its answer is longer than {ANSWER_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The token in an answer, as a header, with its life. Numbers come as texts, too.
fn token(json: &Value) -> Result<(Secret, Duration), String> {
    let token = json.get("access_token").and_then(Value::as_str).unwrap_or_default();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("its answer holds no token".into());
    }
    let life = match json.get("expires_in") {
        Some(Value::String(text)) => text.parse().ok(),
        Some(number) => number.as_u64(),
        None => None,
    };
    match life {
        Some(life @ 1..) => {
            Ok((Secret::from(format!("Bearer {token}")), Duration::from_secs(life.min(LIFE_MAX))))
        }
        _ => Err("its answer does not say how long the token is good for".into()),
    }
}

fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// The cause at the bottom, which names no address.
fn innermost(why: &(dyn std::error::Error + 'static)) -> String {
    let mut why = why;
    while let Some(cause) = why.source() {
        why = cause;
    }
    plain(&why.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::clock::BootClock;

    fn arc(endpoint: &str) -> Result<Entra, Unfit> {
        Entra::arc(Some(endpoint), None, Duration::from_secs(1), Arc::new(BootClock))
    }

    #[test]
    fn tokens_never_cross_a_network_in_plain_text() {
        for fit in [ARC, IMDS, "http://127.0.0.9:1/x", "http://[::1]:4/x"] {
            assert!(arc(fit).is_ok(), "{fit}");
        }
        for (unfit, why) in [
            ("https://localhost/x", Unfit::NotHttp),
            ("localhost:40342", Unfit::NotHttp),
            ("", Unfit::NotHttp),
            ("http://10.0.0.1/x", Unfit::Remote),
            ("http://localhost.example.com/x", Unfit::Remote),
            ("http://[fd00::1]/x", Unfit::Remote),
        ] {
            assert_eq!(arc(unfit).err(), Some(why), "{unfit}");
        }
    }

    #[test]
    fn answers_are_read_with_care_and_tokens_never_shown() {
        let (header, life) = token(&json!({"access_token": "ey.x", "expires_in": "3600"})).expect("a token");
        assert_eq!((header.reveal(), life.as_secs()), ("Bearer ey.x", 3600));
        assert!(!format!("{header:?}").contains("ey.x"));
        let forever = token(&json!({"access_token": "a", "expires_in": u64::MAX})).expect("a token");
        assert_eq!(forever.1.as_secs(), LIFE_MAX);
        for wrong in [
            json!({}),
            json!([1]),
            json!({"access_token": "", "expires_in": 5}),
            json!({"access_token": "a\nb", "expires_in": 5}),
            json!({"access_token": "a", "expires_in": 0}),
            json!({"access_token": "a", "expires_in": -5}),
            json!({"access_token": "a", "expires_in": "soon"}),
            json!({"access_token": "a"}),
            json!({"access_token": 7, "expires_in": 5}),
        ] {
            assert!(token(&wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn only_small_key_files_of_the_agents_own_folder_are_read() {
        let outer = tempfile::tempdir().expect("a folder");
        let folder = outer.path().join("tokens");
        std::fs::create_dir_all(folder.join("deeper")).expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("writes");
        write("good.key", "proof");
        write("long.key", &"x".repeat(4097));
        write("full.key", &"x".repeat(4096));
        write("good.txt", "proof");
        write("deeper/a.key", "proof");
        write("../outside.key", "proof");
        std::os::unix::fs::symlink("../outside.key", folder.join("link.key")).expect("links");
        std::fs::create_dir(folder.join("folder.key")).expect("a folder");
        assert_eq!(read_key(&folder.join("good.key"), &folder).await.as_deref(), Ok("proof"));
        assert!(read_key(&folder.join("full.key"), &folder).await.is_ok());
        for wrong in [
            "long.key",
            "good.txt",
            "deeper/a.key",
            "../outside.key",
            "link.key",
            "folder.key",
            "missing.key",
            "..",
            ".key",
        ] {
            assert!(read_key(&folder.join(wrong), &folder).await.is_err(), "{wrong}");
        }
        assert!(read_key(Path::new("good.key"), &folder).await.is_err());
    }
}
