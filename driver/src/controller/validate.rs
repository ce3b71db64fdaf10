//! ValidateVolumeCapabilities.
use holdfast_proto::csi as pb;

use super::publish::ready;
use crate::error::Error;
use crate::request;
use crate::volume::attributes::{self, Attributes};
use crate::volume::capability;
use crate::volume::record::Record;
use crate::volume::store::Store;

/// Confirms what was asked for, or says why not.
pub(super) fn validate(
    store: &Store,
    request: pb::ValidateVolumeCapabilitiesRequest,
) -> Result<pb::ValidateVolumeCapabilitiesResponse, Error> {
    let id = request::volume_id(&request.volume_id)?;
    let wanted = match capability::all(request.volume_capabilities.clone()) {
        Err(error @ (Error::Missing { .. } | Error::Invalid { .. })) => return Err(error),
        checked => checked,
    };
    for (field, map) in [
        ("volume_context", &request.volume_context),
        ("parameters", &request.parameters),
        ("mutable_parameters", &request.mutable_parameters),
        ("secrets", &request.secrets),
    ] {
        request::map(field, map)?;
    }
    let id = id.ok_or_else(|| Error::VolumeNotFound {
        id: request.volume_id.clone(),
    })?;
    let record = ready(store, &id)?;
    let against = match wanted {
        Ok(wanted) => wanted
            .iter()
            .find(|c| !record.offers(c))
            .map(|other| format!("the volume was not asked for as {other}")),
        Err(error) => Some(error.message()),
    };
    if let Some(message) = against.or_else(|| parameters(&record, &request)) {
        return Ok(pb::ValidateVolumeCapabilitiesResponse {
            confirmed: None,
            message,
        });
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

/// Why the parameters are not those of the volume, if they are not.
fn parameters(record: &Record, request: &pb::ValidateVolumeCapabilitiesRequest) -> Option<String> {
    let given = request::parameters(request.parameters.clone(), &attributes::KEYS)
        .and_then(|given| Attributes::default().with("parameters", &given));
    let mutable = request::mutable_parameters(request.mutable_parameters.clone(), &attributes::KEYS)
        .and_then(|given| record.attributes.with("mutable_parameters", &given));
    match (given, mutable) {
        (Err(error), _) | (_, Err(error)) => Some(error.message()),
        (Ok(_), Ok(mutable)) if mutable != record.attributes => Some(String::from(
            "mutable_parameters are not those of the volume; call ControllerModifyVolume to change it",
        )),
        (Ok(_), Ok(_)) => None,
    }
}
