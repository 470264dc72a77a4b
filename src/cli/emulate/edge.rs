//! IoT Edge devices beside the emulated hub: each with an edgeHub, and the runtime's sockets in a folder of its own.
//!
//! The environment that the runtime would give to each module is printed, and written into the folder as `MODULE.env`, one
//! `NAME=value` a line, as `env`, systemd and Docker read it. The sockets are gone when the emulator has ended, the files stay.

use std::{collections::BTreeMap, io, net::SocketAddr, path::PathBuf, str::FromStr};

use serde_json::{Value, json};

use super::{Fault, HubArgs, bind, write_closed};
use crate::{
    emulator::{EdgeHub, EdgeOptions, Emulator},
    id::DeviceId,
};

/// A device, and the folder that stands for its host.
#[derive(Debug, Clone)]
pub(super) struct EdgeFolder {
    device: DeviceId,
    folder: PathBuf,
}

impl FromStr for EdgeFolder {
    type Err = String;

    fn from_str(text: &str) -> Result<EdgeFolder, String> {
        match text.split_once('=') {
            Some((device, folder)) if !folder.is_empty() => Ok(EdgeFolder {
                device: DeviceId::new(device).map_err(|why| why.to_string())?,
                folder: folder.into(),
            }),
            _ => Err("write DEVICE=FOLDER".to_owned()),
        }
    }
}

/// The name of a module as a deployment has it, which is also the name of its files here.
pub(super) fn module(text: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    match (1..=64).contains(&text.len()) && text.bytes().all(good) {
        true => Ok(text.to_owned()),
        false => Err("write letters, digits, - and _".to_owned()),
    }
}

/// A device that runs.
pub(super) struct Edge {
    hub: EdgeHub,
    folder: PathBuf,
    /// By module.
    environments: BTreeMap<String, BTreeMap<String, String>>,
}

/// Starts all that were asked for.
pub(super) fn serve_all(emulator: &Emulator, args: &HubArgs) -> Result<Vec<Edge>, Fault> {
    let mut edges = Vec::new();
    for (n, edge) in args.edges.iter().enumerate() {
        let mut address = args.edge_listen;
        if address.port() != 0 {
            let port = u16::try_from(n).ok().and_then(|n| address.port().checked_add(n));
            address.set_port(port.ok_or_else(|| Fault {
                problem: format!("there are not enough ports above {address}"),
                hint: "choose a lower port with --edge-listen, or port 0 for any free ones",
            })?);
        }
        edges.push(serve(emulator, edge, address, &args.modules)?);
    }
    Ok(edges)
}

fn serve(
    emulator: &Emulator,
    edge: &EdgeFolder,
    address: SocketAddr,
    modules: &[String],
) -> Result<Edge, Fault> {
    let fault = |why: String| Fault {
        problem: format!("the device {} cannot be emulated in {}: {why}", edge.device, edge.folder.display()),
        hint: "name a folder that this process may write, with a path short enough for a socket (about 90 bytes)",
    };
    let folder = std::fs::create_dir_all(&edge.folder).and_then(|()| edge.folder.canonicalize());
    let folder = folder.map_err(|why| fault(why.to_string()))?;
    let hub = emulator
        .serve_edge(&edge.device, bind(address)?, EdgeOptions::default())
        .map_err(|why| fault(why.to_string()))?;
    let mut environments = BTreeMap::new();
    for module in modules {
        let socket = folder.join(format!("{module}.sock"));
        hub.serve_workload(module, &socket).map_err(|why| fault(why.to_string()))?;
        let mut variables = hub.environment(module);
        // A real edgeHub is on port 8883; this one is where there was room.
        if hub.address().port() != 8883 {
            variables.insert("IOTEDGE_GATEWAYHOSTNAME".to_owned(), hub.address().to_string());
        }
        let text: String = variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        let write = || -> io::Result<()> { write_closed(&folder.join(format!("{module}.env")), &text) };
        write().map_err(|why| fault(why.to_string()))?;
        environments.insert(module.clone(), variables);
    }
    Ok(Edge { hub, folder, environments })
}

impl Edge {
    pub(super) fn as_json(&self) -> Value {
        json!({
            "device": self.hub.device(),
            "edgehub_address": self.hub.address().to_string(),
            "folder": self.folder,
            "environments": self.environments,
        })
    }

    pub(super) fn as_text(&self) -> String {
        let mut text = format!(
            "\nIoT Edge device {} in {}, its edgeHub at {}. Its modules are told:\n",
            self.hub.device(),
            self.folder.display(),
            self.hub.address()
        );
        for (module, variables) in &self.environments {
            text.push_str(&format!("  {module} ({module}.env)\n"));
            for (name, value) in variables {
                text.push_str(&format!("    {name}={value}\n"));
            }
        }
        text
    }
}
