//! Where the workload says that it is ready: a datagram socket that speaks the protocol of sd_notify(3).
//!
//! The workload finds it in `NOTIFY_SOCKET`, so whatever was written for systemd works unchanged. Understood are `READY=1`,
//! `WATCHDOG=1` and `STATUS=text`; the rest is thrown away, descriptors included.
//!
//! It is no door for others. Only the workload's user may open it; the kernel says who sent each datagram, and one of a process that does not
//! belong to this device's workload is thrown away. Nothing that comes in is worth more than a word about readiness: it
//! starts, ends and prolongs nothing. What floods it is read slowly and waits.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg, sockopt},
    process::Pid,
};
use tokio::{io::Interest, net::UnixDatagram, sync::watch};

use super::{orphans, readiness::Said, user::User, wire::Text};
use crate::clock::{Clock, Moment};

/// A longer datagram is thrown away.
const WORDS_MAX: usize = 4096;
/// So many datagrams are read at once, and then none for [`PAUSE`].
const AT_ONCE: u32 = 16;
const PAUSE: Duration = Duration::from_millis(50);

/// The workload's end is reached by the name of this socket; one that a dead sidecar left is replaced. Must be called inside a tokio
/// runtime.
///
/// # Errors
/// What the system said, with the path.
pub(super) fn open(path: &Path, user: Option<User>) -> Result<UnixDatagram, String> {
    let not = |e: io::Error| format!("cannot listen on {}: {e}", path.display());
    if std::fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket()) {
        std::fs::remove_file(path).map_err(not)?;
    }
    let socket = UnixDatagram::bind(path).map_err(not)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(not)?;
    if let Some(User { uid, gid }) = user {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(not)?;
        passable(path, uid, gid)?;
    }
    sockopt::set_socket_passcred(&socket, true).map_err(|e| not(e.into()))?;
    Ok(socket)
}

/// Whether this user can get to the socket.
fn passable(path: &Path, uid: u32, gid: u32) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt as _;
    let folders = path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty());
    for folder in folders {
        let Ok(meta) = std::fs::metadata(folder) else { continue };
        let bit = match () {
            () if meta.uid() == uid => 0o100,
            () if meta.gid() == gid => 0o010,
            () => 0o001,
        };
        if uid != 0 && meta.mode() & bit == 0 {
            return Err(format!(
                "workload.user cannot reach {}; chmod o+x {}, or name a control.socket in another folder",
                path.display(),
                folder.display()
            ));
        }
    }
    Ok(())
}

