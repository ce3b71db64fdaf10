//! T1: what the driver must never do: lose or show data that is not asked for, let two nodes write, touch what is not its own.
use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::*;
use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_client::ControllerClient;
use holdfast_proto::csi::node_client::NodeClient;
use tonic::Code;

/// A node may write for as long as its loop device lives: until then the volume is neither detached nor given away.
async fn detached_only_when_it_cannot_write() {
    let driver = Driver::start();
    for fs in [Some("ext4"), None] {
        let mut volume = Volume::made(&driver, fs, 64 * MIB).await;
        volume.attach().await.unwrap();
        volume.stage().await.unwrap();
        assert_eq!(
            wait_code(volume.detach().await),
            Code::FailedPrecondition,
            "{fs:?}"
        );
        volume.publish("target", false).await.unwrap();
        volume.gone().await;
    }
}

/// publish_context must be that of this very attachment: neither absent, nor an earlier one, nor nonsense.
async fn fenced_by_the_epoch() {
    let driver = Driver::start();
    let mut volume = Volume::made(&driver, Some("ext4"), 64 * MIB).await;
    volume.attach().await.unwrap();
    let first = volume.context.clone();
    volume.detach().await.unwrap();
    volume.attach().await.unwrap();
    let second = volume.context.clone();
    assert_ne!(first, second);
    let nonsense = second.keys().map(|k| (k.clone(), String::from("x"))).collect();
    for stale in [HashMap::new(), first, nonsense] {
        volume.context = stale;
        assert_eq!(wait_code(volume.stage().await), Code::FailedPrecondition);
    }
    volume.context = second;
    volume.stage().await.unwrap();
    volume.gone().await;
}

/// Another node's plugin, on the same kernel as in kind, neither sees the devices of this one as its own nor frees them.
async fn another_node_is_kept_out() {
    let driver = Driver::start();
    let mut volume = Volume::made(&driver, None, 16 * MIB).await;
    volume.attach().await.unwrap();
    volume.stage().await.unwrap();
    let socket = driver.folder.path().join("n2.sock");
    let mut other = spawn_node(driver.folder.path(), "node", "n2", &socket);
    let mut node = NodeClient::new(connect(&socket).await);
    let request = pb::NodeUnstageVolumeRequest {
        volume_id: volume.id.clone(),
        staging_target_path: driver.path("stage"),
    };
    node.node_unstage_volume(request).await.unwrap();
    assert_eq!(
        loops_below(driver.folder.path()).len(),
        1,
        "freed by another node"
    );
    let request = pb::ControllerPublishVolumeRequest {
        volume_id: volume.id.clone(),
        node_id: String::from("n2"),
        volume_capability: Some(capability(None)),
        ..Default::default()
    };
    let refused = ControllerClient::new(driver.channel().await)
        .controller_publish_volume(request)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("n1"), "{}", refused.message());
    other.kill().unwrap();
    other.wait().unwrap();
    volume.gone().await;
}

/// Whatever lies below a target is somebody's data, and so is another volume that is mounted there.
async fn nothing_of_others_is_removed() {
    let driver = Driver::start();
    let mut volume = Volume::made(&driver, Some("ext4"), 64 * MIB).await;
    let stranger = Volume {
        driver: &driver,
        id: String::from("0123456789abcdef0123456789abcdef"),
        fs: None,
        context: HashMap::new(),
    };
    std::fs::create_dir(driver.path("folder")).unwrap();
    std::fs::write(driver.path("folder/data"), b"kept").unwrap();
    std::fs::write(driver.path("file"), b"kept").unwrap();
    for target in ["folder", "file"] {
        assert_eq!(
            wait_code(volume.unpublish(target).await),
            Code::FailedPrecondition,
            "{target}"
        );
    }
    assert_eq!(std::fs::read(driver.path("folder/data")).unwrap(), b"kept");
    assert_eq!(std::fs::read(driver.path("file")).unwrap(), b"kept");
    volume.attach().await.unwrap();
    volume.stage().await.unwrap();
    volume.publish("target", false).await.unwrap();
    let length = volume.id.len();
    let stranger = Volume {
        id: stranger.id[..length.min(32)].to_owned(),
        ..stranger
    };
    assert_ne!(wait_code(stranger.unpublish("target").await), Code::Ok);
    assert_eq!(
        mounts_below(driver.folder.path()),
        2,
        "another volume's mount was undone"
    );
    volume.gone().await;
}

/// Stacked mounts are all undone, whoever stacked them.
async fn stacked_mounts_are_all_undone() {
    let driver = Driver::start();
    let mut volume = Volume::made(&driver, Some("ext4"), 64 * MIB).await;
    volume.attach().await.unwrap();
    volume.stage().await.unwrap();
    volume.publish("target", false).await.unwrap();
    for _ in 0..3 {
        let (from, to) = (driver.path("stage"), driver.path("target"));
        assert!(
            Command::new("mount")
                .args(["--bind", &from, &to])
                .status()
                .unwrap()
                .success()
        );
    }
    // Five, and more where mounts are shared, as systemd makes them: each then shows up at its peers too.
    assert!(mounts_below(driver.folder.path()) >= 5);
    volume.unpublish("target").await.unwrap();
    assert_eq!(mounts_below(driver.folder.path()), 1);
    volume.gone().await;
}

