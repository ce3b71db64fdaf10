//! T2: the driver's own image, in containers: starts, answers, survives SIGKILL, pause and restart with a mounted volume,
//! and loses nothing. Both roles run as the chart runs them: the controller as an ordinary user on a read-only root, the
//! node plugin privileged; so each also opens what the other wrote.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking
mod support;

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use holdfast_e2e::cluster::docker::Docker;
use holdfast_e2e::cluster::driver_image;
use holdfast_e2e::command;
use holdfast_e2e::ledger::{Call, parse_calls};
use holdfast_proto::csi;
use libtest_mimic::{Arguments, Failed, Trial};
use support::api_proxy::ApiProxy;
use support::array::Array;
use support::{Found, check, is_root, trial};
use testcontainers::core::wait::ExitWaitStrategy;
use testcontainers::core::{Mount, WaitFor};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, ContainerRequest, GenericImage, ImageExt};
use tonic::transport::Channel;

/// The image's name, for the process that runs the cases.
const IMAGE_ENV: &str = "HOLDFAST_T2_IMAGE";
/// The name of the suite's own image.
const E2E_IMAGE_ENV: &str = "HOLDFAST_T2_E2E_IMAGE";
const NODE: &str = "t2-node";
const DATA_DIR: &str = "/var/lib/holdfast";
/// A container's start, and the driver's sweep of the data folder.
const LIMIT_START: Duration = Duration::from_secs(20);
/// A call; mkfs is the longest.
const LIMIT_CALL: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let image: Found<String> = match std::env::var(IMAGE_ENV) {
        Ok(image) => Ok(image),
        Err(_) if arguments.list => Err("not looked for".into()),
        // testcontainers reads DOCKER_HOST, and a process may not change its own environment safely: the cases run in
        // a process of their own, behind the proxy that lives in this one.
        Err(_) => match prepare_and_run() {
            Ok(code) => return code,
            Err(reason) => Err(reason),
        },
    };
    let mut cases: Vec<_> = support::api_proxy::checks()
        .into_iter()
        .map(|(name, holds)| Trial::test(name, move || check(holds(), || name.to_owned())))
        .collect();
    cases.push(trial(
        "a_volume_outlives_kill_pause_and_restart_of_its_driver",
        &image,
        |image| on_runtime(survives(image)),
    ));
    cases.push(trial("each_role_opens_the_files_of_the_other", &image, |image| {
        on_runtime(shares_files(image))
    }));
    let own = image.and_then(|_| std::env::var(E2E_IMAGE_ENV).map_err(support::chain));
    cases.push(trial("the_suites_own_image_starts", &own, |image| {
        on_runtime(starts(image))
    }));
    libtest_mimic::run(&arguments, cases).exit_code()
}

fn on_runtime(case: impl Future<Output = Result<(), Failed>>) -> Result<(), Failed> {
    tokio::runtime::Runtime::new()?.block_on(case)
}

/// Finds a daemon, makes the image, and runs this program again behind the proxy.
fn prepare_and_run() -> Result<ExitCode, String> {
    if !is_root() {
        return Err("needs root for mounts and loop devices".into());
    }
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let docker = support::docker::ensure().await?;
        let image = driver_image::driver(&docker.docker, &docker.progress)
            .await
            .map_err(support::chain)?;
        no_failpoints(&docker.docker, &image).await?;
        let own = Path::new(env!("CARGO_BIN_EXE_holdfast"));
        let own = driver_image::e2e(&docker.docker, own, &docker.progress)
            .await
            .map_err(support::chain)?;
        let daemon = docker.docker.host.trim_start_matches("unix://").to_owned();
        let proxy = ApiProxy::start(Path::new(&daemon))
            .await
            .map_err(|error| error.to_string())?;
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let status = tokio::process::Command::new(program)
            .args(std::env::args_os().skip(1))
            .env("DOCKER_HOST", proxy.host())
            .env(IMAGE_ENV, image)
            .env(E2E_IMAGE_ENV, own)
            .status()
            .await
            .map_err(|error| error.to_string())?;
        drop(proxy);
        docker.release().await?;
        Ok(ExitCode::from(
            u8::try_from(status.code().unwrap_or(1)).unwrap_or(1),
        ))
    })
}

