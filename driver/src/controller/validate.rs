//! ValidateVolumeCapabilities.
use holdfast_proto::csi as pb;

use super::publish::ready;
use crate::error::Error;
use crate::request;
use crate::volume::capability;
use crate::volume::store::Store;

/// Confirms what was asked for, or says why not.
pub(super) fn validate(
    store: &Store,
    request: pb::ValidateVolumeCapabilitiesRequest,
) -> Result<pb::ValidateVolumeCapabilitiesResponse, Error> {
    let id = request::volume_id(&request.volume_id)?;
    if request.volume_capabilities.is_empty() {
        return Err(Error::Missing {
            field: "volume_capabilities",
        });
    }
    let id = id.ok_or(Error::VolumeNotFound {
        id: request.volume_id,
    })?;
    let record = ready(store, &id)?;
    let no = |message: String| pb::ValidateVolumeCapabilitiesResponse {
        confirmed: None,
        message,
    };
    let wanted = match capability::all(request.volume_capabilities.clone()) {
        Ok(wanted) => wanted,
        Err(error @ Error::Missing { .. }) => return Err(error),
        Err(error) => return Ok(no(error.message())),
    };
    if let Some(other) = wanted.iter().find(|c| !record.offers(c)) {
        return Ok(no(format!("the volume was not asked for as {other:?}")));
    }
    if !request.mutable_parameters.is_empty() {
        return Ok(no(String::from(
            "mutable_parameters: MODIFY_VOLUME is not declared",
        )));
    }
    Ok(pb::ValidateVolumeCapabilitiesResponse {
        confirmed: Some(pb::validate_volume_capabilities_response::Confirmed {
            volume_context: request.volume_context,
            volume_capabilities: request.volume_capabilities,
            parameters: request.parameters,
            mutable_parameters: request.mutable_parameters,
        }),
        message: String::new(),
    })
}
