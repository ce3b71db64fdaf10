//! This driver and another one, measured by the same calls in one run.
//!
//! `cargo bench -p holdfast-driver` measures this one; with HOLDFAST_BENCH_OTHER another one beside it. That is a command line
//! in which `{socket}` and `{dir}` stand for a socket's path and an empty folder. HOLDFAST_BENCH_QUICK=1 stops at 1,000 volumes.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::zombie_processes // Running waits for its process when it is dropped
)]
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_client::ControllerClient;
use holdfast_proto::csi::identity_client::IdentityClient;
use holdfast_proto::csi::node_client::NodeClient;
use tonic::transport::{Channel, Endpoint};

/// Longer than any start takes.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Calls in flight where many are.
const AT_ONCE: usize = 16;

/// A driver's command line and what it is called.
struct Subject {
    name: &'static str,
    command: String,
}

/// A process of a subject, stopped at the end.
struct Running {
    process: Child,
    channel: Channel,
    /// From the start of the process to its first answer.
    ready: Duration,
}

impl Running {
    async fn start(subject: &Subject, folder: &Path) -> Self {
        let socket = folder.join("csi.sock");
        let fill = |word: &str| {
            word.replace("{socket}", &socket.display().to_string())
                .replace("{dir}", &folder.join("data").display().to_string())
        };
        let mut words = subject.command.split_whitespace().map(fill);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(folder.join("log"))
            .unwrap();
        let mut command = Command::new(words.next().expect("an empty command line"));
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let since = Instant::now();
        let process = command
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", subject.command));
        loop {
            if let Some(channel) = answering(&socket).await {
                return Self {
                    process,
                    channel,
                    ready: since.elapsed(),
                };
            }
            let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            assert!(
                since.elapsed() < START_LIMIT,
                "{} gives no answer: {}",
                subject.name,
                log()
            );
            std::thread::park_timeout(Duration::from_micros(200));
        }
    }

    fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    fn resident_kib(&self) -> f64 {
        let path = format!("/proc/{}/status", self.process.id());
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let since = Instant::now();
        while self.process.try_wait().unwrap().is_none() {
            if since.elapsed() > Duration::from_secs(5) {
                let _ = self.process.kill();
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn answering(socket: &Path) -> Option<Channel> {
    std::os::unix::net::UnixStream::connect(socket).ok()?;
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            tokio::net::UnixStream::connect(path)
                .await
                .map(hyper_util::rt::TokioIo::new)
        }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .ok()?;
    let probe = IdentityClient::new(channel.clone())
        .probe(pb::ProbeRequest {})
        .await
        .ok()?;
    (probe.into_inner().ready != Some(false)).then_some(channel)
}

fn capability() -> pb::VolumeCapability {
    use pb::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
    pb::VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode {
            mode: Mode::SingleNodeWriter.into(),
        }),
    }
}

fn create(name: String) -> pb::CreateVolumeRequest {
    pb::CreateVolumeRequest {
        name,
        capacity_range: Some(pb::CapacityRange {
            required_bytes: 16 << 20,
            limit_bytes: 0,
        }),
        volume_capabilities: vec![capability()],
        ..Default::default()
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    millis(times[times.len() / 2])
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Creates `count` volumes one after another; the median of their times in ms.
async fn in_sequence(running: &Running, prefix: &str, count: usize) -> f64 {
    let mut controller = running.controller();
    let mut times = Vec::new();
    for n in 0..count {
        let request = create(format!("{prefix}-{n}"));
        let since = Instant::now();
        controller.create_volume(request).await.unwrap();
        times.push(since.elapsed());
    }
    median(times)
}

/// Creates `count` volumes, 16 at once; volumes per second.
async fn at_once(running: &Running, prefix: &str, count: usize) -> f64 {
    let since = Instant::now();
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|task| {
            let mut controller = running.controller();
            let names: Vec<_> = (task..count)
                .step_by(AT_ONCE)
                .map(|n| format!("{prefix}-{n}"))
                .collect();
            tokio::spawn(async move {
                for name in names {
                    controller.create_volume(create(name)).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    count as f64 / since.elapsed().as_secs_f64()
}

/// All pages of ListVolumes, the median of five in ms.
async fn list(running: &Running, expected: usize) -> f64 {
    let mut times = Vec::new();
    for _ in 0..5 {
        let mut controller = running.controller();
        let mut token = String::new();
        let mut seen = 0;
        let since = Instant::now();
        loop {
            let request = pb::ListVolumesRequest {
                starting_token: token,
                max_entries: 0,
            };
            let page = controller.list_volumes(request).await.unwrap().into_inner();
            seen += page.entries.len();
            token = page.next_token;
            if token.is_empty() {
                break;
            }
        }
        times.push(since.elapsed());
        assert_eq!(seen, expected);
    }
    median(times)
}

async fn capacity(running: &Running) -> f64 {
    let mut times = Vec::new();
    for _ in 0..50 {
        let since = Instant::now();
        running
            .controller()
            .get_capacity(pb::GetCapacityRequest::default())
            .await
            .unwrap();
        times.push(since.elapsed());
    }
    median(times)
}

/// Stage, publish, unpublish, unstage of one mounted volume, the median of 15 in ms; none without root.
async fn round(running: &Running, folder: &Path, node: &str) -> Option<f64> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let mut controller = running.controller();
    let volume = controller
        .create_volume(create(String::from("round")))
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap();
    let published = controller
        .controller_publish_volume(pb::ControllerPublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            node_id: node.to_owned(),
            volume_capability: Some(capability()),
            ..Default::default()
        })
        .await;
    let publish_context: HashMap<_, _> =
        published.map_or_else(|_| HashMap::new(), |reply| reply.into_inner().publish_context);
    let text = |name: &str| folder.join(name).display().to_string();
    std::fs::create_dir_all(folder.join("stage")).unwrap();
    let mut client = NodeClient::new(running.channel.clone());
    let mut times = Vec::new();
    for _ in 0..15 {
        let since = Instant::now();
        let stage = pb::NodeStageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            publish_context: publish_context.clone(),
            staging_target_path: text("stage"),
            volume_capability: Some(capability()),
            volume_context: volume.volume_context.clone(),
            ..Default::default()
        };
        client.node_stage_volume(stage).await.unwrap();
        let publish = pb::NodePublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            publish_context: publish_context.clone(),
            staging_target_path: text("stage"),
            target_path: text("target"),
            volume_capability: Some(capability()),
            volume_context: volume.volume_context.clone(),
            ..Default::default()
        };
        client.node_publish_volume(publish).await.unwrap();
        let unpublish = pb::NodeUnpublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            target_path: text("target"),
        };
        client.node_unpublish_volume(unpublish).await.unwrap();
        let unstage = pb::NodeUnstageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: text("stage"),
        };
        client.node_unstage_volume(unstage).await.unwrap();
        times.push(since.elapsed());
    }
    Some(median(times))
}

/// ListVolumes and Probe while two clones of 1 GiB are made: the 99th percentile of each pair in ms; none without root, or where
/// nothing is cloned.
async fn beside_clones(running: &Running, folder: &Path, node: &str) -> Option<f64> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let large = |name: &str| pb::CreateVolumeRequest {
        capacity_range: Some(pb::CapacityRange {
            required_bytes: 1536 << 20,
            limit_bytes: 0,
        }),
        ..create(name.to_owned())
    };
    let mut controller = running.controller();
    let source = controller
        .create_volume(large("source"))
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap();
    filled(running, folder, node, &source).await;
    let clones: Vec<_> = ["clone-1", "clone-2"]
        .map(|name| {
            let mut controller = running.controller();
            let id = source.volume_id.clone();
            let request = pb::CreateVolumeRequest {
                volume_content_source: Some(pb::VolumeContentSource {
                    r#type: Some(pb::volume_content_source::Type::Volume(
                        pb::volume_content_source::VolumeSource { volume_id: id },
                    )),
                }),
                ..large(name)
            };
            tokio::spawn(async move { controller.create_volume(request).await.map(drop) })
        })
        .into();
    let mut times = Vec::new();
    let mut identity = IdentityClient::new(running.channel.clone());
    while clones.iter().any(|clone| !clone.is_finished()) {
        let since = Instant::now();
        let request = pb::ListVolumesRequest {
            max_entries: 100,
            ..Default::default()
        };
        controller.list_volumes(request).await.unwrap();
        identity.probe(pb::ProbeRequest {}).await.unwrap();
        times.push(since.elapsed());
    }
    for clone in clones {
        clone.await.unwrap().ok()?;
    }
    times.sort();
    times.get(times.len() * 99 / 100).copied().map(millis)
}

