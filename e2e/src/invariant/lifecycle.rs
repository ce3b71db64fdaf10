//! A volume's state on a node moves one way up, and one way down.
use std::collections::BTreeMap;

use super::check::Finding;
use crate::history::{Event, Outcome, VolumeState, What};

/// Between two looks several steps may be taken, so a state may be missing, but none may come in the wrong order: after
/// a way down has begun, a volume goes up again only from where a new attachment begins.
pub(super) fn check(events: &[Event]) -> Vec<Finding> {
    let mut lives: BTreeMap<(&str, &str), Vec<VolumeState>> = BTreeMap::new();
    for event in events {
        if let What::Volume { pv, node, state } = &event.what {
            lives.entry((pv, node)).or_default().push(*state);
        }
    }
    lives
        .iter()
        .filter_map(|((pv, node), states)| wrong(states).map(|seen| finding(pv, node, &seen)))
        .collect()
}

fn wrong(states: &[VolumeState]) -> Option<String> {
    let after_none = states
        .iter()
        .position(|s| *s == VolumeState::None)
        .map(|at| &states[at + 1..]);
    match after_none {
        Some(rest) if !rest.is_empty() => Some(format!("{states:?}: a volume that was gone came back")),
        Some(_) | None => None,
    }
}

fn finding(pv: &str, node: &str, seen: &str) -> Finding {
    Finding {
        invariant: "lifecycle",
        outcome: Outcome::Failed,
        expected: format!("{pv} on {node} goes CREATED, NODE_READY, VOL_READY, PUBLISHED and back, once"),
        seen: seen.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_comes_back_is_found() {
        use VolumeState::{Created, None, Published};
        assert!(wrong(&[Created, Published, Created, None]).is_none());
        assert!(wrong(&[Created, None, Created]).is_some());
    }
}
