//! T1: NodeStageVolume and NodeUnstageVolume: once and again, with other arguments, on what is dirty, dead, lost or not ours.
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::common::*;
use holdfast_proto::csi as pb;
use pb::volume_capability::access_mode::Mode;
use tonic::{Code, Status};

async fn staged(volume: &Volume<'_>, request: pb::NodeStageVolumeRequest) -> Result<(), Status> {
    volume.node().await.node_stage_volume(request).await.map(drop)
}

fn with(volume: &Volume<'_>, mode: Mode, flags: &[&str]) -> pb::NodeStageVolumeRequest {
    pb::NodeStageVolumeRequest {
        volume_capability: Some(capability_with(volume.fs, mode, flags, "")),
        ..volume.stage_request()
    }
}

/// Staged again with anything else it exists already, and stays as it is; at another path it is in use.
async fn with_other_arguments() {
    for fs in [Some("ext4"), Some("xfs"), None] {
        let driver = Driver::start();
        let volume = Volume::staged(&driver, fs, 64 * MIB).await;
        let before = mounts_below(driver.folder.path());
        let mut others = vec![
            with(&volume, Mode::SingleNodeReaderOnly, &[]),
            with(&volume, Mode::SingleNodeMultiWriter, &[]),
        ];
        if fs.is_some() {
            others.push(with(&volume, Mode::SingleNodeWriter, &["noatime"]));
            others.push(with(&volume, Mode::SingleNodeWriter, &["discard"]));
        }
        let other_kind = if fs.is_some() { None } else { Some("ext4") };
        others.push(pb::NodeStageVolumeRequest {
            volume_capability: Some(capability(other_kind)),
            ..volume.stage_request()
        });
        for request in others {
            let shown = format!("{request:?}");
            assert_eq!(
                wait_code(staged(&volume, request).await),
                Code::AlreadyExists,
                "{shown}"
            );
        }
        std::fs::create_dir(driver.path("other")).unwrap();
        let elsewhere = pb::NodeStageVolumeRequest {
            staging_target_path: driver.path("other"),
            ..volume.stage_request()
        };
        assert_eq!(
            wait_code(staged(&volume, elsewhere).await),
            Code::FailedPrecondition
        );
        // Unstaging a path where it is not staged takes nothing away from where it is.
        let unstage = pb::NodeUnstageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: driver.path("other"),
        };
        volume.node().await.node_unstage_volume(unstage).await.unwrap();
        assert_eq!(mounts_below(driver.folder.path()), before);
        assert_eq!(loops_below(driver.folder.path()).len(), 1);
        volume.stage().await.unwrap();
        volume.gone().await;
    }
}

/// What may not reach a kernel does not, and says what it is.
async fn bad_arguments() {
    let driver = Driver::start();
    let mut volume = Volume::made(&driver, Some("ext4"), 64 * MIB).await;
    volume.attach().await.unwrap();
    std::fs::create_dir(driver.path("stage")).unwrap();
    for flag in [
        "bind",
        "remount",
        "errors=panic",
        "noload",
        "journal_path=/dev/vda",
        "x y",
        "loop",
        "nobarrier",
        "nouuid",
    ] {
        let error = staged(&volume, with(&volume, Mode::SingleNodeWriter, &[flag]))
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{flag}");
        assert!(error.message().contains(flag), "{error}");
    }
    let cases = [
        ("relative", String::from("stage"), Code::InvalidArgument),
        ("dots", driver.path("a/../stage"), Code::InvalidArgument),
        ("root", String::from("/"), Code::InvalidArgument),
        ("kernel's", String::from("/proc/x"), Code::InvalidArgument),
        ("driver's", driver.path("data/volumes"), Code::InvalidArgument),
        ("none", String::new(), Code::InvalidArgument),
        (
            "no folder",
            driver.path("no/such/stage"),
            Code::FailedPrecondition,
        ),
        ("link", driver.path("link"), Code::FailedPrecondition),
        ("file", driver.path("file"), Code::FailedPrecondition),
    ];
    symlink(driver.path("stage"), driver.path("link")).unwrap();
    std::fs::write(driver.path("file"), b"").unwrap();
    for (what, staging_target_path, expected) in cases {
        let request = pb::NodeStageVolumeRequest {
            staging_target_path,
            ..volume.stage_request()
        };
        assert_eq!(wait_code(staged(&volume, request).await), expected, "{what}");
    }
    let other_kind = pb::NodeStageVolumeRequest {
        volume_capability: Some(capability(None)),
        ..volume.stage_request()
    };
    assert_eq!(
        wait_code(staged(&volume, other_kind).await),
        Code::FailedPrecondition
    );
    assert_eq!(loops_below(driver.folder.path()), Vec::<String>::new());
    volume.gone().await;
}

