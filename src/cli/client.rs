//! Reaches a sidecar for the commands that ask: which one, how long to wait, and what to say when it fails.
//!
//! Each failure becomes one line that names the endpoint and the cause, and one that says what to do next.

use std::{error::Error as _, fmt, path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};

use super::{REFUSED, USAGE};
use crate::{
    config::Environment,
    control::proto::{GetStatusRequest, control_client::ControlClient},
    status::report::Report,
};

const CONNECT_TIME: Duration = Duration::from_secs(3);
/// For questions that are answered from memory.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Which sidecar to ask.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Target {
    /// The sidecar to ask: unix:/path/to/socket or http://host:port
    ///
    /// Without this option, QUORATE_ENDPOINT or QUORATE_CONTROL_SOCKET is used if set,
    /// then the default socket if there is one, then http://127.0.0.1:7601.
    #[arg(long, value_name = "ENDPOINT", verbatim_doc_comment)]
    pub(super) endpoint: Option<String>,
}

/// A failure with its hint and exit code.
#[derive(Debug)]
pub(super) struct Trouble {
    /// One line.
    pub(super) message: String,
    /// What to do next; one line.
    pub(super) hint: String,
    /// The exit code.
    pub(super) code: u8,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "quorate: {}\n  hint: {}", self.message, self.hint)
    }
}

/// Where a sidecar listens.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Socket(PathBuf),
    Http(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Socket(path) => write!(f, "unix:{}", path.display()),
            Place::Http(uri) => f.write_str(uri),
        }
    }
}

impl Target {
    fn place(&self, environment: &Environment) -> Result<Place, Trouble> {
        let given = self.endpoint.as_deref().or_else(|| environment.get("QUORATE_ENDPOINT"));
        if let Some(text) = given {
            return parse(text);
        }
        if let Some(path) = environment.get("QUORATE_CONTROL_SOCKET") {
            return Ok(Place::Socket(PathBuf::from(path)));
        }
        let defaults = [
            environment.run_dir.join("quorate/control.sock"),
            PathBuf::from("/var/lib/quorate/control.sock"),
        ];
        match defaults.into_iter().find(|path| path.exists()) {
            Some(path) => Ok(Place::Socket(path)),
            None => Ok(Place::Http("http://127.0.0.1:7601".into())),
        }
    }

    /// Connects within three seconds. Each call then has `deadline`.
    ///
    /// # Errors
    /// [`Trouble`] with exit code 64 for an endpoint that is none, 2 if nobody answers.
    pub(super) async fn connect(
        &self,
        environment: &Environment,
        deadline: Duration,
    ) -> Result<Client, Trouble> {
        let place = self.place(environment)?;
        let uri = match &place {
            // A socket has no host; HTTP/2 wants a name in each request all the same.
            Place::Socket(_) => "http://localhost".to_owned(),
            Place::Http(uri) => uri.clone(),
        };
        let endpoint = Endpoint::from_shared(uri)
            .map_err(|e| usage(format!("{place} is not an endpoint: {e}")))?
            .connect_timeout(CONNECT_TIME)
            // A sidecar that is frozen is not waited for as long as one that is at work.
            .http2_keep_alive_interval(CONNECT_TIME)
            .keep_alive_timeout(CONNECT_TIME)
            .timeout(deadline);
        let connecting = async {
            match &place {
                Place::Http(_) => endpoint.connect().await,
                Place::Socket(path) => {
                    let path = path.clone();
                    let dial = tower::service_fn(move |_: Uri| {
                        let path = path.clone();
                        async move { UnixStream::connect(path).await.map(TokioIo::new) }
                    });
                    endpoint.connect_with_connector(dial).await
                }
            }
        };
        let channel = match tokio::time::timeout(CONNECT_TIME, connecting).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(e)) => return Err(unreachable(&place, &root_cause(&e))),
            Err(_) => return Err(unreachable(&place, "no answer within 3 s")),
        };
        Ok(Client { stub: ControlClient::new(channel), place })
    }
}

fn parse(text: &str) -> Result<Place, Trouble> {
    if text.chars().any(char::is_control) {
        return Err(usage(format!("{text:?} is not an endpoint: it holds control characters")));
    }
    if let Some(path) = text.strip_prefix("unix:") {
        // Both unix:/path and unix:///path are in use.
        let path = path.strip_prefix("//").filter(|p| p.starts_with('/')).unwrap_or(path);
        if path.is_empty() {
            return Err(usage(format!("{text:?} names no socket")));
        }
        return Ok(Place::Socket(PathBuf::from(path)));
    }
    if text.starts_with("https://") {
        return Err(usage("https:// endpoints are not available in this version".into()));
    }
    let uri = if text.starts_with("http://") { text.to_owned() } else { format!("http://{text}") };
    let port = uri.parse::<Uri>().ok().and_then(|u| u.port_u16());
    match port {
        Some(_) => Ok(Place::Http(uri)),
        None => Err(usage(format!("{text:?} is not an endpoint with a port"))),
    }
}

