//! The pieces of a node image that is built here: Debian's part, the pods' images, what makes it a node.
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;

use super::images::{self, ImageSpec};
use super::label::remove_tree;
use super::versions::{Source, Versions};
use super::{ClusterError, at, cache_root, call};
use crate::command::{self, Command};
use crate::progress::Progress;

const LIMIT_PACKAGES: Duration = Duration::from_secs(900);
const LIMIT_STEP: Duration = Duration::from_secs(300);
const LIMIT_CONTAINERD: Duration = Duration::from_secs(20);
const PATH: &str = "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What nobody uses in a node, or what would touch the host.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dev-hugepages.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "getty@tty1.service",
    "nftables.service",
    "sys-fs-fuse-connections.mount",
    "systemd-binfmt.service",
    "systemd-logind.service",
    "systemd-modules-load.service",
    "systemd-sysctl.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
    "xfs_scrub_all.timer",
];
const ENABLED: &[&str] = &["podnet.service", "containerd.service", "kubelet.service"];
const KUBE_IMAGES: &[&str] = &[
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
];

/// All files below a folder, sorted.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>, ClusterError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(at(folder, "list"))? {
        let path = entry.map_err(at(folder, "list"))?.path();
        if path.is_dir() {
            found.extend(files(&path)?)
        } else {
            found.push(path)
        }
    }
    found.sort();
    Ok(found)
}

/// Debian's packages as a tar, made once.
pub(super) async fn packed(
    debian: &str,
    module: &Path,
    key: &str,
    progress: &Progress,
) -> Result<PathBuf, ClusterError> {
    let path = cache_root().join("rootfs").join(format!("{debian}-{key}.tar"));
    if path.exists() {
        return Ok(path);
    }
    let folder = cache_root().join("rootfs");
    std::fs::create_dir_all(&folder).map_err(at(&folder, "create"))?;
    let list = module.join("packages.txt");
    let text = std::fs::read_to_string(&list).map_err(at(&list, "read"))?;
    let names = text.split_whitespace().collect::<Vec<_>>().join(",");
    let step = progress.step(&format!("install Debian {debian} for the node image"));
    let fresh = folder.join(format!("new-{}.tar", std::process::id()));
    let mut spec = Command::new("mmdebstrap").args(["--variant=minbase", "--include", &names]);
    for unwanted in ["man", "doc", "locale", "info"] {
        spec = spec.arg(format!("--dpkgopt=path-exclude=/usr/share/{unwanted}/*"));
    }
    let made = call(
        "mmdebstrap",
        &spec.arg(debian).arg(&fresh).timeout(LIMIT_PACKAGES),
    )
    .await;
    if made.is_err() && fresh.exists() {
        std::fs::remove_file(&fresh).map_err(at(&fresh, "remove"))?;
    }
    made?;
    std::fs::rename(&fresh, &path).map_err(at(&path, "rename"))?;
    step.done();
    Ok(path)
}

/// The images that a node holds before it ever starts, in one archive.
pub(super) async fn pod_images(
    versions: &Versions,
    source: &Source,
    module: &Path,
    bin: &Path,
    root: &Path,
    work: &Path,
) -> Result<PathBuf, ClusterError> {
    let trees = work.join("images");
    let kube = trees.join("kubernetes");
    for folder in ["run", "tmp", "etc", "usr/sbin"] {
        let path = kube.join(folder);
        std::fs::create_dir_all(&path).map_err(at(&path, "create"))?;
    }
    copy(&bin.join("hyperkube"), &kube.join("usr/local/bin/hyperkube"))?;
    for name in KUBE_IMAGES {
        link("hyperkube", &kube.join("usr/local/bin").join(name))?;
    }
    proxy_tools(root, &kube).await?;
    copy(&bin.join("server"), &trees.join("etcd/usr/local/bin/etcd"))?;
    copy(&bin.join("coredns"), &trees.join("coredns/coredns"))?;
    let pause = trees.join("pause/pause");
    std::fs::create_dir_all(trees.join("pause")).map_err(at(&pause, "create"))?;
    let compile = Command::new("gcc")
        .args(["-Os", "-static", "-s", "-o"])
        .arg(&pause)
        .arg(module.join("pause.c"));
    call("gcc of pause.c", &compile).await?;
    let official = |name: &str| format!("registry.k8s.io/{name}");
    let (etcd, coredns, pause) = (trees.join("etcd"), trees.join("coredns"), trees.join("pause"));
    let mut specs = vec![
        ImageSpec {
            tree: &kube,
            names: KUBE_IMAGES
                .iter()
                .map(|name| official(&format!("{name}:{}", source.version)))
                .collect(),
            config: json!({ "Env": [PATH] }),
        },
        ImageSpec {
            tree: &etcd,
            names: vec![official(&format!("etcd:{}", source.etcd_tag))],
            config: json!({ "Env": [PATH] }),
        },
        ImageSpec {
            tree: &coredns,
            names: vec![official(&format!("coredns/coredns:{}", source.coredns_tag))],
            config: json!({ "Entrypoint": ["/coredns"] }),
        },
        ImageSpec {
            tree: &pause,
            names: vec![official(&format!("pause:{}", source.pause_tag))],
            config: json!({ "Entrypoint": ["/pause"], "User": "65535:65535" }),
        },
    ];
    let sidecars: Vec<(PathBuf, String, String)> = versions
        .sidecars
        .all()
        .iter()
        .map(|sidecar| {
            let program = sidecar.package.rsplit('/').next().unwrap_or_default().to_owned();
            (trees.join(&program), program, sidecar.image.clone())
        })
        .collect();
    for (tree, program, image) in &sidecars {
        copy(&bin.join(program), &tree.join(program))?;
        let config = json!({ "Entrypoint": [format!("/{program}")] });
        specs.push(ImageSpec {
            tree,
            names: vec![image.clone()],
            config,
        });
    }
    let out = work.join("images.tar");
    images::archive(&specs, &work.join("archive"), &out).await?;
    remove_tree(&trees)?;
    Ok(out)
}

