//! Which module this sidecar is, where its hub is, and how its tokens are signed.
//!
//! Inside IoT Edge all of it comes from the variables that the runtime gives to every module, and the workload socket signs
//! (`workload_api.rs`): there is no credential to lose. Elsewhere a module's connection string says the same. Keys, tokens and
//! signatures are never shown.

use std::{fmt, path::Path, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use percent_encoding::utf8_percent_encode;
use ring::hmac;

use super::{
    Error,
    connection_string::{self, Malformed, Parts, is_host},
    sas::{Secret, UNRESERVED},
    settings::{EdgeRuntime, Settings},
    target::Target,
    workload_api::WorkloadApi,
};
use crate::timing::Fault;

/// What to do about a module's connection string.
const ADVICE: &str = "write a module identity's: HostName=NAME.azure-devices.net;DeviceId=NAME;ModuleId=NAME;SharedAccessKey=KEY";

/// A module's identity: its name, its hub, and whatever signs for it.
#[derive(Clone)]
pub struct Identity {
    target: Target,
    hub: String,
    gateway: Option<String>,
    signer: Signer,
}

#[derive(Clone)]
enum Signer {
    Key(hmac::Key),
    Socket { api: WorkloadApi, generation: String },
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} at {})", self.target, self.hub)
    }
}

impl Identity {
    /// The module that this sidecar is, if its twin is to be written: by its connection string where one is given, else by
    /// what IoT Edge says.
    ///
    /// # Errors
    /// What is wrong with which setting. No secret is quoted.
    pub fn open(settings: &Settings) -> Result<Option<Identity>, Fault> {
        if !settings.mirror.modules() {
            return Ok(None);
        }
        let fault =
            |setting, problem: String, advice: &str| Fault { setting, problem, advice: advice.into() };
        if let Some(file) = &settings.module_connection_string_file {
            let wrong = |why: String, advice: &str| {
                fault("module_connection_string_file", format!("{} {why}", file.display()), advice)
            };
            let text = std::fs::read_to_string(file).map_err(|why| {
                wrong(format!("cannot be read: {why}"), "name a file that this process may read")
            })?;
            let identity = Identity::parse(&text).map_err(|why| wrong(why.to_string(), ADVICE))?;
            return Ok(Some(identity.through(settings.gateway.clone())));
        }
        let Some(edge) = &settings.edge else {
            let problem = "the module twin is mirrored, and this process runs outside IoT Edge";
            return Err(fault("module_connection_string_file", problem.into(), ADVICE));
        };
        Identity::of_edge(edge, settings.timeout)
            .map(Some)
            .map_err(|problem| fault("mirror", problem, "look at the variables of the module's container"))
    }

    /// The module that IoT Edge says this is. Each call to the workload socket ends within `timeout`.
    ///
    /// # Errors
    /// The variable that is wrong, and how.
    pub fn of_edge(edge: &EdgeRuntime, timeout: Duration) -> Result<Identity, String> {
        let socket = edge.workload_uri.strip_prefix("unix://").filter(|path| Path::new(path).is_absolute());
        let socket = socket.ok_or_else(|| {
            format!(
                "IOTEDGE_WORKLOADURI {:?} is not a socket; IoT Edge writes unix:///PATH",
                edge.workload_uri
            )
        })?;
        for (name, host) in
            [("IOTEDGE_IOTHUBHOSTNAME", &edge.hub), ("IOTEDGE_GATEWAYHOSTNAME", &edge.gateway)]
        {
            if !is_host(host) {
                return Err(format!("{name} {host:?} is not a host name"));
            }
        }
        let api = WorkloadApi::new(socket.into(), timeout)?;
        Ok(Identity {
            target: Target::module(&edge.device, &edge.module),
            hub: edge.hub.clone(),
            gateway: Some(edge.gateway.clone()),
            signer: Signer::Socket { api, generation: edge.generation.clone() },
        })
    }

    /// Parses `HostName=…;DeviceId=…;ModuleId=…;SharedAccessKey=…`, with `GatewayHostName=…` for an edgeHub, in any order;
    /// unknown parts are ignored. Ports are kept. Space around the text is ignored.
    ///
    /// # Errors
    /// [`Malformed`] names the first fault.
    pub fn parse(text: &str) -> Result<Identity, Malformed> {
        let names = ["HostName", "DeviceId", "ModuleId", "SharedAccessKey", "GatewayHostName"];
        let mut parts = Parts::of(text, names, &[("SharedAccessKeyName", Malformed::Policy)])?;
        let hub = parts.required("HostName")?;
        let target = Target::module(&parts.required("DeviceId")?, &parts.required("ModuleId")?);
        let signer = Signer::Key(parts.key()?);
        let hub = connection_string::host(hub, "HostName")?;
        let gateway = parts.optional("GatewayHostName");
        let gateway = gateway.map(|name| connection_string::host(name, "GatewayHostName")).transpose()?;
        Ok(Identity { target, hub, gateway, signer })
    }

    /// The same through this edgeHub.
    #[must_use]
    pub fn through(mut self, gateway: Option<String>) -> Identity {
        if gateway.is_some() {
            self.gateway = gateway;
        }
        self
    }

    /// Whose twin.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The hub's host, with its port if one was given.
    pub fn hub(&self) -> &str {
        &self.hub
    }

    /// The edgeHub between, if there is one.
    pub fn gateway(&self) -> Option<&str> {
        self.gateway.as_deref()
    }

