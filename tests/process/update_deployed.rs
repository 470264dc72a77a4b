//! A rolling update by IoT Hub: the sidecars are modules that each emulated device's edgeAgent keeps, a layered deployment has the
//! next version of them, and the command of `quorate update` only sets a device's tag.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use quorate::{
    clock::BootClock,
    emulator::{EdgeHub, EdgeOptions, Emulator, Image, Options},
    hub::{Change, Target},
    id::DeviceId,
};
use serde_json::{Value, json};

use super::{
    hub::{DEVICES, MODULE, loopback},
    site::{Plan, Site},
    update::{MODEL, Update},
};
use crate::conformance::http::as_owner;

/// What deploy/updates.md tells people to do: the layer, its condition, and the tags that the command sets.
struct Told {
    layer: Value,
    image: String,
    condition: String,
    tags: Value,
}

fn told() -> Told {
    let document = crate::docs::text("deploy/updates.md");
    let between = |begin: &str, end: &str| {
        let (_, rest) = document.split_once(begin).unwrap_or_else(|| panic!("no {begin:?}"));
        rest.split_once(end).expect(begin).0.to_owned()
    };
    let layer: Value = serde_json::from_str(&between("```json\n", "```")).expect("JSON");
    let layer = layer["modulesContent"].clone();
    let image = layer["$edgeAgent"]["properties.desired.modules.quorate"]["settings"]["image"].as_str();
    let image = image.expect("an image").to_owned();
    let tags = serde_json::from_str(&between("--device-id {device} --tags '", "'")).expect("JSON");
    Told { layer, image, condition: between("--target-condition \"", "\""), tags }
}

struct Cloud {
    emulator: Emulator,
    edges: Vec<EdgeHub>,
    _folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

/// A module as deployments name it.
fn module(image: &str) -> Value {
    json!({
        "type": "docker", "status": "running", "restartPolicy": "always",
        "settings": { "image": image, "createOptions": "{\"StopTimeout\":30}" },
    })
}

impl Cloud {
    /// Devices that have the image `quorate:1` and the `next` one, and a deployment of the first for all of them.
    fn start(site: &Site, next: &str) -> Cloud {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let inside = runtime.enter();
        let devices = DEVICES.map(|d| DeviceId::new(d).expect("a name")).into();
        let options = Options { devices, ..Options::default() };
        let emulator =
            Emulator::start(loopback(), loopback(), &options, Arc::new(BootClock)).expect("starts");
        let folder = tempfile::tempdir().expect("a folder");
        let edges = (0..DEVICES.len()).map(|n| {
            let image = |model: &str| {
                let usual = site.environment(n).into_iter().filter(|(name, _)| !name.starts_with("IOTEDGE"));
                let mut environment: BTreeMap<String, String> =
                    usual.map(|(name, value)| (name.to_owned(), value)).collect();
                environment.insert(MODEL.into(), model.into());
                Image {
                    command: [env!("CARGO_BIN_EXE_quorate"), "run"].map(str::to_owned).into(),
                    environment,
                }
            };
            let options = EdgeOptions {
                reconcile_every: Duration::from_millis(50),
                cool_off: Duration::from_millis(10),
                ..EdgeOptions::default()
            };
            let device = DeviceId::new(DEVICES[n]).expect("a name");
            let edge = emulator.serve_edge(&device, loopback(), options).expect("serves");
            let here = folder.path().join(DEVICES[n]);
            std::fs::create_dir(&here).expect("makes the folder");
            let images = [("quorate:1", image("one")), (next, image("two"))];
            edge.run_modules(&here, images.map(|(name, image)| (name.to_owned(), image)).into())
                .expect("runs");
            edge
        });
        let edges = edges.collect();
        drop(inside);
        let cloud = Cloud { emulator, edges, _folder: folder, runtime };
        let modules = Value::Object([(MODULE.to_owned(), module("quorate:1"))].into_iter().collect());
        let base = json!({
            "$edgeAgent": { "properties.desired": { "schemaVersion": "1.1", "modules": modules } },
            "$edgeHub": { "properties.desired": { "schemaVersion": "1.1", "routes": {} } },
        });
        cloud.deploy("base", 10, "tags.site = 'plant-7'", &base);
        for n in 0..DEVICES.len() {
            cloud.tag(n, &json!({ "site": "plant-7" }));
        }
        cloud
    }

    fn deploy(&self, id: &str, priority: u32, condition: &str, modules: &Value) {
        let body = json!({
            "id": id, "priority": priority, "targetCondition": condition, "content": { "modulesContent": modules },
        });
        let path = format!("/configurations/{id}");
        let made = self.runtime.block_on(as_owner(&self.emulator, "PUT", &path, &[], &body.to_string()));
        assert_eq!(made.status, 201, "{made:?}");
    }

    fn tag(&self, n: usize, tags: &Value) {
        let change = Change::from_json(&json!({ "tags": tags })).expect("a change");
        self.emulator.meddle(&Target::device(DEVICES[n]), &change).expect("is taken");
    }

    fn process(&self, n: usize) -> Option<i32> {
        self.edges[n].process(MODULE)
    }
}

#[test]
fn a_layered_deployment_reaches_one_device_after_the_other() {
    let told = told();
    let site = Site::with(Plan { more: "[hub]\nrefresh = \"2s\"\n".into(), ..Plan::default() });
    let cloud = Cloud::start(&site, &told.image);
    let (owner, epoch) = site.owner(0);
    site.reports(owner, "all fingerprints", |r| r.members.iter().all(|m| m.build.contains('+')));
    let before: Vec<_> = (0..3).map(|n| cloud.process(n)).collect();
    // The next version is there for whoever has its tag, and nobody has.
    cloud.deploy("next", 20, &told.condition, &told.layer);
    let mut update = Update::start(&site, &["--timeout", "60s"]);
    let mut touched = Vec::new();
    while let Some(n) = update.next(&site) {
        // As `az iot hub device-twin update` does it: it returns long before the device has heard.
        cloud.tag(n, &told.tags);
        touched.push(n);
        update.answer(0);
    }
    let ended = update.ended();
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.said, ended.told);
    assert_eq!(touched.last(), Some(&owner), "the old owner is the last: {touched:?}");
    assert_eq!(touched.len(), 3);
    let (next, later) = site.owner(epoch);
    assert_eq!((next, later), (touched[0], epoch + 1));
    for (n, before) in before.iter().enumerate() {
        assert!(cloud.process(n).is_some_and(|pid| Some(pid) != *before), "device {n} has a new process");
    }
    assert_eq!(site.runs_without_overlap().len(), 2, "one change of the owner");
}
