//! A device's runtime over its real sockets: modules that are real processes, started and stopped by whoever may, kept by edgeAgent.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use quorate::{
    clock::BootClock,
    emulator::{EdgeHub, EdgeOptions, Emulator, Image, Options},
    hub::{edge::Identity, settings::EdgeRuntime, store::Target},
};
use rustix::process::{Pid, test_kill_process};
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::{
    edge_http::ask,
    hub::{change, device, loopback},
    mqtt_client::{Client, connect, dial, token, within},
};

const HUB: &str = "hub1.azure-devices.net";

struct Bench {
    emulator: Emulator,
    edge: EdgeHub,
    folder: tempfile::TempDir,
}

fn module(name: &str) -> Target {
    Target::module("edge-1", name)
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    within(what, async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

/// One module of a deployment.
fn wants(image: &str, status: &str, policy: &str) -> Value {
    json!({ "type": "docker", "status": status, "restartPolicy": policy,
        "settings": { "image": image, "createOptions": "{\"StopTimeout\":1}" } })
}

impl Bench {
    /// Images by name, each a script for the shell, in which `$HERE` is the test's folder.
    fn start(images: &[(&str, &str)]) -> Bench {
        let hub = Options { host: HUB.into(), ..Options::default() };
        let emulator = Emulator::start(loopback(), loopback(), &hub, Arc::new(BootClock)).expect("starts");
        let options = EdgeOptions {
            reconcile_every: Duration::from_millis(20),
            cool_off: Duration::from_millis(1),
            ..EdgeOptions::default()
        };
        let edge = emulator.serve_edge(&device("edge-1"), loopback(), options).expect("serves");
        let folder = tempfile::tempdir().expect("a folder");
        let here = folder.path().display().to_string();
        let image = |script: &str| Image {
            command: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            environment: BTreeMap::from([
                ("HERE".to_owned(), here.clone()),
                ("PATH".to_owned(), "/usr/bin:/bin".to_owned()),
            ]),
        };
        let images = images.iter().map(|(name, script)| ((*name).to_owned(), image(script))).collect();
        edge.run_modules(folder.path(), images).expect("serves");
        Bench { emulator, edge, folder }
    }

    fn deploy(&self, modules: Value) {
        let json = json!({ "properties": { "desired": { "modules": modules } } });
        self.emulator.meddle(&module("$edgeAgent"), &change(json)).expect("is taken");
    }

    /// What edgeAgent has told the hub of a module.
    fn told(&self, name: &str) -> Value {
        let twin = self.emulator.entry(&module("$edgeAgent")).expect("exists").twin;
        twin.reported.values.get("modules").map_or(Value::Null, |modules| modules[name].clone())
    }

    async fn socket(&self, socket: &str, method: &str, path: &str) -> (u16, Value) {
        let stream = UnixStream::connect(self.folder.path().join(socket)).await.expect("connects");
        within("an answer", ask(stream, method, &format!("{path}?api-version=2022-08-03"), &[], "")).await
    }

    async fn manage(&self, method: &str, path: &str) -> (u16, Value) {
        self.socket("mgmt.sock", method, path).await
    }

    async fn status(&self, name: &str) -> Value {
        let (status, body) = self.manage("GET", &format!("/modules/{name}")).await;
        assert_eq!(status, 200, "{body}");
        body["status"].clone()
    }

    async fn running(&self, name: &str) -> i32 {
        until("the module to run", || self.edge.process(name)).await
    }

    /// Two of edgeAgent's loops have passed: another module has been started again twice.
    async fn loops(&self) {
        let before = self.told("beat")["restartCount"].as_u64().unwrap_or(0);
        until("edgeAgent's loops", || {
            (self.told("beat")["restartCount"].as_u64()? >= before + 2).then_some(())
        })
        .await;
    }
}

fn lives(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok())
}

/// Runs until it is told to stop, and then ends well.
const GOOD: &str = "trap 'exit 0' TERM; while :; do sleep 0.02; done";

#[tokio::test]
async fn whoever_has_the_management_socket_starts_and_stops_real_processes() {
    let bench = Bench::start(&[("work", GOOD), ("beat", "exit 0")]);
    bench.deploy(
        json!({ "work": wants("work", "running", "never"), "beat": wants("beat", "running", "always") }),
    );
    let first = bench.running("work").await;
    assert!(lives(first));
    let mode = std::fs::metadata(bench.folder.path().join("mgmt.sock")).expect("is there");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o660);
    let status = bench.status("work").await;
    assert_eq!(status["runtimeStatus"]["status"], "running", "{status}");
    assert!(status["startTime"].is_string() && status["exitStatus"].is_null(), "{status}");

    assert_eq!(bench.manage("POST", "/modules/work/stop").await, (204, Value::Null));
    assert!(!lives(first), "it has ended when the answer comes");
    let status = bench.status("work").await;
    assert_eq!(
        (&status["runtimeStatus"]["status"], &status["exitStatus"]["statusCode"]),
        (&json!("stopped"), &json!("0"))
    );
    assert_eq!(bench.manage("POST", "/modules/work/stop").await.0, 204, "it is stopped already");
    bench.loops().await;
    assert_eq!(bench.edge.process("work"), None, "edgeAgent leaves it alone: its policy is never");

    assert_eq!(bench.manage("POST", "/modules/work/start").await.0, 204);
    let second = bench.running("work").await;
    assert_eq!(bench.manage("POST", "/modules/work/start").await.0, 204, "it runs already");
    assert_eq!(bench.edge.process("work"), Some(second));
    assert_eq!(bench.manage("POST", "/modules/work/restart").await.0, 204);
    let third = bench.running("work").await;
    assert!(third != second && !lives(second) && lives(third));
    until("the twin to say so", || (bench.told("work")["runtimeStatus"] == "running").then_some(())).await;

    let (_, list) = bench.manage("GET", "/modules").await;
    let names: Vec<&str> =
        list["modules"].as_array().expect("a list").iter().filter_map(|m| m["name"].as_str()).collect();
    assert_eq!(names, ["beat", "work"]);
    assert_eq!(bench.socket("work.sock", "GET", "/modules").await.1["modules"][1]["name"], "work");
    assert_eq!(bench.manage("GET", "/systeminfo").await.1["osType"], "linux");
    for (method, path, wanted) in [
        ("POST", "/modules/none/start", 404),
        ("GET", "/modules/none", 404),
        ("POST", "/modules", 403),
        ("DELETE", "/modules/work", 403),
        ("POST", "/identities", 403),
        ("POST", "/device/reprovision", 403),
        ("GET", "/nothing", 404),
    ] {
        let (status, body) = bench.manage(method, path).await;
        assert!(status == wanted && body["message"].is_string(), "{method} {path}: {status} {body}");
    }
    // With the device everything on it ends.
    bench.emulator.stop().await;
    assert!(!lives(third));
}

