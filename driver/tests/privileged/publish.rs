//! T1: NodePublishVolume and NodeUnpublishVolume: one target or several, the same or other arguments, odd and hostile paths.
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::common::*;
use holdfast_proto::csi as pb;
use pb::volume_capability::access_mode::Mode;
use tonic::{Code, Status};

async fn published(volume: &Volume<'_>, request: pb::NodePublishVolumeRequest) -> Result<(), Status> {
    volume.node().await.node_publish_volume(request).await.map(drop)
}

fn mode_request(volume: &Volume<'_>, target: &str, mode: Mode) -> pb::NodePublishVolumeRequest {
    pb::NodePublishVolumeRequest {
        volume_capability: Some(capability_with(volume.fs, mode, &[], "")),
        ..volume.publish_request(target)
    }
}

/// The same target with the same arguments is the same publication; with others it exists already.
async fn the_same_target() {
    for fs in [Some("ext4"), Some("xfs"), None] {
        let driver = Driver::start();
        let volume = Volume::staged(&driver, fs, 64 * MIB).await;
        let with = |change: fn(&mut pb::NodePublishVolumeRequest)| {
            let mut request = volume.publish_request("target");
            change(&mut request);
            request
        };
        for _ in 0..2 {
            volume.publish("target", false).await.unwrap();
        }
        let before = mounts_below(driver.folder.path());
        let mut others = vec![
            ("readonly", with(|r| r.readonly = true)),
            ("staging", with(|r| r.staging_target_path.push_str(".other"))),
            (
                "several writers",
                mode_request(&volume, "target", Mode::SingleNodeMultiWriter),
            ),
            (
                "single writer",
                mode_request(&volume, "target", Mode::SingleNodeSingleWriter),
            ),
            (
                "reader",
                mode_request(&volume, "target", Mode::SingleNodeReaderOnly),
            ),
        ];
        if fs.is_some() {
            others.push(("block", with(|r| r.volume_capability = Some(capability(None)))));
            let flags = |flags: &[&str]| pb::NodePublishVolumeRequest {
                volume_capability: Some(capability_with(volume.fs, Mode::SingleNodeWriter, flags, "")),
                ..volume.publish_request("target")
            };
            others.push(("noexec", flags(&["noexec"])));
            others.push(("noatime", flags(&["noatime"])));
            others.push(("discard", flags(&["discard"])));
        } else {
            others.push((
                "mount",
                with(|r| r.volume_capability = Some(capability(Some("ext4")))),
            ));
        }
        let other_fs = if fs == Some("xfs") { "ext4" } else { "xfs" };
        let mut request = volume.publish_request("target");
        request.volume_capability = Some(capability(Some(other_fs)));
        others.push(("filesystem", request));
        for (what, request) in others {
            let code = wait_code(published(&volume, request).await);
            assert_eq!(code, Code::AlreadyExists, "{what} on {fs:?}");
        }
        assert_eq!(mounts_below(driver.folder.path()), before);
        volume.publish("target", false).await.unwrap();
        volume.gone().await;
    }
}

/// A second target only where the access mode allows several.
async fn another_target() {
    for fs in [Some("ext4"), None] {
        for (mode, expected) in [
            (Mode::SingleNodeWriter, Code::FailedPrecondition),
            (Mode::SingleNodeSingleWriter, Code::FailedPrecondition),
            (Mode::SingleNodeReaderOnly, Code::FailedPrecondition),
            (Mode::SingleNodeMultiWriter, Code::Ok),
        ] {
            let driver = Driver::start();
            let volume = Volume::staged(&driver, fs, 64 * MIB).await;
            published(&volume, mode_request(&volume, "target", mode))
                .await
                .unwrap();
            let second = published(&volume, mode_request(&volume, "second", mode)).await;
            assert_eq!(wait_code(second), expected, "{mode:?} on {fs:?}");
            assert_eq!(Path::new(&driver.path("second")).exists(), expected == Code::Ok);
            if expected == Code::Ok {
                let reader = pb::NodePublishVolumeRequest {
                    readonly: true,
                    ..mode_request(&volume, "third", mode)
                };
                published(&volume, reader).await.unwrap();
                volume.unpublish("target").await.unwrap();
                assert!(Path::new(&driver.path("second")).exists());
                volume.unpublish("second").await.unwrap();
                volume.unpublish("third").await.unwrap();
            }
            volume.gone().await;
        }
    }
}

