//! What is there afterwards is what was there before.
use super::check::Finding;
use crate::history::Outcome;
use crate::ledger::Diff;

pub(super) fn check(diff: &Diff) -> Vec<Finding> {
    if diff.is_empty() {
        return Vec::new();
    }
    vec![Finding {
        invariant: "no-leak",
        outcome: Outcome::Leaked,
        expected: String::from("nothing outlives the scenario, and nothing of others is gone"),
        seen: format!(
            "{} entries differ\n{}",
            diff.left.len() + diff.lost.len(),
            diff.lines().join("\n")
        ),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Entry, Kind};

    #[test]
    fn one_entry_that_outlived_is_a_leak() {
        let diff = Diff {
            left: vec![Entry {
                kind: Kind::Mount,
                name: String::from("/m"),
                place: String::from("w1"),
                owner: String::from("volume 1"),
                volume: String::from("1"),
            }],
            ..Diff::default()
        };
        let findings = check(&diff);
        assert_eq!(findings[0].outcome, Outcome::Leaked);
        assert!(findings[0].seen.contains("/m") && findings[0].seen.contains("volume 1"));
        assert!(check(&Diff::default()).is_empty());
    }
}
