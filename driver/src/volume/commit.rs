//! Makes names in one folder durable for many calls at once: whoever comes while an fsync runs shares the next one.
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};

#[derive(Debug, Default)]
struct Rounds {
    started: u64,
    done: u64,
    running: bool,
    /// The last round that failed, and its errno.
    failed: Option<(u64, i32)>,
}

/// A folder whose fsyncs are shared.
#[derive(Debug)]
pub(super) struct Commit {
    folder: File,
    rounds: Mutex<Rounds>,
    changed: Condvar,
}

impl Commit {
    /// Opens the folder.
    ///
    /// # Errors
    /// The failed call.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        Ok(Self {
            folder: File::open(folder)?,
            rounds: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Returns when everything that was named, renamed or removed in the folder before the call is durable.
    ///
    /// # Errors
    /// The fsync's, for everybody who waited for it.
    pub(super) fn sync(&self) -> io::Result<()> {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        // One that runs may have begun before the caller's change: only the next one covers it.
        let mine = rounds.started + 1;
        loop {
            if rounds.done >= mine {
                return match rounds.failed {
                    Some((round, errno)) if round >= mine => Err(io::Error::from_raw_os_error(errno)),
                    _ => Ok(()),
                };
            }
            if rounds.running {
                rounds = self.changed.wait(rounds).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            rounds.running = true;
            rounds.started += 1;
            let round = rounds.started;
            drop(rounds);
            let result = self.folder.sync_all();
            rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
            rounds.running = false;
            rounds.done = round;
            if let Err(error) = result {
                rounds.failed = Some((round, error.raw_os_error().unwrap_or(libc::EIO)));
            }
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_who_waits_shares_a_round_and_nobody_waits_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let commit = Commit::open(folder.path()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| (0..20).for_each(|_| commit.sync().unwrap()));
            }
        });
        let rounds = commit.rounds.lock().unwrap();
        assert_eq!(rounds.started, rounds.done);
        assert!(rounds.done <= 16 * 20);
        assert!(
            rounds.done >= 20,
            "a thread's calls are one after another: {}",
            rounds.done
        );
    }

    #[test]
    fn a_failed_round_fails_for_whoever_waited_for_it_only() {
        // fsync on a pipe is EINVAL.
        let (read, _write) = nix::unistd::pipe().unwrap();
        let commit = Commit {
            folder: File::from(read),
            rounds: Mutex::default(),
            changed: Condvar::new(),
        };
        assert_eq!(commit.sync().unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let good = tempfile::tempdir().unwrap();
        let commit = Commit {
            folder: File::open(good.path()).unwrap(),
            ..commit
        };
        commit.sync().unwrap();
    }
}
