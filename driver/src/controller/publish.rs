//! ControllerPublishVolume: the volume is given to one node, under a new epoch.
use std::collections::HashMap;

use holdfast_proto::csi as pb;

use super::unpublish;
use crate::config::shown;
use crate::error::Error;
use crate::guard::file_lock;
use crate::id::VolumeId;
use crate::request;
use crate::volume::capability::{self, Capability};
use crate::volume::errand;
use crate::volume::record::{Attachment, EPOCH, Record, State};
use crate::volume::store::Store;
use crate::volume::topology;

/// A checked request.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) id: VolumeId,
    node: String,
    capability: Capability,
    read_only: bool,
}

impl TryFrom<pb::ControllerPublishVolumeRequest> for Wanted {
    type Error = Error;

    fn try_from(request: pb::ControllerPublishVolumeRequest) -> Result<Self, Error> {
        let id = request::volume_id(&request.volume_id)?;
        request::node_id(&request.node_id)?;
        let capability = capability::one(request.volume_capability)?;
        capability.check_flags()?;
        request::map("volume_context", &request.volume_context)?;
        request::map("secrets", &request.secrets)?;
        let id = id.ok_or(Error::VolumeNotFound {
            id: request.volume_id,
        })?;
        Ok(Self {
            id,
            node: request.node_id,
            capability,
            read_only: request.readonly,
        })
    }
}

/// Gives the volume to the node, or finds that it has it.
pub(super) fn publish(store: &Store, wanted: Wanted) -> Result<pb::ControllerPublishVolumeResponse, Error> {
    let _lock = file_lock::lock(&store.lock(wanted.id.as_str()), wanted.id.as_str())?;
    let record = unpublish::settled(store, ready(store, &wanted.id)?)?;
    let node = store.node(&wanted.node)?.ok_or_else(|| Error::NodeNotFound {
        node: wanted.node.clone(),
    })?;
    if !record.offers(&wanted.capability) {
        let reason =
            String::from("is not how this volume was asked for; give its own access type and filesystem");
        return Err(Error::Invalid {
            field: "volume_capability",
            value: wanted.capability.to_string(),
            reason,
        });
    }
    if !topology::covers(&node.segments, &record.segments) {
        let reason = format!(
            "is accessible from {}, node {} is at {}; use a node that is there",
            shown(&record.segments),
            wanted.node,
            shown(&node.segments)
        );
        return Err(Error::Unfit {
            id: record.id.to_string(),
            reason,
        });
    }
    match &record.attachment {
        Some(now) if now.node != wanted.node => Err(Error::AttachedElsewhere {
            id: record.id.to_string(),
            node: now.node.clone(),
        }),
        Some(now) if now.asked_read_only() != wanted.read_only || now.capability != wanted.capability => {
            Err(Error::Differs {
                what: format!("attachment of {} to {}", record.id, wanted.node),
                difference: String::from("readonly or volume_capability"),
            })
        }
        Some(now) => {
            // Whoever wanted it back from this node wants it there now.
            errand::withdraw(store, &record.id)?;
            Ok(context(now.epoch))
        }
        None => {
            let epoch = record.epoch + 1;
            let attachment = Attachment {
                node: wanted.node.clone(),
                epoch,
                read_only: wanted.read_only || record.attributes.read_only,
                asked_read_only: Some(wanted.read_only),
                capability: wanted.capability,
            };
            let attached = Record {
                epoch,
                attachment: Some(attachment),
                ..record
            };
            store.write_if(&attached, |all| {
                room(&wanted.node, node.limit, all.attached(&wanted.node))
            })?;
            Ok(context(epoch))
        }
    }
}

fn room(node: &str, limit: u32, taken: u32) -> Result<(), Error> {
    if limit == 0 || taken < limit {
        return Ok(());
    }
    Err(Error::NodeFull {
        node: node.to_owned(),
        limit,
    })
}

fn context(epoch: u64) -> pb::ControllerPublishVolumeResponse {
    pb::ControllerPublishVolumeResponse {
        publish_context: HashMap::from([(EPOCH.to_owned(), epoch.to_string())]),
    }
}

/// The record of a volume that can be used.
pub(crate) fn ready(store: &Store, id: &VolumeId) -> Result<Record, Error> {
    match store.read(id)? {
        Some(record) if record.state == State::Ready => Ok(record),
        Some(_) | None => Err(Error::VolumeNotFound { id: id.to_string() }),
    }
}
