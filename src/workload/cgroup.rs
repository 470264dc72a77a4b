//! A cgroup of its own for the workload, where the kernel and whoever runs the sidecar allow one.
//!
//! A process cannot leave its cgroup by forking, by changing its group or session, or by wiping its environment, and one
//! write ends all that are in it, however fast they fork and whoever they run as. So the cgroup adds three things to the
//! reaper of orphans (`fencer.rs`): a fork bomb is ended in one stroke, so is a program that has changed its user, and what a
//! killed fencer leaves behind is found without fail, by the next sidecar or by this one (`orphans.rs`).
//!
//! It only ever adds. A workload that runs as the sidecar's user can move itself out again on purpose, and many places
//! have no writable cgroup; the reaper is there in any case, and the end is only reported when both say so.
//!
//! The cgroup lies below the sidecar's own and enables no controller, so limits of the sidecar's hold for both. Its name
//! is that of the data folder. [`place`] is the decision, from what `/proc` says; the rest is a thin edge.

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write},
    path::{Component, Path, PathBuf},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The name of the cgroup for the data folder with this mark.
pub(super) fn name(mark: &str) -> String {
    format!("quorate-{mark}")
}

/// Where the cgroup shows itself that a process is in whose `/proc/PID/cgroup` is `own`, by the text of
/// `/proc/self/mountinfo`. `None` if no writable cgroup2 mount shows it.
fn place(own: &str, mounts: &str) -> Option<PathBuf> {
    let own = Path::new(path(own)?);
    // `/..` is outside of the namespace that this process may see.
    if own.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    mounts.lines().find_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        let mount: Vec<&str> = mount.split(' ').collect();
        let system: Vec<&str> = system.split(' ').collect();
        let ([_, _, _, root, at, options, ..], ["cgroup2", _, of_all]) = (&*mount, &*system) else {
            return None;
        };
        let writable = |options: &str| options.split(',').any(|option| option == "rw");
        let below = own.strip_prefix(unescaped(root)).ok()?;
        (writable(options) && writable(of_all)).then(|| Path::new(&unescaped(at)).join(below))
    })
}

/// The path in the unified hierarchy, by the text of a `/proc/PID/cgroup`.
fn path(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(|path| path.trim_end_matches(" (deleted)"))
}

/// Whether a process with this `/proc/PID/cgroup` is in a cgroup of that name, or below one.
pub(super) fn is_in(text: &str, name: &str) -> bool {
    path(text).is_some_and(|path| path.split('/').any(|part| part == name))
}

/// Blanks and the like stand in mountinfo as three octal digits.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(char::from(byte));
                plain.push_str(part.get(3..).unwrap_or_default());
            }
            None => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

/// The workload's cgroup. It exists, but need not be used.
#[derive(Debug)]
pub(super) struct Cgroup {
    dir: PathBuf,
    name: String,
}

impl Cgroup {
    /// Makes it, or takes over the one that an earlier life left, with whatever is in it.
    ///
    /// # Errors
    /// Why there is none here.
    pub(super) fn make(mark: &str) -> Result<Cgroup, String> {
        let not = |what: &str, at: &Path, e: &io::Error| format!("cannot {what} {}: {e}", at.display());
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let parent = place(&own, &mounts).ok_or("no writable cgroup2 mount shows this process")?;
        // Who may not write here cannot move a process from here into another cgroup.
        let procs = parent.join("cgroup.procs");
        OpenOptions::new().write(true).open(&procs).map_err(|e| not("write", &procs, &e))?;
        let name = name(mark);
        let dir = parent.join(&name);
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(not("make", &dir, &e)),
            _ => Ok(Cgroup { dir, name }),
        }
    }

    /// Where it lies.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Kills everything in it, at once where the kernel can (Linux 5.14). Else it is frozen, so that nothing forks any
    /// more, and everybody is killed by name; then it must be called until nothing is left.
    pub(super) fn kill(&self) {
        if write(&self.dir.join("cgroup.kill"), "1").is_err() {
            self.kill_each();
        }
    }

    fn kill_each(&self) {
        let _ = write(&self.dir.join("cgroup.freeze"), "1");
        for dir in self.with_those_below() {
            let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            for pid in procs.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
                // Held before it is looked at, so that a process id that is used again is never signalled.
                let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
                let of =
                    fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).unwrap_or_default();
                if is_in(&of, &self.name) {
                    let _ = pidfd_send_signal(pidfd, Signal::KILL);
                }
            }
        }
    }

    /// Lets what comes in run, also after a killing.
    pub(super) fn thaw(&self) {
        let _ = write(&self.dir.join("cgroup.freeze"), "0");
    }

    /// Whether anything runs in it. What cannot be asked is not counted.
    pub(super) fn populated(&self) -> bool {
        let events = fs::read_to_string(self.dir.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }

    /// Takes it away if nothing is in it.
    pub(super) fn remove(&self) {
        for dir in self.with_those_below().iter().rev() {
            let _ = fs::remove_dir(dir);
        }
    }

    /// It, and what a workload has made below it; parents come first.
    fn with_those_below(&self) -> Vec<PathBuf> {
        let mut all = vec![self.dir.clone()];
        let mut next = 0;
        while let Some(dir) = all.get(next) {
            next += 1;
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            all.extend(dirs.map(|entry| entry.path()).collect::<Vec<_>>());
        }
        all
    }
}

/// Moves this process into the cgroup at `dir`.
///
/// # Errors
/// What the system said.
pub(super) fn enter(dir: &Path) -> io::Result<()> {
    write(&dir.join("cgroup.procs"), "0")
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests;
