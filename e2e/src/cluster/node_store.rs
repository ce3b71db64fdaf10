//! The images of a node image, unpacked into the store of its containerd before any node starts.
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::label::remove_tree;
use super::{ClusterError, at, call};
use crate::command::{self, Command};

const LIMIT_STEP: Duration = Duration::from_secs(300);
const LIMIT_CONTAINERD: Duration = Duration::from_secs(20);

/// Unpacks images into the store of the node's containerd, with that containerd, on the host.
///
/// The layers end outside /var: kind makes /var a volume of each node, and Docker would copy them for each.
pub(super) async fn bake(bin: &Path, root: &Path, work: &Path, archive: &Path) -> Result<(), ClusterError> {
    let store = root.join("var/lib/containerd");
    std::fs::create_dir_all(&store).map_err(at(&store, "create"))?;
    // Below /run, as a socket's path may have about 100 bytes.
    let state = Path::new("/run/holdfast").join(format!("bake-{}", std::process::id()));
    std::fs::create_dir_all(&state).map_err(at(&state, "create"))?;
    let socket = state.join("c.sock");
    let config = work.join("containerd.toml");
    let text = format!(
        "version = 3\nroot = '{}'\nstate = '{}'\ndisabled_plugins = ['io.containerd.grpc.v1.cri', \
         'io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime', 'io.containerd.nri.v1.nri']\n\
         [grpc]\naddress = '{}'\n",
        store.display(),
        state.join("state").display(),
        socket.display()
    );
    std::fs::write(&config, text).map_err(at(&config, "write"))?;
    let ctr = || {
        Command::new(bin.join("ctr"))
            .arg("--address")
            .arg(&socket)
            .args(["--namespace", "k8s.io"])
            .timeout(LIMIT_STEP)
    };
    let mut first = Containerd::start(bin, &config, &socket).await?;
    let import = ctr()
        .args([
            "images",
            "import",
            "--local",
            "--discard-unpacked-layers",
            "--snapshotter",
            "overlayfs",
        ])
        .arg(archive);
    call("ctr images import", &import).await?;
    first.stop().await?;
    // Packed layers that were let go are collected by a containerd that starts afresh; a pruned store says when.
    let mut second = Containerd::start(bin, &config, &socket).await?;
    call(
        "ctr content prune",
        &ctr().args(["content", "prune", "references"]),
    )
    .await?;
    second.stop().await?;
    super::label::release(&state).await?;
    remove_tree(&state)?;
    let leftover = store.join("tmpmounts");
    remove_tree(&leftover)?;
    let snapshots = store.join("io.containerd.snapshotter.v1.overlayfs/snapshots");
    let layers = root.join("kind/layers");
    std::fs::create_dir_all(&layers).map_err(at(&layers, "create"))?;
    for entry in std::fs::read_dir(&snapshots).map_err(at(&snapshots, "list"))? {
        let entry = entry.map_err(at(&snapshots, "list"))?;
        let (from, to) = (entry.path().join("fs"), layers.join(entry.file_name()));
        std::fs::rename(&from, &to).map_err(at(&from, "move"))?;
        symlink(Path::new("/kind/layers").join(entry.file_name()), &from).map_err(at(&from, "link"))?;
    }
    Ok(())
}

struct Containerd {
    child: tokio::process::Child,
}

impl Containerd {
    async fn start(bin: &Path, config: &Path, socket: &Path) -> Result<Self, ClusterError> {
        let program = bin.join("containerd");
        let log = config.with_extension("log");
        let out = std::fs::File::create(&log).map_err(at(&log, "create"))?;
        // It may not outlive us, not even if we are killed.
        let mut command = tokio::process::Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(&program)
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(out)
            .kill_on_drop(true);
        let child = command.spawn().map_err(at(&program, "start"))?;
        let since = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        let ask = Command::new(bin.join("ctr"))
            .arg("--address")
            .arg(socket)
            .arg("version")
            .timeout(Duration::from_secs(5));
        loop {
            tick.tick().await;
            if socket.exists() && command::run(&ask).await.is_ok() {
                return Ok(Self { child });
            }
            if since.elapsed() > LIMIT_CONTAINERD {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                let last = said.lines().last().unwrap_or_default();
                return Err(ClusterError::Setup(format!(
                    "containerd does not answer on the host; it said: {last}"
                )));
            }
        }
    }

    async fn stop(&mut self) -> Result<(), ClusterError> {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // Gone already is as good.
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        let ended = tokio::time::timeout(LIMIT_CONTAINERD, self.child.wait()).await;
        match ended {
            Ok(status) => status.map(drop).map_err(at(Path::new("containerd"), "wait")),
            Err(_) => Err(ClusterError::Setup(String::from(
                "containerd does not stop on the host",
            ))),
        }
    }
}
