//! ControllerGetVolume.
use holdfast_proto::csi as pb;
use pb::controller_get_volume_response::VolumeStatus;

use super::publish::ready;
use super::shown;
use crate::error::Error;
use crate::request;
use crate::volume::index::Brief;
use crate::volume::store::Store;

/// One volume, as ListVolumes shows it.
pub(super) fn get(store: &Store, id: &str) -> Result<pb::ControllerGetVolumeResponse, Error> {
    let id = request::known_id(id)?;
    let volume = Brief::from(ready(store, &id)?);
    Ok(pb::ControllerGetVolumeResponse {
        volume: Some(shown::volume(&id, &volume)),
        status: Some(VolumeStatus {
            published_node_ids: shown::nodes(&volume),
        }),
    })
}
