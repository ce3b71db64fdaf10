//! No volume is staged on two nodes at once: each has its own cache, and both would write.
use super::check::Finding;
use crate::history::{Event, Outcome, Step, owned_by, transitions};

pub(super) fn check(observed: &[Event], namespace: &str) -> Vec<Finding> {
    owned_by(observed, namespace)
        .iter()
        .filter(|volume| !volume.block)
        .filter_map(|volume| {
            let mut staged: Vec<String> = Vec::new();
            for transition in transitions(observed, volume) {
                match transition.step {
                    Step::Staged(node) => staged.push(node),
                    Step::Unstaged(node) => staged.retain(|on| *on != node),
                    Step::Created
                    | Step::Attached(_)
                    | Step::Published(..)
                    | Step::Unpublished(..)
                    | Step::Detached(_)
                    | Step::Deleted => {}
                }
                if staged.len() > 1 {
                    return Some(Finding {
                        invariant: "one-node",
                        outcome: Outcome::Failed,
                        expected: format!("one node at a time has {} staged", volume.pv),
                        seen: format!(
                            "{} at +{}.{:03} s",
                            staged.join(" and "),
                            transition.at_ms / 1000,
                            transition.at_ms % 1000
                        ),
                    });
                }
            }
            None
        })
        .collect()
}
