//! What every node call works with: the data folder, the kernel, and the loop devices of a volume that this node made.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::tag::{self, Tag, Use};
use crate::error::Error;
use crate::guard::file_lock::{self, Lock};
use crate::id::VolumeId;
use crate::kernel::mountinfo::Mount;
use crate::kernel::place::{self, Place};
use crate::kernel::{FileId, Kernel, LoopStatus, loop_device, wait};
use crate::volume::record::{Record, State};
use crate::volume::store::Store;

/// What every node call works with.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) store: Arc<Store>,
    pub(super) kernel: Arc<dyn Kernel>,
    pub(super) node: String,
}

/// A loop device that this node made for a volume.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub(super) status: LoopStatus,
    pub(super) tag: Tag,
    /// Whether it stands on the volume's image as it is now, and answers.
    pub(super) sound: bool,
}

impl Own {
    /// Whether it is the staged device of this very attachment.
    pub(super) fn is_staged(&self, epoch: u64) -> bool {
        self.sound && self.tag.purpose == Use::Staged && self.tag.epoch == epoch
    }
}

impl Site {
    /// The volume's lock on this node, for the whole of a call; no controller waits for it.
    pub(super) fn lock(&self, id: &VolumeId) -> Result<Lock, Error> {
        file_lock::lock(&self.store.node_lock(id, &self.node), id.as_str())
    }

    /// The volume's record lock, for a moment.
    pub(super) fn record_lock(&self, id: &VolumeId) -> Result<Lock, Error> {
        file_lock::lock(&self.store.lock(id.as_str()), id.as_str())
    }

    /// This node in a tag.
    pub(super) fn owner(&self) -> String {
        tag::owner(&self.node, self.store.root())
    }

    /// The mounts of this node.
    pub(super) fn mounts(&self) -> Result<Vec<Mount>, Error> {
        self.kernel
            .mounts()
            .map_err(Error::half_done("reading mountinfo"))
    }

    /// The volume's loop devices that this node made, also those of an image that is gone. Another node's are not touched:
    /// where the volume went meanwhile, their lock keeps this node out.
    pub(super) fn loops(&self, id: &VolumeId) -> Result<Vec<Own>, Error> {
        let image = self.store.image(id);
        let found = loop_device::named(self.kernel.as_ref(), &image)
            .map_err(Error::half_done("looking for loop devices"))?;
        let file = FileId::of(&image).ok();
        let owner = self.owner();
        let own = |status: LoopStatus| {
            let tag = Tag::parse(&status.tag).filter(|tag| tag.owner == owner)?;
            let sound = Some(status.file) == file && !status.blind;
            Some(Own { status, tag, sound })
        };
        Ok(found.into_iter().filter_map(own).collect())
    }

    /// The volume's record, if it is ready and this node has it under `epoch`, as publish_context gave it.
    pub(super) fn fenced(&self, id: &VolumeId, epoch: &str) -> Result<(Record, u64), Error> {
        let record = match self.store.read(id)? {
            Some(record) if record.state == State::Ready => record,
            Some(_) | None => return Err(Error::VolumeNotFound { id: id.to_string() }),
        };
        let Some(attachment) = record.attached_to(&self.node) else {
            let reason = format!(
                "is not attached to node {}; call ControllerPublishVolume first",
                self.node
            );
            return Err(unfit(id, reason));
        };
        // None at all is as bad as an old one: whoever stages must have been told about this very attachment.
        if epoch != attachment.epoch.to_string() {
            let reason = format!(
                "publish_context has epoch {epoch:?}, its attachment has {}; use the publish_context of the last \
                 ControllerPublishVolume",
                attachment.epoch
            );
            return Err(unfit(id, reason));
        }
        let epoch = attachment.epoch;
        Ok((record, epoch))
    }

    /// Frees a loop device of this node and waits until it is free.
    pub(super) fn free(&self, own: &Own) -> Result<(), Error> {
        let kernel = self.kernel.as_ref();
        let free = if own.status.flags.autoclear {
            loop_device::wait_free(kernel, &own.status, wait::RELEASE_LIMIT)
        } else {
            loop_device::detach(kernel, &own.status, wait::RELEASE_LIMIT)
        };
        free.map_err(Error::half_done("freeing a loop device"))
    }

    /// Refuses a path at which no volume may ever be: among the driver's own files, or the kernel's.
    pub(super) fn allowed(&self, field: &'static str, path: &Path) -> Result<(), Error> {
        let forbidden = [self.store.root(), Path::new("/proc"), Path::new("/sys")];
        match forbidden.iter().find(|root| path.starts_with(root)) {
            None => Ok(()),
            Some(root) => Err(Error::Invalid {
                field,
                value: path.display().to_string(),
                reason: format!("is below {}, where no volume can be", root.display()),
            }),
        }
    }
}

/// For `reason` to continue "volume ID".
pub(super) fn unfit(id: &VolumeId, reason: impl Into<String>) -> Error {
    Error::Unfit {
        id: id.to_string(),
        reason: reason.into(),
    }
}

/// The place of a path that the CO gave; none if nothing can be there.
pub(super) fn place(path: &Path) -> Result<Option<Place>, Error> {
    // The root has no name, and no volume is ever there.
    if path.file_name().is_none() {
        return Ok(None);
    }
    Place::find(path).map_err(Error::storage(format!("resolving {}", path.display())))
}

/// The path as mountinfo shows it: the folders above it without symbolic links (/var/lib/kubelet may be one); the last
/// name is not followed.
pub(super) fn real(path: &Path) -> Result<PathBuf, Error> {
    if path.file_name().is_none() {
        return Ok(place::tidy(path));
    }
    Ok(place(path)?.map_or_else(|| place::tidy(path), |found| found.path().to_owned()))
}
