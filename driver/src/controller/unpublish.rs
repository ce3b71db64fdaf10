//! ControllerUnpublishVolume: the volume is taken from a node, or from whichever has it.
use holdfast_proto::csi as pb;

use super::delete;
use crate::error::Error;
use crate::guard::file_lock;
use crate::request;
use crate::volume::record::Record;
use crate::volume::store::Store;

/// Takes the volume away, or finds that the node does not have it. Not before the node can no longer write: its loop device
/// carries the image's lock, and lives longer than its plugin or kubelet.
pub(super) fn unpublish(
    store: &Store,
    id: &str,
    node: &str,
) -> Result<pb::ControllerUnpublishVolumeResponse, Error> {
    let gone = pb::ControllerUnpublishVolumeResponse {};
    let Some(id) = request::volume_id(id)? else {
        return Ok(gone);
    };
    if store.read(&id)?.is_none() {
        return Ok(gone);
    }
    let _lock = file_lock::lock(&store.lock(id.as_str()), id.as_str())?;
    if let Some(record) = store.read(&id)? {
        let has = record
            .attachment
            .as_ref()
            .is_some_and(|a| node.is_empty() || a.node == node);
        if has {
            // Held until the record says so: a stage that locks the image afterwards reads that it came too late.
            let _image = delete::unused(store, &id)?;
            store.write(&Record {
                attachment: None,
                ..record
            })?;
        }
    }
    Ok(gone)
}
