//! ListVolumes and GetCapacity.
use std::sync::Arc;

use holdfast_proto::csi as pb;

use crate::error::Error;
use crate::id::VolumeId;
use crate::request;
use crate::volume::index::Index;
use crate::volume::record::{Record, State};
use crate::volume::store::Store;
use crate::volume::{capability, space};

/// Most entries of a page: gRPC's clients take 4 MiB, and an entry has at the most about 500 bytes.
const PAGE: usize = 4000;

/// A page of volumes in the order of their ids; the token is the last id of the page before.
pub(super) fn list(store: &Store, wanted: &pb::ListVolumesRequest) -> Result<pb::ListVolumesResponse, Error> {
    let most = usize::try_from(wanted.max_entries).map_err(|_| Error::Invalid {
        field: "max_entries",
        value: wanted.max_entries.to_string(),
        reason: String::from("is negative"),
    })?;
    let page = if most == 0 { PAGE } else { most.min(PAGE) };
    let after = match wanted.starting_token.as_str() {
        "" => None,
        token => Some(VolumeId::parse(token).ok_or_else(|| Error::BadToken {
            token: token.to_owned(),
        })?),
    };
    let ready = |record: &&Arc<Record>| record.state == State::Ready;
    // One more than the page says whether there is another page.
    let mut records: Vec<Arc<Record>> = store.look(|all| {
        all.after(after.as_ref())
            .filter(ready)
            .take(page + 1)
            .cloned()
            .collect()
    })?;
    let more = records.len() > page;
    records.truncate(page);
    let next_token = match records.last() {
        Some(last) if more => last.id.to_string(),
        Some(_) | None => String::new(),
    };
    let entries = records.iter().map(|record| entry(record)).collect();
    Ok(pb::ListVolumesResponse { entries, next_token })
}

fn entry(record: &Record) -> pb::list_volumes_response::Entry {
    let published_node_ids = record.attachment.iter().map(|a| a.node.clone()).collect();
    pb::list_volumes_response::Entry {
        volume: Some(pb::Volume {
            capacity_bytes: i64::try_from(record.size_bytes).unwrap_or(i64::MAX),
            volume_id: record.id.to_string(),
            ..pb::Volume::default()
        }),
        status: Some(pb::list_volumes_response::VolumeStatus { published_node_ids }),
    }
}

/// What is left to promise; nothing, for what is not offered.
pub(super) fn capacity(
    store: &Store,
    configured: Option<u64>,
    wanted: pb::GetCapacityRequest,
) -> Result<pb::GetCapacityResponse, Error> {
    let offered =
        wanted.volume_capabilities.is_empty() || capability::all(wanted.volume_capabilities.clone()).is_ok();
    let offered = offered && request::parameters(wanted.parameters).is_ok();
    let free = if offered {
        space::free(
            space::total(store.root(), configured)?,
            store.look(Index::promised_bytes)?,
        )
    } else {
        0
    };
    let minimum = match capability::all(wanted.volume_capabilities) {
        Ok(capabilities) => space::minimum(&capabilities),
        Err(_) => space::minimum(&[]),
    };
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    Ok(pb::GetCapacityResponse {
        available_capacity: signed(free),
        maximum_volume_size: Some(signed(free)),
        minimum_volume_size: Some(signed(minimum)),
    })
}
