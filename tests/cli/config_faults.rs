//! Every fault that a configuration can have, with the exact words that a person gets.
//!
//! Each case is a file (and variables); its faults lie in `golden/faults/CASE.txt`.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path};

use quorate::config::{Environment, load};

use super::{golden, quorate};

const SITE: &str = r#"[site]
id = "plant-7"
[[site.members]]
device = "edge-1"
address = "10.0.0.11:7600"
[[site.members]]
device = "edge-2"
address = "10.0.0.12:7600"
[[site.members]]
device = "edge-3"
address = "10.0.0.13:7600"
role = "witness"
"#;

const ME: (&str, &str) = ("IOTEDGE_DEVICEID", "edge-1");

/// The faults of `file`, with the test's own folder written as `/etc/quorate`.
fn faults(folder: &Path, file: &str, variables: &[(&str, &str)]) -> String {
    let place = folder.display().to_string();
    let variables: BTreeMap<String, String> = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.replace("/etc/quorate", &place)))
        .collect();
    let environment = Environment { variables, run_dir: folder.join("no-run") };
    match load(Some(&folder.join(file)), &environment) {
        Ok(config) => panic!("was accepted: {config:?}"),
        Err(faults) => faults.to_string().replace(&place, "/etc/quorate"),
    }
}

#[track_caller]
fn case(name: &str, text: &str, variables: &[(&str, &str)]) {
    let folder = tempfile::tempdir().expect("folder");
    let place = folder.path().display().to_string();
    fs::write(folder.path().join("secret"), "HostName=h;SharedAccessKey=c2VjcmV0").expect("writes");
    let good = "HostName=h;SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0";
    fs::write(folder.path().join("good"), good).expect("writes");
    fs::write(folder.path().join("not-pem"), "hello").expect("writes");
    for (name, mode) in [("client-secret", 0o600), ("open-secret", 0o644)] {
        let file = folder.path().join(name);
        fs::write(&file, "c2VjcmV0").expect("writes");
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("is ours");
    }
    fs::write(folder.path().join("quorate.toml"), text.replace("/etc/quorate", &place)).expect("writes");
    let said = faults(folder.path(), "quorate.toml", variables);
    assert!(!said.contains("c2VjcmV0"), "a secret is shown: {said}");
    golden(&format!("faults/{name}"), &said);
}

/// The site's file with more below it, on device edge-1.
#[track_caller]
fn with(name: &str, more: &str) {
    case(name, &format!("{SITE}{more}"), &[ME]);
}

#[test]
fn the_file_itself() {
    case("syntax", "[site\nid = plant\n[log]\nlevel = \"info\"\n", &[ME]);
    let folder = tempfile::tempdir().expect("folder");
    golden("faults/file_missing", &faults(folder.path(), "quorate.toml", &[ME]));
    golden("faults/file_folder", &faults(folder.path(), ".", &[ME]));
    fs::write(folder.path().join("quorate.toml"), [0xff, 0xfe, b'x']).expect("writes");
    golden("faults/file_not_utf8", &faults(folder.path(), "quorate.toml", &[ME]));
    fs::write(folder.path().join("quorate.toml"), vec![b'#'; 1024 * 1024 + 1]).expect("writes");
    golden("faults/file_too_large", &faults(folder.path(), "quorate.toml", &[ME]));
    fs::write(folder.path().join("quorate.toml"), SITE).expect("writes");
    let locked = fs::Permissions::from_mode(0o000);
    fs::set_permissions(folder.path().join("quorate.toml"), locked).expect("locks");
    // A user who may read everything (root in a container) cannot be locked out.
    if fs::read(folder.path().join("quorate.toml")).is_err() {
        golden("faults/file_unreadable", &faults(folder.path(), "quorate.toml", &[ME]));
    }
}

