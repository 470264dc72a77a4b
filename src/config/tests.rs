use std::{collections::BTreeSet, fs, io::Write as _, path::Path};

use proptest::prelude::*;

use super::*;
use crate::{
    hub::{
        MirrorKind, Settings,
        flag::Place,
        settings::{Gate, Identity},
    },
    site::Role,
    timing::{Preset, Timing},
};

const SITE: &str = r#"
[site]
id = "plant-7"

[[site.members]]
device = "edge-1"
address = "10.0.0.11:7600"

[[site.members]]
device = "edge-2"
address = "edge-2.plant:7700"

[[site.members]]
device = "edge-3"
address = "[fd00::3]:7600"
role = "witness"
"#;

const SECRET: &str = "HostName=h.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0";

struct Folder {
    folder: tempfile::TempDir,
    variables: BTreeMap<String, String>,
}

impl Folder {
    fn new(text: &str, variables: &[(&str, &str)]) -> Folder {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("site.toml"), text).expect("writes");
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Folder { folder, variables }
    }

    fn load(&self) -> Result<Config, Faults> {
        let environment =
            Environment { variables: self.variables.clone(), run_dir: self.folder.path().join("run") };
        load(Some(&self.folder.path().join("site.toml")), &environment)
    }
}

fn refused(text: &str, variables: &[(&str, &str)]) -> Vec<Fault> {
    Folder::new(text, variables).load().expect_err("is refused").0
}

fn loaded(text: &str, variables: &[(&str, &str)]) -> Config {
    Folder::new(text, variables).load().unwrap_or_else(|faults| panic!("{faults}"))
}

#[test]
fn a_member_list_is_enough() {
    let config = loaded(SITE, &[("IOTEDGE_DEVICEID", "edge-1")]);
    assert_eq!(config.me.as_str(), "edge-1");
    assert_eq!(config.my_member().map(|m| m.role), Some(Role::Voter));
    assert_eq!(config.site.members[2].role, Role::Witness);
    assert_eq!(config.peer.listen.to_string(), "0.0.0.0:7600");
    assert_eq!(config.control.listen.map(|l| l.to_string()).as_deref(), Some("127.0.0.1:7601"));
    assert_eq!(config.control.socket.as_deref(), Some(Path::new("/var/lib/quorate/control.sock")));
    assert_eq!(config.http.listen.to_string(), "0.0.0.0:9600");
    assert_eq!(config.storage.path, Path::new("/var/lib/quorate"));
    assert_eq!((&config.workload, &config.hub), (&Workload::None, &Settings::default()));
    assert_eq!(
        config.log,
        Log { level: tracing::Level::INFO, format: LogFormat::Text, megabytes_per_day: 20 }
    );
    assert_eq!(config.warnings(), Vec::<String>::new());
}

#[test]
fn each_device_listens_where_the_others_dial_it() {
    let listen = |device: &str| loaded(SITE, &[("IOTEDGE_DEVICEID", device)]).peer.listen.to_string();
    assert_eq!(listen("edge-2"), "0.0.0.0:7700");
    assert_eq!(listen("edge-3"), "[::]:7600");
}

#[test]
fn one_file_gives_all_devices_the_same_site() {
    let digests: BTreeSet<u64> = ["edge-1", "edge-2", "edge-3"]
        .map(|device| loaded(SITE, &[("IOTEDGE_DEVICEID", device)]).site.digest())
        .into();
    assert_eq!(digests.len(), 1);
}

