//! NodeUnstageVolume: every layer unmounted, the loop device free, nothing else touched.
use std::path::Path;

use holdfast_proto::csi as pb;

use super::site::{Own, Site, real};
use super::tag::{self, Use};
use super::{mounted, unpublish};
use crate::error::Error;
use crate::id::VolumeId;
use crate::request;

/// Undoes a staging, or finds it undone.
pub(super) fn unstage(site: &Site, id: &str, staging: &str) -> Result<pb::NodeUnstageVolumeResponse, Error> {
    let id = request::volume_id(id)?;
    let staging = real(&request::path("staging_target_path", staging)?)?;
    let Some(id) = id else {
        return Ok(pb::NodeUnstageVolumeResponse {});
    };
    let _lock = site.lock(&id)?;
    site.allowed("staging_target_path", &staging)?;
    unpublish::free_readers(site, &id)?;
    let mine = staged_at(site, &id, &staging)?;
    in_use(site, &id, &staging, &mine)?;
    mounted::unmount_all(site.kernel.as_ref(), &id, &staging)?;
    for own in &mine {
        site.free(own)?;
    }
    durable(site, &id)?;
    Ok(pb::NodeUnstageVolumeResponse {})
}

/// The devices with which the volume is staged at this path. What is staged at another one is no business of this call.
fn staged_at(site: &Site, id: &VolumeId, staging: &Path) -> Result<Vec<Own>, Error> {
    let place = tag::place(staging);
    let mut found = site.loops(id)?;
    let mounts = site.mounts()?;
    let here = crate::kernel::mountinfo::at(&mounts, staging);
    found.retain(|own| {
        let is_here = here.iter().any(|m| mounted::shows(m, [own]));
        is_here || own.tag.place == place || own.tag.purpose == Use::Reader
    });
    Ok(found)
}

/// Refuses while a target still has the volume: taking the staging away would leave it on a device that nobody counts.
fn in_use(site: &Site, id: &VolumeId, staging: &Path, mine: &[Own]) -> Result<(), Error> {
    let staged: Vec<&Own> = mine.iter().collect();
    let mounts = site.mounts()?;
    match mounted::elsewhere(&mounts, staged.iter().copied(), staging).first() {
        None => Ok(()),
        Some(path) => Err(Error::InUse {
            id: id.to_string(),
            by: format!("mounted at {}; call NodeUnpublishVolume first", path.display()),
        }),
    }
}

/// What was written is on the disk below before anybody else is told that the volume is free.
fn durable(site: &Site, id: &VolumeId) -> Result<(), Error> {
    let step = || Error::storage("making an image durable");
    match std::fs::File::open(site.store.image(id)) {
        Ok(file) => file.sync_all().map_err(step()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(step()(error)),
    }
}
