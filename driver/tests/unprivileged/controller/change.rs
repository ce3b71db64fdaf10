//! ControllerExpandVolume and ControllerModifyVolume.
use super::*;
use crate::common::raw::{Row, check, row};
use crate::common::*;

#[tokio::test]
async fn controller_expand_names_every_bad_field_and_repeats() {
    const EXPAND: &str = "ControllerExpandVolume";
    let driver = Driver::start();
    let mut controller = controller(&driver).await;
    let id = made(&mut controller, create("a", None, 8 * MIB, 0))
        .await
        .volume_id;
    let with = changing(expand(&id, 16 * MIB, 0));
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
