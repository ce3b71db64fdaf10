//! T1: the real process killed at every failpoint, before and after, and every step made to fail: whatever comes next, nothing
//! leaks and nothing is lost. `cargo test -p holdfast-driver --test crash`
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]
mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Child;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::*;
use holdfast_driver::id::VolumeId;
use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_client::ControllerClient;
use holdfast_proto::csi::node_client::NodeClient;
use libtest_mimic::{Arguments, Trial};
use tonic::Code;

/// Within this time a process that was to die is dead, and a sweep has swept.
const LIMIT: Duration = Duration::from_secs(10);
const ERRNOS: [&str; 4] = ["EIO", "ENOSPC", "EBUSY", "EROFS"];

/// The calls of a volume's life, in order.
#[allow(clippy::enum_variant_names)] // as the specification calls them
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Call {
    CreateVolume,
    ControllerPublishVolume,
    NodeStageVolume,
    NodePublishVolume,
    ControllerExpandVolume,
    NodeExpandVolume,
    NodeUnpublishVolume,
    NodeUnstageVolume,
    ControllerUnpublishVolume,
    DeleteVolume,
}

use Call::*;
const LIFE: [Call; 10] = [
    CreateVolume,
    ControllerPublishVolume,
    NodeStageVolume,
    NodePublishVolume,
    ControllerExpandVolume,
    NodeExpandVolume,
    NodeUnpublishVolume,
    NodeUnstageVolume,
    ControllerUnpublishVolume,
    DeleteVolume,
];
/// What undoes everything, whatever was done.
const UNDO: [Call; 4] = [
    NodeUnpublishVolume,
    NodeUnstageVolume,
    ControllerUnpublishVolume,
    DeleteVolume,
];

impl Call {
    fn is_of_node(self) -> bool {
        matches!(
            self,
            NodeStageVolume | NodePublishVolume | NodeExpandVolume | NodeUnpublishVolume | NodeUnstageVolume
        )
    }
}

/// What kind of volume lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ext4,
    Block,
    Copy,
}

impl Kind {
    fn fs(self) -> Option<&'static str> {
        (self == Self::Ext4).then_some("ext4")
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Block => "block",
            Self::Copy => "copy",
        }
    }
}

