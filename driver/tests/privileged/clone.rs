//! T1: volumes made of other volumes, and attributes changed during a volume's life, by what is seen on the node.
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::*;
use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_client::ControllerClient;
use holdfast_proto::csi::identity_client::IdentityClient;
use holdfast_proto::csi::node_client::NodeClient;
use pb::volume_content_source::{Type as SourceType, VolumeSource};
use tonic::Code;
use tonic::transport::Channel;

type Controller = ControllerClient<Channel>;

async fn controller(driver: &Driver) -> Controller {
    ControllerClient::new(driver.channel().await)
}

fn clone_of(source: &str, name: &str, fs: Option<&str>, bytes: i64) -> pb::CreateVolumeRequest {
    pb::CreateVolumeRequest {
        volume_content_source: Some(pb::VolumeContentSource {
            r#type: Some(SourceType::Volume(VolumeSource {
                volume_id: source.to_owned(),
            })),
        }),
        ..create(name, fs, bytes, 0)
    }
}

async fn made(driver: &Driver, request: pb::CreateVolumeRequest) -> String {
    let reply = controller(driver).await.create_volume(request).await.unwrap();
    reply.into_inner().volume.unwrap().volume_id
}

/// A volume at a target of its own, for as long as the test wants.
struct Used<'a> {
    driver: &'a Driver,
    id: String,
    fs: Option<&'a str>,
    readonly: bool,
}

impl Used<'_> {
    fn staging(&self) -> String {
        self.driver.path(&format!("stage-{}", self.id))
    }

    fn target(&self) -> PathBuf {
        self.driver.path(&format!("target-{}", self.id)).into()
    }

    async fn attach(&self) -> HashMap<String, String> {
        let request = pb::ControllerPublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: String::from("n1"),
            volume_capability: Some(capability(self.fs)),
            readonly: self.readonly,
            ..Default::default()
        };
        let reply = controller(self.driver)
            .await
            .controller_publish_volume(request)
            .await;
        reply.unwrap().into_inner().publish_context
    }

    async fn stage(&self, context: HashMap<String, String>) -> Result<(), tonic::Status> {
        std::fs::create_dir_all(self.staging()).unwrap();
        let request = pb::NodeStageVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: context,
            staging_target_path: self.staging(),
            volume_capability: Some(capability(self.fs)),
            ..Default::default()
        };
        let mut node = NodeClient::new(self.driver.channel().await);
        node.node_stage_volume(request).await.map(drop)
    }

    async fn up(&self) {
        let context = self.attach().await;
        self.stage(context.clone()).await.unwrap();
        let request = pb::NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: context,
            staging_target_path: self.staging(),
            target_path: self.target().display().to_string(),
            volume_capability: Some(capability(self.fs)),
            ..Default::default()
        };
        let mut node = NodeClient::new(self.driver.channel().await);
        node.node_publish_volume(request).await.unwrap();
    }

    async fn down(&self) {
        let mut node = NodeClient::new(self.driver.channel().await);
        let (volume_id, target_path) = (self.id.clone(), self.target().display().to_string());
        node.node_unpublish_volume(pb::NodeUnpublishVolumeRequest {
            volume_id,
            target_path,
        })
        .await
        .unwrap();
        let (volume_id, staging_target_path) = (self.id.clone(), self.staging());
        node.node_unstage_volume(pb::NodeUnstageVolumeRequest {
            volume_id,
            staging_target_path,
        })
        .await
        .unwrap();
        let request = pb::ControllerUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: String::from("n1"),
            ..Default::default()
        };
        controller(self.driver)
            .await
            .controller_unpublish_volume(request)
            .await
            .unwrap();
    }

    async fn gone(self) {
        self.down().await;
        assert_eq!(wait_code(delete(self.driver, &self.id).await), Code::Ok);
    }
}

