//! The support bundle: all that helps, and nothing that is secret, wherever it turned up.

use std::{
    path::{Path, PathBuf},
    process::Output,
};

use quorate::status::{
    events::{Event, Kind},
    report::Condition,
    ring::Ring,
};

use super::grpc::Grpc;

const KEY: &str = "c2VjcmV0LWtleS1vZi10aGUtaHVi/+w=";
const CLIENT_SECRET: &str = "Xy8~client-secret-of-the-app";
const PASSWORD: &str = "hunter2-of-the-database";

struct Device {
    folder: tempfile::TempDir,
}

impl Device {
    /// A device with every secret that a configuration can have.
    fn new() -> Device {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("data")).expect("makes");
        let service =
            format!("HostName=h.azure-devices.net;SharedAccessKeyName=mirror;SharedAccessKey={KEY}\n");
        std::fs::write(at("connection-string"), service).expect("writes");
        let config = format!(
            "# password = {PASSWORD}\n[site]\nid = \"plant-7\"\nmembers = [{{ device = \"edge-1\", address = \"10.0.0.11:7600\" }}]\n\
             [storage]\npath = \"{0}/data\"\n\
             [workload]\nkind = \"process\"\ncommand = [\"sh\", \"-c\", \"psql {PASSWORD}\"]\nenv = {{ DB = \"{PASSWORD}\" }}\n\
             [hub]\nmirror = \"device-twin\"\nconnection_string_file = \"{0}/connection-string\"\n",
            folder.path().display()
        );
        std::fs::write(at("quorate.toml"), config).expect("writes");
        Device { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn bundle(&self, endpoint: &str, more: &[(&str, &str)]) -> Output {
        #[expect(clippy::disallowed_methods, reason = "tests start the real binary")]
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(["support-bundle", "--endpoint", endpoint, "--config"]).arg(self.at("quorate.toml"));
        command
            .arg(self.at("out.tar"))
            .env_clear()
            .env("IOTEDGE_DEVICEID", "edge-1")
            .envs(more.iter().copied());
        command.kill_on_drop(true).output().await.expect("the binary starts")
    }

    /// Unpacks it with the system's own tar; all files by name.
    fn unpacked(&self) -> Vec<(String, String)> {
        #[expect(clippy::disallowed_methods, reason = "the reader is a program of the system")]
        let mut tar = std::process::Command::new("tar");
        let out = self.at("unpacked");
        std::fs::create_dir(&out).expect("makes");
        let done = tar.arg("-xf").arg(self.at("out.tar")).arg("-C").arg(&out).output().expect("tar is there");
        assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
        let inner = std::fs::read_dir(&out).expect("lists").flatten().next().expect("one folder").path();
        let files = std::fs::read_dir(inner).expect("lists").flatten();
        let read = |path: &Path| std::fs::read_to_string(path).expect("text");
        files.map(|f| (f.file_name().to_string_lossy().into_owned(), read(&f.path()))).collect()
    }
}

#[track_caller]
fn holds_no_secret(files: &[(String, String)], archive: &Path) {
    let raw = std::fs::read(archive).expect("reads");
    let encoded = KEY.replace('/', "%2F").replace('+', "%2B").replace('=', "%3D");
    for secret in [KEY, &KEY[..20], &encoded, CLIENT_SECRET, PASSWORD] {
        let holds = files.iter().find(|(_, text)| text.contains(secret));
        assert_eq!(holds.map(|(name, _)| name), None, "{secret} is in it");
        assert!(
            !raw.windows(secret.len()).any(|part| part == secret.as_bytes()),
            "{secret} is in the archive"
        );
    }
}

#[track_caller]
fn file<'a>(files: &'a [(String, String)], name: &str) -> &'a str {
    &files.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name} in {files:?}")).1
}

