//! What the kernel of this machine must allow before several nodes fit on it.
use std::path::Path;

use super::{ClusterError, at, cache_root};
use crate::progress::Progress;

/// systemd and kubelet of one node take about 40; the kernel's default of 128 is too few for a second cluster.
const INOTIFY_INSTANCES: u64 = 1024;
const INOTIFY: &str = "/proc/sys/fs/inotify/max_user_instances";
/// What a node image, its parts and three nodes need beside what is cached.
const SPACE_GIB: u64 = 6;

/// Whether the kernel allows enough inotify instances.
pub fn inotify_fits() -> bool {
    let text = std::fs::read_to_string(INOTIFY).unwrap_or_default();
    text.trim()
        .parse::<u64>()
        .is_ok_and(|allowed| allowed >= INOTIFY_INSTANCES)
}

/// Raises what is too low for nodes, until the next boot.
///
/// # Errors
/// With the command for somebody who may.
pub fn ensure_limits(progress: &Progress) -> Result<(), ClusterError> {
    if inotify_fits() {
        return Ok(());
    }
    let text = INOTIFY_INSTANCES.to_string();
    std::fs::write(INOTIFY, &text).map_err(|_| {
        ClusterError::Setup(format!(
            "too few inotify instances; as root: sysctl fs.inotify.max_user_instances={text}"
        ))
    })?;
    progress.note(&format!(
        "           fs.inotify.max_user_instances is {text} until the next boot"
    ));
    Ok(())
}

/// Free GiB where the cache is, or will be.
pub fn free_gib() -> Option<u64> {
    let mut path = cache_root();
    while !path.exists() && path.pop() {}
    let space = nix::sys::statvfs::statvfs(&path).ok()?;
    Some((space.blocks_available() * space.fragment_size()) >> 30)
}

/// Refuses to begin what would fill the disk.
///
/// # Errors
/// If too little is free.
pub fn ensure_space() -> Result<(), ClusterError> {
    match free_gib() {
        Some(free) if free < SPACE_GIB => Err(ClusterError::Setup(format!(
            "{free} GiB are free at {}, {SPACE_GIB} are needed; `holdfast cache prune` makes room",
            cache_root().display()
        ))),
        Some(_) | None => Ok(()),
    }
}

/// Removes what builds of processes that are gone have left: `<name>-<pid>` in the cache and in /run.
///
/// # Errors
/// If it cannot be removed.
pub async fn sweep_builds() -> Result<(), ClusterError> {
    let cache = cache_root();
    let folders = ["work", "bin", "tools", "rootfs"].map(|name| cache.join(name));
    for folder in folders
        .iter()
        .map(std::path::PathBuf::as_path)
        .chain([Path::new("/run/holdfast")])
    {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let entry = entry.map_err(at(folder, "list"))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_build = folder.ends_with("work") || name.contains("new-") || name.starts_with("bake-");
            let stem = name.trim_end_matches(".tar");
            let pid = stem.rsplit('-').next().and_then(|pid| pid.parse::<u32>().ok());
            if is_build && pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                super::label::release(&entry.path()).await?;
                super::label::remove_tree(&entry.path())?;
            }
        }
    }
    Ok(())
}
