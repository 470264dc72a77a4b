//! Microsoft's own device SDK for Python, unmodified, against the emulated hub and edgeHub: what they accept, modules in the
//! field accept.
//!
//! `QUORATE_TEST_PYTHON` names a Python that has `azure-iot-device==2.14.0` and `paho-mqtt<2`. Without it, a virtual environment
//! is made once beside the test's own build and filled by pip. `QUORATE_SKIP_PYTHON=1` leaves these tests out. The SDK connects to
//! port 8883 and no other, so each test takes that port on a loopback address of its own.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Command as Plain, Stdio},
    sync::{Arc, OnceLock},
    time::Duration,
};

use quorate::{
    clock::BootClock,
    emulator::{EdgeHub, EdgeOptions, Emulator, Options},
    hub::{sas::Credentials, store::Target},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::{
    edge_http::ask,
    hub::{change, device, loopback},
    mqtt_client::dial,
};

const PACKAGES: [&str; 2] = ["azure-iot-device==2.14.0", "paho-mqtt<2"];
const HUB: &str = "hub1.azure-devices.net";
/// The SDK is a large program on what may be a small machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[expect(clippy::disallowed_methods, reason = "a test runs Python")]
fn must(program: &Path, arguments: &[&str]) -> Result<(), String> {
    let output = Plain::new(program)
        .args(arguments)
        .env("PYTHONWARNINGS", "ignore")
        .output()
        .map_err(|why| format!("{} cannot be started: {why}", program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{} {}: {text}", program.display(), arguments.join(" ")))
}

/// A Python with the SDK: the one named, or one of our own.
fn find(named: Option<PathBuf>) -> Result<PathBuf, String> {
    const IMPORT: [&str; 2] = ["-c", "import azure.iot.device"];
    if let Some(named) = named {
        return must(&named, &IMPORT).map(|()| named);
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-device");
    let python = folder.join("bin/python");
    if must(&python, &IMPORT).is_ok() {
        return Ok(python);
    }
    // Whatever is there is half made.
    let _removed = std::fs::remove_dir_all(&folder).is_ok();
    must(Path::new("python3"), &["-m", "venv", &folder.to_string_lossy()])?;
    let install =
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGES[0], PACKAGES[1]];
    must(&python, &install).map(|()| python)
}

/// The Python to use, or `None` if these tests are left out. Found once, for all tests.
#[expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test reads its own two switches, and says so"
)]
fn python() -> Option<&'static Path> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    if std::env::var("QUORATE_SKIP_PYTHON").is_ok_and(|skip| skip == "1") {
        println!("left out: QUORATE_SKIP_PYTHON=1");
        return None;
    }
    let named = || std::env::var_os("QUORATE_TEST_PYTHON").map(PathBuf::from);
    let found = FOUND.get_or_init(|| {
        find(named()).unwrap_or_else(|why| {
            panic!(
                "{why}\nThis test needs Python 3 with {}. Make a virtual environment, install these with pip, and name its \
                 python in QUORATE_TEST_PYTHON; or leave the test out with QUORATE_SKIP_PYTHON=1.",
                PACKAGES.join(" and ")
            )
        })
    });
    Some(found)
}

/// The one port that the SDK knows, on a loopback address that nobody else has taken.
fn port_8883() -> TcpListener {
    (2..255)
        .find_map(|last| TcpListener::bind((Ipv4Addr::new(127, 0, 0, last), 8883)).ok())
        .expect("port 8883 is free on some loopback address")
}

/// A script that runs, line by line.
struct Script {
    _child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Script {
    #[expect(clippy::disallowed_methods, reason = "a test runs Python")]
    fn start(
        python: &Path,
        name: &str,
        arguments: &[&str],
        environment: &BTreeMap<String, String>,
    ) -> Script {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance").join(name);
        let mut child = Command::new(python)
            .arg(script)
            .args(arguments)
            .envs(environment)
            .env("PYTHONWARNINGS", "ignore")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("starts");
        let stdin = child.stdin.take().expect("piped");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Script { _child: child, stdin, lines }
    }

    async fn tell(&mut self, asked: &Value) {
        self.stdin.write_all(format!("{asked}\n").as_bytes()).await.expect("is read");
    }

    /// The next line of JSON.
    async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("a line in time");
        let line = line.expect("a text").expect("the script goes on; its error is above");
        serde_json::from_str(&line).expect("is JSON")
    }

