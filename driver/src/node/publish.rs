//! NodePublishVolume: the staged volume at a pod's path, writable or not.
use std::path::{Path, PathBuf};

use holdfast_proto::csi as pb;

use super::site::{Own, Site, place, real, unfit};
use super::stage::{epoch, exceeded, give_to_group, is_read_only};
use super::tag::{self, Tag, Use};
use super::{mounted, unpublish};
use crate::error::Error;
use crate::id::VolumeId;
use crate::kernel::mountinfo::Mount;
use crate::kernel::place::{Kind, Place};
use crate::kernel::{KernelError, LoopFlags, MountFlags, loop_device, mount_flags};
use crate::request;
use crate::volume::capability::{self, Access, Capability, Mode};

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
        let capability = capability::one(request.volume_capability).map_err(exceeded(&request.volume_id))?;
        capability.check_flags()?;
        request::map("publish_context", &request.publish_context)?;
        request::map("volume_context", &request.volume_context)?;
        request::map("secrets", &request.secrets)?;
        let id = id.ok_or(Error::VolumeNotFound {
            id: request.volume_id,
        })?;
        if request.staging_target_path.is_empty() {
            return Err(unfit(
                &id,
                "staging_target_path is required, because STAGE_UNSTAGE_VOLUME is declared",
            ));
        }
        let staging = request::path("staging_target_path", &request.staging_target_path)?;
        let read_only = request.readonly || capability.mode == Mode::ReaderOnly;
        Ok(Self {
            id,
            staging,
            target,
            capability,
            read_only,
            epoch: epoch(&request.publish_context),
        })
    }
}

/// One publication, with everything it is decided by.
struct Job<'a> {
    site: &'a Site,
    id: &'a VolumeId,
    capability: &'a Capability,
    read_only: bool,
    epoch: u64,
    /// As mountinfo shows them.
    staging: PathBuf,
    target: Place,
    mounts: Vec<Mount>,
    loops: Vec<Own>,
    /// How a staging with these arguments would be tagged.
    arguments: String,
}

/// Puts the volume at the target, or finds it there.
pub(super) fn publish(site: &Site, wanted: &Wanted) -> Result<pb::NodePublishVolumeResponse, Error> {
    let _lock = site.lock(&wanted.id)?;
    let (record, epoch) = site.fenced(&wanted.id, &wanted.epoch)?;
    let id = &wanted.id;
    let Some(target) = place(&wanted.target)? else {
        let shown = wanted.target.display();
        return Err(unfit(
            id,
            format!("cannot be published at {shown}: the folder that it is in does not exist; make it first"),
        ));
    };
    let staging = real(&wanted.staging)?;
    site.allowed("target_path", target.path())?;
    if target.path().starts_with(&staging) {
        return Err(Error::Invalid {
            field: "target_path",
            value: target.path().display().to_string(),
            reason: String::from("is the staging path, or below it"),
        });
    }
    let stage_read_only = is_read_only(site, &wanted.capability, &record);
    let job = Job {
        site,
        id,
        capability: &wanted.capability,
        read_only: wanted.read_only || stage_read_only,
        epoch,
        staging,
        target,
        mounts: site.mounts()?,
        loops: site.loops(id)?,
        arguments: tag::arguments(&wanted.capability, stage_read_only),
    };
    if let Some(now) = mounted::at(&job.mounts, id, job.target.path(), &job.loops)? {
        return job.same(now).map(|()| pb::NodePublishVolumeResponse {});
    }
    if !record.offers(&wanted.capability) {
        return Err(unfit(
            id,
            "was not made for this access type or filesystem; ask for what CreateVolume was asked for",
        ));
    }
    job.alone()?;
    let staged = job.staged()?.clone();
    match wanted.capability.access {
        Access::Mount => job.mount(&staged)?,
        Access::Block => job.block(&staged)?,
    }
    Ok(pb::NodePublishVolumeResponse {})
}

