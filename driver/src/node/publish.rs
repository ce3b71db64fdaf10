//! NodePublishVolume: the staged volume at a pod's path, writable or not.
use std::fs::OpenOptions;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use holdfast_proto::csi as pb;

use super::service::Site;
use super::stage::{fenced, loops};
use super::{mounted, unpublish};
use crate::error::Error;
use crate::id::VolumeId;
use crate::kernel::mountinfo::Mount;
use crate::kernel::{LoopFlags, LoopStatus, loop_device};
use crate::request;
use crate::volume::capability::{self, Access, Capability, Mode};
use crate::volume::record::EPOCH;

/// A checked request.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) id: VolumeId,
    staging: PathBuf,
    target: PathBuf,
    capability: Capability,
    read_only: bool,
    epoch: String,
}

impl TryFrom<pb::NodePublishVolumeRequest> for Wanted {
    type Error = Error;

    fn try_from(request: pb::NodePublishVolumeRequest) -> Result<Self, Error> {
        let id = request::volume_id(&request.volume_id)?;
        let target = request::path("target_path", &request.target_path)?;
        let capability = capability::one(request.volume_capability)?;
        let id = id.ok_or(Error::VolumeNotFound {
            id: request.volume_id,
        })?;
        if request.staging_target_path.is_empty() {
            let reason =
                String::from("staging_target_path is required, because STAGE_UNSTAGE_VOLUME is declared");
            return Err(Error::Unfit {
                id: id.to_string(),
                reason,
            });
        }
        let staging = request::path("staging_target_path", &request.staging_target_path)?;
        let epoch = request.publish_context.get(EPOCH).cloned().unwrap_or_default();
        let read_only = request.readonly || capability.mode == Mode::ReaderOnly;
        Ok(Self {
            id,
            staging,
            target,
            capability,
            read_only,
            epoch,
        })
    }
}

/// Puts the volume at the target, or finds it there.
pub(super) fn publish(site: &Site, wanted: &Wanted) -> Result<pb::NodePublishVolumeResponse, Error> {
    let _lock = site.lock(&wanted.id)?;
    let record = fenced(site, &wanted.id, &wanted.epoch)?;
    let wanted = &Wanted {
        staging: mounted::real(&wanted.staging)?,
        target: mounted::real(&wanted.target)?,
        ..wanted.clone()
    };
    if !record.offers(&wanted.capability) {
        let reason = String::from("was not asked for with this access type or filesystem");
        return Err(Error::Unfit {
            id: wanted.id.to_string(),
            reason,
        });
    }
    let attached_ro = record.attached_to(&site.node).is_some_and(|a| a.read_only);
    let read_only = wanted.read_only || attached_ro;
    let found = loops(site, &wanted.id)?;
    let mounts = site
        .kernel
        .mounts()
        .map_err(Error::half_done("reading mountinfo"))?;
    if let Some(now) = mounted::at(&mounts, &wanted.target, &found)? {
        if is_read_only(now, &found) == read_only {
            return Ok(pb::NodePublishVolumeResponse {});
        }
        return Err(Error::Differs {
            what: format!("publication at {}", wanted.target.display()),
            difference: String::from("readonly"),
        });
    }
    alone(wanted, &mounts, &found)?;
    match wanted.capability.access {
        Access::Mount => mount(site, wanted, &mounts, &found, read_only)?,
        Access::Block => block(site, wanted, &found, read_only)?,
    }
    Ok(pb::NodePublishVolumeResponse {})
}

/// A device is read-only by its loop, a filesystem by its mount.
fn is_read_only(mount: &Mount, found: &[LoopStatus]) -> bool {
    let device = found
        .iter()
        .find(|l| mounted::shows(mount, std::slice::from_ref(l)));
    device.is_some_and(|l| l.flags.read_only) || (mount.major == 7 && mount.is_read_only())
}

/// Only SINGLE_NODE_MULTI_WRITER lets a second target have the volume.
fn alone(wanted: &Wanted, mounts: &[Mount], found: &[LoopStatus]) -> Result<(), Error> {
    if wanted.capability.mode == Mode::MultiWriter {
        return Ok(());
    }
    let others = mounted::elsewhere(mounts, found, &wanted.staging);
    // Kubelet binds folders of a published volume elsewhere in its pod's folder: those are no targets.
    let sub_path = |path: &Path| path.components().any(|c| c.as_os_str() == "volume-subpaths");
    match others
        .iter()
        .find(|path| **path != wanted.target && !sub_path(path))
    {
        None => Ok(()),
        Some(other) => Err(Error::InUse {
            id: wanted.id.to_string(),
            by: format!(
                "published at {}; its access mode allows one target",
                other.display()
            ),
        }),
    }
}

fn mount(
    site: &Site,
    wanted: &Wanted,
    mounts: &[Mount],
    found: &[LoopStatus],
    read_only: bool,
) -> Result<(), Error> {
    if mounted::at(mounts, &wanted.staging, found)?.is_none() {
        let reason = format!(
            "is not staged at {}; call NodeStageVolume first",
            wanted.staging.display()
        );
        return Err(Error::Unfit {
            id: wanted.id.to_string(),
            reason,
        });
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(&wanted.target)
        .map_err(Error::storage("making the target folder"))?;
    bind(site, &wanted.staging, &wanted.target, read_only)
}

fn block(site: &Site, wanted: &Wanted, found: &[LoopStatus], read_only: bool) -> Result<(), Error> {
    let Some(staged) = found.iter().find(|l| !l.flags.autoclear) else {
        let reason = String::from("is not staged; call NodeStageVolume first");
        return Err(Error::Unfit {
            id: wanted.id.to_string(),
            reason,
        });
    };
    // BLKROSET would hit every user of the device, and stick to its number: a reader gets a device of its own.
    let device = match found
        .iter()
        .find(|l| l.flags.read_only == read_only && !l.flags.autoclear)
    {
        Some(fitting) => loop_device::path(fitting.number),
        None if staged.flags.read_only => {
            let reason = String::from("is staged read-only; it cannot be published writable");
            return Err(Error::Unfit {
                id: wanted.id.to_string(),
                reason,
            });
        }
        None => {
            let image = std::fs::File::open(site.store.image(&wanted.id))
                .map_err(Error::storage("opening an image"))?;
            let flags = LoopFlags {
                read_only: true,
                autoclear: false,
            };
            site.kernel
                .attach(&image, flags, &site.tag())
                .map_err(Error::half_done("attaching a read-only device"))?
                .path()
        }
    };
    if let Some(folder) = wanted.target.parent() {
        std::fs::create_dir_all(folder).map_err(Error::storage("making the target's folder"))?;
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o660)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&wanted.target)
        .map_err(Error::storage("making the target file"))?;
    bind(site, &device, &wanted.target, false)
}

fn bind(site: &Site, from: &Path, to: &Path, read_only: bool) -> Result<(), Error> {
    site.kernel.bind(from, to, read_only).map_err(|source| {
        let undone = unpublish::remove_target(to);
        let step = format!("binding {} at {}", from.display(), to.display());
        match undone {
            Ok(()) => Error::Undone { step, source },
            Err(_) => Error::HalfDone { step, source },
        }
    })
}
