//! Which runs are alive: a lock per cluster that a run works on; the kernel lets go of it when the run's process ends,
//! however it ends, so what a free lock stands for was left by a run that was killed.
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use super::{ClusterError, at, state_root};

/// Of a cluster that was made for the run, and goes with it.
const FRESH: &str = ".fresh-run";
/// Of one that stays.
const LASTING: &str = ".run";

/// Held while a run works on a cluster.
#[derive(Debug)]
pub struct RunLock {
    path: PathBuf,
    _file: File,
}

fn path(root: &Path, cluster: &str, ending: &str) -> PathBuf {
    // Hidden, so that it is no cluster's folder.
    root.join(format!(".{cluster}{ending}"))
}

fn take(path: &Path) -> Result<Option<RunLock>, ClusterError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(at(path, "open"))?;
    match file.try_lock() {
        Ok(()) => {}
        // A program that the killed run was about to start has its files until it begins: it lets go at once.
        Err(TryLockError::WouldBlock) if !owner_lives(path) => file.lock().map_err(at(path, "lock"))?,
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(at(path, "lock")(error)),
    }
    std::fs::write(path, std::process::id().to_string()).map_err(at(path, "write"))?;
    Ok(Some(RunLock {
        path: path.to_owned(),
        _file: file,
    }))
}

/// Whether the process that wrote the lock is there; one whose number cannot be read has just been made.
fn owner_lives(path: &Path) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim()
        .parse::<u32>()
        .map_or_else(|_| true, |pid| Path::new("/proc").join(pid.to_string()).exists())
}

impl RunLock {
    /// Takes the lock of `cluster`; a `fresh` one is made for the run, and removed with it.
    ///
    /// # Errors
    /// If another run works on it.
    pub fn of(cluster: &str, fresh: bool) -> Result<Self, ClusterError> {
        let root = state_root();
        std::fs::create_dir_all(&root).map_err(at(&root, "create"))?;
        take(&path(&root, cluster, if fresh { FRESH } else { LASTING }))?.ok_or_else(|| {
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
pub fn orphans() -> Result<Vec<(String, RunLock)>, ClusterError> {
    orphans_in(&state_root())
}

fn orphans_in(root: &Path) -> Result<Vec<(String, RunLock)>, ClusterError> {
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
            && let Some(lock) = take(&root.join(&name))?
        {
            found.push((cluster.to_owned(), lock));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_of_a_process_that_is_gone_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let path = path(root.path(), "killed", FRESH);
        let heir = take(&path).unwrap().unwrap();
        // As if it were that of a process which ended while another one still had its file open.
        std::fs::write(&path, u32::MAX.to_string()).unwrap();
        let waits = std::thread::spawn({
            let path = path.clone();
            move || take(&path).unwrap().is_some()
        });
        drop(heir);
        assert!(waits.join().unwrap());
    }

    #[test]
    fn a_lock_that_nobody_holds_stands_for_a_run_that_was_killed() {
        let root = tempfile::tempdir().unwrap();
        let alive = take(&path(root.path(), "alive", FRESH)).unwrap().unwrap();
        drop(take(&path(root.path(), "killed", FRESH)).unwrap().unwrap());
        drop(take(&path(root.path(), "lasting", LASTING)).unwrap().unwrap());
        let found = orphans_in(root.path()).unwrap();
        assert_eq!(
            found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["killed"]
        );
        assert!(take(&path(root.path(), "alive", FRESH)).unwrap().is_none());
        alive.forget();
        for (_, lock) in found {
            lock.forget();
        }
        assert!(orphans_in(root.path()).unwrap().is_empty());
    }
}
