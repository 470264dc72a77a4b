//! One container of this device, through whoever runs it: IoT Edge's daemon (its management socket) or Docker.
//!
//! Both speak HTTP over a Unix socket, and nobody asks who calls: whoever can open the socket may start and stop. Nothing here decides;
//! `runner.rs` holds the container to the fencer's word.

use std::{path::PathBuf, sync::Arc, time::Duration};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, StatusCode};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

/// RFC 3986's unreserved characters stay as they are.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The version of the management API that all releases of IoT Edge in use know.
const API_VERSION: &str = "2018-06-28";
/// How long a question may take. The daemon answers no other while it stops something.
const QUESTION: Duration = Duration::from_secs(20);
const ANSWER_MAX: usize = 1024 * 1024;

/// Who runs containers on this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// The management API of IoT Edge's daemon.
    Edge,
    /// Docker's Engine API.
    Docker,
}

impl Api {
    /// Where its socket usually is.
    pub fn usual_socket(self) -> &'static str {
        match self {
            Api::Edge => "/var/run/iotedge/mgmt.sock",
            Api::Docker => "/var/run/docker.sock",
        }
    }

    /// What it calls what it runs.
    pub fn noun(self) -> &'static str {
        match self {
            Api::Edge => "module",
            Api::Docker => "container",
        }
    }

    /// The API with this noun.
    pub fn by_noun(noun: &str) -> Option<Api> {
        [Api::Edge, Api::Docker].into_iter().find(|api| api.noun() == noun)
    }
}

/// What was seen of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Whether it runs, or may.
    pub runs: bool,
    /// Why it must not be run by us: whoever runs it would start it again.
    pub unsuited: Option<String>,
    /// How it ended last, if that is known.
    pub exit: Option<i64>,
    /// What it is made from.
    pub image: Option<String>,
}

/// One container.
#[derive(Debug, Clone)]
pub struct Runtime {
    client: reqwest::Client,
    api: Api,
    socket: PathBuf,
    name: String,
}

