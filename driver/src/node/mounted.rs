//! Where a volume is mounted on this node, as mountinfo shows it, and how it is taken away.
use std::path::{Path, PathBuf};

use super::site::{Own, unfit};
use crate::error::Error;
use crate::id::VolumeId;
use crate::kernel::mountinfo::{self, Mount};
use crate::kernel::{Kernel, KernelError};

pub(super) const LOOP_MAJOR: u32 = 7;
/// More layers than anything stacks; a kernel that shows more has something else in mind.
const LAYERS: usize = 64;

/// Whether `mount` shows one of `loops`: its filesystem, or, for a device bound on a file, its name in /dev.
pub(super) fn shows<'a>(mount: &Mount, loops: impl IntoIterator<Item = &'a Own>) -> bool {
    loop_number(mount).is_some_and(|number| loops.into_iter().any(|own| own.status.number == number))
}

/// The loop device that a mount shows. A bind of /dev/loopN on a file has the device's name as its root, also after the name
/// is gone from /dev.
pub(super) fn loop_number(mount: &Mount) -> Option<u32> {
    if mount.major == LOOP_MAJOR {
        return Some(mount.minor);
    }
    let is_dev = mount.fs == "devtmpfs" || mount.fs == "tmpfs";
    let name = mount.root.file_name().filter(|_| is_dev)?.to_str()?;
    name.strip_prefix("loop")?.parse().ok()
}

/// The topmost mount at `path`, if it shows one of `loops`; nothing mounted there is no error, something else is.
///
/// # Errors
/// FAILED_PRECONDITION where something else is mounted.
pub(super) fn at<'a>(
    mounts: &'a [Mount],
    id: &VolumeId,
    path: &Path,
    loops: &[Own],
) -> Result<Option<&'a Mount>, Error> {
    match mountinfo::at(mounts, path).last() {
        None => Ok(None),
        Some(top) if shows(top, loops) => Ok(Some(top)),
        Some(top) => Err(unfit(
            id,
            format!(
                "cannot be at {}: {} of device {}:{} is mounted there; unmount it first",
                path.display(),
                top.fs,
                top.major,
                top.minor
            ),
        )),
    }
}

/// Paths where one of `loops` is mounted, other than `except`.
pub(super) fn elsewhere<'a>(
    mounts: &[Mount],
    loops: impl IntoIterator<Item = &'a Own> + Clone,
    except: &Path,
) -> Vec<PathBuf> {
    mounts
        .iter()
        .filter(|m| m.target != except && shows(m, loops.clone()))
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
            return Err(unfit(id, reason));
        }
        match kernel.unmount(path) {
            Ok(()) => {}
            // Somebody else undid it between the two looks.
            Err(error) if error.errno() == Some(libc::EINVAL) => {}
            Err(error) if error.errno() == Some(libc::EBUSY) => return Err(busy(id, &mounts, path, error)),
            Err(error) => return Err(Error::half_done(step())(error)),
        }
    }
    let text = format!(
        "{} is hidden below another mount, or stacked too high",
        path.display()
    );
    Err(Error::half_done(step())(KernelError::Unexpected {
        what: "mounts",
        text,
    }))
}

/// What keeps a mount from being undone, as far as mounts tell: what lies below it is somebody's, and is not undone with it.
fn busy(id: &VolumeId, mounts: &[Mount], path: &Path, error: KernelError) -> Error {
    let below = |m: &&Mount| m.target != path && m.target.starts_with(path);
    match mounts.iter().find(below) {
        Some(below) => Error::InUse {
            id: id.to_string(),
            by: format!(
                "{} is mounted below {}; unmount it first",
                below.target.display(),
                path.display()
            ),
        },
        None => Error::half_done(format!(
            "unmounting {}, in which a process has something open,",
            path.display()
        ))(error),
    }
}

/// The volume that a mount shows, if it is not `id`.
fn other_volume(kernel: &dyn Kernel, id: &VolumeId, mount: &Mount) -> Option<VolumeId> {
    let file = kernel.backing_file(loop_number(mount)?)?;
    let other = VolumeId::parse(file.file_name()?.to_str()?.strip_suffix(".img")?)?;
    (other != *id).then_some(other)
}

/// Kubelet binds folders of a published volume, and the device itself, elsewhere in its own folders: those are no targets.
pub(super) fn is_kubelets(path: &Path) -> bool {
    let names: Vec<_> = path.components().map(|c| c.as_os_str()).collect();
    let below = |folder: &str| names.iter().position(|n| *n == folder);
    below("volume-subpaths").is_some()
        || below("volumeDevices").is_some_and(|at| names.get(at + 2).is_some_and(|n| *n == "dev"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_own_binds_are_no_targets() {
        let kubelet = "/var/lib/kubelet";
        for (path, expected) in [
            ("pods/u/volume-subpaths/pv/c/0", true),
            ("plugins/kubernetes.io/csi/volumeDevices/pvc-1/dev/u", true),
            ("plugins/kubernetes.io/csi/volumeDevices/publish/pvc-1/u", false),
            ("pods/u/volumes/kubernetes.io~csi/pv/mount", false),
        ] {
            assert_eq!(is_kubelets(&Path::new(kubelet).join(path)), expected, "{path}");
        }
    }
}
