//! What the workload may use of the device: memory, processors, processes, open files.
//!
//! Memory, processors and processes are counted for all of the workload together by its cgroup, where the kernel offers its
//! controllers to the sidecar's cgroup (`cgroup.rs`). Where it does not, memory and processes are limited by what every process may have
//! (setrlimit(2)): memory then counts for each process by itself, and processes for all of its user together. Processors have no such
//! limit. Open files are always a limit of each process.
//!
//! A limit that cannot be kept here is refused, with the reason, before the program is started. None is dropped in silence.

use std::fmt;

use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};

use super::{cgroup::Cgroup, user::User};

/// The limits of a workload; what is `None` is not limited by us.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Thousandths of a processor.
    pub cpu: Option<u32>,
    /// Processes and threads.
    pub processes: Option<u32>,
    /// Open files of each process.
    pub open_files: Option<u32>,
}

/// One limit of a cgroup: the controller, its file, and what is written there.
pub(super) type Line = (&'static str, &'static str, String);

/// The span that a share of the processors is counted over, in microseconds: short, so that nobody waits long for the next.
const CPU_PERIOD_US: u64 = 20_000;

impl Limits {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Limits::default()
    }

    /// What a cgroup has to be told, each with the setting's name. `max`: no limit, also where an earlier life has left one.
    pub(super) fn lines(&self) -> [(&'static str, bool, Line); 3] {
        let or_max = |limit: Option<u64>| limit.map_or("max".to_owned(), |limit| limit.to_string());
        let quota = self.cpu.map(|milli| u64::from(milli) * CPU_PERIOD_US / 1000);
        let (memory, processes) = (or_max(self.memory), or_max(self.processes.map(u64::from)));
        let cpu = format!("{} {CPU_PERIOD_US}", or_max(quota));
        [
            ("memory", self.memory.is_some(), ("memory", "memory.max", memory)),
            ("cpu", self.cpu.is_some(), ("cpu", "cpu.max", cpu)),
            ("processes", self.processes.is_some(), ("pids", "pids.max", processes)),
        ]
    }

    /// Whether the limits can be kept for a workload of this user, as far as that shows without trying, and by what.
    ///
    /// # Errors
    /// Which cannot, why, and what to do.
    pub fn ways(&self, user: Option<User>) -> Result<String, String> {
        let offered = Cgroup::offered();
        let mut by_cgroup = Vec::new();
        let rest = self.ways_with(user, |controller| {
            let found = match &offered {
                Ok(offered) if offered.iter().any(|name| name == controller) => Ok(()),
                Ok(_) => Err(format!("the sidecar's cgroup has no controller {controller}")),
                Err(why) => Err(why.clone()),
            };
            by_cgroup.extend(found.is_ok().then(|| controller.to_owned()));
            found
        })?;
        let of_each = [
            rest.data.map(|_| "memory of each process"),
            rest.processes.map(|_| "processes of its user"),
            rest.open_files.map(|_| "open files of each process"),
        ];
        let of_each: Vec<_> = of_each.into_iter().flatten().collect();
        let told = [("its cgroup: ", by_cgroup.join(", ")), ("setrlimit: ", of_each.join(", "))];
        let told = told.iter().filter(|(_, what)| !what.is_empty());
        Ok(told.map(|(by, what)| format!("{by}{what}")).collect::<Vec<_>>().join("; "))
    }

    /// Gives the cgroup its limits, and says what is left to every process.
    ///
    /// # Errors
    /// As for [`Limits::ways`].
    pub(super) fn apply(&self, cgroup: Result<&Cgroup, &str>, user: Option<User>) -> Result<Rlimits, String> {
        let lines = self.lines();
        if let Ok(cgroup) = cgroup {
            // What an earlier life has limited.
            for (_, _, (_, file, line)) in lines.iter().filter(|(_, wanted, _)| !wanted) {
                cgroup.unlimit(file, line);
            }
        }
        self.ways_with(user, |controller| {
            let line = lines.iter().find(|(_, _, line)| line.0 == controller);
            let Some((_, _, line)) = line else { return Err(format!("nothing limits {controller}")) };
            cgroup.map_err(str::to_owned).and_then(|cgroup| cgroup.limit(line))
        })
    }

    fn ways_with(
        &self,
        user: Option<User>,
        mut by_cgroup: impl FnMut(&str) -> Result<(), String>,
    ) -> Result<Rlimits, String> {
        let mut rest = Rlimits { open_files: self.open_files, ..Rlimits::default() };
        for (name, wanted, (controller, _, _)) in self.lines() {
            let Some(why) = wanted.then(|| by_cgroup(controller)).and_then(|kept| {
                rest.inside |= kept.is_ok();
                kept.err()
            }) else {
                continue;
            };
            let root = user.map_or_else(|| geteuid().is_root(), |user| user.uid == 0);
            match name {
                "memory" => rest.data = self.memory,
                "processes" if !root => rest.processes = self.processes,
                "processes" => {
                    return Err(format!(
                        "workload.limits.processes: {why}, and without one root's processes are not counted; name a workload.user"
                    ));
                }
                _ => {
                    return Err(format!(
                        "workload.limits.{name}: {why}, and nothing else limits that; run the sidecar where it may have controllers (systemd: \
                         Delegate=yes), or remove the limit"
                    ));
                }
            }
        }
        let most = getrlimit(Resource::Nofile).maximum;
        match (rest.open_files, most) {
            (Some(wanted), Some(most)) if u64::from(wanted) > most && !geteuid().is_root() => Err(format!(
                "workload.limits.open_files: this user may have {most} at most; write no more, or raise the sidecar's (systemd: LimitNOFILE)"
            )),
            _ => Ok(rest),
        }
    }
}

