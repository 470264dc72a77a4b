//! A workload in a cgroup of its own, and the same without one.
//!
//! Where the machine of the test gives none (not root, no cgroup2), these tests say so and judge what remains.

use std::{path::PathBuf, time::Duration};

use quorate::workload::{HeldBy, Observed, ProcessWorkload, Workload};
use rustix::process::Signal;

use super::{
    not_tested,
    stage::{GRACE, Stage, eventually, grant, now, observed, send},
};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(50);

/// A child in a session of its own, of another parent, that knows nothing of where it comes from.
const GONE_ASTRAY: &str = "(env -i setsid $0 $TICK &) & exec $0 $TICK";

/// Every few milliseconds it is another process, in another session, of another parent. Its environment tells whose it is.
const RESTLESS: &str = "trap '' TERM; r='sleep 0.004; setsid /bin/sh -c \"$1\" x \"$1\" \"$2\" & exit'; \
                        for n in 1 2 3 4; do setsid /bin/sh -c \"$r\" x \"$r\" $FILE & done; exec $0 $TICK";

/// The cgroup below the test's own, if this machine lets one be made.
fn cgroup_of(stage: &Stage) -> Option<PathBuf> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let parent = mounts.into_iter().map(|at| PathBuf::from(at).join(own));
    let parent = parent.into_iter().find(|at| at.join("cgroup.procs").exists())?;
    let probe = parent.join(format!("{}-probe", stage.cgroup_name()));
    std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe)).ok()?;
    Some(parent.join(stage.cgroup_name()))
}

async fn held_by(workload: &ProcessWorkload) -> HeldBy {
    eventually("it is known what holds the workload", || workload.held_by().is_some()).await;
    workload.held_by().expect("known")
}

fn settings(stage: &Stage, script: &str) -> quorate::workload::Settings {
    quorate::workload::Settings { command: stage.shell(script), ..stage.settings() }
}

/// The deadline ends everything, also what has gone astray, with a cgroup and without.
async fn ends_what_has_gone_astray(cgroup: bool) {
    let mut stage = Stage::new(&["--ignore-term"]);
    stage.cgroup = cgroup;
    let may = cgroup_of(&stage);
    let workload = ProcessWorkload::new(&settings(&stage, GONE_ASTRAY), stage.context());
    let expected = if cgroup && may.is_some() { HeldBy::Cgroup } else { HeldBy::Reaper };
    assert_eq!(held_by(&workload).await, expected);
    let until = now() + SECOND * 3;
    workload.start(grant(7, until)).await.expect("starts");
    stage.ticking(2).await;
    if let Some(dir) = may.filter(|_| cgroup) {
        let procs = std::fs::read_to_string(dir.join("cgroup.procs")).expect("a cgroup");
        for pid in stage.survivors() {
            assert!(procs.lines().any(|line| line == pid.to_string()), "{pid} is not in it: {procs}");
        }
    }
    observed(&workload, "it stops by itself", |o| *o == Observed::Stopped).await;
    assert_eq!(stage.survivors(), [0; 0]);
    assert!(stage.last_tick() <= until + GRACE, "{} against {until}", stage.last_tick());
    // And again, after a killing.
    workload.start(grant(8, now() + LONG)).await.expect("starts again");
    stage.ticking(4).await;
    workload.stop().await.expect("stops");
    assert_eq!(stage.survivors(), [0; 0]);
}

#[tokio::test]
async fn what_has_gone_astray_ends_with_its_cgroup() {
    ends_what_has_gone_astray(true).await;
}

#[tokio::test]
async fn what_has_gone_astray_ends_without_a_cgroup() {
    ends_what_has_gone_astray(false).await;
}

#[tokio::test]
async fn what_a_killed_fencer_and_sidecar_leave_is_found_by_its_cgroup() {
    let stage = Stage::new(&["--ignore-term"]);
    let Some(dir) = cgroup_of(&stage) else {
        return not_tested("a cgroup of the workload: this machine gives none");
    };
    let mut sidecar = stage.sidecar_with(LONG, GONE_ASTRAY);
    stage.ticking(2).await;
    send(sidecar.pid(), Signal::STOP);
    stage.fencers().into_iter().for_each(|pid| send(pid, Signal::KILL));
    sidecar.kill();
    eventually("only what went astray is left", || stage.survivors().len() == 1).await;
    let next = stage.again();
    let workload = next.workload();
    workload.ensure_none_running(now() + LONG).await.expect("a fencer");
    assert_eq!(stage.survivors(), [0; 0], "nothing else than its cgroup tells whose it is");
    next.leave.cancel();
    eventually("the cgroup is taken away", || !dir.exists()).await;
}