#[tokio::test]
async fn a_stop_takes_its_grace_and_holds_up_who_asks_meanwhile() {
    // Two waits, because a shell's own wait ends with the signal that it traps.
    let deaf = "sleep 1000 & echo $! > $HERE/child; trap 'echo > $HERE/told' TERM; wait; wait";
    let bench = Bench::start(&[("deaf", deaf)]);
    bench.deploy(json!({ "deaf": wants("deaf", "running", "never") }));
    bench.running("deaf").await;
    let read = |name: &str| std::fs::read_to_string(bench.folder.path().join(name)).ok();
    let child: i32 = until("its child", || read("child")?.trim().parse().ok()).await;
    let stop = bench.manage("POST", "/modules/deaf/stop");
    let list = async {
        until("the signal", || read("told")).await;
        bench.status("deaf").await
    };
    let ((stopped, _), status) = tokio::join!(stop, list);
    assert_eq!(stopped, 204);
    // Whoever asked during the grace heard after it.
    assert_eq!(
        (&status["runtimeStatus"]["status"], &status["exitStatus"]["statusCode"]),
        (&json!("failed"), &json!("137"))
    );
    until("the end of what it left behind", || (!lives(child)).then_some(())).await;
    bench.emulator.stop().await;
}

#[tokio::test]
async fn edge_agent_keeps_to_its_deployment() {
    let bench = Bench::start(&[("work", GOOD), ("bad", "exit 3"), ("beat", "exit 0")]);
    let beat = wants("beat", "running", "always");
    bench.deploy(json!({ "work": wants("work", "stopped", "always"), "beat": beat, "gone": wants("none", "running", "always") }));
    bench.loops().await;
    assert_eq!(bench.edge.process("work"), None);
    assert_eq!(bench.told("gone")["runtimeStatus"], "unknown", "there is no such image");
    // Started by hand against the deployment, it is stopped; by the deployment, it runs and comes back.
    assert_eq!(bench.manage("POST", "/modules/work/start").await.0, 204);
    until("edgeAgent to stop it", || bench.edge.process("work").is_none().then_some(())).await;
    bench.deploy(json!({ "work": { "status": "running" }, "gone": null }));
    let first = bench.running("work").await;
    assert_eq!(bench.manage("POST", "/modules/work/stop").await.0, 204);
    let second =
        until("edgeAgent to start it", || bench.edge.process("work").filter(|pid| *pid != first)).await;
    // Another environment makes it anew; a module that is no longer named goes.
    bench.deploy(json!({ "work": { "env": { "A": { "value": "b" } } } }));
    until("it to be made anew", || bench.edge.process("work").filter(|pid| *pid != second)).await;
    let (_, shown) = bench.manage("GET", "/modules/work").await;
    let env = shown["config"]["env"].as_array().expect("a list");
    assert!(env.contains(&json!({ "key": "A", "value": "b" })), "{shown}");
    assert!(env.iter().any(|v| v["key"] == "IOTEDGE_WORKLOADURI"), "{shown}");
    bench.deploy(json!({ "work": null, "bad": wants("bad", "running", "on-failure") }));
    until("it to be given up", || (bench.told("bad")["runtimeStatus"] == "failed").then_some(())).await;
    let told = bench.told("bad");
    assert_eq!((&told["restartCount"], &told["exitCode"]), (&json!(20), &json!(3)), "{told}");
    assert_eq!(bench.manage("GET", "/modules/work").await.0, 404);
    bench.emulator.stop().await;
}

