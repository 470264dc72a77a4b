//! The service REST API as scripts speak it, by hand: headers, rights, limits, and a deployment that follows a tag.

use quorate::hub::{Target, sas::Credentials};
use serde_json::{Value, json};

use super::{
    http::{https, owner, plain},
    hub::{Site, change},
    python_sdk::{Script, script},
};

#[tokio::test]
async fn what_every_request_is_checked_for() {
    let site = Site::start(&["edge-1"]);
    let token = |string: String| Credentials::parse(&string).expect("a string").token(u64::MAX / 2);
    let (all, service) =
        (token(site.emulator.owner_connection_string()), token(site.emulator.service_connection_string()));
    let ask =
        async |path: &str, token: &str| https(&site, "GET", path, &[("authorization", token)], "").await;
    for (path, status) in [
        ("/twins/edge-1", 400),
        ("/twins/edge-1?api-version=", 400),
        ("/twins/edge-1?api-version=2017-01-01", 400),
        ("/twins/edge-1?api-version=2031-01-01-preview", 200),
        ("/twins/edge-1?api-version=2024-03-31", 200),
        ("/nothing?api-version=2024-03-31", 404),
    ] {
        let answer = ask(path, &all).await;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(answer.header("x-ms-request-id").is_some() && answer.header("date").is_some(), "{answer:?}");
    }
    // The refusal names the right that is missing.
    for (path, right) in [
        ("/devices/edge-1?api-version=2021-04-12", "RegistryRead"),
        ("/configurations?api-version=2021-04-12", "RegistryRead"),
    ] {
        let refused = ask(path, &service).await;
        assert!(refused.status == 401 && refused.body.contains(right), "{refused:?}");
        assert_eq!(refused.header("iothub-errorcode"), Some("IotHubUnauthorizedAccess"));
    }
    site.emulator.stop().await;
}

#[tokio::test]
async fn twins_have_limits_and_etags_in_quotes() {
    let site = Site::start(&["edge-1"]);
    let patch = async |body: Value, headers: &[(&str, &str)]| {
        owner(&site, "PATCH", "/twins/edge-1", headers, &body.to_string()).await
    };
    let deep = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!({ "x": inner }));
    let part = |size: usize| Value::from("x".repeat(size));
    let many = |count: usize| Value::Object((0..count).map(|n| (format!("k{n}"), part(4000))).collect());
    for (body, status) in [
        (json!({"tags": {"a": part(4096)}}), 200),
        (json!({"tags": {"a": part(4097)}}), 400),
        (json!({"tags": {"a": null, "b": many(3)}}), 400),
        (json!({"properties": {"desired": {"b": many(8)}}}), 200),
        (json!({"properties": {"desired": {"c": part(4000)}}}), 400),
        (json!({"properties": {"desired": {"b": null, "d": deep(10)}}}), 200),
        (json!({"properties": {"desired": {"d": deep(11)}}}), 400),
        (json!({"tags": {"a.b": 1}}), 400),
        (json!({"tags": {"a b": 1}}), 400),
        (json!({"properties": {"desired": {"n": 4_503_599_627_370_495_u64}}}), 200),
        (json!({"properties": {"desired": {"n": 4_503_599_627_370_496_u64}}}), 400),
        (json!([]), 400),
    ] {
        let shown: String = body.to_string().chars().take(60).collect();
        let answer = patch(body, &[]).await;
        assert_eq!(answer.status, status, "{shown}: {}", answer.body.chars().take(200).collect::<String>());
    }
    let first = owner(&site, "GET", "/twins/edge-1", &[], "").await;
    let quoted = first.header("etag").expect("an etag").to_owned();
    assert_eq!(Value::from(quoted.trim_matches('"')), first.json()["etag"]);
    let write = || json!({"tags": {"a": 1}});
    assert_eq!(patch(write(), &[("if-match", &quoted)]).await.status, 200);
    let stale = patch(write(), &[("if-match", &quoted)]).await;
    assert_eq!((stale.status, stale.header("iothub-errorcode")), (412, Some("PreconditionFailed")));
    // The trap of the real hub: without quotes it is no condition at all.
    assert_eq!(patch(write(), &[("if-match", quoted.trim_matches('"'))]).await.status, 200);
    site.emulator.stop().await;
}

