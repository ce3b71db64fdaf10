//! ControllerExpandVolume: the record promises the size, the image gets it, the node does the rest.
use holdfast_proto::csi as pb;

use super::publish::ready;
use super::shown::signed;
use crate::error::Error;
use crate::guard::file_lock;
use crate::request;
use crate::volume::capability::{Access, Capability};
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
    let (required, limit) = space::range(range)?;
    let capability = request.volume_capability.map(Capability::try_from).transpose()?;
    capability.iter().try_for_each(Capability::check_flags)?;
    request::map("secrets", &request.secrets)?;
    let id = id.ok_or(Error::VolumeNotFound {
        id: request.volume_id,
    })?;
    let _lock = file_lock::lock(&store.lock(id.as_str()), id.as_str())?;
    let record = ready(store, &id)?;
    if let Some(other) = capability.filter(|c| !record.offers(c)) {
        let reason = String::from("is not how this volume was asked for; leave it out or give its own");
        return Err(Error::Invalid {
            field: "volume_capability",
            value: other.to_string(),
            reason,
        });
    }
    // Without a size that must be reached, what is there suffices.
    let wanted = match required {
        0 => record.size_bytes,
        required => space::size(required, limit, space::minimum(&record.fingerprint.capabilities))?,
    };
    if limit > 0 && record.size_bytes > limit {
        let reason = format!(
            "the volume has {} bytes already and never shrinks, limit_bytes is {limit}",
            record.size_bytes
        );
        return Err(Error::Size { reason });
    }
    let size_bytes = wanted.max(record.size_bytes);
    let attached = record.attachment.is_some();
    if size_bytes > record.size_bytes {
        let total = space::total(store.root(), capacity)?;
        if size_bytes > total {
            let reason = format!("{size_bytes} bytes are wanted, the data folder has {total} in all");
            return Err(Error::Size { reason });
        }
        let more = size_bytes - record.size_bytes;
        let larger = Record {
            size_bytes,
            ..record.clone()
        };
        store.write_if(&larger, |all| space::reserve(total, all.promised_bytes(), more))?;
    }
    // A device that stands nowhere is made with the new size; whatever is mounted, or may be, has a filesystem to grow.
    let is_block = record
        .fingerprint
        .capabilities
        .iter()
        .all(|c| c.access == Access::Block);
    let node_expansion_required = !is_block || attached;
    // Also where the record has the size: a crash may have come between the two.
    image::grow(&store.image(&id), size_bytes).map_err(Error::storage("growing an image"))?;
    Ok(pb::ControllerExpandVolumeResponse {
        capacity_bytes: signed(size_bytes),
        node_expansion_required,
    })
}
