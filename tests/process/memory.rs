//! Out of memory, for real: a memory cgroup of the kernel that is too small for what is in it.
//!
//! Where the machine of the test lets none be made (not root, no memory controller), this says so.

use std::{fs, os::unix::process::ExitStatusExt as _, path::PathBuf, time::Duration};

use rustix::process::Signal;

use super::{
    not_tested,
    stage::{Stage, eventually},
};

/// More than any of the processes takes by itself, and less than [`Stage::starve`] lets the sidecar take.
const LIMIT: &str = "134217728";

/// A cgroup with so much memory and no more.
struct Room(PathBuf);

impl Room {
    /// In whichever hierarchy the memory controller is.
    fn make(name: &str) -> Option<Room> {
        let places = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        places.into_iter().find_map(|(parent, limit)| {
            // What is no cgroup has no such file, and may be a folder in which anything can be made.
            fs::metadata(PathBuf::from(parent).join("cgroup.procs")).ok()?;
            let room = Room(PathBuf::from(parent).join(name));
            fs::create_dir(&room.0).ok()?;
            fs::write(room.0.join(limit), LIMIT).ok()?;
            Some(room)
        })
    }

    fn take_in(&self, pid: i32) -> bool {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).is_ok()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // After a failure somebody may still be in it.
        let _ = fs::remove_dir(&self.0);
    }
}

/// The kernel takes the sidecar, which has taken the memory, and not the fencer: so the workload ends long before its deadline.
#[tokio::test]
async fn a_sidecar_that_is_killed_for_want_of_memory_takes_its_workload_along() {
    let stage = Stage::new(&[]);
    // Not named after the folder: its number is given to the next one, while the kernel is still clearing up.
    let Some(room) = Room::make(&format!("quorate-memory-{}", std::process::id())) else {
        return not_tested("a memory cgroup: this machine gives none");
    };
    let mut sidecar = stage.sidecar(Duration::from_secs(3600));
    stage.ticking(1).await;
    let all = [vec![sidecar.pid()], stage.fencers(), stage.survivors()].concat();
    if !all.iter().all(|pid| room.take_in(*pid)) {
        return not_tested("a memory cgroup: nothing can be moved there");
    }
    stage.starve();
    let ended = sidecar.ended().await;
    assert_eq!(ended.signal(), Some(Signal::KILL.as_raw()), "{ended:?}");
    stage.gone().await;
    eventually("the fencer has done its work", || stage.fencers().is_empty()).await;
}