#[tokio::test]
async fn a_bundle_has_all_that_helps_and_no_secret() {
    let (grpc, device) = (Grpc::start().await, Device::new());
    {
        // Whatever leaked into texts before, by a fault of ours or of the hub.
        let mut report = grpc.puppet.report.lock().expect("no panic");
        let detail = format!("the hub said: bad SharedAccessKey={KEY}; sig={CLIENT_SECRET}&se=1");
        report.conditions =
            vec![Condition { name: "hub.unauthorized".into(), detail, ..Condition::default() }];
    }
    let text = format!("started with {CLIENT_SECRET} and {KEY}");
    grpc.puppet.events.add(Event { kind: Kind::Decision, name: "owning".into(), text, ..Event::default() });
    let inline = format!("HostName=h.azure-devices.net;SharedAccessKeyName=other;SharedAccessKey={KEY}");
    let variables = [
        ("QUORATE_HUB__CLIENT_SECRET", CLIENT_SECRET),
        ("QUORATE_HUB__CONNECTION_STRING", inline.as_str()),
        ("QUORATE_WORKLOAD__ENV__TOKEN", PASSWORD),
        ("QUORATE_WORKLOAD__COMMAND", "[\"sh\", \"hunter2-of-the-database\"]"),
        ("QUORATE_LOG__LEVEL", "debug"),
        ("HOME_SECRET", PASSWORD),
    ];
    let output = device.bundle(&format!("http://{}", grpc.address), &variables).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &device.at("out.tar").metadata().expect("there").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    let files = device.unpacked();
    holds_no_secret(&files, &device.at("out.tar"));
    assert!(file(&files, "status.json").contains("hub.unauthorized"));
    assert!(file(&files, "history.json").contains("\"epoch\": 17"));
    assert!(file(&files, "events.jsonl").contains("owning"));
    assert!(file(&files, "plan.json").contains("survives_any"));
    let config: serde_json::Value = serde_json::from_str(file(&files, "config.json")).expect("JSON");
    assert_eq!((&config["site"]["id"], &config["workload"]["command"][0]), (&"plant-7".into(), &"sh".into()));
    let variables: serde_json::Value = serde_json::from_str(file(&files, "environment.json")).expect("JSON");
    assert_eq!(variables["QUORATE_LOG__LEVEL"], "debug");
    assert_eq!(variables["QUORATE_HUB__CONNECTION_STRING"], "(removed)");
    assert_eq!(variables["HOME_SECRET"], serde_json::Value::Null, "not ours");
    let facts: serde_json::Value = serde_json::from_str(file(&files, "facts.json")).expect("JSON");
    assert_eq!(facts["quorate"], env!("CARGO_PKG_VERSION"));
    assert!(file(&files, "README.txt").contains("status.json"));
    // Nothing is overwritten, and nothing is taken away.
    let again = device.bundle(&format!("http://{}", grpc.address), &[]).await;
    assert_eq!(again.status.code(), Some(2), "{again:?}");
    assert!(String::from_utf8_lossy(&again.stderr).contains("not there yet"), "{again:?}");
    assert_eq!(device.at("out.tar").metadata().expect("there").len() % 512, 0);
    assert!(device.at("out.tar").metadata().expect("there").len() > 512);
}

#[tokio::test]
async fn without_a_sidecar_there_is_what_its_files_say() {
    let device = Device::new();
    let event = Event {
        seq: 1,
        name: "disk.failed".into(),
        kind: Kind::Condition,
        text: format!("x {KEY}"),
        ..Event::default()
    };
    Ring::open(&device.at("data")).0.append(&[event]).expect("writes");
    let endpoint = format!("unix:{}", device.at("control.sock").display());
    let output = device.bundle(&endpoint, &[]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let files = device.unpacked();
    holds_no_secret(&files, &device.at("out.tar"));
    assert!(file(&files, "events.jsonl").contains("disk.failed"));
    assert!(file(&files, "sidecar.txt").contains("cannot reach the sidecar"));
    assert!(file(&files, "facts.json").contains("\"events.log\""));
    // A configuration that is wrong is told as wrong, and no line of it is quoted.
    std::fs::write(device.at("quorate.toml"), format!("hub = {PASSWORD}\n[[[")).expect("writes");
    std::fs::remove_file(device.at("out.tar")).expect("removes");
    std::fs::remove_dir_all(device.at("unpacked")).expect("removes");
    assert_eq!(device.bundle(&endpoint, &[]).await.status.code(), Some(1));
    let files = device.unpacked();
    holds_no_secret(&files, &device.at("out.tar"));
    file(&files, "config.txt");
    file(&files, "config-faults.txt");
}

/// What a probe's command is told may be a secret as well as what the workload's is.
#[tokio::test]
async fn a_bundle_does_not_hold_what_probes_are_told() {
    let device = Device::new();
    let config = format!(
        "[site]\nid = \"plant-7\"\nmembers = [{{ device = \"edge-1\", address = \"10.0.0.11:7600\" }}]\n\
         [[site.probes]]\nname = \"plc\"\nkind = \"exec\"\ntarget = [\"curl\", \"-u\", \"plant:{PASSWORD}\", \"http://10.0.0.9/\"]\n\
         [storage]\npath = \"{0}/data\"\n",
        device.folder.path().display()
    );
    std::fs::write(device.at("quorate.toml"), config).expect("writes");
    device.bundle("http://127.0.0.1:1", &[]).await;
    holds_no_secret(&device.unpacked(), &device.at("out.tar"));
}

/// A faulty configuration is what a bundle is most often made for.
#[tokio::test]
async fn a_bundle_does_not_hold_a_command_that_was_written_as_one_text() {
    let device = Device::new();
    let config = format!(
        "[site]\nid = \"plant-7\"\nmembers = [{{ device = \"edge-1\", address = \"10.0.0.11:7600\" }}]\n\
         [workload]\nkind = \"process\"\ncommand = \"psql -W {PASSWORD}\"\n[storage]\npath = \"{0}/data\"\n",
        device.folder.path().display()
    );
    std::fs::write(device.at("quorate.toml"), config).expect("writes");
    device.bundle("http://127.0.0.1:1", &[]).await;
    holds_no_secret(&device.unpacked(), &device.at("out.tar"));
}
