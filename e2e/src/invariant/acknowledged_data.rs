//! Every block that was acknowledged is read back.
use super::check::Finding;
use crate::history::{Event, Outcome, What};

pub(super) fn check(events: &[Event]) -> Vec<Finding> {
    events.iter().filter_map(lost).collect()
}

fn lost(event: &Event) -> Option<Finding> {
    let What::Blocks {
        pod,
        acknowledged,
        found,
        ..
    } = &event.what
    else {
        return None;
    };
    (found < acknowledged).then(|| Finding {
        invariant: "acknowledged-data",
        outcome: Outcome::Failed,
        expected: format!("{acknowledged} acknowledged blocks in {pod}"),
        seen: format!(
            "{found} blocks at +{}.{:03} s",
            event.at_ms / 1000,
            event.at_ms % 1000
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_block_less_than_acknowledged_is_a_loss() {
        let read = |found| Event {
            at_ms: 1,
            scenario: None,
            what: What::Blocks {
                pod: String::from("p"),
                acknowledged: 32,
                found,
                writers: Vec::new(),
                ends: Vec::new(),
            },
        };
        assert!(check(&[read(32)]).is_empty());
        assert_eq!(check(&[read(31)])[0].outcome, Outcome::Failed);
    }
}
