//! Credentials of a shared access policy: the connection string, and the short-lived tokens made of it.
//!
//! A key is never shown: not by `Debug`, not by `Display`, not in an error. Tokens live for an hour by the wall clock,
//! because the hub checks them by its own; their renewal runs on the boot clock, so that a wall clock that jumps does
//! not spoil a token that is still good. A token made while the wall clock was wrong is thrown away when the hub
//! refuses it ([`Tokens::refused`]).

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use ring::hmac;
use zeroize::Zeroizing;

use super::connection_string::{self, Malformed, Parts};
use crate::clock::{Clock, Moment};

/// How long a token is good for.
const LIFE: Duration = Duration::from_secs(3600);
/// A token this old is replaced.
const RENEW: Duration = Duration::from_secs(3000);

/// What stays as it is in a percent-encoded part of a token: the unreserved characters of RFC 3986.
pub const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A text that is never shown, and overwritten once it is no longer used.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The text itself. Hand it to nothing that prints.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Secret(Zeroizing::new(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// A parsed connection string of a shared access policy.
#[derive(Clone)]
pub struct Credentials {
    host: String,
    policy: String,
    key: hmac::Key,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({} at {})", self.policy, self.host)
    }
}

impl Credentials {
    /// Parses `HostName=…;SharedAccessKeyName=…;SharedAccessKey=…`, in any order; unknown parts are ignored. A port in
    /// `HostName` is kept. Space around the text is ignored, because files end with a newline.
    ///
    /// # Errors
    /// [`Malformed`] names the first fault.
    pub fn parse(text: &str) -> Result<Credentials, Malformed> {
        let names = ["HostName", "SharedAccessKeyName", "SharedAccessKey"];
        let foreign = ["DeviceId", "ModuleId"].map(|name| (name, Malformed::DeviceScoped));
        let mut parts = Parts::of(text, names, &foreign)?;
        let (host, policy) = (parts.required("HostName")?, parts.required("SharedAccessKeyName")?);
        let key = parts.key()?;
        Ok(Credentials { host: connection_string::host(host, "HostName")?, policy, key })
    }

    /// The hub's host, with its port if one was given.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// A token for the whole hub, good until `expiry` (seconds since 1970).
    pub fn token(&self, expiry: u64) -> String {
        let resource = utf8_percent_encode(&self.host, UNRESERVED).to_string();
        let signature = hmac::sign(&self.key, format!("{resource}\n{expiry}").as_bytes());
        let signature = STANDARD.encode(signature);
        format!(
            "SharedAccessSignature sr={resource}&sig={}&se={expiry}&skn={}",
            utf8_percent_encode(&signature, UNRESERVED),
            utf8_percent_encode(&self.policy, UNRESERVED),
        )
    }
}

/// The newest token, made anew before it expires.
pub struct Tokens(Mutex<Inner>);

struct Inner {
    credentials: Credentials,
    current: Option<(String, Moment)>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({:?})", self.lock().credentials)
    }
}

