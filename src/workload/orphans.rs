//! Finds processes that belong to a workload: children of the fencer, and remains of a fencer that died.
//!
//! Rule that safety rests on: **a sidecar first makes sure that nothing of an earlier life runs, and only then claims
//! anew.** A stop receipt of an earlier life is sound only because of this. The fencer that lives sees to its own
//! workload when its sidecar dies; a fencer that was killed takes the workload's main process with it, and what that
//! process had forked is found here, by its cgroup, by a mark in its environment or by the dead fencer's session, and killed: by its
//! sidecar at once, and again by the next fencer before it is ready.
//!
//! What a lost fencer had adopted comes to its sidecar, which adopts orphans as well, and is found by that, whatever it has done
//! to hide.
//!
//! A process is held by a pidfd *before* it is examined, so a reused process id is never signalled. Not found where there was no cgroup: a
//! forked process that left the session *and* wiped its environment *and* whose fencer and sidecar were killed at the same
//! time; and processes of another user, whose environment we may not read. All this needs `/proc`.

use std::{thread, time::Duration};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, kill_process, pidfd_open, pidfd_send_signal,
    set_child_subreaper, waitpid,
};

use super::{cgroup, fencer::MARK};

/// How often is looked again while what was killed is on its way out.
const LOOK: Duration = Duration::from_millis(1);

/// Kills, in one look through all processes, what is in the cgroup of `mark` or carries it in its environment, or belongs to `session`. Returns how many were found alive.
pub(super) fn kill(mark: &str, session: Option<i32>) -> usize {
    let mut found = 0;
    // The newest first: what keeps replacing itself by a child is among them, and shall not do it again before it is looked at.
    for pid in all().into_iter().rev().filter(|pid| *pid != getpid()) {
        let pidfd = pidfd_open(pid, PidfdFlags::empty());
        if belongs(pid, mark, session) {
            found += 1;
            match pidfd {
                Ok(pidfd) => {
                    let _ = pidfd_send_signal(pidfd, Signal::KILL);
                }
                Err(_) => {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
        }
    }
    found
}

/// Whether a process lives and is of the workload with this `mark` (in its cgroup, or marked by its environment), or of `session`.
pub(super) fn belongs(pid: Pid, mark: &str, session: Option<i32>) -> bool {
    let Some(stat) = stat(pid).filter(|stat| !stat.ended) else { return false };
    let confined = || {
        let of = std::fs::read_to_string(format!("/proc/{}/cgroup", raw(pid))).unwrap_or_default();
        cgroup::is_in(&of, &cgroup::name(mark))
    };
    session == Some(stat.session) || confined() || carries(pid, mark)
}

/// Whether a process is there and has not ended.
pub(super) fn lives(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.and_then(stat).is_some_and(|stat| !stat.ended)
}

/// The name of a process, for people. Its command line is not read: that could wait for the process.
pub(super) fn name(pid: Pid) -> Option<String> {
    let name = std::fs::read(format!("/proc/{}/comm", raw(pid))).ok()?;
    Some(format!("{} ({})", String::from_utf8_lossy(&name).trim(), raw(pid)))
}

/// The command lines of all other processes of the workload with this `mark`, shortened for people.
pub(super) fn marked(mark: &str) -> Vec<String> {
    let line = |pid: Pid| {
        let words = std::fs::read(format!("/proc/{}/cmdline", raw(pid))).unwrap_or_default();
        let line = String::from_utf8_lossy(&words).replace('\0', " ");
        format!("{} ({})", line.trim().chars().take(60).collect::<String>(), raw(pid))
    };
    let others = all().into_iter().filter(|pid| *pid != getpid());
    others.filter(|pid| belongs(*pid, mark, None)).map(line).collect()
}

fn carries(pid: Pid, mark: &str) -> bool {
    let mark = format!("{MARK}={mark}");
    let environ = std::fs::read(format!("/proc/{}/environ", raw(pid))).unwrap_or_default();
    environ.split(|b| *b == 0).any(|variable| variable == mark.as_bytes())
}

/// Makes this process the one that the orphans of its fencers come to. Whether it is that now. All children that it starts
/// itself must stay in its session, or be fencers: what is neither counts as an orphan.
pub fn adopt() -> bool {
    set_child_subreaper(Some(getpid())).is_ok()
}

/// Kills what has come to this process as an orphan ([`adopt`]), round after round, because with each its own children come.
/// Blocks until nothing is left, or `wanted` says no more. Returns how many were
/// buried.
///
/// Nothing gets away by forking faster than it is looked at: an orphan that has ended stays until it is buried here, so whoever
/// came from it is looked for again.
pub(super) fn kill_adopted(fencer: Option<i32>, wanted: impl Fn() -> bool) -> usize {
    // If what has ended was an abandoned fencer, nobody needs to hear how.
    bury(|pid, ended| Some(raw(pid)) == fencer || !ended && is_fencer(pid), wanted)
}

/// The same for what commands that were asked have left behind in sessions of their own ([`super::ask_command`]), while a fencer may
/// live: how a fencer ends is heard by others, so none is buried here. Gives up at the end of `wanted`.
pub(super) fn kill_strays(wanted: impl Fn() -> bool) -> usize {
    bury(|pid, ended| is_fencer(pid) || ended && may_have_been_a_fencer(pid), wanted)
}

/// Kills and buries all children in sessions of their own but those that are spared, told whether they have ended.
fn bury(spared: impl Fn(Pid, bool) -> bool, wanted: impl Fn() -> bool) -> usize {
    let me = getpid();
    let own = stat(me).map(|stat| stat.session);
    let mut found = 0;
    while wanted() {
        let mut last = true;
        for pid in all() {
            let orphan = stat(pid).filter(|stat| stat.parent == raw(me) && Some(stat.session) != own);
            let Some(stat) = orphan.filter(|stat| !spared(pid, stat.ended)) else { continue };
            if stat.ended {
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
                found += 1;
            } else {
                let _ = kill_process(pid, Signal::KILL);
            }
            last = false;
        }
        if last {
            break;
        }
        thread::park_timeout(LOOK);
    }
    found
}

/// Who has ended has a name and no command line any more.
fn may_have_been_a_fencer(pid: Pid) -> bool {
    let name = |pid: i32| std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name_of = name(raw(pid));
    // A fencer is started by `/proc/self/exe`.
    name_of == b"exe\n" || name_of == name(raw(getpid()))
}

fn is_fencer(pid: Pid) -> bool {
    let words = std::fs::read(format!("/proc/{}/cmdline", raw(pid))).unwrap_or_default();
    words.split(|b| *b == 0).nth(1) == Some(b"fencer")
}

/// Sends `signal` to all children of this process, adopted ones included ([`adopt`]), that are in its session; returns how many those are.
/// What has left the session is a service of its own.
pub fn signal_children(signal: Signal) -> usize {
    let own = stat(getpid()).map(|stat| stat.session);
    let mut found = 0;
    for pid in children_of(getpid()).into_iter().filter(|pid| stat(*pid).map(|stat| stat.session) == own) {
        found += 1;
        // Nobody else buries them, so the number is theirs.
        let _ = kill_process(pid, signal);
    }
    found
}

/// The direct children of `parent` that have not ended.
pub(super) fn children_of(parent: Pid) -> Vec<Pid> {
    all().into_iter().filter(|pid| stat(*pid).is_some_and(|s| s.parent == raw(parent) && !s.ended)).collect()
}

fn raw(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}

fn all() -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw))
        .collect()
}

