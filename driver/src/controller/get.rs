//! ControllerGetVolume.
use holdfast_proto::csi as pb;
use pb::controller_get_volume_response::VolumeStatus;

use super::publish::ready;
use super::shown;
use crate::error::Error;
use crate::request;
use crate::volume::store::Store;

/// One volume, as ListVolumes shows it.
pub(super) fn get(store: &Store, id: &str) -> Result<pb::ControllerGetVolumeResponse, Error> {
    let record = ready(store, &request::known_id(id)?)?;
    Ok(pb::ControllerGetVolumeResponse {
        volume: Some(shown::volume(&record)),
        status: Some(VolumeStatus {
            published_node_ids: shown::nodes(&record),
        }),
    })
}