/// A path through a symbolic link is the same path to mountinfo: nothing is mounted twice, everything is undone.
async fn links_above_a_path_change_nothing() {
    let driver = Driver::start();
    std::fs::create_dir(driver.path("real")).unwrap();
    std::os::unix::fs::symlink(driver.path("real"), driver.path("link")).unwrap();
    let mut volume = Volume::made(&driver, Some("ext4"), 64 * MIB).await;
    volume.attach().await.unwrap();
    volume.stage().await.unwrap();
    for target in ["link/target", "real/target", "link/target"] {
        volume.publish(target, false).await.unwrap();
    }
    assert_eq!(mounts_below(driver.folder.path()), 2);
    volume.unpublish("link/target").await.unwrap();
    assert_eq!(mounts_below(driver.folder.path()), 1);
    volume.gone().await;
}

/// A creation that a crash cut off is undone at the next start; nobody was promised anything.
async fn a_cut_off_creation_is_undone() {
    let mut driver = Driver::start();
    let volume = Volume::made(&driver, None, 16 * MIB).await;
    let record = driver.path(&format!("data/volumes/{}.json", volume.id));
    let text = std::fs::read_to_string(&record)
        .unwrap()
        .replace("\"ready\"", "\"creating\"");
    std::fs::write(&record, text).unwrap();
    driver.kill_and_restart();
    let since = Instant::now();
    while Path::new(&record).exists() {
        assert!(
            since.elapsed() < Duration::from_secs(10),
            "{record} is still there"
        );
        std::thread::park_timeout(Duration::from_millis(5));
    }
    nothing_left(&driver);
}

/// The image of a lost record is never handed to the next volume of that name.
async fn old_data_is_not_given_to_a_new_volume() {
    let driver = Driver::start();
    let volume = Volume::made(&driver, None, 16 * MIB).await;
    let image = driver.path(&format!("data/volumes/{}.img", volume.id));
    let mut old = vec![7_u8; 4096];
    old.resize(16 << 20, 0);
    std::fs::write(&image, &old).unwrap();
    std::fs::remove_file(driver.path(&format!("data/volumes/{}.json", volume.id))).unwrap();
    let again = Volume::made(&driver, None, 16 * MIB).await;
    assert_eq!(again.id, volume.id);
    assert!(
        std::fs::read(&image).unwrap().iter().all(|b| *b == 0),
        "old data in a new volume"
    );
    let aside = driver.path(&format!("data/quarantine/{}.img", volume.id));
    assert!(std::fs::read(aside).unwrap() == old, "the old data is lost");
}

/// A device on which somebody wrote something is never formatted.
async fn data_is_never_formatted_over() {
    let driver = Driver::start();
    let mut volume = Volume::made(&driver, Some("ext4"), 64 * MIB).await;
    let image = driver.path(&format!("data/volumes/{}.img", volume.id));
    let file = std::fs::File::options().write(true).open(&image).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"precious", 32 << 20).unwrap();
    volume.attach().await.unwrap();
    assert_eq!(wait_code(volume.stage().await), Code::FailedPrecondition);
    let mut found = [0; 8];
    let file = std::fs::File::open(&image).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, 32 << 20).unwrap();
    assert_eq!(&found, b"precious");
    volume.gone().await;
}

/// An expansion is reported as done only if the filesystem has grown; where a mounted one cannot, the next staging does it.
async fn expanded_means_grown() {
    for fs in ["ext4", "xfs"] {
        let driver = Driver::start();
        let mut volume = Volume::made(&driver, Some(fs), 300 * MIB).await;
        volume.attach().await.unwrap();
        volume.stage().await.unwrap();
        volume.publish("target", false).await.unwrap();
        let range = pb::CapacityRange {
            required_bytes: 600 * MIB,
            limit_bytes: 0,
        };
        let request = pb::ControllerExpandVolumeRequest {
            volume_id: volume.id.clone(),
            capacity_range: Some(range),
            ..Default::default()
        };
        let mut controller = ControllerClient::new(driver.channel().await);
        let grown = controller
            .controller_expand_volume(request)
            .await
            .unwrap()
            .into_inner();
        assert!(grown.node_expansion_required && grown.capacity_bytes >= 600 * MIB);
        let request = || pb::NodeExpandVolumeRequest {
            volume_id: volume.id.clone(),
            volume_path: driver.path("target"),
            capacity_range: Some(range),
            ..Default::default()
        };
        let mut node = NodeClient::new(driver.channel().await);
        let online = wait_code(node.node_expand_volume(request()).await);
        let size = || {
            let stat = nix::sys::statvfs::statvfs(Path::new(&driver.path("target"))).unwrap();
            i64::try_from(stat.blocks() * stat.fragment_size()).unwrap()
        };
        assert_eq!(
            online == Code::Ok,
            size() > 450 * MIB,
            "{fs}: {online:?}, {} bytes",
            size()
        );
        assert!(
            matches!(online, Code::Ok | Code::FailedPrecondition),
            "{fs}: {online:?}"
        );
        volume.unpublish("target").await.unwrap();
        volume.unstage().await.unwrap();
        volume.stage().await.unwrap();
        volume.publish("target", false).await.unwrap();
        assert!(size() > 450 * MIB, "{fs}: not grown when staged again");
        node.node_expand_volume(request()).await.unwrap();
        volume.gone().await;
    }
}