async fn delete(driver: &Driver, id: &str) -> Result<(), tonic::Status> {
    let request = pb::DeleteVolumeRequest {
        volume_id: id.to_owned(),
        ..Default::default()
    };
    controller(driver).await.delete_volume(request).await.map(drop)
}

fn image(driver: &Driver, id: &str) -> PathBuf {
    driver.path(&format!("data/volumes/{id}.img")).into()
}

/// Compared as a whole, and never printed.
fn is_equal(one: &Path, other: &Path) -> bool {
    std::fs::read(one).unwrap() == std::fs::read(other).unwrap()
}

/// Writes an image full of data, each MiB another.
fn fill(path: &Path, mebibytes: usize) {
    use std::io::Write;
    let mut block = noise(1 << 20, 5);
    let mut file = std::fs::File::options().write(true).open(path).unwrap();
    for number in 0..mebibytes {
        block[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all(&block).unwrap();
    }
}

/// Bytes that compress to nothing and repeat nowhere.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..bytes / 8).flat_map(|_| next()).collect()
}

/// Content and filesystem, of the same size and of a larger one, source and clones in use at once.
async fn filesystem(fs: &'static str, bytes: i64) {
    let driver = Driver::start();
    let source = Used {
        id: made(&driver, create("source", Some(fs), bytes, 0)).await,
        driver: &driver,
        fs: Some(fs),
        readonly: false,
    };
    source.up().await;
    let data = noise(5 << 20, 7);
    std::fs::write(source.target().join("data"), &data).unwrap();
    source.down().await;

    let mut clones = Vec::new();
    for (name, size) in [("same", bytes), ("larger", 2 * bytes)] {
        let request = clone_of(&source.id, name, Some(fs), size);
        let id = made(&driver, request.clone()).await;
        assert_eq!(made(&driver, request).await, id, "asked for again");
        clones.push((
            Used {
                id,
                driver: &driver,
                fs: Some(fs),
                readonly: false,
            },
            size,
        ));
    }
    source.up().await;
    std::fs::write(source.target().join("data"), b"changed afterwards").unwrap();
    for (clone, size) in &clones {
        clone.up().await;
        assert!(
            std::fs::read(clone.target().join("data")).unwrap() == data,
            "content differs"
        );
        let now = nix::sys::statvfs::statvfs(&clone.target()).unwrap();
        let bytes = i64::try_from(now.blocks() * now.fragment_size()).unwrap();
        // The rest is what a filesystem keeps for itself.
        assert!(bytes * 4 > size * 3, "{bytes} of {size}");
        std::fs::write(clone.target().join("own"), b"x").unwrap();
    }
    assert!(!source.target().join("own").exists());
    for (clone, _) in clones {
        clone.gone().await;
    }
    source.gone().await;
    nothing_left(&driver);
}

/// A clone larger than its source has its size also where it is only ever read.
async fn read_only(fs: &'static str, bytes: i64) {
    let driver = Driver::start();
    let mut used = Used {
        id: made(&driver, create("source", Some(fs), bytes, 0)).await,
        driver: &driver,
        fs: Some(fs),
        readonly: false,
    };
    used.up().await;
    std::fs::write(used.target().join("data"), b"kept").unwrap();
    used.down().await;
    let source = used.id.clone();
    used.id = made(&driver, clone_of(&source, "larger", Some(fs), 2 * bytes)).await;
    used.readonly = true;
    for _ in 0..2 {
        used.up().await;
        let now = nix::sys::statvfs::statvfs(&used.target()).unwrap();
        let size = i64::try_from(now.blocks() * now.fragment_size()).unwrap();
        assert!(size * 4 > 2 * bytes * 3, "{size} of {}", 2 * bytes);
        assert_eq!(std::fs::read(used.target().join("data")).unwrap(), b"kept");
        assert!(
            std::fs::write(used.target().join("data"), b"x").is_err(),
            "written to"
        );
        let staged = std::path::PathBuf::from(used.staging()).join("data");
        assert!(std::fs::write(staged, b"x").is_err(), "staged writable");
        used.down().await;
    }
    for id in [&used.id, &source] {
        delete(&driver, id).await.unwrap();
    }
    nothing_left(&driver);
}

