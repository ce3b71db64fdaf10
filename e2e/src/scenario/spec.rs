//! A scenario's data types. Unknown keys are errors: a misspelt one must not make a test weaker.
use serde::{Deserialize, Serialize};

use crate::fault::{Fault, Victim};
use crate::workload::Workload;

/// The label of scenarios that run only if they are asked for.
pub(super) const SELFTEST: &str = "selftest";

/// One scenario: a file of e2e/scenarios.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Operation, victim, event.
    pub name: String,
    /// What it is there for, in one sentence.
    pub why: String,
    /// What is done.
    pub workload: Workload,
    /// What goes wrong meanwhile.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// Invariants that do not hold here, each with its reason.
    #[serde(default)]
    pub except: Vec<Exception>,
    /// Words to select it by.
    #[serde(default)]
    pub labels: Vec<String>,
}

/// An invariant that is not judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exception {
    /// Which.
    pub invariant: String,
    /// Why.
    pub why: String,
}

impl Scenario {
    /// Whether it acts on processes of the nodes, or looks at their mounts, and so needs them on this machine.
    pub fn needs_host(&self) -> bool {
        self.is_exclusive()
            || matches!(
                self.workload,
                Workload::Modify { .. } | Workload::ReadOnly { .. } | Workload::Pinned { .. }
            )
    }

    /// Whether it puts the suite to the test and not the driver.
    pub fn is_selftest(&self) -> bool {
        self.labels.iter().any(|label| label == SELFTEST)
    }

    /// Whether it stops a node or its kubelet, which then have to be brought back.
    pub fn stops_nodes(&self) -> bool {
        let kubelet = |fault: &Fault| fault.kill == Victim::Kubelet;
        self.faults.iter().any(kubelet) || matches!(self.workload, Workload::Fence { .. })
    }

    /// Whether it disturbs others, and so runs alone.
    pub fn is_exclusive(&self) -> bool {
        !self.faults.is_empty()
            || matches!(
                self.workload,
                Workload::DeleteWhileProvisioning { .. }
                    | Workload::DeleteWhileAttaching { .. }
                    | Workload::PlantLeak { .. }
                    | Workload::AttachLimit { .. }
                    | Workload::Capacity { .. }
                    | Workload::LeadersApart { .. }
                    | Workload::Fence { .. }
            )
    }
}
