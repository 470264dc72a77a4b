//! `quorate emulate hub`: the IoT Hub emulator alone, to try things on without Azure.
//!
//! It prints where it listens and the connection strings to use, writes its certificate authority where it is told, and
//! runs until Ctrl-C or TERM. Keys are made at each start and never given on a command line. The switches for trouble
//! are on a listener of their own that only this machine should reach. Whole IoT Edge devices come with it on demand (`edge.rs`).

mod edge;
mod show;

use std::{
    io::{self, Write as _},
    net::{SocketAddr, TcpListener},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::{Args, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    edge::EdgeFolder,
    show::{Shown, as_json, as_text},
};

use crate::{
    clock::BootClock,
    emulator::{Emulator, Options, Role},
    hub::throttle::{Plan, Tier},
    id::DeviceId,
};

/// Try things on without Azure
#[derive(Debug, Args)]
pub(super) struct EmulateArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// An IoT Hub in memory: device and module twins, registry and queries over HTTPS
    Hub(HubArgs),
}

/// An IoT Hub in memory
#[derive(Debug, Args)]
pub(super) struct HubArgs {
    /// Where the hub listens (HTTPS); port 0 picks a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4443")]
    listen: SocketAddr,
    /// Where the switches listen (plain HTTP, no password: keep it on loopback); port 0 picks a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    admin: SocketAddr,
    /// A device to create at start; may be given again
    #[arg(long = "device", value_name = "ID")]
    devices: Vec<DeviceId>,
    /// The host name in the connection strings, which the certificate will bear
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    host: String,
    /// A further name or address for the certificate; may be given again
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
    /// Limit the hub to what this tier allows (F1, S1, S2 or S3); without, there are no limits
    #[arg(long, value_name = "TIER")]
    tier: Option<Tier>,
    /// How many units of the tier there are
    #[arg(long, value_name = "N", default_value_t = 1, requires = "tier")]
    units: u32,
    /// A factor on all limits of the tier, so that little traffic meets them
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, requires = "tier")]
    throttle_scale: f64,
    /// Where the token services of Azure Arc and of virtual machines listen (plain HTTP: keep it on loopback)
    #[arg(long, value_name = "ADDRESS")]
    identity: Option<SocketAddr>,
    /// Where Azure Arc's proofs are written; Microsoft's clients accept no other folder than the default
    #[arg(long, value_name = "FOLDER", default_value = "/var/opt/azcmagent/tokens", requires = "identity")]
    identity_folder: PathBuf,
    /// What tokens of these services allow: data-contributor, data-reader, registry-contributor, twin-contributor
    #[arg(long = "role", value_name = "ROLE", default_value = "twin-contributor")]
    roles: Vec<Role>,
    /// Where the directory of a registered application listens (HTTPS); its secret is written into --folder
    #[arg(long, value_name = "ADDRESS")]
    authority: Option<SocketAddr>,
    /// Where devices and modules connect to the hub itself (MQTT over TLS)
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:8883")]
    mqtt: Option<SocketAddr>,
    /// An IoT Edge device to emulate, with the sockets of its runtime and its modules' environment in the folder; may be given
    /// again
    #[arg(long = "edge", value_name = "DEVICE=FOLDER")]
    edges: Vec<EdgeFolder>,
    /// A module on each of these devices; may be given again
    #[arg(long = "module", value_name = "NAME", value_parser = edge::module, default_value = "quorate", requires = "edges")]
    modules: Vec<String>,
    /// Where their edgeHubs listen (MQTT over TLS): this address and, for each, the next port; port 0 picks free ones
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0", requires = "edges")]
    edge_listen: SocketAddr,
    /// The folder that ca.pem is written to
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    folder: PathBuf,
    /// Print one line of JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Runs the command to its end.
///
/// Exit codes: 0 ended by Ctrl-C or TERM, 2 a listener or the folder cannot be used.
pub(super) async fn run(args: EmulateArgs) -> u8 {
    let What::Hub(args) = args.what;
    match hub(args).await {
        Ok(()) => super::DONE,
        Err(Fault { problem, hint }) => {
            super::tell(&format!("quorate: {problem}\n  hint: {hint}"));
            super::REFUSED
        }
    }
}

/// One readable line, and what to do about it.
struct Fault {
    problem: String,
    hint: &'static str,
}

