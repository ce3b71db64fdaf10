//! Kubelet's own folders for CSI volumes, and those of pods that are gone.
use super::entry::{Entry, Kind};
use super::facts::Facts;
use super::owners::Owners;

/// The entries of what a node's shell lists of kubelet's folder: paths, and a line `pod FOLDER HOSTNAME` for each pod's.
pub(super) fn entries(node: &str, listed: &str, facts: &Facts, owners: &Owners) -> Vec<Entry> {
    listed
        .lines()
        .filter_map(|line| match line.strip_prefix("pod ") {
            Some(pod) => gone(node, pod, facts, owners, listed),
            None => volume(node, line, facts, owners),
        })
        .collect()
}

fn volume(node: &str, path: &str, facts: &Facts, owners: &Owners) -> Option<Entry> {
    if !path.contains("kubernetes.io~csi/") && !path.contains("/kubernetes.io/csi/") {
        return None;
    }
    let volume = owners.volume_at(path);
    let of_pod = path
        .split_once("/pods/")
        .and_then(|(_, rest)| rest.split('/').next())
        .and_then(|folder| facts.memory.pod(folder));
    let owner = match (volume.map(|id| owners.volume(id)), of_pod) {
        (Some(volume), Some(pod)) => format!("{volume}, pod {pod}"),
        (Some(volume), None) => volume,
        (None, Some(pod)) => format!("pod {pod}"),
        (None, None) => String::from("kubelet, for a volume that nothing else names"),
    };
    Some(Entry {
        kind: Kind::KubeletDir,
        name: path.to_owned(),
        place: node.to_owned(),
        owner,
        volume: volume.unwrap_or_default().to_owned(),
    })
}

/// The folder of a pod that the API does not have; kubelet takes it away soon after the pod's end.
fn gone(node: &str, pod: &str, facts: &Facts, owners: &Owners, listed: &str) -> Option<Entry> {
    let (folder, hostname) = pod.split_once(' ').unwrap_or((pod, ""));
    let alive = |pod: &super::LivePod| pod.folders.iter().any(|name| name == folder);
    if facts.pods.iter().any(alive) {
        return None;
    }
    let inside = format!("/pods/{folder}/");
    let volume = listed
        .lines()
        .filter(|path| path.contains(&inside))
        .find_map(|path| owners.volume_at(path));
    let pod = match (facts.memory.pod(folder), hostname) {
        (Some(name), _) => format!("pod {name}, which the API no longer has"),
        (None, "") => String::from("a pod that the API does not have"),
        (None, name) => format!("a pod called {name} that the API does not have"),
    };
    Some(Entry {
        kind: Kind::PodDir,
        name: format!("pods/{folder}"),
        place: node.to_owned(),
        owner: volume.map_or_else(|| pod.clone(), |id| format!("{pod}, {}", owners.volume(id))),
        volume: volume.unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::LivePod;
    use super::super::memory::Memory;
    use super::*;

    fn pod(folder: &str, name: &str) -> LivePod {
        LivePod {
            folders: vec![folder.to_owned()],
            name: name.to_owned(),
        }
    }

    #[test]
    fn a_folder_of_a_csi_volume_is_named_and_another_is_not() {
        let listed = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/pvc-1\n\
                      /var/lib/kubelet/pods/u/volumes/kubernetes.io~projected/t";
        let facts = Facts::default();
        assert_eq!(entries("w1", listed, &facts, &Owners::of(&facts)).len(), 1);
    }

    #[test]
    fn the_folder_of_a_pod_that_is_gone_is_named_with_the_pod() {
        let mut memory = Memory::default();
        memory.learn(&mut Facts {
            pods: vec![pod("u-1", "t-1/gone"), pod("u-2", "t-1/here")],
            ..Facts::default()
        });
        let mut facts = Facts {
            pods: vec![pod("u-2", "t-1/here")],
            ..Facts::default()
        };
        memory.learn(&mut facts);
        let found = entries(
            "w1",
            "pod u-1 gone\npod u-2 here\npod u-3 web-0\npod u-4",
            &facts,
            &Owners::of(&facts),
        );
        let told: Vec<_> = found
            .iter()
            .map(|e| (e.kind, e.name.as_str(), e.owner.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                (
                    Kind::PodDir,
                    "pods/u-1",
                    "pod t-1/gone, which the API no longer has"
                ),
                (
                    Kind::PodDir,
                    "pods/u-3",
                    "a pod called web-0 that the API does not have"
                ),
                (Kind::PodDir, "pods/u-4", "a pod that the API does not have"),
            ]
        );
    }
}
