//! NodeUnstageVolume: every layer unmounted, the loop device free, nothing else touched.
use std::path::Path;

use holdfast_proto::csi as pb;

use super::mounted;
use super::service::Site;
use super::stage::loops;
use crate::error::Error;
use crate::id::VolumeId;
use crate::kernel::{loop_device, wait};
use crate::request;

/// Undoes a staging, or finds it undone.
pub(super) fn unstage(site: &Site, id: &str, staging: &str) -> Result<pb::NodeUnstageVolumeResponse, Error> {
    let id = request::volume_id(id)?;
    let staging = mounted::real(&request::path("staging_target_path", staging)?)?;
    let Some(id) = id else {
        return Ok(pb::NodeUnstageVolumeResponse {});
    };
    let _lock = site.lock(&id)?;
    in_use(site, &id, &staging)?;
    mounted::unmount_all(site.kernel.as_ref(), &id, &staging)?;
    release(site, &id)?;
    Ok(pb::NodeUnstageVolumeResponse {})
}

/// Refuses while a target still has the volume: taking the staging away would leave it on a device that nobody counts.
fn in_use(site: &Site, id: &VolumeId, staging: &Path) -> Result<(), Error> {
    let found = loops(site, id)?;
    let mounts = site
        .kernel
        .mounts()
        .map_err(Error::half_done("reading mountinfo"))?;
    let elsewhere = mounted::elsewhere(&mounts, &found, staging);
    match elsewhere.first() {
        None => Ok(()),
        Some(path) => Err(Error::InUse {
            id: id.to_string(),
            by: format!("mounted at {}; call NodeUnpublishVolume first", path.display()),
        }),
    }
}

/// Frees the loop devices that this node made, the writable one last, because it carries the image's lock; then what was
/// written is made durable.
fn release(site: &Site, id: &VolumeId) -> Result<(), Error> {
    let kernel = site.kernel.as_ref();
    let image = site.store.image(id);
    let mut devices = loops(site, id)?;
    devices.sort_by_key(|d| !d.flags.read_only);
    for device in devices {
        let free = if device.flags.autoclear {
            loop_device::wait_free(kernel, device.number, &image, wait::RELEASE_LIMIT)
        } else {
            loop_device::detach(kernel, device.number, &image, wait::RELEASE_LIMIT)
        };
        free.map_err(Error::half_done("freeing a loop device"))?;
    }
    match std::fs::File::open(&image) {
        Ok(file) => file.sync_all().map_err(Error::storage("making an image durable")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::storage("making an image durable")(error)),
    }
}
