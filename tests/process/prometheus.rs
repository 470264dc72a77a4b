//! A real Prometheus that scrapes a real site: the rules load, the dashboard's questions are answered, and alarms sound.
//!
//! It runs a copy of the rules in which every `for:` is one second, with a look each second. The real waiting times are tried by
//! `promtool` in `watching.rs`. Needs Debian's `prometheus`. Grafana is not in Debian: what its panels ask is asked here.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::process::Signal;
use serde_json::Value;

use super::{
    not_tested,
    site::{Plan, Site, until},
};

/// Asked only where there is a hub, or an own module twin; on this site there is neither.
const OF_A_HUB: [&str; 2] = ["quorate_hub_requests_total", "quorate_module_requests_total"];

struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn own(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect("is there")
}

impl Prometheus {
    /// Scrapes `targets`; `None` where there is no Prometheus.
    fn start(targets: &[SocketAddr]) -> Option<Prometheus> {
        let folder = tempfile::Builder::new().prefix("quorate-test-").tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let rules: Vec<String> = own("deploy/prometheus-rules.yml")
            .lines()
            .map(|line| match line.split_once("for: ") {
                Some((indent, _)) if indent.trim().is_empty() => format!("{indent}for: 1s\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        fs::write(at("rules.yml"), rules.concat()).expect("writes");
        let targets: Vec<String> = targets.iter().map(|t| format!("\"{t}\"")).collect();
        let configuration = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\nrule_files: [rules.yml]\n\
             scrape_configs:\n  - job_name: quorate\n    static_configs: [{{ targets: [{}] }}]\n",
            targets.join(", ")
        );
        fs::write(at("prometheus.yml"), configuration).expect("writes");
        // Free a moment ago. Should somebody else have taken it, Prometheus says so and the test fails.
        let address = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
        let started = Command::new("prometheus")
            .arg(format!("--config.file={}", at("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", at("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(at("log")).expect("opens"))
            .spawn();
        match started {
            Ok(child) => Some(Prometheus { child, address, _folder: folder }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                not_tested("prometheus is not installed (Debian: prometheus)");
                None
            }
            Err(e) => panic!("prometheus: {e}"),
        }
    }

    /// What its API answers; `None` while it does not.
    fn get(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        // 1.0: in one piece.
        write!(stream, "GET /api/v1/{path} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
        (body["status"] == "success").then(|| body["data"].clone())
    }

    fn rows(&self, expression: &str) -> Option<usize> {
        let question = utf8_percent_encode(expression, NON_ALPHANUMERIC);
        self.get(&format!("query?query={question}"))?["result"].as_array().map(Vec::len)
    }

    /// The alarms that sound, each with the device that it names.
    fn alarms(&self) -> Option<BTreeSet<(String, String)>> {
        let told = self.get("alerts")?;
        let sounds = told["alerts"].as_array()?.iter().filter(|a| a["state"] == "firing");
        let text = |label: &Value| label.as_str().unwrap_or("").to_owned();
        Some(sounds.map(|a| (text(&a["labels"]["alertname"]), text(&a["labels"]["device"]))).collect())
    }

    #[track_caller]
    fn sounds(&self, alarm: &str, device: &str) {
        let wanted = (alarm.to_owned(), device.to_owned());
        until(&format!("{alarm} {device}"), || self.alarms()?.contains(&wanted).then_some(()));
    }
}

#[test]
fn a_real_prometheus_loads_the_rules_and_sounds_the_alarms() {
    let (mut site, owner, _) = Site::running(Plan::default());
    let targets: Vec<SocketAddr> = site.devices.iter().map(|d| d.http).collect();
    let Some(prometheus) = Prometheus::start(&targets) else { return };

    let rules = until("all rules to be evaluated", || {
        let told = prometheus.get("rules")?;
        let groups = told["groups"].as_array()?;
        let rules: Vec<Value> =
            groups.iter().filter_map(|g| g["rules"].as_array()).flatten().cloned().collect();
        rules.iter().all(|r| r["health"] != "unknown").then_some(rules)
    });
    assert!(rules.len() > 12, "{rules:#?}");
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{}: {}", rule["name"], rule["lastError"]);
    }
    until("all three to be scraped", || (prometheus.rows("up == 1") == Some(3)).then_some(()));
    let others: Vec<usize> = (0..3).filter(|n| *n != owner).collect();
    let name = |n: usize| format!("edge-{}", n + 1);
    let quiet = prometheus.alarms().expect("it answers");
    let loud = [
        "QuorateNoOwner",
        "QuorateTwoOwners",
        "QuorateQuorumLost",
        "QuorateSidecarGone",
        "QuorateCriticalCondition",
    ];
    assert!(quiet.iter().all(|(alarm, _)| !loud.contains(&alarm.as_str())), "all is well: {quiet:?}");

    // A device is lost: that is said of it, and that there is no spare. The site goes on.
    site.signal(others[0], Signal::KILL);
    site.left(others[0]);
    prometheus.sounds("QuorateSidecarGone", &name(others[0]));
    prometheus.sounds("QuorateNoSpare", "");
    prometheus.sounds("QuorateCondition", &name(owner));
    let alarms = prometheus.alarms().expect("it answers");
    assert!(
        alarms.iter().all(|(alarm, _)| alarm != "QuorateNoOwner" && alarm != "QuorateQuorumLost"),
        "{alarms:?}"
    );

    // What the dashboard asks is answered. A condition holds by now.
    let dashboard: Value = serde_json::from_str(&own("deploy/grafana.json")).expect("JSON");
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().expect("targets") {
            let asked = target["expr"].as_str().expect("a question");
            let asked =
                asked.replace("$site", ".*").replace("$__rate_interval", "1m").replace("$__range", "1h");
            if OF_A_HUB.iter().any(|name| asked.contains(name)) {
                assert!(prometheus.rows(&asked).is_some(), "{asked}");
            } else {
                until(&asked, || prometheus.rows(&asked).filter(|rows| *rows > 0));
            }
        }
    }

    // The owner too: nobody may own.
    site.signal(owner, Signal::KILL);
    site.left(owner);
    prometheus.sounds("QuorateQuorumLost", &name(others[1]));
    prometheus.sounds("QuorateNoOwner", "");
    prometheus.sounds("QuorateSidecarGone", &name(owner));
}