impl Tokens {
    /// No token yet; the first is made when it is asked for.
    pub fn new(credentials: Credentials) -> Tokens {
        Tokens(Mutex::new(Inner { credentials, current: None }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A token that is good for at least ten minutes if the wall clock was right when it was made.
    pub fn get(&self, clock: &dyn Clock) -> String {
        let now = clock.now();
        let mut inner = self.lock();
        if let Some((token, made)) = &inner.current
            && now.since(*made) < RENEW
        {
            return token.clone();
        }
        let token = inner.credentials.token(clock.wall_ms() / 1000 + LIFE.as_secs());
        inner.current = Some((token.clone(), now));
        token
    }

    /// The hub refused the token: the next one is made anew.
    pub fn refused(&self) {
        self.lock().current = None;
    }

    /// From now on tokens are made with these credentials.
    pub fn replace(&self, credentials: Credentials) {
        *self.lock() = Inner { credentials, current: None };
    }
}

/// The parts of a token as the hub's side needs them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presented {
    /// The resource, exactly as received: the signature covers this text, and clients differ in `%2f` and `%2F`.
    pub raw_resource: String,
    /// The signature, decoded.
    pub signature: Vec<u8>,
    /// Expiry, seconds since 1970.
    pub expiry: u64,
    /// The policy, if one is named.
    pub policy: Option<String>,
}

impl Presented {
    /// Reads an `Authorization` header or MQTT password, parameters in any order. `None` if it is no token.
    pub fn parse(text: &str) -> Option<Presented> {
        let (mut resource, mut signature, mut expiry, mut policy) = (None, None, None, None);
        for part in text.strip_prefix("SharedAccessSignature ")?.trim().split('&') {
            let (name, value) = part.split_once('=')?;
            match name {
                "sr" => resource = Some(value.to_owned()),
                "sig" => {
                    let decoded = percent_decode_str(value).decode_utf8().ok()?;
                    signature = Some(STANDARD.decode(decoded.as_bytes()).ok()?);
                }
                "se" => expiry = Some(value.parse().ok()?),
                "skn" => policy = Some(percent_decode_str(value).decode_utf8().ok()?.into_owned()),
                _ => {}
            }
        }
        Some(Presented { raw_resource: resource?, signature: signature?, expiry: expiry?, policy })
    }

    /// Whether `key` made the signature. Takes the same time for every wrong signature.
    pub fn signed_by(&self, key: &hmac::Key) -> bool {
        let text = format!("{}\n{}", self.raw_resource, self.expiry);
        hmac::verify(key, text.as_bytes(), &self.signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "c2VjcmV0LWtleS1mb3ItdGVzdHM=";

    fn string() -> String {
        format!("HostName=hub1.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey={KEY}\n")
    }

    #[derive(Debug, Default)]
    struct TestClock {
        boot_s: AtomicU64,
        wall_s: AtomicU64,
    }

    impl Clock for TestClock {
        fn now(&self) -> Moment {
            Moment::from_nanos(self.boot_s.load(Ordering::Relaxed) * 1_000_000_000)
        }
        fn wall_ms(&self) -> u64 {
            self.wall_s.load(Ordering::Relaxed) * 1000
        }
    }

    #[test]
    fn a_token_as_the_sdk_makes_it() {
        // Computed with Python's hmac, hashlib and base64 for this key.
        let credentials = Credentials::parse(&string().replace("hub1.azure-devices.net", "localhost:4443"))
            .expect("parses");
        let token = credentials.token(1_795_372_105);
        assert_eq!(
            token,
            "SharedAccessSignature sr=localhost%3A4443&sig=PScf%2FibjB8lftxSltCjpI5APpBov6K51SbUDfMoYyAI%3D&se=1795372105&skn=service"
        );
    }

    #[test]
    fn what_we_make_verifies_and_what_is_changed_does_not() {
        let token = Credentials::parse(&string()).expect("parses").token(77);
        let presented = Presented::parse(&token).expect("a token");
        let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(KEY).expect("base64"));
        assert!(presented.signed_by(&key));
        assert!(!Presented { expiry: 78, ..presented.clone() }.signed_by(&key));
        assert!(!Presented { raw_resource: "other".into(), ..presented.clone() }.signed_by(&key));
        // The SDK leaves `/` as it is and orders the parts differently.
        let raw = token.replace("%2F", "/");
        assert!(Presented::parse(&raw).expect("a token").signed_by(&key));
    }

    #[test]
    fn faults_are_named_and_never_quote_the_key() {
        let fault = |text: &str| Credentials::parse(text).err();
        assert_eq!(fault(""), Some(Malformed::Missing("HostName")));
        assert_eq!(fault(&string().replace(KEY, "&&&")), Some(Malformed::Key));
        assert_eq!(fault(&string().replace("hub1.", "hub 1/.")), Some(Malformed::Host("HostName")));
        assert_eq!(fault(&format!("{};HostName=x", string().trim())), Some(Malformed::Twice("HostName")));
        assert_eq!(fault(&format!("DeviceId=d;{}", string())), Some(Malformed::DeviceScoped));
        let credentials = Credentials::parse(&string()).expect("parses");
        let tokens = Tokens::new(credentials.clone());
        for shown in
            [format!("{credentials:?}"), format!("{tokens:?}"), format!("{:?}", Secret::from(string()))]
        {
            assert!(!shown.contains(KEY), "{shown}");
        }
    }

    #[test]
    fn tokens_are_renewed_by_the_boot_clock() {
        let clock = TestClock::default();
        clock.wall_s.store(1_000_000, Ordering::Relaxed);
        let tokens = Tokens::new(Credentials::parse(&string()).expect("parses"));
        let first = tokens.get(&clock);
        assert!(first.contains("se=1003600"));
        // The wall clock jumps ten years back: the token is as good as before.
        clock.wall_s.store(1, Ordering::Relaxed);
        assert_eq!(tokens.get(&clock), first);
        clock.boot_s.store(2999, Ordering::Relaxed);
        assert_eq!(tokens.get(&clock), first);
        clock.boot_s.store(3000, Ordering::Relaxed);
        assert!(tokens.get(&clock).contains("se=3601"));
        clock.wall_s.store(2_000_000, Ordering::Relaxed);
        tokens.refused();
        assert!(tokens.get(&clock).contains("se=2003600"));
    }

    proptest! {
        #[test]
        fn no_text_upsets_the_parsers(text in "\\PC{0,80}", tail in "[a-z=&%;/+]{0,60}") {
            let _ = Credentials::parse(&text);
            let _ = Presented::parse(&text);
            let _ = Presented::parse(&format!("SharedAccessSignature {tail}"));
        }
    }
}