/// A volume that is only ever read is empty, not an error; nobody can write to it, by mode, by flag or by attachment.
async fn only_read_from_the_first() {
    for fs in ["ext4", "xfs"] {
        for (mode, flags) in [
            (Mode::SingleNodeReaderOnly, &[][..]),
            (Mode::SingleNodeWriter, &["ro"][..]),
        ] {
            let driver = Driver::start();
            let mut volume = Volume::made(&driver, Some(fs), 64 * MIB).await;
            volume.attach().await.unwrap();
            std::fs::create_dir(driver.path("stage")).unwrap();
            for _ in 0..2 {
                staged(&volume, with(&volume, mode, flags)).await.unwrap();
                let request = pb::NodePublishVolumeRequest {
                    volume_capability: Some(capability_with(Some(fs), mode, flags, "")),
                    ..volume.publish_request("target")
                };
                volume.node().await.node_publish_volume(request).await.unwrap();
            }
            for path in ["target/x", "stage/x"] {
                assert!(
                    std::fs::write(driver.path(path), b"x").is_err(),
                    "{fs} {mode:?} {path}"
                );
            }
            let health = pb::NodeGetVolumeHealthRequest {
                volume_id: volume.id.clone(),
                ..Default::default()
            };
            volume.unpublish("target").await.unwrap();
            volume.unstage().await.unwrap();
            let reply = volume.node().await.node_get_volume_health(health).await.unwrap();
            assert!(
                reply
                    .into_inner()
                    .volume_health
                    .unwrap()
                    .health_statuses
                    .is_empty()
            );
            volume.gone().await;
        }
    }
}

/// An access mode that no volume here has is more than this one can, not a malformed request.
async fn more_than_it_can() {
    let driver = Driver::start();
    let volume = Volume::staged(&driver, Some("ext4"), 64 * MIB).await;
    for mode in [Mode::MultiNodeMultiWriter, Mode::MultiNodeReaderOnly] {
        let code = wait_code(staged(&volume, with(&volume, mode, &[])).await);
        assert_eq!(code, Code::FailedPrecondition);
        let request = pb::NodePublishVolumeRequest {
            volume_capability: Some(capability_with(Some("ext4"), mode, &[], "")),
            ..volume.publish_request("target")
        };
        let code = wait_code(volume.node().await.node_publish_volume(request).await);
        assert_eq!(code, Code::FailedPrecondition);
    }
    let long = std::collections::HashMap::from([(String::from("k"), "x".repeat(5000))]);
    let request = pb::NodeStageVolumeRequest {
        volume_context: long,
        ..volume.stage_request()
    };
    assert_eq!(wait_code(staged(&volume, request).await), Code::InvalidArgument);
    volume.gone().await;
}

