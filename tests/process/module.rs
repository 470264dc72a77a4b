//! Sidecars without any credential for the cloud, each in an emulated IoT Edge device: they mirror through the workload socket and
//! their device's edgeHub, take the cloud's commands there, and let the workload's messages through on the owner alone.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use quorate::{
    clock::{BootClock, Clock as _},
    emulator::{EdgeHub, Emulator, Options},
    hub::{
        Change, Target,
        edge::Identity,
        link::{Message, Module as _},
        mqtt::client::{Client, Line},
        reported::Reported,
        settings::EdgeRuntime,
        wall,
    },
    id::DeviceId,
    status::report::Report,
};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{
    hub::{self, MODULE, loopback},
    site::{Plan, Site, until},
};

const HUB: &str = "plant.azure-devices.net";

/// The hub, and one edgeHub for each device.
struct Cloud {
    emulator: Emulator,
    edges: Vec<EdgeHub>,
    _folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Cloud {
    fn start() -> Cloud {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let inside = runtime.enter();
        let options = Options { host: HUB.into(), ..Options::default() };
        let emulator =
            Emulator::start(loopback(), loopback(), &options, Arc::new(BootClock)).expect("starts");
        let folder = tempfile::tempdir().expect("a folder");
        let edges = hub::edges(&emulator, folder.path(), &[MODULE, "work"]);
        drop(inside);
        Cloud { emulator, edges, _folder: folder, runtime }
    }

    fn target(n: usize, module: &str) -> Target {
        Target::module(&format!("edge-{}", n + 1), module)
    }

    /// What the hub knows of what a sidecar says.
    fn said(&self, n: usize) -> Option<Reported> {
        let twin = self.emulator.entry(&Cloud::target(n, MODULE)).expect("exists").twin;
        serde_json::from_value(twin.reported.values.get("quorate")?.clone()).ok()
    }

    fn shows(&self, n: usize, owner: usize, epoch: u64) -> bool {
        self.said(n).is_some_and(|said| {
            (said.flag.epoch, said.flag.active) == (epoch, n == owner)
                && said.flag.leader == format!("edge-{}", owner + 1)
        })
    }

    fn desire(&self, target: &Target, desired: &Value) {
        let json = json!({ "properties": { "desired": desired } });
        let change = Change::from_json(&json).expect("a change");
        self.emulator.meddle(target, &change).expect("is taken");
    }

    fn upstream(&self, reachable: bool) {
        self.edges.iter().for_each(|edge| edge.upstream(reachable));
    }
}

fn site(cloud: &Cloud, more: &str) -> (Site, usize, u64) {
    let mut site = Site::with(Plan { more: format!("[hub]\nrefresh = \"2s\"\n{more}"), ..Plan::default() });
    hub::tell(&cloud.edges, &mut site);
    site.start_all();
    let (owner, epoch) = site.owner(0);
    (site, owner, epoch)
}

#[test]
fn sidecars_without_any_credential_tell_the_cloud_who_owns() {
    let cloud = Cloud::start();
    let (mut site, owner, epoch) = site(&cloud, "");
    until("the cloud to know the owner", || (0..3).all(|n| cloud.shows(n, owner, epoch)).then_some(()));
    // An edgeHub's word is not the cloud's: what the cloud shows is known once the twin was read again.
    let report = site.reports(owner, "the twin to be read", |r| {
        r.hub.in_sync && r.hub.module.as_ref().is_some_and(|module| module.epoch == Some(epoch))
    });
    assert_eq!(report.hub.mirror, "module-twin");
    assert!(report.hub.name.contains(HUB), "{}", report.hub.name);
    assert!(report.hub.module.is_some_and(|module| module.connected));
    // The cloud is away while the owner is lost; each edgeHub keeps what its sidecar says.
    cloud.upstream(false);
    site.signal(owner, Signal::KILL);
    site.left(owner);
    let others = [(owner + 1) % 3, (owner + 2) % 3];
    let (second, next) = site.owner_among(&others, epoch);
    let third = 3 - owner - second;
    until("the edgeHubs to hold what is said", || {
        [second, third].iter().all(|n| cloud.edges[*n].holds_back(MODULE)).then_some(())
    });
    assert!(cloud.shows(second, owner, epoch), "the cloud shows what it was last told");
    cloud.upstream(true);
    until("the cloud to know the next", || {
        [second, third].iter().all(|n| cloud.shows(*n, second, next)).then_some(())
    });
    site.start(owner);
    site.up(owner);
    until("it to say that it stands by", || cloud.shows(owner, second, next).then_some(()));
    // Nothing that opens the hub was ever on the devices.
    for n in 0..3 {
        let told = format!("{:?}", site.environment(n));
        let log = site.log(n);
        for secret in ["SharedAccessKey", "SharedAccessSignature", "sig="] {
            assert!(!told.contains(secret) && !log.contains(secret), "{secret} on device {n}");
        }
        assert!(!log.contains("panicked"), "{log}");
    }
    site.runs_without_overlap();
}

#[test]
fn an_identity_that_is_gone_or_disabled_is_told_as_far_as_it_can_be_known() {
    let cloud = Cloud::start();
    let (site, owner, epoch) = site(&cloud, "");
    until("the cloud to know the owner", || (0..3).all(|n| cloud.shows(n, owner, epoch)).then_some(()));
    let (disabled, deleted) = ((owner + 1) % 3, (owner + 2) % 3);
    let device = |n: usize| DeviceId::new(hub::DEVICES[n]).expect("a name");
    // The edgeHub refuses with one code, whatever the cause.
    cloud.emulator.enable_device(&device(disabled), false);
    let detail = site.condition(disabled, "hub.unauthorized");
    for cause in ["key", "wall clock", "deleted", "disabled", "made anew"] {
        assert!(detail.contains(cause), "{cause} in {detail}");
    }
    // The workload socket knows the module of this generation no more.
    cloud.emulator.delete_device(&device(deleted));
    let detail = site.condition(deleted, "hub.device_missing");
    assert!(detail.contains("deleted or made anew") && detail.contains("generation"), "{detail}");
    // The same name with another generation is somebody else.
    cloud.emulator.create_device(&device(deleted));
    cloud.emulator.create_module(&Cloud::target(deleted, MODULE));
    let asked = |r: &Report| {
        let requests = r.hub.module.as_ref().map(|module| &module.requests);
        requests.and_then(|requests| requests.get("no_identity").copied()).unwrap_or(0)
    };
    let before = site.report(deleted).map_or(0, |r| asked(&r));
    site.reports(deleted, "two more tries", |r| asked(r) >= before + 2);
    assert_eq!(site.condition(deleted, "hub.device_missing"), detail);
    cloud.emulator.enable_device(&device(disabled), true);
    site.reports(disabled, "the link to stand again", |r| {
        r.hub.module.as_ref().is_some_and(|m| m.connected)
            && !r.conditions.iter().any(|c| c.name == "hub.unauthorized")
    });
    assert_eq!(site.owner(0), (owner, epoch), "the ownership did not change");
    site.runs_without_overlap();
}

#[test]
fn a_check_tries_the_way_to_the_edgehub_and_leaves_the_link_alone() {
    let cloud = Cloud::start();
    let (mut site, owner, epoch) = site(&cloud, "");
    until("the cloud to know the owner", || (0..3).all(|n| cloud.shows(n, owner, epoch)).then_some(()));
    let links = cloud.edges[owner].connections();
    let check = |site: &Site, n: usize| -> Vec<(String, Option<String>)> {
        let mut check = super::site::quorate();
        let output = check
            .args(["check", "--seconds", "1", "--json"])
            .envs(site.environment(n))
            .output()
            .expect("starts");
        let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let text = |json: &Value| json.as_str().map(str::to_owned);
        let tried = said["hub"].as_array().expect("a list").iter();
        tried.map(|tried| (text(&tried["what"]).expect("a text"), text(&tried["error"]))).collect()
    };
    let address = cloud.edges[owner].address();
    let good = [
        (format!("a signature for the module edge-{}/{MODULE}", owner + 1), None),
        (format!("MQTT over TLS at {address}"), None),
    ];
    assert_eq!(check(&site, owner), good);
    assert_eq!(cloud.edges[owner].connections(), links, "nobody has introduced itself a second time");
    assert!(cloud.edges[owner].is_connected(MODULE));
    // Another module's socket does not sign for this one, and where nobody listens there is no way.
    let other = hub::environment(&cloud.edges[owner], "work");
    site.tell(owner, "IOTEDGE_WORKLOADURI", other["IOTEDGE_WORKLOADURI"].clone());
    site.tell(owner, "IOTEDGE_GATEWAYHOSTNAME", loopback().local_addr().expect("an address").to_string());
    let said = check(&site, owner);
    assert!(said[0].1.as_ref().is_some_and(|why| why.contains("forbidden")), "{said:?}");
    assert!(said[1].1.as_ref().is_some_and(|why| why.contains("refused")), "{said:?}");
    assert_eq!(site.owner(0), (owner, epoch));
}

#[test]
fn whatever_the_cloud_writes_into_the_module_twin_moves_nothing() {
    let cloud = Cloud::start();
    let (site, owner, epoch) = site(&cloud, "commands = \"all\"\n");
    until("the cloud to know the owner", || (0..3).all(|n| cloud.shows(n, owner, epoch)).then_some(()));
    let now = BootClock.wall_ms();
    let at = |ms: u64| wall::rfc3339(ms);
    let to = format!("edge-{}", (owner + 1) % 3 + 1);
    let target = Cloud::target(owner, MODULE);
    let deep = (0..7).fold(json!(1), |inner, _| json!({ "d": inner }));
    // Some hostile ones, then a well-formed order that has to be refused: its outcome shows that those before were read.
    let hostile = [
        json!(7),
        json!("pause"),
        json!([{"pause": true}]),
        json!({"pause": 1, "transfer": "edge-2", "drain": [], "prefer": {"id": 7}, "timing": null}),
        json!({"transfer": {"id": {"a": []}, "to": 4_503_599_627_370_495_i64, "expires": -1, "base_epoch": 1e300}}),
        json!({"transfer": {"id": "x".repeat(4000), "to": to, "expires": "never"}}),
        json!({"pause": deep, "unknown": deep}),
        json!((0..7).map(|n| (format!("s{n}"), json!("x".repeat(4000)))).collect::<serde_json::Map<_, _>>()),
        json!({"transfer": {"id": "late", "to": to, "expires": at(now - 3_600_000)}}),
        json!({"transfer": {"id": "stale", "to": to, "expires": at(now + 3_600_000), "base_epoch": epoch + 9}}),
        json!({"transfer": {"id": "strange", "to": "edge-99", "expires": at(now + 3_600_000)}}),
    ];
    for (n, hostile) in hostile.chunks(4).enumerate() {
        for hostile in hostile {
            cloud.desire(&target, &json!({"quorate": null}));
            cloud.desire(&target, &json!({"quorate": hostile}));
        }
        cloud.desire(&target, &json!({"quorate": null}));
        let id = format!("probe-{n}");
        let probe = json!({"id": id, "to": "edge-98", "expires": at(now + 3_600_000)});
        cloud.desire(&target, &json!({"quorate": {"transfer": probe}}));
        let said = until("the probe's outcome", || {
            let said = cloud.said(owner)?.commands.get("transfer")?.clone();
            (said["id"] == json!(id)).then_some(said)
        });
        assert_eq!(said["outcome"], json!("refused"), "{said}");
        assert_eq!(site.owner(0), (owner, epoch), "the ownership did not change");
    }
    assert!(
        (0..3)
            .all(|n| cloud.shows(n, owner, epoch) && cloud.said(n).is_some_and(|said| said.paused.is_none()))
    );
    assert!((0..3).all(|n| !site.log(n).contains("panicked")));
    assert_eq!(site.runs_without_overlap().len(), 1);
}

#[test]
fn the_cloud_pauses_and_moves_a_site_that_allows_it() {
    let cloud = Cloud::start();
    let (site, owner, epoch) = site(
        &cloud,
        "commands = [\"status\", \"pause\", \"resume\", \"transfer\", \"drain\", \"undrain\"]\n",
    );
    until("the cloud to know the owner", || (0..3).all(|n| cloud.shows(n, owner, epoch)).then_some(()));
    let expires = wall::rfc3339(BootClock.wall_ms() + 3_600_000);
    let outcome = |n: usize, verb: &'static str, id: &'static str| {
        let said = cloud.said(n)?.commands.get(verb)?.clone();
        (said["id"] == json!(id)).then_some(said)
    };
    let asked = (owner + 1) % 3;
    let target = Cloud::target(asked, MODULE);
    let pause = json!({"id": "p1", "on": true, "expires": expires, "reason": "an inspection"});
    cloud.desire(&target, &json!({"quorate": {"pause": pause}}));
    let said = until("the outcome", || outcome(asked, "pause", "p1"));
    assert_eq!(said["outcome"], json!("done"), "{said}");
    until("all to say that it is paused", || {
        (0..3).all(|n| cloud.said(n).is_some_and(|said| said.paused.is_some())).then_some(())
    });
    let to = format!("edge-{}", asked + 1);
    let section = json!({"quorate": {
        "pause": {"id": "p2", "on": false, "expires": expires},
        "transfer": {"id": "t1", "to": to, "expires": expires, "base_epoch": epoch},
    }});
    cloud.desire(&target, &section);
    let said = until("the outcome", || outcome(asked, "transfer", "t1"));
    assert_eq!(said["outcome"], json!("done"), "{said}");
    let (next, newer) = site.owner(epoch);
    assert_eq!(next, asked);
    until("the cloud to know it", || (0..3).all(|n| cloud.shows(n, asked, newer)).then_some(()));
    // The same again, and one that this site does not take from the cloud.
    let prefer = json!({"id": "f1", "device": "edge-1", "expires": expires});
    cloud.desire(&target, &json!({"quorate": {"prefer": prefer}}));
    let said = until("the outcome", || outcome(asked, "prefer", "f1"));
    assert_eq!(said["outcome"], json!("refused"), "{said}");
    // What would leave nobody, and what is no property, are refused with words that help.
    let drain = json!({"id": "d1", "devices": hub::DEVICES, "expires": expires});
    let resume = json!({"id": "r1", "expires": expires});
    cloud.desire(&target, &json!({"quorate": {"drain": drain, "resume": resume}}));
    let said = until("the outcome", || outcome(asked, "drain", "d1"));
    assert_eq!(said["outcome"], json!("refused"), "{said}");
    assert!(said["reason"].to_string().contains("nobody would be left"), "{said}");
    let said = until("the outcome", || outcome(asked, "resume", "r1"));
    assert_eq!(said["outcome"], json!("refused"), "{said}");
    assert!(said["reason"].to_string().contains("write pause"), "{said}");
    assert_eq!(outcome(asked, "pause", "p2").expect("is kept")["outcome"], json!("done"));
    assert_eq!(site.owner(0), (asked, newer), "each was executed once");
    site.runs_without_overlap();
}

#[test]
fn messages_pass_the_gate_on_the_owner_alone() {
    let cloud = Cloud::start();
    let (site, owner, epoch) = site(&cloud, "[hub.gate]\ninput = \"in\"\noutput = \"out\"\n");
    let routes = json!({"routes": {
        "gate": "FROM /messages/modules/work/outputs/* INTO BrokeredEndpoint(\"/modules/quorate/inputs/in\")",
        "up": "FROM /messages/modules/quorate/outputs/out INTO $upstream",
    }});
    for n in 0..3 {
        cloud.desire(&Cloud::target(n, "$edgeHub"), &routes);
        site.reports(n, "the link to stand", |r| r.hub.module.as_ref().is_some_and(|m| m.in_sync));
    }
    // The workload's own client on every device: it sends three messages wherever it runs.
    for n in 0..3 {
        let variables: BTreeMap<_, _> = hub::environment(&cloud.edges[n], "work");
        let edge = EdgeRuntime {
            workload_uri: variables["IOTEDGE_WORKLOADURI"].clone(),
            hub: HUB.into(),
            device: format!("edge-{}", n + 1),
            module: "work".into(),
            generation: variables["IOTEDGE_MODULEGENERATIONID"].clone(),
            gateway: variables["IOTEDGE_GATEWAYHOSTNAME"].clone(),
            api_version: String::new(),
        };
        let timeout = Duration::from_secs(10);
        let identity = Identity::of_edge(&edge, timeout).expect("is in order");
        let line = Line { identity, inputs: false, ca_file: None, timeout };
        let client = Client::new(line, Arc::new(BootClock));
        cloud.runtime.block_on(async {
            let mut connected = client.connect().await.expect("connects");
            let link = connected.link.clone();
            let send = async {
                for number in 1..=3 {
                    let message = Message {
                        properties: vec![
                            ("quorate_epoch".into(), "999".into()),
                            ("n".into(), number.to_string()),
                        ],
                        system: vec![("$.mid".into(), format!("{n}-{number}"))],
                        body: format!("from {n}").into(),
                    };
                    link.send("temperature", &message).await.expect("is taken");
                }
            };
            tokio::select! {
                ended = &mut connected.runs => panic!("{ended:?}"),
                () = send => {}
            }
        });
    }
    let counted = |n: usize, fate: &str| {
        let report = site.report(n)?;
        report.hub.module?.gate.get(fate).copied()
    };
    until("the owner to forward them", || (counted(owner, "forwarded") == Some(3)).then_some(()));
    for n in (0..3).filter(|n| *n != owner) {
        until("a standby to drop them", || (counted(n, "dropped") == Some(3)).then_some(()));
        assert_eq!(counted(n, "forwarded"), Some(0));
    }
    let messages = until("the hub to have them", || {
        let messages = cloud.emulator.messages();
        (messages.len() >= 3).then_some(messages)
    });
    assert_eq!(messages.len(), 3, "{messages:?}");
    let mut stamps: Vec<(String, String, String)> = messages
        .iter()
        .map(|message| {
            assert_eq!(message.from, Cloud::target(owner, MODULE));
            let of = |name: &str| message.properties.get(name).cloned().unwrap_or_default();
            assert_eq!((of("quorate_epoch"), of("quorate_site")), (epoch.to_string(), "plant-7".to_owned()));
            assert_eq!(message.body, format!("from {owner}"));
            (of("quorate_seq"), of("n"), of("$.mid"))
        })
        .collect();
    stamps.sort();
    let expected = (1..=3).map(|n: u32| (n.to_string(), n.to_string(), format!("{owner}-{n}")));
    assert_eq!(stamps, expected.collect::<Vec<_>>());
}