#[tokio::test]
async fn only_a_modules_own_processes_are_signed_for() {
    let program = std::env::current_exe().expect("this test").display().to_string();
    let script = format!(
        "sh -c 'exec \"{program}\" --exact conformance::edge_runtime::stand_in_module --ignored > /dev/null' & \
         trap 'exit 0' TERM; wait; while :; do sleep 0.02; done"
    );
    let bench = Bench::start(&[("work", &script)]);
    bench.deploy(json!({ "work": wants("work", "running", "never") }));
    bench.running("work").await;
    // What the module starts is the module.
    let file = bench.folder.path().join("signed");
    let signed =
        until("a signature", || std::fs::read_to_string(&file).ok().filter(|text| text.ends_with('\n')))
            .await;
    assert_eq!(signed, "signed\n");
    // This test is not, however it got hold of the socket; what is open to all is open to it.
    let generation = &bench.edge.environment("work")["IOTEDGE_MODULEGENERATIONID"];
    for path in
        [format!("/modules/work/genid/{generation}/sign"), "/modules/work/certificate/identity".into()]
    {
        let (status, body) = bench.socket("work.sock", "POST", &path).await;
        assert_eq!((status, &body["message"]), (403, &json!("forbidden")), "{path}");
    }
    assert_eq!(bench.socket("work.sock", "GET", "/trust-bundle").await.0, 200);
    bench.emulator.stop().await;
}

