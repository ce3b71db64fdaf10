//! T1: the real driver process behind its socket, with real files, loop devices and mounts; the official csi-sanity on it.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_client::ControllerClient;
use holdfast_proto::csi::identity_client::IdentityClient;
use holdfast_proto::csi::node_client::NodeClient;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

const MIB: i64 = 1 << 20;

/// A driver in a folder of its own; killed, unmounted and removed at the end, whatever happened.
struct Driver {
    folder: tempfile::TempDir,
    process: Child,
    role: &'static str,
    socket: PathBuf,
}

impl Driver {
    fn start() -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), "all", "csi.sock")
    }

    fn in_folder(folder: tempfile::TempDir, role: &'static str, socket: &str) -> Self {
        let socket = folder.path().join(socket);
        let process = spawn(folder.path(), role, &socket);
        Self {
            folder,
            process,
            role,
            socket,
        }
    }

    fn kill_and_restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = spawn(self.folder.path(), self.role, &self.socket);
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    async fn channel(&self) -> Channel {
        connect(&self.socket).await
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let root = self.folder.path().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut paths: Vec<_> = mounts
            .lines()
            .filter_map(|l| l.split(' ').nth(4))
            .filter(|p| p.starts_with(&root))
            .collect();
        paths.reverse();
        for path in paths {
            let _ = Command::new("umount").arg(path).status();
        }
        for name in loops_below(self.folder.path()) {
            let _ = Command::new("losetup").args(["-d", &name]).status();
        }
    }
}

fn spawn(folder: &Path, role: &str, socket: &Path) -> Child {
    let process = Command::new(env!("CARGO_BIN_EXE_holdfast-driver"))
        .args([
            role,
            "--node-id",
            "n1",
            "--capacity",
            "8589934592",
            "--max-volumes-per-node",
            "8",
        ])
        .arg("--endpoint")
        .arg(format!("unix://{}", socket.display()))
        .arg("--data-dir")
        .arg(folder.join("data"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(
            std::fs::File::options()
                .create(true)
                .append(true)
                .open(folder.join("log"))
                .unwrap(),
        )
        .spawn()
        .unwrap();
    let since = Instant::now();
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        assert!(
            since.elapsed() < Duration::from_secs(10),
            "no socket; log: {:?}",
            std::fs::read_to_string(folder.join("log"))
        );
        std::thread::park_timeout(Duration::from_millis(2));
    }
    process
}

async fn connect(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move {
            tokio::net::UnixStream::connect(socket)
                .await
                .map(hyper_util::rt::TokioIo::new)
        }
    });
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .unwrap()
}

fn loops_below(folder: &Path) -> Vec<String> {
    let root = folder.display().to_string();
    let Ok(entries) = std::fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|e| {
            std::fs::read_to_string(e.path().join("loop/backing_file")).is_ok_and(|f| f.starts_with(&root))
        })
        .map(|e| format!("/dev/{}", e.file_name().to_string_lossy()))
        .collect()
}

fn mounts_below(folder: &Path) -> usize {
    let root = folder.display().to_string();
    std::fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .filter(|l| l.contains(&root))
        .count()
}

fn capability(fs: Option<&str>) -> pb::VolumeCapability {
    use pb::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
    let access = match fs {
        Some(fs) => AccessType::Mount(MountVolume {
            fs_type: fs.to_owned(),
            ..MountVolume::default()
        }),
        None => AccessType::Block(BlockVolume {}),
    };
    let mode = pb::volume_capability::access_mode::Mode::SingleNodeWriter.into();
    pb::VolumeCapability {
        access_type: Some(access),
        access_mode: Some(AccessMode { mode }),
    }
}

fn create(name: &str, fs: Option<&str>, required_bytes: i64, limit_bytes: i64) -> pb::CreateVolumeRequest {
    pb::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(pb::CapacityRange {
            required_bytes,
            limit_bytes,
        }),
        volume_capabilities: vec![capability(fs)],
        ..pb::CreateVolumeRequest::default()
    }
}

/// A volume's calls, in the form in which kubelet and the sidecars send them.
struct Volume<'a> {
    driver: &'a Driver,
    id: String,
    fs: Option<&'a str>,
    context: std::collections::HashMap<String, String>,
}