/// On a full disk nothing new is promised, but what empties it works, also after a restart.
async fn a_full_disk_is_emptied_by_deletions() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let at = data.display().to_string();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2m", "holdfast-test", &at])
        .status();
    assert!(mounted.unwrap().success());
    // Unmounted by whoever drops the driver.
    let mut driver = Driver::in_folder(folder, "all", "csi.sock");
    let mut volume = Volume::made(&driver, None, MIB).await;
    volume.attach().await.unwrap();
    let (id, context) = (volume.id.clone(), volume.context.clone());
    let full = Command::new("dd")
        .args(["if=/dev/zero", "bs=4k", &format!("of={at}/fill")])
        .output()
        .unwrap();
    assert!(!full.status.success(), "the disk is not full");
    driver.kill_and_restart();
    let volume = Volume {
        driver: &driver,
        id,
        fs: None,
        context,
    };
    let mut controller = ControllerClient::new(driver.channel().await);
    let more = controller.create_volume(create("more", None, MIB / 4, 0)).await;
    assert_eq!(wait_code(more), Code::Unavailable);
    volume.detach().await.unwrap();
    volume.delete().await.unwrap();
    let left = std::fs::read_dir(data.join("volumes")).unwrap().count();
    assert_eq!(left, 0, "files of volumes");
}

/// Only this user gets at the socket; no secret gets into the log, at any level.
async fn secrets_stay_secret() {
    let driver = Driver::with(&["--log-level", "trace"]);
    let mode = std::fs::metadata(&driver.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let secrets = HashMap::from([(String::from("key"), String::from("canary-7f3a"))]);
    let mut controller = ControllerClient::new(driver.channel().await);
    let request = pb::CreateVolumeRequest {
        secrets: secrets.clone(),
        ..create("a", None, MIB, 0)
    };
    let id = controller
        .create_volume(request)
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap()
        .volume_id;
    let request = pb::CreateVolumeRequest {
        secrets: secrets.clone(),
        ..create("", None, MIB, 0)
    };
    controller.create_volume(request).await.unwrap_err();
    let request = pb::NodeStageVolumeRequest {
        volume_id: id.clone(),
        staging_target_path: driver.path("stage"),
        volume_capability: Some(capability(None)),
        secrets: secrets.clone(),
        volume_context: HashMap::from([(
            String::from("csi.storage.k8s.io/serviceAccount.tokens"),
            String::from("canary-7f3a"),
        )]),
        ..Default::default()
    };
    NodeClient::new(driver.channel().await)
        .node_stage_volume(request)
        .await
        .unwrap_err();
    controller
        .delete_volume(pb::DeleteVolumeRequest {
            volume_id: id.clone(),
            secrets,
        })
        .await
        .unwrap();
    let log = std::fs::read_to_string(driver.path("log")).unwrap();
    assert!(!log.contains("canary-7f3a"), "{log}");
    for word in [
        "CreateVolume",
        "NodeStageVolume",
        "DeleteVolume",
        "InvalidArgument",
        &id,
    ] {
        assert!(log.contains(word), "{word} is not in the log:\n{log}");
    }
    for line in log.lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(value.get("level").is_some());
        if value["message"] == "done" || value["message"] == "failed" {
            let span = &value["span"];
            let is_node = span["rpc"].as_str().unwrap().starts_with("Node");
            assert!(span["call"].is_number() && span["volume"].is_string(), "{line}");
            assert_eq!(span["node"], if is_node { "n1" } else { "" }, "{line}");
        }
    }
}

pub fn cases() -> Vec<Case> {
    vec![
        ("detached_only_when_it_cannot_write", || {
            run(detached_only_when_it_cannot_write())
        }),
        ("fenced_by_the_epoch", || run(fenced_by_the_epoch())),
        ("another_node_is_kept_out", || run(another_node_is_kept_out())),
        ("nothing_of_others_is_removed", || {
            run(nothing_of_others_is_removed())
        }),
        ("stacked_mounts_are_all_undone", || {
            run(stacked_mounts_are_all_undone())
        }),
        ("links_above_a_path_change_nothing", || {
            run(links_above_a_path_change_nothing())
        }),
        ("a_cut_off_creation_is_undone", || {
            run(a_cut_off_creation_is_undone())
        }),
        ("old_data_is_not_given_to_a_new_volume", || {
            run(old_data_is_not_given_to_a_new_volume())
        }),
        ("data_is_never_formatted_over", || {
            run(data_is_never_formatted_over())
        }),
        ("expanded_means_grown", || run(expanded_means_grown())),
        ("a_full_disk_is_emptied_by_deletions", || {
            run(a_full_disk_is_emptied_by_deletions())
        }),
        ("secrets_stay_secret", || run(secrets_stay_secret())),
    ]
}