/// What must be there before: the staging, the attachment, the target's folder.
async fn what_must_come_first() {
    let driver = Driver::start();
    let mut volume = Volume::made(&driver, Some("ext4"), 64 * MIB).await;
    let refused = |result| assert_eq!(wait_code(result), Code::FailedPrecondition);
    refused(volume.publish("target", false).await);
    volume.attach().await.unwrap();
    refused(volume.publish("target", false).await);
    volume.stage().await.unwrap();
    for staging in [String::new(), driver.path("other")] {
        let request = pb::NodePublishVolumeRequest {
            staging_target_path: staging,
            ..volume.publish_request("target")
        };
        refused(published(&volume, request).await);
    }
    let stranger = pb::NodePublishVolumeRequest {
        volume_id: String::from("v00000000000000000000000000000000"),
        ..volume.publish_request("target")
    };
    assert_eq!(wait_code(published(&volume, stranger).await), Code::NotFound);
    refused(volume.publish("no/such/folder", false).await);
    assert!(!Path::new(&driver.path("no")).exists(), "made what the CO makes");
    for bad in ["stage", "stage/below", "data/volumes/x"] {
        let result = volume.publish(bad, false).await;
        assert_eq!(wait_code(result), Code::InvalidArgument, "{bad}");
    }
    let long = pb::NodePublishVolumeRequest {
        target_path: driver.path(&"x".repeat(300)),
        ..volume.publish_request("target")
    };
    assert_eq!(wait_code(published(&volume, long).await), Code::InvalidArgument);
    volume.gone().await;
}

/// What is staged for reading only is given to no writer, with a group or without.
async fn staged_for_reading() {
    for fs in ["ext4", "xfs"] {
        let driver = Driver::start();
        let mut volume = Volume::made(&driver, Some(fs), 64 * MIB).await;
        volume.attach().await.unwrap();
        let reader = capability_with(Some(fs), Mode::SingleNodeReaderOnly, &[], "");
        let stage = pb::NodeStageVolumeRequest {
            volume_capability: Some(reader),
            ..volume.stage_request()
        };
        volume.node().await.node_stage_volume(stage).await.unwrap();
        for group in ["", "2000"] {
            let writer = pb::NodePublishVolumeRequest {
                volume_capability: Some(capability_with(Some(fs), Mode::SingleNodeWriter, &[], group)),
                ..volume.publish_request("target")
            };
            assert_eq!(
                wait_code(published(&volume, writer).await),
                Code::FailedPrecondition
            );
            assert!(!Path::new(&driver.path("target")).exists());
        }
        let reads = mode_request(&volume, "target", Mode::SingleNodeReaderOnly);
        published(&volume, reads).await.unwrap();
        volume.gone().await;
    }
}

/// Something else at the target is neither mounted over nor removed.
async fn something_else_is_there() {
    for fs in [Some("ext4"), None] {
        let driver = Driver::start();
        let volume = Volume::staged(&driver, fs, 64 * MIB).await;
        std::fs::create_dir(driver.path("elsewhere")).unwrap();
        std::fs::write(driver.path("elsewhere/data"), b"kept").unwrap();
        symlink(driver.path("elsewhere"), driver.path("link")).unwrap();
        let wrong = if fs.is_some() { "file" } else { "folder" };
        if fs.is_some() {
            std::fs::write(driver.path("file"), b"").unwrap();
        } else {
            std::fs::create_dir(driver.path("folder")).unwrap();
        }
        std::fs::create_dir(driver.path("full")).unwrap();
        std::fs::write(driver.path("full/data"), b"kept").unwrap();
        for target in ["link", "full", wrong] {
            let before = mounts_below(driver.folder.path());
            let result = volume.publish(target, false).await;
            assert_eq!(wait_code(result), Code::FailedPrecondition, "{target} on {fs:?}");
            assert_eq!(mounts_below(driver.folder.path()), before);
        }
        assert_ne!(
            wait_code(volume.unpublish("link").await),
            Code::Ok,
            "a link is not ours"
        );
        assert_eq!(std::fs::read(driver.path("elsewhere/data")).unwrap(), b"kept");
        assert!(Path::new(&driver.path("link")).is_symlink());
        volume.gone().await;
    }
}

