//! A driver process in a folder of its own, and the calls of kubelet and the sidecars on it.
pub mod needs;
pub mod raw;
pub mod trace;
pub mod writing;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_client::ControllerClient;
use holdfast_proto::csi::node_client::NodeClient;
use libtest_mimic::Failed;
use tokio::runtime::Runtime;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

pub const MIB: i64 = 1 << 20;

/// A driver in a folder of its own; killed, unmounted and removed at the end, whatever happened.
pub struct Driver {
    pub folder: tempfile::TempDir,
    pub process: Child,
    pub role: &'static str,
    pub socket: PathBuf,
}

impl Driver {
    pub fn start() -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), "all", "csi.sock")
    }

    /// With more arguments.
    pub fn with(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("csi.sock");
        let process = spawn_with(folder.path(), "all", "n1", &socket, more);
        Self {
            folder,
            process,
            role: "all",
            socket,
        }
    }

    pub fn in_folder(folder: tempfile::TempDir, role: &'static str, socket: &str) -> Self {
        let socket = folder.path().join(socket);
        let process = spawn(folder.path(), role, &socket);
        Self {
            folder,
            process,
            role,
            socket,
        }
    }

    pub fn kill_and_restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = spawn(self.folder.path(), self.role, &self.socket);
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    pub async fn channel(&self) -> Channel {
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

pub fn spawn(folder: &Path, role: &str, socket: &Path) -> Child {
    spawn_node(folder, role, "n1", socket)
}

pub fn spawn_node(folder: &Path, role: &str, node: &str, socket: &Path) -> Child {
    spawn_with(folder, role, node, socket, &[])
}

pub fn spawn_with(folder: &Path, role: &str, node: &str, socket: &Path, more: &[&str]) -> Child {
    spawn_env(folder, role, node, socket, more, &[])
}

pub fn spawn_env(
    folder: &Path,
    role: &str,
    node: &str,
    socket: &Path,
    more: &[&str],
    environment: &[(&str, &str)],
) -> Child {
    let process = Command::new(env!("CARGO_BIN_EXE_holdfast-driver"))
        .args([
            role,
            "--node-id",
            node,
            "--capacity",
            "8589934592",
            "--max-volumes-per-node",
            "8",
        ])
        .arg("--endpoint")
        .arg(format!("unix://{}", socket.display()))
        .arg("--data-dir")
        .arg(folder.join("data"))
        .args(more)
        .envs(environment.iter().copied())
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

pub async fn connect(socket: &Path) -> Channel {
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

/// An image as a loop device of some attachment holds it: under a lock of the open file.
pub fn image_held(path: &str) -> std::fs::File {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)).unwrap();
    file
}

pub fn loops_below(folder: &Path) -> Vec<String> {
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

pub fn mounts_below(folder: &Path) -> usize {
    let root = folder.display().to_string();
    std::fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .filter(|l| l.contains(&root))
        .count()
}

pub fn capability(fs: Option<&str>) -> pb::VolumeCapability {
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

/// The same with another access mode, mount flags and group.
pub fn capability_with(
    fs: Option<&str>,
    mode: pb::volume_capability::access_mode::Mode,
    flags: &[&str],
    group: &str,
) -> pb::VolumeCapability {
    use pb::volume_capability::{AccessMode, AccessType};
    let mut wanted = capability(fs);
    wanted.access_mode = Some(AccessMode { mode: mode.into() });
    if let Some(AccessType::Mount(mount)) = &mut wanted.access_type {
        mount.mount_flags = flags.iter().map(|f| (*f).to_owned()).collect();
        mount.volume_mount_group = group.to_owned();
    }
    wanted
}

pub fn create(
    name: &str,
    fs: Option<&str>,
    required_bytes: i64,
    limit_bytes: i64,
) -> pb::CreateVolumeRequest {
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
pub struct Volume<'a> {
    pub driver: &'a Driver,
    pub id: String,
    pub fs: Option<&'a str>,
    pub context: std::collections::HashMap<String, String>,
}

impl<'a> Volume<'a> {
    pub async fn made(driver: &'a Driver, fs: Option<&'a str>, bytes: i64) -> Self {
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

    pub async fn attach(&mut self) -> Result<(), tonic::Status> {
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

    pub async fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.driver.channel().await)
    }

    pub fn stage_request(&self) -> pb::NodeStageVolumeRequest {
        pb::NodeStageVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: self.context.clone(),
            staging_target_path: self.driver.path("stage"),
            volume_capability: Some(capability(self.fs)),
            ..Default::default()
        }
    }

    pub async fn stage(&self) -> Result<(), tonic::Status> {
        std::fs::create_dir_all(self.driver.path("stage")).unwrap();
        let request = self.stage_request();
        self.node().await.node_stage_volume(request).await.map(drop)
    }

    pub fn publish_request(&self, target: &str) -> pb::NodePublishVolumeRequest {
        pb::NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: self.context.clone(),
            staging_target_path: self.driver.path("stage"),
            target_path: self.driver.path(target),
            volume_capability: Some(capability(self.fs)),
            ..Default::default()
        }
    }

    pub async fn publish(&self, target: &str, readonly: bool) -> Result<(), tonic::Status> {
        let request = pb::NodePublishVolumeRequest {
            readonly,
            ..self.publish_request(target)
        };
        self.node().await.node_publish_volume(request).await.map(drop)
    }

    /// Made, attached and staged.
    pub async fn staged(driver: &'a Driver, fs: Option<&'a str>, bytes: i64) -> Self {
        let mut volume = Self::made(driver, fs, bytes).await;
        volume.attach().await.unwrap();
        volume.stage().await.unwrap();
        volume
    }

    pub async fn unpublish(&self, target: &str) -> Result<(), tonic::Status> {
        let request = pb::NodeUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            target_path: self.driver.path(target),
        };
        NodeClient::new(self.driver.channel().await)
            .node_unpublish_volume(request)
            .await
            .map(drop)
    }

    pub async fn unstage(&self) -> Result<(), tonic::Status> {
        let request = pb::NodeUnstageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: self.driver.path("stage"),
        };
        NodeClient::new(self.driver.channel().await)
            .node_unstage_volume(request)
            .await
            .map(drop)
    }

    pub async fn detach(&self) -> Result<(), tonic::Status> {
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

    pub async fn delete(&self) -> Result<(), tonic::Status> {
        let request = pb::DeleteVolumeRequest {
            volume_id: self.id.clone(),
            ..Default::default()
        };
        ControllerClient::new(self.driver.channel().await)
            .delete_volume(request)
            .await
            .map(drop)
    }

    pub async fn gone(&self) {
        self.unpublish("target").await.unwrap();
        self.unstage().await.unwrap();
        self.detach().await.unwrap();
        self.delete().await.unwrap();
        nothing_left(self.driver);
    }
}

pub fn nothing_left(driver: &Driver) {
    assert_eq!(loops_below(driver.folder.path()), Vec::<String>::new());
    assert_eq!(mounts_below(driver.folder.path()), 0);
    let left: Vec<_> = std::fs::read_dir(driver.folder.path().join("data/volumes"))
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

pub fn wait_code<T>(result: Result<T, tonic::Status>) -> Code {
    result.err().map_or(Code::Ok, |status| {
        assert!(!status.message().is_empty(), "an error without a message");
        status.code()
    })
}

/// A name, and what it does.
pub type Case = (&'static str, fn() -> Result<(), Failed>);

pub fn run(body: impl Future<Output = ()>) -> Result<(), Failed> {
    Runtime::new()?.block_on(body);
    Ok(())
}

pub fn blocking(body: impl FnOnce()) -> Result<(), Failed> {
    body();
    Ok(())
}
