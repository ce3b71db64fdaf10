//! Records on disk: temporary file, fsync, rename, fsync of the folder; never a record that is half there.
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::commit::Commit;
use super::errand;
use super::files;
use super::image;
use super::index::Index;
use super::record::{Record, State};
use crate::error::Error;
use crate::failpoint;
use crate::id::VolumeId;
use crate::kernel::wait;

const VERSION: u32 = 1;
/// How long a call waits for another process that is about to make a promise; its own takes microseconds.
const LIMIT: Duration = Duration::from_secs(8);

/// Room for the longest record and for what a filesystem needs beside it.
const SPARE_BYTES: u64 = 16 * 1024;

/// The data folder.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    /// Fsyncs of the volumes folder.
    commit: Commit,
    index: Mutex<Option<Index>>,
    /// Locked while something is promised that all volumes together must allow: by the mutex against this process's calls,
    /// by its flock against other processes.
    promises: Mutex<File>,
}

impl Store {
    /// Opens the data folder and makes what is missing in it; its group stays, so that both roles read what the other wrote.
    ///
    /// # Errors
    /// The failed call.
    pub fn open(root: &Path) -> io::Result<Self> {
        for folder in ["volumes", "locks", "nodes", "quarantine", "requests"] {
            let path = root.join(folder);
            match fs::create_dir_all(&path) {
                Ok(()) => {}
                Err(error) => {
                    return Err(io::Error::new(
                        error.kind(),
                        format!("{}: {error}", path.display()),
                    ));
                }
            }
            // Whoever made it has set the mode already.
            let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o2770));
        }
        files::sync_folder(root)?;
        let promises = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o660)
            .open(root.join("locks").join("promises.lock"))?;
        keep_spare(&promises);
        Ok(Self {
            root: root.to_owned(),
            commit: Commit::open(&root.join("volumes"))?,
            index: Mutex::default(),
            promises: Mutex::new(promises),
        })
    }

    /// The data folder's path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The volume's image.
    pub fn image(&self, id: &VolumeId) -> PathBuf {
        self.root.join("volumes").join(format!("{id}.img"))
    }

    /// The file of the volume's record lock, or of another lock of the whole folder.
    pub fn lock(&self, key: &str) -> PathBuf {
        self.root.join("locks").join(format!("{key}.lock"))
    }

    /// The file of the volume's lock on one node.
    pub fn node_lock(&self, id: &VolumeId, node: &str) -> PathBuf {
        self.root.join("locks").join(format!("{id}.{node}.node.lock"))
    }

    /// The folder of records and images.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// The folder of what cannot be read, or has lost its record.
    pub(super) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    pub(super) fn record(&self, id: &VolumeId) -> PathBuf {
        self.volumes().join(format!("{id}.json"))
    }

    /// The record of `id`, if there is one.
    ///
    /// # Errors
    /// [`Error::Unreadable`] where the file is no record: its volume is left alone.
    pub fn read(&self, id: &VolumeId) -> Result<Option<Record>, Error> {
        let unreadable = |reason: String| Error::Unreadable {
            id: id.to_string(),
            reason,
        };
        let text = match files::read(&self.record(id)) {
            Ok(Some(text)) => text,
            Ok(None) => return Err(unreadable(String::from("it is no file"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::storage(format!("reading the record of {id}"))(error)),
        };
        let record: Record = serde_json::from_slice(&text).map_err(|e| unreadable(e.to_string()))?;
        if record.version != VERSION || record.id != *id {
            return Err(unreadable(format!(
                "version {}, id {}",
                record.version, record.id
            )));
        }
        Ok(Some(record))
    }

    /// Makes `record` durable in place of the one before, by the holder of the volume's record lock.
    ///
    /// # Errors
    /// The failed call; the one before is still there then, or the new one is not yet durable.
    pub fn write(&self, record: &Record) -> Result<(), Error> {
        let step = || format!("writing the record of {}", record.id);
        let temporary = self.prepare(record, true)?;
        self.name(&temporary, record).map_err(Error::storage(step()))?;
        self.sync(step())
    }

    /// [`Store::write`] of a record that lets something go. A full disk must not keep it from that: it is emptied by letting
    /// go, so the room for one record is set aside in the file of the promises, which is always there.
    ///
    /// # Errors
    /// Those of [`Store::write`].
    pub fn release(&self, record: &Record) -> Result<(), Error> {
        let is_full = |error: &Error| matches!(error, Error::Storage { source, .. } if source.kind() == io::ErrorKind::StorageFull);
        let promises = || self.promises.lock().unwrap_or_else(PoisonError::into_inner);
        match self.write(record) {
            Err(error) if is_full(&error) => {
                promises()
                    .set_len(0)
                    .map_err(Error::storage("giving up the spare room"))?;
                let written = self.write(record);
                keep_spare(&promises());
                written
            }
            written => written,
        }
    }

    fn name(&self, temporary: &Path, record: &Record) -> io::Result<()> {
        let rename = || fs::rename(temporary, self.record(&record.id));
        match record.state {
            State::Creating => failpoint::step("record-creating", rename),
            State::Ready => failpoint::step("record-ready", rename),
            State::Deleting => failpoint::step("record-deleting", rename),
        }
    }

    /// [`Store::write`], if what all volumes have together allows it: nothing is promised by anybody, in any process, between
    /// the look of `allowed` and the record.
    ///
    /// # Errors
    /// What `allowed` says, ABORTED if another process does not let go, or the failed call.
    pub fn write_if(
        &self,
        record: &Record,
        allowed: impl FnOnce(&Index) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.promise(record, true, allowed)?;
        self.sync(format!("writing the record of {}", record.id))
    }

    /// [`Store::write_if`] of the first record of a volume, which says *creating*: it survives this process from now on, and
    /// the machine from [`Store::make_image`] or [`Store::settle`] on, together with what they make durable. Nobody was
    /// promised anything before, so a record that a power failure tears here is nobody's ([`super::torn`]).
    ///
    /// # Errors
    /// Those of [`Store::write_if`].
    pub fn reserve(
        &self,
        record: &Record,
        allowed: impl FnOnce(&Index) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.promise(record, false, allowed)
    }

    fn promise(
        &self,
        record: &Record,
        durably: bool,
        allowed: impl FnOnce(&Index) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let step = || format!("writing the record of {}", record.id);
        let temporary = self.prepare(record, durably)?;
        // What is new to this process is read before anybody has to wait for it.
        self.look(|_| ())?;
        let promises = self.promises.lock().unwrap_or_else(PoisonError::into_inner);
        let result = exclusive(&promises)
            .and_then(|()| self.look(allowed)?)
            .and_then(|()| self.name(&temporary, record).map_err(Error::storage(step())));
        // Also unlocked when this process ends.
        let _ = promises.unlock();
        drop(promises);
        if result.is_err() {
            // Left behind it would be found by the sweep.
            let _ = fs::remove_file(&temporary);
        }
        result
    }

    /// The record as a file beside its place.
    fn prepare(&self, record: &Record, durably: bool) -> Result<PathBuf, Error> {
        let step = || format!("writing the record of {}", record.id);
        let text = serde_json::to_vec(record).map_err(|e| Error::storage(step())(e.into()))?;
        let temporary = self.record(&record.id).with_extension("json.tmp");
        match failpoint::step("record-written", || files::write(&temporary, &text, durably)) {
            Ok(()) => Ok(temporary),
            Err(error) => {
                let _ = fs::remove_file(&temporary);
                Err(Error::storage(step())(error))
            }
        }
    }

    /// Makes every name of the volumes folder durable; calls at the same time share the work.
    ///
    /// # Errors
    /// The failed call.
    pub fn sync(&self, step: String) -> Result<(), Error> {
        failpoint::step("folder-synced", || self.commit.sync()).map_err(Error::storage(step))
    }

    /// The volume's empty image and the record that says *creating*, all but their names durably; an image that is there
    /// already is grown to the size.
    ///
    /// # Errors
    /// The failed call.
    pub fn make_image(&self, record: &Record) -> io::Result<()> {
        let path = self.image(&record.id);
        let image = failpoint::step("image-made", || image::create(&path, record.size_bytes))?;
        // Only now, so that a journaling filesystem needs one commit for both.
        self.settle(record)?;
        failpoint::step("image-settled", || image.sync_all())
    }

    /// Makes durable, all but its name, what [`Store::reserve`] wrote.
    ///
    /// # Errors
    /// The failed call.
    pub fn settle(&self, record: &Record) -> io::Result<()> {
        failpoint::step("record-settled", || {
            File::open(self.record(&record.id))?.sync_all()
        })
    }

    /// The end of every deletion, by the holder of the record lock: the image goes, then the record that says *deleting*. A
    /// crash in between is finished by whoever sees the record next.
    ///
    /// # Errors
    /// The failed call.
    pub fn erase(&self, id: &VolumeId) -> Result<(), Error> {
        let image = self.image(id);
        let copy = image.with_extension("img.tmp");
        let record = self.record(id);
        self.erased(&copy, failpoint::step("copy-removed", || fs::remove_file(&copy)))?;
        self.erased(
            &image,
            failpoint::step("image-removed", || fs::remove_file(&image)),
        )?;
        self.erased(
            &record,
            failpoint::step("record-removed", || fs::remove_file(&record)),
        )?;
        errand::withdraw(self, id)
    }

    /// Makes the removal of a file durable; one that was gone needs nothing.
    fn erased(&self, path: &Path, removed: io::Result<()>) -> Result<(), Error> {
        let step = || format!("removing {}", path.display());
        match removed {
            Ok(()) => self.sync(step()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::storage(step())(error)),
        }
    }

    /// What `question` finds among all volumes, as they are now in the folder.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn look<T>(&self, question: impl FnOnce(&Index) -> T) -> Result<T, Error> {
        let mut index = self.index();
        let index = index.get_or_insert_with(|| Index::new(self));
        index.refresh(self)?;
        Ok(question(index))
    }

    fn index(&self) -> MutexGuard<'_, Option<Index>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ids that have a record, in order.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn ids(&self) -> Result<Vec<VolumeId>, Error> {
        let failed = || Error::storage("listing volumes");
        let mut ids = Vec::new();
        for entry in fs::read_dir(self.volumes()).map_err(failed())? {
            ids.extend(record_id(&entry.map_err(failed())?.file_name()));
        }
        ids.sort();
        Ok(ids)
    }

    /// Moves a file of the volumes folder to quarantine, under a name that is free there.
    ///
    /// # Errors
    /// The failed call.
    pub fn set_aside(&self, name: &str) -> io::Result<()> {
        let aside = self.quarantine();
        let mut to = aside.join(name);
        let mut number = 1;
        while to.symlink_metadata().is_ok() {
            to = aside.join(format!("{name}.{number}"));
            number += 1;
        }
        failpoint::step("set-aside", || fs::rename(self.volumes().join(name), &to))?;
        tracing::error!(file = name, to = %to.display(), "set aside in quarantine");
        files::sync_folder(&aside)?;
        files::sync_folder(&self.volumes())
    }
}

/// The volume whose record has this file name.
pub(super) fn record_id(name: &OsStr) -> Option<VolumeId> {
    VolumeId::parse(name.to_str()?.strip_suffix(".json")?)
}

/// Sets room aside for [`Store::release`], if there is any.
fn keep_spare(promises: &File) {
    let kept = match promises.metadata() {
        Ok(there) if there.len() >= SPARE_BYTES => Ok(()),
        Ok(_) => promises.write_all_at(&[0; SPARE_BYTES as usize], 0),
        Err(error) => Err(error),
    };
    if let Err(error) = kept {
        tracing::warn!(%error, "no room could be set aside; on a full disk nothing can be let go");
    }
}

/// Keeps other processes from making promises.
fn exclusive(promises: &File) -> Result<(), Error> {
    let taken = wait::until(LIMIT, || match promises.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(Error::storage("locking the promises")(error)),
    })?;
    if taken {
        return Ok(());
    }
    Err(Error::Busy {
        key: String::from("promises.lock"),
        holder: String::from("another process"),
    })
}
