//! CreateVolume and DeleteVolume.
use super::*;
use crate::common::raw::{Row, check, row};
use crate::common::*;

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
