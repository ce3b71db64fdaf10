//! NodeUnpublishVolume: every layer unmounted, the target gone; never a recursive delete.
use holdfast_proto::csi as pb;

use super::mounted;
use super::site::{Site, place};
use super::tag::Use;
use crate::error::Error;
use crate::id::VolumeId;
use crate::kernel::mountinfo;
use crate::kernel::place::{Kind, Place};
use crate::request;

/// Takes the volume from the target, or finds it taken.
pub(super) fn unpublish(
    site: &Site,
    given: &str,
    target: &str,
) -> Result<pb::NodeUnpublishVolumeResponse, Error> {
    let id = request::volume_id(given)?;
    let target = place(&request::path("target_path", target)?)?;
    let done = pb::NodeUnpublishVolumeResponse {};
    let Some(id) = id else {
        // No volume of ours was ever there; what kubelet made for it must not stay.
        if let Some(target) = target {
            if !mountinfo::at(&site.mounts()?, target.path()).is_empty() {
                return Err(Error::Unfit {
                    id: given.to_owned(),
                    reason: format!(
                        "is none of this driver, and {} is a mount that is not; unmount it first",
                        target.path().display()
                    ),
                });
            }
            remove_target(given, &target)?;
        }
        return Ok(done);
    };
    let _lock = site.lock(&id)?;
    if let Some(target) = target {
        site.allowed("target_path", target.path())?;
        mounted::unmount_all(site.kernel.as_ref(), &id, target.path())?;
        remove_target(id.as_str(), &target)?;
    }
    free_readers(site, &id)?;
    Ok(done)
}

/// Removes the empty folder or empty file that the volume was at; one that is gone is no error. Whatever has content, or was
/// never made by this driver, is somebody's and stays.
fn remove_target(id: &str, target: &Place) -> Result<(), Error> {
    let shown = || target.path().display().to_string();
    let step = || format!("removing {}", shown());
    let kind = match target.kind().map_err(Error::storage(step()))? {
        None => return Ok(()),
        Some(kind @ (Kind::Folder | Kind::File(0))) => kind,
        Some(Kind::File(_)) => return Err(Error::NotEmpty { path: shown() }),
        Some(Kind::Link | Kind::Special) => {
            return Err(Error::Unfit {
                id: id.to_owned(),
                reason: format!(
                    "is not at {}: a link or device is there that this driver did not make; remove it by hand",
                    shown()
                ),
            });
        }
    };
    match target.remove(kind) {
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
            Err(Error::NotEmpty { path: shown() })
        }
        other => other.map_err(Error::storage(step())),
    }
}

/// Frees read-only devices that nobody has any more.
pub(super) fn free_readers(site: &Site, id: &VolumeId) -> Result<(), Error> {
    let found = site.loops(id)?;
    if !found.iter().any(|own| own.tag.purpose == Use::Reader) {
        return Ok(());
    }
    let mounts = site.mounts()?;
    for own in found.iter().filter(|own| own.tag.purpose == Use::Reader) {
        if !mounts.iter().any(|m| mounted::shows(m, [own])) {
            site.free(own)?;
        }
    }
    Ok(())
}
