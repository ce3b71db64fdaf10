//! The rules of the specification for Identity and Controller, row by row, on the real process behind its socket. Needs no
//! privilege: nothing is mounted here.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]
mod common;

use std::collections::HashMap;

use common::raw::{Row, check, row};
use common::*;
use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_client::ControllerClient;
use holdfast_proto::csi::identity_client::IdentityClient;
use pb::volume_capability::access_mode::Mode;
use pb::volume_capability::{AccessMode, AccessType, MountVolume};
use pb::volume_content_source::{SnapshotSource, Type as SourceType, VolumeSource};
use tonic::Code;
use tonic::transport::Channel;

const UNKNOWN: &str = "v0123456789abcdef0123456789abcdef";
const ZONE: &str = "topology.holdfast.csi/zone";

type Controller = ControllerClient<Channel>;

fn long(bytes: usize) -> String {
    "x".repeat(bytes)
}

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

/// One byte more than a map may have.
fn long_map() -> HashMap<String, String> {
    HashMap::from([(String::from("key"), long(4094))])
}

fn mount(change: impl FnOnce(&mut MountVolume)) -> pb::VolumeCapability {
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

fn mode(mode: i32) -> pb::VolumeCapability {
    pb::VolumeCapability {
        access_mode: Some(AccessMode { mode }),
        ..capability(None)
    }
}

/// Capabilities that no call may take, with what the message must name.
fn bad_capabilities() -> Vec<(&'static str, pb::VolumeCapability, &'static str)> {
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
fn unsupported_capabilities() -> Vec<(&'static str, pb::VolumeCapability, &'static str)> {
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
    ]
}

fn block(name: &str) -> pb::CreateVolumeRequest {
    create(name, None, MIB, 0)
}

fn with(change: impl FnOnce(&mut pb::CreateVolumeRequest)) -> pb::CreateVolumeRequest {
    let mut request = block("pvc-1");
    change(&mut request);
    request
}

fn range(required_bytes: i64, limit_bytes: i64) -> Option<pb::CapacityRange> {
    Some(pb::CapacityRange {
        required_bytes,
        limit_bytes,
    })
}

fn from_volume(id: &str) -> Option<pb::VolumeContentSource> {
    Some(pb::VolumeContentSource {
        r#type: Some(SourceType::Volume(VolumeSource {
            volume_id: id.to_owned(),
        })),
    })
}

fn from_snapshot(id: &str) -> Option<pb::VolumeContentSource> {
    Some(pb::VolumeContentSource {
        r#type: Some(SourceType::Snapshot(SnapshotSource {
            snapshot_id: id.to_owned(),
        })),
    })
}

fn place(pairs: &[(&str, &str)]) -> pb::Topology {
    pb::Topology { segments: map(pairs) }
}

fn at(requisite: &[&[(&str, &str)]], preferred: &[&[(&str, &str)]]) -> Option<pb::TopologyRequirement> {
    let all = |list: &[&[(&str, &str)]]| list.iter().map(|pairs| place(pairs)).collect();
    Some(pb::TopologyRequirement {
        requisite: all(requisite),
        preferred: all(preferred),
    })
}

fn attach(id: &str, node: &str) -> pb::ControllerPublishVolumeRequest {
    pb::ControllerPublishVolumeRequest {
        volume_id: id.to_owned(),
        node_id: node.to_owned(),
        volume_capability: Some(capability(None)),
        ..Default::default()
    }
}

fn detach(id: &str, node: &str) -> pb::ControllerUnpublishVolumeRequest {
    pb::ControllerUnpublishVolumeRequest {
        volume_id: id.to_owned(),
        node_id: node.to_owned(),
        ..Default::default()
    }
}

fn validate(id: &str) -> pb::ValidateVolumeCapabilitiesRequest {
    pb::ValidateVolumeCapabilitiesRequest {
        volume_id: id.to_owned(),
        volume_capabilities: vec![capability(None)],
        ..Default::default()
    }
}

fn expand(id: &str, required: i64, limit: i64) -> pb::ControllerExpandVolumeRequest {
    pb::ControllerExpandVolumeRequest {
        volume_id: id.to_owned(),
        capacity_range: range(required, limit),
        ..Default::default()
    }
}

fn modify(id: &str, pairs: &[(&str, &str)]) -> pb::ControllerModifyVolumeRequest {
    pb::ControllerModifyVolumeRequest {
        volume_id: id.to_owned(),
        mutable_parameters: map(pairs),
        ..Default::default()
    }
}

fn delete(id: &str) -> pb::DeleteVolumeRequest {
    pb::DeleteVolumeRequest {
        volume_id: id.to_owned(),
        ..Default::default()
    }
}

fn list(starting_token: &str, max_entries: i32) -> pb::ListVolumesRequest {
    pb::ListVolumesRequest {
        starting_token: starting_token.to_owned(),
        max_entries,
    }
}

async fn made(controller: &mut Controller, request: pb::CreateVolumeRequest) -> pb::Volume {
    controller
        .create_volume(request)
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap()
}

async fn controller(driver: &Driver) -> Controller {
    ControllerClient::new(driver.channel().await)
}

async fn listed(controller: &mut Controller) -> Vec<pb::list_volumes_response::Entry> {
    controller
        .list_volumes(list("", 0))
        .await
        .unwrap()
        .into_inner()
        .entries
}

