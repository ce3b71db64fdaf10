//! NodeStageVolume: what is asked for, whether this node may have it, and what of it is there already.
use std::collections::HashMap;
use std::path::PathBuf;

use holdfast_proto::csi as pb;

use super::mounted;
use super::site::{Site, place, unfit};
use super::staging::Job;
use super::tag::{self, Tag, Use};
use crate::error::Error;
use crate::id::VolumeId;
use crate::kernel::ownership;
use crate::kernel::place::{Kind, Place};
use crate::request;
use crate::volume::capability::{self, Access, Capability, Mode};
use crate::volume::record::{EPOCH, Format, Record};

/// A checked request.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) id: VolumeId,
    staging: PathBuf,
    capability: Capability,
    epoch: String,
}

impl TryFrom<pb::NodeStageVolumeRequest> for Wanted {
    type Error = Error;

    fn try_from(request: pb::NodeStageVolumeRequest) -> Result<Self, Error> {
        let id = request::volume_id(&request.volume_id)?;
        let staging = request::path("staging_target_path", &request.staging_target_path)?;
        let capability = capability::one(request.volume_capability).map_err(exceeded(&request.volume_id))?;
        capability.check_flags()?;
        request::map("publish_context", &request.publish_context)?;
        request::map("volume_context", &request.volume_context)?;
        request::map("secrets", &request.secrets)?;
        let id = id.ok_or(Error::VolumeNotFound {
            id: request.volume_id,
        })?;
        Ok(Self {
            id,
            staging,
            capability,
            epoch: epoch(&request.publish_context),
        })
    }
}

/// A capability that no volume of this driver has is, on a node, one that this volume does not have.
pub(super) fn exceeded(id: &str) -> impl FnOnce(Error) -> Error {
    let id = id.to_owned();
    move |error| {
        if !matches!(error, Error::Unsupported { .. }) {
            return error;
        }
        let reason = error.message();
        Error::Unfit { id, reason }
    }
}

pub(super) fn epoch(context: &HashMap<String, String>) -> String {
    context.get(EPOCH).cloned().unwrap_or_default()
}

/// Whether the node may only read the volume, however it is published.
pub(super) fn is_read_only(site: &Site, capability: &Capability, record: &Record) -> bool {
    capability.mode == Mode::ReaderOnly
        || capability.mount_flags.iter().any(|flag| flag == "ro")
        || record.attached_to(&site.node).is_some_and(|a| a.read_only)
}

/// VOLUME_MOUNT_GROUP: what is in the filesystem, and what will be, may be written by the group.
pub(super) fn give_to_group(path: &std::path::Path, capability: &Capability) -> Result<(), Error> {
    match capability.mount_group {
        None => Ok(()),
        Some(group) => ownership::give_to_group(path, group)
            .map_err(Error::storage(format!("giving the volume to group {group}"))),
    }
}

/// Makes the volume available below the staging path.
pub(super) fn stage(site: &Site, wanted: &Wanted) -> Result<pb::NodeStageVolumeResponse, Error> {
    let _lock = site.lock(&wanted.id)?;
    let (record, epoch) = site.fenced(&wanted.id, &wanted.epoch)?;
    let folder = folder(wanted)?;
    site.allowed("staging_target_path", folder.path())?;
    let read_only = is_read_only(site, &wanted.capability, &record);
    let job = Job {
        site,
        id: &wanted.id,
        staging: folder.path().to_owned(),
        read_only,
        no_atime: record.attributes.no_atime,
        capability: &wanted.capability,
        context: &wanted.epoch,
        epoch,
        tag: Tag {
            owner: site.owner(),
            epoch,
            purpose: Use::Staged,
            place: tag::place(folder.path()),
            arguments: tag::arguments(&wanted.capability, read_only),
        },
    };
    job.clear_stale()?;
    if let Some(own) = job.live()? {
        job.compatible(&own)?;
        if job.resume(&own)? {
            return Ok(pb::NodeStageVolumeResponse {});
        }
    }
    if !record.offers(&wanted.capability) {
        return Err(unfit(
            &wanted.id,
            "was not made for this access type or filesystem; ask for what CreateVolume was asked for",
        ));
    }
    match (wanted.capability.access, wanted.capability.fs) {
        (Access::Mount, Some(fs)) => {
            folder
                .make_folder()
                .map_err(Error::storage("making the staging folder"))?;
            mounted::at(&site.mounts()?, &wanted.id, &job.staging, &[])?;
            job.mount(fs, matches!(record.format, Format::Done(_)))?;
        }
        (Access::Mount, None) => {
            return Err(Error::Missing {
                field: "volume_capability.mount.fs_type",
            });
        }
        (Access::Block, _) => {
            // Kept by nothing but itself: nothing is mounted that would keep it.
            job.attach(read_only, false).map(drop)?;
        }
    }
    Ok(pb::NodeStageVolumeResponse {})
}

/// The staging folder, which the CO makes; one that it forgot to make is made, a parent is not.
fn folder(wanted: &Wanted) -> Result<Place, Error> {
    let shown = wanted.staging.display();
    let Some(found) = place(&wanted.staging)? else {
        return Err(unfit(
            &wanted.id,
            format!("cannot be staged at {shown}: the folder that it is in does not exist; make it first"),
        ));
    };
    // What is mounted there is not asked: a filesystem that was shut down would not answer.
    match found.kind() {
        Ok(Some(Kind::File(_) | Kind::Link | Kind::Special)) => Err(unfit(
            &wanted.id,
            format!(
                "cannot be staged at {shown}: it is no folder, and links are not followed; remove it first"
            ),
        )),
        Ok(Some(Kind::Folder) | None) => Ok(found),
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(found),
        Err(error) => Err(Error::storage(format!("looking at {shown}"))(error)),
    }
}
