//! A certificate authority made at each start, and the server certificate it signs.
//!
//! Strict clients are served: the authority has its key usage, the leaf names its authority. TLS 1.2 is offered beside
//! 1.3 because Microsoft's device SDK for Python speaks nothing newer, and the certificate is served without SNI because
//! clients that dial an address send none. The authority's own key is forgotten at once.

use std::{error::Error, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

pub(super) struct Authority {
    pub(super) ca_pem: String,
    pub(super) tls: Arc<ServerConfig>,
}

impl Authority {
    pub(super) fn new(extra_names: &[String]) -> Result<Authority, Box<dyn Error + Send + Sync>> {
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "Quorate IoT Hub emulator");
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;

        let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
        names.extend(extra_names.iter().filter(|name| !name.is_empty()).cloned());
        names.dedup();
        let mut leaf = CertificateParams::new(names)?;
        leaf.distinguished_name.push(DnType::CommonName, "localhost");
        leaf.use_authority_key_identifier_extension = true;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = leaf.signed_by(&key, &ca)?;

        let mut tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Authority { ca_pem: ca.pem(), tls: Arc::new(tls) })
    }
}
