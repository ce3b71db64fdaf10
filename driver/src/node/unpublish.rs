//! NodeUnpublishVolume: every layer unmounted, the target gone; never a recursive delete.
use std::path::Path;

use holdfast_proto::csi as pb;

use super::mounted;
use super::service::Site;
use super::stage::loops;
use crate::error::Error;
use crate::id::VolumeId;
use crate::kernel::{loop_device, wait};
use crate::request;

/// Takes the volume from the target, or finds it taken.
pub(super) fn unpublish(
    site: &Site,
    given: &str,
    target: &str,
) -> Result<pb::NodeUnpublishVolumeResponse, Error> {
    let id = request::volume_id(given)?;
    let target = mounted::real(&request::path("target_path", target)?)?;
    let done = pb::NodeUnpublishVolumeResponse {};
    let Some(id) = id else {
        // No volume of ours was ever there; what kubelet made for it must not stay.
        let mounts = site
            .kernel
            .mounts()
            .map_err(Error::half_done("reading mountinfo"))?;
        if !crate::kernel::mountinfo::at(&mounts, &target).is_empty() {
            return Err(Error::VolumeNotFound { id: given.to_owned() });
        }
        remove_target(&target)?;
        return Ok(done);
    };
    let _lock = site.lock(&id)?;
    mounted::unmount_all(site.kernel.as_ref(), &id, &target)?;
    remove_target(&target)?;
    readers(site, &id)?;
    Ok(done)
}

/// Removes the empty folder or empty file that the volume was at; one that is gone is no error. Whatever has content is
/// somebody's data and stays.
pub(super) fn remove_target(target: &Path) -> Result<(), Error> {
    let step = || format!("removing {}", target.display());
    let meta = match std::fs::symlink_metadata(target) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::storage(step())(error)),
    };
    let removed = if meta.is_dir() {
        std::fs::remove_dir(target)
    } else if meta.is_file() && meta.len() == 0 {
        std::fs::remove_file(target)
    } else {
        Err(std::io::ErrorKind::DirectoryNotEmpty.into())
    };
    match removed {
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Err(Error::NotEmpty {
            path: target.display().to_string(),
        }),
        other => other.map_err(Error::storage(step())),
    }
}

/// Frees read-only devices that nobody has any more, unless the volume is staged by one.
fn readers(site: &Site, id: &VolumeId) -> Result<(), Error> {
    let found = loops(site, id)?;
    let writable = found.iter().any(|l| !l.flags.read_only && !l.flags.autoclear);
    if !writable {
        return Ok(());
    }
    let mounts = site
        .kernel
        .mounts()
        .map_err(Error::half_done("reading mountinfo"))?;
    for device in found.iter().filter(|l| l.flags.read_only && !l.flags.autoclear) {
        if mounts
            .iter()
            .any(|m| mounted::shows(m, std::slice::from_ref(device)))
        {
            continue;
        }
        loop_device::detach(
            site.kernel.as_ref(),
            device.number,
            &site.store.image(id),
            wait::RELEASE_LIMIT,
        )
        .map_err(Error::half_done("freeing a read-only device"))?;
    }
    Ok(())
}
