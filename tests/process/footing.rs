//! The fencer is killed last and runs first; its workload is an ordinary process; a starved sidecar changes nothing.

use std::{process::Stdio, time::Duration};

use quorate::workload::Workload as _;

use super::{
    not_tested,
    stage::{GRACE, Stage, grant, now},
};

const SECOND: Duration = Duration::from_secs(1);
/// Numbers of capabilities(7).
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_NICE: u32 = 23;
const CAP_SYS_RESOURCE: u32 = 24;

/// Whether this process, and so whatever it starts, has that capability.
fn may(capability: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("a /proc");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("a line");
    u64::from_str_radix(line.trim(), 16).expect("digits") >> capability & 1 == 1
}

/// What `/proc` says: oom_score_adj, niceness, scheduling class (0 ordinary, 2 round robin), memory that is locked.
#[derive(Debug, PartialEq, Eq)]
struct Standing {
    oom: i32,
    nice: i32,
    class: u32,
    locked_kib: u64,
}

fn standing(pid: i32) -> Standing {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).expect("it lives");
    let stat = read("stat");
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    // Counted from the state, which is the third field in proc(5).
    let field = |n: usize| after_name.split_ascii_whitespace().nth(n - 3).expect("long enough");
    let status = read("status");
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).expect("a line");
    Standing {
        oom: read("oom_score_adj").trim().parse().expect("a number"),
        nice: field(19).parse().expect("a number"),
        class: field(41).parse().expect("a number"),
        locked_kib: locked.split_ascii_whitespace().next().and_then(|n| n.parse().ok()).expect("a number"),
    }
}

#[tokio::test]
async fn the_fencer_stands_above_its_workload() {
    let stage = Stage::new(&["--fork-child"]);
    let own = standing(std::process::id().try_into().expect("small"));
    let workload = stage.workload();
    workload.start(grant(7, now() + SECOND * 50)).await.expect("starts");
    stage.ticking(2).await;
    for pid in stage.survivors() {
        let its = standing(pid);
        assert_eq!(
            (its.oom, its.nice, its.class, its.locked_kib),
            (own.oom, own.nice, own.class, 0),
            "{its:?}"
        );
    }
    let fencer = standing(stage.fencers()[0]);
    let may = |capability: u32| may(capability) && rustix::process::geteuid().is_root();
    if may(CAP_SYS_RESOURCE) {
        assert_eq!(fencer.oom, -1000);
    } else {
        not_tested("the fencer is killed last for want of memory: no CAP_SYS_RESOURCE");
        assert!(fencer.oom <= own.oom, "{fencer:?}");
    }
    if may(CAP_SYS_NICE) && may(CAP_IPC_LOCK) {
        assert_eq!((fencer.class, fencer.nice), (2, -20), "{fencer:?}");
        assert!(fencer.locked_kib > 0, "{fencer:?}");
    } else {
        not_tested("the fencer runs first and is not swapped out: not root");
        assert!(fencer.nice <= own.nice, "{fencer:?}");
    }
    workload.stop().await.expect("stops");
}

/// Ends its processes when the test ends.
struct Hogs(Vec<std::process::Child>);

impl Drop for Hogs {
    fn drop(&mut self) {
        for hog in &mut self.0 {
            let _ = hog.kill();
            let _ = hog.wait();
        }
    }
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "somebody who takes all processor time")]
async fn a_sidecar_starved_of_processor_time_keeps_nothing_alive() {
    if !rustix::process::geteuid().is_root() {
        return not_tested("a starved sidecar: not root");
    }
    let stage = Stage::new(&["--fork-child", "--ignore-term"]);
    let sidecar = stage.sidecar(SECOND);
    stage.ticking(2).await;
    // Everybody on one processor, with hogs that the kernel prefers to all of them.
    let mut cpu = rustix::thread::CpuSet::new();
    cpu.set(0);
    let pin = |pid: i32| {
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives").flatten() {
            let task = task
                .file_name()
                .to_str()
                .and_then(|id| id.parse().ok())
                .and_then(rustix::process::Pid::from_raw);
            let _ = rustix::thread::sched_setaffinity(task, &cpu);
        }
    };
    let everybody = stage.survivors().into_iter().chain(stage.fencers()).chain([sidecar.pid()]);
    everybody.for_each(pin);
    let hogs = (0..6).map(|_| {
        let hog = std::process::Command::new("/bin/sh")
            .args(["-c", "while :; do :; done"])
            .stdin(Stdio::null())
            .spawn()
            .expect("starts");
        let pid = i32::try_from(hog.id()).expect("small");
        pin(pid);
        rustix::process::setpriority_process(rustix::process::Pid::from_raw(pid), -20).expect("root may");
        hog
    });
    let hogs = Hogs(hogs.collect());
    sidecar.freeze().await;
    stage.gone().await;
    assert!(stage.last_tick() <= stage.last_until() + GRACE, "{}", stage.last_tick());
    drop(hogs);
}