/// Writes 1 GiB into a volume, as a pod would.
async fn filled(running: &Running, folder: &Path, node: &str, volume: &pb::Volume) {
    let text = |name: &str| folder.join(name).display().to_string();
    let attach = pb::ControllerPublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        node_id: node.to_owned(),
        volume_capability: Some(capability()),
        ..Default::default()
    };
    let attached = running.controller().controller_publish_volume(attach).await;
    let publish_context: HashMap<_, _> =
        attached.map_or_else(|_| HashMap::new(), |reply| reply.into_inner().publish_context);
    let mut client = NodeClient::new(running.channel.clone());
    let stage = pb::NodeStageVolumeRequest {
        volume_id: volume.volume_id.clone(),
        publish_context: publish_context.clone(),
        staging_target_path: text("stage"),
        volume_capability: Some(capability()),
        volume_context: volume.volume_context.clone(),
        ..Default::default()
    };
    client.node_stage_volume(stage).await.unwrap();
    let publish = pb::NodePublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        publish_context,
        staging_target_path: text("stage"),
        target_path: text("target"),
        volume_capability: Some(capability()),
        volume_context: volume.volume_context.clone(),
        ..Default::default()
    };
    client.node_publish_volume(publish).await.unwrap();
    let written = Command::new("dd")
        .args([
            "if=/dev/urandom",
            "bs=1M",
            "count=1024",
            "conv=fsync",
            "status=none",
        ])
        .arg(format!("of={}", folder.join("target/data").display()))
        .status();
    assert!(
        written.is_ok_and(|status| status.success()),
        "1 GiB is not written"
    );
    let unpublish = pb::NodeUnpublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        target_path: text("target"),
    };
    client.node_unpublish_volume(unpublish).await.unwrap();
    let unstage = pb::NodeUnstageVolumeRequest {
        volume_id: volume.volume_id.clone(),
        staging_target_path: text("stage"),
    };
    client.node_unstage_volume(unstage).await.unwrap();
    let detach = pb::ControllerUnpublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        node_id: node.to_owned(),
        ..Default::default()
    };
    // A driver that does not attach does not detach either.
    let _ = running.controller().controller_unpublish_volume(detach).await;
}