#[test]
fn all_at_once() {
    case("empty", "", &[]);
    case(
        "many_at_once",
        r#"
[site]
id = "plant 7"
colour = "blue"
[[site.members]]
device = "edge-1"
address = "10.0.0.11"
rolle = "voter"
[site.timing]
hold = "9 parsecs"
heartbeet = "100ms"
[htp]
listen = "0.0.0.0:9600"
[log]
level = "loud"
format = 3
"#,
        &[ME, ("QUORATE_HUB__MIROR", "off"), ("QUORATE_LOG__FORMAT", "xml"), ("QUORATE_HUB_MIRROR", "off")],
    );
}

#[test]
fn who_belongs_here() {
    case("not_a_member", SITE, &[("IOTEDGE_DEVICEID", "edge-4")]);
    case("not_a_member_at_all", SITE, &[("QUORATE_DEVICE__ID", "boiler")]);
    case("no_name", SITE, &[]);
    case("bad_name", SITE, &[("IOTEDGE_DEVICEID", "edge 1")]);
    case(
        "no_voter",
        &SITE.replace("7600\"\n", "7600\"\nrole = \"witness\"\n").replace("role = \"witness\"\nrole", "role"),
        &[ME],
    );
    case(
        "learner_and_unknown_role",
        &SITE.replace("witness", "learner").replace(":7600\"\n[[", ":7600\"\nrole = \"boss\"\n[["),
        &[ME],
    );
    case("twice", &SITE.replace("edge-2", "edge-1").replace("0.13", "0.11"), &[ME]);
    let ten: String = (2..=10)
        .map(|i| format!("[[site.members]]\ndevice = \"more-{i}\"\naddress = \"10.0.1.{i}:7600\"\n"))
        .collect();
    with("too_many", &ten);
    for (name, address) in [
        ("address_no_port", "10.0.0.11"),
        ("address_port_zero", "10.0.0.11:0"),
        ("address_not_a_port", "edge-1:http"),
        ("address_bare_v6", "fd00::1:7600"),
        ("address_bad_v6", "[fd00::zz]:7600"),
        ("address_nobody", "0.0.0.0:7600"),
        ("address_url", "http://edge-1:7600"),
    ] {
        case(name, &SITE.replace("10.0.0.11:7600", address), &[ME]);
    }
    case("members_not_a_list", "[site]\nid = \"plant-7\"\nmembers = \"edge-1,edge-2\"\n", &[ME]);
    case(
        "members_from_environment",
        "[site]\nid = \"plant-7\"\n",
        &[ME, ("QUORATE_SITE__MEMBERS", "[{device=]")],
    );
    case(
        "member_incomplete",
        "[site]\nid = \"p\"\nmembers = [{device = \"edge-1\"}, {address = \"h:1\"}, 7]\n",
        &[ME],
    );
}

#[test]
fn durations_that_do_not_fit() {
    with(
        "timing_ranges",
        "[site.timing]\nhold = \"61s\"\ndrift_ppm = 7\n[workload]\nstop_grace = \"1ms\"\nstop_timeout = \"61s\"\n",
    );
    with("timing_heartbeat", "[site.timing]\nhold = \"200ms\"\nheartbeat = \"100ms\"\n");
    with("timing_refusal", "[site.timing]\nrefusal = \"300ms\"\n");
    with("timing_preset", "[site.timing]\npreset = \"quick\"\nhold = \"1ms\"\n");
    with("timing_no_section", "[workload]\nstop_grace = \"1ms\"\n");
    let text = SITE.replace("id = \"plant-7\"", "id = \"plant-7\"\ntiming = \"fats\"");
    case("timing_word", &text, &[ME]);
    let text = SITE.replace("id = \"plant-7\"", "id = \"plant-7\"\ntiming = \"fast\"");
    case("timing_word_and_variable", &text, &[ME, ("QUORATE_SITE__TIMING__HOLD", "60ms")]);
    case("timing_refusal_allows_no_hold", SITE, &[ME, ("QUORATE_SITE__TIMING__REFUSAL", "90ms")]);
    with(
        "timing_types",
        "[site.timing]\nhold = 400\nheartbeat = \"100\"\ndrift_ppm = \"x\"\nrefusal = true\n",
    );
    case("timing_environment", SITE, &[ME, ("QUORATE_SITE__TIMING__DRIFT_PPM", "many")]);
}

