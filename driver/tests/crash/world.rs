//! A volume's life: the calls in their order, as its callers make them, and what is there of it.
use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use holdfast_driver::id::VolumeId;
use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_client::ControllerClient;
use holdfast_proto::csi::node_client::NodeClient;
use pb::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::common::*;

/// Within this time a process that was to die is dead, and a sweep has swept.
pub const LIMIT: Duration = Duration::from_secs(10);

/// A call, as the specification calls it, and what is special about it.
pub type Call = &'static str;

/// The calls of a volume's life, in order.
pub const LIFE: [Call; 12] = [
    "CreateVolume",
    "ControllerModifyVolume",
    "ControllerPublishVolume",
    "NodeStageVolume",
    "NodePublishVolume",
    "ControllerUnpublishVolume while it is in use",
    "ControllerExpandVolume",
    "NodeExpandVolume",
    "NodeUnpublishVolume",
    "NodeUnstageVolume",
    "ControllerUnpublishVolume",
    "DeleteVolume",
];
/// What undoes everything, whatever was done.
pub const UNDO: [Call; 4] = [
    "NodeUnpublishVolume",
    "NodeUnstageVolume",
    "ControllerUnpublishVolume",
    "DeleteVolume",
];
/// What gives the volume to a node.
pub const GIVE: [Call; 3] = ["ControllerPublishVolume", "NodeStageVolume", "NodePublishVolume"];

pub fn is_of_node(call: Call) -> bool {
    call.starts_with("Node")
}

pub fn place(call: Call) -> usize {
    LIFE.iter().position(|c| *c == call).unwrap()
}

/// What kind of volume lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    /// With a second target that only reads, and by which it is grown.
    Xfs,
    Block,
    Copy,
    /// Staged on a node whose plugin has died before it is detached.
    Lost,
}

impl Kind {
    fn capability(self) -> pb::VolumeCapability {
        match self {
            Self::Ext4 => capability(Some("ext4")),
            Self::Xfs => capability_with(Some("xfs"), Mode::SingleNodeMultiWriter, &[], ""),
            Self::Block | Self::Copy | Self::Lost => capability(None),
        }
    }

    /// Before and after it is grown.
    fn bytes(self) -> [i64; 2] {
        match self {
            Self::Xfs => [320 * MIB, 400 * MIB],
            Self::Ext4 | Self::Block | Self::Copy | Self::Lost => [16 * MIB, 24 * MIB],
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Block => "block",
            Self::Copy => "copy",
            Self::Lost => "lost",
        }
    }

    fn has_filesystem(self) -> bool {
        matches!(self, Self::Ext4 | Self::Xfs)
    }
}

/// A data folder, the processes on it, and a volume.
pub struct World {
    pub driver: Driver,
    others: Vec<Child>,
    kind: Kind,
    id: String,
    /// Where the calls go, and as which node.
    pub controller: PathBuf,
    pub node: (PathBuf, &'static str),
    context: HashMap<String, String>,
    written: bool,
    modified: bool,
}

impl Drop for World {
    fn drop(&mut self) {
        for other in &mut self.others {
            let _ = other.kill();
            let _ = other.wait();
        }
    }
}

impl World {
    /// A folder with a bystander, whose content must not change.
    pub async fn new(kind: Kind) -> Self {
        let driver = Driver::start();
        let mut world = Self {
            id: VolumeId::of_name("victim").to_string(),
            controller: driver.socket.clone(),
            node: (driver.socket.clone(), "n1"),
            driver,
            others: Vec::new(),
            kind,
            context: HashMap::new(),
            written: false,
            modified: false,
        };
        let mut controller = world.controller().await;
        controller
            .create_volume(create("bystander", None, MIB, 0))
            .await
            .unwrap();
        let file = std::fs::File::options()
            .write(true)
            .open(world.bystander())
            .unwrap();
        file.write_all_at(&[7; 8192], 4096).unwrap();
        world.context.clear();
        world
    }

    pub fn bystander(&self) -> String {
        self.driver
            .path(&format!("data/volumes/{}.img", VolumeId::of_name("bystander")))
    }

    pub async fn controller(&self) -> ControllerClient<tonic::transport::Channel> {
        ControllerClient::new(connect(&self.controller).await)
    }

    pub fn at(&self, name: &str) -> String {
        self.driver.path(&format!("{}-{name}", self.node.1))
    }

