//! What is done with volumes, as data.
use serde::{Deserialize, Serialize};

use super::plant::Plant;
use crate::cluster::driver::Class;
use crate::cluster::node::Loss;

/// A volume that is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct VolumeSpec {
    /// What its StorageClass must be.
    pub class: Class,
    /// Size, as Kubernetes writes it.
    pub size: String,
    /// Filesystem or block device.
    pub mode: Mode,
    /// Who may use it.
    pub access: Access,
    /// fsGroup of the pods that use it, which run as a user who is not root then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
}

impl Default for VolumeSpec {
    fn default() -> Self {
        Self {
            class: Class::default(),
            size: String::from("64Mi"),
            mode: Mode::Filesystem,
            access: Access::ReadWriteOnce,
            group: None,
        }
    }
}

/// volumeMode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// A mounted filesystem.
    Filesystem,
    /// A raw device.
    Block,
}

/// accessModes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// One node.
    ReadWriteOnce,
    /// One pod.
    ReadWriteOncePod,
}

/// What is done with volumes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "kind",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields
)]
pub enum Workload {
    /// Claim, pod, verified data, and everything gone again in order.
    Lifecycle {
        /// The volume.
        #[serde(default)]
        volume: VolumeSpec,
        /// How many at once.
        #[serde(default = "one")]
        volumes: u32,
    },
    /// The claim is made larger, and the data is still there.
    Expand {
        /// The volume.
        #[serde(default)]
        volume: VolumeSpec,
        /// Its size afterwards.
        to: String,
        /// Whether a pod uses it meanwhile.
        online: bool,
    },
    /// The claim goes, the volume stays, and is deleted by hand.
    Retain {
        /// The volume.
        #[serde(default)]
        volume: VolumeSpec,
    },
    /// A PV written by hand over a volume that exists.
    PreProvisioned {
        /// The volume.
        #[serde(default)]
        volume: VolumeSpec,
    },
    /// A StatefulSet's pod moves to the other node and finds its data.
    MoveStatefulSet {
        /// The volume.
        #[serde(default)]
        volume: VolumeSpec,
    },
    /// The claim is deleted while its volume is made.
    DeleteWhileProvisioning {
        /// The volume.
        #[serde(default)]
        volume: VolumeSpec,
    },
    /// A volume made from another one has its data, a life of its own, and its own size.
    Clone {
        /// The volume.
        #[serde(default)]
        volume: VolumeSpec,
        /// The copy's size, if it is another one.
        #[serde(default)]
        to: Option<String>,
    },
    /// The claim gets a VolumeAttributesClass, and the mounted volume shows it.
    Modify {
        /// The volume.
        #[serde(default)]
        volume: VolumeSpec,
    },
    /// As many volumes on one node as it takes, and one more, which waits until one has gone.
    AttachLimit {
        /// The volume.
        #[serde(default)]
        volume: VolumeSpec,
    },
    /// Two claims of which only one has room; the other is bound when the first is gone.
    Capacity {
        /// The volume.
        #[serde(default)]
        volume: VolumeSpec,
    },
    /// A pod may only read the volume, and the next one write it again.
    ReadOnly {
        /// The volume.
        #[serde(default)]
        volume: VolumeSpec,
    },
    /// A second node is asked for while the first has the volume; it is refused.
    SecondAttachment {
        /// The volume.
        #[serde(default)]
        volume: VolumeSpec,
    },
    /// A volume that can be used on one node only: pods go there, or wait.
    Pinned {
        /// The volume.
        #[serde(default)]
        volume: VolumeSpec,
    },
    /// A volume's life while the sidecars lead in different pods.
    LeadersApart {
        /// The volume.
        #[serde(default)]
        volume: VolumeSpec,
    },
    /// A node is given up while its pod writes, its volume moves, and the node comes back.
    Fence {
        /// The volume.
        #[serde(default)]
        volume: VolumeSpec,
        /// How the node is lost.
        loss: Loss,
    },
    /// Leaks are made on purpose; it passes if the ledger names exactly them.
    PlantLeak {
        /// Which kinds.
        plants: Vec<Plant>,
    },
    /// The pod is deleted while its volume is attached.
    DeleteWhileAttaching {
        /// The volume.
        #[serde(default)]
        volume: VolumeSpec,
    },
}

impl Workload {
    /// The volume that it asks for, if it asks for one.
    pub fn volume(&self) -> Option<&VolumeSpec> {
        match self {
            Self::Lifecycle { volume, .. }
            | Self::Expand { volume, .. }
            | Self::Retain { volume }
            | Self::PreProvisioned { volume }
            | Self::MoveStatefulSet { volume }
            | Self::DeleteWhileProvisioning { volume }
            | Self::Clone { volume, .. }
            | Self::Modify { volume }
            | Self::AttachLimit { volume }
            | Self::Capacity { volume }
            | Self::ReadOnly { volume }
            | Self::SecondAttachment { volume }
            | Self::Pinned { volume }
            | Self::LeadersApart { volume }
            | Self::Fence { volume, .. }
            | Self::DeleteWhileAttaching { volume } => Some(volume),
            Self::PlantLeak { .. } => None,
        }
    }
}

fn one() -> u32 {
    1
}
