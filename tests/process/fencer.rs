//! What the fencer promises, whatever happens to the sidecar, to the workload or to the fencer itself.
//!
//! Every judgement compares moments of the boot clock that the workload recorded with the deadline that it had; none
//! asks how fast the machine was.

use std::{
    io::{Read, Write},
    time::Duration,
};

use quorate::{
    condition::Condition,
    workload::{Error, Observed, Workload},
};
use rustix::process::Signal;

use super::stage::{GRACE, Stage, epoch, eventually, grant, now, observed, send};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(50);

/// The deadline comes, nobody says anything, and the workload in all its variants is gone by deadline plus grace.
async fn ends_at_its_deadline(flags: &[&str], processes: usize) {
    let stage = Stage::new(flags);
    let workload = stage.workload();
    let until = now() + SECOND * 3;
    workload.start(grant(7, until)).await.expect("starts");
    stage.ticking(processes).await;
    observed(&workload, "it stops by itself", |o| *o == Observed::Stopped).await;
    assert_eq!(stage.survivors(), [0; 0]);
    assert!(stage.last_tick() <= until + GRACE, "{} against {until}", stage.last_tick());
    assert!(now() >= until, "it was stopped before its time");
}

#[tokio::test]
async fn the_deadline_passes_without_any_message() {
    ends_at_its_deadline(&[], 1).await;
}

#[tokio::test]
async fn the_deadline_passes_and_the_workload_ignores_term() {
    ends_at_its_deadline(&["--ignore-term"], 1).await;
}

#[tokio::test]
async fn the_deadline_passes_for_a_forked_child() {
    ends_at_its_deadline(&["--fork-child", "--ignore-term"], 2).await;
}

#[tokio::test]
async fn the_deadline_passes_for_a_child_that_left_the_group() {
    ends_at_its_deadline(&["--fork-child", "--escape", "--ignore-term"], 2).await;
}

#[tokio::test]
async fn a_frozen_sidecar_keeps_nothing_alive() {
    let stage = Stage::new(&["--fork-child"]);
    let mut sidecar = stage.sidecar(SECOND);
    stage.ticking(2).await;
    sidecar.freeze().await;
    stage.gone().await;
    assert!(stage.last_tick() <= stage.last_until() + GRACE);
    sidecar.kill();
    eventually("the fencer ends after its sidecar", || stage.fencers().is_empty()).await;
}

#[tokio::test]
async fn a_thawed_fencer_acts_at_once() {
    let stage = Stage::new(&["--ignore-term"]);
    let sidecar = stage.sidecar(SECOND);
    stage.ticking(1).await;
    sidecar.freeze().await;
    send(stage.fencers()[0], Signal::STOP);
    let past = stage.last_until() + GRACE;
    eventually("the deadline is long over", || now() > past).await;
    assert_eq!(stage.survivors().len(), 1, "nobody was there to end it");
    let thawed = now();
    send(stage.fencers()[0], Signal::CONT);
    stage.gone().await;
    // The time for TERM was over too: it is killed without another grace.
    assert!(stage.last_tick() <= thawed + GRACE / 2, "{} against {thawed}", stage.last_tick());
}

#[tokio::test]
async fn a_frozen_workload_is_ended_too() {
    let stage = Stage::new(&["--fork-child"]);
    let workload = stage.workload();
    let until = now() + SECOND * 2;
    workload.start(grant(7, until)).await.expect("starts");
    stage.ticking(2).await;
    stage.survivors().into_iter().for_each(|pid| send(pid, Signal::STOP));
    observed(&workload, "it stops by itself", |o| *o == Observed::Stopped).await;
    assert_eq!(stage.survivors(), [0; 0]);
    assert!(stage.last_tick() <= until + GRACE);
}

#[tokio::test]
async fn a_chatty_workload_with_nobody_reading_still_ends() {
    let stage = Stage::new(&["--chatty", "--ignore-term"]);
    let sidecar = stage.sidecar(SECOND);
    stage.ticking(1).await;
    sidecar.freeze().await;
    stage.gone().await;
    assert!(stage.last_tick() <= stage.last_until() + GRACE);
}

