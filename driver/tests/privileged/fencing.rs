//! T1: a node that was given up can no longer write, proved by writing; a node that lives is asked, not robbed.
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use crate::common::*;
use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_client::ControllerClient;
use holdfast_proto::csi::node_client::NodeClient;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::{Code, Status};

/// Longer than a node is given to answer, and another one to act.
const BOUND: Duration = Duration::from_secs(30);

/// A controller and two node plugins, each a process of its own, on one data folder and one kernel, as in kind.
struct Cluster {
    driver: Driver,
    nodes: Vec<(String, PathBuf, Child)>,
}

impl Cluster {
    fn start() -> Self {
        let driver = Driver::in_folder(tempfile::tempdir().unwrap(), "controller", "csi.sock");
        let nodes = ["n1", "n2"]
            .map(|node| {
                let socket = driver.folder.path().join(format!("{node}.sock"));
                let child = spawn_node(driver.folder.path(), "node", node, &socket);
                (node.to_owned(), socket, child)
            })
            .into();
        Self { driver, nodes }
    }

    fn signal(&self, node: usize, signal: Signal) {
        let pid = Pid::from_raw(self.nodes[node].2.id().try_into().unwrap());
        kill(pid, signal).unwrap();
    }

    async fn node(&self, node: usize) -> On<'_> {
        On {
            cluster: self,
            name: &self.nodes[node].0,
            client: NodeClient::new(connect(&self.nodes[node].1).await),
        }
    }

    async fn controller(&self) -> ControllerClient<tonic::transport::Channel> {
        ControllerClient::new(self.driver.channel().await)
    }

    async fn made(&self, fs: Option<&str>) -> String {
        let request = create("pvc-1", fs, 64 * MIB, 0);
        let reply = self.controller().await.create_volume(request).await.unwrap();
        reply.into_inner().volume.unwrap().volume_id
    }

    async fn detach(&self, id: &str, node: &str) -> Result<(), Status> {
        let request = pb::ControllerUnpublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: node.to_owned(),
            ..Default::default()
        };
        self.controller()
            .await
            .controller_unpublish_volume(request)
            .await
            .map(drop)
    }

    /// What the attacher does: it calls again until it succeeds.
    async fn detached(&self, id: &str, node: &str) {
        let since = Instant::now();
        loop {
            match self.detach(id, node).await {
                Ok(()) => return,
                Err(error) => assert!(since.elapsed() < BOUND, "not detached: {error}"),
            }
        }
    }

    fn left(&self) -> Vec<String> {
        let folder = self.driver.path("data/requests");
        let entries = std::fs::read_dir(folder).unwrap().flatten();
        entries.map(|e| e.file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (_, _, child) in &mut self.nodes {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The calls on one node.
struct On<'a> {
    cluster: &'a Cluster,
    name: &'a str,
    client: NodeClient<tonic::transport::Channel>,
}

impl On<'_> {
    fn path(&self, name: &str) -> String {
        self.cluster.driver.path(&format!("{}-{name}", self.name))
    }

    async fn attach(&self, id: &str, fs: Option<&str>) -> std::collections::HashMap<String, String> {
        let attached = self
            .cluster
            .controller()
            .await
            .controller_publish_volume(pb::ControllerPublishVolumeRequest {
                volume_id: id.to_owned(),
                node_id: self.name.to_owned(),
                volume_capability: Some(capability(fs)),
                ..Default::default()
            })
            .await
            .unwrap();
        attached.into_inner().publish_context
    }

    async fn up(&mut self, id: &str, fs: Option<&str>) {
        let publish_context = self.attach(id, fs).await;
        std::fs::create_dir_all(self.path("stage")).unwrap();
        self.client
            .node_stage_volume(pb::NodeStageVolumeRequest {
                volume_id: id.to_owned(),
                publish_context: publish_context.clone(),
                staging_target_path: self.path("stage"),
                volume_capability: Some(capability(fs)),
                ..Default::default()
            })
            .await
            .unwrap();
        self.client
            .node_publish_volume(pb::NodePublishVolumeRequest {
                volume_id: id.to_owned(),
                publish_context,
                staging_target_path: self.path("stage"),
                target_path: self.path("target"),
                volume_capability: Some(capability(fs)),
                ..Default::default()
            })
            .await
            .unwrap();
    }

    async fn down(&mut self, id: &str) {
        self.client
            .node_unpublish_volume(pb::NodeUnpublishVolumeRequest {
                volume_id: id.to_owned(),
                target_path: self.path("target"),
            })
            .await
            .unwrap();
        self.client
            .node_unstage_volume(pb::NodeUnstageVolumeRequest {
                volume_id: id.to_owned(),
                staging_target_path: self.path("stage"),
            })
            .await
            .unwrap();
        assert!(!Path::new(&self.path("target")).exists());
    }

    /// A file in the mount, or the device itself, held open for writing.
    fn open(&self, fs: Option<&str>) -> File {
        let path = match fs {
            Some(_) => self.path("target/file"),
            None => self.path("target"),
        };
        let mut options = File::options();
        options
            .read(true)
            .write(true)
            .create(fs.is_some())
            .open(path)
            .unwrap()
    }
}

fn written(file: &File, byte: u8) -> std::io::Result<()> {
    file.write_all_at(&[byte; 4096], 0)?;
    file.sync_all()
}

/// The first node is paused with the volume open for writing, given up, and comes back: it cannot write any more, the second
/// node's data stays as it is, and the first one's own clean-up succeeds and leaves nothing.
async fn a_node_that_comes_back_cannot_write(fs: Option<&'static str>) {
    let cluster = Cluster::start();
    let id = cluster.made(fs).await;
    let mut first = cluster.node(0).await;
    first.up(&id, fs).await;
    let held = first.open(fs);
    written(&held, 1).unwrap();
    cluster.signal(0, Signal::SIGSTOP);
    cluster.detached(&id, "n1").await;
    assert!(written(&held, 2).is_err(), "written after the detachment");
    let mut second = cluster.node(1).await;
    second.up(&id, fs).await;
    let other = second.open(fs);
    let mut found = [0; 4096];
    other.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(found, [1; 4096], "the first node's last data");
    written(&other, 3).unwrap();
    cluster.signal(0, Signal::SIGCONT);
    assert!(written(&held, 4).is_err(), "written after it came back");
    let reopened = File::options().write(true).open(match fs {
        Some(_) => first.path("target/new"),
        None => first.path("target"),
    });
    assert!(
        reopened.and_then(|file| written(&file, 5)).is_err(),
        "written through a new descriptor"
    );
    drop(held);
    first.down(&id).await;
    other.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(found, [3; 4096], "the second node's data");
    written(&other, 6).unwrap();
    drop(other);
    second.down(&id).await;
    cluster.detach(&id, "n2").await.unwrap();
    assert_eq!(cluster.left(), Vec::<String>::new(), "requests");
    let request = pb::DeleteVolumeRequest {
        volume_id: id,
        ..Default::default()
    };
    cluster.controller().await.delete_volume(request).await.unwrap();
    nothing_left(&cluster.driver);
}

/// What was mapped into memory before is not written either.
async fn a_mapping_is_cut_off_too() {
    let cluster = Cluster::start();
    let id = cluster.made(None).await;
    let mut first = cluster.node(0).await;
    first.up(&id, None).await;
    let held = first.open(None);
    written(&held, 1).unwrap();
    // A process of its own writes through a mapping: where the device is gone, the fault may kill it.
    let script = "import mmap,sys,os\n\
                  f=os.open(sys.argv[1],os.O_RDWR)\n\
                  m=mmap.mmap(f,4096)\n\
                  print('ready',flush=True)\n\
                  sys.stdin.readline()\n\
                  m[0:4]=b'EVIL'\n\
                  m.flush()\n\
                  os.fsync(f)\n";
    let mut mapper = std::process::Command::new("python3")
        .args(["-c", script, &first.path("target")])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(mapper.stdout.take().unwrap()),
        &mut ready,
    )
    .unwrap();
    assert_eq!(ready.trim(), "ready");
    cluster.signal(0, Signal::SIGSTOP);
    cluster.detached(&id, "n1").await;
    mapper.stdin.take().unwrap().write_all(b"go\n").unwrap();
    mapper.wait().unwrap();
    let image = File::open(cluster.driver.path(&format!("data/volumes/{id}.img"))).unwrap();
    let mut found = [0; 4096];
    image.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(found, [1; 4096], "written through a mapping after the detachment");
    cluster.signal(0, Signal::SIGCONT);
    drop(held);
    first.down(&id).await;
}

