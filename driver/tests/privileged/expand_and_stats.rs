//! T1: NodeExpandVolume, NodeGetVolumeStats and the health RPCs: true numbers, and the truth about what is broken.
use std::path::Path;
use std::process::Command;

use crate::common::*;
use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_client::ControllerClient;
use pb::volume_usage::Unit;
use tonic::{Code, Status};

async fn stats(volume: &Volume<'_>, path: &str) -> Result<Vec<pb::VolumeUsage>, Status> {
    let request = pb::NodeGetVolumeStatsRequest {
        volume_id: volume.id.clone(),
        volume_path: path.to_owned(),
        ..Default::default()
    };
    let reply = volume.node().await.node_get_volume_stats(request).await?;
    Ok(reply.into_inner().usage)
}

/// Bytes and inodes of a filesystem are those of statvfs; of a device only its size is known.
async fn true_numbers() {
    for fs in ["ext4", "xfs"] {
        let driver = Driver::start();
        let volume = Volume::staged(&driver, Some(fs), 64 * MIB).await;
        volume.publish("target", false).await.unwrap();
        let of = |usage: &[pb::VolumeUsage], unit: Unit| {
            usage.iter().find(|u| u.unit == i32::from(unit)).cloned().unwrap()
        };
        let before = stats(&volume, &driver.path("target")).await.unwrap();
        assert_eq!(before.len(), 2);
        let bytes = of(&before, Unit::Bytes);
        assert!(
            bytes.used + bytes.available <= bytes.total && bytes.available > 0,
            "{bytes:?}"
        );
        std::fs::write(driver.path("target/data"), vec![7; 8 << 20]).unwrap();
        std::fs::File::open(driver.path("target/data"))
            .unwrap()
            .sync_all()
            .unwrap();
        let after = stats(&volume, &driver.path("target")).await.unwrap();
        assert!(
            of(&after, Unit::Bytes).used >= bytes.used + (8 << 20),
            "{after:?}"
        );
        assert_eq!(of(&after, Unit::Inodes).used, of(&before, Unit::Inodes).used + 1);
        assert_eq!(stats(&volume, &driver.path("stage")).await.unwrap(), after);
        volume.gone().await;
    }
    let driver = Driver::start();
    let volume = Volume::staged(&driver, None, 16 * MIB).await;
    volume.publish("target", false).await.unwrap();
    let usage = stats(&volume, &driver.path("target")).await.unwrap();
    assert_eq!(usage.len(), 1);
    assert_eq!((usage[0].total, usage[0].unit), (16 * MIB, Unit::Bytes.into()));
    volume.gone().await;
}

/// Where a volume is not, there is nothing to tell of it.
async fn not_there() {
    let driver = Driver::start();
    let volume = Volume::staged(&driver, Some("ext4"), 64 * MIB).await;
    volume.publish("target", false).await.unwrap();
    std::fs::create_dir(driver.path("folder")).unwrap();
    for path in [
        driver.path("folder"),
        driver.path("none/such"),
        driver.path("target/below"),
        String::from("/"),
        String::from("target"),
    ] {
        assert_eq!(wait_code(stats(&volume, &path).await), Code::NotFound, "{path}");
        let expand = pb::NodeExpandVolumeRequest {
            volume_id: volume.id.clone(),
            volume_path: path.clone(),
            ..Default::default()
        };
        let code = wait_code(volume.node().await.node_expand_volume(expand).await);
        assert_eq!(code, Code::NotFound, "{path}");
        let health = pb::NodeGetVolumeHealthRequest {
            volume_id: volume.id.clone(),
            volume_publish_path: path.clone(),
            ..Default::default()
        };
        let code = wait_code(volume.node().await.node_get_volume_health(health).await);
        assert_eq!(code, Code::NotFound, "{path}");
    }
    let stranger = Volume {
        driver: &driver,
        id: String::from("v00000000000000000000000000000000"),
        fs: None,
        context: std::collections::HashMap::new(),
    };
    assert_eq!(
        wait_code(stats(&stranger, &driver.path("target")).await),
        Code::NotFound
    );
    assert_eq!(wait_code(stats(&volume, "").await), Code::InvalidArgument);
    volume.gone().await;
}

