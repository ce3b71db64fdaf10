//! Nobody but the scenario's own writer wrote to its volumes.
use super::check::Finding;
use crate::history::{Event, Outcome, What};

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
