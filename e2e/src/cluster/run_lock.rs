//! Which runs are alive: a lock per cluster that a run works on; the kernel lets go of it when the run's process ends,
//! however it ends, so what a free lock stands for was left by a run that was killed.
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::wait::{self, Look};
use super::{ClusterError, at, state_root};

/// Of a cluster that was made for the run, and goes with it.
const FRESH: &str = ".fresh-run";
/// Of one that stays.
const LASTING: &str = ".run";
/// A lock outlives its process by what a program needs from its fork to its start: 0.1 s were measured on a busy machine.
const LIMIT: Duration = Duration::from_secs(10);

/// Held while a run works on a cluster.
#[derive(Debug)]
pub struct RunLock {
    path: PathBuf,
    _file: File,
}

/// One attempt at a lock.
enum Attempt {
    Taken(RunLock),
    /// Its owner lives.
    Busy,
    /// It will be free, or another file, at once; why it is not yet.
    Soon(&'static str),
}

fn path(root: &Path, cluster: &str, ending: &str) -> PathBuf {
    // Hidden, so that it is no cluster's folder.
    root.join(format!(".{cluster}{ending}"))
}

/// The lock, or none if a process that lives holds it.
async fn take(path: &Path) -> Result<Option<RunLock>, ClusterError> {
    let look = || async {
        match open(path).and_then(|file| attempt(file, path)) {
            Ok(Attempt::Taken(lock)) => Look::Holds(Ok(Some(lock))),
            Ok(Attempt::Busy) => Look::Holds(Ok(None)),
            Ok(Attempt::Soon(why)) => Look::NotYet(String::from(why)),
            Err(error) => Look::Holds(Err(error)),
        }
    };
    wait::until(
        &format!("lock {} of a run that is over is free", path.display()),
        LIMIT,
        look,
    )
    .await?
}

fn open(path: &Path) -> Result<File, ClusterError> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(at(path, "open"))
}

fn attempt(file: File, path: &Path) -> Result<Attempt, ClusterError> {
    match file.try_lock() {
        Ok(()) => {}
        // The lock belongs to the open file, and a program that the killed run was starting has that until its exec closes it.
        Err(TryLockError::WouldBlock) if !owner_lives(path) => {
            return Ok(Attempt::Soon(
                "its process is gone, one that it was starting still has it",
            ));
        }
        Err(TryLockError::WouldBlock) => return Ok(Attempt::Busy),
        Err(TryLockError::Error(error)) => return Err(at(path, "lock")(error)),
    }
    let opened = file.metadata().map_err(at(path, "stat"))?.ino();
    if std::fs::metadata(path).map(|now| now.ino()).ok() != Some(opened) {
        return Ok(Attempt::Soon("its file was removed meanwhile"));
    }
    let text = identity(std::process::id()).unwrap_or_default();
    // First written, then cut: whoever reads meanwhile finds the new process, or nothing that makes sense.
    file.write_all_at(text.as_bytes(), 0)
        .and_then(|()| file.set_len(text.len() as u64))
        .map_err(at(path, "write"))?;
    Ok(Attempt::Taken(RunLock {
        path: path.to_owned(),
        _file: file,
    }))
}

/// A process by its number and the tick at which it began: the number alone may be anybody's by now.
fn identity(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may have spaces; the start is the 20th field after it (proc(5)).
    let began = stat.rsplit(')').next()?.split_whitespace().nth(19)?;
    Some(format!("{pid} {began}\n"))
}

/// Whether the process that wrote the lock is there; a lock without a whole line has just been made.
fn owner_lives(path: &Path) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let pid = text.split(' ').next().and_then(|pid| pid.parse().ok());
    match pid {
        Some(pid) if text.ends_with('\n') => identity(pid).is_some_and(|now| now == text),
        Some(_) | None => true,
    }
}

