//! Another user of the same device tries to lengthen a deadline, to freeze the fencer, to learn its secret, or to pass for it.

use std::{
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::{Command, Output},
    time::Duration,
};

use quorate::workload::Workload as _;

use super::{
    not_tested,
    stage::{GRACE, Stage, grant, now, observed},
};

/// "nobody" on all systems that we build for.
const NOBODY: u32 = 65_534;
const SECOND: Duration = Duration::from_secs(1);

/// What a shell says as another user.
fn as_nobody(script: &str) -> Output {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script]).uid(NOBODY).gid(NOBODY).current_dir("/");
    shell.output().expect("root may become nobody")
}

#[tokio::test]
async fn another_user_of_the_device_cannot_forge_a_deadline() {
    if !rustix::process::geteuid().is_root() {
        return not_tested("forgeries of another user: not root, so there is nobody to become");
    }
    let stage = Stage::new(&["--ignore-term"]);
    // As far as the folder goes, everybody may look in.
    let everybody = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(stage.lock().parent().expect("a folder"), everybody).expect("root may");
    let workload = stage.workload();
    workload.seal().expect("random");
    let until = now() + SECOND * 3;
    workload.start(grant(7, until)).await.expect("starts");
    stage.ticking(1).await;
    let fencer = stage.fencers()[0];
    let later = (until + SECOND * 40).as_nanos();
    let lock = stage.lock().display().to_string();
    assert!(as_nobody("true").status.success(), "what fails below fails for a reason");
    for (what, script) in [
        ("its socket", format!("echo 'EXTEND 7 {later}' > /proc/{fencer}/fd/0")),
        ("the sidecar's end of it", format!("echo > /proc/{}/fd/3", std::process::id())),
        ("its environment", format!("cat /proc/{fencer}/environ")),
        ("its memory", format!("cat /proc/{fencer}/mem")),
        ("freezing it", format!("kill -STOP {fencer}")),
        ("killing it", format!("kill -KILL {fencer}")),
        ("its lock", format!("exec 9<>{lock}")),
        ("its place", format!("exec 9<{lock}")),
        ("its standing", format!("echo 1000 > /proc/{fencer}/oom_score_adj")),
    ] {
        let tried = as_nobody(&script);
        assert!(!tried.status.success(), "{what}: {script}: {tried:?}");
    }
    // Its secret stands nowhere where everybody may look.
    let seen = as_nobody(&format!("cat /proc/{fencer}/cmdline"));
    assert!(
        String::from_utf8_lossy(&seen.stdout).contains("fencer.lock"),
        "a command line is for all: {seen:?}"
    );
    observed(&workload, "it stops at its own deadline", |o| !o.may_run()).await;
    assert_eq!(stage.survivors(), [0; 0]);
    assert!(stage.last_tick() <= until + GRACE, "{} against {until}", stage.last_tick());
}

#[tokio::test]
async fn a_fencer_of_another_user_is_none() {
    if !rustix::process::geteuid().is_root() {
        return not_tested("a fencer of another user: not root, so there is nobody to become");
    }
    let stage = Stage::new(&[]);
    let workload = stage.workload();
    workload.ensure_none_running(now() + SECOND * 30).await.expect("a fencer");
    let ours = stage.fencers();
    // Started with the very command line of the real one, which everybody may read.
    let line = std::fs::read(format!("/proc/{}/cmdline", ours[0])).expect("it lives");
    let words: Vec<String> =
        line.split(|b| *b == 0).skip(1).map(|word| format!("'{}'", String::from_utf8_lossy(word))).collect();
    let forged =
        as_nobody(&format!("exec {} {} < /dev/null", env!("CARGO_BIN_EXE_quorate"), words.join(" ")));
    assert!(!forged.status.success(), "{forged:?}");
    assert_eq!(stage.fencers(), ours);
    workload.start(grant(7, now() + SECOND * 30)).await.expect("the real one serves on");
    workload.stop().await.expect("stops");
}