impl Job<'_> {
    /// What is at the target already must be what is asked for.
    fn same(&self, now: &Mount) -> Result<(), Error> {
        let other = |difference: &str| {
            Err(Error::Differs {
                what: format!("publication of {} at {}", self.id, self.target.path().display()),
                difference: difference.to_owned(),
            })
        };
        let Some(own) = self.loops.iter().find(|own| mounted::shows(now, [*own])) else {
            return other("device");
        };
        if !own.sound || own.tag.epoch != self.epoch {
            return Err(unfit(
                self.id,
                format!(
                    "is at {} by a device that can no longer be used; call NodeUnpublishVolume first",
                    self.target.path().display()
                ),
            ));
        }
        let staged = self.loops.iter().find(|own| own.is_staged(self.epoch));
        if staged.is_some_and(|own| own.tag.place != tag::place(&self.staging)) {
            return other("staging_target_path");
        }
        let is_mount = now.major == mounted::LOOP_MAJOR;
        if is_mount != (self.capability.access == Access::Mount) {
            return other("access type");
        }
        let is_read_only = own.status.flags.read_only || (is_mount && now.is_read_only());
        if is_read_only != self.read_only {
            return other("readonly");
        }
        if self.capability.fs.is_some_and(|fs| fs.name() != now.fs) {
            return other("fs_type");
        }
        // What the kernel does not show, the access mode above all, is written beneath the mount.
        if self.target.marked().is_some_and(|marked| marked != self.mark()) {
            return other("volume_capability");
        }
        if is_mount && (self.flags_differ(now) || self.has_other_options(own)) {
            return other("mount_flags");
        }
        Ok(())
    }

    /// The arguments of this publication.
    fn mark(&self) -> String {
        tag::arguments(self.capability, self.read_only)
    }

    /// Whether the mount's own flags are not those that this call would give it.
    fn flags_differ(&self, now: &Mount) -> bool {
        let staged = crate::kernel::mountinfo::at(&self.mounts, &self.staging);
        let has = |mount: &Mount, flag: &str| mount.options.iter().any(|o| o == flag);
        let asked = |flag: &str| self.capability.mount_flags.iter().any(|f| f == flag);
        let sets_atime = asked("relatime") || asked("strictatime");
        ["nosuid", "nodev", "noexec", "noatime", "nodiratime"]
            .iter()
            .any(|flag| {
                let kept = !(sets_atime && *flag == "noatime");
                let inherited = kept && staged.last().is_some_and(|m| has(m, flag));
                has(now, flag) != (asked(flag) || inherited)
            })
    }

    /// Whether options of the filesystem as a whole are asked for that it was not staged with.
    fn has_other_options(&self, own: &Own) -> bool {
        own.tag.purpose == Use::Staged
            && own.tag.arguments != self.arguments
            && mount_flags::has_options(&self.capability.mount_flags)
    }

    /// Only SINGLE_NODE_MULTI_WRITER lets a second target have the volume.
    fn alone(&self) -> Result<(), Error> {
        if self.capability.mode == Mode::MultiWriter {
            return Ok(());
        }
        let others = mounted::elsewhere(&self.mounts, &self.loops, &self.staging);
        match others.iter().find(|path| !mounted::is_kubelets(path)) {
            None => Ok(()),
            Some(other) => Err(Error::InUse {
                id: self.id.to_string(),
                by: format!(
                    "published at {}; its access mode allows one target",
                    other.display()
                ),
            }),
        }
    }

    /// The device with which the volume is staged at the staging path.
    fn staged(&self) -> Result<&Own, Error> {
        let place = tag::place(&self.staging);
        let shown = self.staging.display();
        let found = self
            .loops
            .iter()
            .find(|own| own.is_staged(self.epoch) && own.tag.place == place);
        let Some(own) = found else {
            return Err(unfit(
                self.id,
                format!("is not staged at {shown}; call NodeStageVolume first"),
            ));
        };
        if self.has_other_options(own) {
            return Err(unfit(
                self.id,
                format!(
                    "is staged at {shown} without these mount_flags, which a filesystem can only have as a whole"
                ),
            ));
        }
        Ok(own)
    }

    fn mount(&self, staged: &Own) -> Result<(), Error> {
        let shown = self.staging.display();
        let at = mounted::at(&self.mounts, self.id, &self.staging, std::slice::from_ref(staged))?;
        let Some(at) = at.filter(|m| m.major == mounted::LOOP_MAJOR) else {
            return Err(unfit(
                self.id,
                format!("is not mounted at {shown}; call NodeStageVolume first"),
            ));
        };
        // A writer would find out only when it writes.
        if at.is_read_only() && !self.read_only {
            return Err(unfit(
                self.id,
                format!("is staged at {shown} for reading only; unstage it, and stage it again for writing"),
            ));
        }
        if !self
            .site
            .kernel
            .answers(&self.staging)
            .map_err(Error::half_done("asking a filesystem"))?
        {
            return Err(unfit(
                self.id,
                format!("is at {shown}, but its filesystem has shut down; unstage and stage it again"),
            ));
        }
        let made = match self.target.kind() {
            Ok(None) => self
                .target
                .make_folder()
                .map_err(Error::storage("making the target folder"))?,
            // What is in it would be hidden, and in the way of its removal afterwards.
            Ok(Some(Kind::Folder)) if self.has_content()? => return Err(self.wrong_kind("an empty folder")),
            Ok(Some(Kind::Folder)) => false,
            Ok(Some(_)) => return Err(self.wrong_kind("an empty folder")),
            Err(error) => return Err(Error::storage("looking at the target")(error)),
        };
        if !self.read_only {
            give_to_group(&self.staging, self.capability).map_err(|error| {
                match self.remove(made, Kind::Folder) {
                    Ok(()) => error,
                    Err(left) => left,
                }
            })?;
        }
        let flags = mount_flags::mount_bits(&self.capability.mount_flags, self.read_only);
        self.bind(&self.staging, flags, made, Kind::Folder)
    }

    fn block(&self, staged: &Own) -> Result<(), Error> {
        let made = match self.target.kind() {
            Ok(None) => self
                .target
                .make_file()
                .map_err(Error::storage("making the target file"))?,
            Ok(Some(Kind::File(0))) => false,
            Ok(Some(_)) => return Err(self.wrong_kind("an empty file")),
            Err(error) => return Err(Error::storage("looking at the target")(error)),
        };
        let device = self
            .device(staged)
            .map_err(|error| match self.remove(made, Kind::File(0)) {
                Ok(()) => error,
                Err(left) => left,
            })?;
        self.bind(
            &loop_device::path(device),
            MountFlags::default(),
            made,
            Kind::File(0),
        )
    }

    /// BLKROSET would hit every user of the device, and stick to its number: a reader gets a device of its own.
    fn device(&self, staged: &Own) -> Result<u32, Error> {
        if staged.status.flags.read_only == self.read_only {
            return Ok(staged.status.number);
        }
        if staged.status.flags.read_only {
            return Err(unfit(
                self.id,
                "is staged read-only; it cannot be published writable",
            ));
        }
        let is_reader =
            |own: &&Own| own.sound && own.tag.purpose == Use::Reader && own.tag.epoch == self.epoch;
        if let Some(reader) = self.loops.iter().find(is_reader) {
            return Ok(reader.status.number);
        }
        let image = std::fs::File::open(self.site.store.image(self.id))
            .map_err(Error::storage("opening an image"))?;
        let flags = LoopFlags {
            read_only: true,
            autoclear: false,
        };
        let tag = Tag {
            purpose: Use::Reader,
            place: String::from("0"),
            ..staged.tag.clone()
        };
        let reader = self
            .site
            .kernel
            .attach(&image, flags, &tag.to_string())
            .map_err(|source| Error::Undone {
                step: String::from("attaching a read-only device"),
                source,
            })?;
        Ok(reader.number)
    }

    fn bind(&self, from: &Path, flags: MountFlags, made: bool, kind: Kind) -> Result<(), Error> {
        let to = self.target.path();
        let failed = |source: KernelError| {
            let step = format!("binding {} at {}", from.display(), to.display());
            let undone = self
                .remove(made, kind)
                .and_then(|()| unpublish::free_readers(self.site, self.id));
            match undone {
                Ok(()) => Error::Undone { step, source },
                Err(_) => Error::HalfDone { step, source },
            }
        };
        self.target.mark(&self.mark());
        self.site.kernel.bind(from, to, flags).map_err(failed)
    }

    fn remove(&self, made: bool, kind: Kind) -> Result<(), Error> {
        if !made {
            return Ok(());
        }
        self.target
            .remove(kind)
            .map_err(Error::storage("removing the target again"))
    }

    fn has_content(&self) -> Result<bool, Error> {
        let mut entries =
            std::fs::read_dir(self.target.path()).map_err(Error::storage("looking into the target"))?;
        Ok(entries.next().is_some())
    }

    fn wrong_kind(&self, wanted: &str) -> Error {
        unfit(
            self.id,
            format!(
                "cannot be published at {}: something is there that is not {wanted}, and links are not followed; \
                 remove it first",
                self.target.path().display()
            ),
        )
    }
}