/// Paths of any bytes but zero are only paths.
async fn odd_paths() {
    let driver = Driver::start();
    let odd = [
        "a b",
        "tab\there",
        "line\nbreak",
        r"back\slash\040",
        "ünï-💾",
        "#hash",
        "deleted",
        "a,b:c",
    ];
    for fs in [Some("ext4"), None] {
        for name in odd {
            std::fs::create_dir_all(driver.path(name)).unwrap();
            let mut volume = Volume::made(&driver, fs, 64 * MIB).await;
            volume.attach().await.unwrap();
            let staging = driver.path(&format!("{name}/stage"));
            std::fs::create_dir_all(&staging).unwrap();
            for _ in 0..2 {
                let stage = pb::NodeStageVolumeRequest {
                    staging_target_path: staging.clone(),
                    ..volume.stage_request()
                };
                volume.node().await.node_stage_volume(stage).await.unwrap();
                let publish = pb::NodePublishVolumeRequest {
                    staging_target_path: staging.clone(),
                    ..volume.publish_request(&format!("{name}/./target"))
                };
                published(&volume, publish).await.unwrap();
            }
            let expected = if fs.is_some() { 2 } else { 1 };
            let count = std::fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .lines()
                .filter(|l| l.contains(&driver.folder.path().display().to_string()))
                .count();
            assert_eq!(count, expected, "{name:?}: mounted twice");
            volume.unpublish(&format!("{name}//target")).await.unwrap();
            assert!(!Path::new(&driver.path(&format!("{name}/target"))).exists());
            let unstage = pb::NodeUnstageVolumeRequest {
                volume_id: volume.id.clone(),
                staging_target_path: staging,
            };
            volume.node().await.node_unstage_volume(unstage).await.unwrap();
            volume.detach().await.unwrap();
            volume.delete().await.unwrap();
            nothing_left(&driver);
        }
    }
}

/// Unpublishing what was never there is done; the target goes, whatever becomes of the volume.
async fn nothing_to_unpublish() {
    let driver = Driver::start();
    let unknown = |id: &str| Volume {
        driver: &driver,
        id: id.to_owned(),
        fs: None,
        context: std::collections::HashMap::new(),
    };
    for id in ["v00000000000000000000000000000000", "somebody-elses"] {
        for target in ["none", "no/such/folder", "file/below"] {
            std::fs::write(driver.path("file"), b"x").unwrap();
            unknown(id).unpublish(target).await.unwrap();
        }
        std::fs::create_dir(driver.path("empty")).unwrap();
        unknown(id).unpublish("empty").await.unwrap();
        assert!(!Path::new(&driver.path("empty")).exists());
        unknown(id).unstage().await.unwrap();
    }
}

/// After a reboot the mounts and devices are gone, and the folders are still there: every call of a life works.
async fn after_a_reboot() {
    for fs in [Some("ext4"), Some("xfs"), None] {
        let mut driver = Driver::start();
        let (id, context) = {
            let volume = Volume::staged(&driver, fs, 64 * MIB).await;
            volume.publish("target", false).await.unwrap();
            (volume.id.clone(), volume.context.clone())
        };
        driver.process.kill().unwrap();
        driver.process.wait().unwrap();
        for path in ["target", "stage"] {
            let _ = Command::new("umount").arg(driver.path(path)).output().unwrap();
        }
        for device in loops_below(driver.folder.path()) {
            assert!(
                Command::new("losetup")
                    .args(["-d", &device])
                    .status()
                    .unwrap()
                    .success()
            );
        }
        driver.process = spawn(driver.folder.path(), "all", &driver.socket);
        let again = || Volume {
            driver: &driver,
            id: id.clone(),
            fs,
            context: context.clone(),
        };
        // Kubelet either goes on with the pod, or undoes what it remembers.
        again().unpublish("target").await.unwrap();
        again().unstage().await.unwrap();
        again().stage().await.unwrap();
        again().publish("target", false).await.unwrap();
        again().gone().await;
    }
}

/// What somebody mounted over a target is undone with it, on top of it or beneath.
async fn strangers_in_the_stack() {
    let driver = Driver::start();
    let volume = Volume::staged(&driver, Some("ext4"), 64 * MIB).await;
    volume.publish("target", false).await.unwrap();
    let run = |program: &str, args: &[&str]| {
        assert!(Command::new(program).args(args).status().unwrap().success());
    };
    let target = driver.path("target");
    std::fs::create_dir(driver.path("target/sub")).unwrap();
    run("mount", &["--bind", &driver.path("target/sub"), &target]);
    run("mount", &["-t", "tmpfs", "holdfast-test", &target]);
    volume.unpublish("target").await.unwrap();
    assert!(!Path::new(&target).exists());
    // A folder of the volume that is bound elsewhere is in the way of unstaging, and named.
    std::fs::create_dir(driver.path("sub")).unwrap();
    run(
        "mount",
        &["--bind", &driver.path("stage/sub"), &driver.path("sub")],
    );
    let error = volume.unstage().await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains(&driver.path("sub")), "{error}");
    run("umount", &[&driver.path("sub")]);
    volume.gone().await;
}

