//! An event, as it stands in `events.jsonl`: the only source of every report.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How a scenario ended; the worse, the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Everything held.
    Passed,
    /// It cannot be tried here, and the message says why.
    Skipped,
    /// It could not be tried as meant: a fault without effect, a reading that is missing.
    Broken,
    /// Something was left behind.
    Leaked,
    /// Something that must hold did not.
    Failed,
}

/// Whether a thing is there (or changed) or went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It is there; for objects also: it changed.
    Present,
    /// It is gone.
    Gone,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since the run's start.
    pub at_ms: u64,
    /// The scenario it belongs to, if to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario: Option<String>,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// The run began.
    RunStarted {
        /// Its name.
        run: String,
        /// Version of Kubernetes.
        kubernetes: String,
        /// `fast` or `real`.
        timers: String,
        /// Scenarios chosen.
        scenarios: usize,
        /// Where all chance comes from.
        seed: u64,
    },
    /// A part of the set-up or of the clean-up is over.
    Step {
        /// Which.
        name: String,
        /// How long it took.
        took_ms: u64,
    },
    /// A scenario began.
    ScenarioStarted,
    /// A phase of it began: prepare, arm, act, settle, judge, clean.
    Phase {
        /// Which.
        phase: String,
    },
    /// Something was waited for.
    Waited {
        /// For what.
        what: String,
        /// How long.
        took_ms: u64,
    },
    /// An object of the API was seen, by a watch.
    Object {
        /// There or gone.
        change: Change,
        /// Its kind.
        kind: String,
        /// Its namespace, where it has one.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        namespace: String,
        /// Its name.
        name: String,
        /// What a verdict may need of it.
        facts: BTreeMap<String, String>,
    },
    /// A mount of a CSI volume appeared on a node or went away.
    Mount {
        /// There or gone.
        change: Change,
        /// The node.
        node: String,
        /// The mount point.
        path: String,
        /// What is mounted.
        source: String,
    },
    /// A loop device over a file of the backend appeared or went away.
    Loop {
        /// There or gone.
        change: Change,
        /// Its number.
        number: u32,
        /// The file.
        backing: String,
    },
    /// A fault: held, injected, took effect, healed.
    Fault {
        /// Which.
        fault: String,
        /// What of it.
        step: String,
        /// What was seen.
        seen: String,
    },
    /// A leak that was made on purpose, and how the ledger must name it.
    Planted {
        /// Its kind, as a ledger shows it.
        kind: String,
        /// The end of its name.
        name: String,
        /// Words of its owner.
        owner: String,
    },
    /// Blocks that were read back.
    Blocks {
        /// The pod that read them.
        pod: String,
        /// How many the writer had acknowledged.
        acknowledged: u64,
        /// How many were found, in order and whole.
        found: u64,
        /// UIDs of the pods that wrote them, in their order; one that wrote again after another stands there again.
        writers: Vec<String>,
        /// The last block of each of them.
        #[serde(default)]
        ends: Vec<u64>,
    },
    /// Something outlived its scenario, or was gone after it.
    Difference {
        /// The line of the ledger's difference.
        line: String,
    },
    /// A scenario ended.
    ScenarioEnded {
        /// How.
        outcome: Outcome,
        /// What was expected and what was seen, where it did not pass.
        message: String,
        /// How long it took.
        took_ms: u64,
    },
    /// The run ended.
    RunEnded {
        /// How long it took.
        took_ms: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_reads_back_as_it_was_written() {
        let event = Event {
            at_ms: 18_204,
            scenario: Some(String::from("lifecycle-ext4")),
            what: What::Mount {
                change: Change::Gone,
                node: String::from("w1"),
                path: String::from("/p"),
                source: String::from("/dev/loop0"),
            },
        };
        let line = serde_json::to_string(&event).unwrap();
        assert!(line.contains(r#""event":"mount","change":"gone""#), "{line}");
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
    }
}
