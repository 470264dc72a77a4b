//! The emulator from the command line: sidecars that are started with the environment that it prints mirror their module twins.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
};

use serde_json::Value;

use super::site::{Plan, Site, http, tied, until};

struct Emulated {
    child: Child,
    facts: Value,
}

impl Drop for Emulated {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(arguments: &[String]) -> Emulated {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut child = tied(&arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("is piped")).read_line(&mut line).expect("says where it is");
    Emulated { facts: serde_json::from_str(&line).expect("JSON"), child }
}

const NAMES: [&str; 8] = [
    "IOTEDGE_WORKLOADURI",
    "IOTEDGE_DEVICEID",
    "IOTEDGE_MODULEID",
    "IOTEDGE_MODULEGENERATIONID",
    "IOTEDGE_IOTHUBHOSTNAME",
    "IOTEDGE_GATEWAYHOSTNAME",
    "IOTEDGE_AUTHSCHEME",
    "IOTEDGE_APIVERSION",
];

#[test]
fn sidecars_in_emulated_devices_mirror_their_module_twins() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().canonicalize().expect("a folder");
    let mut arguments: Vec<String> =
        ["emulate", "hub", "--json", "--listen", "127.0.0.1:0", "--mqtt", "127.0.0.1:0"]
            .map(str::to_owned)
            .into();
    arguments.extend(["--folder".to_owned(), folder.display().to_string()]);
    for n in 1..=3 {
        arguments.extend([
            "--edge".to_owned(),
            format!("edge-{n}={}", folder.join(format!("edge-{n}")).display()),
        ]);
    }
    arguments.extend(["--module", "quorate", "--module", "work"].map(str::to_owned));
    let emulated = start(&arguments);
    assert!(emulated.facts["mqtt_address"].is_string(), "{}", emulated.facts);
    let mut site = Site::with(Plan { more: "[hub]\nrefresh = \"2s\"\n".into(), ..Plan::default() });
    for n in 0..3 {
        let edge = &emulated.facts["edges"][n];
        assert_eq!(edge["device"], format!("edge-{}", n + 1).as_str());
        // The file says what the line said.
        let file = folder.join(format!("edge-{}", n + 1)).join("quorate.env");
        let text = std::fs::read_to_string(file).expect("is written");
        let written: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
        let told = &edge["environments"]["quorate"];
        for name in NAMES {
            let value = told[name].as_str().unwrap_or_else(|| panic!("{name} is missing in {edge}"));
            assert_eq!(written.get(name), Some(&value));
            site.tell(n, name, value);
        }
        assert_eq!(edge["environments"]["work"]["IOTEDGE_MODULEID"], "work");
    }
    site.start_all();
    let (owner, epoch) = site.owner(0);
    let admin = emulated.facts["admin_address"].as_str().expect("a text").parse().expect("an address");
    let shown = |n: usize| -> Option<Value> {
        let (_, body) = http(admin, "/emulator/twins")?;
        let twins: Vec<Value> = serde_json::from_str(&body).ok()?;
        let device = format!("edge-{}", n + 1);
        let twin = twins
            .into_iter()
            .find(|twin| twin["deviceId"] == device.as_str() && twin["moduleId"] == "quorate")?;
        Some(twin["properties"]["reported"]["quorate"].clone())
    };
    for n in 0..3 {
        until("the module twin to say who owns", || {
            let said = shown(n)?;
            (said["epoch"] == epoch && said["active"] == (n == owner)).then_some(())
        });
    }
    site.runs_without_overlap();
}