impl<'a> Volume<'a> {
    async fn made(driver: &'a Driver, fs: Option<&'a str>, bytes: i64) -> Self {
        let mut controller = ControllerClient::new(driver.channel().await);
        let volume = controller
            .create_volume(create("pvc-1", fs, bytes, 0))
            .await
            .unwrap()
            .into_inner()
            .volume
            .unwrap();
        Self {
            driver,
            id: volume.volume_id,
            fs,
            context: std::collections::HashMap::new(),
        }
    }

    async fn attach(&mut self) -> Result<(), tonic::Status> {
        let request = pb::ControllerPublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: String::from("n1"),
            volume_capability: Some(capability(self.fs)),
            ..Default::default()
        };
        let reply = ControllerClient::new(self.driver.channel().await)
            .controller_publish_volume(request)
            .await?;
        self.context = reply.into_inner().publish_context;
        Ok(())
    }

    async fn stage(&self) -> Result<(), tonic::Status> {
        std::fs::create_dir_all(self.driver.path("stage")).unwrap();
        let request = pb::NodeStageVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: self.context.clone(),
            staging_target_path: self.driver.path("stage"),
            volume_capability: Some(capability(self.fs)),
            ..Default::default()
        };
        NodeClient::new(self.driver.channel().await)
            .node_stage_volume(request)
            .await
            .map(drop)
    }

    async fn publish(&self, target: &str, readonly: bool) -> Result<(), tonic::Status> {
        let request = pb::NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: self.context.clone(),
            staging_target_path: self.driver.path("stage"),
            target_path: self.driver.path(target),
            volume_capability: Some(capability(self.fs)),
            readonly,
            ..Default::default()
        };
        NodeClient::new(self.driver.channel().await)
            .node_publish_volume(request)
            .await
            .map(drop)
    }

    async fn unpublish(&self, target: &str) -> Result<(), tonic::Status> {
        let request = pb::NodeUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            target_path: self.driver.path(target),
        };
        NodeClient::new(self.driver.channel().await)
            .node_unpublish_volume(request)
            .await
            .map(drop)
    }

    async fn unstage(&self) -> Result<(), tonic::Status> {
        let request = pb::NodeUnstageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: self.driver.path("stage"),
        };
        NodeClient::new(self.driver.channel().await)
            .node_unstage_volume(request)
            .await
            .map(drop)
    }

    async fn detach(&self) -> Result<(), tonic::Status> {
        let request = pb::ControllerUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: String::from("n1"),
            ..Default::default()
        };
        ControllerClient::new(self.driver.channel().await)
            .controller_unpublish_volume(request)
            .await
            .map(drop)
    }

    async fn delete(&self) -> Result<(), tonic::Status> {
        let request = pb::DeleteVolumeRequest {
            volume_id: self.id.clone(),
            ..Default::default()
        };
        ControllerClient::new(self.driver.channel().await)
            .delete_volume(request)
            .await
            .map(drop)
    }

    async fn gone(&self) {
        self.unpublish("target").await.unwrap();
        self.unstage().await.unwrap();
        self.detach().await.unwrap();
        self.delete().await.unwrap();
        nothing_left(self.driver);
    }
}