    /// Makes a call as its sidecar or kubelet makes it.
    pub async fn call(&mut self, call: Call) -> Result<(), tonic::Status> {
        let capability = Some(self.kind.capability());
        let [bytes, more] = self.kind.bytes();
        let volume_id = self.id.clone();
        let range = Some(pb::CapacityRange {
            required_bytes: more,
            limit_bytes: 0,
        });
        let mut controller = self.controller().await;
        let node = if is_of_node(call) {
            &self.node.0
        } else {
            &self.controller
        };
        let mut node = NodeClient::new(connect(node).await);
        match call {
            "CreateVolume" => {
                let mut request = create("victim", None, bytes, 0);
                request.volume_capabilities = capability.into_iter().collect();
                if self.kind == Kind::Copy {
                    use pb::volume_content_source::{Type, VolumeSource};
                    let source = VolumeSource {
                        volume_id: VolumeId::of_name("bystander").to_string(),
                    };
                    request.volume_content_source = Some(pb::VolumeContentSource {
                        r#type: Some(Type::Volume(source)),
                    });
                }
                let reply = controller.create_volume(request).await?;
                assert_eq!(reply.into_inner().volume.unwrap().volume_id, self.id);
            }
            "ControllerPublishVolume" => {
                let request = pb::ControllerPublishVolumeRequest {
                    volume_id,
                    node_id: self.node.1.to_owned(),
                    volume_capability: capability,
                    ..Default::default()
                };
                let reply = controller.controller_publish_volume(request).await?;
                self.context = reply.into_inner().publish_context;
            }
            "NodeStageVolume" => {
                std::fs::create_dir_all(self.at("stage")).unwrap();
                let request = pb::NodeStageVolumeRequest {
                    volume_id,
                    publish_context: self.context.clone(),
                    staging_target_path: self.at("stage"),
                    volume_capability: capability,
                    ..Default::default()
                };
                node.node_stage_volume(request).await?;
            }
            "NodePublishVolume" => {
                let request = pb::NodePublishVolumeRequest {
                    volume_id,
                    publish_context: self.context.clone(),
                    staging_target_path: self.at("stage"),
                    target_path: self.at("target"),
                    volume_capability: capability,
                    ..Default::default()
                };
                if self.kind == Kind::Xfs {
                    let reader = pb::NodePublishVolumeRequest {
                        readonly: true,
                        target_path: self.at("reader"),
                        ..request.clone()
                    };
                    node.node_publish_volume(reader).await?;
                }
                node.node_publish_volume(request).await?;
                self.content();
            }
            "ControllerExpandVolume" => {
                let request = pb::ControllerExpandVolumeRequest {
                    volume_id,
                    capacity_range: range,
                    volume_capability: capability,
                    ..Default::default()
                };
                controller.controller_expand_volume(request).await?;
            }
            "NodeExpandVolume" => {
                let request = pb::NodeExpandVolumeRequest {
                    volume_id,
                    volume_path: self.at(if self.kind == Kind::Xfs {
                        "reader"
                    } else {
                        "target"
                    }),
                    staging_target_path: self.at("stage"),
                    capacity_range: range,
                    volume_capability: capability,
                    ..Default::default()
                };
                let grown = node.node_expand_volume(request).await;
                // Where a mounted ext4 cannot grow, this is how the driver says so.
                let cannot = |status: &tonic::Status| {
                    status.code() == Code::FailedPrecondition && status.message().contains("CAP_SYS_RESOURCE")
                };
                match grown {
                    Err(status) if !cannot(&status) => return Err(status),
                    Err(_) => {}
                    Ok(_) if self.kind.has_filesystem() => self.is_grown(more),
                    Ok(_) => {}
                }
            }
            "NodeUnpublishVolume" => {
                for target in ["target", "reader"] {
                    let request = pb::NodeUnpublishVolumeRequest {
                        volume_id: volume_id.clone(),
                        target_path: self.at(target),
                    };
                    node.node_unpublish_volume(request).await?;
                    assert!(!Path::new(&self.at(target)).exists());
                }
            }
            "NodeUnstageVolume" => {
                let request = pb::NodeUnstageVolumeRequest {
                    volume_id,
                    staging_target_path: self.at("stage"),
                };
                node.node_unstage_volume(request).await?;
            }
            "ControllerUnpublishVolume" | "ControllerUnpublishVolume while it is in use" => {
                let request = pb::ControllerUnpublishVolumeRequest {
                    volume_id,
                    node_id: self.node.1.to_owned(),
                    ..Default::default()
                };
                let done = controller.controller_unpublish_volume(request).await;
                // The node says that it uses the volume.
                match (call == "ControllerUnpublishVolume", done) {
                    (true, done) => done.map(drop)?,
                    (false, Err(status)) if status.code() == Code::FailedPrecondition => {}
                    (false, Err(status)) => return Err(status),
                    (false, Ok(_)) => panic!("a volume was taken from a node that uses it"),
                }
            }
            "ControllerModifyVolume" => {
                let noatime = [(String::from("atime"), String::from("noatime"))];
                let request = pb::ControllerModifyVolumeRequest {
                    volume_id,
                    mutable_parameters: noatime.into(),
                    ..Default::default()
                };
                controller.controller_modify_volume(request).await?;
                self.modified = true;
            }
            "DeleteVolume" => {
                let request = pb::DeleteVolumeRequest {
                    volume_id,
                    ..Default::default()
                };
                controller.delete_volume(request).await?;
            }
            other => panic!("{other} is no call"),
        }
        Ok(())
    }

    /// Every target shows the filesystem as large as the volume.
    fn is_grown(&self, bytes: i64) {
        for target in ["target", "reader"] {
            let Ok(seen) = nix::sys::statvfs::statvfs(self.at(target).as_str()) else {
                continue;
            };
            let has = (seen.blocks() * seen.fragment_size()) as i64;
            assert!(has > bytes * 4 / 5, "{target} has {has} bytes of {bytes}");
        }
    }