/// What is used of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    ended: bool,
    parent: i32,
    session: i32,
}

fn stat(pid: Pid) -> Option<Stat> {
    parse_stat(&std::fs::read(format!("/proc/{}/stat", raw(pid))).ok()?)
}

/// The program's name stands in brackets and may hold anything, brackets and line ends included.
fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let after_name = bytes.iter().rposition(|b| *b == b')')? + 1;
    let rest = std::str::from_utf8(bytes.get(after_name..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let _group = fields.next()?;
    let session = fields.next()?.parse().ok()?;
    Some(Stat { ended: matches!(state, "Z" | "X" | "x"), parent, session })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_with_hostile_names() {
        let line = b"42 (a) Z 1 (\n) S 7 42 9 0 -1 4194560";
        assert_eq!(parse_stat(line), Some(Stat { ended: false, parent: 7, session: 9 }));
        assert_eq!(parse_stat(b"42 (x) Z 7 42 9"), Some(Stat { ended: true, parent: 7, session: 9 }));
        assert_eq!(parse_stat(b"42 (x"), None);
        assert_eq!(parse_stat(b"42 (x) S"), None);
    }

    #[test]
    fn this_process_is_its_parents_child() {
        let parent = rustix::process::getppid().expect("tests have a parent");
        assert!(children_of(parent).contains(&getpid()));
    }

    #[test]
    fn an_unknown_mark_finds_nobody() {
        assert_eq!(kill("no such folder, ever", None), 0);
    }
}