/// A node that lives and uses the volume keeps it: the answer comes at once, and nothing has happened to it.
async fn a_living_node_is_not_robbed() {
    for fs in [Some("ext4"), Some("xfs"), None] {
        let cluster = Cluster::start();
        let bytes = fs;
        let id = cluster.made(bytes).await;
        let mut first = cluster.node(0).await;
        first.up(&id, fs).await;
        let held = first.open(fs);
        let since = Instant::now();
        for node in ["n1", ""] {
            let refused = cluster.detach(&id, node).await.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
            assert!(refused.message().contains("n1"), "{refused}");
            assert!(refused.message().contains(&first.path("target")), "{refused}");
        }
        assert!(
            since.elapsed() < Duration::from_secs(3),
            "not asked, but waited for"
        );
        written(&held, 1).unwrap();
        assert_eq!(cluster.left(), Vec::<String>::new(), "requests");
        drop(held);
        first.down(&id).await;
        cluster.detach(&id, "n1").await.unwrap();
    }
}

/// A node plugin that died, with its mounts still there, is no obstacle for ever; nor are the remains of a request.
async fn a_dead_plugin_is_given_up() {
    let mut cluster = Cluster::start();
    let id = cluster.made(Some("ext4")).await;
    let mut first = cluster.node(0).await;
    first.up(&id, Some("ext4")).await;
    let held = first.open(Some("ext4"));
    cluster.nodes[0].2.kill().unwrap();
    cluster.nodes[0].2.wait().unwrap();
    // A request that a crashed controller has left, torn.
    std::fs::write(
        cluster.driver.path(&format!("data/requests/{id}.json")),
        b"{\"volume\"",
    )
    .unwrap();
    cluster.detached(&id, "n1").await;
    assert!(written(&held, 2).is_err());
    drop(held);
    // The node comes back, and gets the volume again: what is left of the first time is in its way, and says so.
    let socket = cluster.nodes[0].1.clone();
    cluster.nodes[0].2 = spawn_node(cluster.driver.folder.path(), "node", "n1", &socket);
    let mut first = cluster.node(0).await;
    first.down(&id).await;
    first.up(&id, Some("ext4")).await;
    first.down(&id).await;
    cluster.detach(&id, "n1").await.unwrap();
    assert_eq!(cluster.left(), Vec::<String>::new(), "requests");
}

