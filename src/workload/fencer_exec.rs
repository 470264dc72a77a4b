//! The step between the fencer and the workload: a process that ties its own life to the fencer's, then becomes the
//! workload's program.
//!
//! The tie (`PR_SET_PDEATHSIG`) survives exec and lets the kernel kill the workload's main process when the fencer
//! dies, however it dies. The parent is looked at again after tying, because a fencer that died before would send no
//! signal. Processes that the workload forks are not tied; see `orphans.rs` for them. The kernel drops the tie for
//! a set-user-id program or one with file capabilities: such a program is only held by the fencer being alive.
//!
//! `quorate fencer-exec` does just that, at once. The shim does it in two steps, because one is slow: it gives back the
//! fencer's standing (`footing.rs`) and moves into the workload's cgroup, for which the kernel may take tens of milliseconds;
//! then it waits for its epoch. A device that becomes owner does not wait for the slow part.
//!
//! Standard input is a socket to the fencer: its end without a word says that the program runs, a text says why not.
//! `shim.rs` is the other end.

use std::{
    ffi::OsString,
    io::{BufRead, BufReader, Write},
    os::{
        fd::AsFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use super::{cgroup, fencer::SELF, footing::Footing, limits::Rlimits, user::User, wire::Text};

/// What the shim says first when it is in the workload's cgroup.
pub(super) const INSIDE: &str = "inside";
/// What it says first when it is not; the reason follows.
pub(super) const OUTSIDE: &str = "outside ";

/// Becomes the workload; `args` are those after the word `fencer-exec`: the fencer's process id, the folder to run
/// in (empty for the current one), the program, its arguments. Returns only if that failed.
pub(super) fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(mut report) = report() else { return ExitCode::from(126) };
    let why = tie(&mut args).err().unwrap_or_else(|| become_workload(args, None));
    drop(report.write_all(why.as_bytes()));
    ExitCode::from(127)
}

/// The same for what undoes the workload; `args` are those after the word `fencer-undo`: the standing to go back to, then as in [`main`].
pub(super) fn undo(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    if let Some(footing) = args.next().and_then(|arg| Footing::from_arg(&arg)) {
        footing.give_back();
    }
    main(args)
}

/// The same in two steps; `args` are those after the word `fencer-shim` or `fencer-wait`: the standing to go back to, the
/// cgroup to move to and the user to become (each empty for none), the limits to take, then as in [`main`]. The epoch comes through the socket.
pub(super) fn shim(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(mut report) = report() else { return ExitCode::from(126) };
    let footing = args.next().and_then(|arg| Footing::from_arg(&arg));
    let dir = args.next().map(PathBuf::from).unwrap_or_default();
    let user = args.next().unwrap_or_default();
    let rlimits = args.next().and_then(|arg| Rlimits::from_arg(arg.to_str()?));
    let why = match (footing.zip(rlimits), tie(&mut args)) {
        (None, _) => "the shim was called by hand".into(),
        (_, Err(why)) => why,
        (Some((footing, rlimits)), Ok(())) => {
            footing.give_back();
            let entered = if dir.as_os_str().is_empty() { Ok(()) } else { cgroup::enter(&dir) };
            let limited = match &entered {
                // Outside of it the program would have no limits.
                Err(e) if rlimits.inside => Err(format!("workload.limits: cannot enter the cgroup: {e}")),
                _ => Ok(()),
            };
            let place = match entered {
                _ if dir.as_os_str().is_empty() => String::new(),
                Ok(()) => format!("{INSIDE}\n"),
                Err(e) => format!("{OUTSIDE}{}\n", Text::new(e.to_string())),
            };
            let mut epoch = String::new();
            let told = report.write_all(place.as_bytes());
            match told.and_then(|()| BufReader::new(&report).read_line(&mut epoch)) {
                Ok(n)
                    if n > 0
                        && let Err(why) = limited.and_then(|()| rlimits.take()) =>
                {
                    why
                }
                Ok(n) if n > 0 && !user.is_empty() => become_user(&user, args, epoch.trim_end()),
                Ok(n) if n > 0 => become_workload(args, Some(epoch.trim_end())),
                // Nobody wants a workload any more.
                _ => return ExitCode::SUCCESS,
            }
        }
    };
    drop(report.write_all(why.as_bytes()));
    ExitCode::from(127)
}

fn report() -> Option<UnixStream> {
    std::io::stdin().as_fd().try_clone_to_owned().ok().map(UnixStream::from)
}

/// Ties this process to the fencer that the next argument names.
fn tie(args: &mut impl Iterator<Item = OsString>) -> Result<(), String> {
    let fencer: Option<i32> = args.next().and_then(|pid| pid.to_str()?.parse().ok());
    let Some(fencer) = fencer else { return Err("fencer-exec was called by hand".into()) };
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| format!("cannot tie the workload to its fencer: {e}"))?;
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(fencer) {
        return Err("the fencer is gone".into());
    }
    Ok(())
}

/// Becomes the workload as another user. That loosens the tie, which the kernel drops with the old user: so this process becomes
/// `quorate fencer-exec` as that user first, which ties itself again.
#[expect(clippy::disallowed_methods, reason = "this is the process that becomes the workload")]
fn become_user(user: &std::ffi::OsStr, args: impl Iterator<Item = OsString>, epoch: &str) -> String {
    let Some(User { uid, gid }) = user.to_str().and_then(|user| user.parse().ok()) else {
        return "the shim was called by hand".into();
    };
    let fencer = getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let mut same = Command::new(SELF);
    same.arg("fencer-exec").arg(fencer.to_string()).args(args).env("QUORATE_EPOCH", epoch).uid(uid).gid(gid);
    format!("user {uid}:{gid}: {}", same.exec())
}

#[expect(clippy::disallowed_methods, reason = "this is the process that becomes the workload")]
fn become_workload(mut args: impl Iterator<Item = OsString>, epoch: Option<&str>) -> String {
    let (Some(dir), Some(program)) = (args.next().map(PathBuf::from), args.next()) else {
        return "fencer-exec was called by hand".into();
    };
    if !dir.as_os_str().is_empty()
        && let Err(e) = std::env::set_current_dir(&dir)
    {
        return format!("working_dir {}: {e}", dir.display());
    }
    let mut workload = Command::new(program);
    workload.args(args).stdin(Stdio::null());
    if let Some(epoch) = epoch {
        workload.env("QUORATE_EPOCH", epoch);
    }
    workload.exec().to_string()
}
