//! The real binary against a served door, over TCP and the Unix socket: answers, exit codes, refusals.

use std::{process::Output, time::Duration};

use quorate::status::{
    events::{Event, Kind},
    report::Member,
};

use super::grpc::Grpc;

/// Runs the binary beside the server that this runtime drives.
async fn quorate(arguments: &[&str]) -> Output {
    #[expect(clippy::disallowed_methods, reason = "tests start the real binary")]
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(arguments).env_clear().env("USER", "ann").kill_on_drop(true);
    command.output().await.expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[tokio::test]
async fn leader_answers_with_its_exit_code() {
    let grpc = Grpc::start().await;
    let tcp = format!("http://{}", grpc.address);
    let unix = format!("unix:{}", grpc.folder.path().join("control.sock").display());
    for endpoint in [&tcp, &unix] {
        grpc.puppet.vouch(Some("edge-2"), 17, Duration::from_secs(3600));
        let output = quorate(&["leader", "--endpoint", endpoint]).await;
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "edge-2\n"));

        grpc.puppet.vouch(None, 17, Duration::from_secs(3600));
        let output = quorate(&["leader", "--endpoint", endpoint]).await;
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""));

        grpc.puppet.vouch(Some("edge-2"), 17, Duration::ZERO);
        let output = quorate(&["leader", "--endpoint", endpoint, "--json"]).await;
        assert_eq!(output.status.code(), Some(1));
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!((&answer["known"], &answer["owner"]), (&false.into(), &serde_json::Value::Null));
    }
}

#[tokio::test]
async fn plan_says_whether_any_device_may_be_lost() {
    let grpc = Grpc::start().await;
    let endpoint = format!("http://{}", grpc.address);
    let member = |device: &str, well| Member {
        device: device.into(),
        reachable: well,
        votes: well,
        fit: well,
        ..Member::default()
    };
    let plan = async |well: bool, json: bool| {
        {
            let mut report = grpc.puppet.report.lock().expect("no panic");
            report.members = vec![member("edge-1", true), member("edge-2", true), member("edge-3", well)];
            report.takeover_ms_max = 692;
        }
        let more: &[&str] = if json { &["--json"] } else { &[] };
        quorate(&[&["plan", "--endpoint", &endpoint], more].concat()).await
    };
    let output = plan(true, false).await;
    let expected = "if edge-1 loses power now: edge-2 (or edge-3) takes over in at most 0.7 s;\n";
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).starts_with(expected), "{}", text(&output.stdout));
    let output = plan(false, true).await;
    assert_eq!(output.status.code(), Some(1));
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&plan["survives_any"], &plan["devices"][0]["effect"]), (&false.into(), &"nobody".into()));
}

#[tokio::test]
async fn events_are_listed_the_oldest_first() {
    let grpc = Grpc::start().await;
    let endpoint = format!("http://{}", grpc.address);
    let none = quorate(&["events", "--endpoint", &endpoint]).await;
    assert_eq!((none.status.code(), none.stdout.len()), (Some(0), 0));
    for n in 1..=50 {
        let unix_ms = 1_793_607_330_000 + n;
        let (kind, name) = (Kind::Decision, format!("reason_{n}"));
        grpc.puppet.events.add(Event { unix_ms, kind, name, ..Event::default() });
    }
    let output = quorate(&["events", "-n", "2", "--endpoint", &endpoint]).await;
    let expected = "2026-11-02 08:15:30.049  reason_49\n2026-11-02 08:15:30.050  reason_50\n";
    assert_eq!(text(&output.stdout), expected);
    let output = quorate(&["events", "--json", "--endpoint", &endpoint]).await;
    let lines = text(&output.stdout);
    assert_eq!(lines.lines().count(), 40);
    let last: serde_json::Value = serde_json::from_str(lines.lines().last().expect("one")).expect("JSON");
    assert_eq!(
        (&last["seq"], &last["name"], &last["over"]),
        (&50.into(), &"reason_50".into(), &false.into())
    );
}

#[tokio::test]
async fn status_why_and_transfer_print_what_the_sidecar_says() {
    let grpc = Grpc::start().await;
    let endpoint = format!("http://{}", grpc.address);
    let output = quorate(&["status", "--endpoint", &endpoint]).await;
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).starts_with("owner     edge-1\n"), "{output:?}");
    assert!(!text(&output.stdout).contains('\u{1b}'), "no colour off a terminal");
    let output = quorate(&["status", "--json", "--endpoint", &endpoint]).await;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(status["epoch"], 17);
    let output = quorate(&["why", "--endpoint", &endpoint]).await;
    assert!(text(&output.stdout).contains("epoch 17  edge-1"), "{output:?}");

    let output = quorate(&["transfer", "--to", "edge-2", "--reason", "disk", "--endpoint", &endpoint]).await;
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str()),
        (Some(0), "plant-7: edge-2 owns now, epoch 18\n")
    );
    let output = quorate(&["transfer", "--to", "edge-1", "--endpoint", &endpoint]).await;
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str()),
        (Some(0), "plant-7: edge-1 owns already, epoch 17\n")
    );
    let output = quorate(&["transfer", "--to", "edge-1", "--json", "--endpoint", &endpoint]).await;
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let expected = serde_json::json!({"site": "plant-7", "device": "edge-1", "epoch": 17, "already": true});
    assert_eq!(answer, expected);
    {
        let asked = grpc.puppet.asked.lock().expect("no panic");
        assert_eq!((asked[0].actor.as_str(), asked[0].reason.as_str()), ("ann", "disk"));
    }
    let output = quorate(&["transfer", "--to", "edge-3", "--endpoint", &endpoint]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).starts_with("quorate: edge-3 is a witness and never owns\n  hint: "),
        "{output:?}"
    );
}