async fn device() {
    let driver = Driver::start();
    let source = made(&driver, create("source", None, 64 * MIB, 0)).await;
    let file = std::fs::File::options()
        .write(true)
        .open(image(&driver, &source))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &noise(1 << 20, 3), 33 << 20).unwrap();
    drop(file);
    let same = made(&driver, clone_of(&source, "same", None, 64 * MIB)).await;
    let any = pb::CreateVolumeRequest {
        capacity_range: None,
        ..clone_of(&source, "any size", None, 0)
    };
    let any = made(&driver, any).await;
    for clone in [&same, &any] {
        assert!(is_equal(&image(&driver, clone), &image(&driver, &source)));
        let blocks = |id: &str| image(&driver, id).metadata().unwrap().blocks();
        assert!(
            blocks(clone) <= blocks(&source) + 64,
            "{} blocks of {}",
            blocks(clone),
            blocks(&source)
        );
    }
    // A clone is a volume like any other: its source may go.
    delete(&driver, &source).await.unwrap();
    let used = Used {
        id: made(&driver, clone_of(&same, "of a clone", None, 128 * MIB)).await,
        driver: &driver,
        fs: None,
        readonly: false,
    };
    used.up().await;
    let device = std::fs::read(used.target()).unwrap();
    assert_eq!(device.len(), 128 << 20);
    assert!(device[33 << 20..34 << 20] == noise(1 << 20, 3)[..]);
    used.gone().await;
    // The name finds it though the source is gone.
    assert_eq!(
        made(&driver, clone_of(&source, "same", None, 64 * MIB)).await,
        same
    );
}