impl Runtime {
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// If the HTTP client cannot be built; that is a defect.
    pub fn new(api: Api, socket: PathBuf, name: &str) -> Result<Runtime, String> {
        // TLS is never spoken here, so nobody is trusted; the client wants to know it in any case.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|why| why.to_string())?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .unix_socket(socket.clone())
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|why| why.to_string())?;
        Ok(Runtime { client, api, socket, name: name.to_owned() })
    }

    /// What it is called, for people: `module pump`.
    pub fn title(&self) -> String {
        format!("{} {}", self.api.noun(), self.name)
    }

    /// Whether whoever runs it answers also while something else is going on.
    pub fn answers_always(&self) -> bool {
        self.api == Api::Docker
    }

    /// How it is now; `None` if there is none of this name.
    ///
    /// # Errors
    /// Why that cannot be known, and what to do.
    pub async fn look(&self) -> Result<Option<Seen>, String> {
        let path = match self.api {
            Api::Edge => String::new(),
            Api::Docker => "/json".to_owned(),
        };
        match self.call(Method::GET, &path, &[], QUESTION).await? {
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (StatusCode::OK, json) => self.seen(&json).map(Some),
            (status, json) => Err(self.refused("look at", status, &json)),
        }
    }

    fn seen(&self, json: &Value) -> Result<Seen, String> {
        let strange = || format!("{}: what answers is not the API of {:?}", self.socket.display(), self.api);
        match self.api {
            Api::Edge => {
                let status = json.pointer("/status/runtimeStatus/status").and_then(Value::as_str);
                let exit = json.pointer("/status/exitStatus/statusCode").and_then(Value::as_str);
                // The daemon says "stopped" of a container that is paused or about to start again, and tells them apart only here.
                let told = json.pointer("/status/runtimeStatus/description").and_then(Value::as_str);
                let goes_on = matches!(told, Some("paused" | "restarting"));
                let ended = matches!(status.ok_or_else(strange)?, "stopped" | "failed" | "dead") && !goes_on;
                let exit = exit.and_then(|code| code.parse().ok());
                let image = json.pointer("/config/settings/image").and_then(Value::as_str);
                Ok(Seen { runs: !ended, unsuited: None, exit, image: image.map(str::to_owned) })
            }
            Api::Docker => {
                let state = json.get("State").ok_or_else(strange)?;
                let is = |word: &str| state.get(word).and_then(Value::as_bool).unwrap_or(false);
                let running = state.get("Running").and_then(Value::as_bool).ok_or_else(strange)?;
                let policy = json.pointer("/HostConfig/RestartPolicy/Name").and_then(Value::as_str);
                let unsuited = policy.filter(|policy| !["", "no"].contains(policy)).map(|policy| {
                    format!(
                        "its restart policy is {policy:?}, so Docker would start it again; make it \"no\""
                    )
                });
                let removed = json.pointer("/HostConfig/AutoRemove").and_then(Value::as_bool) == Some(true);
                let unsuited = unsuited.or_else(|| {
                    removed.then(|| "Docker removes it when it ends; make it without --rm".to_owned())
                });
                let exit = state.get("ExitCode").and_then(Value::as_i64);
                let image = json.get("Image").and_then(Value::as_str).map(str::to_owned);
                Ok(Seen { runs: running || is("Restarting") || is("Paused"), unsuited, exit, image })
            }
        }
    }

    /// Starts it; if it runs, nothing happens.
    ///
    /// # Errors
    /// Why not.
    pub async fn start(&self) -> Result<(), String> {
        self.act("start", &[], QUESTION).await
    }

    /// Asks it to end and waits for that. Docker kills it after `patience`, in whole seconds; IoT Edge after the module's own
    /// `StopTimeout`.
    ///
    /// # Errors
    /// Why not.
    pub async fn stop(&self, patience: Duration) -> Result<(), String> {
        let seconds = patience.as_secs().to_string();
        let patience = patience + QUESTION;
        match self.api {
            Api::Edge => self.act("stop", &[], patience).await,
            Api::Docker => self.act("stop", &[("t", &seconds)], patience).await,
        }
    }

    /// Ends it as fast as can be.
    ///
    /// # Errors
    /// Why not.
    pub async fn kill(&self) -> Result<(), String> {
        match self.api {
            Api::Edge => self.act("stop", &[], QUESTION).await,
            // Not `kill`, which a paused container does not feel before it is thawed.
            Api::Docker => self.act("stop", &[("t", "0")], QUESTION).await,
        }
    }

    async fn act(&self, what: &str, query: &[(&str, &str)], limit: Duration) -> Result<(), String> {
        let (status, json) = self.call(Method::POST, &format!("/{what}"), query, limit).await?;
        // 304: it is so already.
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(());
        }
        Err(self.refused(what, status, &json))
    }

    /// Returns once it has ended, with its exit code where that is known.
    ///
    /// # Errors
    /// Why that cannot be known.
    pub async fn ended(&self, look: Duration) -> Result<Option<i64>, String> {
        loop {
            match self.look().await? {
                None => return Ok(None),
                Some(seen) if !seen.runs => return Ok(seen.exit),
                Some(_) => tokio::time::sleep(look).await,
            }
        }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        limit: Duration,
    ) -> Result<(StatusCode, Value), String> {
        let name = utf8_percent_encode(&self.name, UNRESERVED);
        let (folder, version) = match self.api {
            Api::Edge => ("modules", Some(("api-version", API_VERSION))),
            Api::Docker => ("containers", None),
        };
        let query: Vec<String> =
            version.iter().chain(query).map(|(name, value)| format!("{name}={value}")).collect();
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        let url = format!("http://localhost/{folder}/{name}{path}{query}");
        let request = self.client.request(method, url).timeout(limit);
        let failed = |why: reqwest::Error| self.failed(&why);
        let mut answer = request.send().await.map_err(failed)?;
        let status = answer.status();
        let mut got = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if got.len() + chunk.len() > ANSWER_MAX {
                return Err(format!("{}: an answer without end", self.socket.display()));
            }
            got.extend_from_slice(&chunk);
        }
        Ok((status, serde_json::from_slice(&got).unwrap_or(Value::Null)))
    }

    fn failed(&self, why: &reqwest::Error) -> String {
        let mut cause: &dyn std::error::Error = why;
        while let Some(next) = cause.source() {
            cause = next;
        }
        let hint = match why.is_connect() {
            true => "; mount it into this module, and run as a user who may open it",
            false => "",
        };
        format!("{}: {cause}{hint}", self.socket.display())
    }

    fn refused(&self, what: &str, status: StatusCode, json: &Value) -> String {
        let words = json.get("message").and_then(Value::as_str).unwrap_or("no reason given");
        format!("{} does not {what} {}: {words} ({})", self.socket.display(), self.title(), status.as_u16())
    }
}