#[tokio::test]
async fn create_volume_names_every_bad_field() {
    const CREATE: &str = "CreateVolume";
    let driver = Driver::start();
    let bad = Code::InvalidArgument;
    let mut rows: Vec<Row> = [
        ("no name", with(|r| r.name.clear()), "name is required"),
        ("long name", with(|r| r.name = long(129)), "name"),
        (
            "name with a control character",
            with(|r| r.name = String::from("a\u{7}b")),
            "name",
        ),
        (
            "name with a C1 control character",
            with(|r| r.name = String::from("a\u{85}b")),
            "name",
        ),
        (
            "no capability",
            with(|r| r.volume_capabilities.clear()),
            "volume_capabilities",
        ),
        (
            "device and filesystem",
            with(|r| r.volume_capabilities.push(mount(|_| {}))),
            "volume_capabilities",
        ),
        (
            "two filesystems",
            with(|r| {
                r.volume_capabilities = vec![mount(|_| {}), mount(|m| m.fs_type = String::from("xfs"))];
            }),
            "volume_capabilities",
        ),
        (
            "empty range",
            with(|r| r.capacity_range = range(0, 0)),
            "capacity_range",
        ),
        (
            "negative size",
            with(|r| r.capacity_range = range(-1, 0)),
            "required_bytes \"-1\"",
        ),
        (
            "negative limit",
            with(|r| r.capacity_range = range(0, -1)),
            "limit_bytes \"-1\"",
        ),
        (
            "limit below",
            with(|r| r.capacity_range = range(2 * MIB, MIB)),
            "limit_bytes",
        ),
        (
            "unknown parameter",
            with(|r| r.parameters = map(&[("speed", "1")])),
            "speed",
        ),
        (
            "bad value",
            with(|r| r.parameters = map(&[("access", "maybe")])),
            "access=maybe",
        ),
        (
            "long parameters",
            with(|r| r.parameters = long_map()),
            "parameters",
        ),
        (
            "unknown mutable parameter",
            with(|r| r.mutable_parameters = map(&[("speed", "1")])),
            "mutable_parameters \"speed\"",
        ),
        (
            "bad mutable value",
            with(|r| r.mutable_parameters = map(&[("atime", "never")])),
            "atime=never",
        ),
        (
            "long mutable parameters",
            with(|r| r.mutable_parameters = long_map()),
            "mutable_parameters",
        ),
        ("long secrets", with(|r| r.secrets = long_map()), "secrets"),
        (
            "source without a type",
            with(|r| r.volume_content_source = Some(pb::VolumeContentSource { r#type: None })),
            "volume_content_source",
        ),
        (
            "source without an id",
            with(|r| r.volume_content_source = from_volume("")),
            "volume_content_source.volume.volume_id",
        ),
        (
            "source with a long id",
            with(|r| r.volume_content_source = from_volume(&long(129))),
            "volume_content_source.volume.volume_id",
        ),
        (
            "snapshot without an id",
            with(|r| r.volume_content_source = from_snapshot("")),
            "volume_content_source.snapshot.snapshot_id",
        ),
        (
            "snapshot, which is not offered",
            with(|r| r.volume_content_source = from_snapshot("s1")),
            "CREATE_DELETE_SNAPSHOT",
        ),
        (
            "empty topology requirement",
            with(|r| r.accessibility_requirements = at(&[], &[])),
            "accessibility_requirements",
        ),
        (
            "bad segment",
            with(|r| r.accessibility_requirements = at(&[&[("a b", "c")]], &[])),
            "accessibility_requirements.requisite",
        ),
        (
            "long segment",
            with(|r| r.accessibility_requirements = at(&[&[("zone", &long(64))]], &[])),
            "accessibility_requirements.requisite",
        ),
        (
            "preferred that is not requisite",
            with(|r| r.accessibility_requirements = at(&[&[("zone", "a")]], &[&[("zone", "b")]])),
            "accessibility_requirements.preferred",
        ),
    ]
    .into_iter()
    .map(|(name, request, names)| row(name, CREATE, &request, bad, names))
    .collect();
    for (name, capability, names) in bad_capabilities().into_iter().chain(unsupported_capabilities()) {
        let request = with(|r| r.volume_capabilities = vec![capability]);
        rows.push(row(name, CREATE, &request, bad, names));
    }
    let unknown = with(|r| r.volume_content_source = from_volume(UNKNOWN));
    let foreign = with(|r| r.volume_content_source = from_volume("another drivers"));
    let nowhere = with(|r| r.accessibility_requirements = at(&[&[(ZONE, "mars")]], &[]));
    rows.extend([
        row("unknown source", CREATE, &unknown, Code::NotFound, UNKNOWN),
        row(
            "source of another driver",
            CREATE,
            &foreign,
            Code::NotFound,
            "another drivers",
        ),
        row("unknown place", CREATE, &nowhere, Code::ResourceExhausted, "mars"),
        row(
            "more than there is",
            CREATE,
            &create("large", None, 1 << 50, 0),
            Code::OutOfRange,
            "capacity_range",
        ),
        row(
            "no size in the range",
            CREATE,
            &create("small", Some("xfs"), MIB, 10 * MIB),
            Code::OutOfRange,
            "limit_bytes",
        ),
        // An argument that is wrong comes before anything that is looked for.
        row(
            "unknown source and bad range",
            CREATE,
            &with(|r| {
                r.volume_content_source = from_volume(UNKNOWN);
                r.capacity_range = range(-1, 0);
            }),
            bad,
            "required_bytes",
        ),
    ]);
    check(&driver.channel().await, rows).await;
    assert!(
        listed(&mut controller(&driver).await).await.is_empty(),
        "a refused call left a volume"
    );
    nothing_left(&driver);
}

#[tokio::test]
async fn create_volume_takes_all_that_the_specification_allows() {
    let driver = Driver::start();
    let rows = [
        ("longest name", with(|r| r.name = long(128))),
        (
            "white space in a name",
            with(|r| r.name = String::from("a\tb\nc\rd")),
        ),
        (
            "any other character in a name",
            with(|r| r.name = String::from("../../数据 ^%{}\\")),
        ),
        (
            "no range",
            with(|r| {
                r.name = String::from("no range");
                r.capacity_range = None;
            }),
        ),
        (
            "only a limit",
            with(|r| {
                r.name = String::from("limit");
                r.capacity_range = range(0, MIB);
            }),
        ),
        (
            "several modes",
            with(|r| {
                r.name = String::from("modes");
                r.volume_capabilities = (1..=7).filter(|m| ![3, 4, 5].contains(m)).map(mode).collect();
            }),
        ),
        (
            "parameters that Kubernetes adds",
            with(|r| {
                r.name = String::from("metadata");
                r.parameters = map(&[("csi.storage.k8s.io/pvc/name", "x"), ("access", "read-write")]);
            }),
        ),
        (
            "largest secrets",
            with(|r| {
                r.name = String::from("secrets");
                r.secrets = HashMap::from([(String::from("key"), long(4093))]);
            }),
        ),
        (
            "only a preferred place, and an unknown one",
            with(|r| {
                r.name = String::from("preferred");
                r.accessibility_requirements = at(&[], &[&[(ZONE, "mars")]]);
            }),
        ),
    ];
    let count = rows.len();
    let rows = rows
        .iter()
        .map(|(name, request)| row(name, "CreateVolume", request, Code::Ok, ""))
        .collect();
    check(&driver.channel().await, rows).await;
    let entries = listed(&mut controller(&driver).await).await;
    assert_eq!(entries.len(), count);
    for entry in entries {
        let id = entry.volume.unwrap().volume_id;
        assert!(id.len() <= 128 && !id.contains('^') && !id.contains('/'), "{id}");
    }
}

#[tokio::test]
async fn a_name_used_again_gives_the_same_volume_or_already_exists() {
    let driver = Driver::start();
    let mut controller = controller(&driver).await;
    let source = made(&mut controller, block("source")).await.volume_id;
    let first = with(|r| {
        r.capacity_range = range(4 * MIB, 8 * MIB);
        r.parameters = map(&[("csi.storage.k8s.io/pvc/name", "a")]);
        r.mutable_parameters = map(&[("atime", "noatime")]);
        r.volume_capabilities = vec![mode(1), mode(7)];
    });
    let volume = made(&mut controller, first.clone()).await;
    assert_eq!(volume.capacity_bytes, 4 * MIB);
    let other = |change: fn(&mut pb::CreateVolumeRequest)| {
        let mut request = first.clone();
        change(&mut request);
        request
    };
    for (name, request) in [
        ("the same", first.clone()),
        (
            "capabilities in another order",
            other(|r| r.volume_capabilities.reverse()),
        ),
        ("a smaller size", other(|r| r.capacity_range = range(MIB, 0))),
        ("no size", other(|r| r.capacity_range = None)),
        (
            "another place",
            other(|r| r.accessibility_requirements = at(&[&[(ZONE, "mars")]], &[])),
        ),
        ("other secrets", other(|r| r.secrets = map(&[("user", "x")]))),
    ] {
        assert_eq!(made(&mut controller, request).await, volume, "{name}");
    }
    let exists = |name, names, request: pb::CreateVolumeRequest| {
        row(name, "CreateVolume", &request, Code::AlreadyExists, names)
    };
    let mut cloned = first.clone();
    cloned.volume_content_source = from_volume(&source);
    let rows = vec![
        exists(
            "larger",
            "capacity_range",
            other(|r| r.capacity_range = range(5 * MIB, 0)),
        ),
        exists(
            "limit below",
            "capacity_range",
            other(|r| r.capacity_range = range(0, MIB)),
        ),
        exists("other parameters", "parameters", other(|r| r.parameters.clear())),
        exists(
            "other mutable parameters",
            "mutable_parameters",
            other(|r| r.mutable_parameters.clear()),
        ),
        exists(
            "other mode",
            "volume_capabilities",
            other(|r| r.volume_capabilities = vec![mode(1)]),
        ),
        exists(
            "other access type",
            "volume_capabilities",
            other(|r| r.volume_capabilities = vec![mount(|_| {})]),
        ),
        exists("a source", "volume_content_source", cloned),
    ];
    check(&driver.channel().await, rows).await;
    assert_eq!(listed(&mut controller).await.len(), 2);
}

#[tokio::test]
async fn capacity_is_promised_once_and_free_again_after_a_deletion() {
    let driver = Driver::start();
    let mut controller = controller(&driver).await;
    let first = made(&mut controller, create("a", None, 5 << 30, 0))
        .await
        .volume_id;
    let second = || create("b", None, 5 << 30, 0);
    let full = controller.create_volume(second()).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert!(full.message().contains("3221225472 free"), "{}", full.message());
    let more = controller
        .controller_expand_volume(expand(&first, 7 << 30, 0))
        .await;
    assert!(more.is_ok());
    let more = controller
        .controller_expand_volume(expand(&first, 9 << 30, 0))
        .await;
    assert_eq!(wait_code(more), Code::OutOfRange, "more than there is in all");
    controller.delete_volume(delete(&first)).await.unwrap();
    made(&mut controller, second()).await;
}

#[tokio::test]
async fn delete_volume_is_repeatable_and_refused_in_use() {
    const DELETE: &str = "DeleteVolume";
    let driver = Driver::start();
    let mut controller = controller(&driver).await;
    let volume = made(&mut controller, block("a")).await;
    let id = &volume.volume_id;
    controller
        .controller_publish_volume(attach(id, "n1"))
        .await
        .unwrap();
    let mut secrets = delete(id);
    secrets.secrets = long_map();
    let rows = vec![
        row(
            "no id",
            DELETE,
            &delete(""),
            Code::InvalidArgument,
            "volume_id is required",
        ),
        row(
            "long id",
            DELETE,
            &delete(&long(129)),
            Code::InvalidArgument,
            "volume_id",
        ),
        row(
            "id with a control character",
            DELETE,
            &delete("a\nb"),
            Code::InvalidArgument,
            "volume_id",
        ),
        row("long secrets", DELETE, &secrets, Code::InvalidArgument, "secrets"),
        row("unknown", DELETE, &delete(UNKNOWN), Code::Ok, ""),
        row(
            "of another driver",
            DELETE,
            &delete("../../etc/passwd"),
            Code::Ok,
            "",
        ),
        row("attached", DELETE, &delete(id), Code::FailedPrecondition, "n1"),
    ];
    check(&driver.channel().await, rows).await;
    let entry = listed(&mut controller).await.remove(0);
    assert_eq!(
        entry.volume,
        Some(volume.clone()),
        "a refused deletion altered the volume"
    );
    assert_eq!(entry.status.unwrap().published_node_ids, ["n1"]);
    controller
        .controller_unpublish_volume(detach(id, "n1"))
        .await
        .unwrap();
    for _ in 0..2 {
        controller.delete_volume(delete(id)).await.unwrap();
    }
    nothing_left(&driver);
}

#[tokio::test]
async fn controller_publish_names_every_bad_field_and_repeats() {
    const PUBLISH: &str = "ControllerPublishVolume";
    let driver = Driver::start();
    let mut controller = controller(&driver).await;
    let id = made(&mut controller, block("a")).await.volume_id;
    let with = |change: &dyn Fn(&mut pb::ControllerPublishVolumeRequest)| {
        let mut request = attach(&id, "n1");
        change(&mut request);
        request
    };
    let bad = Code::InvalidArgument;
    let mut rows: Vec<Row> = [
        ("no id", with(&|r| r.volume_id.clear()), bad, "volume_id"),
        ("long id", with(&|r| r.volume_id = long(129)), bad, "volume_id"),
        ("no node", with(&|r| r.node_id.clear()), bad, "node_id"),
        ("long node", with(&|r| r.node_id = long(257)), bad, "node_id"),
        (
            "longest node, unknown",
            with(&|r| r.node_id = long(256)),
            Code::NotFound,
            "node",
        ),
        (
            "node with a control character",
            with(&|r| r.node_id = String::from("a\u{1}")),
            bad,
            "node_id",
        ),
        (
            "no capability",
            with(&|r| r.volume_capability = None),
            bad,
            "volume_capability",
        ),
        (
            "long context",
            with(&|r| r.volume_context = long_map()),
            bad,
            "volume_context",
        ),
        ("long secrets", with(&|r| r.secrets = long_map()), bad, "secrets"),
        (
            "a filesystem on a device",
            with(&|r| r.volume_capability = Some(mount(|_| {}))),
            bad,
            "mount ext4",
        ),
        (
            "unknown volume",
            with(&|r| r.volume_id = String::from(UNKNOWN)),
            Code::NotFound,
            UNKNOWN,
        ),
        (
            "volume of another driver",
            with(&|r| r.volume_id = String::from("x^y")),
            Code::NotFound,
            "x^y",
        ),
        (
            "unknown node",
            with(&|r| r.node_id = String::from("n9")),
            Code::NotFound,
            "n9",
        ),
        (
            "node that is a path",
            with(&|r| r.node_id = String::from("../volumes")),
            Code::NotFound,
            "../volumes",
        ),
        (
            "unknown volume and no capability",
            with(&|r| {
                r.volume_id = String::from(UNKNOWN);
                r.volume_capability = None;
            }),
            bad,
            "volume_capability",
        ),
    ]
    .into_iter()
    .map(|(name, request, code, names)| row(name, PUBLISH, &request, code, names))
    .collect();
    for (name, capability, names) in bad_capabilities().into_iter().chain(unsupported_capabilities()) {
        let request = with(&|r| r.volume_capability = Some(capability.clone()));
        rows.push(row(name, PUBLISH, &request, bad, names));
    }
    rows.extend([
        row("first", PUBLISH, &with(&|_| {}), Code::Ok, ""),
        row("again", PUBLISH, &with(&|_| {}), Code::Ok, ""),
        row(
            "again, readonly",
            PUBLISH,
            &with(&|r| r.readonly = true),
            Code::AlreadyExists,
            "readonly",
        ),
        row(
            "again, another mode",
            PUBLISH,
            &with(&|r| r.volume_capability = Some(mode(6))),
            Code::AlreadyExists,
            "n1",
        ),
    ]);
    check(&driver.channel().await, rows).await;
    let again = |controller: &Controller| {
        let mut controller = controller.clone();
        let request = attach(&id, "n1");
        async move {
            controller
                .controller_publish_volume(request)
                .await
                .unwrap()
                .into_inner()
                .publish_context
        }
    };
    assert_eq!(again(&controller).await, again(&controller).await);
}

#[tokio::test]
async fn a_volume_is_for_one_node_and_a_node_for_as_many_as_it_takes() {
    let driver = Driver::start();
    let socket = driver.folder.path().join("n2.sock");
    let mut other = spawn_node(driver.folder.path(), "node", "n2", &socket);
    let mut controller = controller(&driver).await;
    let mut ids = Vec::new();
    for number in 0..9 {
        ids.push(
            made(&mut controller, block(&format!("v{number}")))
                .await
                .volume_id,
        );
    }
    for id in &ids[..8] {
        controller
            .controller_publish_volume(attach(id, "n1"))
            .await
            .unwrap();
    }
    let elsewhere = controller
        .controller_publish_volume(attach(&ids[0], "n2"))
        .await
        .unwrap_err();
    assert_eq!(elsewhere.code(), Code::FailedPrecondition);
    assert!(elsewhere.message().contains("n1"), "{}", elsewhere.message());
    let full = controller
        .controller_publish_volume(attach(&ids[8], "n1"))
        .await
        .unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert!(
        full.message().contains("n1") && full.message().contains('8'),
        "{}",
        full.message()
    );
    // One that is there already takes no other place.
    controller
        .controller_publish_volume(attach(&ids[7], "n1"))
        .await
        .unwrap();
    controller
        .controller_unpublish_volume(detach(&ids[0], "n1"))
        .await
        .unwrap();
    controller
        .controller_publish_volume(attach(&ids[8], "n1"))
        .await
        .unwrap();
    other.kill().unwrap();
    other.wait().unwrap();
}

/// Many at once take no more places than there are.
#[tokio::test]
async fn the_limit_of_a_node_holds_under_concurrency() {
    let driver = Driver::start();
    let mut controller = controller(&driver).await;
    let mut tasks = Vec::new();
    for number in 0..16 {
        let id = made(&mut controller, block(&format!("v{number}")))
            .await
            .volume_id;
        let mut controller = controller.clone();
        tasks.push(tokio::spawn(async move {
            wait_code(controller.controller_publish_volume(attach(&id, "n1")).await)
        }));
    }
    let mut codes = Vec::new();
    for task in tasks {
        codes.push(task.await.unwrap());
    }
    let count = |code: Code| codes.iter().filter(|c| **c == code).count();
    assert_eq!(
        (count(Code::Ok), count(Code::ResourceExhausted)),
        (8, 8),
        "{codes:?}"
    );
}

#[tokio::test]
async fn controller_unpublish_is_repeatable_and_takes_all_without_a_node() {
    const UNPUBLISH: &str = "ControllerUnpublishVolume";
    let driver = Driver::start();
    let mut controller = controller(&driver).await;
    let id = made(&mut controller, block("a")).await.volume_id;
    let attached = |entries: Vec<pb::list_volumes_response::Entry>| {
        entries[0].status.clone().unwrap().published_node_ids
    };
    controller
        .controller_publish_volume(attach(&id, "n1"))
        .await
        .unwrap();
    let mut secrets = detach(&id, "n1");
    secrets.secrets = long_map();
    let rows = vec![
        row(
            "no id",
            UNPUBLISH,
            &detach("", "n1"),
            Code::InvalidArgument,
            "volume_id",
        ),
        row(
            "long id",
            UNPUBLISH,
            &detach(&long(129), "n1"),
            Code::InvalidArgument,
            "volume_id",
        ),
        row(
            "long node",
            UNPUBLISH,
            &detach(&id, &long(257)),
            Code::InvalidArgument,
            "node_id",
        ),
        row(
            "long secrets",
            UNPUBLISH,
            &secrets,
            Code::InvalidArgument,
            "secrets",
        ),
        row("unknown volume", UNPUBLISH, &detach(UNKNOWN, "n1"), Code::Ok, ""),
        row(
            "volume of another driver",
            UNPUBLISH,
            &detach("x^y", "n1"),
            Code::Ok,
            "",
        ),
        row("another node", UNPUBLISH, &detach(&id, "n2"), Code::Ok, ""),
    ];
    check(&driver.channel().await, rows).await;
    assert_eq!(
        attached(listed(&mut controller).await),
        ["n1"],
        "taken from a node that was not named"
    );
    for node in ["n1", "n1", ""] {
        controller
            .controller_unpublish_volume(detach(&id, node))
            .await
            .unwrap();
    }
    controller
        .controller_publish_volume(attach(&id, "n1"))
        .await
        .unwrap();
    controller
        .controller_unpublish_volume(detach(&id, ""))
        .await
        .unwrap();
    assert!(attached(listed(&mut controller).await).is_empty());
}

#[tokio::test]
async fn validate_confirms_only_what_the_volume_is() {
    const VALIDATE: &str = "ValidateVolumeCapabilities";
    let driver = Driver::start();
    let mut controller = controller(&driver).await;
    let request = with(|r| r.mutable_parameters = map(&[("atime", "noatime")]));
    let id = made(&mut controller, request).await.volume_id;
    let with = |change: &dyn Fn(&mut pb::ValidateVolumeCapabilitiesRequest)| {
        let mut request = validate(&id);
        change(&mut request);
        request
    };
    let bad = Code::InvalidArgument;
    let mut rows: Vec<Row> = [
        ("no id", with(&|r| r.volume_id.clear()), bad, "volume_id"),
        ("long id", with(&|r| r.volume_id = long(129)), bad, "volume_id"),
        (
            "no capability",
            with(&|r| r.volume_capabilities.clear()),
            bad,
            "volume_capabilities",
        ),
        (
            "long context",
            with(&|r| r.volume_context = long_map()),
            bad,
            "volume_context",
        ),
        (
            "long parameters",
            with(&|r| r.parameters = long_map()),
            bad,
            "parameters",
        ),
        (
            "long mutable",
            with(&|r| r.mutable_parameters = long_map()),
            bad,
            "mutable_parameters",
        ),
        ("long secrets", with(&|r| r.secrets = long_map()), bad, "secrets"),
        (
            "unknown",
            with(&|r| r.volume_id = String::from(UNKNOWN)),
            Code::NotFound,
            UNKNOWN,
        ),
        (
            "of another driver",
            with(&|r| r.volume_id = String::from("x^y")),
            Code::NotFound,
            "x^y",
        ),
        (
            "unknown and no capability",
            with(&|r| {
                r.volume_id = String::from(UNKNOWN);
                r.volume_capabilities.clear();
            }),
            bad,
            "volume_capabilities",
        ),
    ]
    .into_iter()
    .map(|(name, request, code, names)| row(name, VALIDATE, &request, code, names))
    .collect();
    for (name, capability, names) in bad_capabilities() {
        let request = with(&|r| r.volume_capabilities = vec![capability.clone()]);
        rows.push(row(name, VALIDATE, &request, bad, names));
    }
    check(&driver.channel().await, rows).await;

    let mut refused: Vec<(&str, pb::ValidateVolumeCapabilitiesRequest)> = vec![
        (
            "a filesystem",
            with(&|r| r.volume_capabilities = vec![mount(|_| {})]),
        ),
        ("both", with(&|r| r.volume_capabilities.push(mount(|_| {})))),
        (
            "unknown parameter",
            with(&|r| r.parameters = map(&[("speed", "1")])),
        ),
        (
            "unknown mutable",
            with(&|r| r.mutable_parameters = map(&[("speed", "1")])),
        ),
        (
            "another attribute",
            with(&|r| r.mutable_parameters = map(&[("atime", "relatime")])),
        ),
    ];
    for (name, capability, _) in unsupported_capabilities() {
        refused.push((name, with(&|r| r.volume_capabilities = vec![capability.clone()])));
    }
    for (name, request) in refused {
        let reply = controller
            .validate_volume_capabilities(request)
            .await
            .unwrap()
            .into_inner();
        assert!(
            reply.confirmed.is_none() && !reply.message.is_empty(),
            "{name}: {reply:?}"
        );
    }
    let all = with(&|r| {
        r.volume_context = map(&[("storage.kubernetes.io/csiProvisionerIdentity", "x")]);
        r.volume_capabilities = vec![mode(1), mode(6)];
        r.parameters = map(&[("access", "read-write")]);
        r.mutable_parameters = map(&[("atime", "noatime")]);
    });
    let confirmed = controller
        .validate_volume_capabilities(all.clone())
        .await
        .unwrap()
        .into_inner()
        .confirmed
        .unwrap();
    assert_eq!(confirmed.volume_context, all.volume_context);
    assert_eq!(confirmed.volume_capabilities, all.volume_capabilities);
    assert_eq!(confirmed.parameters, all.parameters);
    assert_eq!(confirmed.mutable_parameters, all.mutable_parameters);
}

#[tokio::test]
async fn list_volumes_pages_through_all_of_them_once() {
    const LIST: &str = "ListVolumes";
    let driver = Driver::start();
    let mut controller = controller(&driver).await;
    let mut expected = std::collections::BTreeSet::new();
    for number in 0..7 {
        expected.insert(
            made(&mut controller, block(&format!("v{number}")))
                .await
                .volume_id,
        );
    }
    let rows = vec![
        row(
            "negative",
            LIST,
            &list("", -1),
            Code::InvalidArgument,
            "max_entries \"-1\"",
        ),
        row(
            "bad token",
            LIST,
            &list("nonsense", 0),
            Code::Aborted,
            "starting_token",
        ),
        row(
            "long token",
            LIST,
            &list(&long(5000), 0),
            Code::Aborted,
            "starting_token",
        ),
    ];
    check(&driver.channel().await, rows).await;
    for page in [1, 2, 3, 7, 100] {
        let mut seen = Vec::new();
        let mut token = String::new();
        loop {
            let reply = controller
                .list_volumes(list(&token, page))
                .await
                .unwrap()
                .into_inner();
            assert!(reply.entries.len() <= page as usize);
            seen.extend(reply.entries.into_iter().map(|e| e.volume.unwrap().volume_id));
            token = reply.next_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(
            seen,
            expected.iter().cloned().collect::<Vec<_>>(),
            "pages of {page}"
        );
    }
    // A page goes on where it stopped though the volume it stopped at is gone.
    let first = controller.list_volumes(list("", 3)).await.unwrap().into_inner();
    controller.delete_volume(delete(&first.next_token)).await.unwrap();
    let rest = controller
        .list_volumes(list(&first.next_token, 0))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(rest.entries.len(), 4);
}

#[tokio::test]
async fn get_volume_shows_what_list_volumes_shows() {
    const GET: &str = "ControllerGetVolume";
    let driver = Driver::start();
    let mut controller = controller(&driver).await;
    let source = made(&mut controller, block("source")).await.volume_id;
    let clone = with(|r| {
        r.volume_content_source = from_volume(&source);
        r.accessibility_requirements = at(&[&[(ZONE, "default")]], &[]);
    });
    let volume = made(&mut controller, clone).await;
    assert_eq!(volume.content_source, from_volume(&source));
    assert_eq!(volume.accessible_topology, [place(&[(ZONE, "default")])]);
    controller
        .controller_publish_volume(attach(&volume.volume_id, "n1"))
        .await
        .unwrap();
    let get = |id: &str| pb::ControllerGetVolumeRequest {
        volume_id: id.to_owned(),
    };
    for entry in listed(&mut controller).await {
        let shown = entry.volume.unwrap();
        let reply = controller
            .controller_get_volume(get(&shown.volume_id))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(reply.volume.as_ref(), Some(&shown));
        let nodes = reply.status.unwrap().published_node_ids;
        assert_eq!(nodes, entry.status.unwrap().published_node_ids);
        assert_eq!(nodes.is_empty(), shown.volume_id == source);
    }
    let rows = vec![
        row("no id", GET, &get(""), Code::InvalidArgument, "volume_id"),
        row(
            "long id",
            GET,
            &get(&long(129)),
            Code::InvalidArgument,
            "volume_id",
        ),
        row("unknown", GET, &get(UNKNOWN), Code::NotFound, UNKNOWN),
        row("of another driver", GET, &get("x^y"), Code::NotFound, "x^y"),
    ];
    check(&driver.channel().await, rows).await;
}

#[tokio::test]
async fn controller_expand_names_every_bad_field_and_repeats() {
    const EXPAND: &str = "ControllerExpandVolume";
    let driver = Driver::start();
    let mut controller = controller(&driver).await;
    let id = made(&mut controller, create("a", None, 8 * MIB, 0))
        .await
        .volume_id;
    let with = |change: &dyn Fn(&mut pb::ControllerExpandVolumeRequest)| {
        let mut request = expand(&id, 16 * MIB, 0);
        change(&mut request);
        request
    };
    let bad = Code::InvalidArgument;
    let mut rows: Vec<Row> = [
        ("no id", with(&|r| r.volume_id.clear()), bad, "volume_id"),
        ("long id", with(&|r| r.volume_id = long(129)), bad, "volume_id"),
        (
            "no range",
            with(&|r| r.capacity_range = None),
            bad,
            "capacity_range",
        ),
        (
            "empty range",
            with(&|r| r.capacity_range = range(0, 0)),
            bad,
            "capacity_range",
        ),
        (
            "negative",
            with(&|r| r.capacity_range = range(-5, 0)),
            bad,
            "required_bytes \"-5\"",
        ),
        (
            "negative limit",
            with(&|r| r.capacity_range = range(1, -5)),
            bad,
            "limit_bytes \"-5\"",
        ),
        (
            "limit below",
            with(&|r| r.capacity_range = range(20 * MIB, 10 * MIB)),
            bad,
            "limit_bytes",
        ),
        ("long secrets", with(&|r| r.secrets = long_map()), bad, "secrets"),
        (
            "a filesystem on a device",
            with(&|r| r.volume_capability = Some(mount(|_| {}))),
            bad,
            "volume_capability",
        ),
        (
            "unknown",
            with(&|r| r.volume_id = String::from(UNKNOWN)),
            Code::NotFound,
            UNKNOWN,
        ),
        (
            "unknown and no range",
            with(&|r| {
                r.volume_id = String::from(UNKNOWN);
                r.capacity_range = None;
            }),
            bad,
            "capacity_range",
        ),
        (
            "more than there is",
            with(&|r| r.capacity_range = range(1 << 50, 0)),
            Code::OutOfRange,
            "in all",
        ),
        (
            "more than any file",
            with(&|r| r.capacity_range = range(i64::MAX, 0)),
            Code::OutOfRange,
            "in all",
        ),
        (
            "never smaller",
            with(&|r| r.capacity_range = range(MIB, 2 * MIB)),
            Code::OutOfRange,
            "never shrinks",
        ),
        (
            "within a block",
            with(&|r| r.capacity_range = range(8 * MIB + 1, 8 * MIB + 2)),
            Code::OutOfRange,
            "limit_bytes",
        ),
    ]
    .into_iter()
    .map(|(name, request, code, names)| row(name, EXPAND, &request, code, names))
    .collect();
    for (name, capability, names) in bad_capabilities().into_iter().chain(unsupported_capabilities()) {
        let request = with(&|r| r.volume_capability = Some(capability.clone()));
        rows.push(row(name, EXPAND, &request, bad, names));
    }
    check(&driver.channel().await, rows).await;
    let mut grown = async |required, limit| {
        let reply = controller
            .controller_expand_volume(expand(&id, required, limit))
            .await
            .unwrap();
        reply.into_inner().capacity_bytes
    };
    assert_eq!(grown(4 * MIB, 0).await, 8 * MIB, "large enough already");
    assert_eq!(grown(0, 20 * MIB).await, 8 * MIB, "nothing more is required");
    assert_eq!(grown(16 * MIB, 0).await, 16 * MIB);
    assert_eq!(grown(16 * MIB, 16 * MIB).await, 16 * MIB, "again");
    let image = driver.path(&format!("data/volumes/{id}.img"));
    assert_eq!(std::fs::metadata(image).unwrap().len() as i64, 16 * MIB);
}

#[tokio::test]
async fn a_node_has_to_expand_what_it_has_or_what_has_a_filesystem() {
    let driver = Driver::start();
    let mut controller = controller(&driver).await;
    let device = made(&mut controller, block("device")).await.volume_id;
    let folder = made(&mut controller, create("folder", Some("ext4"), 8 * MIB, 0))
        .await
        .volume_id;
    let needed = async |controller: &mut Controller, id: &str, size| {
        let reply = controller
            .controller_expand_volume(expand(id, size, 0))
            .await
            .unwrap();
        reply.into_inner().node_expansion_required
    };
    assert!(!needed(&mut controller, &device, 2 * MIB).await);
    controller
        .controller_publish_volume(attach(&device, "n1"))
        .await
        .unwrap();
    assert!(needed(&mut controller, &device, 4 * MIB).await);
    for _ in 0..2 {
        assert!(needed(&mut controller, &folder, 16 * MIB).await);
    }
}

#[tokio::test]
async fn modify_changes_what_is_named_or_nothing() {
    const MODIFY: &str = "ControllerModifyVolume";
    let driver = Driver::start();
    let mut controller = controller(&driver).await;
    let id = made(
        &mut controller,
        with(|r| r.mutable_parameters = map(&[("access", "read-only")])),
    )
    .await
    .volume_id;
    let attributes = || {
        let record = std::fs::read(driver.path(&format!("data/volumes/{id}.json"))).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        let is = |key: &str| record["attributes"][key].as_bool().unwrap();
        (is("read_only"), is("no_atime"))
    };
    assert_eq!(attributes(), (true, false));
    let mut secrets = modify(&id, &[("atime", "noatime")]);
    secrets.secrets = long_map();
    let mut large = modify(&id, &[]);
    large.mutable_parameters = long_map();
    let bad = Code::InvalidArgument;
    let rows = vec![
        row(
            "no id",
            MODIFY,
            &modify("", &[("atime", "noatime")]),
            bad,
            "volume_id",
        ),
        row(
            "long id",
            MODIFY,
            &modify(&long(129), &[("atime", "noatime")]),
            bad,
            "volume_id",
        ),
        row("nothing to change", MODIFY, &modify(&id, &[]), Code::Ok, ""),
        row("long", MODIFY, &large, bad, "mutable_parameters"),
        row("long secrets", MODIFY, &secrets, bad, "secrets"),
        row(
            "unknown",
            MODIFY,
            &modify(UNKNOWN, &[("atime", "noatime")]),
            Code::NotFound,
            UNKNOWN,
        ),
        row(
            "unknown and bad",
            MODIFY,
            &modify(UNKNOWN, &[("speed", "1")]),
            bad,
            "speed",
        ),
        row(
            "bad key",
            MODIFY,
            &modify(&id, &[("atime", "noatime"), ("speed", "1")]),
            bad,
            "speed",
        ),
        row(
            "bad value",
            MODIFY,
            &modify(&id, &[("atime", "noatime"), ("access", "maybe")]),
            bad,
            "maybe",
        ),
    ];
    check(&driver.channel().await, rows).await;
    assert_eq!(attributes(), (true, false), "a refused call changed something");
    for _ in 0..2 {
        controller
            .controller_modify_volume(modify(&id, &[("atime", "noatime")]))
            .await
            .unwrap();
        assert_eq!(attributes(), (true, true), "what was not named was touched");
    }
    controller
        .controller_modify_volume(modify(&id, &[("access", "read-write")]))
        .await
        .unwrap();
    assert_eq!(attributes(), (false, true));
    // The name still finds the volume by what it was first asked for.
    made(
        &mut controller,
        with(|r| r.mutable_parameters = map(&[("access", "read-only")])),
    )
    .await;
    assert_eq!(attributes(), (false, true));
}

#[tokio::test]
async fn get_capacity_is_by_place_class_and_capability() {
    let driver = Driver::with(&["--topology", "topology.holdfast.csi/zone=a"]);
    let mut controller = controller(&driver).await;
    made(&mut controller, create("a", None, 1 << 30, 0)).await;
    let left = 7 << 30;
    let asked = |change: &dyn Fn(&mut pb::GetCapacityRequest)| {
        let mut request = pb::GetCapacityRequest::default();
        change(&mut request);
        request
    };
    let some: Vec<(&str, pb::GetCapacityRequest, i64)> = vec![
        ("all", asked(&|_| {}), left),
        (
            "a place",
            asked(&|r| r.accessible_topology = Some(place(&[(ZONE, "a")]))),
            left,
        ),
        (
            "a place in capitals",
            asked(&|r| r.accessible_topology = Some(place(&[("Topology.Holdfast.CSI/Zone", "a")]))),
            left,
        ),
        (
            "any place",
            asked(&|r| r.accessible_topology = Some(place(&[]))),
            left,
        ),
        (
            "no such place",
            asked(&|r| r.accessible_topology = Some(place(&[(ZONE, "b")]))),
            0,
        ),
        (
            "no such key",
            asked(&|r| r.accessible_topology = Some(place(&[("rack", "a")]))),
            0,
        ),
        (
            "a class",
            asked(&|r| r.parameters = map(&[("access", "read-only")])),
            left,
        ),
        (
            "no such class",
            asked(&|r| r.parameters = map(&[("speed", "1")])),
            0,
        ),
        (
            "a capability",
            asked(&|r| r.volume_capabilities = vec![capability(Some("xfs"))]),
            left,
        ),
        ("many nodes", asked(&|r| r.volume_capabilities = vec![mode(5)]), 0),
        (
            "no such filesystem",
            asked(&|r| r.volume_capabilities = vec![capability(Some("btrfs"))]),
            0,
        ),
    ];
    for (name, request, expected) in some {
        let reply = controller.get_capacity(request).await.unwrap().into_inner();
        assert_eq!(reply.available_capacity, expected, "{name}");
        assert_eq!(reply.maximum_volume_size, Some(expected), "{name}");
        assert!(reply.minimum_volume_size.is_some_and(|size| size > 0), "{name}");
    }
    let bad = Code::InvalidArgument;
    let mut rows: Vec<Row> = bad_capabilities()
        .into_iter()
        .map(|(name, capability, names)| {
            let request = asked(&|r| r.volume_capabilities = vec![capability.clone()]);
            row(name, "GetCapacity", &request, bad, names)
        })
        .collect();
    rows.push(row(
        "long class",
        "GetCapacity",
        &asked(&|r| r.parameters = long_map()),
        bad,
        "parameters",
    ));
    let segment = asked(&|r| r.accessible_topology = Some(place(&[(ZONE, &long(64))])));
    rows.push(row(
        "long segment",
        "GetCapacity",
        &segment,
        bad,
        "accessible_topology",
    ));
    check(&driver.channel().await, rows).await;
}

#[tokio::test]
async fn a_volume_is_placed_where_it_is_wanted_and_used_only_there() {
    let zone = |name: &str| format!("{ZONE}={name}");
    let driver = Driver::with(&[
        "--topology",
        &zone("a"),
        "--topology",
        &format!("n2:{}", zone("b")),
    ]);
    let socket = driver.folder.path().join("n2.sock");
    let args = [
        "--topology",
        &zone("a"),
        "--topology",
        &format!("n2:{}", zone("b")),
    ];
    let mut other = spawn_with(driver.folder.path(), "node", "n2", &socket, &args);
    let mut controller = controller(&driver).await;
    let a: &[(&str, &str)] = &[(ZONE, "a")];
    let b: &[(&str, &str)] = &[(ZONE, "b")];
    for (name, wanted, expected) in [
        ("requisite", at(&[a], &[]), vec![place(a)]),
        ("preferred", at(&[a, b], &[b, a]), vec![place(b)]),
        ("only preferred", at(&[], &[b]), vec![place(b)]),
        (
            "another case",
            at(&[&[("TOPOLOGY.holdfast.csi/ZONE", "b")]], &[]),
            vec![place(b)],
        ),
        (
            "a place that is not there, and one that is",
            at(&[&[(ZONE, "x")], b], &[]),
            vec![place(b)],
        ),
        ("anywhere", None, vec![]),
    ] {
        let request = with(|r| {
            r.name = name.to_owned();
            r.accessibility_requirements = wanted.clone();
        });
        let volume = made(&mut controller, request).await;
        assert_eq!(volume.accessible_topology, expected, "{name}");
        let mut from = async |node| {
            let code = wait_code(
                controller
                    .controller_publish_volume(attach(&volume.volume_id, node))
                    .await,
            );
            controller
                .controller_unpublish_volume(detach(&volume.volume_id, ""))
                .await
                .unwrap();
            code == Code::Ok
        };
        let is_at = |zone| expected.is_empty() || expected == [place(zone)];
        assert_eq!(from("n1").await, is_at(a), "{name}");
        assert_eq!(from("n2").await, is_at(b), "{name}");
    }
    let mut node = pb::node_client::NodeClient::new(connect(&socket).await);
    let info = node
        .node_get_info(pb::NodeGetInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), ("n2", 8));
    assert_eq!(info.accessible_topology, Some(place(b)));
    other.kill().unwrap();
    other.wait().unwrap();
}

#[tokio::test]
async fn health_tells_of_what_is_missing() {
    use pb::VolumeHealthErrorType as Kind;
    let driver = Driver::start();
    let mut controller = controller(&driver).await;
    let mut ids = Vec::new();
    for name in ["good", "gone", "short", "torn"] {
        ids.push(
            made(&mut controller, create(name, None, 8 * MIB, 0))
                .await
                .volume_id,
        );
    }
    let file = |id: &str, kind: &str| driver.path(&format!("data/volumes/{id}.{kind}"));
    std::fs::remove_file(file(&ids[1], "img")).unwrap();
    std::fs::File::options()
        .write(true)
        .open(file(&ids[2], "img"))
        .unwrap()
        .set_len(4096)
        .unwrap();
    std::fs::write(file(&ids[3], "json"), "{").unwrap();
    let expected = [
        None,
        Some(Kind::DataLoss),
        Some(Kind::Degraded),
        Some(Kind::Inaccessible),
    ];
    let kinds = |health: &pb::VolumeHealth| -> Vec<Kind> {
        for entry in &health.health_statuses {
            assert!(!entry.reason.is_empty() && !entry.message.is_empty(), "{entry:?}");
        }
        health
            .health_statuses
            .iter()
            .map(|e| Kind::try_from(e.status).unwrap())
            .collect()
    };
    let get = |id: &str| pb::ControllerGetVolumeHealthRequest {
        volume_id: id.to_owned(),
        ..Default::default()
    };
    for (id, kind) in ids.iter().zip(expected) {
        let reply = controller
            .controller_get_volume_health(get(id))
            .await
            .unwrap()
            .into_inner();
        let health = reply.volume_health.unwrap();
        assert_eq!(
            (health.volume_id.as_str(), kinds(&health)),
            (id.as_str(), kind.into_iter().collect())
        );
    }
    let mut listed = Vec::new();
    let mut token = String::new();
    loop {
        let request = pb::ControllerListVolumeHealthRequest {
            max_entries: 1,
            starting_token: token,
            ..Default::default()
        };
        let reply = controller
            .controller_list_volume_health(request)
            .await
            .unwrap()
            .into_inner();
        assert!(reply.entries.len() <= 1);
        listed.extend(reply.entries.into_iter().map(|e| e.volume_id));
        token = reply.next_token;
        if token.is_empty() {
            break;
        }
    }
    let mut ill = ids[1..].to_vec();
    ill.sort();
    assert_eq!(listed, ill);
    let page = |max_entries, starting_token: &str| pb::ControllerListVolumeHealthRequest {
        max_entries,
        starting_token: starting_token.to_owned(),
        ..Default::default()
    };
    let (one, all) = ("ControllerGetVolumeHealth", "ControllerListVolumeHealth");
    let mut secrets = (get(&ids[0]), page(0, ""));
    (secrets.0.secrets, secrets.1.secrets) = (long_map(), long_map());
    let rows = vec![
        row("no id", one, &get(""), Code::InvalidArgument, "volume_id"),
        row(
            "long id",
            one,
            &get(&long(129)),
            Code::InvalidArgument,
            "volume_id",
        ),
        row("unknown", one, &get(UNKNOWN), Code::NotFound, UNKNOWN),
        row("long secrets", one, &secrets.0, Code::InvalidArgument, "secrets"),
        row(
            "negative",
            all,
            &page(-1, ""),
            Code::InvalidArgument,
            "max_entries",
        ),
        row("bad token", all, &page(0, "x"), Code::Aborted, "starting_token"),
        row("long secrets", all, &secrets.1, Code::InvalidArgument, "secrets"),
    ];
    check(&driver.channel().await, rows).await;
}

#[tokio::test]
async fn every_role_names_the_same_capabilities_and_is_itself() {
    let mut seen = Vec::new();
    for role in ["all", "controller", "node"] {
        let driver = Driver::in_folder(tempfile::tempdir().unwrap(), role, "csi.sock");
        let mut identity = IdentityClient::new(driver.channel().await);
        let info = identity
            .get_plugin_info(pb::GetPluginInfoRequest {})
            .await
            .unwrap()
            .into_inner();
        assert_eq!(info.name, "holdfast.csi");
        assert!(!info.vendor_version.is_empty());
        let probe = identity.probe(pb::ProbeRequest {}).await.unwrap().into_inner();
        assert_eq!(probe.ready, Some(true));
        let reply = identity
            .get_plugin_capabilities(pb::GetPluginCapabilitiesRequest {})
            .await
            .unwrap();
        seen.push(reply.into_inner().capabilities);
    }
    use pb::plugin_capability::{Type, service};
    let service = |wanted: service::Type| {
        seen[0]
            .iter()
            .any(|c| matches!(&c.r#type, Some(Type::Service(s)) if s.r#type() == wanted))
    };
    assert!(service(service::Type::ControllerService));
    assert!(service(service::Type::VolumeAccessibilityConstraints));
    assert!(seen.iter().all(|other| *other == seen[0]), "{seen:?}");
}

#[tokio::test]
async fn probe_fails_while_the_data_folder_is_away() {
    let driver = Driver::start();
    let mut identity = IdentityClient::new(driver.channel().await);
    let (here, away) = (driver.path("data"), driver.path("away"));
    std::fs::rename(&here, &away).unwrap();
    let status = identity.probe(pb::ProbeRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains(&here), "{}", status.message());
    std::fs::rename(&away, &here).unwrap();
    let probe = identity.probe(pb::ProbeRequest {}).await.unwrap().into_inner();
    assert_eq!(probe.ready, Some(true));
}

/// Every method of the API answers; UNIMPLEMENTED, with a message, is that of what is not declared and of nothing else.
#[tokio::test]
async fn what_is_not_declared_is_unimplemented_and_the_rest_is_not() {
    let undeclared = [
        "CreateSnapshot",
        "DeleteSnapshot",
        "ListSnapshots",
        "GetSnapshot",
        "GroupControllerGetCapabilities",
        "CreateVolumeGroupSnapshot",
        "DeleteVolumeGroupSnapshot",
        "GetVolumeGroupSnapshot",
        "GetMetadataAllocated",
        "GetMetadataDelta",
    ];
    let driver = Driver::start();
    let channel = driver.channel().await;
    let pool = prost_reflect::DescriptorPool::decode(holdfast_proto::DESCRIPTORS).unwrap();
    for service in pool.services().filter(|s| s.full_name().starts_with("csi.v1.")) {
        // What the Node service declares is told by its own tests.
        if service.name() == "Node" {
            continue;
        }
        for method in service.methods() {
            let path = format!("/{}/{}", service.full_name(), method.name());
            let result = raw::call(&channel, &path, Vec::new()).await;
            let message = result.as_ref().err().map(|s| s.message().to_owned());
            assert_ne!(message.as_deref(), Some(""), "{path}: an error without a message");
            let unimplemented = wait_code(result) == Code::Unimplemented;
            assert_eq!(
                unimplemented,
                undeclared.contains(&method.name()),
                "{path}: {message:?}"
            );
        }
    }
    let unknown = raw::call(&channel, "/csi.v1.Controller/Nonsense", Vec::new())
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
    assert!(!unknown.message().is_empty());
}