#[test]
fn listeners_and_paths() {
    with(
        "listen_not_an_address",
        "[http]\nlisten = \"localhost\"\n[peer]\nlisten = \":7600\"\n[control]\nlisten = \"7601\"\n",
    );
    with("listen_twice", "[http]\nlisten = \"127.0.0.1:7600\"\n[control]\nlisten = \"127.0.0.1:7600\"\n");
    with("socket_relative", "[control]\nsocket = \"control.sock\"\n[storage]\npath = \"data\"\n");
    let long = "x".repeat(107);
    with("socket_too_long", &format!("[control]\nsocket = \"/{long}\"\n"));
    with("socket_default_too_long", &format!("[storage]\npath = \"/{long}\"\n"));
    with(
        "not_yet",
        "[peer]\nadvertise = \"h:1\"\ntls = {}\n[control]\ntls = {}\ntokens = []\n[workload]\nhealth = {}\n",
    );
}

#[test]
fn the_workload() {
    with("workload_no_command", "[workload]\nkind = \"process\"\n");
    with("workload_empty_command", "[workload]\nkind = \"process\"\ncommand = [\"\"]\n");
    with("workload_command_text", "[workload]\nkind = \"process\"\ncommand = \"/app/run --fast\"\n");
    with("workload_command_items", "[workload]\nkind = \"process\"\ncommand = [\"/app/run\", 7]\n");
    with("workload_no_kind", "[workload]\ncommand = [\"/app/run\"]\n");
    with("workload_none_with_command", "[workload]\nkind = \"none\"\ncommand = [\"/app/run\"]\n");
    with("workload_kinds", "[workload]\nkind = \"module\"\n");
    with("workload_unknown_kind", "[workload]\nkind = \"vm\"\n");
    with(
        "workload_of_other_kinds",
        "[workload]\nkind = \"process\"\ncommand = [\"/app/run\"]\nuser = \"no-such-user\"\nmodule = \"pump\"\ncontainer = \"a b\"\n\
         lease_file = \"/run/\"\nsocket = \"here\"\non_owner = []\nruntime_socket = \"/run/x.sock\"\n",
    );
    with(
        "workload_container",
        "[workload]\nkind = \"container\"\ncontainer = \"pump\"\nlease_file = \"/run/lease.json\"\n",
    );
    with("workload_hooks", "[workload]\nkind = \"hooks\"\non_owner = [\"/app/take\"]\n");
    with(
        "workload_env",
        "[workload]\nkind = \"none\"\nworking_dir = \"here\"\nenv = { QUORATE_EPOCH = \"1\", \"A=B\" = \"x\", C = [] }\n",
    );
}

