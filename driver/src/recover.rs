//! The sweep at start: creations that were begun are undone, deletions finished, temporaries of nobody go, what cannot be read is set aside.
use std::fs;

use crate::error::Error;
use crate::guard::file_lock;
use crate::id::VolumeId;
use crate::metrics::Metrics;
use crate::volume::errand;
use crate::volume::files::remove;
use crate::volume::record::State;
use crate::volume::store::Store;

/// Sweeps once; a volume that another process works on is left to it.
///
/// # Errors
/// If the folder cannot be listed; the trouble of one volume is logged and stops nothing.
pub fn sweep(store: &Store, metrics: &Metrics) -> Result<(), Error> {
    // A volume that can be used needs nothing: only the others are locked and read again.
    let odd: Vec<VolumeId> = store.look(|all| {
        let cut_off = all.after(None).filter(|(_, volume)| volume.state != State::Ready);
        cut_off
            .map(|(id, _)| id)
            .chain(all.unreadable().map(|(id, _)| id))
            .cloned()
            .collect()
    })?;
    for id in odd {
        match volume(store, &id) {
            Ok(true) => metrics.count_recovered(),
            Ok(false) => {}
            Err(error) => tracing::warn!(volume = %id, error = error.message(), "not recovered now"),
        }
    }
    temporaries(store)?;
    requests(store)?;
    locks(store)
}

/// Finishes or undoes what was begun with one volume, or sets its record aside; whether there was something to do, and nobody
/// who does it.
///
/// # Errors
/// What stopped it.
pub fn volume(store: &Store, id: &VolumeId) -> Result<bool, Error> {
    // Whoever makes or deletes a volume holds its lock all the time: a state that is found under the lock was left by
    // a crash, or by a call that failed and will be repeated.
    let Some(_lock) = file_lock::try_lock(&store.lock(id.as_str())).map_err(Error::storage("locking"))?
    else {
        return Ok(false);
    };
    match store.read(id) {
        Ok(Some(record)) => match record.state {
            State::Ready => Ok(false),
            // Promised to nobody; whoever asks for the name again gets a new one.
            State::Creating => erase(store, id, "creation undone"),
            State::Deleting => erase(store, id, "deletion finished"),
        },
        Ok(None) => Ok(false),
        Err(error @ Error::Unreadable { .. }) => {
            tracing::error!(volume = %id, error = error.message(), "record set aside; its image stays");
            store
                .set_aside(&format!("{id}.json"))
                .map_err(Error::storage("setting a record aside"))?;
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

fn erase(store: &Store, id: &VolumeId, done: &str) -> Result<bool, Error> {
    store.erase(id)?;
    tracing::info!(volume = %id, "{done}");
    Ok(true)
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

/// A request to the nodes that nobody waits for any more, or that was cut off while it was written.
fn requests(store: &Store) -> Result<(), Error> {
    for id in errand::volumes(store)? {
        let Some(_lock) = file_lock::try_lock(&store.lock(id.as_str())).map_err(Error::storage("locking"))?
        else {
            continue;
        };
        let attached = match store.read(&id) {
            Ok(record) => record.and_then(|r| r.attachment).map(|a| a.epoch),
            Err(Error::Unreadable { .. }) => None,
            Err(error) => return Err(error),
        };
        let asked = errand::pending(store, &id)?.map(|errand| errand.epoch);
        if asked.is_none() || asked != attached {
            errand::clear(store, &id)?;
        }
    }
    Ok(())
}

/// A lock of a volume that nobody holds was left by a crash: taken once, its file goes with it.
fn locks(store: &Store) -> Result<(), Error> {
    let failed = || Error::storage("listing locks");
    for entry in fs::read_dir(store.root().join("locks")).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let of_a_volume = |name: &str| name.split('.').next().and_then(VolumeId::parse).is_some();
        if entry.file_name().to_str().is_some_and(of_a_volume) {
            drop(file_lock::try_lock(&entry.path()).map_err(failed())?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::errand::Errand;

    #[test]
    fn requests_of_nobody_go_and_temporaries_with_them() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let id = VolumeId::of_name("a");
        errand::ask(&store, Errand::revoke(&id, "n1", 3)).unwrap();
        fs::write(errand::folder(&store).join(format!("{id}.json.json.tmp")), b"{").unwrap();
        sweep(&store, &Metrics::default()).unwrap();
        assert_eq!(fs::read_dir(errand::folder(&store)).unwrap().count(), 0);
    }
}
