//! One thing that exists.
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// What kind of thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A volume's image.
    Image,
    /// A volume's record.
    Record,
    /// Another file of the backend: a temporary, something in quarantine.
    Stray,
    /// A loop device in use.
    Loop,
    /// The read-only flag of a loop device that nobody uses: the next user's writes would fail.
    LoopFlag,
    /// A mount.
    Mount,
    /// A folder or file of kubelet's.
    KubeletDir,
    /// A PersistentVolume.
    Pv,
    /// A PersistentVolumeClaim.
    Pvc,
    /// A VolumeAttachment.
    Attachment,
    /// A node's entry for the driver.
    CsiNode,
    /// A lease of a sidecar.
    Lease,
    /// A pod of the driver.
    DriverPod,
}

impl Kind {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Record => "record",
            Self::Stray => "stray file",
            Self::Loop => "loop",
            Self::LoopFlag => "loop flag",
            Self::Mount => "mount",
            Self::KubeletDir => "kubelet folder",
            Self::Pv => "pv",
            Self::Pvc => "pvc",
            Self::Attachment => "attachment",
            Self::CsiNode => "csinode",
            Self::Lease => "lease",
            Self::DriverPod => "driver pod",
        }
    }
}

/// One thing that exists, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Entry {
    /// What kind of thing.
    pub kind: Kind,
    /// What it is called.
    pub name: String,
    /// Where it is: a node, the backend, the API.
    pub place: String,
    /// Whose it is, as far as its own text shows: volume, claim, pod.
    pub owner: String,
}

/// Everything that exists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// In order.
    pub entries: BTreeSet<Entry>,
}

impl Ledger {
    /// A ledger of these.
    pub fn new(entries: impl IntoIterator<Item = Entry>) -> Self {
        Self {
            entries: entries.into_iter().collect(),
        }
    }

    /// Those entries in whose name or owner one of `tokens` stands: what belongs to one scenario among several.
    pub fn of(&self, tokens: &BTreeSet<String>) -> Self {
        let belongs = |entry: &Entry| {
            tokens
                .iter()
                .any(|t| entry.name.contains(t.as_str()) || entry.owner.contains(t.as_str()))
        };
        Self::new(self.entries.iter().filter(|e| belongs(e)).cloned())
    }
}
