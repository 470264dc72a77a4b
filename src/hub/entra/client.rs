//! Tokens for a registered application: client credentials, with a secret from a file.
//!
//! The secret is read for each token, so a new one needs no restart, and only from a file that other users of the device cannot
//! read. What this code holds of it is overwritten after use; the copies that HTTP and TLS make on its way out are not within
//! reach. It goes to the configured authority alone, over TLS, and is in no error, whatever that authority says.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use percent_encoding::utf8_percent_encode;
use reqwest::{Client, StatusCode, Url, header::CONTENT_TYPE};
use serde_json::Value;
use zeroize::Zeroizing;

use super::{RESOURCE, plain, read, token};
use crate::hub::{
    Error,
    rest::broken,
    sas::{Secret, UNRESERVED},
    settings::Registration,
};

/// No secret is longer; Entra ID makes them of 40 characters.
const SECRET_MAX: usize = 4096;

/// A registered application and what it knows itself by.
pub(super) struct Registered {
    registration: Registration,
    timeout: Duration,
}

/// Why a file does not give a secret. Never quotes it.
#[derive(Debug, thiserror::Error)]
pub enum NoSecret {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// Not a file, or a very large one.
    #[error("is not a file of at most {SECRET_MAX} bytes")]
    NotSmall,
    /// Other users of this device may read it, or its group may change it.
    #[error("is open to others (mode {0:03o})")]
    Open(u32),
    /// Nothing, several lines, or no text.
    #[error("does not hold one line of text")]
    NotOneLine,
}

impl NoSecret {
    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            NoSecret::Open(_) => {
                "chmod 600 it, or 640 with a group of its own: the secret opens the hub to whoever reads it"
            }
            NoSecret::Unreadable(_) => "name a file that the user that runs the sidecar may read",
            NoSecret::NotSmall | NoSecret::NotOneLine => {
                "write the value of the application's client secret into it, and nothing else"
            }
        }
    }
}