fn usage(message: String) -> Trouble {
    Trouble { message, hint: "write unix:/path/to/socket or http://host:port".into(), code: USAGE }
}

fn unreachable(place: &Place, cause: &str) -> Trouble {
    Trouble {
        message: format!("cannot reach the sidecar at {place}: {cause}"),
        hint: "check that `quorate run` runs there, or name another with --endpoint".into(),
        code: REFUSED,
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// The status as a value.
///
/// # Errors
/// [`Trouble`] if it is none.
pub(super) fn read_report(json: &str) -> Result<Report, Trouble> {
    serde_json::from_str(json).map_err(|e| Trouble {
        message: format!("the sidecar's status cannot be read: {e}"),
        hint: "use the command of the sidecar's version, or --json".into(),
        code: REFUSED,
    })
}

/// A connected sidecar.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) stub: ControlClient<Channel>,
    place: Place,
}

impl Client {
    /// The document of `GET /v1/status`.
    ///
    /// # Errors
    /// [`Trouble`] with exit code 2.
    pub(super) async fn status(&mut self) -> Result<String, Trouble> {
        let answer = self.stub.get_status(GetStatusRequest {}).await;
        Ok(answer.map_err(|status| self.trouble(&status))?.into_inner().json)
    }

    /// What the sidecar itself said, or why it could not be heard. A status that came over the wire has no source.
    pub(super) fn trouble(&self, status: &Status) -> Trouble {
        if status.source().is_some() {
            if matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded) {
                return Trouble {
                    message: format!("what runs at {} does not answer in time", self.place),
                    hint: "its process may be frozen (state T in `ps`), or the device overloaded".into(),
                    code: REFUSED,
                };
            }
            return unreachable(&self.place, &root_cause(status));
        }
        let said = if status.message().is_empty() { "no reason given" } else { status.message() };
        let (message, hint) = match status.code() {
            Code::Unavailable => (said.to_owned(), "see `quorate status` for what is missing"),
            Code::DeadlineExceeded | Code::Cancelled => (
                format!("the sidecar at {} did not finish in time: {said}", self.place),
                "see `quorate status`",
            ),
            Code::Unimplemented => (
                format!("what answers at {} does not know this call", self.place),
                "is it a sidecar of another version, or another program?",
            ),
            Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition | Code::Aborted => {
                (said.to_owned(), "see `quorate status` for the devices and what they may do")
            }
            code => (format!("the sidecar at {} failed: {said} ({code:?})", self.place), "see its log"),
        };
        Trouble { message, hint: hint.into(), code: REFUSED }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn environment(variables: &[(&str, &str)], run_dir: &std::path::Path) -> Environment {
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Environment { variables: variables.collect::<BTreeMap<_, _>>(), run_dir: run_dir.to_owned() }
    }

    #[test]
    fn the_nearest_sidecar_is_asked() {
        let run = tempfile::tempdir().expect("folder");
        let place = |endpoint: Option<&str>, variables: &[(&str, &str)]| {
            let target = Target { endpoint: endpoint.map(str::to_owned) };
            target.place(&environment(variables, run.path())).map(|p| p.to_string()).map_err(|t| t.code)
        };
        assert_eq!(place(None, &[]), Ok("http://127.0.0.1:7601".into()));
        std::fs::create_dir(run.path().join("quorate")).expect("folder");
        let socket = run.path().join("quorate/control.sock");
        std::fs::write(&socket, "").expect("writes");
        assert_eq!(place(None, &[]), Ok(format!("unix:{}", socket.display())));
        let told = [("QUORATE_CONTROL_SOCKET", "/a.sock")];
        assert_eq!(place(None, &told), Ok("unix:/a.sock".into()));
        let both = [("QUORATE_CONTROL_SOCKET", "/a.sock"), ("QUORATE_ENDPOINT", "http://h:1")];
        assert_eq!(place(None, &both), Ok("http://h:1".into()));
        assert_eq!(place(Some("unix:///b.sock"), &both), Ok("unix:/b.sock".into()));
        assert_eq!(place(Some("10.0.0.1:7601"), &[]), Ok("http://10.0.0.1:7601".into()));
        for wrong in ["unix:", "unix:/a\u{1b}[2J", "https://h:1", "http://h", "not an endpoint"] {
            assert_eq!(place(Some(wrong), &[]), Err(USAGE), "{wrong}");
        }
    }
}