    /// Writes what the pod writes, once; reads it ever after.
    pub fn content(&mut self) {
        let expected: Vec<u8> = (0..64 << 10).map(|n: u32| (n % 251) as u8).collect();
        let path = match self.kind {
            Kind::Ext4 | Kind::Xfs => format!("{}/data", self.at("target")),
            Kind::Block | Kind::Lost => self.at("target"),
            // It is the bystander's.
            Kind::Copy => {
                let device = std::fs::File::open(self.at("target")).unwrap();
                let mut found = [0; 8192];
                device.read_exact_at(&mut found, 4096).unwrap();
                assert!(found == [7; 8192], "a copy with other content");
                return;
            }
        };
        if !self.written {
            let file = std::fs::File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .unwrap();
            file.write_all_at(&expected, 0).unwrap();
            file.sync_all().unwrap();
            self.written = true;
        }
        let mut found = vec![0; expected.len()];
        let file = std::fs::File::open(&path).unwrap();
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected, "what was written is lost");
        if self.kind == Kind::Xfs {
            let file = format!("{}/data", self.at("reader"));
            assert!(
                std::fs::read(&file).unwrap() == expected,
                "a reader sees another thing"
            );
            let written = std::fs::File::options().write(true).open(&file);
            assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EROFS));
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = mounts
            .lines()
            .find(|line| line.contains(&self.at("target")))
            .unwrap();
        assert!(
            !self.modified || !self.kind.has_filesystem() || here.contains("noatime"),
            "what was modified does not show: {here}"
        );
    }

    /// Makes calls until they succeed, as their callers do after ABORTED: a process that another test is just starting has
    /// every file of this one open for a moment, the one at a target too.
    pub async fn calls(&mut self, calls: &[Call]) {
        for call in calls {
            let since = Instant::now();
            while let Err(status) = self.call(call).await {
                assert!(
                    status.code() == Code::Aborted && since.elapsed() < LIMIT,
                    "{call}: {status:?}\n{}",
                    self.log()
                );
            }
        }
    }

    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.driver.path("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(12).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Replaces the process, with or without a plan.
    pub fn restart(&mut self, environment: &[(&str, &str)]) {
        let _ = self.driver.process.kill();
        let _ = self.driver.process.wait();
        self.driver.process = spawn_env(
            self.driver.folder.path(),
            "all",
            "n1",
            &self.driver.socket,
            &[],
            environment,
        );
    }

    /// The processes of others: a controller's replica, and a plugin of `node`.
    pub fn others_come(&mut self, node: &'static str) {
        let folder = self.driver.folder.path();
        self.controller = folder.join("replica.sock");
        self.others
            .push(spawn_node(folder, "controller", "", &self.controller));
        self.node = (folder.join(format!("{node}.sock")), node);
        self.others.push(spawn_node(folder, "node", node, &self.node.0));
    }

    /// The plugins of others die, and with them whatever they would have answered.
    pub fn others_die(&mut self) {
        for other in &mut self.others {
            let _ = other.kill();
            let _ = other.wait();
        }
    }

    pub fn died(&mut self) -> bool {
        let since = Instant::now();
        while self.driver.process.try_wait().unwrap().is_none() {
            if since.elapsed() > LIMIT {
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        true
    }

    /// Everything that exists, by name.
    fn ledger(&self) -> BTreeSet<String> {
        let mut found: BTreeSet<String> = loops_below(self.driver.folder.path()).into_iter().collect();
        for folder in ["volumes", "locks", "quarantine", "requests"] {
            let entries = std::fs::read_dir(self.driver.path(&format!("data/{folder}"))).unwrap();
            found.extend(
                entries
                    .flatten()
                    .map(|e| format!("{folder}/{}", e.file_name().to_string_lossy())),
            );
        }
        found.remove("locks/promises.lock");
        found.insert(format!("{} mounts", mounts_below(self.driver.folder.path())));
        found
    }

    /// Everything that exists once no call is about to end: it answers before it lets go of its locks.
    pub fn settled(&self) -> BTreeSet<String> {
        let since = Instant::now();
        loop {
            let found = self.ledger();
            let locks: Vec<&String> = found.iter().filter(|name| name.starts_with("locks/")).collect();
            if locks.is_empty() {
                return found;
            }
            assert!(
                since.elapsed() < LIMIT,
                "locks that stay: {locks:?}\n{}",
                self.log()
            );
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// The bystander is as it was, and nothing else is there.
    pub fn nothing_else(&self, clean: &BTreeSet<String>) {
        let since = Instant::now();
        while self.ledger() != *clean {
            assert!(
                since.elapsed() < LIMIT,
                "left behind: {:?}, lost: {:?}\n{}",
                self.ledger().difference(clean).collect::<Vec<_>>(),
                clean.difference(&self.ledger()).collect::<Vec<_>>(),
                self.log()
            );
            std::thread::park_timeout(Duration::from_millis(2));
        }
        let image = std::fs::read(self.bystander()).unwrap();
        assert!(image[4096..12288] == [7; 8192], "the bystander's content changed");
    }
}
