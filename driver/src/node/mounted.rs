//! Where a volume is mounted on this node, as mountinfo shows it, and how it is taken away.
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::id::VolumeId;
use crate::kernel::mountinfo::{self, Mount};
use crate::kernel::{Kernel, KernelError, LoopStatus};

const LOOP_MAJOR: u32 = 7;
/// More layers than anything stacks; a kernel that shows more has something else in mind.
const LAYERS: usize = 64;

/// The path as mountinfo shows it: the folders above it without symbolic links (/var/lib/kubelet may be one); the last
/// name is not followed.
///
/// # Errors
/// If a folder cannot be looked up.
pub(super) fn real(path: &Path) -> Result<PathBuf, Error> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(path.to_owned());
    };
    match std::fs::canonicalize(folder) {
        Ok(folder) => Ok(folder.join(name)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(path.to_owned()),
        Err(error) => Err(Error::storage(format!("resolving {}", path.display()))(error)),
    }
}

/// Whether `mount` shows one of `loops`: its filesystem, or, for a device bound on a file, its name in /dev.
pub(super) fn shows(mount: &Mount, loops: &[LoopStatus]) -> bool {
    loops
        .iter()
        .any(|l| is_filesystem(mount, l) || is_device(mount, l))
}

fn is_filesystem(mount: &Mount, device: &LoopStatus) -> bool {
    mount.major == LOOP_MAJOR && mount.minor == device.number
}

/// A bind of /dev/loopN on a file has the device's name as its root.
fn is_device(mount: &Mount, device: &LoopStatus) -> bool {
    let name = format!("loop{}", device.number);
    let dev = mount.fs == "devtmpfs" || mount.fs == "tmpfs";
    dev && mount.root.file_name().is_some_and(|f| f.to_str() == Some(&name))
}

/// The topmost mount at `path`, if it shows one of `loops`; nothing mounted there is no error, something else is.
///
/// # Errors
/// ALREADY_EXISTS where something else is mounted.
pub(super) fn at<'a>(
    mounts: &'a [Mount],
    path: &Path,
    loops: &[LoopStatus],
) -> Result<Option<&'a Mount>, Error> {
    match mountinfo::at(mounts, path).last() {
        None => Ok(None),
        Some(top) if shows(top, loops) => Ok(Some(top)),
        Some(top) => Err(Error::Differs {
            what: format!("mount at {}", path.display()),
            difference: format!("{} of device {}:{}", top.fs, top.major, top.minor),
        }),
    }
}

/// Paths where one of `loops` is mounted, other than `except`.
pub(super) fn elsewhere(mounts: &[Mount], loops: &[LoopStatus], except: &Path) -> Vec<PathBuf> {
    mounts
        .iter()
        .filter(|m| m.target != except && shows(m, loops))
        .map(|m| m.target.clone())
        .collect()
}

/// Undoes every mount at `path`, the topmost first, and looks until none is left.
///
/// # Errors
/// ABORTED where one cannot be undone, FAILED_PRECONDITION where one is another volume's.
pub(super) fn unmount_all(kernel: &dyn Kernel, id: &VolumeId, path: &Path) -> Result<(), Error> {
    let step = || format!("unmounting {}", path.display());
    for _ in 0..LAYERS {
        let mounts = kernel.mounts().map_err(Error::half_done(step()))?;
        let Some(top) = mountinfo::at(&mounts, path).last().copied() else {
            return Ok(());
        };
        if let Some(other) = other_volume(kernel, id, top) {
            let reason = format!("{} has volume {other}, which is left alone", path.display());
            return Err(Error::Unfit {
                id: id.to_string(),
                reason,
            });
        }
        match kernel.unmount(path) {
            Ok(()) => {}
            // Somebody else undid it between the two looks.
            Err(error) if error.errno() == Some(libc::EINVAL) => {}
            Err(error) => return Err(Error::half_done(step())(error)),
        }
    }
    let text = path.display().to_string();
    Err(Error::half_done(step())(KernelError::Unexpected {
        what: "layers of mounts",
        text,
    }))
}

/// The volume that a mount shows, if it is not `id`.
fn other_volume(kernel: &dyn Kernel, id: &VolumeId, mount: &Mount) -> Option<VolumeId> {
    let device = if mount.major == LOOP_MAJOR {
        mount.minor
    } else {
        let name = mount.root.file_name()?.to_str()?;
        name.strip_prefix("loop")?.parse().ok()?
    };
    let file = kernel.backing_file(device)?;
    let other = VolumeId::parse(file.file_name()?.to_str()?.strip_suffix(".img")?)?;
    (other != *id).then_some(other)
}
