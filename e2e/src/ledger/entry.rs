//! One thing that exists.
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// What kind of thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A volume's image, with its record.
    Image,
    /// An image that no record names.
    ImageAlone,
    /// An image that was begun and never finished.
    HalfImage,
    /// A volume's record, with its image.
    Record,
    /// A record whose image is not there.
    RecordAlone,
    /// What the controller asked of a node, or a node's answer.
    Request,
    /// Another file of the backend: a temporary, something in quarantine.
    Stray,
    /// A loop device in use.
    Loop,
    /// A loop device whose file has no name any more.
    DeadLoop,
    /// The read-only flag that the driver left on a loop device that nobody uses: the next user's writes would fail.
    LoopFlag,
    /// A mount.
    Mount,
    /// A folder or file of kubelet's for a CSI volume.
    KubeletDir,
    /// Kubelet's folder of a pod that the API does not have.
    PodDir,
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
            Self::ImageAlone => "image without record",
            Self::HalfImage => "half-made image",
            Self::Record => "record",
            Self::RecordAlone => "record without image",
            Self::Request => "request",
            Self::Stray => "stray file",
            Self::Loop => "loop",
            Self::DeadLoop => "loop without file",
            Self::LoopFlag => "loop flag",
            Self::Mount => "mount",
            Self::KubeletDir => "kubelet folder",
            Self::PodDir => "pod folder",
            Self::Pv => "pv",
            Self::Pvc => "pvc",
            Self::Attachment => "attachment",
            Self::CsiNode => "csinode",
            Self::Lease => "lease",
            Self::DriverPod => "driver pod",
        }
    }

    /// Whether calls to a node make and remove it.
    pub(super) fn is_of_node(self) -> bool {
        matches!(
            self,
            Self::Loop | Self::DeadLoop | Self::LoopFlag | Self::Mount | Self::KubeletDir | Self::PodDir
        )
    }

    /// Whether it is wrong by itself: that it is gone afterwards is no loss.
    pub fn is_debris(self) -> bool {
        match self {
            Self::ImageAlone
            | Self::HalfImage
            | Self::RecordAlone
            | Self::Request
            | Self::Stray
            | Self::DeadLoop
            | Self::LoopFlag
            | Self::PodDir => true,
            Self::Image
            | Self::Record
            | Self::Loop
            | Self::Mount
            | Self::KubeletDir
            | Self::Pv
            | Self::Pvc
            | Self::Attachment
            | Self::CsiNode
            | Self::Lease
            | Self::DriverPod => false,
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
    /// Whose it is, as far as it can be told: volume, claim, pod.
    pub owner: String,
    /// The driver's id of its volume, where it has one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub volume: String,
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
            let told = [&entry.name, &entry.owner, &entry.volume];
            tokens
                .iter()
                .any(|t| told.iter().any(|text| text.contains(t.as_str())))
        };
        Self::new(self.entries.iter().filter(|e| belongs(e)).cloned())
    }
}