async fn hub(args: HubArgs) -> Result<(), Fault> {
    // Asked for first, so that no signal is missed once the address has been printed.
    let signals = signal(SignalKind::interrupt()).and_then(|int| Ok((int, signal(SignalKind::terminate())?)));
    let (mut interrupt, mut terminate) = signals.map_err(|why| Fault {
        problem: format!("signals cannot be received: {why}"),
        hint: "try again; this is a defect of the system or of quorate",
    })?;
    let plan = args.tier.map(|tier| Plan::new(tier, args.units, args.throttle_scale)).transpose();
    let options = Options {
        devices: args.devices.clone(),
        host: args.host.clone(),
        names: args.names.clone(),
        plan: plan
            .map_err(|problem| Fault { problem, hint: "check --tier, --units and --throttle-scale" })?,
    };
    let emulator = Emulator::start(bind(args.listen)?, bind(args.admin)?, &options, Arc::new(BootClock))
        .map_err(|why| Fault {
            problem: format!("the emulator cannot start: {why}"),
            hint: "check --listen, --admin, --host and --name",
        })?;
    let ca_file = write_ca(&args.folder, emulator.ca_pem())?;
    let identity = args.identity.map(|address| serve_identity(&emulator, address, &args)).transpose()?;
    let application = args.authority.map(|address| serve_authority(&emulator, address, &args)).transpose()?;
    let mqtt = args.mqtt.map(|address| serve_mqtt(&emulator, address)).transpose()?;
    let edges = edge::serve_all(&emulator, &args)?;
    let shown = Shown {
        emulator: &emulator,
        args: &args,
        ca_file: &ca_file,
        identity,
        application,
        mqtt,
        edges: &edges,
    };
    let text = if args.json { as_json(&shown) } else { as_text(&shown) };
    let mut stdout = io::stdout().lock();
    // Whoever reads this may have gone; the emulator is of use all the same.
    let _written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_ok();
    drop(stdout);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    emulator.stop().await;
    Ok(())
}

fn bind(address: SocketAddr) -> Result<TcpListener, Fault> {
    TcpListener::bind(address).map_err(|why| Fault {
        problem: format!("cannot listen on {address}: {why}"),
        hint: "choose another address, or port 0 for any free one",
    })
}

fn write_ca(folder: &Path, pem: &str) -> Result<PathBuf, Fault> {
    let write = || -> io::Result<PathBuf> {
        std::fs::create_dir_all(folder)?;
        let file = folder.join("ca.pem");
        std::fs::write(&file, pem)?;
        file.canonicalize()
    };
    write().map_err(|why| Fault {
        problem: format!("cannot write ca.pem into {}: {why}", folder.display()),
        hint: "name a folder that this process may write with --folder",
    })
}

fn serve_identity(emulator: &Emulator, address: SocketAddr, args: &HubArgs) -> Result<SocketAddr, Fault> {
    emulator.assign(&args.roles, Duration::from_secs(86_400));
    emulator.serve_identity(bind(address)?, &args.identity_folder).map_err(|why| Fault {
        problem: format!("the token services cannot start: {why}"),
        hint: "name a folder that this process may write with --identity-folder",
    })
}

/// Serves the directory. Returns where, and the file with the application's secret.
fn serve_authority(
    emulator: &Emulator,
    address: SocketAddr,
    args: &HubArgs,
) -> Result<(SocketAddr, PathBuf), Fault> {
    emulator.assign(&args.roles, Duration::from_secs(86_400));
    let address = emulator.serve_authority(bind(address)?).map_err(|why| Fault {
        problem: format!("the directory cannot start: {why}"),
        hint: "check --authority",
    })?;
    let file = args.folder.join("client-secret");
    let write = || -> io::Result<PathBuf> {
        write_closed(&file, emulator.application().secret.reveal())?;
        file.canonicalize()
    };
    write().map(|file| (address, file)).map_err(|why| Fault {
        problem: format!("cannot write {}: {why}", file.display()),
        hint: "name a folder that this process may write with --folder",
    })
}

/// Writes a file anew that nobody else can read.
fn write_closed(file: &Path, text: &str) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
        _ => {}
    }
    let mut open = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    open.write_all(text.as_bytes())
}

fn serve_mqtt(emulator: &Emulator, address: SocketAddr) -> Result<SocketAddr, Fault> {
    emulator
        .serve_mqtt(bind(address)?)
        .map_err(|why| Fault { problem: format!("devices cannot be served: {why}"), hint: "check --mqtt" })
}

#[cfg(test)]
mod tests;
