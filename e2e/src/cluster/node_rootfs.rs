//! The root filesystem of a node image that is built here: Debian's part, and what makes it a node.
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::versions::Source;
use super::{ClusterError, at, cache_root, call};
use crate::command::Command;
use crate::progress::Progress;

const LIMIT_PACKAGES: Duration = Duration::from_secs(900);
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

pub(super) fn copy(from: &Path, to: &Path) -> Result<(), ClusterError> {
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

pub(super) fn link(target: &str, at_path: &Path) -> Result<(), ClusterError> {
    if let Some(folder) = at_path.parent() {
        std::fs::create_dir_all(folder).map_err(at(folder, "create"))?;
    }
    if at_path.is_symlink() || at_path.exists() {
        std::fs::remove_file(at_path).map_err(at(at_path, "remove"))?;
    }
    symlink(target, at_path).map_err(at(at_path, "link"))
}
