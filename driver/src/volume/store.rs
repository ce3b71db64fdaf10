//! Records on disk: temporary file, fsync, rename, fsync of the folder; never a record that is half there.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::image;
use super::record::Record;
use crate::config::is_node_id;
use crate::error::Error;
use crate::id::VolumeId;

const VERSION: u32 = 1;

/// The data folder.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the data folder and makes what is missing in it; its group stays, so that both roles read what the other wrote.
    ///
    /// # Errors
    /// The failed call.
    pub fn open(root: &Path) -> io::Result<Self> {
        for folder in ["volumes", "locks", "nodes", "quarantine"] {
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
        sync_folder(root)?;
        Ok(Self {
            root: root.to_owned(),
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

    fn record(&self, id: &VolumeId) -> PathBuf {
        self.volumes().join(format!("{id}.json"))
    }

    /// The record of `id`, if there is one.
    ///
    /// # Errors
    /// [`Error::Unreadable`] where the file is no record: its volume is left alone.
    pub fn read(&self, id: &VolumeId) -> Result<Option<Record>, Error> {
        let text = match fs::read(self.record(id)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::storage(format!("reading the record of {id}"))(error)),
        };
        let unreadable = |reason: String| Error::Unreadable {
            id: id.to_string(),
            reason,
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

    /// Makes `record` durable in place of the one before.
    ///
    /// # Errors
    /// The failed call; the one before is still there then.
    pub fn write(&self, record: &Record) -> Result<(), Error> {
        let step = || format!("writing the record of {}", record.id);
        let text = serde_json::to_vec(record).map_err(|e| Error::storage(step())(e.into()))?;
        replace(&self.record(&record.id), &text).map_err(Error::storage(step()))
    }

    /// Removes the record; one that is gone is no error.
    ///
    /// # Errors
    /// The failed call.
    fn remove(&self, id: &VolumeId) -> Result<(), Error> {
        remove(&self.record(id)).map_err(Error::storage(format!("removing the record of {id}")))
    }

    /// The end of every deletion, by the holder of the record lock: the image goes, then the record that says *deleting*. A
    /// crash in between is finished by whoever sees the record next.
    ///
    /// # Errors
    /// The failed call.
    pub fn erase(&self, id: &VolumeId) -> Result<(), Error> {
        image::delete(&self.image(id)).map_err(Error::storage(format!("removing the image of {id}")))?;
        self.remove(id)
    }

    /// The ids that have a record, in order.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn ids(&self) -> Result<Vec<VolumeId>, Error> {
        let failed = || Error::storage("listing volumes");
        let mut ids = Vec::new();
        for entry in fs::read_dir(self.volumes()).map_err(failed())? {
            let name = entry.map_err(failed())?.file_name();
            if let Some(id) = name
                .to_str()
                .and_then(|n| n.strip_suffix(".json"))
                .and_then(VolumeId::parse)
            {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// Every record that can be read, in order of ids; one that cannot is left out, and logged.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn all(&self) -> Result<Vec<Record>, Error> {
        let mut records = Vec::new();
        for id in self.ids()? {
            match self.read(&id) {
                Ok(record) => records.extend(record),
                Err(error) => tracing::warn!(volume = %id, error = error.message(), "record left out"),
            }
        }
        Ok(records)
    }

    /// Moves a file of the volumes folder to quarantine, under a name that is free there.
    ///
    /// # Errors
    /// The failed call.
    pub fn set_aside(&self, name: &str) -> io::Result<()> {
        let aside = self.root.join("quarantine");
        let mut to = aside.join(name);
        let mut number = 1;
        while to.symlink_metadata().is_ok() {
            to = aside.join(format!("{name}.{number}"));
            number += 1;
        }
        fs::rename(self.volumes().join(name), &to)?;
        tracing::error!(file = name, to = %to.display(), "set aside in quarantine");
        sync_folder(&aside)?;
        sync_folder(&self.volumes())
    }

    /// Makes the node known, with the number of volumes that it takes; 0 means no limit.
    ///
    /// # Errors
    /// The failed call.
    pub fn add_node(&self, node: &str, limit: u32) -> io::Result<()> {
        replace(&self.root.join("nodes").join(node), limit.to_string().as_bytes())
    }

    /// The limit of a node, if it is known.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn node_limit(&self, node: &str) -> Result<Option<u32>, Error> {
        if !is_node_id(node) {
            return Ok(None);
        }
        match fs::read_to_string(self.root.join("nodes").join(node)) {
            Ok(text) => Ok(Some(text.trim().parse().unwrap_or(0))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::storage("reading the node's limit")(error)),
        }
    }
}

/// Puts `bytes` in place of the file at `path`, durably, or leaves it as it was.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("json.tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o660)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder(path.parent().unwrap_or(Path::new("/")))
}

/// Removes a file durably; one that is gone is no error.
///
/// # Errors
/// The failed call.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path.parent().unwrap_or(Path::new("/"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes names in a folder durable.
///
/// # Errors
/// The failed call.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
