//! ControllerExpandVolume: the record promises the size, the image gets it, the node does the rest.
use holdfast_proto::csi as pb;

use super::publish::ready;
use crate::error::Error;
use crate::guard::file_lock;
use crate::request;
use crate::volume::capability::Capability;
use crate::volume::record::Record;
use crate::volume::store::Store;
use crate::volume::{image, space};

/// Grows the volume, or finds it large enough.
pub(super) fn expand(
    store: &Store,
    capacity: Option<u64>,
    request: pb::ControllerExpandVolumeRequest,
) -> Result<pb::ControllerExpandVolumeResponse, Error> {
    let id = request::volume_id(&request.volume_id)?;
    let range = request.capacity_range.ok_or(Error::Missing {
        field: "capacity_range",
    })?;
    let capability = request.volume_capability.map(Capability::try_from).transpose()?;
    let id = id.ok_or(Error::VolumeNotFound {
        id: request.volume_id,
    })?;
    let _lock = file_lock::lock(&store.lock(id.as_str()), id.as_str())?;
    let record = ready(store, &id)?;
    if let Some(other) = capability.filter(|c| !record.offers(c)) {
        let reason = String::from("is not how this volume was asked for");
        return Err(Error::Invalid {
            field: "volume_capability",
            value: format!("{other:?}"),
            reason,
        });
    }
    let (wanted, _, limit) = space::size(
        range.required_bytes,
        range.limit_bytes,
        space::minimum(&record.fingerprint.capabilities),
    )?;
    if limit > 0 && record.size_bytes > limit {
        let reason = format!(
            "the volume has {} bytes already and never shrinks, limit_bytes is {limit}",
            record.size_bytes
        );
        return Err(Error::Size { reason });
    }
    let size_bytes = wanted.max(record.size_bytes);
    if size_bytes > record.size_bytes {
        let total = space::total(store.root(), capacity)?;
        let more = size_bytes - record.size_bytes;
        let larger = Record { size_bytes, ..record };
        store.write_if(&larger, |all| space::reserve(total, all.promised_bytes(), more))?;
    }
    // Also where the record has the size: a crash may have come between the two.
    image::grow(&store.image(&id), size_bytes).map_err(Error::storage("growing an image"))?;
    Ok(pb::ControllerExpandVolumeResponse {
        capacity_bytes: i64::try_from(size_bytes).unwrap_or(i64::MAX),
        node_expansion_required: true,
    })
}