#[tokio::test]
async fn a_deployment_follows_a_tag_and_leaves_alone_what_others_write() {
    let site = Site::start(&["edge-1", "edge-2"]);
    let content = json!({
        "modulesContent": {
            "$edgeAgent": {"properties.desired": {"modules": {"ha": {}}}},
            "ha": {"properties.desired": {"site": "plant-7"}},
        }
    });
    let body =
        json!({"priority": 5, "targetCondition": "tags.site = 'plant-7'", "content": content}).to_string();
    let made = owner(&site, "PUT", "/configurations/ha-1", &[], &body).await;
    assert_eq!(
        (made.status, made.json()["systemMetrics"]["results"]["targetedCount"].as_u64()),
        (201, Some(0))
    );
    let ha = |device: &str| site.emulator.entry(&Target::module(device, "ha"));
    assert!(ha("edge-1").is_none());
    let tag = change(json!({"tags": {"site": "plant-7"}}));
    site.emulator.meddle(&Target::device("edge-1"), &tag).expect("accepted");
    let first = ha("edge-1").expect("is made");
    assert_eq!(first.twin.desired.values["site"], "plant-7");
    // The sidecar's flag in the same section stays, whatever else happens to the device.
    let flag = change(json!({"properties": {"desired": {"quorate": {"active": true}}}}));
    site.emulator.meddle(&Target::module("edge-1", "ha"), &flag).expect("accepted");
    owner(&site, "PATCH", "/twins/edge-1", &[], r#"{"tags":{"other":1}}"#).await;
    assert_eq!(ha("edge-1").expect("exists").twin.desired.values["quorate"]["active"], true);
    assert!(ha("edge-2").is_none());
    // $edgeAgent says that it has done what it was told.
    let agent = Target::module("edge-1", "$edgeAgent");
    let version = site.emulator.entry(&agent).expect("exists").twin.desired.version;
    let said = json!({"lastDesiredVersion": version, "lastDesiredStatus": {"code": 200}});
    site.emulator.report(&agent, said.as_object().expect("an object")).expect("accepted");
    let shown = owner(&site, "GET", "/configurations/ha-1", &[], "").await.json();
    assert_eq!(
        shown["systemMetrics"]["results"],
        json!({"targetedCount": 1, "appliedCount": 1, "reportedSuccessfulCount": 1, "reportedFailedCount": 0})
    );
    // A rolled-back hub puts it on again, and so does one in which the device was made anew under the same condition.
    site.emulator.meddle(&Target::device("edge-2"), &tag).expect("accepted");
    let before = ha("edge-2").expect("is made");
    site.emulator.rollback(std::time::Duration::from_secs(600));
    assert!(ha("edge-2").is_none() && site.emulator.entry(&Target::device("edge-1")).is_none());
    let admin = site.emulator.admin_address();
    plain(admin, "POST", "/emulator/devices/edge-2", &[], r#"{"act":"create"}"#).await;
    site.emulator.meddle(&Target::device("edge-2"), &tag).expect("accepted");
    assert_eq!(ha("edge-2").expect("is made").twin.desired.values, before.twin.desired.values);
    plain(admin, "POST", "/emulator/devices/edge-2", &[], r#"{"act":"recreate"}"#).await;
    assert!(ha("edge-2").is_none());
    site.emulator.meddle(&Target::device("edge-2"), &tag).expect("accepted");
    assert!(ha("edge-2").is_some());
    let tag = shown["etag"].as_str().expect("an etag");
    let stale = owner(&site, "DELETE", "/configurations/ha-1", &[("if-match", "\"AA==\"")], "").await;
    assert_eq!(stale.status, 412);
    let quoted = format!("\"{tag}\"");
    assert_eq!(
        owner(&site, "DELETE", "/configurations/ha-1", &[("if-match", &quoted)], "").await.status,
        204
    );
    site.emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_iot_hub_for_python_deploys_and_registers_many() {
    let Some(python) = Script::python() else { return };
    let site = Site::start(&[]);
    let arguments = [site.emulator.owner_connection_string(), site.ca_file().to_string_lossy().into_owned()];
    let told = script(python, "configurations_sdk.py", &arguments).await;
    assert!(told.contains("deployments are accepted"), "{told}");
    site.emulator.stop().await;
}
