//! Mounts of CSI volumes in a node's mountinfo.
use super::entry::{Entry, Kind};
use super::owners::Owners;

const PLACES: [&str; 3] = [
    "/volumes/kubernetes.io~csi/",
    "/volumeDevices/",
    "/plugins/kubernetes.io/csi/",
];

/// A mount that CSI made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CsiMount {
    /// The mount point.
    pub path: String,
    /// How many mounts of the same place lie below it.
    pub layer: u32,
    /// The filesystem.
    pub fs: String,
    /// What is mounted.
    pub source: String,
}

/// The mounts of CSI volumes in a mountinfo, in its order.
pub fn csi_mounts(mountinfo: &str) -> Vec<CsiMount> {
    let mut seen: std::collections::BTreeMap<String, u32> = std::collections::BTreeMap::new();
    mountinfo
        .lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            let path = unescape(fields.get(4)?);
            if !PLACES.iter().any(|place| path.contains(place)) {
                return None;
            }
            let dash = fields.iter().position(|f| *f == "-")?;
            let layer = seen.entry(path.clone()).or_insert(0);
            *layer += 1;
            Some(CsiMount {
                layer: *layer,
                path,
                fs: (*fields.get(dash + 1)?).to_owned(),
                source: unescape(fields.get(dash + 2)?),
            })
        })
        .collect()
}

/// The entries of a node's mountinfo; a place that is mounted twice counts twice.
pub(super) fn entries(node: &str, mountinfo: &str, owners: &Owners) -> Vec<Entry> {
    csi_mounts(mountinfo)
        .into_iter()
        .map(|mount| {
            let layer = if mount.layer > 1 {
                format!(", layer {}", mount.layer)
            } else {
                String::new()
            };
            let volume = owners.volume_at(&mount.path);
            Entry {
                kind: Kind::Mount,
                owner: volume.map_or_else(
                    || format!("nothing else names its volume; it is of {}", mount.source),
                    |id| owners.volume(id),
                ),
                name: format!("{} ({}){layer}", mount.path, mount.fs),
                place: node.to_owned(),
                volume: volume.unwrap_or_default().to_owned(),
            }
        })
        .collect()
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes
            .get(at + 1..at + 4)
            .and_then(|d| std::str::from_utf8(d).ok());
        match (bytes[at], digits.and_then(|d| u8::from_str_radix(d, 8).ok())) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                at += 4;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_target_and_stacked_mounts_are_found_and_others_are_not() {
        let text = "\
1 0 7:0 / /var/lib/kubelet/plugins/kubernetes.io/csi/holdfast.csi/ab/globalmount rw - ext4 /dev/loop0 rw
2 0 7:0 / /var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/pvc-1/mount rw - ext4 /dev/loop0 rw
3 0 7:0 / /var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/pvc-1/mount rw - ext4 /dev/loop0 rw
4 0 0:5 / /var/lib/kubelet/pods/u/volumes/kubernetes.io~projected/token rw - tmpfs tmpfs rw
5 0 8:1 / /a\\040b rw - ext4 /dev/sda1 rw";
        let facts = super::super::Facts::default();
        let found = entries("w1", text, &Owners::of(&facts));
        assert_eq!(found.len(), 3);
        assert!(
            found[2].name.ends_with("mount (ext4), layer 2"),
            "{}",
            found[2].name
        );
        assert_eq!(unescape("/a\\040b\\134"), "/a b\\");
    }
}