/// A target that a process still uses is busy, not torn away; when it is free the next call succeeds.
async fn a_busy_target() {
    let driver = Driver::start();
    let volume = Volume::staged(&driver, Some("ext4"), 64 * MIB).await;
    volume.publish("target", false).await.unwrap();
    let open = std::fs::File::create(driver.path("target/open")).unwrap();
    assert_eq!(wait_code(volume.unpublish("target").await), Code::Aborted);
    assert!(Path::new(&driver.path("target/open")).exists(), "torn away");
    drop(open);
    // What a pod has mounted inside is named, and not undone.
    std::fs::create_dir(driver.path("target/sub")).unwrap();
    let sub = driver.path("target/sub");
    assert!(
        Command::new("mount")
            .args(["-t", "tmpfs", "holdfast-test", &sub])
            .status()
            .unwrap()
            .success()
    );
    let error = volume.unpublish("target").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains(&sub), "{error}");
    assert!(Command::new("umount").arg(&sub).status().unwrap().success());
    volume.gone().await;
}

/// A pod of a group may write what is in the volume and what it adds; the group is given by number.
async fn the_group_may_write() {
    for fs in ["ext4", "xfs"] {
        let driver = Driver::start();
        let mut volume = Volume::made(&driver, Some(fs), 64 * MIB).await;
        volume.attach().await.unwrap();
        std::fs::create_dir(driver.path("stage")).unwrap();
        let of = |group: &str| Some(capability_with(Some(fs), Mode::SingleNodeWriter, &[], group));
        for bad in ["wheel", "-1", "1 2", "4294967295", "99999999999"] {
            let stage = pb::NodeStageVolumeRequest {
                volume_capability: of(bad),
                ..volume.stage_request()
            };
            let code = wait_code(volume.node().await.node_stage_volume(stage).await);
            assert_eq!(code, Code::InvalidArgument, "{bad}");
            let publish = pb::NodePublishVolumeRequest {
                volume_capability: of(bad),
                ..volume.publish_request("target")
            };
            assert_eq!(
                wait_code(published(&volume, publish).await),
                Code::InvalidArgument,
                "{bad}"
            );
        }
        let may = |user: u32, group: u32, script: &str| {
            let (user, group) = (format!("--reuid={user}"), format!("--regid={group}"));
            let status = Command::new("setpriv")
                .args([&user, &group, "--clear-groups", "sh", "-c", script])
                .current_dir(driver.path("target"))
                .stderr(std::process::Stdio::null())
                .status();
            status.unwrap().success()
        };
        // The folders above belong to kubelet, which lets pods through.
        for path in [".", "stage"] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(driver.path(path), mode).unwrap();
        }
        for (group, before) in [
            ("4321", ""),
            ("8765", "umask 077; mkdir -p deep/er; echo 1 > deep/er/old"),
        ] {
            let number: u32 = group.parse().unwrap();
            if !before.is_empty() {
                volume.publish("target", false).await.unwrap();
                assert!(
                    Command::new("sh")
                        .args(["-c", before])
                        .current_dir(driver.path("target"))
                        .status()
                        .unwrap()
                        .success()
                );
                volume.unpublish("target").await.unwrap();
                volume.unstage().await.unwrap();
            }
            for _ in 0..2 {
                let stage = pb::NodeStageVolumeRequest {
                    volume_capability: of(group),
                    ..volume.stage_request()
                };
                volume.node().await.node_stage_volume(stage).await.unwrap();
                let publish = pb::NodePublishVolumeRequest {
                    volume_capability: of(group),
                    ..volume.publish_request("target")
                };
                published(&volume, publish).await.unwrap();
            }
            let first = "umask 077; mkdir -p mine && echo 1 > mine/file";
            assert!(may(12345, number, first), "{group}");
            assert!(!may(777, 1, "echo 2 >> mine/file"), "another group writes");
            let second = "echo 2 >> mine/file && echo 3 > new";
            assert!(may(54321, number, second), "{group}: not writable by its group");
            if !before.is_empty() {
                let old = "echo 2 >> deep/er/old && rm deep/er/old";
                assert!(may(12345, number, old), "what was there before");
            }
            volume.unpublish("target").await.unwrap();
            volume.unstage().await.unwrap();
            volume.stage().await.unwrap();
        }
        volume.gone().await;
    }
}

pub fn cases() -> Vec<Case> {
    vec![
        ("the_same_target", || run(the_same_target())),
        ("another_target", || run(another_target())),
        ("what_must_come_first", || run(what_must_come_first())),
        ("staged_for_reading", || run(staged_for_reading())),
        ("something_else_is_there", || run(something_else_is_there())),
        ("odd_paths", || run(odd_paths())),
        ("nothing_to_unpublish", || run(nothing_to_unpublish())),
        ("after_a_reboot", || run(after_a_reboot())),
        ("strangers_in_the_stack", || run(strangers_in_the_stack())),
        ("the_group_may_write", || run(the_group_may_write())),
        ("a_busy_target", || run(a_busy_target())),
    ]
}
