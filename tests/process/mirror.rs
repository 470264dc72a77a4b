//! A hub that answers badly, or that is none: each trouble is shown under its name, and the ownership is not touched.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use quorate::status::report::Report;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::site::{Plan, Site, tied, until};

fn section(folder: &std::path::Path) -> String {
    format!(
        "[hub]\nmirror = \"device-twin\"\nrefresh = \"1s\"\nconnection_string_file = \"{}\"\nca_file = \"{}\"\n",
        folder.join("connection-string").display(),
        folder.join("ca.pem").display(),
    )
}

fn has(report: &Report, name: &str) -> bool {
    report.conditions.iter().any(|c| c.name == name)
}

/// The emulator as a process of its own.
struct Emulated {
    folder: tempfile::TempDir,
    child: Child,
    admin: String,
}

impl Drop for Emulated {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Emulated {
    fn start(devices: &[&str]) -> Emulated {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().display().to_string();
        let mut arguments = vec!["emulate", "hub", "--json", "--listen", "127.0.0.1:0", "--folder", &path];
        devices.iter().for_each(|device| arguments.extend(["--device", device]));
        let mut child =
            tied(&arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("is piped"))
            .read_line(&mut line)
            .expect("says where it is");
        let facts: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let fact = |name: &str| facts[name].as_str().expect("is there").to_owned();
        fs::write(folder.path().join("connection-string"), fact("service_connection_string"))
            .expect("writes");
        assert_eq!(PathBuf::from(fact("ca_file")), folder.path().join("ca.pem"));
        Emulated { admin: fact("admin_address"), folder, child }
    }

