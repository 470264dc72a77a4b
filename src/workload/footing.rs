//! The fencer's standing among the processes of its device, and how the workload gets rid of it.
//!
//! The fencer must act on time when everything else is short of memory or of processor time: it asks the kernel to be
//! killed last, to be swapped out never, and to run before everything that is not itself real-time (`SCHED_RR` at the
//! lowest priority; else the best niceness). Each is taken as far as it is allowed, and nothing depends on it. It starves
//! nobody: it waits for events, and rests two milliseconds after each round of killing.
//!
//! Nothing of it is the workload's: memory locks do not survive a fork, and the shim gives back the rest
//! ([`Footing::give_back`]) before it becomes the workload.

use std::{ffi::OsString, fs};

use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{getpriority_process, setpriority_process},
};
use thread_priority::{
    NormalThreadSchedulePolicy, RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

const OOM: &str = "/proc/self/oom_score_adj";
/// From "never" on down; who may not have one may have the next.
const OOM_WISHES: [i32; 5] = [-1000, -900, -500, -250, -100];
/// The kernel's highest.
const NICE: i32 = -20;

/// What the process had before it asked for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Footing {
    oom: i32,
    nice: i32,
}

impl Footing {
    /// Takes the best standing that is allowed. Returns what was there before.
    pub(super) fn take() -> Footing {
        let oom = fs::read_to_string(OOM).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default();
        let nice = getpriority_process(None).unwrap_or_default();
        OOM_WISHES.iter().filter(|wish| **wish < oom).find(|wish| set_oom(**wish));
        if nice > NICE {
            let _ = setpriority_process(None, NICE);
        }
        let class = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin);
        let _ = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, class);
        // What is not there yet is locked when it comes, so this makes nothing bigger. Kernels before 4.4 know no ONFAULT.
        let _ = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT);
        Footing { oom, nice }
    }

    /// Makes this process, which has inherited more, an ordinary one again.
    pub(super) fn give_back(self) {
        set_oom(self.oom);
        // The best niceness comes with it, if at all: from there the way back is always allowed, from the worst it is not.
        let class = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other);
        let _ = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Max, class);
        let _ = setpriority_process(None, self.nice);
    }

    /// For a command line.
    pub(super) fn to_arg(self) -> OsString {
        format!("{},{}", self.oom, self.nice).into()
    }

    /// Reads back what [`Footing::to_arg`] wrote.
    pub(super) fn from_arg(arg: &OsString) -> Option<Footing> {
        let (oom, nice) = arg.to_str()?.split_once(',')?;
        Some(Footing { oom: oom.parse().ok()?, nice: nice.parse().ok()? })
    }
}

fn set_oom(to: i32) -> bool {
    fs::write(OOM, to.to_string()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_footing_survives_the_command_line() {
        let footing = Footing { oom: -17, nice: 3 };
        assert_eq!(Footing::from_arg(&footing.to_arg()), Some(footing));
        assert_eq!(Footing::from_arg(&"".into()), None);
        assert_eq!(Footing::from_arg(&"1".into()), None);
    }
}
