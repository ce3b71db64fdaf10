//! ValidateVolumeCapabilities.
use holdfast_proto::csi as pb;

use super::publish::ready;
use crate::error::Error;
use crate::request;
use crate::volume::attributes::{self, Attributes};
use crate::volume::capability;
use crate::volume::record::Record;
use crate::volume::store::Store;

/// How the keys begin that Kubernetes adds to the context of any volume.
const KUBERNETES: [&str; 2] = ["storage.kubernetes.io/", "csi.storage.k8s.io/"];

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
    if let Some(message) = against.or_else(|| other(&record, &request)) {
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

/// Why the context and the parameters are not those of the volume, if they are not.
fn other(record: &Record, request: &pb::ValidateVolumeCapabilitiesRequest) -> Option<String> {
    // CreateVolume gives none; the provisioner and kubelet add their own.
    let context = request
        .volume_context
        .keys()
        .find(|key| !KUBERNETES.iter().any(|own| key.starts_with(own)));
    if let Some(key) = context {
        return Some(format!(
            "volume_context {key:?} is not of the volume; send what CreateVolume gave"
        ));
    }
    let as_made = || {
        let made = Attributes::default().with("parameters", &record.fingerprint.parameters)?;
        let given = request::parameters(request.parameters.clone(), &attributes::KEYS)?;
        Ok::<_, Error>(made.with("parameters", &given)? == made)
    };
    let as_now = || {
        let given = request::mutable_parameters(request.mutable_parameters.clone(), &attributes::KEYS)?;
        Ok::<_, Error>(record.attributes.with("mutable_parameters", &given)? == record.attributes)
    };
    match (as_made(), as_now()) {
        (Err(error), _) | (_, Err(error)) => Some(error.message()),
        (Ok(false), _) => Some(String::from(
            "parameters are not those that the volume was made with; a volume of others has another name",
        )),
        (_, Ok(false)) => Some(String::from(
            "mutable_parameters are not those of the volume; call ControllerModifyVolume to change it",
        )),
        (Ok(true), Ok(true)) => None,
    }
}
