//! `quorate emulate hub`: the IoT Hub emulator alone, to try things on without Azure.
//!
//! It prints where it listens and the connection strings to use, writes its certificate authority where it is told, and
//! runs until Ctrl-C or TERM. Keys are made at each start and never given on a command line. The switches for trouble
//! are on a listener of their own that only this machine should reach.

use std::{
    io::{self, Write as _},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::{Args, Subcommand};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

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
    #[arg(long = "role", value_name = "ROLE", default_value = "twin-contributor", requires = "identity")]
    roles: Vec<Role>,
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
    let shown = Shown { emulator: &emulator, args: &args, ca_file: &ca_file, identity };
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

/// What is printed at start.
struct Shown<'a> {
    emulator: &'a Emulator,
    args: &'a HubArgs,
    ca_file: &'a Path,
    identity: Option<SocketAddr>,
}

fn as_json(shown: &Shown<'_>) -> String {
    let Shown { emulator, args, ca_file, identity } = shown;
    let line = json!({
        "service_connection_string": emulator.service_connection_string(),
        "owner_connection_string": emulator.owner_connection_string(),
        "ca_file": ca_file,
        "address": emulator.address().to_string(),
        "admin_address": emulator.admin_address().to_string(),
        "identity_address": identity.map(|address| address.to_string()),
        "devices": args.devices,
    });
    format!("{line}\n")
}

fn as_text(shown: &Shown<'_>) -> String {
    let Shown { emulator, args, ca_file, identity } = shown;
    let tokens = identity.map_or_else(String::new, |address| {
        format!(
            "\nTokens of Entra ID:\n\
             \x20 as Azure Arc gives them   IDENTITY_ENDPOINT=http://{address}/metadata/identity/oauth2/token \
             IMDS_ENDPOINT=http://{address}\n\
             \x20 as virtual machines do    AZURE_POD_IDENTITY_AUTHORITY_HOST=http://{address}\n"
        )
    });
    let devices = match args.devices.as_slice() {
        [] => "none yet: create them with --device, or over the registry API".to_owned(),
        devices => devices.iter().map(DeviceId::as_str).collect::<Vec<_>>().join(", "),
    };
    format!(
        "IoT Hub emulator. Everything is kept in memory; keys and certificates are new at each start.\n\n\
         \x20 hub        https://{}\n\
         \x20 page       http://{admin}/\n\
         \x20 switches   http://{admin}/emulator/trouble\n\
         \x20 ca_file    {}\n\
         \x20 devices    {devices}\n\n\
         \x20 service    {}\n\
         \x20 all rights {}\n\n\
         Make trouble:\n\
         \x20 curl -d '{{\"kind\":\"unreachable\"}}' http://{admin}/emulator/trouble\n\
         \x20 kinds: none, unreachable, slow (delay_ms), throttled (retry_after_s), failing (status), drop-answer, quota,\n\
         \x20        clock-skew (ahead_s), tokens-expired, stale-queries (lag_s); several at once: /emulator/troubles\n\
         \x20 curl -d '{{\"seconds\":120}}' http://{admin}/emulator/rollback\n\
         Look at the writes:\n\
         \x20 curl http://{admin}/emulator/log\n\
         {tokens}\n\
         Ctrl-C ends it.\n",
        emulator.address(),
        ca_file.display(),
        emulator.service_connection_string(),
        emulator.owner_connection_string(),
        admin = emulator.admin_address(),
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::Value;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: EmulateArgs,
    }

    fn args(line: &[&str]) -> HubArgs {
        let line = Line::try_parse_from([&["emulate", "hub"], line].concat()).expect("parses");
        let What::Hub(args) = line.args.what;
        args
    }

    #[tokio::test]
    async fn what_is_printed_is_enough_to_connect() {
        let folder = tempfile::tempdir().expect("a folder");
        let args = args(&["--listen", "127.0.0.1:0", "--device", "edge-1", "--device", "edge-2", "--json"]);
        let options = Options { devices: args.devices.clone(), ..Options::default() };
        let listener = || bind(args.admin).map_err(|fault| fault.problem).expect("a free port");
        let emulator =
            Emulator::start(listener(), listener(), &options, Arc::new(BootClock)).expect("starts");
        let ca_file =
            write_ca(folder.path(), emulator.ca_pem()).map_err(|fault| fault.problem).expect("writes");
        let shown = Shown { emulator: &emulator, args: &args, ca_file: &ca_file, identity: None };
        let line = as_json(&shown);
        assert_eq!(line.lines().count(), 1);
        let json: Value = serde_json::from_str(&line).expect("is JSON");
        assert_eq!(json["devices"], serde_json::json!(["edge-1", "edge-2"]));
        let settings = crate::hub::Settings {
            connection_string: json["service_connection_string"].as_str().map(|s| s.to_owned().into()),
            ca_file: json["ca_file"].as_str().map(PathBuf::from),
            ..crate::hub::Settings::default()
        };
        let hub = crate::hub::rest::RestHub::open(&settings, Arc::new(BootClock)).expect("opens");
        let twin = crate::hub::Hub::get_twin(&hub, &(&args.devices[0]).into()).await.expect("reads");
        assert_eq!(twin.device, "edge-1");
        let text = as_text(&shown);
        for part in ["service_connection_string", "ca_file", "address", "admin_address"] {
            assert!(text.contains(json[part].as_str().expect("a text")), "{part} is missing in:\n{text}");
        }
    }

    #[tokio::test]
    async fn limits_and_an_identity_can_be_asked_for() {
        let limits = ["--tier", "s1", "--units", "2", "--throttle-scale", "0.1"];
        let identity = ["--identity", "127.0.0.1:0", "--role", "data-reader"];
        let args = args(&[&limits[..], &identity].concat());
        let free = args.identity.expect("is given");
        assert_eq!(
            (args.tier, args.units, args.roles.as_slice()),
            (Some(Tier::S1), 2, &[Role::DataReader][..])
        );
        let folder = tempfile::tempdir().expect("a folder");
        let args = HubArgs { identity_folder: folder.path().join("tokens"), ..args };
        let listener = || bind(args.admin).map_err(|fault| fault.problem).expect("a free port");
        let emulator = Emulator::start(listener(), listener(), &Options::default(), Arc::new(BootClock));
        let emulator = emulator.expect("starts");
        let identity = serve_identity(&emulator, free, &args).map_err(|fault| fault.problem).expect("serves");
        let shown = Shown {
            emulator: &emulator,
            args: &args,
            ca_file: Path::new("ca.pem"),
            identity: Some(identity),
        };
        assert!(as_text(&shown).contains(&format!("IDENTITY_ENDPOINT=http://{identity}/metadata/identity")));
        assert!(as_json(&shown).contains(&identity.to_string()));
        // A folder that is a file is refused, with what to do.
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("writes");
        let args = HubArgs { identity_folder: file, ..args };
        assert!(
            serve_identity(&emulator, free, &args)
                .is_err_and(|fault| fault.hint.contains("--identity-folder"))
        );
        emulator.stop().await;
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for line in [
            ["--listen", "nowhere"],
            ["--device", "a b"],
            ["--colour", "blue"],
            ["--tier", "B1"],
            ["--units", "2"],
            ["--throttle-scale", "0.5"],
            ["--role", "twin-contributor"],
        ] {
            assert!(Line::try_parse_from([&["emulate", "hub"], &line[..]].concat()).is_err(), "{line:?}");
        }
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        assert!(bind(taken.local_addr().expect("an address")).is_err());
    }
}
