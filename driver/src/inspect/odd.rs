//! Something odd in a data folder, and how it is mended.
use serde::Serialize;

use crate::error::Error;
use crate::guard::file_lock;
use crate::id::VolumeId;
use crate::recover;
use crate::volume::files::remove;
use crate::volume::image;
use crate::volume::store::Store;

/// What can be done about something odd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Repair {
    /// The creation is undone, or the deletion finished.
    Recover,
    /// The record or image goes to quarantine.
    SetAside,
    /// The image gets its record's size.
    Grow,
    /// The file goes: nothing is in it.
    Remove,
    /// Somebody must look.
    Nothing,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Odd {
    pub(super) file: String,
    #[serde(skip)]
    pub(super) id: Option<VolumeId>,
    pub(super) what: String,
    pub(super) repair: Repair,
}

impl Repair {
    pub(super) fn verb(self) -> &'static str {
        match self {
            Self::Recover => "finish or undo it",
            Self::SetAside => "set it aside in quarantine",
            Self::Grow => "grow the image",
            Self::Remove => "remove it",
            Self::Nothing => "do nothing",
        }
    }
}

impl Odd {
    pub(super) fn new(
        file: impl Into<String>,
        id: Option<&VolumeId>,
        what: impl Into<String>,
        repair: Repair,
    ) -> Self {
        Self {
            file: file.into(),
            id: id.cloned(),
            what: what.into(),
            repair,
        }
    }

    /// Whether it was done; not, if a call holds the volume.
    pub(super) fn repair(&self, store: &Store) -> Result<bool, Error> {
        let Some(id) = &self.id else {
            return Ok(false);
        };
        let path = store.root().join(&self.file);
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.ends_with(".lock") {
            // Taken once, its file goes with it.
            let lock = file_lock::try_lock(&path).map_err(Error::storage("locking"))?;
            return Ok(lock.is_some());
        }
        if matches!(self.repair, Repair::Recover) || name.ends_with(".json") {
            return recover::volume(store, id);
        }
        let lock = file_lock::try_lock(&store.lock(id.as_str())).map_err(Error::storage("locking"))?;
        if lock.is_none() {
            return Ok(false);
        }
        match self.repair {
            Repair::Grow => match store.read(id)? {
                Some(record) => image::grow(&path, record.size_bytes).map_err(Error::storage("growing"))?,
                None => return Ok(false),
            },
            // Looked at again under its lock, which keeps everybody else out.
            Repair::SetAside | Repair::Remove if store.read(id)?.is_none() => {
                let Ok(Some(image)) = image::open_locked(&path) else {
                    return Ok(false);
                };
                if self.repair == Repair::Remove && image::is_blank(&image).unwrap_or(false) {
                    remove(&path).map_err(Error::storage("removing"))?;
                } else {
                    store.set_aside(name).map_err(Error::storage("setting aside"))?;
                }
            }
            Repair::Remove if name.ends_with(".tmp") => {
                remove(&path).map_err(Error::storage("removing"))?;
            }
            Repair::SetAside | Repair::Remove | Repair::Recover | Repair::Nothing => return Ok(false),
        }
        Ok(true)
    }
}
