//! What is ours on the host, and its removal: nothing is deleted through a mount, no loop outlives its image.
use std::collections::BTreeSet;
use std::path::Path;

use super::facts::{file_id, loops};
use super::{ClusterError, at, call};
use crate::command::Command;
use crate::ledger::{FileId, Loop};

/// Every container, network and volume that we make ourselves carries this label.
pub const LABEL: &str = "holdfast.run";

/// In a cluster's state folder: which of its files have no name any more.
const NAMELESS: &str = "nameless.json";

/// Removes a folder entry by entry, after it was proven that nothing is mounted below it.
///
/// # Errors
/// If a mount is below, or an entry cannot be removed.
pub fn remove_tree(path: &Path) -> Result<(), ClusterError> {
    if !path.exists() && !path.is_symlink() {
        return Ok(());
    }
    let below = mounts_below(path)?;
    if let Some(mount) = below.first() {
        return Err(ClusterError::Setup(format!(
            "{mount} is mounted, so {} is kept",
            path.display()
        )));
    }
    remove_entries(path)
}

fn remove_entries(path: &Path) -> Result<(), ClusterError> {
    let meta = std::fs::symlink_metadata(path).map_err(at(path, "stat"))?;
    if !meta.is_dir() {
        return std::fs::remove_file(path).map_err(at(path, "remove"));
    }
    for entry in std::fs::read_dir(path).map_err(at(path, "list"))? {
        remove_entries(&entry.map_err(at(path, "list"))?.path())?;
    }
    std::fs::remove_dir(path).map_err(at(path, "remove"))
}

/// Mount points at or below a folder, deepest first.
///
/// # Errors
/// If the kernel's list cannot be read.
pub fn mounts_below(path: &Path) -> Result<Vec<String>, ClusterError> {
    let list = Path::new("/proc/self/mountinfo");
    let text = std::fs::read_to_string(list).map_err(at(list, "read"))?;
    let mut found: Vec<String> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| point.replace("\\040", " "))
        .filter(|point| Path::new(point).starts_with(path))
        .collect();
    found.sort_by_key(|point| std::cmp::Reverse(point.len()));
    Ok(found)
}

/// Unmounts everything below a folder, then detaches every loop device whose file is in it, or was when it was noted.
///
/// # Errors
/// With what would not go.
pub async fn release(path: &Path) -> Result<(), ClusterError> {
    for point in mounts_below(path)? {
        call("umount", &Command::new("umount").arg(&point)).await?;
    }
    for device in loops_below(path).await? {
        call(
            "losetup --detach",
            &Command::new("losetup").args(["--detach", &format!("/dev/loop{}", device.number)]),
        )
        .await?;
    }
    Ok(())
}

/// By device and inode, since a path is another one in every node.
async fn loops_below(path: &Path) -> Result<Vec<Loop>, ClusterError> {
    let mut files = BTreeSet::new();
    collect_files(path, &mut files);
    let nameless = nameless(path)?;
    let ours = |one: &Loop| {
        let named = one.backing.as_ref().map(Path::new);
        named.is_some_and(|file| file.starts_with(path))
            || one
                .file
                .is_some_and(|file| files.contains(&file) || (one.is_deleted() && nameless.contains(&file)))
    };
    Ok(loops().await?.into_iter().filter(ours).collect())
}

fn collect_files(path: &Path, into: &mut BTreeSet<FileId>) {
    let Ok(entries) = std::fs::read_dir(path) else {
        return;
    };
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => collect_files(&entry.path(), into),
            Ok(meta) => drop(into.insert(file_id(&meta))),
            Err(_) => {}
        }
    }
}

/// Notes in `folder` which of its files have no name any more while a loop device holds them: no look at the folder finds those
/// devices, and another cluster calls its files alike.
///
/// # Errors
/// If it cannot be written.
pub fn note_nameless(folder: &Path, files: &BTreeSet<FileId>) -> Result<(), ClusterError> {
    if nameless(folder)? == *files {
        return Ok(());
    }
    let (path, fresh) = (folder.join(NAMELESS), folder.join(format!("{NAMELESS}.new")));
    let text = serde_json::to_string(files).map_err(|error| at(&path, "write")(error.into()))?;
    std::fs::write(&fresh, text).map_err(at(&fresh, "write"))?;
    std::fs::rename(&fresh, &path).map_err(at(&path, "rename"))
}

/// The files that were noted in `folder`.
///
/// # Errors
/// If they cannot be read.
pub fn nameless(folder: &Path) -> Result<BTreeSet<FileId>, ClusterError> {
    let path = folder.join(NAMELESS);
    match std::fs::read_to_string(&path) {
        // Cut short by a loss of power: the devices went with it.
        Ok(text) => Ok(serde_json::from_str(&text).unwrap_or_default()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(source) => Err(at(&path, "read")(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_goes_and_its_link_targets_stay() {
        let temp = tempfile::tempdir().unwrap();
        let (kept, gone) = (temp.path().join("kept"), temp.path().join("gone"));
        std::fs::create_dir_all(gone.join("a/b")).unwrap();
        std::fs::write(&kept, "x").unwrap();
        std::os::unix::fs::symlink(&kept, gone.join("a/link")).unwrap();
        remove_tree(&gone).unwrap();
        assert!(kept.exists() && !gone.exists());
    }
}
