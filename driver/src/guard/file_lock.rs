//! Locks that a crashed holder cannot keep: flock on a file, bounded, and taken again if the file was replaced meanwhile.
//!
//! There are two kinds, so that a node plugin that hangs in a device never makes a controller wait:
//! - the **record lock** of a volume, for whoever changes its record: the controller's durable steps, and short
//!   read-modify-writes of a node;
//! - the **node lock** of a volume on one node, for the whole of a node call. Whoever has it may take the record lock for a
//!   moment; never the other way round, and no lock is held across the input or output of another volume.
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::error::Error;
use crate::kernel::wait;

/// How long a call waits for another one on the same volume before it answers ABORTED.
const LIMIT: Duration = Duration::from_secs(8);

/// A lock that is held. Its file goes with it, so that nothing is left of a volume that nobody works on.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    // Dropped, and with that unlocked, after the file has lost its name: see `Drop`.
    _held: Flock<File>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is held: whoever waits for it sees that the file has no name any more. One that cannot be removed is
        // an ordinary free lock.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Takes the lock at `path` if it is free.
///
/// # Errors
/// The failed call.
pub fn try_lock(path: &Path) -> io::Result<Option<Lock>> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o660)
            .open(path)?;
        let held = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => held,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(errno.into()),
        };
        // The holder before has removed the file: a lock on a file without a name keeps nobody out.
        match std::fs::metadata(path) {
            Ok(now) if now.ino() == held.metadata()?.ino() => {
                let path = path.to_owned();
                return Ok(Some(Lock { path, _held: held }));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Takes the lock at `path`, at the most for the bound; `key` is what the message calls it.
///
/// # Errors
/// ABORTED when the bound has passed.
pub fn lock(path: &Path, key: &str) -> Result<Lock, Error> {
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
        assert!(!path.exists(), "the lock's file outlives it");
        assert!(try_lock(&path).unwrap().is_some());
    }

    #[test]
    fn a_lock_on_a_removed_file_keeps_nobody_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lock");
        let old = try_lock(&path).unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        let new = try_lock(&path).unwrap().unwrap();
        assert_ne!(
            old._held.metadata().unwrap().ino(),
            new._held.metadata().unwrap().ino()
        );
    }

    /// Holders take turns while the file comes and goes under them: never two at once.
    #[test]
    fn many_holders_are_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lock");
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _lock = lock(&path, "a").unwrap();
                        let others = inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        assert_eq!(others, 0, "two holders");
                        std::thread::yield_now();
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
    }
}
