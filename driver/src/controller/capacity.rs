//! GetCapacity.
use holdfast_proto::csi as pb;

use super::shown::signed;
use crate::error::Error;
use crate::request;
use crate::volume::attributes::{self, Attributes};
use crate::volume::index::Index;
use crate::volume::store::Store;
use crate::volume::{capability, space, topology};

/// What is left to promise to such a volume at such a place; nothing, for what is in order and not offered.
pub(super) fn capacity(
    store: &Store,
    configured: Option<u64>,
    wanted: pb::GetCapacityRequest,
) -> Result<pb::GetCapacityResponse, Error> {
    let capabilities = match wanted.volume_capabilities {
        none if none.is_empty() => Some(Vec::new()),
        given => offered(capability::all(given))?,
    };
    request::map("parameters", &wanted.parameters)?;
    // A class with a parameter that the driver does not know can have no volume.
    let class = request::parameters(wanted.parameters, &attributes::KEYS)
        .and_then(|parameters| Attributes::default().with("parameters", &parameters));
    let place = wanted
        .accessible_topology
        .map(|topology| request::segments("accessible_topology", topology))
        .transpose()?;
    let there = match place {
        Some(place) if !place.is_empty() => topology::is_at(&place, &store.places()?),
        Some(_) | None => true,
    };
    let minimum = space::minimum(capabilities.as_deref().unwrap_or_default());
    let left = if capabilities.is_some() && class.is_ok() && there {
        space::free(
            space::total(store.root(), configured)?,
            store.look(Index::promised_bytes)?,
        )
    } else {
        0
    };
    Ok(pb::GetCapacityResponse {
        available_capacity: signed(left),
        maximum_volume_size: Some(signed(left)),
        minimum_volume_size: Some(signed(minimum)),
    })
}

fn offered<T>(checked: Result<T, Error>) -> Result<Option<T>, Error> {
    match checked {
        Ok(found) => Ok(Some(found)),
        Err(Error::Unsupported { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
