//! A volume as the API shows it, in every reply alike.
use std::collections::HashMap;

use holdfast_proto::csi as pb;
use pb::volume_content_source::{Type, VolumeSource};

use crate::volume::record::{Record, Source};

/// Bytes as the API counts them.
pub(super) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// What CreateVolume promised, as it is now.
pub(super) fn volume(record: &Record) -> pb::Volume {
    let source = |source: &Source| {
        let Source::Volume(id) = source;
        pb::VolumeContentSource {
            r#type: Some(Type::Volume(VolumeSource {
                volume_id: id.to_string(),
            })),
        }
    };
    let topology = pb::Topology {
        segments: record.segments.clone().into_iter().collect(),
    };
    pb::Volume {
        capacity_bytes: signed(record.size_bytes),
        volume_id: record.id.to_string(),
        volume_context: HashMap::new(),
        content_source: record.fingerprint.source.as_ref().map(source),
        accessible_topology: if record.segments.is_empty() {
            Vec::new()
        } else {
            vec![topology]
        },
    }
}

/// The nodes that have it.
pub(super) fn nodes(record: &Record) -> Vec<String> {
    record.attachment.iter().map(|a| a.node.clone()).collect()
}
