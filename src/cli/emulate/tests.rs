//! What is printed is enough to connect, and what cannot be is refused.

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
    let emulator = Emulator::start(listener(), listener(), &options, Arc::new(BootClock)).expect("starts");
    let ca_file = write_ca(folder.path(), emulator.ca_pem()).map_err(|fault| fault.problem).expect("writes");
    let shown = Shown {
        emulator: &emulator,
        args: &args,
        ca_file: &ca_file,
        identity: None,
        application: None,
        mqtt: None,
        edges: &[],
    };
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
    assert_eq!((args.tier, args.units, args.roles.as_slice()), (Some(Tier::S1), 2, &[Role::DataReader][..]));
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
        application: None,
        mqtt: None,
        edges: &[],
    };
    assert!(as_text(&shown).contains(&format!("IDENTITY_ENDPOINT=http://{identity}/metadata/identity")));
    assert!(as_json(&shown).contains(&identity.to_string()));
    // A folder that is a file is refused, with what to do.
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("writes");
    let args = HubArgs { identity_folder: file, ..args };
    assert!(
        serve_identity(&emulator, free, &args).is_err_and(|fault| fault.hint.contains("--identity-folder"))
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
        ["--role", "owner"],
        ["--edge", "edge-1"],
        ["--edge", "=folder"],
        ["--module", "work"],
    ] {
        assert!(Line::try_parse_from([&["emulate", "hub"], &line[..]].concat()).is_err(), "{line:?}");
    }
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    assert!(bind(taken.local_addr().expect("an address")).is_err());
}