/// What the program's process takes with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Rlimits {
    /// It must be in the workload's cgroup, which limits the rest.
    pub(super) inside: bool,
    data: Option<u64>,
    processes: Option<u32>,
    open_files: Option<u32>,
}

impl Rlimits {
    /// Limits this process, and whatever it becomes and starts.
    ///
    /// # Errors
    /// Which could not be set, and why.
    pub(super) fn take(&self) -> Result<(), String> {
        let all = [
            ("memory", Resource::Data, self.data),
            ("processes", Resource::Nproc, self.processes.map(u64::from)),
            ("open_files", Resource::Nofile, self.open_files.map(u64::from)),
        ];
        for (name, resource, limit) in all {
            if let Some(limit) = limit {
                setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })
                    .map_err(|e| format!("workload.limits.{name}: {e}"))?;
            }
        }
        Ok(())
    }
}

/// Four numbers; 0 stands for none.
fn numbers(text: &str) -> Option<[u64; 4]> {
    let numbers: Option<Vec<u64>> = text.split(' ').map(|word| word.parse().ok()).collect();
    numbers?.try_into().ok()
}

fn some<T: TryFrom<u64>>(number: u64) -> Option<T> {
    Some(number).filter(|n| *n > 0).and_then(|n| n.try_into().ok())
}

/// As one argument, which `from_arg` reads.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = |limit: Option<u32>| limit.unwrap_or(0);
        let (memory, cpu) = (self.memory.unwrap_or(0), n(self.cpu));
        write!(f, "{memory} {cpu} {} {}", n(self.processes), n(self.open_files))
    }
}

impl Limits {
    pub(super) fn from_arg(text: &str) -> Option<Limits> {
        let [memory, cpu, processes, open_files] = numbers(text)?;
        Some(Limits {
            memory: some(memory),
            cpu: some(cpu),
            processes: some(processes),
            open_files: some(open_files),
        })
    }
}

/// As one argument, which `from_arg` reads.
impl fmt::Display for Rlimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = |limit: Option<u32>| limit.unwrap_or(0);
        let (inside, data) = (u8::from(self.inside), self.data.unwrap_or(0));
        write!(f, "{inside} {data} {} {}", n(self.processes), n(self.open_files))
    }
}

impl Rlimits {
    pub(super) fn from_arg(text: &str) -> Option<Rlimits> {
        let [inside, data, processes, open_files] = numbers(text)?;
        Some(Rlimits {
            inside: inside == 1,
            data: some(data),
            processes: some(processes),
            open_files: some(open_files),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Limits =
        Limits { memory: Some(64 << 20), cpu: Some(1500), processes: Some(32), open_files: Some(100) };
    const SOMEBODY: Option<User> = Some(User { uid: 1000, gid: 1000 });

    fn none(_: &str) -> Result<(), String> {
        Err("there is no cgroup".into())
    }

    #[test]
    fn they_survive_the_command_line() {
        for limits in [ALL, Limits::default(), Limits { cpu: None, ..ALL }] {
            assert_eq!(Limits::from_arg(&limits.to_string()), Some(limits));
        }
        let rest = Rlimits { inside: true, data: Some(u64::MAX), processes: None, open_files: Some(7) };
        assert_eq!(Rlimits::from_arg(&rest.to_string()), Some(rest));
        for wrong in ["", "1", "1 2 3", "1 2 3 4 5", "a b c d", "1 2 3 -4"] {
            assert_eq!((Limits::from_arg(wrong), Rlimits::from_arg(wrong)), (None, None), "{wrong:?}");
        }
    }

    #[test]
    fn a_cgroup_takes_what_it_can_and_the_rest_is_every_process_own() {
        let rest = ALL.ways_with(SOMEBODY, |_| Ok(())).expect("all are kept");
        assert_eq!(rest, Rlimits { inside: true, open_files: Some(100), ..Rlimits::default() });
        let without_cpu = Limits { cpu: None, ..ALL };
        let rest = without_cpu.ways_with(SOMEBODY, none).expect("all are kept");
        let (data, processes) = (Some(64 << 20), Some(32));
        assert_eq!(rest, Rlimits { inside: false, data, processes, open_files: Some(100) });
        assert_eq!(Limits::default().ways_with(SOMEBODY, none), Ok(Rlimits::default()));
    }

    #[test]
    fn what_cannot_be_kept_is_refused_by_name() {
        let why = ALL.ways_with(SOMEBODY, none).expect_err("nothing limits the processors");
        assert!(why.contains("workload.limits.cpu") && why.contains("there is no cgroup"), "{why}");
        let processes = Limits { processes: Some(3), ..Limits::default() };
        let why = processes.ways_with(Some(User { uid: 0, gid: 0 }), none).expect_err("root is not counted");
        assert!(why.contains("workload.limits.processes") && why.contains("workload.user"), "{why}");
    }

    #[test]
    fn a_cgroup_is_told_in_its_own_words() {
        let lines = ALL.lines().map(|(_, _, (_, file, line))| format!("{file} {line}"));
        assert_eq!(lines, ["memory.max 67108864", "cpu.max 30000 20000", "pids.max 32"]);
        let lines = Limits::default().lines().map(|(_, wanted, (_, _, line))| (wanted, line));
        assert_eq!(lines, [(false, "max".into()), (false, "max 20000".into()), (false, "max".into())]);
    }
}