/// Flags that are allowed are really applied.
async fn flags_are_applied() {
    for (fs, flags, shown) in [
        ("ext4", ["noatime", "discard"], "discard"),
        ("xfs", ["noatime", "inode32"], "inode32"),
    ] {
        let driver = Driver::start();
        let mut volume = Volume::made(&driver, Some(fs), 64 * MIB).await;
        volume.attach().await.unwrap();
        std::fs::create_dir(driver.path("stage")).unwrap();
        staged(&volume, with(&volume, Mode::SingleNodeWriter, &flags))
            .await
            .unwrap();
        let line = line_of(&driver.path("stage"));
        assert!(line.contains("noatime") && line.contains(shown), "{line}");
        let request = pb::NodePublishVolumeRequest {
            volume_capability: Some(capability_with(
                Some(fs),
                Mode::SingleNodeWriter,
                &["noatime", shown, "noexec"],
                "",
            )),
            ..volume.publish_request("target")
        };
        let refused = volume.node().await.node_publish_volume(request).await;
        assert_eq!(
            wait_code(refused),
            Code::FailedPrecondition,
            "other flags of the whole filesystem"
        );
        let request = pb::NodePublishVolumeRequest {
            volume_capability: Some(capability_with(
                Some(fs),
                Mode::SingleNodeWriter,
                &["nosuid", "noexec"],
                "",
            )),
            ..volume.publish_request("target")
        };
        for _ in 0..2 {
            volume
                .node()
                .await
                .node_publish_volume(request.clone())
                .await
                .unwrap();
        }
        let line = line_of(&driver.path("target"));
        assert!(
            ["noexec", "nosuid", "noatime"].iter().all(|f| line.contains(f)),
            "{line}"
        );
        assert!(
            !line_of(&driver.path("stage")).contains("noexec"),
            "the staging changed"
        );
        volume.gone().await;
    }
}

fn line_of(path: &str) -> String {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let found = text.lines().find(|l| l.split(' ').nth(4) == Some(path));
    found.unwrap_or_else(|| panic!("nothing at {path}")).to_owned()
}

/// A filesystem that was cut off is checked and replayed before it is used, also where it is only read.
async fn dirty_filesystems() {
    for fs in ["ext4", "xfs"] {
        for mode in [Mode::SingleNodeWriter, Mode::SingleNodeReaderOnly] {
            let driver = Driver::start();
            let volume = Volume::staged(&driver, Some(fs), 64 * MIB).await;
            std::fs::write(driver.path("stage/data"), b"kept").unwrap();
            std::fs::File::open(driver.path("stage/data"))
                .unwrap()
                .sync_all()
                .unwrap();
            let image = driver.path(&format!("data/volumes/{}.img", volume.id));
            let copy = driver.path("copy");
            assert!(
                Command::new("cp")
                    .args(["--sparse=always", &image, &copy])
                    .status()
                    .unwrap()
                    .success()
            );
            volume.unstage().await.unwrap();
            let into = std::fs::File::options().write(true).open(&image).unwrap();
            let content = std::fs::read(&copy).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&into, &content, 0).unwrap();
            staged(&volume, with(&volume, mode, &[])).await.unwrap();
            assert_eq!(
                std::fs::read(driver.path("stage/data")).unwrap(),
                b"kept",
                "{fs} {mode:?}"
            );
            let written = std::fs::write(driver.path("stage/more"), b"x");
            assert_eq!(written.is_ok(), mode == Mode::SingleNodeWriter, "{fs} {mode:?}");
            volume.gone().await;
        }
    }
}

/// A filesystem that shut down in use is reported, refused to new pods, and whole again when it is staged anew.
async fn dead_filesystems() {
    for fs in ["ext4", "xfs"] {
        let driver = Driver::start();
        let volume = Volume::staged(&driver, Some(fs), 64 * MIB).await;
        std::fs::write(driver.path("stage/data"), b"kept").unwrap();
        std::fs::File::open(driver.path("stage/data"))
            .unwrap()
            .sync_all()
            .unwrap();
        let health = || async {
            let request = pb::NodeGetVolumeHealthRequest {
                volume_id: volume.id.clone(),
                volume_publish_path: driver.path("stage"),
                ..Default::default()
            };
            let reply = volume.node().await.node_get_volume_health(request).await.unwrap();
            let found = reply.into_inner().volume_health.unwrap().health_statuses;
            found.into_iter().map(|s| s.reason).collect::<Vec<_>>()
        };
        assert_eq!(health().await, Vec::<String>::new());
        let status = Command::new("xfs_io")
            .args(["-x", "-c", "shutdown -f", &driver.path("stage")])
            .status();
        assert!(status.unwrap().success());
        assert_eq!(health().await, ["FilesystemShutDown"]);
        assert_eq!(
            wait_code(volume.publish("target", false).await),
            Code::FailedPrecondition
        );
        staged(&volume, volume.stage_request()).await.unwrap();
        assert_eq!(health().await, Vec::<String>::new());
        volume.publish("target", false).await.unwrap();
        assert_eq!(std::fs::read(driver.path("target/data")).unwrap(), b"kept");
        volume.gone().await;
    }
}