fn nothing_left(driver: &Driver) {
    assert_eq!(loops_below(driver.folder.path()), Vec::<String>::new());
    assert_eq!(mounts_below(driver.folder.path()), 0);
    let left: Vec<_> = std::fs::read_dir(driver.folder.path().join("data/volumes"))
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn wait_code<T>(result: Result<T, tonic::Status>) -> Code {
    result.err().map_or(Code::Ok, |status| {
        assert!(!status.message().is_empty(), "an error without a message");
        status.code()
    })
}

async fn whole_life(fs: &str, bytes: i64) {
    let driver = Driver::start();
    let mut volume = Volume::made(&driver, Some(fs), bytes).await;
    assert_eq!(
        wait_code(volume.stage().await),
        Code::FailedPrecondition,
        "staged without an attachment"
    );
    for _ in 0..2 {
        volume.attach().await.unwrap();
        volume.stage().await.unwrap();
        volume.publish("target", false).await.unwrap();
    }
    std::fs::write(driver.path("target/data"), b"kept").unwrap();
    assert_eq!(
        wait_code(volume.publish("target", true).await),
        Code::AlreadyExists
    );
    assert_eq!(
        wait_code(volume.publish("second", false).await),
        Code::FailedPrecondition
    );
    assert_eq!(
        wait_code(volume.unstage().await),
        Code::FailedPrecondition,
        "unstaged under a target"
    );
    assert_eq!(
        wait_code(volume.delete().await),
        Code::FailedPrecondition,
        "deleted while attached"
    );
    volume.unpublish("target").await.unwrap();
    assert!(!Path::new(&driver.path("target")).exists());
    volume.publish("target", true).await.unwrap();
    assert_eq!(std::fs::read(driver.path("target/data")).unwrap(), b"kept");
    assert!(
        std::fs::write(driver.path("target/other"), b"x").is_err(),
        "written to a read-only volume"
    );
    volume.gone().await;
    volume.gone().await;
}

async fn survives_a_kill() {
    let mut driver = Driver::start();
    let (id, context) = {
        let mut volume = Volume::made(&driver, Some("ext4"), 64 * MIB).await;
        volume.attach().await.unwrap();
        volume.stage().await.unwrap();
        volume.publish("target", false).await.unwrap();
        (volume.id.clone(), volume.context.clone())
    };
    std::fs::write(driver.path("target/data"), b"kept").unwrap();
    driver.kill_and_restart();
    assert_eq!(std::fs::read(driver.path("target/data")).unwrap(), b"kept");
    let volume = Volume {
        driver: &driver,
        id,
        fs: Some("ext4"),
        context,
    };
    // What kubelet does after every restart of its own.
    volume.stage().await.unwrap();
    volume.publish("target", false).await.unwrap();
    assert_eq!(
        mounts_below(driver.folder.path()),
        2,
        "a repeated call mounted again"
    );
    volume.gone().await;
}

async fn block_device() {
    let driver = Driver::start();
    let mut volume = Volume::made(&driver, None, 16 * MIB).await;
    volume.attach().await.unwrap();
    for _ in 0..2 {
        volume.stage().await.unwrap();
        volume.publish("target", false).await.unwrap();
    }
    std::fs::OpenOptions::new()
        .write(true)
        .open(driver.path("target"))
        .map(|mut f| std::io::Write::write_all(&mut f, &[7; 4096]))
        .unwrap()
        .unwrap();
    volume.unpublish("target").await.unwrap();
    volume.publish("target", true).await.unwrap();
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(driver.path("target"));
    let refused = match &mut file {
        Err(_) => true,
        Ok(file) => std::io::Write::write_all(file, &[8; 4096])
            .and_then(|()| file.sync_all())
            .is_err(),
    };
    assert!(refused, "written to a read-only device");
    drop(file);
    volume.gone().await;
}

async fn codes() {
    let driver = Driver::start();
    let mut controller = ControllerClient::new(driver.channel().await);
    let cases = [
        ("no name", create("", Some("ext4"), MIB, 0), Code::InvalidArgument),
        (
            "control character",
            create("a\nb", Some("ext4"), MIB, 0),
            Code::InvalidArgument,
        ),
        (
            "no capability",
            pb::CreateVolumeRequest {
                volume_capabilities: vec![],
                ..create("a", None, MIB, 0)
            },
            Code::InvalidArgument,
        ),
        (
            "unknown filesystem",
            create("a", Some("btrfs"), MIB, 0),
            Code::InvalidArgument,
        ),
        (
            "limit below",
            create("a", None, 2 * MIB, MIB),
            Code::InvalidArgument,
        ),
        (
            "xfs below its minimum",
            create("a", Some("xfs"), MIB, 10 * MIB),
            Code::OutOfRange,
        ),
        (
            "more than there is",
            create("a", None, 1 << 50, 0),
            Code::OutOfRange,
        ),
        ("made", create("a", None, 5 << 30, 0), Code::Ok),
        ("made again", create("a", None, 5 << 30, 0), Code::Ok),
        ("other size", create("a", None, 6 << 30, 0), Code::AlreadyExists),
        (
            "other access",
            create("a", Some("ext4"), 5 << 30, 0),
            Code::AlreadyExists,
        ),
        (
            "more than is free",
            create("b", None, 5 << 30, 0),
            Code::ResourceExhausted,
        ),
    ];
    for (name, request, expected) in cases {
        assert_eq!(
            wait_code(controller.create_volume(request).await),
            expected,
            "{name}"
        );
    }
    let list = |starting_token: &str, max_entries| pb::ListVolumesRequest {
        starting_token: starting_token.to_owned(),
        max_entries,
    };
    assert_eq!(
        wait_code(controller.list_volumes(list("nonsense", 0)).await),
        Code::Aborted
    );
    assert_eq!(
        wait_code(controller.list_volumes(list("", -1)).await),
        Code::InvalidArgument
    );
    controller.create_volume(create("c", None, MIB, 0)).await.unwrap();
    let first = controller.list_volumes(list("", 1)).await.unwrap().into_inner();
    let second = controller
        .list_volumes(list(&first.next_token, 1))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (
            first.entries.len(),
            second.entries.len(),
            second.next_token.as_str()
        ),
        (1, 1, "")
    );
    assert_ne!(first.entries[0].volume, second.entries[0].volume);
    let snapshot = pb::CreateSnapshotRequest::default();
    assert_eq!(
        wait_code(controller.create_snapshot(snapshot).await),
        Code::Unimplemented
    );
}

