//! A Unix socket of our own: a stale one is removed, a live one and what is no socket are refused, nobody else may connect.
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};

/// Listens at `path`, for this user (and root) only.
///
/// # Errors
/// AddrInUse if somebody answers there, AlreadyExists if it is no socket; the failed call otherwise.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // A link is not followed: what it leads to is not ours.
    if let Ok(there) = std::fs::symlink_metadata(path) {
        if !there.file_type().is_socket() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} is there and is no socket; remove it first", path.display()),
            ));
        }
        if UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("{} is served by another process", path.display()),
            ));
        }
        std::fs::remove_file(path)?;
    }
    // Under the umask of the process nobody outside the group gets in before the mode is set.
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// The connections of `listener` whose peer is root or this very user. One that cannot be accepted, for want of a descriptor
/// say, is logged and ends nothing.
pub fn trusted(listener: UnixListener) -> impl Stream<Item = io::Result<tokio::net::UnixStream>> + Send {
    let own = nix::unistd::geteuid().as_raw();
    UnixListenerStream::new(listener)
        .then(move |connection| async move {
            match connection {
                Ok(stream) => match stream.peer_cred() {
                    Ok(peer) if peer.uid() == 0 || peer.uid() == own => Some(Ok(stream)),
                    Ok(peer) => {
                        tracing::warn!(uid = peer.uid(), "connection of another user refused");
                        None
                    }
                    Err(_) => None,
                },
                Err(error) => {
                    tracing::warn!(%error, "accept on the socket");
                    pause().await;
                    None
                }
            }
        })
        .filter_map(|accepted| accepted)
}

/// A moment in which somebody may give a descriptor back: accept(2) fails again at once until then.
pub async fn pause() {
    let _ = tokio::time::timeout(Duration::from_millis(50), std::future::pending::<()>()).await;
}

/// Lets this process have as many open files as the machine allows: a client that opens connections must not use up those of
/// the work.
pub fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        tracing::warn!(%errno, "the limit of open files stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi.sock");
        drop(listen(&path).unwrap());
        let live = listen(&path).unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(live);
    }

    #[tokio::test]
    async fn what_is_no_socket_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::fs::write(&file, "of somebody").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [&file, &link] {
            assert_eq!(listen(path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(std::fs::read_to_string(path).unwrap(), "of somebody");
        }
    }
}