    fn trouble(&self, json: &str) {
        let mut stream = TcpStream::connect(&self.admin).expect("connects");
        write!(
            stream,
            "POST /emulator/trouble HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{json}",
            json.len()
        )
        .expect("sends");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[test]
fn a_hub_in_trouble_is_named_and_caught_up_with() {
    // One device is missing in the hub.
    let hub = Emulated::start(&["edge-1", "edge-2"]);
    let (mut site, owner, epoch) =
        Site::running(Plan { more: section(hub.folder.path()), ..Plan::default() });
    let detail = site.condition(owner, "hub.device_missing");
    assert_eq!(detail, "edge-3");
    let report = site.reports(owner, "the others to be mirrored", |r| r.hub.in_sync);
    let epochs: Vec<_> = report.hub.devices.iter().map(|d| (d.device.as_str(), d.epoch)).collect();
    assert_eq!(epochs, [("edge-1", Some(epoch)), ("edge-2", Some(epoch)), ("edge-3", None)]);
    for (trouble, condition, counted, words) in [
        (r#"{"kind":"throttled"}"#, "hub.throttled", "429", "slow down"),
        (r#"{"kind":"throttled","retry_after_s":1}"#, "hub.throttled", "429", "slow down"),
        (r#"{"kind":"quota"}"#, "hub.throttled", "403", "quota of messages for this day is used up"),
        (r#"{"kind":"failing","status":500}"#, "hub.unreachable", "500", "the hub answers"),
        (r#"{"kind":"failing","status":503}"#, "hub.unreachable", "503", "the hub answers"),
        (r#"{"kind":"unreachable"}"#, "hub.unreachable", "unreachable", "cannot reach"),
    ] {
        hub.trouble(trouble);
        let report = site.reports(owner, trouble, |r| has(r, condition));
        assert!(
            report.hub.requests.get(counted).is_some_and(|n| *n > 0),
            "{trouble}: {:?}",
            report.hub.requests
        );
        let shown = report.conditions.iter().find(|c| c.name == condition).expect("just seen");
        assert!(shown.detail.contains(words) && !shown.advice.is_empty(), "{trouble}: {shown:?}");
        assert_eq!(shown.severity, "warning");
        let printed = site.ask(owner, &["status", "--json"]);
        assert!(String::from_utf8_lossy(&printed.stdout).contains(condition), "{printed:?}");
        hub.trouble(r#"{"kind":"none"}"#);
        site.reports(owner, "the trouble to be over", |r| !has(r, condition) && r.hub.in_sync);
    }
    assert_eq!(site.owner(0), (owner, epoch), "the ownership did not change");
    assert!((0..3).all(|n| site.runs(n)));
    assert_eq!(site.runs_without_overlap().len(), 1);
}

#[test]
fn a_mended_key_is_found_without_a_restart() {
    let hub = Emulated::start(&["edge-1", "edge-2", "edge-3"]);
    let file = hub.folder.path().join("connection-string");
    let good = fs::read_to_string(&file).expect("reads");
    let (front, _) = good.split_once("SharedAccessKey=").expect("a key");
    fs::write(&file, format!("{front}SharedAccessKey=d3Jvbmc=")).expect("writes");
    let (site, owner, epoch) = Site::running(Plan { more: section(hub.folder.path()), ..Plan::default() });
    site.condition(owner, "hub.unauthorized");
    fs::write(&file, good).expect("writes");
    site.reports(owner, "the mended key to be used", |r| !has(r, "hub.unauthorized") && r.hub.in_sync);
    assert_eq!(site.owner(0), (owner, epoch), "the ownership did not change");
}

/// Something with a certificate of its own that says the same to everybody, until it is told to say something else.
struct Stranger {
    folder: tempfile::TempDir,
    now: Arc<Mutex<(Arc<rustls::ServerConfig>, String)>>,
}

fn certificate() -> (String, Arc<rustls::ServerConfig>) {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![key.cert.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.signing_key.serialize_der())),
            )
            .expect("a configuration");
    (key.cert.pem(), Arc::new(config))
}

impl Stranger {
    fn start() -> Stranger {
        let (pem, config) = certificate();
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let port = listener.local_addr().expect("an address").port();
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("ca.pem"), pem).expect("writes");
        let string =
            format!("HostName=localhost:{port};SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0");
        fs::write(folder.path().join("connection-string"), string).expect("writes");
        let now = Arc::new(Mutex::new((config, String::new())));
        let shared = now.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (config, answer) = shared.lock().expect("not poisoned").clone();
                let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
                let connection = rustls::ServerConnection::new(config).expect("a connection");
                let mut stream = rustls::StreamOwned::new(connection, stream);
                let (mut head, mut byte) = (Vec::new(), [0; 1]);
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                    head.push(byte[0]);
                }
                // Whoever asked may have gone already.
                let _ = stream.write_all(answer.as_bytes());
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        });
        Stranger { folder, now }
    }

    fn say(&self, status: &str, headers: &str, body: &str) {
        self.now.lock().expect("not poisoned").1 = format!(
            "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
    }
}

/// What it is, how the stranger is told to be it, the condition, and a word of its detail.
type Step<'a> = (&'a str, Box<dyn Fn() + 'a>, &'a str, &'a str);

#[test]
fn what_is_not_our_hub_is_named_for_what_it_is() {
    let stranger = Stranger::start();
    let login = "<html>Please log in</html>";
    stranger.say("200 OK", "content-type: text/html\r\n", login);
    let (mut site, mut owner, mut epoch) =
        Site::running(Plan { more: section(stranger.folder.path()), ..Plan::default() });
    let detail = site.condition(owner, "hub.bad_answer");
    assert!(detail.contains("HTML"), "{detail}");
    let refused = |code: &str| format!("{{\"Message\":\"ErrorCode:{code};No.\",\"ExceptionMessage\":\"\"}}");
    let steps: Vec<Step<'_>> = vec![
        (
            "a redirect",
            Box::new(|| stranger.say("302 Found", "location: https://portal.example/steal?x=1\r\n", "")),
            "hub.bad_answer",
            "portal.example",
        ),
        (
            "401",
            Box::new(|| stranger.say("401 Unauthorized", "", &refused("IotHubUnauthorizedAccess"))),
            "hub.unauthorized",
            "401",
        ),
        (
            "403",
            Box::new(|| stranger.say("403 Forbidden", "", &refused("IotHubUnauthorized"))),
            "hub.unauthorized",
            "403",
        ),
        (
            "another certificate",
            Box::new(|| stranger.now.lock().expect("not poisoned").0 = certificate().1),
            "hub.untrusted",
            "certificate",
        ),
    ];
    for (what, change, condition, word) in steps {
        change();
        // A new owner tries at once, however long the one before would have waited.
        let to = (owner + 1) % 3;
        let name = site.devices[to].id.clone();
        until("a handover", || {
            (site.ask(owner, &["transfer", "--to", &name]).status.code() == Some(0)).then_some(())
        });
        (owner, epoch) = site.owner(epoch);
        assert_eq!(owner, to);
        let detail = site.condition(owner, condition);
        assert!(detail.contains(word), "{what}: {detail}");
        assert!(!detail.contains("steal") && !detail.contains("c2VjcmV0"), "{what}: {detail}");
        assert_eq!(site.owner(0), (owner, epoch), "the ownership did not change");
    }
    for n in 0..3 {
        assert!(site.runs(n));
        let log = site.log(n);
        assert!(!log.contains("c2VjcmV0") && !log.contains("SharedAccessSignature"), "a secret in the log");
        assert!(!log.contains("panicked"), "{log}");
    }
    site.runs_without_overlap();
}
