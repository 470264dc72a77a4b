//! The fencer is the last line: what happens when the fencer itself is killed, frozen, or left over from an earlier life.
//!
//! As in `fencer.rs`, moments of the boot clock are compared with deadlines; nothing asks how fast the machine was.

use std::time::Duration;

use quorate::{
    condition::Condition,
    timing::{self, Timing},
    workload::{Error, Observed, ProcessWorkload, Workload},
};
use rustix::process::Signal;

use super::stage::{GRACE, Stage, epoch, eventually, grant, now, observed, send};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(50);

fn raised(workload: &ProcessWorkload) -> Vec<Condition> {
    workload.conditions().borrow().iter().map(|raised| raised.name).collect()
}

#[tokio::test]
async fn what_a_killed_fencer_leaves_is_killed_also_if_there_is_no_other_fencer() {
    let stage = Stage::new(&["--fork-child", "--escape", "--ignore-term"]);
    let mut context = stage.context();
    let program = context.data.join("quorate");
    std::fs::copy(env!("CARGO_BIN_EXE_quorate"), &program).expect("copies");
    context.program = Some(program.clone());
    let workload = ProcessWorkload::new(&stage.settings(), context);
    workload.seal().expect("random");
    workload.start(grant(7, now() + LONG)).await.expect("starts");
    stage.ticking(2).await;
    std::fs::remove_file(&program).expect("removes");
    send(stage.fencers()[0], Signal::KILL);
    stage.gone().await;
    eventually("it is known", || workload.burned() == Some(epoch(7))).await;
    assert!(workload.observe().borrow().may_run(), "only a fencer can confirm the end");
    assert_eq!(raised(&workload), [Condition::FencerLost]);
}

#[tokio::test]
async fn a_frozen_fencer_is_noticed_long_before_the_lease_ends() {
    let stage = Stage::new(&["--fork-child", "--escape", "--ignore-term"]);
    let workload = stage.workload();
    workload.seal().expect("random");
    let until = now() + LONG;
    workload.start(grant(7, until)).await.expect("starts");
    stage.ticking(2).await;
    let fencer = stage.fencers();
    send(fencer[0], Signal::STOP);
    observed(&workload, "the end is certain", |o| *o == Observed::Stopped).await;
    assert!(now() < until);
    assert_eq!(stage.survivors(), [0; 0]);
    assert!(!stage.fencers().contains(&fencer[0]), "a stopped process can be killed");
    assert_eq!(raised(&workload), [Condition::FencerLost]);
    let refused = workload.start(grant(7, until)).await;
    assert!(matches!(refused, Err(Error::Burned(e)) if e == epoch(7)), "{refused:?}");
    workload.seal().expect("random");
    workload.start(grant(8, now() + LONG)).await.expect("another claim, another fencer");
    workload.stop().await.expect("stops");
}

#[tokio::test]
async fn a_fencer_that_freezes_near_the_end_of_the_lease_is_killed_within_the_grace() {
    let stage = Stage::new(&["--fork-child", "--escape", "--ignore-term"]);
    let mut context = stage.context();
    // So long that no sign of life is missed before the lease ends.
    let timing = timing::Settings { hold: LONG, stop_grace: GRACE, ..timing::Settings::default() };
    context.timing = Timing::new(&timing).expect("consistent");
    let workload = ProcessWorkload::new(&stage.settings(), context);
    workload.ensure_none_running(now() + LONG).await.expect("a fencer");
    let until = now() + SECOND * 3;
    workload.start(grant(7, until)).await.expect("starts");
    stage.ticking(2).await;
    send(stage.fencers()[0], Signal::STOP);
    observed(&workload, "the end is certain", |o| *o == Observed::Stopped).await;
    assert_eq!(stage.survivors(), [0; 0]);
    let last = stage.last_tick();
    assert!(until <= last && last <= until + GRACE, "{last} against {until}");
}

#[tokio::test]
async fn a_frozen_fencer_of_an_earlier_life_is_killed_when_its_lease_must_be_over() {
    let stage = Stage::new(&["--fork-child", "--escape", "--ignore-term"]);
    let mut sidecar = stage.sidecar(LONG);
    stage.ticking(2).await;
    sidecar.freeze().await;
    let old = stage.fencers();
    send(old[0], Signal::STOP);
    sidecar.kill();
    let next = stage.again();
    let workload = next.workload();
    let early = workload.ensure_none_running(now() + GRACE / 2).await;
    assert!(early.is_err(), "it may be busy ending its workload");
    assert_eq!(stage.survivors().len(), 2);
    workload.ensure_none_running(now() + LONG).await.expect("it was killed");
    assert_eq!(stage.survivors(), [0; 0]);
    assert!(!stage.fencers().contains(&old[0]));
    workload.start(grant(8, now() + LONG)).await.expect("starts");
    workload.stop().await.expect("stops");
}

#[tokio::test]
async fn fencers_that_are_lost_again_and_again_are_replaced_after_growing_rests() {
    let stage = Stage::new(&[]);
    let workload = stage.workload();
    let mut rests = Vec::new();
    for n in 1..=4 {
        workload.start(grant(n, now() + LONG)).await.expect("starts");
        let killed = now();
        send(stage.fencers()[0], Signal::KILL);
        observed(&workload, "it is noticed", |o| matches!(o, Observed::Stopping { .. })).await;
        observed(&workload, "the end is certain", |o| *o == Observed::Stopped).await;
        rests.push(now().since(killed));
    }
    for (rest, at_least) in rests.iter().zip([0, 200, 400, 800]) {
        assert!(*rest >= Duration::from_millis(at_least), "{rests:?}");
    }
}
