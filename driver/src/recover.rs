//! The sweep at start: deletions that were begun are finished, temporaries of nobody go, what cannot be read is set aside.
use std::fs;

use crate::error::Error;
use crate::guard::file_lock;
use crate::id::VolumeId;
use crate::volume::image;
use crate::volume::record::State;
use crate::volume::store::{Store, remove};

/// Sweeps once; a volume that another process works on is left to it.
///
/// # Errors
/// If the folder cannot be listed; the trouble of one volume is logged and stops nothing.
pub fn sweep(store: &Store) -> Result<(), Error> {
    for id in store.ids()? {
        let result = match store.read(&id) {
            Ok(Some(record)) if record.state == State::Deleting => finish(store, &id),
            Ok(_) => Ok(()),
            Err(error @ Error::Unreadable { .. }) => {
                tracing::error!(volume = %id, error = error.message(), "record set aside in quarantine; its image stays");
                quarantine(store, &id)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!(volume = %id, error = error.message(), "not recovered now");
        }
    }
    temporaries(store)
}

fn finish(store: &Store, id: &VolumeId) -> Result<(), Error> {
    let Some(_lock) = file_lock::try_lock(&store.lock(id.as_str())).map_err(Error::storage("locking"))?
    else {
        return Ok(());
    };
    image::delete(&store.image(id)).map_err(Error::storage("removing an image"))?;
    store.remove(id)?;
    tracing::info!(volume = %id, "deletion finished");
    Ok(())
}

fn quarantine(store: &Store, id: &VolumeId) -> Result<(), Error> {
    let name = format!("{id}.json");
    let to = store.root().join("quarantine").join(&name);
    fs::rename(store.volumes().join(name), to).map_err(Error::storage("setting a record aside"))
}

/// A temporary whose volume nobody works on was left by a crash.
fn temporaries(store: &Store) -> Result<(), Error> {
    let failed = || Error::storage("listing temporaries");
    for entry in fs::read_dir(store.volumes()).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(id) = name
            .strip_suffix(".tmp")
            .and_then(|n| n.split('.').next())
            .and_then(VolumeId::parse)
        else {
            continue;
        };
        if let Ok(Some(_lock)) = file_lock::try_lock(&store.lock(id.as_str())) {
            remove(&entry.path()).map_err(failed())?;
        }
    }
    Ok(())
}
