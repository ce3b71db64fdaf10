//! What is ours on the host, and its removal: nothing is deleted through a mount, no loop outlives its image.
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{ClusterError, at, call};
use crate::command::Command;

/// Every container, network and volume that we make ourselves carries this label.
pub const LABEL: &str = "holdfast.run";

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

/// Unmounts everything below a folder, then detaches every loop device whose file is in it.
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
            &Command::new("losetup").args(["--detach", &device]),
        )
        .await?;
    }
    Ok(())
}

/// Loop devices whose file is below a folder: by device and inode, since a path is another one in every node.
///
/// # Errors
/// If the list cannot be had.
pub async fn loops_below(path: &Path) -> Result<Vec<String>, ClusterError> {
    let mut inodes = BTreeSet::new();
    collect_inodes(path, &mut inodes);
    let columns = [
        "--list",
        "--noheadings",
        "--raw",
        "--output",
        "NAME,BACK-INO,BACK-MAJ:MIN,BACK-FILE",
    ];
    let text = call("losetup --list", &Command::new("losetup").args(columns)).await?;
    Ok(text
        .lines()
        .filter_map(|line| backed(line, path, &inodes))
        .collect())
}

/// The device of a line of losetup's raw list, if its file is one of `inodes` or below `path`.
fn backed(line: &str, path: &Path, inodes: &BTreeSet<(u64, u64)>) -> Option<String> {
    // losetup pads the numbers, and its raw form escapes the padding.
    let line = line.replace("\\x20", "");
    let mut words = line.splitn(4, ' ');
    let (name, inode, device) = (words.next()?, words.next()?.parse::<u64>().ok()?, words.next()?);
    let file = words.next().unwrap_or("");
    let (major, minor) = device.split_once(':')?;
    let device = nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?);
    let inside = inodes.contains(&(device, inode)) || Path::new(file).starts_with(path);
    inside.then(|| name.to_owned())
}

fn collect_inodes(path: &Path, into: &mut BTreeSet<(u64, u64)>) {
    let Ok(entries) = std::fs::read_dir(path) else {
        return;
    };
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => collect_inodes(&entry.path(), into),
            Ok(meta) => drop(into.insert((meta.dev(), meta.ino()))),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_known_by_device_and_inode_whatever_its_path_is_called() {
        let line = "/dev/loop0 9977924 \\x20\\x20\\x20\\x20\\x20254:0\\x20\\x20 /x.img (deleted)";
        let inodes = BTreeSet::from([(nix::sys::stat::makedev(254, 0), 9_977_924)]);
        assert_eq!(
            backed(line, Path::new("/data"), &inodes).as_deref(),
            Some("/dev/loop0")
        );
        assert_eq!(backed(line, Path::new("/data"), &BTreeSet::new()), None);
    }

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
