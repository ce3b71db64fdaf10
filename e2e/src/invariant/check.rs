//! Judges a scenario's events and its ledger's difference by every invariant that it does not except.
use super::{acknowledged_data, bounded_time, lifecycle, no_leak, one_node, single_writer};
use crate::history::{Event, Outcome};
use crate::ledger::Diff;

/// What two objects of one kind, or two mounts, show within this time has no order: each is read on its own.
pub(super) const SAME_MS: u64 = 300;

/// The names of all invariants, as scenarios except them.
pub const NAMES: [&str; 6] = [
    "lifecycle",
    "acknowledged-data",
    "single-writer",
    "one-node",
    "bounded-time",
    "no-leak",
];

/// What does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which invariant.
    pub invariant: &'static str,
    /// How the scenario ends by it.
    pub outcome: Outcome,
    /// What must hold.
    pub expected: String,
    /// What was seen.
    pub seen: String,
}

/// Every finding, the worst first. `events` are those of one scenario; `observed` are all of the run, of which the volumes
/// of `namespace` are looked at.
pub fn judge(
    events: &[Event],
    observed: &[Event],
    namespace: &str,
    diff: &Diff,
    except: &[String],
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let wanted = |name: &str| !except.iter().any(|e| e == name);
    if wanted("lifecycle") {
        findings.extend(lifecycle::check(observed, namespace));
    }
    if wanted("acknowledged-data") {
        findings.extend(acknowledged_data::check(events));
    }
    if wanted("single-writer") {
        findings.extend(single_writer::check(events, observed, namespace));
    }
    if wanted("one-node") {
        findings.extend(one_node::check(observed, namespace));
    }
    if wanted("bounded-time") {
        findings.extend(bounded_time::check(events, observed, namespace));
    }
    if wanted("no-leak") {
        findings.extend(no_leak::check(events, diff));
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.outcome));
    findings
}