/// The secret in a file, which must be a small regular one that no other user can read and its group cannot write.
///
/// # Errors
/// [`NoSecret`].
pub fn read_secret(path: &Path) -> Result<Secret, NoSecret> {
    // A pipe would make the reader wait, so it is not even opened.
    if !fs::metadata(path)?.is_file() {
        return Err(NoSecret::NotSmall);
    }
    let file = File::open(path)?;
    let mode = file.metadata()?.mode() & 0o777;
    if mode & 0o027 != 0 {
        return Err(NoSecret::Open(mode));
    }
    // Never grows, so that no copy stays behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_MAX + 1));
    file.take(SECRET_MAX as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > SECRET_MAX {
        return Err(NoSecret::NotSmall);
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| NoSecret::NotOneLine)?.trim();
    match text.is_empty() || text.contains(char::is_control) {
        true => Err(NoSecret::NotOneLine),
        false => Ok(Secret::from(text.to_owned())),
    }
}

/// Where tokens for this application are asked for; `None` if the authority is not `https://` and a host alone.
pub(super) fn endpoint(registration: &Registration) -> Option<Url> {
    let mut url = Url::parse(&registration.authority).ok()?;
    let bare = url.scheme() == "https"
        && url.has_host()
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if !bare {
        return None;
    }
    url.path_segments_mut().ok()?.clear().push(&registration.tenant).extend(["oauth2", "v2.0", "token"]);
    Some(url)
}

impl Registered {
    pub(super) fn new(registration: Registration, timeout: Duration) -> Registered {
        Registered { registration, timeout }
    }

    /// Asks for a token; with how long it is good for. Cancel-safe.
    pub(super) async fn fetch(&self, client: &Client, endpoint: &Url) -> Result<(Secret, Duration), Error> {
        let host = endpoint.host_str().unwrap_or_default();
        let none = |why: String| Error::NoToken(format!("{host}: {why}"));
        let path = self.registration.secret_file.clone();
        let read_secret = tokio::task::spawn_blocking(move || read_secret(&path).map_err(|why| (path, why)));
        let secret = match read_secret.await {
            Ok(Ok(secret)) => secret,
            Ok(Err((path, why))) => {
                return Err(none(format!("{} {why}; {}", path.display(), why.advice())));
            }
            Err(_) => return Err(none("the secret's file was not read to its end".into())),
        };
        let request = client
            .post(endpoint.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form(&self.registration.client_id, &secret));
        let unreachable = |why| named(broken(why, self.timeout), host);
        let answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        let body = Zeroizing::new(read(answer).await.map_err(none)?);
        let json: Value = serde_json::from_slice(&body)
            .map_err(|_| none(format!("it answers {} with something that is not JSON", status.as_u16())))?;
        match status {
            StatusCode::OK => token(&json).map_err(none),
            _ => Err(none(self.refused(status, &json, &secret))),
        }
    }

    /// What a refusal means to whoever configured this.
    fn refused(&self, status: StatusCode, json: &Value, secret: &Secret) -> String {
        let Registration { tenant, client_id, secret_file, .. } = &self.registration;
        let words = json.get("error_description").or_else(|| json.get("error"));
        let words = words.and_then(Value::as_str).unwrap_or("no reason given");
        let file = secret_file.display();
        match code(json, words) {
            Some(code @ 7_000_215) => format!(
                "the client secret is wrong (AADSTS{code}): write the value of the secret, not its id, into {file}"
            ),
            Some(code @ 7_000_222) => format!(
                "the client secret has expired (AADSTS{code}): make a new one for application {client_id} and write it into {file}"
            ),
            Some(code @ (90_002 | 900_023)) => {
                format!("tenant {tenant} is not known (AADSTS{code}): check hub.tenant and hub.authority")
            }
            Some(code @ 700_016) => {
                format!("tenant {tenant} has no application {client_id} (AADSTS{code}): check hub.client_id")
            }
            _ => {
                let words = plain(words.lines().next().unwrap_or_default());
                format!("it answers {}: {}", status.as_u16(), words.replace(secret.reveal(), "<secret>"))
            }
        }
    }
}

/// The body of a request for a token for hubs.
fn form(client_id: &str, secret: &Secret) -> Bytes {
    let encode = |text| utf8_percent_encode(text, UNRESERVED);
    let scope = format!("{RESOURCE}/.default");
    let (client_id, scope) = (encode(client_id).to_string(), encode(&scope).to_string());
    // Three bytes at most for each of the secret's, so that it never grows.
    let most = client_id.len() + scope.len() + 3 * secret.reveal().len() + 100;
    let mut body = Zeroizing::new(String::with_capacity(most));
    for part in ["grant_type=client_credentials&client_id=", &client_id, "&scope=", &scope, "&client_secret="]
    {
        body.push_str(part);
    }
    body.extend(encode(secret.reveal()));
    Bytes::from_owner(Owned(body))
}

/// Overwritten when the last of its readers is done.
struct Owned(Zeroizing<String>);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// The directory's own number for a failure.
fn code(json: &Value, words: &str) -> Option<u64> {
    let first = json.get("error_codes").and_then(|codes| codes.get(0)).and_then(Value::as_u64);
    first.or_else(|| {
        let digits = words.split_once("AADSTS")?.1;
        digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    })
}

/// The same failure, saying that it was not the hub that could not be asked.
fn named(why: Error, host: &str) -> Error {
    let named = |detail: String| format!("the token service {host}: {detail}");
    match why {
        Error::Unreachable(detail) => Error::Unreachable(named(detail)),
        Error::Untrusted(detail) => Error::Untrusted(named(detail)),
        Error::NotTheHub(detail) => Error::NotTheHub(named(detail)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::json;

    use super::*;

    fn registration(authority: &str) -> Registration {
        Registration {
            tenant: "plant.example".into(),
            client_id: "c1".into(),
            secret_file: "/etc/quorate/secret".into(),
            authority: authority.into(),
        }
    }

    #[test]
    fn a_secret_goes_to_a_host_over_tls_and_nowhere_else() {
        let url = |authority| endpoint(&registration(authority)).map(String::from);
        let good = "https://login.example/plant.example/oauth2/v2.0/token";
        assert_eq!(url("https://login.example").as_deref(), Some(good));
        assert_eq!(url("https://login.example/").as_deref(), Some(good));
        for wrong in
            ["http://login.example", "login.example", "https://a/b", "https://a?b", "https://u@a", ""]
        {
            assert_eq!(url(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_secret_is_read_from_a_closed_file_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("secret");
        let write = |bytes: &[u8], mode: u32| {
            fs::write(&file, bytes).expect("writes");
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("is ours");
            read_secret(&file)
        };
        for mode in [0o600, 0o400, 0o640, 0o440] {
            assert!(write(b"s3~cr.t\n", mode).is_ok_and(|secret| secret.reveal() == "s3~cr.t"), "{mode:o}");
        }
        for mode in [0o644, 0o604, 0o660, 0o666, 0o777] {
            assert!(matches!(write(b"s", mode), Err(NoSecret::Open(found)) if found == mode), "{mode:o}");
        }
        for text in [&b""[..], b" \n", b"a\nb", b"\xff\xfe"] {
            assert!(matches!(write(text, 0o600), Err(NoSecret::NotOneLine)), "{text:?}");
        }
        assert!(matches!(write(&[b'x'; SECRET_MAX + 1], 0o600), Err(NoSecret::NotSmall)));
        assert!(matches!(read_secret(folder.path()), Err(NoSecret::NotSmall)));
        assert!(matches!(read_secret(&folder.path().join("none")), Err(NoSecret::Unreadable(_))));
    }

    #[test]
    fn refusals_say_what_to_do_and_repeat_no_secret() {
        let registered = Registered::new(registration("https://login.example"), Duration::from_secs(1));
        let secret = Secret::from("s3cret".to_owned());
        let said = |json| registered.refused(StatusCode::UNAUTHORIZED, &json, &secret);
        for (json, word) in [
            (json!({"error_codes": [7_000_215]}), "is wrong"),
            (json!({"error_description": "AADSTS7000222: The provided keys are expired."}), "has expired"),
            (json!({"error_codes": [90_002]}), "hub.tenant"),
            (json!({"error_codes": [700_016], "error_description": "?"}), "hub.client_id"),
            (
                json!({"error_codes": [1], "error_description": "what is s3cret\r\nTrace: 1"}),
                "what is <secret>",
            ),
            (json!({"error_codes": "x"}), "no reason given"),
            (json!([]), "401"),
        ] {
            let said = said(json);
            assert!(said.contains(word) && !said.contains("s3cret") && !said.contains("Trace"), "{said}");
        }
        let body = form("c 1", &Secret::from("a+b/c=&~".to_owned()));
        let expected = "grant_type=client_credentials&client_id=c%201&scope=https%3A%2F%2Fiothubs.azure.net%2F.default\
                        &client_secret=a%2Bb%2Fc%3D%26~";
        assert_eq!(&body[..], expected.as_bytes());
    }
}
