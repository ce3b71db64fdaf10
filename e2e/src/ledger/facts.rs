//! The raw facts of one moment, as they were read; a reading that failed makes the gathering fail, it is never "nothing".
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::loops::Loop;
use super::memory::Memory;
use super::owners::Owners;
use super::{Ledger, Object, backend, kubelet_dirs, loops, mounts, objects};

/// A file as the kernel knows it, whatever it is called and from where it is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId {
    /// Major and minor number of the device that its filesystem is on.
    pub device: (u64, u64),
    /// Its inode.
    pub inode: u64,
}

/// A file of the backend.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BackendFile {
    /// Its path below the data folder.
    pub path: String,
    /// The text of a record.
    pub text: String,
}

/// A pod that the API has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LivePod {
    /// What kubelet may call its folder: its UID, or the hash of a static pod's file.
    pub folders: Vec<String>,
    /// Namespace and name.
    pub name: String,
}

/// What was read at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Places of the data folder as the kernel names them in a loop's backing file: on the host, and in a node.
    pub roots: Vec<String>,
    /// The data folder itself.
    pub folder: FileId,
    /// What is in it.
    pub backend: Vec<BackendFile>,
    /// Every file that was in it while the loop devices were read.
    pub files: BTreeSet<FileId>,
    /// Loop devices of the kernel.
    pub loops: Vec<Loop>,
    /// mountinfo by node.
    pub mountinfo: Vec<(String, String)>,
    /// What kubelet's pod and plugin folders hold, by node, as the node's shell lists it.
    pub kubelet: Vec<(String, String)>,
    /// Objects of the API that belong to volumes.
    pub objects: Vec<Object>,
    /// Pods of all namespaces.
    pub pods: Vec<LivePod>,
    /// What earlier readings and this one showed.
    pub memory: Memory,
}

impl Facts {
    /// The ledger of these facts.
    pub fn ledger(&self) -> Ledger {
        let owners = Owners::of(self);
        let mut entries = backend::entries(&self.backend, &owners);
        entries.extend(loops::entries(self, &owners));
        for (node, text) in &self.mountinfo {
            entries.extend(mounts::entries(node, text, &owners));
        }
        for (node, text) in &self.kubelet {
            entries.extend(kubelet_dirs::entries(node, text, self, &owners));
        }
        entries.extend(objects::entries(&self.objects));
        Ledger::new(entries)
    }

    /// Whether `one` is over a file of this data folder. A file that is deleted has no name to look it up by: it counts if it
    /// was in the folder at an earlier reading, or was called as the folder's files are.
    pub(super) fn owns(&self, one: &Loop) -> bool {
        let Some(backing) = &one.backing else {
            return false;
        };
        let inside = self.roots.iter().any(|root| backing.starts_with(root.as_str()));
        let Some(file) = one.file else {
            return inside;
        };
        self.files.contains(&file)
            || (one.is_deleted()
                && (self.memory.knows(file) || (inside && file.device == self.folder.device)))
    }

    /// Files of this data folder that have no name any more: a loop device holds them.
    pub fn nameless(&self) -> BTreeSet<FileId> {
        self.memory.files().difference(&self.files).copied().collect()
    }

    /// The loop devices over files of this data folder: number and backing file.
    pub fn own_loops(&self) -> BTreeSet<(u32, String)> {
        self.loops
            .iter()
            .filter(|one| self.owns(one))
            .filter_map(|one| Some((one.number, one.backing.clone()?)))
            .collect()
    }
}
