//! What the `hub` section of the configuration says: what to mirror, where, and with which credentials.
//!
//! A value only: it is read and checked, all faults at once, in `config/hub.rs`. Secrets come from files of their own or from the
//! environment, never from the site's shared file or a command line, and are never shown.

use std::{path::PathBuf, time::Duration};

use super::{
    flag::{FlagPath, Place},
    sas::Secret,
};

/// Where the ownership is mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MirrorKind {
    /// Nowhere: the site lives without a hub.
    #[default]
    Off,
    /// In every device's twin, over REST, by one member for all.
    DeviceTwin,
    /// In the reported properties of each sidecar's own module twin.
    ModuleTwin,
    /// In both.
    Both,
}

impl MirrorKind {
    /// Whether device twins are written.
    pub fn devices(self) -> bool {
        matches!(self, MirrorKind::DeviceTwin | MirrorKind::Both)
    }

    /// Whether the sidecar's own module twin is.
    pub fn modules(self) -> bool {
        matches!(self, MirrorKind::ModuleTwin | MirrorKind::Both)
    }

    /// As it is written in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            MirrorKind::Off => "off",
            MirrorKind::DeviceTwin => "device-twin",
            MirrorKind::ModuleTwin => "module-twin",
            MirrorKind::Both => "both",
        }
    }
}

/// Which identity of Entra ID the service API is asked with instead of a policy's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// This machine's, from Azure Arc's agent.
    Arc {
        /// `IDENTITY_ENDPOINT`, which the agent sets beside `IMDS_ENDPOINT`; its usual place without.
        endpoint: Option<String>,
    },
    /// This machine's, from the instance metadata service of a virtual machine in Azure.
    Imds {
        /// Below `AZURE_POD_IDENTITY_AUTHORITY_HOST`; the service's usual place without.
        endpoint: Option<String>,
        /// `client_id`: which identity, if the machine has several.
        client_id: Option<String>,
    },
    /// A registered application's, with a secret.
    Client(Registration),
}

/// A registered application, as which the sidecar asks for tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// `tenant`: the directory's id or one of its domains.
    pub tenant: String,
    /// `client_id`: the application's id.
    pub client_id: String,
    /// `client_secret_file`: a file with the secret's value and nothing else, closed to other users. Read for each token.
    pub secret_file: PathBuf,
    /// `authority`: `https://` and a host. Default [`AUTHORITY`].
    pub authority: String,
}

/// Where tokens are issued in Azure's public cloud.
pub const AUTHORITY: &str = "https://login.microsoftonline.com";

/// Messages that pass through the sidecar on the owner alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// The sidecar's input to which the workload's messages are routed.
    pub input: String,
    /// The sidecar's output on which they leave.
    pub output: String,
}

/// What the IoT Edge runtime tells each module in its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeRuntime {
    /// `IOTEDGE_WORKLOADURI`: the socket that signs for this module.
    pub workload_uri: String,
    /// `IOTEDGE_IOTHUBHOSTNAME`.
    pub hub: String,
    /// `IOTEDGE_DEVICEID`.
    pub device: String,
    /// `IOTEDGE_MODULEID`.
    pub module: String,
    /// `IOTEDGE_MODULEGENERATIONID`: another one means that the identity was created anew.
    pub generation: String,
    /// `IOTEDGE_GATEWAYHOSTNAME`: the device's edgeHub.
    pub gateway: String,
    /// `IOTEDGE_APIVERSION` of the socket.
    pub api_version: String,
}

/// The `hub` section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `mirror`. Default: `module-twin` under the IoT Edge runtime, else `off`.
    pub mirror: MirrorKind,
    /// `flag`: where the flag stands in a twin's part. Default `quorate`.
    pub flag: FlagPath,
    /// `place`: in which part of the device twins. Default `desired`.
    pub place: Place,
    /// `plain`: a bare boolean below `properties.desired` that says the same as the flag's `active`.
    pub plain: Option<FlagPath>,
    /// `workload_module`: a module on each device whose own twin gets the flag too.
    pub workload_module: Option<String>,
    /// `connection_string`, from the environment only: of a shared access policy with ServiceConnect.
    pub connection_string: Option<Secret>,
    /// `connection_string_file`: a file that holds it and nothing else. It is read again when the hub refuses the key, so a
    /// rotated key needs no restart.
    pub connection_string_file: Option<PathBuf>,
    /// `identity`: instead of a connection string.
    pub identity: Option<Identity>,
    /// `host`: the hub's name, for `identity`.
    pub host: Option<String>,
    /// `module_connection_string_file`: of the sidecar's own module identity, outside the IoT Edge runtime.
    pub module_connection_string_file: Option<PathBuf>,
    /// `gateway`: the edgeHub through which that module connects; straight to the hub without one.
    pub gateway: Option<String>,
    /// What the IoT Edge runtime told this process; `None` outside.
    pub edge: Option<EdgeRuntime>,
    /// `ca_file`: PEM certificates of further authorities to trust, beside the public ones built in.
    pub ca_file: Option<PathBuf>,
    /// `refresh`: how long until each twin has been read and compared again, jittered by a fifth. 1 s to 24 h. Default 1 h.
    pub refresh: Duration,
    /// `timeout`: how long one call to the hub may take. 1 s to 60 s. Default 10 s.
    pub timeout: Duration,
    /// `sites`: how many sites share this hub; after an outage they return one after the other. 1 to 1,000,000. Default 1.
    pub sites: u32,
    /// `updates_per_second`: how many twin updates the hub's tier takes. 1 to 100,000. Default 50 (S1 and S2).
    pub updates_per_second: u32,
    /// `commands`: the verbs that the cloud may use on this site.
    pub commands: Vec<String>,
    /// `gate`: none without it.
    pub gate: Option<Gate>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            mirror: MirrorKind::Off,
            flag: FlagPath::default(),
            place: Place::default(),
            plain: None,
            workload_module: None,
            connection_string: None,
            connection_string_file: None,
            identity: None,
            host: None,
            module_connection_string_file: None,
            gateway: None,
            edge: None,
            ca_file: None,
            refresh: Duration::from_secs(3600),
            timeout: Duration::from_secs(10),
            sites: 1,
            updates_per_second: 50,
            commands: vec!["status".into(), "why".into()],
            gate: None,
        }
    }
}

impl Settings {
    /// Whether the sidecars' own modules speak with the hub itself too, beside the mirror of the device twins.
    pub fn modules_beside(&self) -> bool {
        self.mirror == MirrorKind::Both && self.edge.is_none() && self.gateway.is_none()
    }
}

/// What to do about a connection string that cannot be read.
pub(super) const CONNECTION_STRING_ADVICE: &str = "copy the policy's connection string as the portal shows it: \
     HostName=…;SharedAccessKeyName=…;SharedAccessKey=…";