/// What kube-proxy calls, and the libraries of that; extensions of iptables are libraries with libraries of their own.
async fn proxy_tools(root: &Path, tree: &Path) -> Result<(), ClusterError> {
    let extensions = root.join("usr/lib/x86_64-linux-gnu/xtables");
    let mut wanted: Vec<PathBuf> = ["usr/sbin/xtables-nft-multi", "usr/sbin/nft", "usr/sbin/conntrack"]
        .map(PathBuf::from)
        .into();
    for file in files(&extensions)? {
        wanted.push(file.strip_prefix(root).unwrap_or(&file).to_owned());
    }
    let inside = wanted.iter().map(|path| Path::new("/").join(path));
    let spec = Command::new("chroot")
        .arg(root)
        .arg("ldd")
        .args(inside.map(PathBuf::into_os_string));
    let said = call("ldd of kube-proxy's tools", &spec).await?;
    let libraries = said
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'));
    wanted.extend(libraries.map(|library| PathBuf::from(library.trim_start_matches('/'))));
    wanted.sort();
    wanted.dedup();
    for path in &wanted {
        // Links such as /lib are followed here, and are folders in the image.
        let resolved = call(
            "realpath",
            &Command::new("chroot")
                .arg(root)
                .arg("realpath")
                .arg(Path::new("/").join(path)),
        )
        .await?;
        copy(
            &root.join(resolved.trim().trim_start_matches('/')),
            &tree.join(path),
        )?;
    }
    for name in [
        "iptables",
        "iptables-save",
        "iptables-restore",
        "ip6tables",
        "ip6tables-save",
        "ip6tables-restore",
    ] {
        link("xtables-nft-multi", &tree.join("usr/sbin").join(name))?;
    }
    Ok(())
}

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

/// Turns Debian's root filesystem into a node: programs, units, configuration.
pub(super) fn install(source: &Source, module: &Path, bin: &Path, root: &Path) -> Result<(), ClusterError> {
    // The same file as in the pods' image, and not a second copy of it.
    let own = root.join("usr/bin/hyperkube");
    let layer = hyperkube_layer(&root.join("kind/layers"))?;
    std::fs::hard_link(&layer, &own).map_err(at(&own, "link"))?;
    for name in ["kubelet", "kubeadm", "kubectl"] {
        link("hyperkube", &root.join("usr/bin").join(name))?;
    }
    for name in ["containerd", "containerd-shim-runc-v2", "ctr"] {
        copy(&bin.join(name), &root.join("usr/local/bin").join(name))?;
    }
    let from = module.join("files");
    for file in files(&from)? {
        let to = root.join(file.strip_prefix(&from).unwrap_or(&file));
        copy(&file, &to)?;
    }
    let config = root.join("etc/containerd/config.toml");
    let text = std::fs::read_to_string(&config).map_err(at(&config, "read"))?;
    let pause = format!("registry.k8s.io/pause:{}", source.pause_tag);
    std::fs::write(&config, text.replace("@PAUSE@", &pause)).map_err(at(&config, "write"))?;
    let units = root.join("etc/systemd/system");
    for unit in MASKED {
        link("/dev/null", &units.join(unit))?;
    }
    for unit in ENABLED {
        link(
            &format!("/etc/systemd/system/{unit}"),
            &units.join("multi-user.target.wants").join(unit),
        )?;
    }
    link(
        "/lib/systemd/system/multi-user.target",
        &units.join("default.target"),
    )?;
    link("/usr/lib/cni", &root.join("opt/cni/bin"))?;
    for folder in [
        "kind/manifests",
        "etc/kubernetes/manifests",
        "var/lib/kubelet",
        "etc/cni/net.d",
    ] {
        let path = root.join(folder);
        std::fs::create_dir_all(&path).map_err(at(&path, "create"))?;
    }
    let version = root.join("kind/version");
    std::fs::write(&version, &source.version).map_err(at(&version, "write"))
}

fn hyperkube_layer(layers: &Path) -> Result<PathBuf, ClusterError> {
    for entry in std::fs::read_dir(layers).map_err(at(layers, "list"))? {
        let path = entry
            .map_err(at(layers, "list"))?
            .path()
            .join("usr/local/bin/hyperkube");
        if path.is_file() {
            return Ok(path);
        }
    }
    Err(ClusterError::Setup(format!(
        "no layer in {} holds hyperkube",
        layers.display()
    )))
}

fn copy(from: &Path, to: &Path) -> Result<(), ClusterError> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).map_err(at(folder, "create"))?;
    }
    std::fs::copy(from, to).map_err(at(from, "copy"))?;
    let mode = std::fs::metadata(from)
        .map_err(at(from, "stat"))?
        .permissions()
        .mode();
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(mode | 0o444)).map_err(at(to, "chmod"))
}

fn link(target: &str, at_path: &Path) -> Result<(), ClusterError> {
    if let Some(folder) = at_path.parent() {
        std::fs::create_dir_all(folder).map_err(at(folder, "create"))?;
    }
    if at_path.is_symlink() || at_path.exists() {
        std::fs::remove_file(at_path).map_err(at(at_path, "remove"))?;
    }
    symlink(target, at_path).map_err(at(at_path, "link"))
}
