//! Attacks on what is undone behind a workload, and on what is told of it, with real processes.

use std::{fs, time::Duration};

use quorate::workload::{Kind, ProcessWorkload, Settings};

use super::stage::{Stage, now};

const PATIENCE: Duration = Duration::from_secs(30);

fn script(text: &str) -> Vec<String> {
    ["/bin/sh", "-c", text].map(str::to_owned).into()
}

/// What undoes the workload is the operator's command as much as the workload is: nothing of the fencer's standing is its own.
#[tokio::test]
async fn what_undoes_is_an_ordinary_process() {
    let stage = Stage::new(&[]);
    let out = tempfile::tempdir().expect("a folder");
    let file = out.path().join("standing");
    let undo = script(&format!("cat /proc/self/oom_score_adj /proc/self/stat > {}", file.display()));
    let settings = Settings { undo, ..stage.settings() };
    let workload = ProcessWorkload::new(&settings, stage.context());
    workload.ensure_none_running(now() + PATIENCE).await.expect("ready");
    let text = fs::read_to_string(&file).expect("it was undone at the start");
    let (oom, stat) = text.split_once('\n').expect("two lines");
    let rest = stat.rsplit_once(')').expect("a name").1;
    let field = |n: usize| rest.split_ascii_whitespace().nth(n - 3).expect("long enough").to_owned();
    let own = fs::read_to_string("/proc/self/oom_score_adj").expect("a /proc");
    // oom_score_adj, niceness, scheduling class.
    assert_eq!((oom, &*field(19), &*field(41)), (own.trim(), "0", "0"));
}

/// What an earlier life has left is undone by the command that belongs to it, whatever the configuration says since; then by the present one.
#[tokio::test]
async fn what_an_earlier_life_has_left_is_undone_by_its_own_command() {
    let stage = Stage::new(&[]);
    let out = tempfile::tempdir().expect("a folder");
    let file = out.path().join("undone");
    let undo = |what: &str| script(&format!("echo {what} >> {}", file.display()));
    let lives = [(undo("first"), "first"), (undo("first"), "first"), (undo("second"), "first second")];
    // Taken out of the configuration, and there is nothing in it that could undo what is left.
    for (undo, expected) in lives.into_iter().chain([(Vec::new(), "second"), (Vec::new(), "")]) {
        let life = stage.again();
        let settings = Settings { undo, ..stage.settings() };
        let workload = ProcessWorkload::new(&settings, life.context());
        workload.ensure_none_running(now() + PATIENCE).await.expect("ready");
        let undone = fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(undone.split_whitespace().collect::<Vec<_>>().join(" "), expected);
        let _ = fs::remove_file(&file);
        drop(workload);
    }
    // Nobody knows what is to be undone.
    fs::write(stage.context().data.join("workload-undo"), "rubbish").expect("writes");
    let life = stage.again();
    let workload = ProcessWorkload::new(&stage.settings(), life.context());
    let refused = workload.ensure_none_running(now() + PATIENCE).await.expect_err("is refused").to_string();
    assert!(refused.contains("workload-undo") && refused.contains("by hand"), "{refused}");
}

/// What the workload is told is its business, and so is what undoes it: conditions go to everybody who asks.
#[tokio::test]
async fn a_condition_does_not_tell_the_arguments_of_what_undoes() {
    let stage = Stage::new(&[]);
    let mut undo = script("exit 3");
    undo.extend(["--password".into(), "hunter2-of-the-switch".into()]);
    let settings = Settings { kind: Kind::Process, undo, ..stage.settings() };
    let workload = ProcessWorkload::new(&settings, stage.context());
    let mut conditions = workload.conditions();
    let raised = tokio::time::timeout(PATIENCE, conditions.wait_for(|raised| !raised.is_empty())).await;
    let raised = raised.expect("soon").expect("the driver lives").clone();
    assert!(!format!("{raised:?}").contains("hunter2"), "{raised:?}");
}

/// IoT Edge's daemon calls a module `stopped` that Docker has paused or is about to restart (edgelet-docker, module.rs), and tells the
/// difference in the description alone. What only stands still has not ended.
#[tokio::test]
async fn a_paused_module_is_not_taken_for_one_that_has_ended() {
    use std::io::{Read as _, Write as _};

    use quorate::workload::runtime::{Api, Runtime};
    for description in ["paused", "restarting"] {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("mgmt.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("binds");
        let body = format!(
            "{{\"name\":\"pump\",\"type\":\"docker\",\"config\":{{\"settings\":{{\"image\":\"i\"}},\"env\":[]}},\"status\":{{\
             \"exitStatus\":{{\"exitTime\":\"0001-01-01T00:00:00Z\",\"statusCode\":\"0\"}},\
             \"runtimeStatus\":{{\"status\":\"stopped\",\"description\":\"{description}\"}}}}}}"
        );
        let daemon = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a caller");
            let _ = stream.read(&mut [0; 2048]);
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
        });
        let runtime = Runtime::new(Api::Edge, socket, "pump").expect("a client");
        let seen = runtime.look().await.expect("answers").expect("is there");
        daemon.join().expect("answered");
        assert!(seen.runs, "{description}");
    }
}
