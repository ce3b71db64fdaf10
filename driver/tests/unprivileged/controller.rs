//! The rules of the specification for Identity and Controller, row by row, on the real process behind its socket. Needs no
//! privilege: nothing is mounted here.
mod attach;
mod change;
mod create;
mod identity;
mod look;
mod place;

use std::collections::HashMap;

use crate::common::*;
use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_client::ControllerClient;
use holdfast_proto::csi::identity_client::IdentityClient;
use pb::volume_capability::access_mode::Mode;
use pb::volume_capability::{AccessMode, AccessType, MountVolume};
use pb::volume_content_source::{SnapshotSource, Type as SourceType, VolumeSource};
use tonic::Code;
use tonic::transport::Channel;

pub const UNKNOWN: &str = "v0123456789abcdef0123456789abcdef";
pub const ZONE: &str = "topology.holdfast.csi/zone";

pub type Controller = ControllerClient<Channel>;

pub fn long(bytes: usize) -> String {
    "x".repeat(bytes)
}

pub fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

/// One byte more than a map may have.
pub fn long_map() -> HashMap<String, String> {
    HashMap::from([(String::from("key"), long(4094))])
}

pub fn mount(change: impl FnOnce(&mut MountVolume)) -> pb::VolumeCapability {
    let mut volume = MountVolume {
        fs_type: String::from("ext4"),
        ..MountVolume::default()
    };
    change(&mut volume);
    pb::VolumeCapability {
        access_type: Some(AccessType::Mount(volume)),
        ..capability(None)
    }
}

pub fn mode(mode: i32) -> pb::VolumeCapability {
    pb::VolumeCapability {
        access_mode: Some(AccessMode { mode }),
        ..capability(None)
    }
}

/// Capabilities that no call may take, with what the message must name.
pub fn bad_capabilities() -> Vec<(&'static str, pb::VolumeCapability, &'static str)> {
    let none = || capability(None);
    vec![
        (
            "neither access type",
            pb::VolumeCapability {
                access_type: None,
                ..none()
            },
            "access_type",
        ),
        (
            "no access mode",
            pb::VolumeCapability {
                access_mode: None,
                ..none()
            },
            "access_mode",
        ),
        ("mode UNKNOWN", mode(0), "access_mode"),
        (
            "long fs_type",
            mount(|m| m.fs_type = long(129)),
            "volume_capability.mount.fs_type",
        ),
        (
            "fs_type with a control character",
            mount(|m| m.fs_type = String::from("ext4\u{1}")),
            "volume_capability.mount.fs_type",
        ),
        (
            "long mount_flags",
            mount(|m| m.mount_flags = vec![long(4000), long(97)]),
            "mount_flags",
        ),
        (
            "empty mount flag",
            mount(|m| m.mount_flags = vec![String::new()]),
            "mount_flags",
        ),
        (
            "mount flag with a control character",
            mount(|m| m.mount_flags = vec![String::from("ro\n")]),
            "mount_flags",
        ),
        (
            "group by name",
            mount(|m| m.volume_mount_group = String::from("wheel")),
            "wheel",
        ),
    ]
}

/// In order, but of no volume of this driver.
pub fn unsupported_capabilities() -> Vec<(&'static str, pb::VolumeCapability, &'static str)> {
    vec![
        (
            "many readers",
            mode(Mode::MultiNodeReaderOnly.into()),
            "MULTI_NODE_READER_ONLY",
        ),
        (
            "many writers",
            mode(Mode::MultiNodeMultiWriter.into()),
            "MULTI_NODE_MULTI_WRITER",
        ),
        (
            "one writer, many readers",
            mode(Mode::MultiNodeSingleWriter.into()),
            "MULTI_NODE",
        ),
        ("a mode of the future", mode(99), "99"),
        (
            "unknown filesystem",
            mount(|m| m.fs_type = String::from("btrfs")),
            "btrfs",
        ),
        (
            "a flag that no node takes",
            mount(|m| m.mount_flags = vec![String::from("noatime"), String::from("data=writeback")]),
            "data=writeback",
        ),
        (
            "another filesystem's flag",
            mount(|m| m.mount_flags = vec![String::from("nouuid")]),
            "nouuid",
        ),
    ]
}

