//! NodeStageVolume: fence, loop device, filesystem made once, checked, mounted, grown.
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use super::mounted;
use super::service::Site;
use crate::error::Error;
use crate::guard::file_lock;
use crate::id::VolumeId;
use crate::kernel::{KernelError, LoopFlags, LoopStatus, OpenLoop, filesystem, loop_device, wait};
use crate::request;
use crate::volume::capability::{self, Access, Capability, Fs, Mode};
use crate::volume::image;
use crate::volume::record::{EPOCH, Format, Record, State};
use holdfast_proto::csi as pb;

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
        let capability = capability::one(request.volume_capability)?;
        let id = id.ok_or(Error::VolumeNotFound {
            id: request.volume_id,
        })?;
        let epoch = request.publish_context.get(EPOCH).cloned().unwrap_or_default();
        Ok(Self {
            id,
            staging,
            capability,
            epoch,
        })
    }
}

/// The volume's record, if it is ready and this node has it under `epoch`.
pub(super) fn fenced(site: &Site, id: &VolumeId, epoch: &str) -> Result<Record, Error> {
    let record = match site.store.read(id)? {
        Some(record) if record.state == State::Ready => record,
        Some(_) | None => return Err(Error::VolumeNotFound { id: id.to_string() }),
    };
    let unfit = |reason: String| Error::Unfit {
        id: id.to_string(),
        reason,
    };
    let Some(attachment) = record.attached_to(&site.node) else {
        return Err(unfit(format!(
            "is not attached to node {}; call ControllerPublishVolume first",
            site.node
        )));
    };
    // None at all is as bad as an old one: whoever stages must have been told about this very attachment.
    if epoch != attachment.epoch.to_string() {
        return Err(unfit(format!(
            "publish_context has epoch {epoch:?}, its attachment has {}",
            attachment.epoch
        )));
    }
    Ok(record)
}

/// Makes the volume available below the staging path.
pub(super) fn stage(site: &Site, wanted: &Wanted) -> Result<pb::NodeStageVolumeResponse, Error> {
    let _lock = site.lock(&wanted.id)?;
    let record = fenced(site, &wanted.id, &wanted.epoch)?;
    if !record.offers(&wanted.capability) {
        let reason = String::from("was not asked for with this access type or filesystem");
        return Err(Error::Unfit {
            id: wanted.id.to_string(),
            reason,
        });
    }
    let read_only = wanted.capability.mode == Mode::ReaderOnly
        || record.attached_to(&site.node).is_some_and(|a| a.read_only);
    match (wanted.capability.access, wanted.capability.fs) {
        (Access::Mount, Some(fs)) => mount(site, wanted, fs, read_only)?,
        (Access::Mount, None) => {
            return Err(Error::Missing {
                field: "volume_capability.mount.fs_type",
            });
        }
        (Access::Block, _) => block(site, wanted, read_only)?,
    }
    Ok(pb::NodeStageVolumeResponse {})
}

fn half(step: &str) -> impl FnOnce(KernelError) -> Error {
    Error::half_done(step.to_owned())
}

/// The volume's loop devices that this node made. Another node's are not touched: where the volume went meanwhile, their
/// lock keeps this node out.
pub(super) fn loops(site: &Site, id: &VolumeId) -> Result<Vec<LoopStatus>, Error> {
    let mut found = loop_device::of_image(site.kernel.as_ref(), &site.store.image(id))
        .map_err(half("looking for loop devices"))?;
    let tag = site.tag();
    found.retain(|l| l.tag == tag);
    Ok(found)
}

/// Opens the image under its lock; a loop device that lives, here or on another node, has it.
fn locked(site: &Site, id: &VolumeId) -> Result<File, Error> {
    let path = site.store.image(id);
    let mut taken = None;
    wait::until(wait::RELEASE_LIMIT / 2, || {
        taken = image::open_locked(&path).map_err(Error::storage("opening an image"))?;
        Ok::<_, Error>(taken.is_some())
    })?;
    taken.ok_or_else(|| Error::Busy {
        key: id.to_string(),
        holder: String::from("a loop device of another stage or node"),
    })
}

/// [`locked`], and the record as it is since then: a detachment that saw the image free holds its lock until the record says
/// so, so a stage that comes too late reads it here.
fn claimed(site: &Site, wanted: &Wanted) -> Result<(File, Record), Error> {
    let image = locked(site, &wanted.id);
    let record = fenced(site, &wanted.id, &wanted.epoch)?;
    Ok((image?, record))
}

/// Writes how far the filesystem is, under the record lock for this moment only: everything else in the record may have
/// changed since it was read.
fn mark(site: &Site, id: &VolumeId, format: Format) -> Result<(), Error> {
    let _lock = file_lock::lock(&site.store.lock(id.as_str()), id.as_str())?;
    match site.store.read(id)? {
        Some(record) => site.store.write(&Record { format, ..record }),
        None => Err(Error::VolumeNotFound { id: id.to_string() }),
    }
}

