//! ControllerPublishVolume and ControllerUnpublishVolume.
use super::*;
use crate::common::raw::{Row, check, row};
use crate::common::*;

#[tokio::test]
async fn controller_publish_names_every_bad_field_and_repeats() {
    const PUBLISH: &str = "ControllerPublishVolume";
    let driver = Driver::start();
    let mut controller = controller(&driver).await;
    let id = made(&mut controller, block("a")).await.volume_id;
    let with = changing(attach(&id, "n1"));
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
async fn flags_that_no_node_takes_are_refused_though_the_volume_fits() {
    let driver = Driver::start();
    let mut controller = controller(&driver).await;
    let folder = create("folder", Some("ext4"), 8 * MIB, 0);
    let id = made(&mut controller, folder).await.volume_id;
    let wanted = Some(mount(|m| m.mount_flags = vec![String::from("data=writeback")]));
    let publish = changing(attach(&id, "n1"))(&|r| r.volume_capability = wanted.clone());
    let expand = changing(expand(&id, 16 * MIB, 0))(&|r| r.volume_capability = wanted.clone());
    let bad = Code::InvalidArgument;
    let rows = vec![
        row(
            "publish",
            "ControllerPublishVolume",
            &publish,
            bad,
            "data=writeback",
        ),
        row("expand", "ControllerExpandVolume", &expand, bad, "data=writeback"),
    ];
    check(&driver.channel().await, rows).await;
}
