//! Topology, and GetCapacity by it.
use super::*;
use crate::common::raw::{Row, check, row};
use crate::common::*;

#[tokio::test]
async fn get_capacity_is_by_place_class_and_capability() {
    let driver = Driver::with(&["--topology", "topology.holdfast.csi/zone=a"]);
    let mut controller = controller(&driver).await;
    made(&mut controller, create("a", None, 1 << 30, 0)).await;
    let left = 7 << 30;
    let asked = changing(pb::GetCapacityRequest::default());
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
        (
            "no such flag",
            asked(&|r| r.volume_capabilities = vec![mount(|m| m.mount_flags = vec![String::from("bind")])]),
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
async fn a_node_that_is_gone_is_no_place_for_new_volumes() {
    let to = |name: &str| format!("n2:{ZONE}={name}");
    let args = ["--topology", &format!("{ZONE}=a"), "--topology", &to("b")];
    let driver = Driver::with(&args);
    let socket = driver.folder.path().join("n2.sock");
    let come = || spawn_with(driver.folder.path(), "node", "n2", &socket, &args);
    let said = |node: &str| std::fs::File::open(driver.path(&format!("data/nodes/{node}"))).unwrap();
    let an_hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let mut controller = controller(&driver).await;
    let there = |name: &str| {
        with(|r| {
            r.name = name.to_owned();
            r.accessibility_requirements = at(&[&[(ZONE, "b")]], &[]);
        })
    };
    let mut other = come();
    let volume = made(&mut controller, there("before")).await.volume_id;
    other.kill().unwrap();
    other.wait().unwrap();
    made(&mut controller, there("a node that restarts is not gone")).await;
    said("n2").set_modified(an_hour_ago).unwrap();
    let left = async |controller: &mut Controller| {
        let request = pb::GetCapacityRequest {
            accessible_topology: Some(place(&[(ZONE, "b")])),
            ..Default::default()
        };
        let reply = controller.get_capacity(request).await.unwrap().into_inner();
        reply.available_capacity
    };
    let refused = controller.create_volume(there("after")).await;
    assert_eq!(wait_code(refused), Code::ResourceExhausted);
    assert_eq!(left(&mut controller).await, 0);
    // What is there already can be used when the node is back, and asked for again meanwhile.
    assert_eq!(
        made(&mut controller, there("before")).await.volume_id,
        volume,
        "a volume that is there"
    );
    controller
        .controller_publish_volume(attach(&volume, "n2"))
        .await
        .unwrap();
    let mut other = come();
    made(&mut controller, there("after")).await;
    assert!(left(&mut controller).await > 0);
    // A plugin that runs says so.
    said("n2").set_modified(an_hour_ago).unwrap();
    let since = std::time::Instant::now();
    while said("n2").metadata().unwrap().modified().unwrap() == an_hour_ago {
        assert!(since.elapsed().as_secs() < 30, "n2 does not say that it runs");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    other.kill().unwrap();
    other.wait().unwrap();
}
