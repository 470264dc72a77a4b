//! One fencer as the sidecar sees it: the process, the socket to it, and the workload's output.
//!
//! Nothing here waits except [`Link::next`] and [`Link::ended`]. What cannot be written yet is kept, at most one start,
//! one stop and the newest extension, so a fencer that does not read costs no memory.

use std::{
    io::ErrorKind,
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt, process::CommandExt},
    },
    path::Path,
    process::Stdio,
    sync::Arc,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{io::Interest, net::UnixStream, process::Child, sync::oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Settings,
    fencer::{MARK, SELF},
    orders::Orders,
    orphans, output,
    process::{Context, LOCK_FILE, environment},
    wire::{Command, Event, Lines},
};
use crate::{clock::Moment, epoch::Epoch};

/// What a fencer on this data folder marks its workload with.
pub(super) fn mark(data: &Path) -> std::io::Result<String> {
    // Two containers may see different folders under one path, but never share a folder's number.
    let folder = std::fs::metadata(data)?;
    Ok(format!("{:x}-{:x}", folder.dev(), folder.ino()))
}

/// A running fencer.
#[derive(Debug)]
pub(super) struct Link {
    child: Child,
    pid: Option<i32>,
    mark: String,
    socket: Option<UnixStream>,
    lines: Lines,
    unsent: Vec<u8>,
    /// It reads no more.
    deaf: bool,
    extension: Option<(Epoch, Moment)>,
    output: CancellationToken,
}

impl Link {
    /// Starts a fencer. It reports [`Event::Ready`] once nothing of an earlier life runs.
    #[expect(clippy::disallowed_methods, reason = "the fencer is started here")]
    pub(super) fn spawn(
        settings: &Settings,
        context: &Context,
        after_session: Option<i32>,
    ) -> std::io::Result<Link> {
        let data = std::fs::canonicalize(&context.data)?;
        let orders = Orders {
            lock: data.join(LOCK_FILE),
            mark: mark(&data)?,
            kill_after: settings.kill_after(&context.timing),
            stop_timeout: settings.stop_timeout,
            outlives: context.timing.hold() + context.timing.stop_grace(),
            parent: rustix::process::getpid().as_raw_nonzero().get(),
            after_session,
            cgroup: context.cgroup,
            site: context.site_digest,
            members: context.members.clone(),
            dir: settings.working_dir.clone(),
            user: settings.user,
            limits: settings.limits,
            undo: settings.undo.iter().map(Into::into).collect(),
            command: settings.command.iter().map(Into::into).collect(),
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let program = context.program.clone().unwrap_or_else(|| SELF.into());
        let mut command = std::process::Command::new(program);
        command
            .arg0("quorate")
            .args(orders.to_args())
            .env_clear()
            .envs(environment(settings, context))
            .env_remove(MARK)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = tokio::process::Command::from(command).spawn()?;
        let output = CancellationToken::new();
        if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
            let (done, also_done) = (output.clone(), output.clone());
            let (out, err) = (
                output::log(stdout, "stdout", Arc::clone(&context.clock)),
                output::log(stderr, "stderr", Arc::clone(&context.clock)),
            );
            // An escaped process may hold a pipe for ever; the readers end with the link.
            context.tracker.spawn(async move { done.run_until_cancelled(out).await });
            context.tracker.spawn(async move { also_done.run_until_cancelled(err).await });
        }
        Ok(Link {
            pid: child.id().and_then(|id| i32::try_from(id).ok()),
            child,
            mark: orders.mark,
            socket: Some(UnixStream::from_std(ours)?),
            lines: Lines::default(),
            unsent: Vec::new(),
            deaf: false,
            extension: None,
            output,
        })
    }

    /// The session that the fencer leads and the workload lives in.
    pub(super) fn session(&self) -> Option<i32> {
        self.pid
    }

    /// Passes a start or a stop on. What was said is not lost while the link lives.
    pub(super) fn say(&mut self, command: &Command) {
        if let Some((epoch, until)) = self.extension.take() {
            self.unsent.extend_from_slice(format!("{}\n", Command::Extend { epoch, until }).as_bytes());
        }
        self.unsent.extend_from_slice(format!("{command}\n").as_bytes());
        self.flush();
    }

    /// Passes an extension on; only the newest waits if the fencer does not read.
    pub(super) fn extend(&mut self, epoch: Epoch, until: Moment) {
        self.extension = Some((epoch, until));
        self.flush();
    }

