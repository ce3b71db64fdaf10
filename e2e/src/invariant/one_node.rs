//! No volume is attached to two nodes at once, and none is staged on two: each has its own cache, and both would write.
use super::check::{Finding, SAME_MS};
use crate::history::{Event, Outcome, Owned, Step, Transition, owned_by, transitions};

pub(super) fn check(observed: &[Event], namespace: &str) -> Vec<Finding> {
    owned_by(observed, namespace)
        .iter()
        .filter_map(|volume| {
            let seen = transitions(observed, volume);
            // The loop device of a raw volume does not tell its node; its attachment does.
            let staged = (!volume.block)
                .then(|| two(&seen, |step| matches!(step, Step::Staged(_))))
                .flatten()
                .map(|(at_ms, nodes)| finding(volume, "staged", &nodes, at_ms));
            staged.or_else(|| {
                two(&seen, |step| matches!(step, Step::Attached(_)))
                    .map(|(at_ms, nodes)| finding(volume, "attached", &nodes, at_ms))
            })
        })
        .collect()
}

/// The first moment at which steps of two nodes hold. What is undone at once was, by another watch, undone before.
fn two(seen: &[Transition], is_up: impl Fn(&Step) -> bool) -> Option<(u64, [String; 2])> {
    let mut up: Vec<&Step> = Vec::new();
    for now in seen {
        up.retain(|step| step.opposite() != now.step);
        if !is_up(&now.step) {
            continue;
        }
        let goes = |step: &Step| {
            seen.iter()
                .any(|t| t.step == step.opposite() && (now.at_ms..=now.at_ms + SAME_MS).contains(&t.at_ms))
        };
        if let Some(other) = up.iter().find(|step| ***step != now.step && !goes(step)) {
            return Some((now.at_ms, [node(other), node(&now.step)]));
        }
        up.push(&now.step);
    }
    None
}

fn node(step: &Step) -> String {
    match step {
        Step::Attached(node)
        | Step::Detached(node)
        | Step::Staged(node)
        | Step::Unstaged(node)
        | Step::Published(node, _)
        | Step::Unpublished(node, _) => node.clone(),
        Step::Created | Step::Deleted => String::new(),
    }
}

fn finding(volume: &Owned, how: &str, nodes: &[String; 2], at_ms: u64) -> Finding {
    Finding {
        invariant: "one-node",
        outcome: Outcome::Failed,
        expected: format!("one node at a time has {} {how}", volume.pv),
        seen: format!(
            "{} at +{}.{:03} s",
            nodes.join(" and "),
            at_ms / 1000,
            at_ms % 1000
        ),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::one_after_the_other(&[(1, true, "a"), (2000, false, "a"), (3000, true, "b")], None)]
    #[case::both(&[(1, true, "a"), (2000, true, "b"), (3000, false, "a")], Some(2000))]
    #[case::in_one_moment(&[(1, true, "a"), (2000, true, "b"), (2100, false, "a")], None)]
    #[case::the_same_again(&[(1, true, "a"), (2000, true, "a")], None)]
    fn only_two_nodes_at_once_are_found(#[case] steps: &[(u64, bool, &str)], #[case] at_ms: Option<u64>) {
        let step = |up: bool, node: &str| {
            let step = Step::Attached(node.to_owned());
            if up { step } else { step.opposite() }
        };
        let seen: Vec<_> = steps
            .iter()
            .map(|(at_ms, up, node)| Transition {
                at_ms: *at_ms,
                step: step(*up, node),
            })
            .collect();
        let found = two(&seen, |step| matches!(step, Step::Attached(_)));
        assert_eq!(found.map(|(at_ms, _)| at_ms), at_ms);
    }
}
