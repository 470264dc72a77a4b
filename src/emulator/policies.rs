//! The shared access policies of the emulated hub, and the check of the tokens signed with them.
//!
//! The keys are drawn at each start. The check is the real hub's: over the resource text exactly as received, in any
//! order of parts, with five minutes of tolerance for clocks, in constant time. Device keys open nothing here, because
//! this API is the service's.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode_str;
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};

use crate::hub::sas::Presented;

const SKEW_S: u64 = 300;

/// What a policy allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    RegistryRead,
    RegistryWrite,
    ServiceConnect,
}

struct Policy {
    secret: [u8; 32],
    key: hmac::Key,
    rights: &'static [Right],
}

pub(super) struct Policies {
    policies: BTreeMap<&'static str, Policy>,
    devices: hmac::Key,
}

/// Why a request is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Denied {
    /// No token, not a token, unknown policy, wrong signature or resource.
    Unknown,
    /// The token has expired.
    Expired,
    /// The right is missing; the sentence names it.
    Right(String),
}

impl Policies {
    pub(super) fn new() -> Result<Policies, ring::error::Unspecified> {
        use Right::{RegistryRead, RegistryWrite, ServiceConnect};
        let random = SystemRandom::new();
        let secret = || -> Result<[u8; 32], ring::error::Unspecified> {
            let mut secret = [0; 32];
            random.fill(&mut secret)?;
            Ok(secret)
        };
        let mut policies = BTreeMap::new();
        let rights: [(&'static str, &'static [Right]); 4] = [
            ("iothubowner", &[RegistryRead, RegistryWrite, ServiceConnect]),
            ("service", &[ServiceConnect]),
            ("registryRead", &[RegistryRead]),
            ("registryReadWrite", &[RegistryRead, RegistryWrite]),
        ];
        for (name, rights) in rights {
            let secret = secret()?;
            policies.insert(name, Policy { key: hmac::Key::new(hmac::HMAC_SHA256, &secret), secret, rights });
        }
        Ok(Policies { policies, devices: hmac::Key::new(hmac::HMAC_SHA256, &secret()?) })
    }

    pub(super) fn key_base64(&self, policy: &str) -> Option<String> {
        self.policies.get(policy).map(|policy| STANDARD.encode(policy.secret))
    }

    /// A device's or module's own key, as the registry shows it.
    pub(super) fn device_key_base64(&self, name: &str, which: &str) -> String {
        STANDARD.encode(self.device_key(name, which))
    }

    /// The same as bytes.
    pub(super) fn device_key(&self, name: &str, which: &str) -> Vec<u8> {
        hmac::sign(&self.devices, format!("{which}\n{name}").as_bytes()).as_ref().to_vec()
    }

    /// Lets a request in, or says why not. `hosts` are the names this hub goes by, in lower case.
    pub(super) fn check(
        &self,
        authorization: Option<&str>,
        right: Right,
        host: &str,
        now_unix_s: u64,
    ) -> Result<(), Denied> {
        let token = authorization.and_then(Presented::parse).ok_or(Denied::Unknown)?;
        let name = token.policy.as_deref().ok_or(Denied::Unknown)?;
        let (name, policy) = self.policies.get_key_value(name).ok_or(Denied::Unknown)?;
        if !token.signed_by(&policy.key) {
            return Err(Denied::Unknown);
        }
        if token.expiry.saturating_add(SKEW_S) <= now_unix_s {
            return Err(Denied::Expired);
        }
        let resource = percent_decode_str(&token.raw_resource).decode_utf8_lossy().to_lowercase();
        let resource = resource.trim_end_matches('/');
        // A token names the hub with or without the port, whichever the connection string had.
        let bare = |name: &str| name.rsplit_once(':').map_or(name.to_owned(), |(name, _)| name.to_owned());
        if resource != host.to_lowercase() && resource != bare(&host.to_lowercase()) {
            return Err(Denied::Unknown);
        }
        if policy.rights.contains(&right) {
            return Ok(());
        }
        Err(Denied::Right(format!(
            "The policy {name} lacks the right {right:?}, which this operation needs."
        )))
    }
}