/// Nothing tells whose it is any more but that it comes to the sidecar when the fencer is gone.
#[tokio::test]
async fn what_has_gone_astray_of_a_lost_fencer_is_ended_without_a_cgroup() {
    let mut stage = Stage::new(&["--ignore-term"]);
    stage.cgroup = false;
    let _sidecar = stage.sidecar_with(LONG, GONE_ASTRAY);
    stage.ticking(2).await;
    let lost = stage.fencers();
    lost.iter().for_each(|pid| send(*pid, Signal::KILL));
    eventually("another fencer serves", || stage.fencers().iter().any(|pid| !lost.contains(pid))).await;
    assert_eq!(stage.survivors(), [0; 0]);
}

#[tokio::test]
async fn what_never_rests_of_a_lost_fencer_is_ended_without_a_cgroup() {
    let mut stage = Stage::new(&[]);
    stage.cgroup = false;
    let _sidecar = stage.sidecar_with(LONG, RESTLESS);
    stage.ticking(1).await;
    eventually("it never rests", || !stage.shells().is_empty()).await;
    let lost = stage.fencers();
    lost.iter().for_each(|pid| send(*pid, Signal::KILL));
    eventually("another fencer serves", || stage.fencers().iter().any(|pid| !lost.contains(pid))).await;
    assert_eq!((stage.survivors(), stage.shells()), (vec![], vec![]));
}

#[tokio::test]
async fn what_never_rests_of_a_killed_fencer_and_sidecar_is_found_without_a_cgroup() {
    let mut stage = Stage::new(&[]);
    stage.cgroup = false;
    let mut sidecar = stage.sidecar_with(LONG, RESTLESS);
    stage.ticking(1).await;
    eventually("it never rests", || !stage.shells().is_empty()).await;
    send(sidecar.pid(), Signal::STOP);
    stage.fencers().into_iter().for_each(|pid| send(pid, Signal::KILL));
    sidecar.kill();
    let workload = stage.workload();
    workload.ensure_none_running(now() + LONG).await.expect("a fencer");
    assert_eq!((stage.survivors(), stage.shells()), (vec![], vec![]));
}

#[tokio::test]
async fn a_lost_fencers_remains_are_killed_by_the_sidecar_at_once() {
    let stage = Stage::new(&["--ignore-term"]);
    if cgroup_of(&stage).is_none() {
        return not_tested("a cgroup of the workload: this machine gives none");
    }
    let workload = ProcessWorkload::new(&settings(&stage, GONE_ASTRAY), stage.context());
    workload.seal().expect("random");
    workload.start(grant(7, now() + LONG)).await.expect("starts");
    stage.ticking(2).await;
    send(stage.fencers()[0], Signal::KILL);
    observed(&workload, "the end is certain", |o| *o == Observed::Stopped).await;
    assert_eq!(stage.survivors(), [0; 0]);
}

/// It forks faster than anybody can look through `/proc`.
#[tokio::test]
async fn a_fork_bomb_ends_in_time() {
    let stage = Stage::new(&[]);
    let Some(dir) = cgroup_of(&stage) else {
        return not_tested("a cgroup of the workload: this machine gives none");
    };
    // Each of eight keeps replacing itself by a child of another session; the number stays, the process ids do not.
    let script = "trap '' TERM; f() { setsid /bin/sh -c \"$1\" x \"$1\" & exit; }; \
                  r='trap \"\" TERM; setsid /bin/sh -c \"$1\" x \"$1\" & exit'; \
                  i=0; while [ $i -lt 8 ]; do setsid /bin/sh -c \"$r\" x \"$r\" & i=$((i+1)); done; exec $0 $TICK";
    let workload = ProcessWorkload::new(&settings(&stage, script), stage.context());
    assert_eq!(held_by(&workload).await, HeldBy::Cgroup);
    let until = now() + SECOND * 3;
    workload.start(grant(7, until)).await.expect("starts");
    stage.ticking(1).await;
    observed(&workload, "it stops by itself", |o| *o == Observed::Stopped).await;
    let stopped = now();
    let procs = std::fs::read_to_string(dir.join("cgroup.events")).expect("a cgroup");
    assert!(procs.contains("populated 0") || procs.contains("populated 1"), "{procs}");
    assert!(stopped <= until + GRACE, "{stopped} against {until}");
    stage.leave.cancel();
    eventually("the cgroup is taken away", || !dir.exists()).await;
}
