//! ControllerModifyVolume: all of what is asked for becomes durable, or nothing.
use holdfast_proto::csi as pb;

use super::publish::ready;
use crate::error::Error;
use crate::guard::file_lock;
use crate::request;
use crate::volume::attributes;
use crate::volume::record::Record;
use crate::volume::store::Store;

const FIELD: &str = "mutable_parameters";

/// Changes the named attributes and no other; to name none is no error, the official test suite does it. A node sees them with its next attachment or staging: what is mounted now
/// stays as it is.
pub(super) fn modify(
    store: &Store,
    request: pb::ControllerModifyVolumeRequest,
) -> Result<pb::ControllerModifyVolumeResponse, Error> {
    let id = request::volume_id(&request.volume_id)?;
    request::map("secrets", &request.secrets)?;
    let parameters = request::mutable_parameters(request.mutable_parameters, &attributes::KEYS)?;
    attributes::Attributes::default().with(FIELD, &parameters)?;
    let id = id.ok_or(Error::VolumeNotFound {
        id: request.volume_id,
    })?;
    let _lock = file_lock::lock(&store.lock(id.as_str()), id.as_str())?;
    let record = ready(store, &id)?;
    let attributes = record.attributes.with(FIELD, &parameters)?;
    if attributes != record.attributes {
        store.write(&Record { attributes, ..record })?;
    }
    Ok(pb::ControllerModifyVolumeResponse {})
}