#[tokio::test]
async fn a_killed_sidecar_takes_the_workload_with_it_at_once() {
    let stage = Stage::new(&["--fork-child"]);
    let mut sidecar = stage.sidecar(LONG);
    stage.ticking(2).await;
    let killed = now();
    sidecar.kill();
    eventually("the fencer has ended too", || stage.fencers().is_empty()).await;
    assert_eq!(stage.survivors(), [0; 0]);
    assert!(stage.last_tick() <= killed + GRACE, "{} against {killed}", stage.last_tick());
    assert!(stage.last_until() > killed + GRACE, "the lease alone would have ended it");
}

/// Speaks with a fencer by hand; it must not matter what is said, only that nothing runs afterwards.
async fn ends_upon(said: &[u8]) {
    let stage = Stage::new(&["--ignore-term"]);
    let (mut socket, mut fencer) = stage.bare_fencer();
    let start = format!("START 7 {}\n", (now() + LONG).as_nanos());
    socket.write_all(start.as_bytes()).expect("a fencer listens");
    stage.ticking(1).await;
    let spoke = now();
    socket.write_all(said).expect("a fencer listens");
    eventually("the fencer ends", || fencer.try_wait().expect("a child").is_some()).await;
    assert_eq!(stage.survivors(), [0; 0]);
    assert!(stage.last_tick() <= spoke + GRACE);
    let mut heard = String::new();
    socket.read_to_string(&mut heard).expect("all that was said");
    assert!(heard.starts_with("LOOSE none is wanted\nREADY\nRUNNING 7 "), "{heard}");
}

#[tokio::test]
async fn a_sidecar_that_talks_nonsense_is_no_sidecar() {
    ends_upon(b"EXTEND 7 forever\n").await;
}

#[tokio::test]
async fn a_sidecar_that_never_ends_its_line_is_no_sidecar() {
    ends_upon(&[b'1'; 5000]).await;
}

#[tokio::test]
async fn the_workload_sees_its_contract_and_no_secret_of_the_sidecar() {
    let stage = Stage::new(&[]);
    let _sidecar = stage.sidecar(LONG);
    stage.ticking(1).await;
    let pid = stage.ticks()[0].pid;
    let environ = std::fs::read(format!("/proc/{pid}/environ")).expect("it lives");
    let environ = String::from_utf8(environ).expect("plain");
    let mut ours: Vec<&str> = environ.split('\0').filter(|v| v.starts_with("QUORATE_")).collect();
    ours.sort_unstable();
    assert_eq!(
        ours[..4],
        [
            "QUORATE_CONTROL_SOCKET=/run/quorate/control.sock",
            "QUORATE_DEVICE=edge-1",
            "QUORATE_EPOCH=7",
            ours[3],
        ]
    );
    assert!(ours[3].starts_with("QUORATE_FENCE="), "{ours:?}");
    assert_eq!(ours[4..], ["QUORATE_SITE=plant-7"]);
    // The workload must not be able to talk to the sidecar as its fencer, nor hold the lock: besides the pipes that
    // take its output, nothing that the fencer has open may be open here.
    let open = |pid: &dyn std::fmt::Display| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives");
        let links = fds.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
        links.filter(|link| !link.to_string_lossy().starts_with("pipe:")).collect::<Vec<_>>()
    };
    let fencers = open(&stage.fencers()[0]);
    assert!(fencers.iter().any(|fd| fd.ends_with(quorate::workload::process::LOCK_FILE)), "{fencers:?}");
    let shared: Vec<_> = open(&pid).into_iter().filter(|fd| fencers.contains(fd)).collect();
    assert!(
        shared.iter().all(|fd| fd.starts_with("/dev/null") || fd.starts_with("anon_inode:")),
        "{shared:?}"
    );
    let input = std::fs::read_link(format!("/proc/{pid}/fd/0")).expect("it lives");
    assert_eq!(input.to_str(), Some("/dev/null"));
}