/// Hears the workload whose processes carry `mark` or live in `session`, until the future is dropped. Cancel-safe.
pub(super) async fn listen(
    socket: UnixDatagram,
    mark: String,
    session: Arc<AtomicI32>,
    clock: Arc<dyn Clock>,
    said: watch::Sender<Said>,
) {
    let mut told = false;
    loop {
        for _ in 0..AT_ONCE {
            let why = match hear(&socket, &mark, &session).await {
                Ok(Heard::Words(words)) => {
                    let now = clock.now();
                    said.send_if_modified(|said| note(said, &words, now));
                    continue;
                }
                Ok(Heard::Nothing) => continue,
                Ok(Heard::Stranger(pid)) => {
                    format!("process {pid} is no part of the workload and spoke for it; it is not heard")
                }
                Err(e) => format!("the workload's words cannot be heard: {e}"),
            };
            if !std::mem::replace(&mut told, true) {
                tracing::warn!("{why}");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Words(Vec<u8>),
    /// Too long to be anything.
    Nothing,
    /// Words of this process, which does not belong to the workload, or has ended.
    Stranger(i32),
}

/// The next datagram. Its sender is looked at before the next one is read: a process that waits until its words are taken lives
/// so long.
async fn hear(socket: &UnixDatagram, mark: &str, session: &AtomicI32) -> io::Result<Heard> {
    let (words, sender) = socket.async_io(Interest::READABLE, || receive(socket)).await?;
    let session = Some(session.load(Ordering::Relaxed)).filter(|session| *session > 0);
    Ok(match (sender, words) {
        (Some(sender), words) if orphans::belongs(sender, mark, session) => {
            words.map_or(Heard::Nothing, Heard::Words)
        }
        (sender, _) => Heard::Stranger(sender.map_or(0, |pid| pid.as_raw_nonzero().get())),
    })
}

/// One datagram, if it is not too long, and the process that sent it.
fn receive(socket: &UnixDatagram) -> io::Result<(Option<Vec<u8>>, Option<Pid>)> {
    let mut bytes = vec![0; WORDS_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let sender = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.pid),
        _ => None,
    });
    bytes.truncate(got.bytes);
    Ok(((!got.flags.contains(ReturnFlags::TRUNC)).then_some(bytes), sender))
}

/// Takes in the words of one datagram; whether there was anything in them.
fn note(said: &mut Said, words: &[u8], now: Moment) -> bool {
    let Ok(text) = std::str::from_utf8(words) else { return false };
    let mut news = false;
    for line in text.lines() {
        match line.split_once('=') {
            Some(("READY", "1")) => said.ready = Some(now),
            Some(("WATCHDOG", "1")) => said.alive = Some(now),
            Some(("STATUS", status)) => said.status = Some((now, Text::new(status).as_str().to_owned())),
            _ => continue,
        }
        news = true;
    }
    news
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_understood() {
        let mut said = Said::default();
        let now = Moment::default() + Duration::from_secs(1);
        assert!(note(&mut said, b"STATUS=loading\x1b[31m model\nREADY=1\nMAINPID=1\n", now));
        assert_eq!(said.ready, Some(now));
        assert_eq!(said.status, Some((now, "loading [31m model".to_owned())));
        assert!(note(&mut said, b"WATCHDOG=1", now));
        assert_eq!(said.alive, Some(now));
        for nothing in
            [&b""[..], b"READY=0", b"READY", b"READY=11", b"\xff\xfe", b"ready=1", b"FDSTORE=1", b"X_READY=1"]
        {
            assert!(!note(&mut Said::default(), nothing, now), "{nothing:?}");
        }
    }

    /// In a session of its own: one that began outside of this process id namespace, as a container's may, has the number 0 here.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test starts itself in a session of its own")]
    fn only_the_workloads_own_processes_are_heard() {
        const ALONE: &str = "QUORATE_TEST_ALONE";
        if std::env::var_os(ALONE).is_some() {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            return runtime.block_on(hears_only_the_workload());
        }
        let this = "workload::notify::tests::only_the_workloads_own_processes_are_heard";
        let alone = std::process::Command::new("setsid")
            .arg("--wait")
            .arg(std::env::current_exe().expect("a path"))
            .args(["--exact", this, "--nocapture"])
            .env(ALONE, "1")
            .output()
            .expect("setsid of util-linux");
        let said =
            format!("{}{}", String::from_utf8_lossy(&alone.stdout), String::from_utf8_lossy(&alone.stderr));
        assert!(alone.status.success() && said.contains("1 passed"), "{said}");
    }

    async fn hears_only_the_workload() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify.sock");
        // What a killed sidecar leaves.
        drop(std::os::unix::net::UnixDatagram::bind(&path).expect("binds"));
        let socket = open(&path, None).expect("opens");
        assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
        let speaker = UnixDatagram::unbound().expect("a socket");
        let say = async |words: &[u8]| speaker.send_to(words, &path).await.expect("sends");
        let session = AtomicI32::new(0);
        // This very test is no part of the workload, and then it is: it runs in the fencer's session.
        say(b"READY=1").await;
        let me = i32::try_from(std::process::id()).expect("a process id");
        assert_eq!(hear(&socket, "nobody's mark", &session).await.expect("reads"), Heard::Stranger(me));
        let own = rustix::process::getsid(None).expect("a session").as_raw_nonzero().get();
        session.store(own, Ordering::Relaxed);
        say(&[b"READY=1\nSTATUS=".to_vec(), vec![b'x'; 20_000]].concat()).await;
        assert_eq!(hear(&socket, "nobody's mark", &session).await.expect("reads"), Heard::Nothing);
        say(b"READY=1").await;
        assert_eq!(
            hear(&socket, "nobody's mark", &session).await.expect("reads"),
            Heard::Words(b"READY=1".to_vec())
        );
    }

    #[test]
    fn a_user_who_cannot_get_there_is_told_why() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify.sock");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).expect("closes");
        let why = passable(&path, 65_533, 65_533).expect_err("is closed");
        assert!(why.contains("chmod o+x"), "{why}");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).expect("opens");
        assert_eq!(passable(&path, 65_533, 65_533), Ok(()));
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_does_harm(words in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut said = Said::default();
            note(&mut said, &words, Moment::default());
            prop_assert!(said.status.is_none_or(|(_, text)| text.len() <= 300 && !text.contains(char::is_control)));
        }
    }
}