/// The driver that is shipped has no point at which a test could kill it.
async fn no_failpoints(docker: &Docker, image: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let program = folder.path().join("driver");
    let label = format!("holdfast.run=t2-{}", std::process::id());
    let create = docker.command().args(["create", "--label", &label, image]);
    let container = command::run(&create).await.map_err(support::chain)?.stdout;
    let container = container.trim();
    let copy = docker
        .command()
        .args(["cp", &format!("{container}:/holdfast-driver")])
        .arg(&program);
    let copied = command::run(&copy).await.map_err(support::chain);
    let remove = docker.command().args(["rm", container]);
    command::run(&remove).await.map_err(support::chain)?;
    copied?;
    let bytes = fs::read(&program).map_err(|error| error.to_string())?;
    let word = b"HOLDFAST_FAILPOINT";
    if bytes.windows(word.len()).any(|window| window == word) {
        return Err(format!("the driver of {image} has failpoints"));
    }
    Ok(())
}

/// A container of one role, as the chart runs it.
async fn start(image: &str, role: &str, array: &Array) -> Result<ContainerAsync<GenericImage>, Failed> {
    let (name, tag) = image.rsplit_once(':').ok_or("the image has no tag")?;
    let node_id = format!("--node-id={NODE}");
    let data = format!("--data-dir={DATA_DIR}");
    let mut args = vec![role, "--endpoint=unix:///csi/csi.sock", &data];
    if role == "node" {
        args.push(&node_id);
    }
    let request: ContainerRequest<_> = GenericImage::new(name, tag)
        .with_cmd(args)
        .with_label("holdfast.run", format!("t2-{}", std::process::id()))
        .with_mount(Mount::bind_mount(array.data().display().to_string(), DATA_DIR))
        .with_mount(Mount::bind_mount(
            array.socket_dir(role).display().to_string(),
            "/csi",
        ))
        .with_readonly_rootfs(true);
    let mounts = array.mounts().display().to_string();
    let request = match role {
        "controller" => request
            .with_user("2770:2770")
            .with_cap_drop("ALL")
            .with_host_config_modifier(|host| host.network_mode = Some("none".into())),
        _ => request
            .with_privileged(true)
            .with_user("0:2770")
            .with_host_config_modifier(move |host| {
                host.network_mode = Some("none".into());
                // The same path inside and outside, as kubelet's folder has in the chart.
                host.binds = Some(vec![format!("{mounts}:{mounts}:rshared"), "/dev:/dev".into()]);
            }),
    };
    Ok(request.start().await?)
}

/// A channel to the driver behind `folder`'s socket, once it answers Probe.
async fn connect(folder: PathBuf) -> Result<Channel, Failed> {
    let socket = folder.join("csi.sock");
    let mut seen = "nothing yet".to_owned();
    let wait = async {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            match probe(&socket).await {
                Ok(channel) => return channel,
                Err(error) => seen = error,
            }
        }
    };
    let found = tokio::time::timeout(LIMIT_START, wait).await;
    found.map_err(|_| {
        format!(
            "no answer at {} in {LIMIT_START:?}; last seen: {seen}",
            socket.display()
        )
        .into()
    })
}

async fn probe(socket: &Path) -> Result<Channel, String> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("unix://{}", socket.display()))
        .map_err(support::chain)?
        .timeout(LIMIT_CALL);
    let channel = endpoint.connect().await.map_err(support::chain)?;
    let mut identity = csi::identity_client::IdentityClient::new(channel.clone());
    let ready = identity
        .probe(csi::ProbeRequest {})
        .await
        .map_err(|status| status.to_string())?
        .into_inner()
        .ready;
    if ready == Some(false) {
        Err("not ready".into())
    } else {
        Ok(channel)
    }
}

fn ext4() -> csi::VolumeCapability {
    use csi::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
    csi::VolumeCapability {
        access_mode: Some(AccessMode {
            mode: Mode::SingleNodeWriter.into(),
        }),
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: "ext4".into(),
            ..Default::default()
        })),
    }
}

/// One volume and the two ends that it is driven by.
struct Volume {
    id: String,
    context: HashMap<String, String>,
    publish_context: HashMap<String, String>,
    staging: String,
    target: String,
}