/// Two controllers on one data folder, as two replicas are: one volume for one name, whoever answers.
async fn two_processes() {
    let driver = Driver::start();
    let other = driver.folder.path().join("other.sock");
    let mut process = spawn(driver.folder.path(), "controller", &other);
    let (one, two) = (driver.channel().await, connect(&other).await);
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..40 {
        let mut client = ControllerClient::new(if number % 2 == 0 { one.clone() } else { two.clone() });
        calls.spawn(async move {
            client
                .create_volume(create("same", None, MIB, 0))
                .await
                .map(|r| r.into_inner().volume)
        });
    }
    let mut ids = std::collections::BTreeSet::new();
    while let Some(done) = calls.join_next().await {
        ids.insert(done.unwrap().unwrap().unwrap().volume_id);
    }
    process.kill().unwrap();
    process.wait().unwrap();
    assert_eq!(ids.len(), 1);
}

async fn torn_record() {
    let mut driver = Driver::start();
    let (good, bad) = {
        let mut controller = ControllerClient::new(driver.channel().await);
        let mut made = Vec::new();
        for name in ["good", "bad"] {
            made.push(
                controller
                    .create_volume(create(name, None, MIB, 0))
                    .await
                    .unwrap()
                    .into_inner()
                    .volume
                    .unwrap()
                    .volume_id,
            );
        }
        (made[0].clone(), made[1].clone())
    };
    std::fs::write(
        driver.path(&format!("data/volumes/{bad}.json")),
        b"{\"version\":1,",
    )
    .unwrap();
    driver.kill_and_restart();
    let quarantined = driver.path(&format!("data/quarantine/{bad}.json"));
    let since = Instant::now();
    while !Path::new(&quarantined).exists() {
        assert!(since.elapsed() < Duration::from_secs(10), "not in quarantine");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    assert!(
        Path::new(&driver.path(&format!("data/volumes/{bad}.img"))).exists(),
        "the image of a torn record went"
    );
    let list = pb::ListVolumesRequest::default();
    let listed = ControllerClient::new(driver.channel().await)
        .list_volumes(list)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        listed
            .entries
            .iter()
            .map(|e| e.volume.as_ref().unwrap().volume_id.as_str())
            .collect::<Vec<_>>(),
        [good.as_str()]
    );
}