#[tokio::test]
async fn orders_print_what_became_of_them() {
    let grpc = Grpc::start().await;
    let endpoint = format!("http://{}", grpc.address);
    for (words, said) in [
        (
            &["pause", "--reason", "switch"][..],
            "plant-7: paused: no device takes over until `quorate resume`\n",
        ),
        (&["resume"], "plant-7: resumed: any fit device may take over again\n"),
        (&["drain", "edge-2"], "plant-7: edge-2 is drained\n"),
        (&["undrain", "edge-2"], "plant-7: edge-2 may own again\n"),
        (&["prefer", "edge-2"], "plant-7: edge-2 is preferred\n"),
        (&["prefer", "--none"], "plant-7: no device is preferred\n"),
        (
            &["drain", "edge-1"],
            "plant-7: edge-1 is drained; by the record it still owns, and the site is paused: \
             `quorate resume` moves the workload, and while it answers `quorate transfer`\n",
        ),
        (&["pause", "--json"], "{\"epoch\":18,\"owner\":null,\"site\":\"plant-7\"}\n"),
    ] {
        let output = quorate(&[words, &["--endpoint", &endpoint]].concat()).await;
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), said), "{words:?}");
    }
    let asked = grpc.puppet.asked.lock().expect("no panic")[0].clone();
    assert_eq!((asked.actor.as_str(), asked.reason.as_str()), ("ann", "switch"));
    let output = quorate(&["drain", "edge-9", "--endpoint", &endpoint]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("quorate: edge-9 is not a member of plant-7\n  hint: "));
}

#[tokio::test]
async fn an_order_is_somebodys_also_where_the_session_has_no_name() {
    let grpc = Grpc::start().await;
    let endpoint = format!("http://{}", grpc.address);
    #[expect(clippy::disallowed_methods, reason = "tests start the real binary")]
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(["pause", "--endpoint", &endpoint]).env_clear().kill_on_drop(true);
    assert!(command.status().await.expect("the binary starts").success());
    let actor = grpc.puppet.asked.lock().expect("no panic")[0].actor.clone();
    let uid = rustix::process::getuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mine = passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid.to_string()));
    let name = mine.map_or_else(|| format!("uid {uid}"), |line| line.split(':').take(1).collect());
    assert_eq!(actor, name);
}

#[tokio::test]
async fn what_no_order_can_carry_is_said_with_what_to_write_instead() {
    let grpc = Grpc::start().await;
    let endpoint = format!("http://{}", grpc.address);
    for (words, said, hint) in [
        (
            &["pause", "--reason", "two\nlines"][..],
            "--reason holds the control character '\\n'",
            "one plain line",
        ),
        (&["transfer", "--reason", "\u{1b}[2J"], "the control character '\\u{1b}'", "one plain line"),
        (&["drain", "edge-2\n"], "\"edge-2\\n\" is no device id: it holds '\\n'", "`quorate status`"),
        (&["transfer", "--to", "\u{7}"], "\"\\u{7}\" is no device id", "`quorate status`"),
    ] {
        let output = quorate(&[words, &["--endpoint", &endpoint]].concat()).await;
        let (message, advice) = text(&output.stderr)
            .split_once("\n  hint: ")
            .map(|(m, h)| (m.to_owned(), h.to_owned()))
            .expect("a hint");
        assert_eq!(output.status.code(), Some(64), "{message}");
        assert!(message.contains(said) && advice.contains(hint), "{message:?} {advice:?}");
        assert!(!message.chars().any(char::is_control), "{message:?}");
    }
    assert!(grpc.puppet.asked.lock().expect("no panic").is_empty(), "no sidecar was bothered");
}

#[tokio::test]
async fn what_is_no_sidecar_is_said_to_be_none() {
    #[expect(
        clippy::disallowed_methods,
        reason = "the test is the environment that hands in listener and task"
    )]
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let stop = tokio_util::sync::CancellationToken::new();
    let web = quorate::status::server::serve(
        listener,
        super::Puppet::new(),
        quorate::status::metrics::Metrics::new(),
        stop.clone(),
    );
    let ask = async {
        let output = quorate(&["leader", "--endpoint", &endpoint]).await;
        stop.cancel();
        output
    };
    let (output, ()) = tokio::join!(ask, web);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(text(&output.stderr).starts_with("quorate: cannot reach the sidecar at"), "{output:?}");
}
