//! A certificate authority made at each start, and the certificates it signs: the hub's, and those that IoT Edge hands out.
//!
//! Strict clients are served: the authority has its key usage, a leaf names its authority. TLS 1.2 is offered beside
//! 1.3 because Microsoft's device SDK for Python speaks nothing newer, and the certificate is served without SNI because
//! clients that dial an address send none. There is one authority for all: a real device's edge authority is its own.

use std::{error::Error, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};

use crate::hub::wall;

type Fault = Box<dyn Error + Send + Sync>;

pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a leaf is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Server,
    Client,
}

/// A certificate with its key.
pub(super) struct Leaf {
    der: CertificateDer<'static>,
    pub(super) pem: String,
    key: KeyPair,
}

impl Leaf {
    pub(super) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }
}

impl Authority {
    pub(super) fn new() -> Result<Authority, Fault> {
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "Quorate IoT Hub emulator");
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Authority { issuer: CertifiedIssuer::self_signed(ca, KeyPair::generate()?)? })
    }

    /// The authority's own certificate.
    pub(super) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for these names and addresses; the first of them is also its common name. It ends at `end_ms`
    /// (milliseconds since 1970, rounded down to a day), or not in anybody's time.
    pub(super) fn issue(&self, names: &[String], purpose: Use, end_ms: Option<u64>) -> Result<Leaf, Fault> {
        let mut leaf = CertificateParams::new(names.to_vec())?;
        if let Some(end_ms) = end_ms {
            let (year, month, day) = date(end_ms).ok_or("the end is no date")?;
            leaf.not_after = date_time_ymd(year, month, day);
        }
        leaf.distinguished_name.push(DnType::CommonName, names.first().map_or("localhost", String::as_str));
        leaf.use_authority_key_identifier_extension = true;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![match purpose {
            Use::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Use::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        let key = KeyPair::generate()?;
        let certificate = leaf.signed_by(&key, &self.issuer)?;
        Ok(Leaf { der: certificate.der().clone(), pem: certificate.pem(), key })
    }

    /// TLS for a server of these names, beside `localhost` and this machine's own addresses.
    pub(super) fn server(&self, extra_names: &[String]) -> Result<Arc<ServerConfig>, Fault> {
        let leaf = self.issue(&names(extra_names), Use::Server, None)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf.key.serialize_der()));
        let mut tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der], key)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(tls))
    }
}

/// Year, month and day of a moment.
fn date(unix_ms: u64) -> Option<(i32, u8, u8)> {
    let text = wall::rfc3339(unix_ms);
    let mut parts = text.split(['-', 'T']);
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    Some((year.parse().ok()?, month.parse().ok()?, day.parse().ok()?))
}

/// These names, and those by which this machine is always reached.
pub(super) fn names(extra: &[String]) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    for name in extra.iter().filter(|name| !name.is_empty()) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}