#[tokio::test]
async fn extending_keeps_it_running_and_an_earlier_moment_changes_nothing() {
    let stage = Stage::new(&[]);
    let workload = stage.workload();
    workload.ensure_none_running(now() + LONG).await.expect("a fencer");
    let first = now() + SECOND;
    workload.start(grant(7, first)).await.expect("starts");
    let last = first + GRACE + SECOND;
    workload.extend(last);
    workload.extend(first);
    workload.extend(now());
    observed(&workload, "it stops by itself", |o| *o == Observed::Stopped).await;
    assert!(stage.last_tick() > first + GRACE, "it was not extended");
    assert!(stage.last_tick() <= last + GRACE);
    assert_eq!(stage.survivors(), [0; 0]);
}

#[tokio::test]
async fn it_can_be_started_again_under_the_next_epoch() {
    let stage = Stage::new(&[]);
    let workload = stage.workload();
    for n in 1..=3 {
        workload.start(grant(n, now() + LONG)).await.expect("starts");
        let pid = match &*workload.observe().borrow() {
            Observed::Running { epoch: e, pid: Some(pid) } if *e == epoch(n) => *pid,
            other => panic!("{other:?}"),
        };
        eventually("it ticks", || stage.ticks().iter().any(|t| t.epoch == epoch(n) && t.pid == pid)).await;
        let refused = workload.start(grant(n + 10, now() + LONG)).await;
        assert!(matches!(refused, Err(Error::Fencer(_))), "{refused:?}");
        workload.start(grant(n, now() + LONG)).await.expect("the same epoch again is an extension");
        workload.stop().await.expect("stops");
        assert_eq!(stage.survivors(), [0; 0]);
    }
    let runs = quorate::workload::ticks::runs(&stage.ticks());
    assert_eq!(runs.len(), 3);
    assert_eq!(quorate::workload::ticks::overlaps(&runs), []);
}

#[tokio::test]
async fn a_start_with_a_passed_deadline_is_refused() {
    let stage = Stage::new(&[]);
    let workload = stage.workload();
    workload.ensure_none_running(now() + LONG).await.expect("a fencer");
    let late = workload.start(grant(7, now())).await;
    assert!(matches!(late, Err(Error::Late)), "{late:?}");
    assert_eq!(*workload.observe().borrow(), Observed::Stopped);
    workload.stop().await.expect("what is stopped is stopped");
    assert_eq!(stage.ticks(), []);
}

#[tokio::test]
async fn stop_is_confirmed_only_when_all_are_gone() {
    let stage = Stage::new(&["--ignore-term", "--fork-child", "--escape"]);
    let workload = stage.workload();
    workload.start(grant(7, now() + LONG)).await.expect("starts");
    stage.ticking(2).await;
    let told = now();
    workload.stop().await.expect("stops");
    assert_eq!(stage.survivors(), [0; 0]);
    assert_eq!(*workload.observe().borrow(), Observed::Stopped);
    assert!(stage.last_tick() <= told + GRACE);
    workload.stop().await.expect("twice is once");
}

#[tokio::test]
async fn a_workload_that_ends_is_restarted_with_growing_pauses() {
    let stage = Stage::new(&["--exit-after-ms", "40"]);
    let workload = stage.workload();
    workload.start(grant(7, now() + LONG)).await.expect("starts");
    let third =
        |o: &Observed| matches!(o, Observed::BackingOff { failures: 3, last, .. } if last == "exit code 3");
    observed(&workload, "the third failure", third).await;
    let raised: Vec<_> = workload.conditions().borrow().iter().map(|raised| raised.name).collect();
    assert_eq!(raised, [Condition::WorkloadCrashing]);
    workload.stop().await.expect("stops");
    assert!(workload.conditions().borrow().is_empty());

    let ticks = stage.ticks();
    let mut lives: Vec<(u32, _, _)> = Vec::new();
    for tick in &ticks {
        match lives.last_mut() {
            Some((pid, _, last)) if *pid == tick.pid => *last = tick.at,
            _ => lives.push((tick.pid, tick.at, tick.at)),
        }
    }
    assert_eq!(lives.len(), 3, "{lives:?}");
    let pauses: Vec<_> = lives.windows(2).map(|two| two[1].1.since(two[0].2)).collect();
    assert!(pauses[0] >= Duration::from_millis(200) && pauses[1] >= Duration::from_millis(400), "{pauses:?}");
}