/// A raw device: its loop has no AUTOCLEAR, because nothing is mounted that would keep it.
fn block(site: &Site, wanted: &Wanted, read_only: bool) -> Result<(), Error> {
    let id = &wanted.id;
    match loops(site, id)?.iter().find(|l| !l.flags.autoclear) {
        Some(found) if found.flags.read_only == read_only => {
            let device = site
                .kernel
                .open_loop(found.number)
                .map_err(half("opening a loop device"))?;
            return site
                .kernel
                .refresh_size(&device)
                .map_err(half("sizing a loop device"));
        }
        Some(_) if !read_only => {
            return Err(Error::Differs {
                what: format!("staging of {id}"),
                difference: String::from("access mode"),
            });
        }
        Some(_) => return Ok(()),
        None => {}
    }
    let (image, _) = claimed(site, wanted)?;
    let flags = LoopFlags {
        read_only,
        autoclear: false,
    };
    site.kernel
        .attach(&image, flags, &site.tag())
        .map(drop)
        .map_err(half("attaching a loop device"))?;
    // Closed without unlocking: the lock is of the open file, which is the loop device's now.
    drop(image);
    Ok(())
}

fn mount(site: &Site, wanted: &Wanted, fs: Fs, read_only: bool) -> Result<(), Error> {
    let kernel = site.kernel.as_ref();
    let staging = mounted::real(&wanted.staging)?;
    let mounts = kernel.mounts().map_err(half("reading mountinfo"))?;
    let found = loops(site, &wanted.id)?;
    if let Some(now) = mounted::at(&mounts, &staging, &found)? {
        if now.fs != fs.name() || now.is_read_only() != read_only {
            let difference = format!(
                "{}, {}",
                now.fs,
                if now.is_read_only() {
                    "read-only"
                } else {
                    "writable"
                }
            );
            return Err(Error::Differs {
                what: format!("staging of {}", wanted.id),
                difference,
            });
        }
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(&staging)
        .map_err(Error::storage("making the staging folder"))?;
    let (image, record) = claimed(site, wanted)?;
    let blank = image::is_blank(&image).map_err(Error::storage("looking whether the image is blank"))?;
    let device = kernel
        .attach(
            &image,
            LoopFlags {
                read_only,
                autoclear: true,
            },
            &site.tag(),
        )
        .map_err(half("attaching a loop device"))?;
    // Closed without unlocking: the lock is of the open file, which is the loop device's now.
    drop(image);
    // From here on an error drops `device`, the only thing that keeps the loop: it frees itself, and its lock.
    let fresh = prepare(site, &record, fs, &device, blank, read_only)?;
    let (flags, data) = filesystem::mount_options(fs, &wanted.capability.mount_flags, read_only);
    kernel
        .mount(&device.path(), &staging, fs.name(), flags, &data)
        .map_err(|source| Error::Undone {
            step: format!("mounting {}", wanted.id),
            source,
        })?;
    if fs == Fs::Xfs && !read_only && !fresh && smaller(site, &device)? {
        filesystem::grow_xfs(kernel, &staging).map_err(half("growing XFS"))?;
    }
    Ok(())
}

/// Whether the filesystem is smaller than its device.
pub(super) fn smaller(site: &Site, device: &OpenLoop) -> Result<bool, Error> {
    let size = site
        .kernel
        .size_bytes(device)
        .map_err(half("asking a device's size"))?;
    let found = filesystem::probe(&device.file).map_err(Error::storage("reading a superblock"))?;
    // A filesystem may leave less than one of its groups unused at the end of a device.
    Ok(found.is_some_and(|sb| sb.size_bytes + (1 << 20) <= size))
}

/// A filesystem of the right type on the device: made if nothing ever was there, else checked, and ext4 grown.
/// Whether it was just made.
fn prepare(
    site: &Site,
    record: &Record,
    fs: Fs,
    device: &OpenLoop,
    blank: bool,
    read_only: bool,
) -> Result<bool, Error> {
    let kernel = site.kernel.as_ref();
    let unfit = |reason: String| Error::Unfit {
        id: record.id.to_string(),
        reason,
    };
    let make = match record.format {
        Format::Done(done) if done == fs => false,
        Format::Done(done) => {
            return Err(unfit(format!(
                "has {}, {} is wanted; it is never formatted twice",
                done.name(),
                fs.name()
            )));
        }
        // Its making was never finished, so nobody has ever mounted it.
        Format::Begun(_) => true,
        Format::Blank if blank => true,
        Format::Blank => {
            match filesystem::probe(&device.file).map_err(Error::storage("reading a superblock"))? {
                Some(found) if found.fs == fs => false,
                found => {
                    return Err(unfit(format!(
                        "holds data that is not {} ({found:?}); it is not formatted over",
                        fs.name()
                    )));
                }
            }
        }
    };
    if make {
        if read_only {
            return Err(unfit(String::from(
                "has no filesystem yet and is read-only; write to it first",
            )));
        }
        mark(site, &record.id, Format::Begun(fs))?;
        filesystem::make(kernel, fs, &device.path()).map_err(half("making a filesystem"))?;
        device
            .file
            .sync_all()
            .map_err(Error::storage("making a filesystem durable"))?;
        mark(site, &record.id, Format::Done(fs))?;
        return Ok(true);
    }
    if !read_only {
        let grow = fs == Fs::Ext4 && smaller(site, device)?;
        // resize2fs wants a filesystem that was checked whole since its last mount.
        filesystem::check(kernel, fs, &device.path(), grow).map_err(half("checking a filesystem"))?;
        if grow {
            filesystem::grow_ext4(kernel, &device.path()).map_err(half("growing ext4"))?;
        }
    }
    Ok(false)
}
