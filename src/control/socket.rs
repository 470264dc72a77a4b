//! The Unix socket: made, found stale, removed again.
//!
//! A sidecar that was killed leaves its socket file behind. It is replaced only if nobody answers on it, so that a
//! second sidecar on the same device is told so instead of taking the first one's place. Whoever may open the file
//! may move the workload, so only its user and group may.

use std::{
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::net::{UnixListener, UnixStream};

/// Owner and group may connect.
const MODE: u32 = 0o660;
/// How often whoever serves it should [`Socket::mend`] it.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// A live sidecar accepts at once; one that is frozen leaves us waiting, and still owns the socket.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another sidecar answers there.
    #[error("{0} is in use by another sidecar; stop it, or name another path in the configuration")]
    InUse(PathBuf),
    /// Something else lies there.
    #[error("{0} exists and is not a socket; move it away, or name another path in the configuration")]
    NotASocket(PathBuf),
    /// Its folder is missing, and is not one to be made without being asked.
    #[error(
        "{path}: there is no folder {folder}; make it (systemd: RuntimeDirectory=), or name a path below /run"
    )]
    NoFolder {
        /// The socket's path.
        path: PathBuf,
        /// What is missing.
        folder: PathBuf,
    },
    /// The system refused.
    #[error("cannot make the socket {path}: {source}")]
    System {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A listening socket. Its file is removed on drop, unless another has taken its place.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: File,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    id: (u64, u64),
}

impl File {
    fn is_there(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.id)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Socket {
    /// Listens at `path`, making its folder if only the last part of it is missing; none is made in the root folder, which is
    /// nobody's place. Must run inside a tokio runtime.
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`Error`]; nothing is left behind.
    pub async fn bind(path: &Path) -> Result<Socket, Error> {
        let system = |source| Error::System { path: path.to_owned(), source };
        match std::fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => return Err(Error::NotASocket(path.to_owned())),
            Ok(_) => {
                let answer = tokio::time::timeout(ANSWER_TIME, UnixStream::connect(path)).await;
                let refused = matches!(&answer, Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused);
                match answer {
                    _ if refused => std::fs::remove_file(path).map_err(system)?,
                    Ok(Err(e)) if e.kind() == io::ErrorKind::NotFound => {}
                    Ok(Err(e)) => return Err(system(e)),
                    Ok(Ok(_)) | Err(_) => return Err(Error::InUse(path.to_owned())),
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if let Some(folder) = path.parent().filter(|f| !f.exists()) {
                    if folder.parent() == Some(Path::new("/")) {
                        let (path, folder) = (path.to_owned(), folder.to_owned());
                        return Err(Error::NoFolder { path, folder });
                    }
                    std::fs::create_dir(folder).map_err(system)?;
                }
            }
            Err(e) => return Err(system(e)),
        }
        let listener = UnixListener::bind(path).map_err(system)?;
        let meta = std::fs::symlink_metadata(path).map_err(system)?;
        let file = File { path: path.to_owned(), id: (meta.dev(), meta.ino()) };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE)).map_err(system)?;
        Ok(Socket { listener, file })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Listens at its path again, if whoever connects there comes here no more. Whether that was so. Who is connected stays. Cancel-safe.
    ///
    /// # Errors
    /// [`Error`]: as for [`Socket::bind`]; it is as it was.
    pub(super) async fn mend(&mut self) -> Result<bool, Error> {
        if self.file.is_there() {
            return Ok(false);
        }
        let path = self.path().to_owned();
        *self = Socket::bind(&path).await?;
        tracing::warn!("{} was removed or replaced; it is made anew", path.display());
        Ok(true)
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("run/control.sock");
        // What a killed sidecar leaves: the file without anybody behind it.
        std::fs::create_dir(folder.path().join("run")).expect("folder");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        assert!(path.exists());

        let socket = Socket::bind(&path).await.expect("replaces");
        let mode = std::fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert!(matches!(Socket::bind(&path).await, Err(Error::InUse(_))));
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_missing_folder_is_made_and_a_file_is_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let made = Socket::bind(&folder.path().join("quorate/control.sock")).await.expect("binds");
        assert!(made.path().exists());
        let precious = folder.path().join("data");
        std::fs::write(&precious, "x").expect("writes");
        assert!(matches!(Socket::bind(&precious).await, Err(Error::NotASocket(_))));
        assert_eq!(std::fs::read(&precious).expect("reads"), b"x");
        let in_root = Path::new("/no-folder-of-quorates/control.sock");
        let refused = Socket::bind(in_root).await.expect_err("is refused");
        assert!(refused.to_string().contains("RuntimeDirectory") && !in_root.parent().expect("one").exists());
        let deep = folder.path().join("no/such/folder/control.sock");
        assert!(matches!(Socket::bind(&deep).await, Err(Error::System { .. })));
    }

    #[tokio::test]
    async fn what_was_removed_is_made_anew_and_what_is_anothers_is_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("control.sock");
        let mut socket = Socket::bind(&path).await.expect("binds");
        assert!(!socket.mend().await.expect("is well"));
        std::fs::remove_file(&path).expect("removes");
        std::fs::write(&path, b"x").expect("writes");
        assert!(matches!(socket.mend().await, Err(Error::NotASocket(_))));
        assert_eq!(std::fs::read(&path).expect("reads"), b"x");
        std::fs::remove_file(&path).expect("removes");
        assert!(socket.mend().await.expect("is made anew"));
        assert!(UnixStream::connect(&path).await.is_ok());
        let other = tokio::net::UnixListener::bind(folder.path().join("other")).expect("binds");
        std::fs::rename(folder.path().join("other"), &path).expect("takes its place");
        assert!(matches!(socket.mend().await, Err(Error::InUse(_))));
        drop((socket, other));
        assert!(path.exists(), "it is the other's");
    }

    #[tokio::test]
    async fn the_file_of_a_successor_is_not_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("control.sock");
        let first = Socket::bind(&path).await.expect("binds");
        std::fs::remove_file(&path).expect("removes");
        let second = Socket::bind(&path).await.expect("binds");
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}
