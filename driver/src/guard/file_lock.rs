//! A lock that a crashed holder cannot keep: flock on a file, bounded, and taken again if the file was replaced meanwhile.
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::error::Error;
use crate::kernel::wait;

/// How long a call waits for another one on the same volume before it answers ABORTED.
const LIMIT: Duration = Duration::from_secs(8);

/// Takes the lock at `path` if it is free.
///
/// # Errors
/// The failed call.
pub fn try_lock(path: &Path) -> io::Result<Option<Flock<File>>> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o660)
            .open(path)?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(errno.into()),
        };
        // The holder before may have removed the file: a lock on a file without a name keeps nobody out.
        match std::fs::metadata(path) {
            Ok(now) if now.ino() == lock.metadata()?.ino() => return Ok(Some(lock)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Takes the lock at `path`, at the most for the bound.
///
/// # Errors
/// ABORTED when the bound has passed.
pub fn lock(path: &Path, key: &str) -> Result<Flock<File>, Error> {
    let mut taken = None;
    wait::until(LIMIT, || {
        taken = try_lock(path).map_err(Error::storage(format!("locking {key}")))?;
        Ok::<_, Error>(taken.is_some())
    })?;
    taken.ok_or_else(|| Error::Busy {
        key: key.to_owned(),
        holder: String::from("another call"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_kept_out_until_the_first_lets_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lock");
        let first = try_lock(&path).unwrap().unwrap();
        assert!(try_lock(&path).unwrap().is_none());
        drop(first);
        assert!(try_lock(&path).unwrap().is_some());
    }

    #[test]
    fn a_lock_on_a_removed_file_keeps_nobody_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lock");
        let old = try_lock(&path).unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        let new = try_lock(&path).unwrap().unwrap();
        assert_ne!(old.metadata().unwrap().ino(), new.metadata().unwrap().ino());
    }
}