async fn controller_expand(volume: &Volume<'_>, bytes: i64) {
    let request = pb::ControllerExpandVolumeRequest {
        volume_id: volume.id.clone(),
        capacity_range: Some(pb::CapacityRange {
            required_bytes: bytes,
            limit_bytes: 0,
        }),
        ..Default::default()
    };
    ControllerClient::new(volume.driver.channel().await)
        .controller_expand_volume(request)
        .await
        .unwrap();
}

async fn node_expand(volume: &Volume<'_>, range: Option<(i64, i64)>) -> Result<i64, Status> {
    let request = pb::NodeExpandVolumeRequest {
        volume_id: volume.id.clone(),
        volume_path: volume.driver.path("target"),
        staging_target_path: volume.driver.path("stage"),
        capacity_range: range.map(|(required_bytes, limit_bytes)| pb::CapacityRange {
            required_bytes,
            limit_bytes,
        }),
        volume_capability: Some(capability(volume.fs)),
        ..Default::default()
    };
    let reply = volume.node().await.node_expand_volume(request).await?;
    Ok(reply.into_inner().capacity_bytes)
}

/// A device in use gets its image's new size, for writers and readers.
async fn a_device_grows_in_use() {
    let driver = Driver::start();
    let volume = Volume::staged(&driver, None, 16 * MIB).await;
    volume.publish("target", false).await.unwrap();
    let size = || {
        let out = Command::new("blockdev")
            .args(["--getsize64", &driver.path("target")])
            .output()
            .unwrap();
        String::from_utf8(out.stdout)
            .unwrap()
            .trim()
            .parse::<i64>()
            .unwrap()
    };
    assert_eq!(size(), 16 * MIB);
    controller_expand(&volume, 48 * MIB).await;
    for range in [
        Some((48 * MIB, 0)),
        Some((16 * MIB, 0)),
        None,
        Some((0, 64 * MIB)),
    ] {
        assert_eq!(node_expand(&volume, range).await.unwrap(), 48 * MIB, "{range:?}");
        assert_eq!(size(), 48 * MIB);
    }
    let unfit = [
        ("more than there is", Some((49 * MIB, 0)), Code::OutOfRange),
        ("less than there is", Some((0, 32 * MIB)), Code::OutOfRange),
        ("limit below", Some((48 * MIB, 32 * MIB)), Code::InvalidArgument),
        ("negative", Some((-1, 0)), Code::InvalidArgument),
    ];
    for (what, range, expected) in unfit {
        assert_eq!(wait_code(node_expand(&volume, range).await), expected, "{what}");
    }
    let other = Volume {
        driver: &driver,
        id: volume.id.clone(),
        fs: Some("ext4"),
        context: volume.context.clone(),
    };
    assert_eq!(
        wait_code(node_expand(&other, None).await),
        Code::InvalidArgument,
        "another access type"
    );
    volume.gone().await;
}

/// XFS grows in use; a mounted ext4 only where this process may, and else says what is missing. Both grow when staged.
async fn filesystems_grow() {
    for fs in ["ext4", "xfs"] {
        let driver = Driver::start();
        let volume = Volume::staged(&driver, Some(fs), 300 * MIB).await;
        volume.publish("target", false).await.unwrap();
        controller_expand(&volume, 700 * MIB).await;
        let size = || {
            let stat = nix::sys::statvfs::statvfs(Path::new(&driver.path("target"))).unwrap();
            i64::try_from(stat.blocks() * stat.fragment_size()).unwrap()
        };
        match node_expand(&volume, Some((700 * MIB, 0))).await {
            Ok(bytes) => assert_eq!((bytes, size() > 600 * MIB), (700 * MIB, true), "{fs}"),
            Err(error) => {
                assert_eq!((fs, error.code()), ("ext4", Code::FailedPrecondition), "{error}");
                assert!(error.message().contains("CAP_SYS_RESOURCE"), "{error}");
                assert!(size() < 400 * MIB);
            }
        }
        std::fs::write(driver.path("target/data"), b"kept").unwrap();
        volume.unpublish("target").await.unwrap();
        volume.unstage().await.unwrap();
        volume.stage().await.unwrap();
        volume.publish("target", true).await.unwrap();
        assert!(size() > 600 * MIB, "{fs}: {}", size());
        assert_eq!(std::fs::read(driver.path("target/data")).unwrap(), b"kept");
        assert_eq!(
            node_expand(&volume, Some((700 * MIB, 0))).await.unwrap(),
            700 * MIB
        );
        // Through a target that only reads, if the staging may be written.
        if fs == "xfs" {
            controller_expand(&volume, 900 * MIB).await;
            assert_eq!(
                node_expand(&volume, Some((900 * MIB, 0))).await.unwrap(),
                900 * MIB
            );
            assert!(size() > 800 * MIB);
        }
        volume.gone().await;
    }
}

