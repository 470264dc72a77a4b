//! What the fencer starts and ends in place of a container: a process whose life is the container's.
//!
//! `quorate workload-runner` starts the container, ends when it has ended, and stops it when it is told to end itself.
//! `quorate workload-undo` is what the fencer calls when that process is gone, however it ended: it ends the container, and succeeds only
//! when nothing of it runs. `quorate workload-hold` is the same for a hook: it carries out a command once and then only lives.
//!
//! None of them knows the deadline. That is the fencer's, and it does not trust them.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{ExitCode, Stdio},
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};

use super::{
    fencer::MARK,
    orphans,
    runtime::{Api, Runtime},
};

/// How often the container is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How often while it is being ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How often what a hook has left is killed, before its end is left to the fencer.
const LAST_LOOKS: u32 = 20;

/// Runs a container; `args`: the noun of its API, the socket, its name, the patience of a stop in milliseconds.
pub(super) fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    with(args, async |runtime, patience| {
        let mut told = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
        let title = runtime.title();
        let seen = runtime.look().await?.ok_or_else(|| format!("there is no {title}"))?;
        if let Some(why) = seen.unsuited {
            return Err(format!("{title}: {why}"));
        }
        if !seen.runs {
            // Not given up for a word to end: a start that is on its way would land after the stop.
            runtime.start().await?;
        }
        let ended = tokio::select! {
            biased;
            _ = told.recv() => None,
            ended = runtime.ended(LOOK) => Some(ended?),
        };
        match ended {
            Some(code) => Ok(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))),
            None => {
                runtime.stop(patience).await?;
                runtime.ended(LOOK_AGAIN).await?;
                Ok(ExitCode::SUCCESS)
            }
        }
    })
}

/// Ends a container for certain; `args` as for [`run`].
pub(super) fn undo(args: impl Iterator<Item = OsString>) -> ExitCode {
    with(args, async |runtime, _| {
        while runtime.look().await?.is_some_and(|seen| seen.runs) {
            runtime.kill().await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Carries out a command and, if it succeeds, lives on until it is ended from outside; `args`: the command, or nothing. What the command has left
/// running is named, and ended with it: nobody waits for that.
#[expect(clippy::print_stderr, reason = "a workload's words go into the sidecar's log")]
pub(super) fn hold(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.collect();
    let mark = std::env::var_os(MARK).and_then(|mark| mark.into_string().ok()).unwrap_or_default();
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
    tokio.map_err(|e| e.to_string()).and_then(|tokio| tokio.block_on(held(&args, &mark))).unwrap_or_else(
        |why| {
            eprintln!("{why}");
            ExitCode::FAILURE
        },
    )
}

#[expect(clippy::disallowed_methods, clippy::print_stderr, reason = "this process is the workload")]
async fn held(args: &[OsString], mark: &str) -> Result<ExitCode, String> {
    let mut told = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    if let Some((program, args)) = args.split_first() {
        let shown = program.display();
        let status = tokio::process::Command::new(program).args(args).stdin(Stdio::null()).status().await;
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => {
                eprintln!("on_owner: {shown} has failed: {status}");
                let code = status.code().and_then(|code| u8::try_from(code).ok());
                return Ok(ExitCode::from(code.unwrap_or(1)));
            }
            Err(e) => {
                eprintln!("on_owner: {shown}: {e}");
                return Ok(ExitCode::from(127));
            }
        }
        let left = orphans::marked(mark);
        if !left.is_empty() {
            eprintln!(
                "on_owner: {shown} has left running: {}; it is ended with the ownership",
                left.join(", ")
            );
        }
    }
    told.recv().await;
    for _ in 0..LAST_LOOKS {
        if orphans::kill(mark, None) == 0 {
            break;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stderr, reason = "a workload's words go into the sidecar's log")]
fn with(
    args: impl Iterator<Item = OsString>,
    act: impl AsyncFnOnce(Runtime, Duration) -> Result<ExitCode, String>,
) -> ExitCode {
    let done = || {
        let (runtime, patience) = parse(args).ok_or("it was called by hand")??;
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
        tokio.map_err(|e| e.to_string())?.block_on(act(runtime, patience))
    };
    done().unwrap_or_else(|why: String| {
        eprintln!("{why}");
        ExitCode::FAILURE
    })
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Option<Result<(Runtime, Duration), String>> {
    let api = Api::by_noun(args.next()?.to_str()?)?;
    let (socket, name) = (PathBuf::from(args.next()?), args.next()?.into_string().ok()?);
    let patience = Duration::from_millis(args.next()?.to_str()?.parse().ok()?);
    Some(Runtime::new(api, socket, &name).map(|runtime| (runtime, patience)))
}
