//! ListVolumes.
use holdfast_proto::csi as pb;
use pb::list_volumes_response::{Entry, VolumeStatus};
use prost::Message;

use super::shown;
use crate::error::Error;
use crate::id::VolumeId;
use crate::request;
use crate::volume::record::State;
use crate::volume::store::Store;

/// Most entries of a page.
pub(super) const PAGE: usize = 10_000;
/// Most bytes of a page: gRPC's clients take 4 MiB.
pub(super) const PAGE_BYTES: usize = 3 << 20;

/// A page of volumes in the order of their ids; the token is the last id of the page before.
pub(super) fn list(store: &Store, wanted: &pb::ListVolumesRequest) -> Result<pb::ListVolumesResponse, Error> {
    let (page, after) = request::page(wanted.max_entries, &wanted.starting_token, PAGE)?;
    // One more than the page says whether there is another page.
    let volumes: Vec<_> = store.look(|all| {
        all.after(after.as_ref())
            .filter(|(_, volume)| volume.state == State::Ready)
            .take(page + 1)
            .map(|(id, volume)| (id.clone(), volume.clone()))
            .collect()
    })?;
    let mut reply = pb::ListVolumesResponse::default();
    let mut bytes = 0;
    let mut last: Option<&VolumeId> = None;
    for (id, volume) in &volumes {
        if reply.entries.len() == page || bytes >= PAGE_BYTES {
            reply.next_token = last.map(VolumeId::to_string).unwrap_or_default();
            break;
        }
        let entry = Entry {
            volume: Some(shown::volume(id, volume)),
            status: Some(VolumeStatus {
                published_node_ids: shown::nodes(volume),
            }),
        };
        bytes += entry.encoded_len();
        reply.entries.push(entry);
        last = Some(id);
    }
    Ok(reply)
}