    /// A token for this module alone, good until `expiry` (seconds since 1970).
    ///
    /// # Errors
    /// [`Error`], from the workload socket.
    pub async fn token(&self, expiry: u64) -> Result<Secret, Error> {
        let Target { device, module } = &self.target;
        let module = module.as_deref().unwrap_or_default();
        let resource = format!("{}/devices/{device}/modules/{module}", self.hub);
        let resource = utf8_percent_encode(&resource, UNRESERVED).to_string();
        let text = format!("{resource}\n{expiry}");
        let signature = match &self.signer {
            Signer::Key(key) => STANDARD.encode(hmac::sign(key, text.as_bytes())),
            Signer::Socket { api, generation } => api.sign(module, generation, &text).await?,
        };
        let signature = utf8_percent_encode(&signature, UNRESERVED);
        Ok(format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}").into())
    }

    /// The authorities that this device's IoT Edge trusts, as PEM; `None` outside IoT Edge, or if it names none.
    ///
    /// # Errors
    /// [`Error`], from the workload socket.
    pub async fn trust_bundle(&self) -> Result<Option<String>, Error> {
        match &self.signer {
            Signer::Key(_) => Ok(None),
            Signer::Socket { api, .. } => api.trust_bundle().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::MirrorKind;

    const KEY: &str = "c2VjcmV0LWtleS1mb3ItdGVzdHM=";

    fn string() -> String {
        format!("HostName=hub1.azure-devices.net;DeviceId=edge-a;ModuleId=ha;SharedAccessKey={KEY}\n")
    }

    #[tokio::test]
    async fn a_token_as_the_sdk_makes_it() {
        let identity = Identity::parse(&string()).expect("parses");
        let token = identity.token(1_795_372_173).await.expect("signs");
        // Computed with Python's hmac, hashlib and base64 for this key.
        assert_eq!(
            token.reveal(),
            "SharedAccessSignature sr=hub1.azure-devices.net%2Fdevices%2Fedge-a%2Fmodules%2Fha&sig=Op1qPUGogBUK4ZUXTh9soYzRJNrM4tJRCRrkVS84534%3D&se=1795372173"
        );
        assert!(!format!("{identity:?} {token:?}").contains("Shared"), "it is not shown");
        assert_eq!(identity.trust_bundle().await, Ok(None));
    }

    #[test]
    fn faults_are_named_and_never_quote_the_key() {
        let fault = |text: &str| Identity::parse(text).err();
        assert_eq!(fault(""), Some(Malformed::Missing("HostName")));
        assert_eq!(fault("HostName=h;DeviceId=d;SharedAccessKey=eA=="), Some(Malformed::Missing("ModuleId")));
        assert_eq!(fault(&string().replace(KEY, "&&&")), Some(Malformed::Key));
        assert_eq!(fault(&string().replace("hub1.", "hub 1/.")), Some(Malformed::Host("HostName")));
        assert_eq!(
            fault(&format!("GatewayHostName=a/b;{}", string())),
            Some(Malformed::Host("GatewayHostName"))
        );
        assert_eq!(fault(&format!("DeviceId=d;{}", string())), Some(Malformed::Twice("DeviceId")));
        assert_eq!(fault(&format!("SharedAccessKeyName=x;{}", string())), Some(Malformed::Policy));
        let identity = Identity::parse(&format!("gatewayhostname=gw:8884;{}", string())).expect("parses");
        assert_eq!(identity.gateway(), Some("gw:8884"));
        assert_eq!(identity.through(Some("other".into())).gateway(), Some("other"));
    }

    #[test]
    fn what_the_runtime_says_is_checked() {
        let edge = EdgeRuntime {
            workload_uri: "unix:///run/w.sock".into(),
            hub: "hub1.azure-devices.net".into(),
            device: "edge-a".into(),
            module: "ha".into(),
            generation: "638".into(),
            gateway: "edge-a".into(),
            api_version: "2022-08-03".into(),
        };
        let open = |edge: &EdgeRuntime| Identity::of_edge(edge, Duration::from_secs(1));
        let identity = open(&edge).expect("is in order");
        assert_eq!(
            (identity.target().to_string().as_str(), identity.gateway()),
            ("edge-a/ha", Some("edge-a"))
        );
        for uri in ["http://localhost:1", "unix://w.sock", ""] {
            let wrong = EdgeRuntime { workload_uri: uri.into(), ..edge.clone() };
            assert!(open(&wrong).expect_err("is wrong").contains("IOTEDGE_WORKLOADURI"));
        }
        let wrong = EdgeRuntime { gateway: "a b".into(), ..edge.clone() };
        assert!(open(&wrong).expect_err("is wrong").contains("IOTEDGE_GATEWAYHOSTNAME"));
    }

    #[test]
    fn the_connection_string_wins_and_its_faults_name_its_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("module");
        let settings = |mirror| Settings {
            mirror,
            module_connection_string_file: Some(file.clone()),
            gateway: Some("gw".into()),
            ..Settings::default()
        };
        assert!(Identity::open(&settings(MirrorKind::DeviceTwin)).expect("is in order").is_none());
        let missing = Identity::open(&settings(MirrorKind::Both)).expect_err("is missing");
        assert_eq!(missing.setting, "module_connection_string_file");
        std::fs::write(&file, string().replace(KEY, "%%%")).expect("writes");
        let wrong = Identity::open(&settings(MirrorKind::Both)).expect_err("is wrong");
        assert!(wrong.problem.contains("base64") && !wrong.problem.contains('%'), "{wrong:?}");
        std::fs::write(&file, string()).expect("writes");
        let identity = Identity::open(&settings(MirrorKind::ModuleTwin)).expect("is in order");
        assert_eq!(identity.expect("is wanted").gateway(), Some("gw"));
        let nowhere = Settings { mirror: MirrorKind::ModuleTwin, ..Settings::default() };
        assert!(Identity::open(&nowhere).is_err());
    }
}
