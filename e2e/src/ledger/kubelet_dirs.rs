//! Kubelet's own folders for CSI volumes.
use super::entry::{Entry, Kind};

/// The entries of the paths below a node's kubelet folder that belong to a CSI volume.
pub(super) fn entries(node: &str, paths: &[String]) -> Vec<Entry> {
    paths
        .iter()
        .filter(|path| path.contains("kubernetes.io~csi/") || path.contains("/kubernetes.io/csi/"))
        .map(|path| Entry {
            kind: Kind::KubeletDir,
            name: path.clone(),
            place: node.to_owned(),
            owner: String::from("kubelet"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_left_over_folder_is_named() {
        let paths = [
            String::from("/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/pvc-1"),
            String::from("/var/lib/kubelet/pods/u/volumes/kubernetes.io~projected/t"),
        ];
        assert_eq!(entries("w1", &paths).len(), 1);
    }
}