/// The controller dies while it waits; its successor goes on, and the volume is free in the end.
async fn a_detachment_survives_its_controller() {
    let mut cluster = Cluster::start();
    let id = cluster.made(Some("ext4")).await;
    let mut first = cluster.node(0).await;
    first.up(&id, Some("ext4")).await;
    cluster.signal(0, Signal::SIGSTOP);
    let request = format!("{id}.json");
    {
        let detaching = cluster.detach(&id, "n1");
        let asked = async {
            let since = Instant::now();
            while !cluster.left().contains(&request) {
                assert!(since.elapsed() < BOUND, "no request is written");
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            ended = detaching => panic!("answered before anybody could act: {ended:?}"),
            () = asked => {}
        }
    }
    cluster.driver.kill_and_restart();
    cluster.detached(&id, "n1").await;
    let mut second = cluster.node(1).await;
    second.up(&id, Some("ext4")).await;
    cluster.signal(0, Signal::SIGCONT);
    second.down(&id).await;
    let mut first = cluster.node(0).await;
    first.down(&id).await;
}

/// A volume whose revoked device still stands can be deleted, and the node that comes back then cleans up all the same.
async fn what_was_revoked_can_be_deleted() {
    for fs in [Some("ext4"), None] {
        let cluster = Cluster::start();
        let id = cluster.made(fs).await;
        let mut first = cluster.node(0).await;
        first.up(&id, fs).await;
        cluster.signal(0, Signal::SIGSTOP);
        cluster.detached(&id, "n1").await;
        let request = pb::DeleteVolumeRequest {
            volume_id: id.clone(),
            ..Default::default()
        };
        cluster.controller().await.delete_volume(request).await.unwrap();
        cluster.signal(0, Signal::SIGCONT);
        first.down(&id).await;
        nothing_left(&cluster.driver);
    }
}

/// Given up and attached again, the node is told what of the first time is in the way, and goes on when it is gone.
async fn a_node_gets_it_back() {
    for fs in [Some("ext4"), Some("xfs"), None] {
        let cluster = Cluster::start();
        let id = cluster.made(fs).await;
        let mut first = cluster.node(0).await;
        first.up(&id, fs).await;
        written(&first.open(fs), 1).unwrap();
        cluster.signal(0, Signal::SIGSTOP);
        cluster.detached(&id, "n1").await;
        cluster.signal(0, Signal::SIGCONT);
        let publish_context = first.attach(&id, fs).await;
        let stage = pb::NodeStageVolumeRequest {
            volume_id: id.clone(),
            publish_context,
            staging_target_path: first.path("stage"),
            volume_capability: Some(capability(fs)),
            ..Default::default()
        };
        let refused = first.client.node_stage_volume(stage.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains(&first.path("target")), "{refused}");
        let unpublish = pb::NodeUnpublishVolumeRequest {
            volume_id: id.clone(),
            target_path: first.path("target"),
        };
        first.client.node_unpublish_volume(unpublish).await.unwrap();
        // The old staging is no obstacle: nobody has it.
        first.client.node_stage_volume(stage).await.unwrap();
        first.up(&id, fs).await;
        let mut found = [0; 4096];
        first.open(fs).read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found, [1; 4096], "{fs:?}");
        written(&first.open(fs), 2).unwrap();
        first.down(&id).await;
        cluster.detach(&id, "n1").await.unwrap();
    }
}

pub fn cases() -> Vec<Case> {
    vec![
        ("a_node_that_comes_back_cannot_write_ext4", || {
            run(a_node_that_comes_back_cannot_write(Some("ext4")))
        }),
        ("a_node_that_comes_back_cannot_write_xfs", || {
            run(a_node_that_comes_back_cannot_write(Some("xfs")))
        }),
        ("a_node_that_comes_back_cannot_write_block", || {
            run(a_node_that_comes_back_cannot_write(None))
        }),
        ("a_mapping_is_cut_off_too", || run(a_mapping_is_cut_off_too())),
        ("a_living_node_is_not_robbed", || {
            run(a_living_node_is_not_robbed())
        }),
        ("a_node_gets_it_back", || run(a_node_gets_it_back())),
        ("a_dead_plugin_is_given_up", || run(a_dead_plugin_is_given_up())),
        ("a_detachment_survives_its_controller", || {
            run(a_detachment_survives_its_controller())
        }),
        ("what_was_revoked_can_be_deleted", || {
            run(what_was_revoked_can_be_deleted())
        }),
    ]
}
