//! Who holds `fencer.lock`, and the end of a fencer that holds it for longer than any workload of its may run.
//!
//! A fencer whose sidecar is dead or frozen ends by itself, with its workload, within the longest lease and its grace.
//! One that does not is frozen itself. A fencer of this life would wait for it in vain, so it is killed (which works on
//! a stopped process too); its workload is tied to it, and what else is left is found by `orphans.rs`.
//!
//! Only a fencer of this very folder is killed. Anybody else who holds the lock is named and waited for. That no other
//! sidecar lives on this folder was made sure of by the lock of the store, which is taken before.

use std::{fs::File, os::unix::fs::MetadataExt};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::wire::{Event, Text};

/// Looks who holds the lock, and kills that process if it is a fencer with this `mark`. Returns what to tell, and the
/// killed fencer's session. `None` if `/proc` names no holder.
pub(super) fn evict(lock: &File, mark: &str) -> Option<(Event, Option<i32>)> {
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let holder = holder(&locks, lock.metadata().ok()?.ino())?;
    // Held before it is looked at, so that a process id that is used again is never signalled.
    let pidfd = pidfd_open(Pid::from_raw(holder)?, PidfdFlags::empty()).ok()?;
    let line = std::fs::read(format!("/proc/{holder}/cmdline")).ok()?;
    let killed = is_fencer(&line, mark) && pidfd_send_signal(pidfd, Signal::KILL).is_ok();
    let words = String::from_utf8_lossy(&line).replace('\0', " ");
    let what = if killed { "a frozen fencer of an earlier life, killed" } else { "no fencer of this folder" };
    let event =
        Event::Held { pid: holder.unsigned_abs(), what: Text::new(format!("{what}: {}", words.trim_end())) };
    Some((event, killed.then_some(holder)))
}

/// Whether this command line is that of a fencer whose workload carries `mark`. Of any version: the words behind may differ.
fn is_fencer(line: &[u8], mark: &str) -> bool {
    let mut words = line.split(|b| *b == 0).skip(1);
    words.next() == Some(b"fencer") && words.nth(1) == Some(mark.as_bytes())
}

/// The process that holds a `flock` on the file with this number, by the text of `/proc/locks`. The device's number is
/// not compared: it is not the one that `stat` shows on every file system.
fn holder(locks: &str, file: u64) -> Option<i32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, number, ..] = words.as_slice() else { return None };
        let held = number.rsplit(':').next()?.parse() == Ok(file);
        pid.parse().ok().filter(|pid| held && *pid > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_and_who_waits_is_not() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 08:01:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 12 08:01:770 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 13 08:01:77 0 EOF\n\
                     4: FLOCK  ADVISORY  READ 14 08:01:77 0 EOF\n\
                     5: FLOCK  ADVISORY  WRITE 15 08:01:77 0 EOF\n";
        assert_eq!(holder(locks, 77), Some(15));
        assert_eq!(holder(locks, 7), None);
        assert_eq!(holder("5: FLOCK  ADVISORY  WRITE 0 08:01:77 0 EOF", 77), None, "of another namespace");
        assert_eq!(holder("rubbish\n\n5: FLOCK", 77), None);
    }

    #[test]
    fn only_a_fencer_of_this_folder_is_killed() {
        let line = |verb: &str, mark: &str| {
            format!("quorate\0{verb}\0/lock\0{mark}\x001\x001\x001\x007\x000\x001\x001\0\0\0app\0")
        };
        assert!(is_fencer(line("fencer", "1-2").as_bytes(), "1-2"));
        assert!(!is_fencer(line("fencer", "1-3").as_bytes(), "1-2"));
        assert!(!is_fencer(line("run", "1-2").as_bytes(), "1-2"));
        assert!(!is_fencer(b"", "1-2"));
    }

    #[test]
    fn somebody_else_with_the_lock_is_named_and_left_alone() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let held = file.reopen().expect("opens");
        rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).expect("locks");
        let (event, killed) = evict(file.as_file(), "1-2").expect("this process holds it");
        assert_eq!(killed, None);
        assert!(event.to_string().starts_with(&format!("HELD {} no fencer", std::process::id())), "{event}");
        drop(held);
        assert_eq!(evict(file.as_file(), "1-2"), None);
    }
}
