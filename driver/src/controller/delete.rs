//! DeleteVolume: the record says *deleting*, the image goes, the record goes.
use holdfast_proto::csi as pb;

use crate::error::Error;
use crate::guard::file_lock;
use crate::request;
use crate::volume::image;
use crate::volume::record::{Record, State};
use crate::volume::store::{Store, remove};

/// Removes the volume, or finds it gone.
pub(super) fn delete(store: &Store, id: &str) -> Result<pb::DeleteVolumeResponse, Error> {
    let Some(id) = request::volume_id(id)? else {
        return Ok(pb::DeleteVolumeResponse {});
    };
    let lock = store.lock(id.as_str());
    let _lock = file_lock::lock(&lock, id.as_str())?;
    if let Some(record) = store.read(&id)? {
        if let Some(attachment) = &record.attachment {
            let by = format!("attached to node {}; detach it first", attachment.node);
            return Err(Error::InUse {
                id: id.to_string(),
                by,
            });
        }
        unused(store, &record)?;
        store.write(&Record {
            state: State::Deleting,
            ..record
        })?;
    }
    image::delete(&store.image(&id)).map_err(Error::storage("removing an image"))?;
    store.remove(&id)?;
    // The lock is held while its file goes: whoever waits for it sees that the file has no name any more.
    remove(&lock).map_err(Error::storage("removing a lock"))?;
    Ok(pb::DeleteVolumeResponse {})
}

/// A loop device keeps the image's lock for as long as it lives, on whatever node, whatever the record says.
///
/// # Errors
/// FAILED_PRECONDITION while somebody has it.
pub(super) fn unused(store: &Store, record: &Record) -> Result<(), Error> {
    match image::open_locked(&store.image(&record.id)) {
        Ok(Some(_free)) => Ok(()),
        Ok(None) => Err(Error::InUse {
            id: record.id.to_string(),
            by: String::from("a loop device still stands on its image; unstage it first"),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::storage("locking an image")(error)),
    }
}
