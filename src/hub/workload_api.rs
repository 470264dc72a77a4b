//! The workload socket of IoT Edge: it signs as the module that this process runs in, and names the authorities to trust.
//!
//! The security daemon of the device holds the module's key and never shows it; it knows the caller by its process. So
//! nothing on the device's disk, in its environment or in its configuration is worth stealing. What this file does not do:
//! certificates for servers, encryption, and the management socket.

use std::{path::PathBuf, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use percent_encoding::utf8_percent_encode;
use reqwest::{Method, StatusCode};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};

use super::{Error, error::WITHOUT_A_REASON, sas::UNRESERVED};

/// Known to every release of IoT Edge that is in use, and to both of Microsoft's emulated ones.
const API_VERSION: &str = "2018-06-28";
/// A bundle of some dozen authorities is far below this.
const ANSWER_MAX: usize = 1024 * 1024;

/// The socket of one module.
#[derive(Debug, Clone)]
pub struct WorkloadApi {
    client: reqwest::Client,
    socket: PathBuf,
    timeout: Duration,
}

impl WorkloadApi {
    /// Talks to `socket`; each call ends within `timeout`. Nothing is sent yet.
    ///
    /// # Errors
    /// If the HTTP client cannot be built; that is a defect.
    pub fn new(socket: PathBuf, timeout: Duration) -> Result<WorkloadApi, String> {
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
            .timeout(timeout)
            // The daemon counts connections, and the next call is hours away.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|why| why.to_string())?;
        Ok(WorkloadApi { client, socket, timeout })
    }

    /// The authorities that the device trusts, as PEM; `None` if it names none.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn trust_bundle(&self) -> Result<Option<String>, Error> {
        match self.call(Method::GET, "/trust-bundle", None).await? {
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, body) => {
                let answer = self.answer(status, &body)?;
                let pem = answer.get("certificate").and_then(Value::as_str);
                let pem = pem.ok_or_else(|| self.strange("a trust bundle without certificates"))?;
                Ok(Some(pem.to_owned()).filter(|pem| !pem.trim().is_empty()))
            }
        }
    }

    /// Signs `data` with the key of the module's identity of that generation: the HMAC-SHA256, in base64.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn sign(&self, module: &str, generation: &str, data: &str) -> Result<String, Error> {
        let encoded = |text| utf8_percent_encode(text, UNRESERVED).to_string();
        let path = format!("/modules/{}/genid/{}/sign", encoded(module), encoded(generation));
        let body = json!({ "keyId": "primary", "algo": "HMACSHA256", "data": STANDARD.encode(data) });
        let (status, body) = self.call(Method::POST, &path, Some(body)).await?;
        if status == StatusCode::NOT_FOUND {
            return Err(Error::IdentityGone(format!(
                "IoT Edge knows no module {module} of generation {generation} on this device: its identity was deleted or made anew; \
                 IoT Edge has to start the module again ({})",
                words(serde_json::from_slice(&body).ok().as_ref())
            )));
        }
        let answer = self.answer(status, &body)?;
        let digest = answer.get("digest").and_then(Value::as_str);
        let good = digest.filter(|digest| STANDARD.decode(digest).is_ok_and(|bytes| bytes.len() == 32));
        good.map(str::to_owned).ok_or_else(|| self.strange("a signature that is none"))
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, Vec<u8>), Error> {
        let url = format!("http://localhost{path}?api-version={API_VERSION}");
        let mut request = self.client.request(method, url);
        if let Some(body) = &body {
            request = request.json(body);
        }
        let failed = |why: reqwest::Error| self.failed(&why);
        let mut answer = request.send().await.map_err(failed)?;
        let mut got = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if got.len() + chunk.len() > ANSWER_MAX {
                return Err(self.strange("an answer without end"));
            }
            got.extend_from_slice(&chunk);
        }
        Ok((answer.status(), got))
    }

    fn failed(&self, why: &reqwest::Error) -> Error {
        if why.is_timeout() {
            return Error::TimedOut { after: self.timeout };
        }
        let mut cause: &dyn std::error::Error = why;
        while let Some(next) = cause.source() {
            cause = next;
        }
        Error::Unreachable(format!("IoT Edge's workload socket {}: {cause}", self.socket.display()))
    }

    /// The JSON of an answer of the 200s.
    fn answer(&self, status: StatusCode, body: &[u8]) -> Result<Value, Error> {
        let json: Option<Value> = serde_json::from_slice(body).ok();
        if status.is_success() {
            return json.ok_or_else(|| self.strange("an answer that is no JSON"));
        }
        let detail = format!("IoT Edge's workload socket says: {}", words(json.as_ref()));
        let status = status.as_u16();
        Err(match status {
            401 | 403 => Error::Unauthorized { status, detail },
            408 | 500..=599 => Error::Unavailable { status, retry_after: None, detail },
            _ => Error::Rejected { status, detail },
        })
    }

    fn strange(&self, what: &str) -> Error {
        Error::NotTheHub(format!("IoT Edge's workload socket {}: {what}", self.socket.display()))
    }
}

/// The socket's own words in an answer.
fn words(json: Option<&Value>) -> String {
    let words = json.and_then(|json| json.get("message")?.as_str()).unwrap_or(WITHOUT_A_REASON);
    words.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests;