/// A staging that somebody undid by hand is made again while a pod has the volume, and nothing else changes.
async fn half_undone() {
    let driver = Driver::start();
    let volume = Volume::staged(&driver, Some("ext4"), 64 * MIB).await;
    volume.publish("target", false).await.unwrap();
    assert!(
        Command::new("umount")
            .arg(driver.path("stage"))
            .status()
            .unwrap()
            .success()
    );
    volume.stage().await.unwrap();
    volume.publish("target", false).await.unwrap();
    assert_eq!(mounts_below(driver.folder.path()), 2);
    assert_eq!(loops_below(driver.folder.path()).len(), 1);
    assert!(
        Command::new("umount")
            .arg(driver.path("stage"))
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(
        wait_code(volume.unstage().await),
        Code::FailedPrecondition,
        "a pod has it"
    );
    volume.gone().await;
}

/// A volume without its image says so, and a restored one works again.
async fn lost_image() {
    let driver = Driver::start();
    let mut volume = Volume::made(&driver, Some("ext4"), 64 * MIB).await;
    volume.attach().await.unwrap();
    let image = driver.path(&format!("data/volumes/{}.img", volume.id));
    std::fs::rename(&image, driver.path("aside")).unwrap();
    let error = volume.stage().await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("image"), "{error}");
    std::fs::rename(driver.path("aside"), &image).unwrap();
    volume.stage().await.unwrap();
    // Lost while in use, it is undone all the same.
    std::fs::remove_file(&image).unwrap();
    volume.unpublish("target").await.unwrap();
    volume.unstage().await.unwrap();
    assert_eq!(mounts_below(driver.folder.path()), 0);
    assert_eq!(
        loops_below(driver.folder.path()),
        Vec::<String>::new(),
        "the device of a lost image stays"
    );
    volume.detach().await.unwrap();
    volume.delete().await.unwrap();
}

/// Something else at the staging path is not mounted over.
async fn a_stranger_at_the_path() {
    let driver = Driver::start();
    let mut volume = Volume::made(&driver, Some("ext4"), 64 * MIB).await;
    volume.attach().await.unwrap();
    std::fs::create_dir(driver.path("stage")).unwrap();
    let stage = driver.path("stage");
    assert!(
        Command::new("mount")
            .args(["-t", "tmpfs", "holdfast-test", &stage])
            .status()
            .unwrap()
            .success()
    );
    let error = volume.stage().await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("tmpfs"), "{error}");
    assert_eq!(loops_below(driver.folder.path()), Vec::<String>::new());
    assert!(Command::new("umount").arg(&stage).status().unwrap().success());
    volume.stage().await.unwrap();
    volume.gone().await;
    assert!(Path::new(&stage).is_dir(), "the staging folder is the CO's");
}

pub fn cases() -> Vec<Case> {
    vec![
        ("with_other_arguments", || run(with_other_arguments())),
        ("bad_arguments", || run(bad_arguments())),
        ("only_read_from_the_first", || run(only_read_from_the_first())),
        ("more_than_it_can", || run(more_than_it_can())),
        ("flags_are_applied", || run(flags_are_applied())),
        ("dirty_filesystems", || run(dirty_filesystems())),
        ("dead_filesystems", || run(dead_filesystems())),
        ("half_undone", || run(half_undone())),
        ("lost_image", || run(lost_image())),
        ("a_stranger_at_the_path", || run(a_stranger_at_the_path())),
    ]
}
