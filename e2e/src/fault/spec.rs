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

/// What has become of the call when it strikes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moment {
    /// The driver has not seen it: it waits at the driver's socket.
    #[default]
    Waiting,
    /// The driver has done it and answered; its caller stands still, and never hears.
    Answered,
}

/// One fault: held at a phase, so that it hits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// When.
    pub at: Phase,
    /// How far its call is then.
    #[serde(default)]
    pub call: Moment,
    /// Who is held until it is done.
    pub hold: Hold,
    /// Who fails.
    pub kill: Victim,
}

impl Phase {
    /// The call that a phase of the controller is about; kubelet makes several in its own.
    pub(super) fn rpc(self) -> Option<&'static str> {
        match self {
            Self::Provisioning => Some("CreateVolume"),
            Self::Attaching => Some("ControllerPublishVolume"),
            Self::Detaching => Some("ControllerUnpublishVolume"),
            Self::Deleting => Some("DeleteVolume"),
            Self::Mounting | Self::Unmounting => None,
        }
    }

    /// The sidecar that calls.
    pub(super) fn caller(self) -> &'static str {
        match self {
            Self::Attaching | Self::Detaching => "csi-attacher",
            Self::Provisioning | Self::Mounting | Self::Unmounting | Self::Deleting => "csi-provisioner",
        }
    }
}

impl Fault {
    /// What is wrong with it, if it cannot be done as it is written.
    pub fn wrong(&self) -> Option<String> {
        if self.call == Moment::Waiting {
            return None;
        }
        let dies = match self.kill {
            Victim::LeaderPod => true,
            Victim::Provisioner => self.at.caller() == "csi-provisioner",
            Victim::Attacher => self.at.caller() == "csi-attacher",
            // Its caller would go on, and hear the answer that waits in the socket.
            Victim::Controller | Victim::NodePlugin | Victim::Kubelet => false,
        };
        let is_possible = self.at.rpc().is_some() && self.hold == Hold::Controller && dies;
        (!is_possible).then(|| {
            String::from(
                "a fault after the answer holds the controller while provisioning, attaching, detaching or deleting, and \
                 kills the sidecar that calls, or leader-pod",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::the_caller(Phase::Deleting, Hold::Controller, Victim::Provisioner, true)]
    #[case::its_pod(Phase::Detaching, Hold::Controller, Victim::LeaderPod, true)]
    #[case::another_sidecar(Phase::Deleting, Hold::Controller, Victim::Attacher, false)]
    #[case::the_caller_would_hear(Phase::Provisioning, Hold::Controller, Victim::Controller, false)]
    #[case::kubelet_is_not_held(Phase::Mounting, Hold::NodePlugin, Victim::Kubelet, false)]
    fn an_answer_is_lost_only_with_who_waits_for_it(
        #[case] at: Phase,
        #[case] hold: Hold,
        #[case] kill: Victim,
        #[case] possible: bool,
    ) {
        let fault = |call| Fault { at, call, hold, kill };
        assert_eq!(fault(Moment::Answered).wrong().is_none(), possible);
        assert_eq!(fault(Moment::Waiting).wrong(), None);
    }
}