async fn refused() {
    let driver = Driver::start();
    let source = Used {
        id: made(&driver, create("source", Some("ext4"), 64 * MIB, 0)).await,
        driver: &driver,
        fs: Some("ext4"),
        readonly: false,
    };
    let mut controller = controller(&driver).await;
    let mut refused = async |request: pb::CreateVolumeRequest, code: Code, names: &str| {
        let status = controller.create_volume(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{}", status.message());
        assert!(status.message().contains(names), "{}", status.message());
        let left = std::fs::read_dir(driver.path("data/volumes")).unwrap().count();
        assert_eq!(left, 2, "a refused clone left a file");
    };
    let of = |fs, bytes| clone_of(&source.id, "clone", fs, bytes);
    refused(of(Some("ext4"), 32 * MIB), Code::OutOfRange, "capacity_range").await;
    refused(
        of(Some("xfs"), 512 * MIB),
        Code::InvalidArgument,
        "volume_content_source",
    )
    .await;
    refused(of(None, 64 * MIB), Code::InvalidArgument, "volume_content_source").await;
    // Attached is not written yet, staged may be at any moment.
    let context = source.attach().await;
    let attached = made(&driver, clone_of(&source.id, "attached", Some("ext4"), 64 * MIB)).await;
    delete(&driver, &attached).await.unwrap();
    source.stage(context).await.unwrap();
    refused(of(Some("ext4"), 64 * MIB), Code::FailedPrecondition, "unstaged").await;
    source.down().await;
    made(&driver, of(Some("ext4"), 64 * MIB)).await;
}

/// While a large copy runs, its source stays as it is and is neither staged nor deleted; nothing else waits for it.
async fn beside_a_copy() {
    let driver = Driver::start();
    let size = 512_i64 << 20;
    let source = Used {
        id: made(&driver, create("source", None, size, 0)).await,
        driver: &driver,
        fs: None,
        readonly: false,
    };
    fill(&image(&driver, &source.id), 512);
    let context = source.attach().await;
    let mut copying = controller(&driver).await;
    let request = clone_of(&source.id, "clone", None, size);
    let copy = tokio::spawn(async move { copying.create_volume(request).await });
    let temporary = driver.folder.path().join("data/volumes");
    let since = Instant::now();
    while !std::fs::read_dir(&temporary)
        .unwrap()
        .flatten()
        .any(|e| e.path().to_string_lossy().ends_with(".img.tmp"))
    {
        assert!(since.elapsed() < Duration::from_secs(10), "no copy begins");
        tokio::task::yield_now().await;
    }
    let mut controller = controller(&driver).await;
    let mut identity = IdentityClient::new(driver.channel().await);
    assert_eq!(
        wait_code(delete(&driver, &source.id).await),
        Code::FailedPrecondition
    );
    let mut longest = Duration::ZERO;
    let mut looks = 0;
    let expansion = pb::ControllerExpandVolumeRequest {
        volume_id: source.id.clone(),
        capacity_range: Some(pb::CapacityRange {
            required_bytes: size + MIB,
            limit_bytes: 0,
        }),
        ..Default::default()
    };
    controller.controller_expand_volume(expansion).await.unwrap();
    while !copy.is_finished() {
        let since = Instant::now();
        controller
            .list_volumes(pb::ListVolumesRequest::default())
            .await
            .unwrap();
        identity.probe(pb::ProbeRequest {}).await.unwrap();
        longest = longest.max(since.elapsed());
        looks += 1;
    }
    let clone = copy.await.unwrap().unwrap().into_inner().volume.unwrap();
    assert!(looks > 3, "the copy was over before anything was asked beside it");
    assert!(
        longest < Duration::from_millis(500),
        "a look beside the copy took {longest:?}"
    );
    let (source_now, copied) = (
        std::fs::read(image(&driver, &source.id)).unwrap(),
        std::fs::read(image(&driver, &clone.volume_id)).unwrap(),
    );
    assert_eq!(copied.len(), 512 << 20);
    assert!(copied[..] == source_now[..512 << 20], "content differs");
    assert_eq!(clone.capacity_bytes, size);
    source.stage(context).await.unwrap();
    source.down().await;
}

/// The source cannot be staged while it is copied, by any process; afterwards it can.
async fn no_stage_during_a_copy() {
    let driver = Driver::start();
    let source = Used {
        id: made(&driver, create("source", None, 16 * MIB, 0)).await,
        driver: &driver,
        fs: None,
        readonly: false,
    };
    let context = source.attach().await;
    // What a copy in another process has.
    let reading = holdfast_driver::volume::fence::share(&image(&driver, &source.id), &[])
        .unwrap()
        .unwrap();
    let busy = source.stage(context.clone()).await.unwrap_err();
    assert_eq!(busy.code(), Code::Aborted);
    assert!(busy.message().contains("copy"), "{}", busy.message());
    // Several at once may read it.
    made(&driver, clone_of(&source.id, "clone", None, 16 * MIB)).await;
    drop(reading);
    source.stage(context).await.unwrap();
    source.down().await;
}

/// Killed in the middle of a copy, then asked again, or given up.
async fn killed_in_a_copy(asked_again: bool) {
    let mut driver = Driver::start();
    let size = 256_i64 << 20;
    let source = made(&driver, create("source", None, size, 0)).await;
    fill(&image(&driver, &source), 256);
    let mut copying = controller(&driver).await;
    let request = clone_of(&source, "clone", None, size);
    let first = request.clone();
    let copy = tokio::spawn(async move { copying.create_volume(first).await });
    let volumes = driver.folder.path().join("data/volumes");
    let partial = |volumes: &Path| {
        std::fs::read_dir(volumes).unwrap().flatten().any(|e| {
            e.path().to_string_lossy().ends_with(".img.tmp")
                && e.metadata().is_ok_and(|m| (1..400_000).contains(&m.blocks()))
        })
    };
    let since = Instant::now();
    while !partial(&volumes) {
        assert!(since.elapsed() < Duration::from_secs(10), "no copy begins");
        assert!(!copy.is_finished(), "the copy was over before it was seen");
        tokio::task::yield_now().await;
    }
    driver.kill_and_restart();
    assert!(copy.await.unwrap().is_err());
    let id = holdfast_driver::id::VolumeId::of_name("clone").to_string();
    if asked_again {
        assert_eq!(made(&driver, request).await, id);
        assert!(is_equal(&image(&driver, &id), &image(&driver, &source)));
    }
    delete(&driver, &id).await.unwrap();
    delete(&driver, &source).await.unwrap();
    nothing_left(&driver);
}

/// What a changed class does is seen on the node, from the next attachment and staging on.
async fn attributes() {
    let driver = Driver::start();
    let volume = Used {
        id: made(&driver, create("a", Some("ext4"), 64 * MIB, 0)).await,
        driver: &driver,
        fs: Some("ext4"),
        readonly: false,
    };
    let modify = async |pairs: &[(&str, &str)]| {
        let request = pb::ControllerModifyVolumeRequest {
            volume_id: volume.id.clone(),
            mutable_parameters: pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..Default::default()
        };
        controller(&driver)
            .await
            .controller_modify_volume(request)
            .await
            .unwrap();
    };
    let options = || {
        let target = volume.target().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts.lines().find(|l| l.contains(&target)).unwrap().to_owned();
        line.split(' ').nth(5).unwrap().to_owned()
    };
    volume.up().await;
    assert!(options().contains("relatime"), "{}", options());
    modify(&[("access", "read-only"), ("atime", "noatime")]).await;
    // What is there stays as it is, and can be asked for again.
    volume.up().await;
    std::fs::write(volume.target().join("data"), b"kept").unwrap();
    volume.down().await;
    volume.up().await;
    assert!(
        options().contains("noatime") && options().starts_with("ro"),
        "{}",
        options()
    );
    assert_eq!(std::fs::read(volume.target().join("data")).unwrap(), b"kept");
    assert!(std::fs::write(volume.target().join("data"), b"x").is_err());
    volume.up().await;
    volume.down().await;
    modify(&[("access", "read-write")]).await;
    volume.up().await;
    assert!(
        options().contains("noatime") && options().starts_with("rw"),
        "{}",
        options()
    );
    volume.gone().await;
    nothing_left(&driver);
}

pub fn cases() -> Vec<Case> {
    vec![
        ("ext4_clones_hold_the_content_and_fill_their_size", || {
            run(filesystem("ext4", 64 * MIB))
        }),
        ("xfs_clones_hold_the_content_and_fill_their_size", || {
            run(filesystem("xfs", 300 * MIB))
        }),
        ("ext4_clones_are_grown_for_readers_too", || {
            run(read_only("ext4", 64 * MIB))
        }),
        ("xfs_clones_are_grown_for_readers_too", || {
            run(read_only("xfs", 300 * MIB))
        }),
        ("device_clones_are_equal_sparse_and_outlive_their_source", || {
            run(device())
        }),
        ("what_cannot_be_cloned_is_refused_and_leaves_nothing", || {
            run(refused())
        }),
        ("a_copy_keeps_its_source_and_holds_up_nobody", || {
            run(beside_a_copy())
        }),
        ("a_source_is_not_staged_while_it_is_copied", || {
            run(no_stage_during_a_copy())
        }),
        ("a_copy_that_was_killed_is_made_whole_when_asked_again", || {
            run(killed_in_a_copy(true))
        }),
        ("a_copy_that_was_killed_and_given_up_leaves_nothing", || {
            run(killed_in_a_copy(false))
        }),
        ("attributes_show_on_the_node_from_its_next_attachment", || {
            run(attributes())
        }),
    ]
}