/// Name and unit of a figure, and the figure.
type Figures = Vec<(&'static str, Option<f64>)>;

async fn measure(subject: &Subject, quick: bool) -> Figures {
    let base = std::env::var_os("HOLDFAST_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::Builder::new().prefix("bench").tempdir_in(base).unwrap();
    let path = folder.path();
    let mut figures = Figures::new();
    let mut starts = Vec::new();
    for _ in 0..9 {
        let running = Running::start(subject, path).await;
        starts.push(running.ready);
        running.stop();
    }
    figures.push(("ready after start, ms", Some(median(starts))));
    let running = Running::start(subject, path).await;
    figures.push(("resident idle, MiB", Some(running.resident_kib() / 1024.0)));
    in_sequence(&running, "warm", 50).await;
    let mut first = in_sequence(&running, "few", 100).await;
    figures.push(("CreateVolume p50 in sequence, 100 volumes, ms", Some(first)));
    figures.push(("GetCapacity p50, 100 volumes, ms", Some(capacity(&running).await)));
    figures.push((
        "CreateVolume 16 at once, per second",
        Some(at_once(&running, "many", 850).await),
    ));
    figures.push((
        "resident with 1,000 volumes, MiB",
        Some(running.resident_kib() / 1024.0),
    ));
    figures.push(("ListVolumes of 1,000, ms", Some(list(&running, 1000).await)));
    let mut running = running;
    if !quick {
        at_once(&running, "fill", 8900).await;
        let last = in_sequence(&running, "last", 100).await;
        figures.push(("CreateVolume p50 in sequence, 10,000 volumes, ms", Some(last)));
        figures.push(("the same, against 100 volumes, times", Some(last / first)));
        first = last;
        figures.push((
            "GetCapacity p50, 10,000 volumes, ms",
            Some(capacity(&running).await),
        ));
        figures.push((
            "resident with 10,000 volumes, MiB",
            Some(running.resident_kib() / 1024.0),
        ));
        figures.push(("ListVolumes of 10,000, ms", Some(list(&running, 10_000).await)));
        let mut restarts = Vec::new();
        let mut listed = Vec::new();
        for _ in 0..5 {
            running.stop();
            let since = Instant::now();
            running = Running::start(subject, path).await;
            restarts.push(running.ready);
            let request = pb::ListVolumesRequest {
                max_entries: 1,
                ..Default::default()
            };
            // A page of one, where it is offered; the whole list otherwise.
            running.controller().list_volumes(request).await.unwrap();
            listed.push(since.elapsed());
        }
        figures.push((
            "restart with 10,000 volumes to the first Probe, ms",
            Some(median(restarts)),
        ));
        figures.push(("the same, to the first ListVolumes, ms", Some(median(listed))));
    }
    let _ = first;
    figures.push((
        "stage, publish, unpublish, unstage p50, ms",
        round(&running, path, "bench").await,
    ));
    figures.push((
        "ListVolumes and Probe p99 beside two clones of 1 GiB, ms",
        beside_clones(&running, path, "bench").await,
    ));
    running.stop();
    let clean = Command::new("find")
        .arg(path.join("data"))
        .args(["-depth", "-delete"])
        .status();
    assert!(clean.is_ok_and(|s| s.success()), "{} stays", path.display());
    figures
}

fn main() {
    let quick = std::env::var_os("HOLDFAST_BENCH_QUICK").is_some();
    let mut subjects = vec![Subject {
        name: "holdfast-driver",
        command: format!(
            "{} all --endpoint unix://{{socket}} --node-id bench --data-dir {{dir}} --log-level warn",
            env!("CARGO_BIN_EXE_holdfast-driver")
        ),
    }];
    match std::env::var("HOLDFAST_BENCH_OTHER") {
        Ok(command) => subjects.push(Subject {
            name: "other",
            command,
        }),
        Err(_) => println!("HOLDFAST_BENCH_OTHER names no other driver: its column is skipped"),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let columns: Vec<_> = subjects
        .iter()
        .map(|subject| runtime.block_on(measure(subject, quick)))
        .collect();
    let shown = |figure: Option<f64>| figure.map_or_else(|| String::from("-"), |f| format!("{f:.2}"));
    println!(
        "| figure | {} |",
        subjects.iter().map(|s| s.name).collect::<Vec<_>>().join(" | ")
    );
    println!("|---|{}", "--:|".repeat(subjects.len()));
    for (row, (name, _)) in columns[0].iter().enumerate() {
        let cells: Vec<_> = columns.iter().map(|column| shown(column[row].1)).collect();
        println!("| {name} | {} |", cells.join(" | "));
    }
}