/// A data folder, the processes on it, and a volume.
struct World {
    driver: Driver,
    others: Vec<Child>,
    kind: Kind,
    id: String,
    /// Where the calls go, and as which node.
    controller: PathBuf,
    node: (PathBuf, &'static str),
    context: HashMap<String, String>,
    written: bool,
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
    async fn new(kind: Kind) -> Self {
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

    fn bystander(&self) -> String {
        self.driver
            .path(&format!("data/volumes/{}.img", VolumeId::of_name("bystander")))
    }

    async fn controller(&self) -> ControllerClient<tonic::transport::Channel> {
        ControllerClient::new(connect(&self.controller).await)
    }

    fn at(&self, name: &str) -> String {
        self.driver.path(&format!("{}-{name}", self.node.1))
    }

    /// Makes a call as its sidecar or kubelet makes it.
    async fn call(&mut self, call: Call) -> Result<(), tonic::Status> {
        let capability = Some(capability(self.kind.fs()));
        let volume_id = self.id.clone();
        let range = Some(pb::CapacityRange {
            required_bytes: 24 * MIB,
            limit_bytes: 0,
        });
        let mut controller = self.controller().await;
        let node = if call.is_of_node() {
            &self.node.0
        } else {
            &self.controller
        };
        let mut node = NodeClient::new(connect(node).await);
        match call {
            CreateVolume => {
                let mut request = create("victim", self.kind.fs(), 16 * MIB, 0);
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
            ControllerPublishVolume => {
                let request = pb::ControllerPublishVolumeRequest {
                    volume_id,
                    node_id: self.node.1.to_owned(),
                    volume_capability: capability,
                    ..Default::default()
                };
                let reply = controller.controller_publish_volume(request).await?;
                self.context = reply.into_inner().publish_context;
            }
            NodeStageVolume => {
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
            NodePublishVolume => {
                let request = pb::NodePublishVolumeRequest {
                    volume_id,
                    publish_context: self.context.clone(),
                    staging_target_path: self.at("stage"),
                    target_path: self.at("target"),
                    volume_capability: capability,
                    ..Default::default()
                };
                node.node_publish_volume(request).await?;
                self.content();
            }
            ControllerExpandVolume => {
                let request = pb::ControllerExpandVolumeRequest {
                    volume_id,
                    capacity_range: range,
                    volume_capability: capability,
                    ..Default::default()
                };
                controller.controller_expand_volume(request).await?;
            }
            NodeExpandVolume => {
                let request = pb::NodeExpandVolumeRequest {
                    volume_id,
                    volume_path: self.at("target"),
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
                    _ => {}
                }
            }
            NodeUnpublishVolume => {
                let request = pb::NodeUnpublishVolumeRequest {
                    volume_id,
                    target_path: self.at("target"),
                };
                node.node_unpublish_volume(request).await?;
                assert!(!std::path::Path::new(&self.at("target")).exists());
            }
            NodeUnstageVolume => {
                let request = pb::NodeUnstageVolumeRequest {
                    volume_id,
                    staging_target_path: self.at("stage"),
                };
                node.node_unstage_volume(request).await?;
            }
            ControllerUnpublishVolume => {
                let request = pb::ControllerUnpublishVolumeRequest {
                    volume_id,
                    node_id: self.node.1.to_owned(),
                    ..Default::default()
                };
                controller.controller_unpublish_volume(request).await?;
            }
            DeleteVolume => {
                let request = pb::DeleteVolumeRequest {
                    volume_id,
                    ..Default::default()
                };
                controller.delete_volume(request).await?;
            }
        }
        Ok(())
    }

    /// Writes what the pod writes, once; reads it ever after.
    fn content(&mut self) {
        let expected: Vec<u8> = (0..64 << 10).map(|n: u32| (n % 251) as u8).collect();
        let path = match self.kind {
            Kind::Ext4 => format!("{}/data", self.at("target")),
            Kind::Block => self.at("target"),
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
    }

    /// Makes calls until they succeed, as their callers do after ABORTED: a process that another test is just starting has
    /// every file of this one open for a moment, the one at a target too.
    async fn calls(&mut self, calls: &[Call]) {
        for call in calls {
            let since = Instant::now();
            while let Err(status) = self.call(*call).await {
                assert!(
                    status.code() == Code::Aborted && since.elapsed() < LIMIT,
                    "{call:?}: {status:?}\n{}",
                    self.log()
                );
            }
        }
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.driver.path("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(12).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Replaces the process, with or without a plan.
    fn restart(&mut self, environment: &[(&str, &str)]) {
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
    fn others_come(&mut self, node: &'static str) {
        let folder = self.driver.folder.path();
        self.controller = folder.join("replica.sock");
        self.others
            .push(spawn_node(folder, "controller", "", &self.controller));
        self.node = (folder.join(format!("{node}.sock")), node);
        self.others.push(spawn_node(folder, "node", node, &self.node.0));
    }

    fn died(&mut self) -> bool {
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
        for folder in ["volumes", "locks", "quarantine"] {
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

    /// The bystander is as it was, and nothing else is there.
    fn nothing_else(&self, clean: &BTreeSet<String>) {
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

/// The points that `call` passes, found by making it.
async fn points(kind: Kind, call: Call) -> Vec<String> {
    let mut world = World::new(kind).await;
    let at = LIFE.iter().position(|c| *c == call).unwrap();
    world.calls(&LIFE[..at]).await;
    let trace = world.driver.path("trace");
    world.restart(&[("HOLDFAST_FAILPOINT_TRACE", &trace)]);
    let read = || std::fs::read_to_string(&trace).unwrap_or_default();
    let before = read().lines().count();
    world.calls(&[call]).await;
    let found = read().lines().skip(before).map(str::to_owned).collect();
    world.calls(&LIFE[at + 1..]).await;
    found
}

/// Kills the process at a point of `call`, then lets `ending` happen.
async fn killed(kind: Kind, call: Call, plan: &str, ending: &str) {
    let mut world = World::new(kind).await;
    let clean = world.ledger();
    let at = LIFE.iter().position(|c| *c == call).unwrap();
    world.calls(&LIFE[..at]).await;
    world.restart(&[("HOLDFAST_FAILPOINT", plan)]);
    let answer = world.call(call).await;
    assert!(
        world.died(),
        "{plan} did not kill the process; the call: {answer:?}"
    );
    match ending {
        "repeated" => {
            world.restart(&[]);
            world.calls(&LIFE[at..]).await;
        }
        "abandoned" => {
            world.restart(&[]);
            world.calls(&UNDO).await;
        }
        // A controller's call is repeated on the other replica; a node's volume moves to another node.
        _ if !call.is_of_node() => {
            world.others_come("n1");
            world.calls(&LIFE[at..]).await;
        }
        _ => {
            world.restart(&[]);
            world.calls(&UNDO[..3]).await;
            world.others_come("n2");
            world.calls(&LIFE[1..4]).await;
            world.calls(&UNDO).await;
        }
    }
    world.nothing_else(&clean);
}

/// Lets the step fail with each errno, then repeats the call.
async fn failed(kind: Kind, call: Call, point: &str) {
    let mut world = World::new(kind).await;
    let clean = world.ledger();
    let at = LIFE.iter().position(|c| *c == call).unwrap();
    world.calls(&LIFE[..at]).await;
    for errno in ERRNOS {
        world.restart(&[("HOLDFAST_FAILPOINT", &format!("{point}={errno}"))]);
        if let Err(status) = world.call(call).await {
            assert!(!status.message().is_empty());
            let open = [Code::Aborted, Code::Unavailable, Code::DeadlineExceeded];
            if !open.contains(&status.code()) && call == CreateVolume {
                assert_eq!(world.ledger(), clean, "final, without a rollback: {status:?}");
            }
        }
    }
    world.restart(&[]);
    world.calls(&LIFE[at..]).await;
    world.nothing_else(&clean);
}

/// Every schedule that ran, for the summary.
static DONE: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());

fn count(key: String) {
    *DONE.lock().unwrap().entry(key).or_default() += 1;
}

async fn sweep(kind: Kind, call: Call) {
    let points = points(kind, call).await;
    println!("{} {call:?}: {}", kind.name(), points.join(" "));
    for point in &points {
        for when in ["kill-before", "kill-after"] {
            for ending in ["repeated", "abandoned", "taken over"] {
                let plan = format!("{point}={when}");
                println!("{} {call:?} {plan} {ending}", kind.name());
                killed(kind, call, &plan, ending).await;
                count(format!("{when}, {ending}"));
            }
        }
        println!("{} {call:?} {point} errnos", kind.name());
        failed(kind, call, point).await;
        count(String::from("errnos, repeated"));
        count(format!("point {}", point.split(':').next().unwrap()));
    }
}

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(8);
    let reason = missing();
    assert!(
        reason.is_none() || std::env::var("CI").as_deref() != Ok("true"),
        "CI must not skip these: {reason:?}"
    );
    let mut trials = Vec::new();
    for kind in [Kind::Ext4, Kind::Block, Kind::Copy] {
        // What comes after a copy is what comes after any volume.
        let calls = if kind == Kind::Copy { &LIFE[..1] } else { &LIFE[..] };
        for call in calls.iter().copied() {
            let body = move || run(sweep(kind, call));
            let name = format!("{}_{call:?}", kind.name());
            trials.push(Trial::test(name, body).with_ignored_flag(reason.is_some()));
        }
    }
    let since = Instant::now();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let done = DONE.lock().unwrap();
    println!("{} s, schedules by kind:", since.elapsed().as_secs());
    for (key, count) in done.iter() {
        println!("  {count:4}  {key}");
    }
    drop(done);
    conclusion.exit();
}