#[test]
fn the_probes() {
    with("probes_not_a_list", "[site.probes]\nname = \"plc\"\n");
    with("probes_empty", "[[site.probes]]\n[[site.probes]]\nnam = \"plc\"\n");
    let probe = |words: &str| format!("[[site.probes]]\n{words}\n");
    let one = |name: &str, kind: &str, target: &str| {
        probe(&format!("name = {name:?}\nkind = {kind:?}\ntarget = {target}"))
    };
    with("probes_same_name", &(one("a", "tcp", "\"h:1\"") + &one("a", "tcp", "\"h:2\"")));
    let all = [
        one("white space", "tcp", "\"h:1\""),
        one("b", "ping", "\"h\""),
        one("c", "tcp", "\"plc-1\""),
        one("d", "tcp", "[\"h:1\", \"h:2\"]"),
        one("e", "http", "\"https://h/ready\""),
        one("f", "http", "\"http://h:99999/\""),
        one("g", "grpc", "\"h\""),
        one("h", "exec", "[\"\"]"),
        one("i", "exec", "[]"),
        one("j", "exec", "[\"a\\u0000b\"]"),
        one("k", "heartbeat", "\"beat\""),
        one("l", "tcp", "7"),
        one("m", "heartbeat", "\"/run/beat\"\nrole = \"plant\""),
        one("n", "tcp", "\"h:1\"\nrole = \"boss\"\nevery = \"1ms\"\ntimeout = \"2h\"\nfail_after = 0"),
        one("o", "tcp", "\"h:1\"\npass_after = 1001\ngrace = \"5s\""),
        one("p", "tcp", "\"h:1\"\nrole = \"workload\"\ngrace = \"2h\"\nevery = 5"),
    ];
    with("probes_wrong", &all.concat());
    let many: String = (0..33).map(|n| one(&format!("p{n}"), "tcp", "\"h:1\"")).collect();
    with("probes_too_many", &many);
}

#[test]
fn how_willingly_it_moves() {
    for (name, line) in [
        ("better_for", "better_for = \"10ms\""),
        ("changes", "changes_per_hour = 61"),
        ("failback", "failback = \"at night\""),
        ("failback_after", "failback_after = \"1s\""),
    ] {
        let site = SITE.replace("id = \"plant-7\"\n", &format!("id = \"plant-7\"\n{line}\n"));
        case(&format!("moves_{name}"), &site, &[ME]);
    }
}

