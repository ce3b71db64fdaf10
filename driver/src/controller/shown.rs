//! A volume as the API shows it, in every reply alike.
use std::collections::HashMap;

use holdfast_proto::csi as pb;
use pb::volume_content_source::{Type, VolumeSource};

use crate::id::VolumeId;
use crate::volume::index::Brief;
use crate::volume::record::Source;

/// Bytes as the API counts them.
pub(super) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// What CreateVolume promised, as it is now.
pub(super) fn volume(id: &VolumeId, volume: &Brief) -> pb::Volume {
    let source = |source: &Source| {
        let Source::Volume(id) = source;
        pb::VolumeContentSource {
            r#type: Some(Type::Volume(VolumeSource {
                volume_id: id.to_string(),
            })),
        }
    };
    let topology = volume.segments.iter().map(|segments| pb::Topology {
        segments: segments.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
    });
    pb::Volume {
        capacity_bytes: signed(volume.size_bytes),
        volume_id: id.to_string(),
        volume_context: HashMap::new(),
        content_source: volume.source.as_deref().map(source),
        accessible_topology: topology.collect(),
    }
}

/// The nodes that have it.
pub(super) fn nodes(volume: &Brief) -> Vec<String> {
    volume.node.iter().map(|node| node.to_string()).collect()
}
