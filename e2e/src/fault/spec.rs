//! What goes wrong and when, as data.
use serde::{Deserialize, Serialize};

/// A moment of a volume's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// CreateVolume.
    Provisioning,
    /// ControllerPublishVolume.
    Attaching,
    /// The node plugin's first calls for a pod.
    Mounting,
    /// The node plugin's calls for a pod that goes.
    Unmounting,
    /// ControllerUnpublishVolume.
    Detaching,
    /// DeleteVolume.
    Deleting,
}

/// Who is stopped, so that the operation stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hold {
    /// The driver in every replica of the controller.
    Controller,
    /// The node plugin on the pod's node.
    NodePlugin,
}

/// Who fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Victim {
    /// SIGKILL of the driver in the replica of the controller where the call waits.
    Controller,
    /// SIGKILL of the provisioner that leads.
    Provisioner,
    /// SIGKILL of the attacher that leads.
    Attacher,
    /// SIGKILL of the node plugin on the pod's node.
    NodePlugin,
    /// The pod whose provisioner (or attacher, while attaching or detaching) leads is deleted without grace.
    LeaderPod,
    /// Kubelet of the pod's node is stopped, and started again.
    Kubelet,
}

/// One fault: held at a phase, so that it hits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// When.
    pub at: Phase,
    /// Who is held until it is done.
    pub hold: Hold,
    /// Who fails.
    pub kill: Victim,
}