async fn stops_with_an_idle_client() {
    let mut driver = Driver::start();
    let mut identity = IdentityClient::new(driver.channel().await);
    assert_eq!(
        identity
            .probe(pb::ProbeRequest {})
            .await
            .unwrap()
            .into_inner()
            .ready,
        Some(true)
    );
    let since = Instant::now();
    let pid = nix::unistd::Pid::from_raw(driver.process.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(driver.process.wait().unwrap().success());
    assert!(since.elapsed() < Duration::from_secs(5));
    assert!(!driver.socket.exists(), "the socket's file stays");
}

/// The official suite; what it skips must be what is not declared.
fn sanity(access: &str) {
    let program = sanity_program();
    let driver = Driver::start();
    let report = driver.path("junit.xml");
    let output = Command::new(program)
        .arg("--csi.endpoint")
        .arg(format!("unix://{}", driver.socket.display()))
        .args([
            "--csi.testvolumeaccesstype",
            access,
            "--csi.testvolumesize",
            "67108864",
        ])
        .args([
            "--csi.testvolumeexpandsize",
            "134217728",
            "--csi.testnodevolumeattachlimit",
            "--ginkgo.no-color",
            "--ginkgo.junit-report",
            &report,
        ])
        .args([
            "--csi.mountdir",
            &driver.path("mnt"),
            "--csi.stagingdir",
            &driver.path("staging"),
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let xml = std::fs::read_to_string(report).unwrap();
    let skipped: Vec<_> = xml
        .split("<testcase ")
        .skip(1)
        .filter(|c| c.contains("<skipped"))
        .map(name_of)
        .collect();
    let undeclared = [
        "Snapshot",
        "GroupController",
        "ModifyVolume",
        "attribute class", // MODIFY_VOLUME
        "GetVolume",
        "Health",
        "source",
        "clone",
        "topology",
        "should detect volumes added between pages", // pending in csi-sanity itself
    ];
    let surprising: Vec<_> = skipped
        .iter()
        .filter(|name| !undeclared.iter().any(|word| name.contains(word)))
        .collect();
    assert!(surprising.is_empty(), "skipped though declared: {surprising:#?}");
    nothing_left(&driver);
}

fn name_of(case: &str) -> String {
    case.split("name=\"")
        .nth(1)
        .and_then(|n| n.split('"').next())
        .unwrap_or("")
        .to_owned()
}

/// From the environment or PATH, else built from the pinned module into the user's cache.
fn sanity_program() -> PathBuf {
    if let Some(given) = std::env::var_os("HOLDFAST_CSI_SANITY") {
        return given.into();
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| home.join(".cache"), PathBuf::from)
        .join("holdfast");
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kind/node-image");
    let out = cache.join("tools/csi-sanity-for-tests");
    let built = Command::new("go")
        .args(["build", "-trimpath", "-o"])
        .arg(&out)
        .arg("github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity")
        .current_dir(module)
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", cache.join("go-build"))
        .output()
        .expect("go, to build csi-sanity with");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    out
}

fn main() {
    let arguments = Arguments::from_args();
    let reason = missing();
    if let Some(reason) = &reason {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "CI must not skip these: {reason}"
        );
        eprintln!("ignored: {reason}");
    }
    let mut trials = Vec::new();
    let mut case = |name: &str, body: fn() -> Result<(), Failed>| {
        trials.push(Trial::test(name, body).with_ignored_flag(reason.is_some()));
    };
    case("ext4_lives_its_whole_life", || run(whole_life("ext4", 64 * MIB)));
    case("xfs_lives_its_whole_life", || run(whole_life("xfs", MIB)));
    case("a_device_is_written_and_read_only_when_it_should_be", || {
        run(block_device())
    });
    case("a_kill_under_a_mounted_volume_loses_nothing", || {
        run(survives_a_kill())
    });
    case("every_bad_request_has_its_code", || run(codes()));
    case("two_processes_make_one_volume_of_one_name", || {
        run(two_processes())
    });
    case("a_torn_record_costs_no_other_volume", || run(torn_record()));
    case(
        "it_stops_with_an_idle_client",
        || run(stops_with_an_idle_client()),
    );
    case("csi_sanity_mount", || blocking(|| sanity("mount")));
    case("csi_sanity_block", || blocking(|| sanity("block")));
    libtest_mimic::run(&arguments, trials).exit();
}

fn run(body: impl Future<Output = ()>) -> Result<(), Failed> {
    Runtime::new()?.block_on(body);
    Ok(())
}

fn blocking(body: impl FnOnce()) -> Result<(), Failed> {
    body();
    Ok(())
}

/// What these tests need and this machine does not have.
fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some(String::from("root is needed for loop devices and mounts"));
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some(String::from("there is no /dev/loop-control"));
    }
    let tools = ["mke2fs", "e2fsck", "resize2fs", "mkfs.xfs", "xfs_growfs"];
    let there = |tool: &&&str| {
        ["/usr/sbin", "/sbin", "/usr/bin"]
            .iter()
            .any(|folder| Path::new(folder).join(tool).exists())
    };
    let absent: Vec<_> = tools.iter().filter(|t| !there(t)).collect();
    (!absent.is_empty()).then(|| format!("{absent:?} are missing: `cargo e2e doctor` names their packages"))
}