#[test]
fn the_environment_wins_and_may_say_everything() {
    let text = format!("{SITE}\n[log]\nlevel = \"warn\"\n[device]\nid = \"edge-9\"\n");
    let config = loaded(
        &text,
        &[
            ("QUORATE_DEVICE__ID", "edge-2"),
            ("IOTEDGE_DEVICEID", "edge-1"),
            ("QUORATE_LOG__LEVEL", "debug"),
            ("QUORATE_SITE__TIMING__HOLD", "900ms"),
            ("QUORATE_SITE__TIMING__DRIFT_PPM", "20000"),
            ("QUORATE_WORKLOAD__KIND", "process"),
            ("QUORATE_WORKLOAD__COMMAND", r#"["/app/run", "--fast"]"#),
            ("QUORATE_WORKLOAD__STOP_GRACE", "1s"),
            ("QUORATE_WORKLOAD__STOP_TIMEOUT", "30s"),
            ("QUORATE_WORKLOAD__ENV__Tz__Name", "UTC"),
            ("QUORATE_CONTROL__LISTEN", "off"),
            ("QUORATE_HUB__MIRROR", "device-twin"),
            ("QUORATE_HUB__CONNECTION_STRING", SECRET),
            ("QUORATE_HUB__FLAG", "plant.owner"),
            ("QUORATE_ENDPOINT", "for the command line only"),
        ],
    );
    assert_eq!(config.me.as_str(), "edge-2");
    assert_eq!(config.log.level, tracing::Level::DEBUG);
    assert_eq!(config.site.timing.hold(), Duration::from_millis(900));
    assert_eq!(config.site.timing.stop_grace(), Duration::from_secs(1));
    assert_eq!(config.control.listen, None);
    let env = BTreeMap::from([("Tz__Name".to_owned(), "UTC".to_owned())]);
    let command = vec!["/app/run".to_owned(), "--fast".to_owned()];
    let stop_timeout = Duration::from_secs(30);
    let (on_standby, user, ready, working_dir) = (Vec::new(), None, None, None);
    let limits = Limits::default();
    assert_eq!(
        config.workload,
        Workload::Process { command, working_dir, env, stop_timeout, on_standby, user, limits, ready }
    );
    let hub = &config.hub;
    assert_eq!((hub.mirror, hub.flag.to_string().as_str()), (MirrorKind::DeviceTwin, "plant.owner"));
    assert_eq!(hub.connection_string.as_ref().map(|s| s.reveal()), Some(SECRET));
    assert_eq!(hub.refresh, Duration::from_secs(3600));
    assert!(!format!("{config:?}").contains("c2VjcmV0"));
}

#[test]
fn timing_is_a_word_or_a_section_on_top_of_one() {
    let me = ("IOTEDGE_DEVICEID", "edge-1");
    let timing = |text: &str, variables: &[(&str, &str)]| {
        let site = SITE.replace("id = \"plant-7\"", &format!("id = \"plant-7\"\n{text}"));
        loaded(&site, &[&[me], variables].concat()).site.timing
    };
    let fast = Timing::new(&Preset::Fast.settings()).expect("consistent");
    assert_eq!(timing("timing = \"fast\"", &[]), fast);
    assert_eq!(timing("timing.preset = \"fast\"", &[]), fast);
    assert_eq!(timing("", &[("QUORATE_SITE__TIMING", "fast")]), fast);
    assert_eq!(timing("timing = \"fastest\"", &[("QUORATE_SITE__TIMING__PRESET", "fast")]), fast);
    // A single value changes that value, and what is computed from it.
    let slower = timing("timing = \"fast\"", &[("QUORATE_SITE__TIMING__HOLD", "100ms")]);
    assert_eq!((slower.heartbeat(), slower.stop_grace()), (fast.heartbeat(), fast.stop_grace()));
    assert_eq!((slower.hold(), slower.refusal()), (Duration::from_millis(100), Duration::from_millis(142)));
}

#[test]
fn the_environment_alone_is_enough() {
    let folder = tempfile::tempdir().expect("folder");
    let members = r#"[{device = "edge-1", address = "10.0.0.11:7600"}]"#;
    let variables =
        [("QUORATE_SITE__ID", "plant-7"), ("QUORATE_SITE__MEMBERS", members), ("IOTEDGE_DEVICEID", "edge-1")];
    let variables = variables.map(|(k, v)| (k.to_owned(), v.to_owned()));
    let environment = Environment { variables: variables.into(), run_dir: folder.path().to_owned() };
    let config = load(None, &environment).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(config.site.members.len(), 1);
    // This user may make a folder in the folder for running services, so the socket goes there.
    assert_eq!(config.control.socket, Some(folder.path().join("quorate/control.sock")));
}

#[test]
fn the_secret_may_come_from_a_file() {
    let place = Folder::new(SITE, &[("IOTEDGE_DEVICEID", "edge-1"), ("QUORATE_HUB__MIRROR", "device-twin")]);
    let file = place.folder.path().join("secret");
    writeln!(fs::File::create(&file).expect("creates"), "{SECRET}\n").expect("writes");
    let mut place = place;
    place.variables.insert("QUORATE_HUB__CONNECTION_STRING_FILE".into(), file.display().to_string());
    let config = place.load().unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!((config.hub.connection_string, config.hub.connection_string_file), (None, Some(file)));
}

#[test]
fn the_hub_may_have_it_all() {
    let place = Folder::new(
        &format!(
            "{SITE}[hub]\nmirror = \"both\"\nplace = \"both\"\nplain = \"app.enabled\"\nworkload_module = \"plant-control\"\n\
             identity = \"arc\"\nhost = \"h.azure-devices.net\"\nrefresh = \"2h\"\ntimeout = \"3s\"\nsites = 10000\n\
             updates_per_second = 500\ncommands = [\"status\", \"transfer\"]\ngate = {{ input = \"in\", output = \"out\" }}\n\
             module_connection_string_file = \"FILE\"\ngateway = \"edge-1.plant\"\n"
        ),
        &[("IOTEDGE_DEVICEID", "edge-1")],
    );
    let file = place.folder.path().join("module");
    fs::write(&file, "HostName=h;DeviceId=edge-1;ModuleId=quorate;SharedAccessKey=c2VjcmV0").expect("writes");
    let name = place.folder.path().join("site.toml");
    let text = fs::read_to_string(&name).expect("reads").replace("FILE", &file.display().to_string());
    fs::write(name, text).expect("writes");
    let hub = place.load().unwrap_or_else(|faults| panic!("{faults}")).hub;
    let expected = Settings {
        mirror: MirrorKind::Both,
        place: Place::Both,
        plain: Some("app.enabled".to_owned().try_into().expect("a path")),
        workload_module: Some("plant-control".into()),
        identity: Some(Identity::Arc { endpoint: None }),
        host: Some("h.azure-devices.net".into()),
        module_connection_string_file: Some(file),
        gateway: Some("edge-1.plant".into()),
        refresh: Duration::from_secs(7200),
        timeout: Duration::from_secs(3),
        sites: 10_000,
        updates_per_second: 500,
        commands: vec!["status".into(), "transfer".into()],
        gate: Some(Gate { input: "in".into(), output: "out".into() }),
        ..Settings::default()
    };
    assert_eq!(hub, expected);
}

#[test]
fn an_identity_is_asked_where_its_service_says() {
    const IDENTITY: &str = "[hub]\nmirror = \"device-twin\"\nhost = \"h.azure-devices.net\"\nidentity = ";
    let identity = |name: &str, variables: &[(&str, &str)]| {
        let variables = [&[("IOTEDGE_DEVICEID", "edge-1")], variables].concat();
        loaded(&format!("{SITE}{IDENTITY}\"{name}\"\n"), &variables).hub.identity
    };
    let endpoint = "http://localhost:40342/metadata/identity/oauth2/token";
    let both = [("IDENTITY_ENDPOINT", endpoint), ("IMDS_ENDPOINT", "http://localhost:40342")];
    assert_eq!(identity("arc", &both), Some(Identity::Arc { endpoint: Some(endpoint.into()) }));
    // Other services of Azure set the first alone, and another protocol with it.
    assert_eq!(identity("arc", &both[..1]), Some(Identity::Arc { endpoint: None }));
    let host = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:7/")];
    let endpoint = Some("http://127.0.0.1:7/metadata/identity/oauth2/token".into());
    assert_eq!(identity("imds", &host), Some(Identity::Imds { endpoint, client_id: None }));
    assert_eq!(identity("imds", &[]), Some(Identity::Imds { endpoint: None, client_id: None }));
}

#[test]
fn an_application_is_known_by_four_settings() {
    let place = Folder::new(
        &format!(
            "{SITE}[hub]\nmirror = \"device-twin\"\nhost = \"h.azure-devices.net\"\nidentity = \"client\"\ntenant = \"plant.example\"\n\
             client_id = \"72f988bf-86f1-41af-91ab-2d7cd011db47\"\nclient_secret_file = \"FILE\"\n"
        ),
        &[("IOTEDGE_DEVICEID", "edge-1")],
    );
    let file = place.folder.path().join("secret");
    fs::write(&file, "s3~cret\n").expect("writes");
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("is ours");
    let name = place.folder.path().join("site.toml");
    let text = fs::read_to_string(&name).expect("reads").replace("FILE", &file.display().to_string());
    fs::write(name, text).expect("writes");
    let hub = place.load().unwrap_or_else(|faults| panic!("{faults}")).hub;
    let Some(Identity::Client(registration)) = hub.identity else { panic!("{:?}", hub.identity) };
    assert_eq!((registration.tenant.as_str(), registration.secret_file), ("plant.example", file));
    assert_eq!(registration.authority, "https://login.microsoftonline.com");
}

#[test]
fn under_the_runtime_the_own_module_twin_is_the_mirror() {
    let runtime = [
        ("IOTEDGE_WORKLOADURI", "unix:///var/run/iotedge/workload.sock"),
        ("IOTEDGE_IOTHUBHOSTNAME", "h.azure-devices.net"),
        ("IOTEDGE_DEVICEID", "edge-1"),
        ("IOTEDGE_MODULEID", "quorate"),
        ("IOTEDGE_MODULEGENERATIONID", "638"),
        ("IOTEDGE_GATEWAYHOSTNAME", "edge-1.plant"),
        ("IOTEDGE_APIVERSION", "2019-01-30"),
    ];
    let hub = loaded(SITE, &runtime).hub;
    assert_eq!((hub.mirror, hub.connection_string), (MirrorKind::ModuleTwin, None));
    let edge = hub.edge.expect("is told");
    assert_eq!((edge.module.as_str(), edge.generation.as_str()), ("quorate", "638"));
    let off = loaded(SITE, &[&runtime[..], &[("QUORATE_HUB__MIRROR", "off")]].concat()).hub;
    assert_eq!(off.mirror, MirrorKind::Off);
    // Half an environment is a fault.
    let half = Folder::new(SITE, &runtime[..3]).load().expect_err("is refused").to_string();
    assert!(half.contains("IOTEDGE_MODULEID: is missing although IOTEDGE_WORKLOADURI is set"), "{half}");
}

#[test]
fn warnings_name_what_is_risky() {
    let text = SITE.replace("role = \"witness\"", "") + "[control]\nlisten = \"0.0.0.0:7601\"\n";
    let two = text.replace("[[site.members]]\ndevice = \"edge-3\"\naddress = \"[fd00::3]:7600\"\n", "");
    let warnings = loaded(&two, &[("IOTEDGE_DEVICEID", "edge-1")]).warnings();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever stands in the file or the environment: an answer, never a panic, and no secret in it.
    #[test]
    fn anything_gets_an_answer(
        text in "([a-z\\[\\]{}\"'=.,0-9 \n#]|\\PC){0,200}",
        key in "QUORATE_[A-Z_]{0,20}",
        value in "[\\PC\\[{]{0,40}",
    ) {
        let variables = [(key.as_str(), value.as_str()), ("IOTEDGE_DEVICEID", "edge-1")];
        for text in [text.clone(), format!("{SITE}{text}")] {
            if let Err(faults) = Folder::new(&text, &variables).load() {
                prop_assert!(!faults.0.is_empty());
                prop_assert!(faults.0.iter().all(|f| !f.to_string().replace("\n    ", "").contains(char::is_control)));
            }
        }
    }
}

#[test]
fn a_process_may_be_limited_and_may_have_to_say_that_it_is_ready() {
    let me = ("IOTEDGE_DEVICEID", "edge-1");
    let process = |more: &str| format!("{SITE}\n[workload]\nkind = \"process\"\ncommand = [\"app\"]\n{more}");
    let of = |more: &str| match loaded(&process(more), &[me]).workload {
        Workload::Process { limits, ready, .. } => (limits, ready),
        other => panic!("{other:?}"),
    };
    assert_eq!(of("ready = \"started\"\nready_within = \"30s\""), (Limits::default(), None));
    let (limits, ready) = of(
        "ready = \"notify\"\nwatchdog = \"2s\"\n[workload.limits]\nmemory = \"2 GiB\"\ncpu = \"1.05\"\nprocesses = 9\nopen_files = 16",
    );
    let (memory, cpu) = (Some(2 << 30), Some(1050));
    assert_eq!(limits, Limits { memory, cpu, processes: Some(9), open_files: Some(16) });
    let (within, watchdog) = (Duration::from_secs(30), Some(Duration::from_secs(2)));
    assert_eq!(ready, Some(Demand { within, watchdog }));
    for (wrong, key) in [
        ("ready = \"soon\"", "workload.ready"),
        ("ready = \"notify\"\nready_within = \"1ms\"", "workload.ready_within"),
        ("ready_within = \"31s\"", "workload.ready_within"),
        ("watchdog = \"2s\"", "workload.watchdog"),
        ("[workload.limits]\nmemory = \"15MiB\"", "workload.limits.memory"),
        ("[workload.limits]\nmemory = \"1GB\"", "workload.limits.memory"),
        ("[workload.limits]\ncpu = \"0\"", "workload.limits.cpu"),
        ("[workload.limits]\ncpu = \"1.0001\"", "workload.limits.cpu"),
        ("[workload.limits]\ncpu = \"+1\"", "workload.limits.cpu"),
        ("[workload.limits]\nprocesses = 0", "workload.limits.processes"),
        ("[workload.limits]\nopen_files = 3", "workload.limits.open_files"),
        ("[workload.limits]\nopen_file = 3", "workload.limits.open_file"),
    ] {
        let faults = refused(&process(wrong), &[me]);
        assert_eq!(faults.iter().map(|f| f.key.as_deref()).collect::<Vec<_>>(), [Some(key)], "{wrong}");
    }
    let gate =
        format!("{SITE}\n[workload]\nkind = \"gate\"\nready = \"notify\"\nlimits = {{ processes = 3 }}");
    assert_eq!(refused(&gate, &[me]).len(), 2);
}

#[test]
fn a_pair_of_hooks_is_two_and_a_gate_has_a_socket_of_its_own() {
    let me = ("IOTEDGE_DEVICEID", "edge-1");
    let keys = |more: &str| {
        let faults = refused(&format!("{SITE}\n{more}"), &[me]);
        faults.into_iter().map(|f| f.key.unwrap_or_default()).collect::<Vec<_>>()
    };
    let missing = ["workload.on_owner", "workload.on_standby"];
    assert_eq!(keys("[workload]\nkind = \"hooks\""), missing);
    assert_eq!(keys("[workload]\nkind = \"hooks\"\non_standby = [\"give\"]"), missing[..1]);
    let same =
        "[control]\nsocket = \"/run/q/one.sock\"\n[workload]\nkind = \"gate\"\nsocket = \"/run/q/one.sock\"";
    assert_eq!(keys(same), ["workload.socket"]);
}