impl RunLock {
    /// Takes the lock of `cluster`; a `fresh` one is made for the run, and removed with it.
    ///
    /// # Errors
    /// If another run works on it.
    pub async fn of(cluster: &str, fresh: bool) -> Result<Self, ClusterError> {
        let root = state_root();
        std::fs::create_dir_all(&root).map_err(at(&root, "create"))?;
        let lock = take(&path(&root, cluster, if fresh { FRESH } else { LASTING })).await?;
        lock.ok_or_else(|| {
            ClusterError::Setup(format!(
                "another run works on cluster {cluster}; wait for it, or name another cluster"
            ))
        })
    }

    /// The run is over and has left nothing that the next one should look for.
    pub fn forget(self) {
        // If it stays, the next run looks once for nothing.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The clusters that were made for a run which was killed, each with its lock.
///
/// # Errors
/// If the folder of states cannot be read.
pub async fn orphans() -> Result<Vec<(String, RunLock)>, ClusterError> {
    orphans_in(&state_root()).await
}

async fn orphans_in(root: &Path) -> Result<Vec<(String, RunLock)>, ClusterError> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(source) => return Err(at(root, "list")(source)),
    };
    for entry in entries {
        let name = entry
            .map_err(at(root, "list"))?
            .file_name()
            .to_string_lossy()
            .into_owned();
        if let Some(cluster) = name.strip_prefix('.').and_then(|n| n.strip_suffix(FRESH))
            && let Some(lock) = take(&root.join(&name)).await?
        {
            found.push((cluster.to_owned(), lock));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// The line of a process that is gone.
    const GONE: &str = "4294967295 1\n";

    async fn taken(path: &Path) -> RunLock {
        take(path).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_lock_that_a_child_of_a_killed_process_still_has_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let path = path(root.path(), "killed", FRESH);
        let lock = taken(&path).await;
        // Until its exec a child has every open file of its parent; this one keeps the lock's as its output.
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(lock._file.try_clone().unwrap())
            .spawn()
            .unwrap();
        std::fs::write(&path, GONE).unwrap();
        drop(lock);
        let mut next = Box::pin(take(&path));
        let early = tokio::time::timeout(Duration::from_millis(300), &mut next).await;
        assert!(early.is_err(), "taken while the child has it");
        drop(child.stdin.take());
        assert!(next.await.unwrap().is_some());
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_lock_whose_file_was_removed_between_its_opening_and_its_locking_is_none() {
        let root = tempfile::tempdir().unwrap();
        let path = path(root.path(), "a", FRESH);
        let lock = taken(&path).await;
        let early = open(&path).unwrap();
        lock.forget();
        assert!(matches!(attempt(early, &path), Ok(Attempt::Soon(_))));
        let _lock = taken(&path).await;
        assert!(take(&path).await.unwrap().is_none());
    }

    #[test]
    fn a_number_that_another_process_got_is_not_the_owner() {
        let root = tempfile::tempdir().unwrap();
        let path = path(root.path(), "a", FRESH);
        let own = identity(std::process::id()).unwrap();
        for (text, lives) in [
            (own.clone(), true),
            (format!("{} 1\n", std::process::id()), false),
            (String::from(GONE), false),
            (String::new(), true),
            (own.trim_end().to_owned(), true),
        ] {
            std::fs::write(&path, &text).unwrap();
            assert_eq!(owner_lives(&path), lives, "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_lock_that_nobody_holds_stands_for_a_run_that_was_killed() {
        let root = tempfile::tempdir().unwrap();
        let alive = taken(&path(root.path(), "alive", FRESH)).await;
        drop(taken(&path(root.path(), "killed", FRESH)).await);
        drop(taken(&path(root.path(), "lasting", LASTING)).await);
        let found = orphans_in(root.path()).await.unwrap();
        assert_eq!(
            found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["killed"]
        );
        assert!(take(&path(root.path(), "alive", FRESH)).await.unwrap().is_none());
        alive.forget();
        for (_, lock) in found {
            lock.forget();
        }
        assert!(orphans_in(root.path()).await.unwrap().is_empty());
    }
}
