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
//! The cgroup lies below the sidecar's own, so limits of the sidecar's hold for both. Controllers are enabled only where the workload has
//! limits of its own. The kernel allows that only where the upper cgroup holds no process, so the sidecar and its fencer
//! move into another one beside the workload's ([`SIDECAR`]); with any third process in it there are no controllers.
//! The cgroup's name is that of the data folder. [`place`] is the decision, from what `/proc` says; the rest is a thin edge.

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write},
    path::{Component, Path, PathBuf},
};

use rustix::process::{Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, pidfd_send_signal};

use super::limits::Line;

/// The cgroup that the sidecar moves to if the workload's needs controllers.
const SIDECAR: &str = "quorate-sidecar";

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
        let parent = Self::parent()?;
        let name = name(mark);
        let dir = parent.join(&name);
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(not("make", &dir, &e)),
            _ => Ok(Cgroup { dir, name }),
        }
    }

    /// Where it would be made.
    fn parent() -> Result<PathBuf, String> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = place(&own, &mounts).ok_or("no writable cgroup2 mount shows this process")?;
        // Who may not write here cannot move a process from here into another cgroup.
        let procs = own.join("cgroup.procs");
        OpenOptions::new().write(true).open(&procs).map_err(|e| not("write", &procs, &e))?;
        match own.parent() {
            Some(above) if own.ends_with(SIDECAR) => Ok(above.to_owned()),
            _ => Ok(own),
        }
    }

    /// The controllers that may be enabled for it.
    ///
    /// # Errors
    /// Why there is no cgroup here.
    pub(super) fn offered() -> Result<Vec<String>, String> {
        Self::parent().map(|parent| controllers(&parent))
    }

    /// Limits all that is in it, whatever it takes to have the controller.
    ///
    /// # Errors
    /// Why that cannot be.
    pub(super) fn limit(&self, (controller, file, line): &Line) -> Result<(), String> {
        let parent = self.dir.parent().ok_or("a cgroup without one above it")?;
        let file = self.dir.join(file);
        if !file.exists() {
            if !controllers(parent).iter().any(|name| name == controller) {
                return Err(format!("the sidecar's cgroup has no controller {controller}"));
            }
            let (enabled, plus) = (parent.join("cgroup.subtree_control"), format!("+{controller}"));
            let outcome = match write(&enabled, &plus) {
                Err(e) if e.kind() == ErrorKind::ResourceBusy => {
                    make_room(parent)?;
                    write(&enabled, &plus)
                }
                outcome => outcome,
            };
            outcome.map_err(|e| not("write", &enabled, &e))?;
        }
        write(&file, line).map_err(|e| not("write", &file, &e))
    }

    /// Takes away a limit that an earlier life has left.
    pub(super) fn unlimit(&self, file: &str, line: &str) {
        let _ = write(&self.dir.join(file), line);
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

fn controllers(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Empties the upper cgroup, if nobody is in it but this fencer and its sidecar.
fn make_room(parent: &Path) -> Result<(), String> {
    let leaf = parent.join(SIDECAR);
    let procs = fs::read_to_string(parent.join("cgroup.procs")).unwrap_or_default();
    let ours = [Some(getpid()), getppid()].map(|pid| pid.map(|pid| pid.as_raw_nonzero().to_string()));
    let ours = |pid: &&str| ours.iter().flatten().any(|own| own == pid);
    if let Some(other) = procs.lines().find(|pid| !ours(pid)) {
        return Err(format!(
            "process {other} is in the sidecar's cgroup ({}), which must hold nothing else",
            parent.display()
        ));
    }
    match fs::create_dir(&leaf) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(not("make", &leaf, &e)),
        _ => {}
    }
    let there = leaf.join("cgroup.procs");
    procs.lines().try_for_each(|pid| write(&there, pid)).map_err(|e| not("write", &there, &e))
}

fn not(what: &str, at: &Path, e: &io::Error) -> String {
    format!("cannot {what} {}: {e}", at.display())
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
