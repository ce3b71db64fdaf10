//! DeleteVolume: the record says *deleting*, the image goes, the record goes.
use std::fs::File;

use holdfast_proto::csi as pb;

use crate::error::Error;
use crate::guard::file_lock;
use crate::id::VolumeId;
use crate::request;
use crate::volume::fence;
use crate::volume::record::{Record, State};
use crate::volume::store::Store;
use crate::volume::torn;

/// Removes the volume, or finds it gone.
pub(super) fn delete(store: &Store, id: &str) -> Result<pb::DeleteVolumeResponse, Error> {
    let Some(id) = request::volume_id(id)? else {
        return Ok(pb::DeleteVolumeResponse {});
    };
    let _lock = file_lock::lock(&store.lock(id.as_str()), id.as_str())?;
    let record = match store.read(&id) {
        Err(Error::Unreadable { .. }) if torn::undo(store, &id)? => None,
        other => other?,
    };
    if let Some(attachment) = record.as_ref().and_then(|r| r.attachment.as_ref()) {
        let by = format!("attached to node {}; detach it first", attachment.node);
        return Err(Error::InUse {
            id: id.to_string(),
            by,
        });
    }
    // Held until the end: no node gets at the image between this look and its removal.
    let revoked = record.as_ref().map_or(&[][..], |r| &r.revoked);
    let _image = unused(store, &id, revoked)?;
    if let Some(record) = record {
        store.release(&Record {
            state: State::Deleting,
            ..record
        })?;
    }
    // Also without a record: whoever asks for the deletion of a volume whose record was lost wants its image gone.
    store.erase(&id)?;
    torn::forget(store, &id)?;
    Ok(pb::DeleteVolumeResponse {})
}

/// The image, locked, so that nobody can use it before the caller lets go; none if there is no image. A loop device keeps
/// a lock for as long as it lives, on whatever node, whatever the record says; one that was revoked can no longer write.
///
/// # Errors
/// FAILED_PRECONDITION while somebody has it.
fn unused(store: &Store, id: &VolumeId, revoked: &[u64]) -> Result<Option<File>, Error> {
    match fence::hold_all(&store.image(id), revoked) {
        Ok(Some(free)) => Ok(Some(free)),
        Ok(None) => Err(Error::InUse {
            id: id.to_string(),
            by: String::from(
                "a loop device still stands on its image, or it is being copied; unstage it, or wait for the copy",
            ),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::storage("locking an image")(error)),
    }
}
