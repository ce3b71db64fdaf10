//! What exists of volumes on a cluster: parsed from raw facts, compared before and after.
mod backend;
mod diff;
mod entry;
mod kubelet_dirs;
mod loops;
mod mounts;
mod objects;

pub use diff::{Diff, diff};
pub use entry::{Entry, Kind, Ledger};
pub use mounts::{CsiMount, csi_mounts};
pub use objects::Object;

use serde::{Deserialize, Serialize};

/// The raw facts of one moment, as they were read; a reading that failed makes the gathering fail, it is never "nothing".
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Files of the backend below its root: path, and the text of those that are records.
    pub backend: Vec<(String, String)>,
    /// Loop devices of the kernel: number, backing file, read-only flag.
    pub loops: Vec<(u32, Option<String>, bool)>,
    /// mountinfo by node.
    pub mountinfo: Vec<(String, String)>,
    /// Paths below kubelet's pod and plugin folders by node.
    pub kubelet: Vec<(String, Vec<String>)>,
    /// PersistentVolume, VolumeAttachment, PersistentVolumeClaim and the driver's pods and leases.
    pub objects: Vec<Object>,
}

impl Facts {
    /// The ledger of these facts. `roots` are the places of the backend as the kernel names them in a loop's backing file.
    pub fn ledger(&self, roots: &[String]) -> Ledger {
        let mut entries = backend::entries(&self.backend);
        entries.extend(loops::entries(&self.loops, roots));
        for (node, text) in &self.mountinfo {
            entries.extend(mounts::entries(node, text));
        }
        for (node, paths) in &self.kubelet {
            entries.extend(kubelet_dirs::entries(node, paths));
        }
        entries.extend(objects::entries(&self.objects));
        Ledger::new(entries)
    }
}