async fn create(controller: &Channel, array: &Array, name: &str) -> Result<Volume, Failed> {
    let mut client = csi::controller_client::ControllerClient::new(controller.clone());
    let volume = client
        .create_volume(csi::CreateVolumeRequest {
            name: name.into(),
            capacity_range: Some(csi::CapacityRange {
                required_bytes: 64 << 20,
                limit_bytes: 0,
            }),
            volume_capabilities: vec![ext4()],
            ..Default::default()
        })
        .await?
        .into_inner()
        .volume
        .ok_or("CreateVolume named no volume")?;
    let published = client
        .controller_publish_volume(csi::ControllerPublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            node_id: NODE.into(),
            volume_capability: Some(ext4()),
            volume_context: volume.volume_context.clone(),
            ..Default::default()
        })
        .await?
        .into_inner();
    let folder = array.mounts().join(name);
    fs::create_dir_all(folder.join("staging"))?;
    Ok(Volume {
        id: volume.volume_id,
        context: volume.volume_context,
        publish_context: published.publish_context,
        staging: folder.join("staging").display().to_string(),
        target: folder.join("target").display().to_string(),
    })
}

impl Volume {
    /// Stages and publishes; harmless when it is there already.
    async fn mount(&self, node: &Channel) -> Result<(), Failed> {
        let mut client = csi::node_client::NodeClient::new(node.clone());
        client
            .node_stage_volume(csi::NodeStageVolumeRequest {
                volume_id: self.id.clone(),
                publish_context: self.publish_context.clone(),
                staging_target_path: self.staging.clone(),
                volume_capability: Some(ext4()),
                volume_context: self.context.clone(),
                ..Default::default()
            })
            .await?;
        client
            .node_publish_volume(csi::NodePublishVolumeRequest {
                volume_id: self.id.clone(),
                publish_context: self.publish_context.clone(),
                staging_target_path: self.staging.clone(),
                target_path: self.target.clone(),
                volume_capability: Some(ext4()),
                volume_context: self.context.clone(),
                ..Default::default()
            })
            .await?;
        Ok(())
    }

    async fn unmount(&self, node: &Channel) -> Result<(), Failed> {
        let mut client = csi::node_client::NodeClient::new(node.clone());
        client
            .node_unpublish_volume(csi::NodeUnpublishVolumeRequest {
                volume_id: self.id.clone(),
                target_path: self.target.clone(),
            })
            .await?;
        client
            .node_unstage_volume(csi::NodeUnstageVolumeRequest {
                volume_id: self.id.clone(),
                staging_target_path: self.staging.clone(),
            })
            .await?;
        Ok(())
    }

