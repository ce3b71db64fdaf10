//! What only looks: ValidateVolumeCapabilities, ListVolumes, ControllerGetVolume, health.
use super::*;
use crate::common::raw::{Row, check, row};
use crate::common::*;

#[tokio::test]
async fn validate_confirms_only_what_the_volume_is() {
    const VALIDATE: &str = "ValidateVolumeCapabilities";
    let driver = Driver::start();
    let mut controller = controller(&driver).await;
    let request = with(|r| r.mutable_parameters = map(&[("atime", "noatime")]));
    let id = made(&mut controller, request).await.volume_id;
    let with = changing(validate(&id));
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

    let mut refused: Vec<(&str, pb::ValidateVolumeCapabilitiesRequest, &str)> = vec![
        (
            "a filesystem",
            with(&|r| r.volume_capabilities = vec![mount(|_| {})]),
            "mount ext4",
        ),
        (
            "both",
            with(&|r| r.volume_capabilities.push(mount(|_| {}))),
            "access type",
        ),
        (
            "unknown parameter",
            with(&|r| r.parameters = map(&[("speed", "1")])),
            "speed",
        ),
        (
            "unknown mutable",
            with(&|r| r.mutable_parameters = map(&[("speed", "1")])),
            "speed",
        ),
        (
            "another attribute",
            with(&|r| r.mutable_parameters = map(&[("atime", "relatime")])),
            "mutable_parameters",
        ),
    ];
    for (name, capability, names) in unsupported_capabilities() {
        let request = with(&|r| r.volume_capabilities = vec![capability.clone()]);
        refused.push((name, request, names));
    }
    for (name, request, names) in refused {
        let reply = controller
            .validate_volume_capabilities(request)
            .await
            .unwrap()
            .into_inner();
        assert!(
            reply.confirmed.is_none() && reply.message.contains(names),
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