async fn reasons(volume: &Volume<'_>, path: &str) -> Vec<String> {
    let request = pb::NodeGetVolumeHealthRequest {
        volume_id: volume.id.clone(),
        volume_publish_path: path.to_owned(),
        ..Default::default()
    };
    let reply = volume.node().await.node_get_volume_health(request).await.unwrap();
    let found = reply.into_inner().volume_health.unwrap();
    assert_eq!(found.volume_id, volume.id);
    for status in &found.health_statuses {
        assert!(!status.message.is_empty() && status.status != 0, "{status:?}");
    }
    found.health_statuses.into_iter().map(|s| s.reason).collect()
}

/// What is broken is told, with its name; what is whole is an empty list.
async fn health() {
    let driver = Driver::start();
    let volume = Volume::staged(&driver, Some("ext4"), 64 * MIB).await;
    volume.publish("target", false).await.unwrap();
    let target = driver.path("target");
    for path in [target.as_str(), &driver.path("stage"), ""] {
        assert_eq!(reasons(&volume, path).await, Vec::<String>::new(), "{path}");
    }
    // ext4 itself turns read-only when it finds an error (errors=remount-ro).
    assert!(
        Command::new("mount")
            .args(["-o", "remount,ro", &driver.path("stage")])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(reasons(&volume, &target).await, ["FilesystemReadOnly"]);
    assert!(
        Command::new("mount")
            .args(["-o", "remount,rw", &driver.path("stage")])
            .status()
            .unwrap()
            .success()
    );
    let image = driver.path(&format!("data/volumes/{}.img", volume.id));
    let aside = driver.path("aside");
    std::fs::hard_link(&image, &aside).unwrap();
    std::fs::remove_file(&image).unwrap();
    assert_eq!(reasons(&volume, &target).await, ["ImageMissing"]);
    std::fs::rename(&aside, &image).unwrap();
    std::fs::File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(32 << 20)
        .unwrap();
    assert_eq!(reasons(&volume, &target).await, ["ImageTooShort"]);
    std::fs::File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    volume.gone().await;

    let volume = Volume::staged(&driver, None, 16 * MIB).await;
    volume.publish("target", false).await.unwrap();
    assert_eq!(reasons(&volume, &target).await, Vec::<String>::new());
    assert_eq!(
        reasons(&volume, &driver.path("stage")).await,
        Vec::<String>::new()
    );
    for device in loops_below(driver.folder.path()) {
        assert!(
            Command::new("losetup")
                .args(["-d", &device])
                .status()
                .unwrap()
                .success()
        );
    }
    assert_eq!(reasons(&volume, &target).await, ["DeviceGone"]);
    volume.gone().await;

    let storage = || async {
        let request = pb::NodeGetStorageHealthRequest::default();
        let reply = volume
            .node()
            .await
            .node_get_storage_health(request)
            .await
            .unwrap();
        let found = reply.into_inner().backend_health;
        found.into_iter().map(|h| h.reason).collect::<Vec<_>>()
    };
    assert_eq!(storage().await, Vec::<String>::new());
    std::fs::rename(driver.path("data/volumes"), driver.path("gone")).unwrap();
    assert_eq!(storage().await, ["DataFolderUnreachable"]);
    std::fs::rename(driver.path("gone"), driver.path("data/volumes")).unwrap();
}

pub fn cases() -> Vec<Case> {
    vec![
        ("true_numbers", || run(true_numbers())),
        ("not_there", || run(not_there())),
        ("a_device_grows_in_use", || run(a_device_grows_in_use())),
        ("filesystems_grow", || run(filesystems_grow())),
        ("health", || run(health())),
    ]
}
