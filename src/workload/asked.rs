//! Runs a command that is asked something: its exit code is the answer. Whatever it does, it costs a bounded time and memory.
//!
//! It runs in a process group of its own and in the sidecar's session. At its end or at its time limit the whole group is
//! killed and buried, and now and then so is what has left even the session, which has come to this process as an orphan.
//! What it writes to its output goes nowhere; of its complaints the first line is told, and no more than a pipe holds is
//! ever kept. It deliberately runs in the calling thread, which it may block for as long as the kernel will not end a
//! process: call it where that hurts nobody, and not again before it has returned.

use std::{
    io::Read as _,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process_group, pidfd_open, waitpgid},
};

use super::orphans;
use crate::clock::{BootClock, Clock};

/// How much of its complaints is read.
const WORDS_MAX: usize = 1000;
/// How often is looked for what has left its session, at most.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How long such a look may take.
const SWEEP_LIMIT: Duration = Duration::from_millis(200);

/// Runs it for at most `limit`. Blocks.
///
/// # Errors
/// It could not be started, did not exit with 0, or was still running.
#[expect(clippy::disallowed_methods, reason = "here is where a command that is asked is started and ended")]
pub fn ask_command(command: &[String], limit: Duration) -> Result<(), String> {
    let [program, arguments @ ..] = command else { return Err("there is no command".into()) };
    let environment =
        std::env::vars_os().filter(|(name, _)| !name.as_encoded_bytes().starts_with(b"QUORATE_"));
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(environment)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|e| format!("{program} cannot be started: {e}"))?;
    let pid = Pid::from_child(&child);
    let in_time = has_ended_within(pid, limit);
    let _ = kill_process_group(pid, Signal::KILL);
    let status = bury(pid);
    let words = child.stderr.take().map(|mut pipe| {
        // Nobody of its group is left, but what has left the group may still hold the other end.
        let _ = rustix::fs::fcntl_setfl(&pipe, rustix::fs::OFlags::NONBLOCK);
        let mut text = vec![0; WORDS_MAX];
        let read = pipe.read(&mut text).unwrap_or(0);
        text.truncate(read);
        first_line(&text)
    });
    sweep();
    let words =
        words.filter(|words| !words.is_empty()).map_or_else(String::new, |words| format!(": {words}"));
    match status {
        _ if !in_time => Err(format!("{program} did not end within {} ms{words}", limit.as_millis())),
        Some(status) if status.success() => Ok(()),
        Some(status) => match status.code() {
            Some(code) => Err(format!("{program} exited with {code}{words}")),
            None => Err(format!("{program} was ended by signal {}{words}", status.signal().unwrap_or(0))),
        },
        None => Err(format!("{program}: how it ended is not known")),
    }
}

fn has_ended_within(pid: Pid, limit: Duration) -> bool {
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    let give_up = BootClock.now() + limit;
    loop {
        let left = give_up.since(BootClock.now());
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Waits until nobody of the group is left; says how its first process ended.
fn bury(group: Pid) -> Option<ExitStatus> {
    let mut first = None;
    loop {
        match waitpgid(group, WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == group => first = Some(ExitStatus::from_raw(status.as_raw())),
            Ok(_) => {
                // Whoever joined while the group was being killed.
                let _ = kill_process_group(group, Signal::KILL);
            }
            Err(Errno::INTR) => {}
            Err(_) => return first,
        }
    }
}

/// Ends what commands have left behind in sessions of their own, if this process adopts orphans.
fn sweep() {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = BootClock.now();
    let last = crate::clock::Moment::from_nanos(LAST.load(Ordering::Relaxed));
    if now.since(last) < SWEEP_EVERY {
        return;
    }
    LAST.store(now.as_nanos(), Ordering::Relaxed);
    let found = orphans::kill_strays(|| BootClock.now().since(now) < SWEEP_LIMIT);
    if found > 0 {
        tracing::debug!(found, "ended what a command had left behind");
    }
}

fn first_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().next().unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(script: &str, limit_ms: u64) -> Result<(), String> {
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        ask_command(&command, Duration::from_millis(limit_ms))
    }

    #[test]
    fn its_exit_code_is_the_answer() {
        assert_eq!(ask("echo fine; exit 0", 20_000), Ok(()));
        assert_eq!(
            ask("echo the PLC is off >&2; echo more >&2; exit 3", 20_000),
            Err("/bin/sh exited with 3: the PLC is off".into())
        );
        assert_eq!(ask("kill -9 $$", 20_000), Err("/bin/sh was ended by signal 9".into()));
        let missing = ask_command(&["/nowhere/at-all".into()], Duration::from_secs(1));
        assert!(missing.is_err_and(|why| why.contains("/nowhere/at-all cannot be started")));
    }

    #[test]
    fn it_is_told_none_of_the_sidecars_own_settings() {
        assert_eq!(ask("! env | grep -q ^QUORATE_", 20_000), Ok(()));
    }

    /// It hangs, ignores TERM, floods both pipes and leaves children behind: all of it is over at the limit.
    #[test]
    fn what_hangs_or_floods_or_forks_is_over_at_its_limit() {
        let folder = tempfile::tempdir().expect("a folder");
        let pids = folder.path().join("pids");
        for script in [
            "trap '' TERM; sleep 100",
            "yes >&1",
            "yes >&2",
            "for i in 1 2 3 4 5 6 7 8; do (trap '' TERM HUP; sleep 100) & echo $! >> PIDS; done; wait",
            "for i in 1 2 3 4 5 6 7 8; do (trap '' TERM HUP; sleep 100) & echo $! >> PIDS; done; exit 1",
        ] {
            let began = BootClock.now();
            let answer = ask(&script.replace("PIDS", &pids.display().to_string()), 300);
            assert!(answer.is_err(), "{script}");
            assert!(BootClock.now().since(began) < Duration::from_secs(20), "{script}");
        }
        let text = std::fs::read_to_string(pids).expect("they were noted");
        assert_eq!(text.lines().count(), 16);
        for pid in text.lines() {
            let alive = || {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
                let state = stat.rsplit(')').next()?.trim_start().chars().next()?;
                (state != 'Z' && stat.contains("sleep")).then_some(())
            };
            // They were killed; without a subreaper somebody else buries them.
            let give_up = BootClock.now() + Duration::from_secs(10);
            while alive().is_some() {
                assert!(BootClock.now() < give_up, "{pid} lives");
                std::thread::yield_now();
            }
        }
    }
}