/// Not a test: a module of [`only_a_modules_own_processes_are_signed_for`].
#[tokio::test]
#[ignore = "the module that another test starts as a process of its own"]
#[expect(clippy::disallowed_methods, reason = "a module is told by its environment")]
async fn stand_in_module() {
    let text = |name: &str| std::env::var(name).unwrap_or_default();
    // Run by hand with all other ignored tests, it has nothing to do.
    let Some(here) = std::env::var_os("HERE").map(PathBuf::from) else { return };
    let edge = EdgeRuntime {
        workload_uri: text("IOTEDGE_WORKLOADURI"),
        hub: text("IOTEDGE_IOTHUBHOSTNAME"),
        device: text("IOTEDGE_DEVICEID"),
        module: text("IOTEDGE_MODULEID"),
        generation: text("IOTEDGE_MODULEGENERATIONID"),
        gateway: text("IOTEDGE_GATEWAYHOSTNAME"),
        api_version: String::new(),
    };
    let identity = Identity::of_edge(&edge, Duration::from_secs(10)).expect("is in order");
    let said = match identity.token(1).await {
        Ok(_) => "signed\n".to_owned(),
        Err(why) => format!("{why}\n"),
    };
    std::fs::write(here.join("signed"), said).expect("writes");
}

#[tokio::test]
async fn a_module_calls_another_while_the_cloud_is_away() {
    let bench = Bench::start(&[]);
    for name in ["ha", "work"] {
        bench.edge.serve_workload(name, &bench.folder.path().join(name)).expect("serves");
    }
    let https = bench.edge.serve_methods(loopback()).expect("serves");
    let own = |name: &str| bench.emulator.device_connection_string(&module(name), None);
    let expiry = 4_000_000_000;
    let mut work = Client::dial(bench.edge.address(), bench.emulator.ca_pem()).await;
    work.introduce(connect(&own("work"), &module("work"), expiry)).await.expect("an answer");
    work.subscribe(&["$iothub/methods/POST/#"]).await;
    bench.edge.upstream(false);
    let signed = |name: &str| token(&own(name), &format!("{HUB}/devices/edge-1/modules/{name}"), expiry);
    let (ha, bench) = (signed("ha"), &bench);
    let call = |target: &'static str, caller: &'static str, token: String, body: Value| async move {
        let stream = dial(https, bench.emulator.ca_pem()).await;
        let headers = [("Authorization", token.as_str()), ("x-ms-edge-moduleId", caller)];
        let headers = &headers[..if caller.is_empty() { 1 } else { 2 }];
        let path = format!("/twins/edge-1/modules/{target}/methods");
        within("an answer", ask(stream, "POST", &path, headers, &body.to_string())).await
    };
    let ping = json!({ "methodName": "ping", "payload": { "a": 1 }, "responseTimeoutInSeconds": 10 });
    let answers = async {
        let (topic, body) = work.json().await;
        assert_eq!(body, json!({ "a": 1 }));
        let rid = topic.strip_prefix("$iothub/methods/POST/ping/?$rid=").expect("a method").to_owned();
        work.publish(&format!("$iothub/methods/res/207/?$rid={rid}"), "\"pong\"").await;
    };
    let (answer, ()) = tokio::join!(call("work", "edge-1/ha", ha.clone(), ping.clone()), answers);
    assert_eq!(answer, (200, json!({ "status": 207, "payload": "pong" })));
    let short = json!({ "methodName": "ping", "responseTimeoutInSeconds": 1 });
    let other = token(&own("work"), &format!("{HUB}/devices/edge-1/modules/work"), expiry);
    for (target, caller, token, body, wanted) in [
        ("ha", "edge-1/ha", ha.clone(), ping.clone(), 404),
        ("$edgeAgent", "edge-1/ha", ha.clone(), ping.clone(), 404),
        ("work", "", ha.clone(), ping.clone(), 400),
        ("work", "ha", ha.clone(), ping.clone(), 400),
        ("work", "edge-1/ha", ha.clone(), short, 400),
        ("work", "edge-1/ha", other, ping.clone(), 401),
        ("work", "edge-2/ha", ha.clone(), ping.clone(), 401),
        ("work", "edge-1/none", ha, ping, 401),
    ] {
        let (status, body) = call(target, caller, token, body).await;
        assert!(status == wanted && body["message"].is_string(), "{target} {caller}: {status} {body}");
    }
}