#[test]
fn the_hub() {
    with("hub_no_credentials", "[hub]\nmirror = \"device-twin\"\n");
    with(
        "hub_secret_in_file",
        "[hub]\nmirror = \"device-twin\"\nconnection_string = \"HostName=h;SharedAccessKey=c2VjcmV0\"\n",
    );
    with(
        "hub_bad_secret_file",
        "[hub]\nmirror = \"device-twin\"\nconnection_string_file = \"/etc/quorate/secret\"\n",
    );
    with(
        "hub_missing_secret_file",
        "[hub]\nmirror = \"device-twin\"\nconnection_string_file = \"/etc/quorate/nothing\"\n",
    );
    with("hub_mirrors", "[hub]\nmirror = \"both\"\n");
    with(
        "hub_places",
        "[hub]\nmirror = \"off\"\nplace = \"reported\"\nplain = \"quorate.active\"\nworkload_module = \"a b\"\n",
    );
    with("hub_identity_alone", "[hub]\nmirror = \"device-twin\"\nidentity = \"arc\"\n");
    with(
        "hub_identities",
        "[hub]\nmirror = \"device-twin\"\nidentity = \"me\"\nhost = \"myhub\"\nconnection_string_file = \"/etc/quorate/good\"\n",
    );
    with(
        "hub_two_credentials",
        "[hub]\nmirror = \"device-twin\"\nidentity = \"imds\"\nhost = \"h.azure-devices.net\"\n\
         connection_string_file = \"/etc/quorate/good\"\n",
    );
    let client = "[hub]\nmirror = \"device-twin\"\nhost = \"h.azure-devices.net\"\nidentity = \"client\"\n";
    with("hub_client_alone", client);
    with(
        "hub_client_parts",
        &format!(
            "{client}tenant = \"common\"\nclient_id = \"quorate\"\nauthority = \"http://login.example\"\n\
             client_secret_file = \"/etc/quorate/open-secret\"\n"
        ),
    );
    with(
        "hub_client_secret_in_file",
        &format!(
            "{client}tenant = \"t.example\"\nclient_id = \"72f988bf-86f1-41af-91ab-2d7cd011db47\"\nclient_secret = \"c2VjcmV0\"\n\
             client_secret_file = \"/etc/quorate/nothing\"\n"
        ),
    );
    with(
        "hub_client_strays",
        "[hub]\nmirror = \"device-twin\"\nhost = \"h.azure-devices.net\"\nidentity = \"arc\"\ntenant = \"t.example\"\n\
         client_id = \"72f988bf-86f1-41af-91ab-2d7cd011db47\"\nclient_secret_file = \"/etc/quorate/client-secret\"\n",
    );
    let remote = ("IDENTITY_ENDPOINT", "http://10.0.0.1/token");
    case(
        "hub_remote_identity",
        SITE,
        &[
            ME,
            ("QUORATE_HUB__MIRROR", "device-twin"),
            ("QUORATE_HUB__HOST", "h.azure-devices.net"),
            ("QUORATE_HUB__IDENTITY", "arc"),
            ("IMDS_ENDPOINT", "http://10.0.0.1"),
            remote,
        ],
    );
    with("hub_host_alone", "[hub]\nhost = \"h.azure-devices.net\"\n");
    with(
        "hub_module",
        "[hub]\nmirror = \"module-twin\"\nmodule_connection_string_file = \"/etc/quorate/secret\"\ngateway = \"a/b\"\n",
    );
    with("hub_policy_for_a_module", "[hub]\nmodule_connection_string_file = \"/etc/quorate/good\"\n");
    with("hub_gateway_alone", "[hub]\ngateway = \"edge-1\"\n");
    with(
        "hub_numbers",
        "[hub]\nsites = 0\nupdates_per_second = \"50\"\ntimeout = \"0s\"\ncommands = [\"status\", \"all\", \"reboot\"]\n",
    );
    with("hub_half_a_gate", "[hub.gate]\ninput = \"in\"\n");
    with("hub_gate_without_module", "[hub]\ngate = { input = \"in\", output = \"out\", outputs = 1 }\n");
    with(
        "hub_unknown_mirror",
        "[hub]\nmirror = \"twin\"\nflag = \"a..b\"\nrefresh = \"2d\"\nca_file = \"/etc/quorate/not-pem\"\n",
    );
    let secret = "HostName=h;DeviceId=edge-1;SharedAccessKey=c2VjcmV0";
    case(
        "hub_device_secret",
        SITE,
        &[ME, ("QUORATE_HUB__MIRROR", "device-twin"), ("QUORATE_HUB__CONNECTION_STRING", secret)],
    );
    let good = "HostName=h;SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0";
    case("hub_secret_without_mirror", SITE, &[ME, ("QUORATE_HUB__CONNECTION_STRING", good)]);
    let runtime = ("IOTEDGE_WORKLOADURI", "unix:///run/w.sock");
    case("hub_half_a_runtime", SITE, &[ME, runtime, ("IOTEDGE_MODULEID", "quorate")]);
}

#[test]
fn the_environment() {
    case("variable_not_a_setting", SITE, &[ME, ("QUORATE_LOG__LEVELS", "info"), ("QUORATE_SITE__", "x")]);
    case("variable_not_utf8", SITE, &[ME, ("QUORATE_LOG__LEVEL", "\u{FFFD}")]);
    case("section_is_a_text", "site = \"plant-7\"\n", &[ME]);
}

#[test]
fn the_binary_says_them_on_stderr_and_exits_78() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("quorate.toml");
    fs::write(&file, "[site]\nid = \"plant-7\"\n").expect("writes");
    let path = file.display().to_string();
    for (arguments, environment) in [
        (vec!["run", "--config", &path], vec![ME]),
        (vec!["run"], vec![ME, ("QUORATE_CONFIG", path.as_str())]),
    ] {
        let output = quorate(&arguments, &environment);
        assert_eq!(output.status.code(), Some(78));
        assert!(output.stdout.is_empty());
        let said =
            String::from_utf8(output.stderr).expect("UTF-8").replace(&path, "/etc/quorate/quorate.toml");
        golden("exit_78", &said);
    }
}