#[tokio::test]
async fn what_a_crashed_workload_leaves_behind_is_ended_before_the_next_try() {
    let stage = Stage::new(&["--exit-after-ms", "200", "--fork-child", "--escape", "--ignore-term"]);
    let workload = stage.workload();
    workload.start(grant(7, now() + LONG)).await.expect("starts");
    stage.ticking(2).await;
    observed(&workload, "the first failure", |o| matches!(o, Observed::BackingOff { .. })).await;
    eventually("the next try ticks", || {
        let mut pids: Vec<u32> = stage.ticks().iter().map(|tick| tick.pid).collect();
        pids.sort_unstable();
        pids.dedup();
        pids.len() >= 3
    })
    .await;
    workload.stop().await.expect("stops");
    assert_eq!(stage.survivors(), [0; 0]);
    let lives = stage.ticks();
    let first = lives[0].pid;
    let forked = lives.iter().find(|t| t.pid != first).expect("the child ticked").pid;
    let (old, new): (Vec<_>, Vec<_>) = lives.iter().partition(|t| t.pid == first || t.pid == forked);
    assert!(old.iter().all(|old| new.iter().all(|new| old.at < new.at)), "{lives:?}");
}

#[tokio::test]
async fn a_command_that_does_not_exist_cannot_start() {
    let stage = Stage::new(&[]);
    let mut settings = stage.settings();
    settings.command = vec!["/no/such/program".into(), "--flag".into()];
    let workload = quorate::workload::ProcessWorkload::new(&settings, stage.context());
    let refused = workload.start(grant(7, now() + LONG)).await;
    match &refused {
        Err(Error::CannotStart { program, reason }) => {
            assert_eq!(program, "/no/such/program");
            assert!(reason.contains("No such file"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    let tried_again = |o: &Observed| matches!(o, Observed::BackingOff { failures: 2, .. });
    let text = observed(&workload, "a second try", tried_again).await;
    assert!(format!("{text:?}").contains("cannot start: "), "{text:?}");
    let raised = workload.conditions().borrow().clone();
    assert!(raised.iter().any(|raised| raised.name == Condition::WorkloadCannotStart), "{raised:?}");
    workload.stop().await.expect("stops");
}

#[tokio::test]
async fn a_missing_working_dir_is_named() {
    let stage = Stage::new(&[]);
    let mut settings = stage.settings();
    settings.working_dir = Some("/no/such/folder".into());
    let workload = quorate::workload::ProcessWorkload::new(&settings, stage.context());
    let refused = workload.start(grant(7, now() + LONG)).await.expect_err("cannot");
    assert!(refused.to_string().contains("working_dir /no/such/folder"), "{refused}");
    workload.stop().await.expect("stops");
}

#[tokio::test]
async fn a_killed_fencer_takes_all_of_the_workload_with_it() {
    let stage = Stage::new(&["--fork-child", "--ignore-term"]);
    let workload = stage.workload();
    workload.start(grant(7, now() + LONG)).await.expect("starts");
    stage.ticking(2).await;
    let fencer = stage.fencers();
    assert_eq!(fencer.len(), 1);
    send(fencer[0], Signal::KILL);
    observed(&workload, "the end is certain", |o| *o == Observed::Stopped).await;
    assert_eq!(stage.survivors(), [0; 0]);
    let raised: Vec<_> = workload.conditions().borrow().iter().map(|raised| raised.name).collect();
    assert_eq!(raised, [Condition::FencerLost]);
    workload.start(grant(8, now() + LONG)).await.expect("the next fencer serves");
    assert_ne!(stage.fencers(), fencer);
    workload.stop().await.expect("stops");
}

#[tokio::test]
async fn a_frozen_fencer_is_killed_by_the_sidecar() {
    let stage = Stage::new(&[]);
    let workload = stage.workload();
    workload.start(grant(7, now() + SECOND * 2)).await.expect("starts");
    stage.ticking(1).await;
    send(stage.fencers()[0], Signal::STOP);
    observed(&workload, "the end is certain", |o| *o == Observed::Stopped).await;
    assert_eq!(stage.survivors(), [0; 0]);
}

#[tokio::test]
async fn nothing_starts_while_an_earlier_life_still_runs() {
    let stage = Stage::new(&["--ignore-term", "--fork-child"]);
    let mut sidecar = stage.sidecar(LONG);
    stage.ticking(2).await;
    sidecar.freeze().await;
    let next = stage.again();
    let workload = next.workload();
    let refused = workload.ensure_none_running(now() + Duration::from_millis(300)).await;
    assert!(matches!(refused, Err(Error::Fencer(_))), "{refused:?}");
    assert!(workload.observe().borrow().may_run(), "nobody can know that nothing runs");
    sidecar.kill();
    workload.ensure_none_running(now() + LONG).await.expect("the old fencer has done its work");
    assert_eq!(stage.survivors(), [0; 0]);
    let clean = now();
    assert!(stage.last_tick() < clean);
    workload.start(grant(8, now() + LONG)).await.expect("starts");
    stage.ticking(2).await;
    workload.stop().await.expect("stops");
    assert!(stage.ticks().iter().filter(|tick| tick.epoch == epoch(8)).all(|tick| tick.at > clean));
}

#[tokio::test]
async fn orphans_of_a_killed_fencer_and_a_killed_sidecar_are_ended_first() {
    let stage = Stage::new(&["--ignore-term", "--fork-child", "--escape"]);
    let mut sidecar = stage.sidecar(LONG);
    stage.ticking(2).await;
    // Frozen first, so that it cannot start another fencer in between.
    sidecar.freeze().await;
    send(stage.fencers()[0], Signal::KILL);
    sidecar.kill();
    eventually("only the forked child lives", || stage.survivors().len() == 1).await;
    let next = stage.again();
    // Also where nothing is to be started any more.
    let none = quorate::workload::Settings::default();
    let opened = quorate::workload::open(&none, next.context(), now() + LONG).await.expect("cleans up");
    assert_eq!(stage.survivors(), [0; 0]);
    assert_eq!(*opened.workload.observe().borrow(), Observed::Stopped);
}

#[tokio::test]
async fn an_opened_workload_is_ready_and_stopped() {
    let stage = Stage::new(&[]);
    let opened =
        quorate::workload::open(&stage.settings(), stage.context(), now() + LONG).await.expect("opens");
    assert_eq!(*opened.workload.observe().borrow(), Observed::Stopped);
    opened.workload.start(grant(7, now() + LONG)).await.expect("starts");
    stage.ticking(1).await;
    opened.workload.stop().await.expect("stops");
    assert_eq!(stage.survivors(), [0; 0]);
}

#[tokio::test]
async fn leaving_stops_the_workload_and_the_fencer() {
    let stage = Stage::new(&["--fork-child"]);
    let workload = stage.workload();
    workload.start(grant(7, now() + LONG)).await.expect("starts");
    stage.ticking(2).await;
    stage.leave.cancel();
    stage.tracker.close();
    stage.tracker.wait().await;
    assert_eq!(*workload.observe().borrow(), Observed::Stopped);
    assert_eq!(stage.survivors(), [0; 0]);
    assert_eq!(stage.fencers(), [0; 0]);
    assert!(workload.start(grant(8, now() + LONG)).await.is_err());
}

#[tokio::test]
async fn a_data_folder_that_cannot_hold_the_lock_is_named() {
    let stage = Stage::new(&[]);
    let mut context = stage.context();
    context.data = context.data.join("missing");
    let workload = quorate::workload::ProcessWorkload::new(&stage.settings(), context);
    let refused = workload.ensure_none_running(now() + LONG).await.expect_err("no folder");
    assert!(refused.to_string().contains("No such file"), "{refused}");
    let refused = workload.start(grant(7, now() + LONG)).await.expect_err("no fencer");
    assert!(matches!(refused, Error::Fencer(_)), "{refused}");
}
