//! One staging: what is left of an earlier one goes, what is there is gone on with, and what is missing is made: claim, loop
//! device, filesystem, mount. An error takes away what was made before it.
use std::fs::File;
use std::path::PathBuf;

use super::site::{Own, Site, unfit};
use super::stage::give_to_group;
use super::tag::{Tag, Use};
use super::{format, mounted, revoke};
use crate::error::Error;
use crate::id::VolumeId;
use crate::kernel::{KernelError, LoopFlags, OpenLoop, filesystem, mount_flags, wait};
use crate::volume::capability::{Access, Capability, Fs};
use crate::volume::record::Record;
use crate::volume::{errand, fence};

fn half(step: &str) -> impl FnOnce(KernelError) -> Error {
    Error::half_done(step.to_owned())
}

/// One staging, as far as it is known what to make.
pub(super) struct Job<'a> {
    pub(super) site: &'a Site,
    pub(super) id: &'a VolumeId,
    /// As mountinfo shows it.
    pub(super) staging: PathBuf,
    pub(super) read_only: bool,
    pub(super) no_atime: bool,
    pub(super) capability: &'a Capability,
    pub(super) context: &'a str,
    pub(super) epoch: u64,
    pub(super) tag: Tag,
}

impl Job<'_> {
    /// Takes away what an earlier attachment, or a device that has died, has left on this node.
    pub(super) fn clear_stale(&self) -> Result<(), Error> {
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
    pub(super) fn live(&self) -> Result<Option<Own>, Error> {
        let all = self.site.loops(self.id)?;
        Ok(all.into_iter().find(|own| own.is_staged(self.epoch)))
    }

    /// What is staged already must be what is asked for.
    pub(super) fn compatible(&self, own: &Own) -> Result<(), Error> {
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
    pub(super) fn resume(&self, own: &Own) -> Result<bool, Error> {
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
        if let Some(now) = mounted::at(&mounts, self.id, &self.staging, std::slice::from_ref(own))? {
            // Cut off while XFS was grown for whoever may only read: nobody has it yet, so it is made again.
            let is_cut_off = self.read_only && !now.is_read_only();
            if !is_cut_off || !mounted::elsewhere(&mounts, [own], &self.staging).is_empty() {
                return Ok(true);
            }
            mounted::unmount_all(kernel, self.id, &self.staging)?;
            self.site.free(own)?;
            return Ok(false);
        }
        if mounted::elsewhere(&mounts, [own], &self.staging).is_empty() {
            // Nobody has it any more: it is about to free itself.
            self.site.free(own)?;
            return Ok(false);
        }
        // Targets have the filesystem, so it is whole; only the staging was undone.
        let (flags, data) = mount_flags::mount_options(fs, &self.flags(), self.read_only);
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
    pub(super) fn attach(&self, read_only: bool, autoclear: bool) -> Result<(OpenLoop, Record, bool), Error> {
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
    pub(super) fn mount(&self, fs: Fs, is_made: bool) -> Result<(), Error> {
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
        // A clone larger than its source has its whole size for a reader, too, and to grow takes a writable device.
        if read_only_device && format::is_smaller(self.site.kernel.as_ref(), &device)? {
            drop(device);
            return self.mount_on(fs, false);
        }
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
        let mount = |read_only: bool| {
            let (flags, data) = mount_flags::mount_options(fs, &self.flags(), read_only);
            kernel
                .mount(&device.path(), &self.staging, fs.name(), flags, &data)
                .map_err(half("mounting"))
        };
        // XFS grows only where it is mounted writable.
        let grows = fs == Fs::Xfs && !fresh && format::is_smaller(kernel, device)?;
        mount(self.read_only && !grows)?;
        if grows {
            filesystem::grow_xfs(kernel, &self.staging).map_err(half("growing XFS"))?;
            if self.read_only {
                mounted::unmount_all(kernel, self.id, &self.staging)?;
                mount(true)?;
            }
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
