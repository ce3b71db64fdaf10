//! Nobody but the scenario's own writer wrote to its volumes.
use super::check::Finding;
use crate::history::{Event, Outcome, Step, What, owned_by, transitions};

pub(super) fn check(events: &[Event]) -> Vec<Finding> {
    events.iter().filter_map(foreign).collect()
}

fn foreign(event: &Event) -> Option<Finding> {
    let What::Blocks { pod, writers, .. } = &event.what else {
        return None;
    };
    writers
        .iter()
        .any(|w| Some(w) != event.scenario.as_ref())
        .then(|| Finding {
            invariant: "single-writer",
            outcome: Outcome::Failed,
            expected: format!("{pod} finds blocks of its own scenario only"),
            seen: format!("blocks by {writers:?}"),
        })
}

/// No volume is staged on two nodes at once: each has its own cache, and both would write.
pub(super) fn check_nodes(observed: &[Event], namespace: &str) -> Vec<Finding> {
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
                        invariant: "single-writer",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_another_scenario_is_found() {
        let read = |writer: &str| Event {
            at_ms: 1,
            scenario: Some(String::from("mine")),
            what: What::Blocks {
                pod: String::from("p"),
                acknowledged: 1,
                found: 1,
                writers: vec![writer.to_owned()],
            },
        };
        assert!(check(&[read("mine")]).is_empty());
        assert_eq!(check(&[read("other")]).len(), 1);
    }
}