    /// The next event of this kind; others before it are passed over.
    async fn event(&mut self, kind: &str) -> Value {
        loop {
            let event = self.next().await;
            if event["event"] == kind {
                return event;
            }
        }
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waits = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waits).await.is_ok(), "{what} did not come");
}

fn ha() -> Target {
    Target::module("edge-1", "ha")
}

struct Bench {
    emulator: Emulator,
    folder: tempfile::TempDir,
}

impl Bench {
    fn start(names: &[String]) -> Bench {
        let options = Options {
            devices: vec![device("edge-1")],
            host: HUB.into(),
            names: names.to_vec(),
            ..Options::default()
        };
        let emulator =
            Emulator::start(loopback(), loopback(), &options, Arc::new(BootClock)).expect("starts");
        emulator.create_module(&ha());
        Bench { emulator, folder: tempfile::tempdir().expect("a folder") }
    }

    fn edge(&self) -> EdgeHub {
        let options = EdgeOptions { report_every: Duration::from_millis(50), ..EdgeOptions::default() };
        let edge = self.emulator.serve_edge(&device("edge-1"), port_8883(), options).expect("serves");
        edge.serve_workload("ha", &self.folder.path().join("ha.sock")).expect("serves");
        edge
    }

    fn desire(&self, who: &Target, json: Value) {
        let json = json!({ "properties": { "desired": json } });
        self.emulator.meddle(who, &change(json)).expect("is taken");
    }

    /// A direct method over the service's API.
    async fn call(&self, body: &Value) -> (u16, Value) {
        let string = self.emulator.service_connection_string();
        let token = Credentials::parse(&string).expect("parses").token(u64::MAX);
        let host = super::mqtt_client::part(&string, "HostName");
        let stream = dial(self.emulator.address(), self.emulator.ca_pem()).await;
        let headers = [("Authorization", token.as_str()), ("Host", host)];
        let path = "/twins/edge-1/modules/ha/methods?api-version=2021-04-12";
        ask(stream, "POST", path, &headers, &body.to_string()).await
    }
}

/// What a module does all day: its twin both ways, a method, a message with properties.
async fn a_day(bench: &Bench, script: &mut Script) {
    script.event("ready").await;
    assert!(bench.emulator.is_connected(&ha()));

    bench.desire(&ha(), json!({ "quorate": { "active": true, "epoch": 7 } }));
    let patch = script.event("desired").await["patch"].clone();
    assert_eq!(patch["quorate"], json!({ "active": true, "epoch": 7 }));
    assert_eq!(patch["$version"], 2);

    script.tell(&json!({ "do": "report", "patch": { "ha": { "role": "owner", "epoch": 7 } } })).await;
    script.event("reported").await;
    let reported = || bench.emulator.entry(&ha()).expect("exists").twin.reported.values;
    until("the report", || Value::Object(reported()) == json!({ "ha": { "role": "owner", "epoch": 7 } }))
        .await;
    script.tell(&json!({ "do": "twin" })).await;
    let twin = script.event("twin").await["twin"].clone();
    assert_eq!(twin["desired"]["quorate"], json!({ "active": true, "epoch": 7 }));
    assert_eq!(twin["reported"]["ha"]["role"], "owner");
    assert_eq!(twin["reported"]["$version"], 2);

    let asked = json!({ "methodName": "why", "payload": { "a": [1] }, "responseTimeoutInSeconds": 60 });
    let (answer, heard) = tokio::join!(bench.call(&asked), script.event("method"));
    assert_eq!(heard["name"], "why");
    assert_eq!(answer, (200, json!({ "status": 207, "payload": { "heard": { "a": [1] } } })));

    let sent = json!({ "do": "send", "body": "{\"t\":21}", "output": "out1", "properties": { "quorate_epoch": "7" } });
    script.tell(&sent).await;
    script.event("sent").await;
    until("the message", || !bench.emulator.messages().is_empty()).await;
    let message = bench.emulator.messages().remove(0);
    assert_eq!((&message.from, &message.body[..]), (&ha(), &b"{\"t\":21}"[..]));
    assert_eq!(
        (message.properties["quorate_epoch"].as_str(), message.properties["$.ct"].as_str()),
        ("7", "application/json")
    );
}