    /// The next event. Writes what waits to be written meanwhile. Cancel-safe.
    ///
    /// # Errors
    /// How the link broke. It stays broken.
    pub(super) async fn next(&mut self) -> Result<Event, String> {
        loop {
            if let Some(line) = self.lines.next_line().map_err(|e| e.to_string())? {
                return Event::parse(&line).map_err(|e| e.to_string());
            }
            let waiting = !self.deaf && (!self.unsent.is_empty() || self.extension.is_some());
            let Some(socket) = &self.socket else { return Err("it was let go".into()) };
            let interest = if waiting { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            let ready = socket.ready(interest).await.map_err(|e| e.to_string())?;
            if ready.is_writable() {
                self.flush();
            }
            let Some(socket) = &self.socket else { return Err("it was let go".into()) };
            let mut bytes = [0; 1024];
            match socket.try_read(&mut bytes) {
                Ok(0) => return Err("it ended".into()),
                Ok(n) => self.lines.push(bytes.get(..n).unwrap_or_default()),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(e) => return Err(e.to_string()),
            }
        }
    }

    /// A broken link shows itself when reading, after the last words of the fencer, so writing reports nothing. It is not
    /// tried again: such a socket is always ready to be written, and whoever waits for that waits for nothing else.
    fn flush(&mut self) {
        if self.deaf {
            return;
        }
        let Some(socket) = &self.socket else { return };
        loop {
            if self.unsent.is_empty() {
                let Some((epoch, until)) = self.extension.take() else { return };
                self.unsent.extend_from_slice(format!("{}\n", Command::Extend { epoch, until }).as_bytes());
            }
            match socket.try_write(&self.unsent) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(e) => {
                    self.deaf = !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);
                    return;
                }
            }
        }
    }

    /// Whether the fencer has said something that has not been read yet, or has ended.
    pub(super) fn has_word(&self) -> bool {
        if self.lines.has_line() {
            return true;
        }
        let Some(socket) = &self.socket else { return false };
        let mut look = [PollFd::new(socket, PollFlags::IN)];
        poll(&mut look, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|found| found > 0)
    }

    /// Ends by force what is left of a fencer that is lost, and of its workload. The answer ends when that has been
    /// done once, and nothing is left of what the fencer had adopted; the next fencer makes sure of the rest.
    pub(super) fn bury(mut self, context: &Context) -> oneshot::Receiver<()> {
        // The workload's main process is tied to it. A stopped process is killed as well.
        let _ = self.child.start_kill();
        self.socket = None;
        let (done, buried) = oneshot::channel();
        let (mark, session) = (self.mark.clone(), self.pid);
        let (adopts, leave) = (context.adopts, context.leave.clone());
        // `/proc` may make a reader wait.
        let sweep = context.tracker.spawn_blocking(move || {
            let marked = orphans::kill(&mark, session);
            let wanted = || adopts && !leave.is_cancelled();
            marked + orphans::kill_adopted(session, wanted)
        });
        context.tracker.spawn(async move {
            let ended = sweep.await.unwrap_or_default();
            tracing::info!(ended, "what a lost fencer left running was killed");
            drop(done);
            // Only now: until it is reaped, its process id and so its session cannot be anybody else's.
            let _ = self.child.wait().await;
        });
        buried
    }

    /// Closes the socket, upon which the fencer stops the workload and ends.
    pub(super) fn hang_up(&mut self) {
        self.flush();
        self.socket = None;
    }

    /// Waits for the fencer's end; whether it ended as it should, with nothing of the workload left. Cancel-safe.
    pub(super) async fn ended(&mut self) -> bool {
        self.child.wait().await.is_ok_and(|status| status.success())
    }

    /// Hangs up and leaves the rest to the fencer; its end is awaited on `tracker`.
    pub(super) fn abandon(mut self, tracker: &TaskTracker) {
        self.hang_up();
        tracker.spawn(async move { self.child.wait().await.map(drop) });
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.output.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On one thread, as in the sidecar: whoever waits in vain here lets nothing else wait.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "a fencer that has ended")]
    fn what_a_fencer_said_last_is_read_although_it_takes_no_more_commands() {
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let heard = runtime.block_on(async {
                let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
                ours.set_nonblocking(true).expect("is allowed");
                let mut link = Link {
                    child: tokio::process::Command::new("true").spawn().expect("starts"),
                    pid: None,
                    mark: String::new(),
                    socket: Some(UnixStream::from_std(ours).expect("a socket")),
                    lines: Lines::default(),
                    unsent: Vec::new(),
                    deaf: false,
                    extension: None,
                    output: CancellationToken::new(),
                };
                // It took what was said so far.
                link.socket.as_ref().expect("a socket").writable().await.expect("is open");
                std::io::Write::write_all(&mut &theirs, format!("{}\n", Event::Alive).as_bytes())
                    .expect("writes");
                drop(theirs);
                link.say(&Command::Ping);
                (link.next().await, link.next().await)
            });
            let _ = done.send(heard);
        });
        let (last, end) = ended.recv_timeout(std::time::Duration::from_secs(20)).expect("it does not spin");
        assert_eq!(last, Ok(Event::Alive));
        assert!(end.is_err(), "{end:?}");
    }
}