    async fn delete(&self, controller: &Channel) -> Result<(), Failed> {
        let mut client = csi::controller_client::ControllerClient::new(controller.clone());
        client
            .controller_unpublish_volume(csi::ControllerUnpublishVolumeRequest {
                volume_id: self.id.clone(),
                node_id: NODE.into(),
                ..Default::default()
            })
            .await?;
        let request = csi::DeleteVolumeRequest {
            volume_id: self.id.clone(),
            ..Default::default()
        };
        client.delete_volume(request).await?;
        Ok(())
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Failed> {
        let mut file = fs::File::create(Path::new(&self.target).join(name))?;
        file.write_all(text.as_bytes())?;
        Ok(file.sync_all()?)
    }

    fn holds(&self, name: &str, text: &str) -> Result<(), Failed> {
        let found = fs::read_to_string(Path::new(&self.target).join(name))?;
        check(found == text, || format!("{name} holds {found:?}, not {text:?}"))
    }
}

fn nothing_is_left(array: &Array, loops_before: &[String]) -> Result<(), Failed> {
    let mounted = array.mounted();
    check(mounted.is_empty(), || format!("mounts are left: {mounted:?}"))?;
    let files = array.volume_files();
    check(files.is_empty(), || format!("files are left: {files:?}"))?;
    // The images are gone, so a loop device that still holds one has a deleted file behind it.
    let held: Vec<_> = loops_before.iter().filter(|device| is_bound(device)).collect();
    check(held.is_empty(), || format!("loop devices are left: {held:?}"))
}

/// Whether a loop device has a backing file.
fn is_bound(device: &str) -> bool {
    let name = device.trim_start_matches("/dev/");
    Path::new("/sys/block")
        .join(name)
        .join("loop/backing_file")
        .exists()
}

/// The ledger reads in the log which call touched a volume last.
async fn is_logged(container: &ContainerAsync<GenericImage>, rpc: &str) -> Result<(), Failed> {
    let log = String::from_utf8(container.stderr_to_vec().await?)?;
    let said = |call: &Call| call.rpc == rpc && call.code == "Ok" && !call.volume.is_empty();
    check(parse_calls(&log).iter().any(said), || {
        format!("no {rpc} that was answered OK in:\n{log}")
    })
}

/// The image has all libraries that the program needs, and knows how it is started.
async fn starts(image: String) -> Result<(), Failed> {
    let (name, tag) = image.rsplit_once(':').ok_or("the image has no tag")?;
    let container = GenericImage::new(name, tag)
        .with_cmd(["--version"])
        .with_label("holdfast.run", format!("t2-{}", std::process::id()))
        .with_user("65534:65534")
        .with_readonly_rootfs(true)
        .with_host_config_modifier(|host| host.network_mode = Some("none".into()))
        .with_ready_conditions(vec![WaitFor::exit(ExitWaitStrategy::new().with_exit_code(0))])
        .start()
        .await?;
    let said = String::from_utf8(container.stdout_to_vec().await?)?;
    check(said.starts_with("holdfast "), || format!("it said {said:?}"))
}

async fn survives(image: String) -> Result<(), Failed> {
    let array = Array::new();
    let controller = start(&image, "controller", &array).await?;
    let node = start(&image, "node", &array).await?;
    let to_controller = connect(array.socket_dir("controller")).await?;
    let to_node = connect(array.socket_dir("node")).await?;
    let volume = create(&to_controller, &array, "t2-survives").await?;
    volume.mount(&to_node).await?;
    volume.write("before", "written before the kill")?;
    let loops = array.loops();
    check(loops.len() == 1, || {
        format!("one loop device expected, seen {loops:?}")
    })?;

    // SIGKILL at once, of both roles, with the volume mounted.
    for container in [&node, &controller] {
        container.stop_with_timeout(Some(0)).await?;
    }
    volume.holds("before", "written before the kill")?;
    volume.write("between", "written while no driver ran")?;
    check(array.loops() == loops, || {
        format!("the loop device changed: {:?}", array.loops())
    })?;
    for container in [&node, &controller] {
        container.start().await?;
    }
    let to_controller = connect(array.socket_dir("controller")).await?;
    let to_node = connect(array.socket_dir("node")).await?;
    volume.mount(&to_node).await?;
    check(array.loops() == loops, || {
        format!("mounted again by another device: {:?}", array.loops())
    })?;
    volume.holds("between", "written while no driver ran")?;

    // A paused driver answers nothing, and everything once it goes on.
    node.pause().await?;
    let paused = tokio::time::timeout(Duration::from_millis(300), volume.mount(&to_node)).await;
    check(paused.is_err(), || {
        format!("a paused driver answered: {paused:?}")
    })?;
    volume.write("paused", "written while the driver was paused")?;
    node.unpause().await?;
    volume.mount(&to_node).await?;

    // An orderly restart, and a life of the data beyond all mounts.
    node.stop_with_timeout(Some(10)).await?;
    node.start().await?;
    let to_node = connect(array.socket_dir("node")).await?;
    volume.unmount(&to_node).await?;
    check(array.mounted().is_empty(), || {
        format!("still mounted: {:?}", array.mounted())
    })?;
    volume.mount(&to_node).await?;
    for (name, text) in [
        ("before", "written before the kill"),
        ("between", "written while no driver ran"),
        ("paused", "written while the driver was paused"),
    ] {
        volume.holds(name, text)?;
    }
    let loops = [loops, array.loops()].concat();
    volume.unmount(&to_node).await?;
    volume.delete(&to_controller).await?;
    is_logged(&controller, "DeleteVolume").await?;
    is_logged(&node, "NodeUnstageVolume").await?;
    nothing_is_left(&array, &loops)
}

async fn shares_files(image: String) -> Result<(), Failed> {
    let array = Array::new();
    let _controller = start(&image, "controller", &array).await?;
    let _node = start(&image, "node", &array).await?;
    let to_controller = connect(array.socket_dir("controller")).await?;
    let to_node = connect(array.socket_dir("node")).await?;
    let volume = create(&to_controller, &array, "t2-shares").await?;
    // The node plugin opens the record and the image that the controller made; the controller deletes what it touched.
    volume.mount(&to_node).await?;
    let mut folders = vec![array.data()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            let mode = meta.permissions().mode() & 0o7777;
            let wanted = if meta.is_dir() { 0o2770 } else { 0o660 };
            check(meta.gid() == 2770 && mode == wanted, || {
                format!(
                    "{}: group {}, mode {mode:o}, wanted 2770 and {wanted:o}",
                    entry.path().display(),
                    meta.gid()
                )
            })?;
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    let loops = array.loops();
    volume.unmount(&to_node).await?;
    volume.delete(&to_controller).await?;
    nothing_is_left(&array, &loops)
}