pub fn block(name: &str) -> pb::CreateVolumeRequest {
    create(name, None, MIB, 0)
}

pub fn with(change: impl FnOnce(&mut pb::CreateVolumeRequest)) -> pb::CreateVolumeRequest {
    let mut request = block("pvc-1");
    change(&mut request);
    request
}

/// Makes requests that differ from a good one in what is changed.
pub fn changing<M: Clone>(good: M) -> impl Fn(&dyn Fn(&mut M)) -> M {
    move |change| {
        let mut request = good.clone();
        change(&mut request);
        request
    }
}

pub fn range(required_bytes: i64, limit_bytes: i64) -> Option<pb::CapacityRange> {
    Some(pb::CapacityRange {
        required_bytes,
        limit_bytes,
    })
}

pub fn from_volume(id: &str) -> Option<pb::VolumeContentSource> {
    Some(pb::VolumeContentSource {
        r#type: Some(SourceType::Volume(VolumeSource {
            volume_id: id.to_owned(),
        })),
    })
}

pub fn from_snapshot(id: &str) -> Option<pb::VolumeContentSource> {
    Some(pb::VolumeContentSource {
        r#type: Some(SourceType::Snapshot(SnapshotSource {
            snapshot_id: id.to_owned(),
        })),
    })
}

pub fn place(pairs: &[(&str, &str)]) -> pb::Topology {
    pb::Topology { segments: map(pairs) }
}

pub fn at(requisite: &[&[(&str, &str)]], preferred: &[&[(&str, &str)]]) -> Option<pb::TopologyRequirement> {
    let all = |list: &[&[(&str, &str)]]| list.iter().map(|pairs| place(pairs)).collect();
    Some(pb::TopologyRequirement {
        requisite: all(requisite),
        preferred: all(preferred),
    })
}

pub fn attach(id: &str, node: &str) -> pb::ControllerPublishVolumeRequest {
    pb::ControllerPublishVolumeRequest {
        volume_id: id.to_owned(),
        node_id: node.to_owned(),
        volume_capability: Some(capability(None)),
        ..Default::default()
    }
}

pub fn detach(id: &str, node: &str) -> pb::ControllerUnpublishVolumeRequest {
    pb::ControllerUnpublishVolumeRequest {
        volume_id: id.to_owned(),
        node_id: node.to_owned(),
        ..Default::default()
    }
}

pub fn validate(id: &str) -> pb::ValidateVolumeCapabilitiesRequest {
    pb::ValidateVolumeCapabilitiesRequest {
        volume_id: id.to_owned(),
        volume_capabilities: vec![capability(None)],
        ..Default::default()
    }
}

pub fn expand(id: &str, required: i64, limit: i64) -> pb::ControllerExpandVolumeRequest {
    pb::ControllerExpandVolumeRequest {
        volume_id: id.to_owned(),
        capacity_range: range(required, limit),
        ..Default::default()
    }
}

pub fn modify(id: &str, pairs: &[(&str, &str)]) -> pb::ControllerModifyVolumeRequest {
    pb::ControllerModifyVolumeRequest {
        volume_id: id.to_owned(),
        mutable_parameters: map(pairs),
        ..Default::default()
    }
}

pub fn delete(id: &str) -> pb::DeleteVolumeRequest {
    pb::DeleteVolumeRequest {
        volume_id: id.to_owned(),
        ..Default::default()
    }
}

pub fn list(starting_token: &str, max_entries: i32) -> pb::ListVolumesRequest {
    pb::ListVolumesRequest {
        starting_token: starting_token.to_owned(),
        max_entries,
    }
}

pub async fn made(controller: &mut Controller, request: pb::CreateVolumeRequest) -> pb::Volume {
    controller
        .create_volume(request)
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap()
}

pub async fn controller(driver: &Driver) -> Controller {
    ControllerClient::new(driver.channel().await)
}

pub async fn listed(controller: &mut Controller) -> Vec<pb::list_volumes_response::Entry> {
    controller
        .list_volumes(list("", 0))
        .await
        .unwrap()
        .into_inner()
        .entries
}