#[tokio::test]
async fn a_module_of_iot_edge_with_microsofts_sdk() {
    let Some(python) = python() else { return };
    let bench = Bench::start(&[]);
    let routes = json!({ "routes": {
        "round": "FROM /messages/modules/ha/outputs/loop INTO BrokeredEndpoint(\"/modules/ha/inputs/in1\")",
        "up": "FROM /messages/modules/ha/outputs/out1 INTO $upstream",
    } });
    let edge = bench.edge();
    bench.desire(&Target::module("edge-1", "$edgeHub"), routes);
    let mut script = Script::start(python, "device_sdk.py", &[], &edge.environment("ha"));
    a_day(&bench, &mut script).await;

    let sent = json!({ "do": "send", "body": "again", "output": "loop", "properties": { "n": "1" } });
    script.tell(&sent).await;
    let input = script.event("input").await;
    assert_eq!(
        (&input["input"], &input["body"], &input["properties"]["n"]),
        (&json!("in1"), &json!("again"), &json!("1"))
    );

    // The cloud goes away and comes back: the module does not notice, and hears what it missed.
    edge.upstream(false);
    bench.desire(&ha(), json!({ "quorate": { "epoch": 8 } }));
    script.tell(&json!({ "do": "report", "patch": { "offline": true } })).await;
    script.event("reported").await;
    edge.upstream(true);
    assert_eq!(script.event("desired").await["patch"]["quorate"], json!({ "epoch": 8 }));
    let reported = || bench.emulator.entry(&ha()).expect("exists").twin.reported.values;
    until("the report", || reported().contains_key("offline")).await;
    drop(script.stdin);
    drop(edge);
    bench.emulator.stop().await;
}

#[tokio::test]
async fn a_module_at_the_hub_itself_with_microsofts_sdk() {
    let Some(python) = python() else { return };
    let listener = port_8883();
    let gateway = listener.local_addr().expect("an address").ip().to_string();
    let bench = Bench::start(std::slice::from_ref(&gateway));
    bench.emulator.serve_mqtt(listener).expect("serves");
    let ca = bench.folder.path().join("ca.pem");
    std::fs::write(&ca, bench.emulator.ca_pem()).expect("writes");
    let string = bench.emulator.device_connection_string(&ha(), Some(&gateway));
    let arguments = [string.as_str(), &ca.to_string_lossy()];
    let mut script = Script::start(python, "device_sdk.py", &arguments, &BTreeMap::new());
    a_day(&bench, &mut script).await;

    // An outage cuts its link; the SDK comes back by itself and goes on.
    bench.emulator.trouble(quorate::hub::memory::Trouble::Unreachable);
    while script.event("connection").await["connected"] != json!(false) {}
    bench.emulator.trouble(quorate::hub::memory::Trouble::None);
    while script.event("connection").await["connected"] != json!(true) {}
    bench.desire(&ha(), json!({ "after": 1 }));
    assert_eq!(script.event("desired").await["patch"]["after"], 1);
    bench.emulator.stop().await;
}

#[tokio::test]
async fn a_workload_module_watches_its_flag() {
    let Some(python) = python() else { return };
    let bench = Bench::start(&[]);
    let edge = bench.edge();
    let mut workload = Script::start(python, "device_sdk_flag.py", &[], &edge.environment("ha"));
    assert_eq!(workload.next().await, json!({ "active": false, "epoch": 0 }), "nobody has told it to work");
    bench.desire(&ha(), json!({ "quorate": { "active": true, "epoch": 7 } }));
    assert_eq!(workload.next().await, json!({ "active": true, "epoch": 7 }));
    // Its device loses the ownership while the cloud cannot reach it, and hears of it when it can.
    edge.upstream(false);
    bench.desire(&ha(), json!({ "quorate": { "active": false, "epoch": 8 } }));
    edge.upstream(true);
    assert_eq!(workload.next().await, json!({ "active": false, "epoch": 8 }));
}
