//! What kubelet's own folder shows, in one form whoever looks: a shell in a node of ours, which has no program of ours, or this
//! program in a pod, whose image has no shell.
use std::io;
use std::path::{Path, PathBuf};

/// Where kubelet keeps its pods and plugins.
pub const KUBELET: &str = "/var/lib/kubelet";

/// Lists what CSI volumes and pods may leave in kubelet's folder, its first argument: paths, and for each pod's folder a
/// line `pod FOLDER HOSTNAME`. What goes away while it is listed is no error.
pub const LIST_KUBELET: &str = r#"cd "$1" || exit 1
find "$1/pods" -mindepth 4 -maxdepth 4 -path '*/volumes/kubernetes.io~csi/*' 2>/dev/null
find "$1/pods" -mindepth 4 -maxdepth 4 -path '*/volumeDevices/kubernetes.io~csi/*' 2>/dev/null
find "$1/plugins/kubernetes.io/csi" -mindepth 2 -maxdepth 3 2>/dev/null |
  grep -v -e '/volumeDevices/staging$' -e '/volumeDevices/publish$'
for pod in "$1"/pods/*/; do
  [ -d "$pod" ] || continue
  name=
  while read -r address host rest; do name=$host; done 2>/dev/null <"$pod/etc-hosts"
  pod=${pod%/}
  echo "pod ${pod##*/} $name"
done 2>/dev/null
true"#;

/// Volumes of CSI in a pod's folder.
const OF_POD: [&str; 2] = ["volumes/kubernetes.io~csi", "volumeDevices/kubernetes.io~csi"];
/// Of every pod together: kubelet's staging folders.
const STAGING: &str = "plugins/kubernetes.io/csi";
/// Folders that are there for all devices and belong to none.
const SHARED: [&str; 2] = ["volumeDevices/staging", "volumeDevices/publish"];

/// The same lines as [`LIST_KUBELET`] has for `root`, in an order of their own.
///
/// # Errors
/// If `root` cannot be read; what goes away below it while it is listed is no error.
pub fn list(root: &Path) -> io::Result<String> {
    std::fs::read_dir(root)?;
    let mut lines = Vec::new();
    for pod in inside(&root.join("pods"))? {
        for place in OF_POD {
            lines.extend(inside(&pod.join(place))?.iter().map(|path| shown(path)));
        }
        if pod.is_dir() {
            let folder = pod.file_name().unwrap_or_default().to_string_lossy().into_owned();
            lines.push(format!("pod {folder} {}", hostname(&pod)?));
        }
    }
    let staging = root.join(STAGING);
    let shared = SHARED.map(|path| staging.join(path));
    for plugin in inside(&staging)? {
        for volume in inside(&plugin)? {
            lines.extend(inside(&volume)?.iter().map(|path| shown(path)));
            if !shared.contains(&volume) {
                lines.push(shown(&volume));
            }
        }
    }
    Ok(lines.into_iter().map(|line| line + "\n").collect())
}

fn shown(path: &Path) -> String {
    path.display().to_string()
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
    fn the_program_and_the_shell_see_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
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
            fs::create_dir_all(root.join(made)).unwrap();
        }
        fs::write(root.join("pods/u-2/volumeDevices/kubernetes.io~csi/pvc-2"), "").unwrap();
        fs::write(
            root.join("plugins/kubernetes.io/csi/holdfast.csi/abc/vol_data.json"),
            "{}",
        )
        .unwrap();
        fs::write(
            root.join("pods/u-1/etc-hosts"),
            "# made by kubelet\n10.0.0.1\tdata-pod\n",
        )
        .unwrap();
        let shell = std::process::Command::new("sh")
            .args(["-c", LIST_KUBELET, "list"])
            .arg(root)
            .output()
            .unwrap();
        let lines = |text: &str| -> BTreeSet<String> {
            text.lines().map(|line| line.trim_end().to_owned()).collect()
        };
        let seen = lines(&list(root).unwrap());
        assert_eq!(seen, lines(&String::from_utf8(shell.stdout).unwrap()));
        assert!(seen.contains("pod u-1 data-pod") && seen.len() > 8, "{seen:?}");
        assert!(list(&root.join("nowhere")).is_err());
    }
}
