//! NodeStageVolume: fence, loop device, filesystem made once, checked, mounted, grown.
use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;

use holdfast_proto::csi as pb;

use super::site::{Own, Site, place, unfit};
use super::tag::{self, Tag, Use};
use super::{format, mounted, revoke};
use crate::error::Error;
use crate::id::VolumeId;
use crate::kernel::place::{Kind, Place};
use crate::kernel::{KernelError, LoopFlags, OpenLoop, filesystem, ownership, wait};
use crate::request;
use crate::volume::capability::{self, Access, Capability, Fs, Mode};
use crate::volume::record::{EPOCH, Format, Record};
use crate::volume::{errand, fence};

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
        check_flags(&capability)?;
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

/// Only flags that harm neither data nor node reach the kernel.
pub(super) fn check_flags(capability: &Capability) -> Result<(), Error> {
    let Some(fs) = capability.fs else {
        return Ok(());
    };
    for flag in &capability.mount_flags {
        filesystem::check_flag(fs, flag).map_err(|reason| Error::Invalid {
            field: "volume_capability.mount.mount_flags",
            value: flag.chars().take(128).collect(),
            reason: reason.to_owned(),
        })?;
    }
    Ok(())
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

fn half(step: &str) -> impl FnOnce(KernelError) -> Error {
    Error::half_done(step.to_owned())
}

/// One staging, as far as it is known what to make.
pub(super) struct Job<'a> {
    pub(super) site: &'a Site,
    pub(super) id: &'a VolumeId,
    /// As mountinfo shows it.
    staging: PathBuf,
    pub(super) read_only: bool,
    no_atime: bool,
    capability: &'a Capability,
    context: &'a str,
    epoch: u64,
    tag: Tag,
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

impl Job<'_> {
    /// Takes away what an earlier attachment, or a device that has died, has left on this node.
    fn clear_stale(&self) -> Result<(), Error> {
        let all = self.site.loops(self.id)?;
        let mut stale = Vec::new();
        for own in all.iter().filter(|own| own.tag.purpose == Use::Staged) {
            if !own.is_staged(self.epoch) || self.is_dead(own)? {
                stale.push(own.clone());
            }
        }
        if stale.is_empty() {
            return Ok(());
        }
        let mounts = self.site.mounts()?;
        if let Some(path) = mounted::elsewhere(&mounts, &stale, &self.staging).first() {
            return Err(Error::InUse {
                id: self.id.to_string(),
                by: format!(
                    "{} still has a device of it that can no longer be used; call NodeUnpublishVolume or \
                     NodeUnstageVolume for that path first",
                    path.display()
                ),
            });
        }
        if mounted::at(&mounts, self.id, &self.staging, &stale)?.is_some() {
            mounted::unmount_all(self.site.kernel.as_ref(), self.id, &self.staging)?;
        }
        for own in &stale {
            self.site.free(own)?;
        }
        Ok(())
    }

    /// Whether what is mounted of a device no longer answers.
    fn is_dead(&self, own: &Own) -> Result<bool, Error> {
        let mounts = self.site.mounts()?;
        let is_fs = |m: &&crate::kernel::mountinfo::Mount| m.major == mounted::LOOP_MAJOR;
        let top = crate::kernel::mountinfo::at(&mounts, &self.staging)
            .last()
            .copied()
            .filter(|m| mounted::shows(m, [own]))
            .filter(is_fs);
        match top {
            None => Ok(false),
            Some(mount) => Ok(!self
                .site
                .kernel
                .answers(&mount.target)
                .map_err(half("asking a filesystem"))?),
        }
    }

    /// The staged device of this attachment.
    fn live(&self) -> Result<Option<Own>, Error> {
        let all = self.site.loops(self.id)?;
        Ok(all.into_iter().find(|own| own.is_staged(self.epoch)))
    }

    /// What is staged already must be what is asked for.
    fn compatible(&self, own: &Own) -> Result<(), Error> {
        if own.tag.place != self.tag.place {
            return Err(Error::InUse {
                id: self.id.to_string(),
                by: String::from("staged at another path; call NodeUnstageVolume for that one first"),
            });
        }
        if own.tag.arguments != self.tag.arguments {
            return Err(Error::Differs {
                what: format!("staging of {} at {}", self.id, self.staging.display()),
                difference: String::from("volume_capability or readonly"),
            });
        }
        Ok(())
    }

    /// Goes on with a device that is there; whether the volume is staged with it.
    fn resume(&self, own: &Own) -> Result<bool, Error> {
        let kernel = self.site.kernel.as_ref();
        let Some(fs) = self
            .capability
            .fs
            .filter(|_| self.capability.access == Access::Mount)
        else {
            let device = kernel
                .open_loop(own.status.number)
                .map_err(half("opening a loop device"))?;
            kernel
                .refresh_size(&device)
                .map_err(half("sizing a loop device"))?;
            return Ok(true);
        };
        let mounts = self.site.mounts()?;
        if mounted::at(&mounts, self.id, &self.staging, std::slice::from_ref(own))?.is_some() {
            return Ok(true);
        }
        if mounted::elsewhere(&mounts, [own], &self.staging).is_empty() {
            // Nobody has it any more: it is about to free itself.
            self.site.free(own)?;
            return Ok(false);
        }
        // Targets have the filesystem, so it is whole; only the staging was undone.
        let (flags, data) = filesystem::mount_options(fs, &self.flags(), self.read_only);
        kernel
            .mount(
                &crate::kernel::loop_device::path(own.status.number),
                &self.staging,
                fs.name(),
                flags,
                &data,
            )
            .map_err(half("mounting the staging again"))?;
        Ok(true)
    }

    /// The image under the lock of this attachment, and its record since then.
    ///
    /// Both under the record lock: a detachment that is about to be written, or a request to give the volume up, is either
    /// seen here, or sees the lock.
    fn claim(&self) -> Result<(File, Record), Error> {
        let image = self.site.store.image(self.id);
        let mut taken = None;
        wait::until(wait::RELEASE_LIMIT / 2, || {
            let _record = self.site.record_lock(self.id)?;
            let (record, _) = self.site.fenced(self.id, self.context)?;
            if let Some(errand) = errand::pending(&self.site.store, self.id)?
                && errand.epoch >= self.epoch
            {
                return Err(unfit(
                    self.id,
                    "is being taken from this node; attach it again first",
                ));
            }
            let held = fence::held(&image).map_err(|error| self.image_trouble(error))?;
            if held.iter().any(|epoch| !record.revoked.contains(epoch)) {
                return Ok(false);
            }
            let Some(file) = fence::hold(&image, self.epoch).map_err(|error| self.image_trouble(error))?
            else {
                return Ok(false);
            };
            // Read again, now that nobody can take the image: what was read before may be older than the lock.
            let (record, _) = self.site.fenced(self.id, self.context)?;
            taken = Some((file, record));
            Ok(true)
        })?;
        taken.ok_or_else(|| Error::Busy {
            key: self.id.to_string(),
            holder: String::from("a loop device of another stage or node, or a copy of it,"),
        })
    }

    fn image_trouble(&self, error: std::io::Error) -> Error {
        if error.kind() == std::io::ErrorKind::NotFound {
            return unfit(
                self.id,
                "has lost its image in the data folder; restore it from a backup",
            );
        }
        Error::storage("locking an image")(error)
    }

    /// A loop device on the image under its lock.
    fn attach(&self, read_only: bool, autoclear: bool) -> Result<(OpenLoop, Record, bool), Error> {
        let (image, record) = self.claim()?;
        if !record.revoked.is_empty() {
            revoke::confirm(self.site, self.id, &record.revoked)?;
        }
        let blank = crate::volume::image::is_blank(&image)
            .map_err(Error::storage("looking whether the image is blank"))?;
        let flags = LoopFlags { read_only, autoclear };
        let device = self
            .site
            .kernel
            .attach(&image, flags, &self.tag.to_string())
            .map_err(|source| Error::Undone {
                step: format!("attaching a loop device for {}", self.id),
                source,
            })?;
        // Closed without unlocking: the lock is of the open file, which is the loop device's now.
        drop(image);
        Ok((device, record, blank))
    }

    /// A filesystem that nobody has finished needs a writable device, even if nobody may write to it afterwards: what is
    /// empty can be read, too.
    fn mount(&self, fs: Fs, is_made: bool) -> Result<(), Error> {
        match self.mount_on(fs, self.read_only && is_made) {
            // A filesystem that was not unmounted replays its journal even where nobody may write to it afterwards: its
            // device must be writable for that, the mount still is not.
            Err(Error::Undone { source, .. }) if self.read_only && needs_replay(&source) => {
                self.mount_on(fs, false)
            }
            other => other,
        }
    }

    fn mount_on(&self, fs: Fs, read_only_device: bool) -> Result<(), Error> {
        let (device, record, blank) = self.attach(read_only_device, true)?;
        // From here on nothing but `device` keeps the loop: dropped, it frees itself, and its lock.
        let result =
            format::prepare(self, &record, fs, &device, blank).and_then(|fresh| self.put(fs, &device, fresh));
        drop(device);
        result.map_err(|error| self.undone(error))
    }

    /// What was asked for, and what the volume's attributes want.
    fn flags(&self) -> Vec<String> {
        let mut flags = self.capability.mount_flags.clone();
        flags.extend(self.no_atime.then(|| String::from("noatime")));
        flags
    }

    fn put(&self, fs: Fs, device: &OpenLoop, fresh: bool) -> Result<(), Error> {
        let kernel = self.site.kernel.as_ref();
        let (flags, data) = filesystem::mount_options(fs, &self.flags(), self.read_only);
        kernel
            .mount(&device.path(), &self.staging, fs.name(), flags, &data)
            .map_err(half("mounting"))?;
        if fs == Fs::Xfs && !self.read_only && !fresh && format::is_smaller(kernel, device)? {
            filesystem::grow_xfs(kernel, &self.staging).map_err(half("growing XFS"))?;
        }
        if !self.read_only {
            give_to_group(&self.staging, self.capability)?;
        }
        Ok(())
    }

    /// Takes away what was made until the error; only then is it final.
    fn undone(&self, error: Error) -> Error {
        let clean = || -> Result<(), Error> {
            let all = self.site.loops(self.id)?;
            let mine: Vec<Own> = all
                .into_iter()
                .filter(|own| own.tag == self.tag && own.sound)
                .collect();
            let mounts = self.site.mounts()?;
            if mounted::at(&mounts, self.id, &self.staging, &mine)?.is_some() {
                mounted::unmount_all(self.site.kernel.as_ref(), self.id, &self.staging)?;
            }
            for own in &mine {
                self.site.free(own)?;
            }
            Ok(())
        };
        match (clean(), error) {
            (Ok(()), Error::HalfDone { step, source }) => Error::Undone { step, source },
            (Ok(()), error) => error,
            (Err(left), _) => left,
        }
    }
}

/// What ext4 and XFS say when they must replay a journal and may not write.
fn needs_replay(error: &KernelError) -> bool {
    matches!(error.errno(), Some(libc::EROFS | libc::EACCES))
}
