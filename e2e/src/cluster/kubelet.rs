//! What kubelet's own folder shows: of a node of ours from this host, of another one from a pod on it.
use std::io;
use std::path::{Path, PathBuf};

/// Where kubelet keeps its pods and plugins.
pub const KUBELET: &str = "/var/lib/kubelet";

/// Volumes of CSI in a pod's folder.
const OF_POD: [&str; 2] = ["volumes/kubernetes.io~csi", "volumeDevices/kubernetes.io~csi"];
/// Of every pod together: kubelet's staging folders.
const STAGING: &str = "plugins/kubernetes.io/csi";
/// Folders that are there for all devices and belong to none.
const SHARED: [&str; 2] = ["volumeDevices/staging", "volumeDevices/publish"];

/// Lists what CSI volumes and pods may leave in kubelet's folder `kubelet` of the system whose root is at `root`: paths as that
/// system has them, and for each pod's folder a line `pod FOLDER HOSTNAME`. Kubelet has no absolute links where this looks: one
/// would be followed in our system, not in that one.
///
/// # Errors
/// If the folder cannot be read; what goes away below it while it is listed is no error.
pub fn list(root: &Path, kubelet: &Path) -> io::Result<String> {
    let folder = root.join(kubelet.strip_prefix("/").unwrap_or(kubelet));
    std::fs::read_dir(&folder)?;
    let shown = |path: &PathBuf| {
        let inner = path.strip_prefix(root).unwrap_or(path);
        Path::new("/").join(inner).display().to_string()
    };
    let mut lines = Vec::new();
    for pod in inside(&folder.join("pods"))? {
        for place in OF_POD {
            lines.extend(inside(&pod.join(place))?.iter().map(shown));
        }
        if pod.is_dir() {
            let name = pod.file_name().unwrap_or_default().to_string_lossy();
            lines.push(format!("pod {name} {}", hostname(&pod)?));
        }
    }
    let staging = folder.join(STAGING);
    let shared = SHARED.map(|path| staging.join(path));
    for plugin in inside(&staging)? {
        for volume in inside(&plugin)? {
            lines.extend(inside(&volume)?.iter().map(shown));
            if !shared.contains(&volume) {
                lines.push(shown(&volume));
            }
        }
    }
    Ok(lines.into_iter().map(|line| line + "\n").collect())
}

/// What is in a folder; one that is gone, or is none, has nothing.
fn inside(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// The last name in the hosts file that kubelet made for the pod.
fn hostname(pod: &Path) -> io::Result<String> {
    let text = match std::fs::read_to_string(pod.join("etc-hosts")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let last = text
        .lines()
        .last()
        .and_then(|line| line.split_whitespace().nth(1));
    Ok(last.unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;

    #[test]
    fn what_volumes_and_pods_leave_is_listed_as_the_node_has_it() {
        let system = tempfile::tempdir().unwrap();
        let folder = system.path().join("var/lib/kubelet");
        for made in [
            "pods/u-1/volumes/kubernetes.io~csi/pvc-1/mount",
            "pods/u-1/volumes/kubernetes.io~projected/token",
            "pods/u-2/volumeDevices/kubernetes.io~csi",
            "pods/u-3",
            "plugins/kubernetes.io/csi/holdfast.csi/abc/globalmount/inside",
            "plugins/kubernetes.io/csi/volumeDevices/pvc-2/dev",
            "plugins/kubernetes.io/csi/volumeDevices/staging/pvc-2/deep",
            "plugins/kubernetes.io/csi/volumeDevices/publish/pvc-2",
        ] {
            fs::create_dir_all(folder.join(made)).unwrap();
        }
        fs::write(folder.join("pods/u-2/volumeDevices/kubernetes.io~csi/pvc-2"), "").unwrap();
        fs::write(
            folder.join("plugins/kubernetes.io/csi/holdfast.csi/abc/vol_data.json"),
            "{}",
        )
        .unwrap();
        fs::write(
            folder.join("pods/u-1/etc-hosts"),
            "# made by kubelet\n10.0.0.1\tdata-pod\n",
        )
        .unwrap();
        let listed = list(system.path(), Path::new(KUBELET)).unwrap();
        let seen: BTreeSet<&str> = listed.lines().map(str::trim_end).collect();
        let expected = [
            "/var/lib/kubelet/plugins/kubernetes.io/csi/holdfast.csi/abc",
            "/var/lib/kubelet/plugins/kubernetes.io/csi/holdfast.csi/abc/globalmount",
            "/var/lib/kubelet/plugins/kubernetes.io/csi/holdfast.csi/abc/vol_data.json",
            "/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/pvc-2",
            "/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/pvc-2",
            "/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/pvc-2/dev",
            "/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/staging/pvc-2",
            "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~csi/pvc-1",
            "/var/lib/kubelet/pods/u-2/volumeDevices/kubernetes.io~csi/pvc-2",
            "pod u-1 data-pod",
            "pod u-2",
            "pod u-3",
        ];
        assert_eq!(seen, BTreeSet::from(expected));
        assert!(list(system.path(), Path::new("/nowhere")).is_err());
    }
}
