//! `quorate check` against the emulator: what it says of credentials that may do too little, and that it changes nothing.

use std::{
    process::{Command, Output},
    time::Duration,
};

use quorate::{
    emulator::Role,
    hub::{Target, Twin, memory::Trouble},
};
use serde_json::Value;

use super::hub::{Site, loopback};

/// A site of one device, with this in its `hub` section.
#[expect(clippy::disallowed_methods, reason = "a test starts the real binary")]
fn check(hub: &Site, section: &str, more: &[&str], variables: &[(&str, String)]) -> Output {
    let folder = hub.folder.path();
    let (file, data) = (folder.join("quorate.toml"), folder.join("data"));
    std::fs::create_dir_all(&data).expect("makes");
    let text = format!(
        "[site]\nid = \"plant-7\"\nmembers = [{{ device = \"edge-1\", address = \"127.0.0.1:9\" }}]\n\
         [device]\nid = \"edge-1\"\n[storage]\npath = \"{}\"\n[hub]\nmirror = \"device-twin\"\nca_file = \"{}\"\n{section}",
        data.display(),
        hub.ca_file().display()
    );
    std::fs::write(&file, text).expect("writes");
    Command::new(env!("CARGO_BIN_EXE_quorate"))
        .args(["check", "--seconds", "1", "--config"])
        .arg(&file)
        .args(more)
        .env_clear()
        .envs(variables.iter().map(|(name, value)| (*name, value)))
        .output()
        .expect("the binary starts")
}

/// With the key of this policy.
fn with_policy(hub: &Site, policy: &str, more: &[&str]) -> Output {
    let string = hub.emulator.connection_string(policy);
    check(hub, "", more, &[("QUORATE_HUB__CONNECTION_STRING", string)])
}

fn said(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|why| panic!("{why}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn twin(hub: &Site) -> Twin {
    hub.emulator.entry(&Target::device("edge-1")).expect("is there").twin
}

/// What was tried at the hub and did not work.
fn failed(said: &Value) -> Vec<String> {
    let tried = said["hub"].as_array().expect("a list").iter();
    tried.filter_map(|t| Some(format!("{}: {}", t["what"].as_str()?, t["error"].as_str()?))).collect()
}

fn without_the_timing(said: &Value) -> Vec<String> {
    let reasons = said["reasons"].as_array().expect("a list").iter().filter_map(Value::as_str);
    reasons.filter(|why| !why.starts_with("the configured timing")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_missing_is_named_and_nothing_is_written() {
    let hub = Site::start(&["edge-1"]);
    let (before, writes) = (twin(&hub), hub.emulator.log().len());
    let good = said(&with_policy(&hub, "service", &["--json"]));
    assert_eq!((failed(&good), without_the_timing(&good)), (vec![], vec![]));
    let tried: Vec<_> = good["hub"].as_array().expect("a list").iter().map(|t| t["what"].clone()).collect();
    assert!(tried.iter().any(|what| what.to_string().contains("the right to write")), "{tried:?}");
    assert!(hub.emulator.answered(412) > 0, "the hub was asked whether it may");
    // Policies that know devices, and nothing of twins.
    for policy in ["registryRead", "registryReadWrite"] {
        let output = with_policy(&hub, policy, &["--json"]);
        let told = said(&output);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(told["ok"], false);
        assert!(failed(&told).iter().any(|why| why.contains("ServiceConnect")), "{told}");
        assert_eq!(failed(&told), without_the_timing(&told));
    }
    // An identity that may read, and not write.
    let address = hub.emulator.serve_identity(loopback(), hub.folder.path()).expect("serves");
    let section = format!("identity = \"imds\"\nhost = \"localhost:{}\"\n", hub.emulator.address().port());
    let host = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", format!("http://{address}"))];
    hub.emulator.assign(&[Role::DataReader], Duration::from_secs(3600));
    let output = check(&hub, &section, &["--json"], &host);
    let why = failed(&said(&output));
    assert_eq!((output.status.code(), why.len()), (Some(1), 1), "{why:?}");
    for word in ["may read, and not write", "twins/write", "IoT Hub Twin Contributor"] {
        assert!(why[0].contains(word), "{word} in {why:?}");
    }
    hub.emulator.assign(&[Role::TwinContributor], Duration::from_secs(3600));
    assert_eq!(failed(&said(&check(&hub, &section, &["--json"], &host))), Vec::<String>::new());
    assert_eq!((twin(&hub), hub.emulator.log().len()), (before, writes));
    hub.emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_summary_says_why_the_answer_is_no() {
    let hub = Site::start(&["edge-1"]);
    let summary = |output: &Output| {
        let text = String::from_utf8(output.stdout.clone()).expect("UTF-8");
        text.split_once("this device can keep").expect("a summary").1.to_owned()
    };
    assert!(summary(&with_policy(&hub, "service", &[])).contains("hub       yes"));
    hub.emulator.trouble(Trouble::Failing { status: 503 });
    let output = with_policy(&hub, "service", &[]);
    assert_eq!(output.status.code(), Some(1));
    let told = summary(&output);
    assert!(told.contains("hub       no: the twin of edge-1"), "{told}");
    assert!(told.contains("the hub answers, and has trouble of its own (503)"), "{told}");
    hub.emulator.trouble(Trouble::None);
    let told = summary(&with_policy(&hub, "registryRead", &[]));
    assert!(told.contains("hub       no: ") && told.contains("ServiceConnect"), "{told}");
    hub.emulator.stop().await;
}
