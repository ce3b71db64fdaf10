//! ControllerGetVolumeHealth and ControllerListVolumeHealth: what of a volume's files is not as its record promises.
use std::collections::BTreeMap;
use std::io;

use holdfast_proto::csi as pb;
use pb::VolumeHealthErrorType as Kind;
use pb::volume_health::VolumeHealthEntry;
use prost::Message;

use super::list::{PAGE, PAGE_BYTES};
use crate::error::Error;
use crate::id::VolumeId;
use crate::request;
use crate::volume::index::Brief;
use crate::volume::record::State;
use crate::volume::store::Store;

/// One volume; nothing wrong is an empty list.
pub(super) fn get(store: &Store, id: &str) -> Result<pb::ControllerGetVolumeHealthResponse, Error> {
    let id = request::known_id(id)?;
    let missing = || Error::VolumeNotFound { id: id.to_string() };
    let seen = match store.read(&id) {
        Ok(record) => Ok(record.ok_or_else(missing)?.into()),
        Err(error @ Error::Unreadable { .. }) => Err(error.message()),
        Err(error) => return Err(error),
    };
    let health_statuses = judge(store, &id, seen).ok_or_else(missing)?;
    Ok(pb::ControllerGetVolumeHealthResponse {
        volume_health: Some(pb::VolumeHealth {
            volume_id: id.to_string(),
            health_statuses,
        }),
    })
}

/// A page of the volumes with which something is wrong, in the order of their ids.
pub(super) fn list(
    store: &Store,
    wanted: &pb::ControllerListVolumeHealthRequest,
) -> Result<pb::ControllerListVolumeHealthResponse, Error> {
    request::map("secrets", &wanted.secrets)?;
    let (page, after) = request::page(wanted.max_entries, &wanted.starting_token, PAGE)?;
    let behind = |id: &VolumeId| after.as_ref().is_none_or(|after| id > after);
    let volumes: BTreeMap<VolumeId, Seen> = store.look(|all| {
        let readable = all
            .after(after.as_ref())
            .map(|(id, volume)| (id.clone(), Ok(volume.clone())));
        let unreadable = all.unreadable().filter(|(id, _)| behind(id));
        readable
            .chain(unreadable.map(|(id, reason)| (id.clone(), Err(reason.to_owned()))))
            .collect()
    })?;
    let mut reply = pb::ControllerListVolumeHealthResponse::default();
    let mut bytes = 0;
    for (id, seen) in volumes {
        let health_statuses = judge(store, &id, seen).unwrap_or_default();
        if health_statuses.is_empty() {
            continue;
        }
        if reply.entries.len() == page || bytes >= PAGE_BYTES {
            reply.next_token = reply
                .entries
                .last()
                .map(|e| e.volume_id.clone())
                .unwrap_or_default();
            break;
        }
        let entry = pb::VolumeHealth {
            volume_id: id.to_string(),
            health_statuses,
        };
        bytes += entry.encoded_len();
        reply.entries.push(entry);
    }
    Ok(reply)
}

/// What its record says, or why it says nothing.
type Seen = Result<Brief, String>;

/// What is wrong with a volume, if there is one.
fn judge(store: &Store, id: &VolumeId, seen: Seen) -> Option<Vec<VolumeHealthEntry>> {
    let entry = |kind: Kind, reason: &str, message: String| {
        Some(vec![VolumeHealthEntry {
            status: kind.into(),
            reason: reason.to_owned(),
            message,
        }])
    };
    let volume = match seen {
        Ok(volume) if volume.state == State::Ready => volume,
        Ok(_) => return None,
        Err(reason) => return entry(Kind::Inaccessible, "RecordUnreadable", reason),
    };
    match std::fs::metadata(store.image(id)) {
        Ok(meta) if meta.len() < volume.size_bytes => {
            let message = format!(
                "the image has {} bytes of {}; call ControllerExpandVolume to finish an expansion, or restore the image",
                meta.len(),
                volume.size_bytes
            );
            entry(Kind::Degraded, "ImageTooShort", message)
        }
        Ok(_) => Some(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => entry(
            Kind::DataLoss,
            "ImageMissing",
            String::from("the image is not in the data folder; restore it from a backup"),
        ),
        Err(error) => entry(
            Kind::Inaccessible,
            "ImageUnreadable",
            format!("the image cannot be looked at: {error}"),
        ),
    }
}
