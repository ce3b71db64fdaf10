//! What is there afterwards is what was there before; where leaks were planted, the ledger names exactly them.
use super::check::Finding;
use crate::history::{Event, Outcome, What};
use crate::ledger::{Diff, Entry};

/// `events` are those of the scenario, for what it planted.
pub(super) fn check(events: &[Event], diff: &Diff) -> Vec<Finding> {
    if as_planted(events, diff) {
        return Vec::new();
    }
    let expected: Vec<String> = planted(events)
        .map(|(kind, name, owner)| format!("+ {kind:<20} ...{name}  owner ...{owner}..."))
        .collect();
    let (outcome, expected) = if expected.is_empty() {
        let nothing = "nothing outlives the scenario, and nothing of others is gone";
        (Outcome::Leaked, nothing.to_owned())
    } else {
        // Here the suite is on trial: what it overlooks would pass every driver.
        let names = "the ledger names exactly what was planted";
        (Outcome::Failed, format!("{names}\n{}", expected.join("\n")))
    };
    vec![Finding {
        invariant: "no-leak",
        outcome,
        expected,
        seen: format!(
            "{} entries differ\n{}",
            diff.left.len() + diff.lost.len(),
            diff.lines().join("\n")
        ),
    }]
}

/// Whether `diff` is empty, or holds each thing that `events` say was planted, once, and no other.
pub fn as_planted(events: &[Event], diff: &Diff) -> bool {
    let mut left: Vec<&Entry> = diff.left.iter().collect();
    for (kind, name, owner) in planted(events) {
        let is_it = |e: &&Entry| e.kind.name() == kind && e.name.ends_with(name) && e.owner.contains(owner);
        match left.iter().position(is_it) {
            Some(index) => left.remove(index),
            None => return false,
        };
    }
    left.is_empty() && diff.lost.is_empty()
}

fn planted(events: &[Event]) -> impl Iterator<Item = (&str, &str, &str)> {
    events.iter().filter_map(|event| {
        let What::Planted { kind, name, owner } = &event.what else {
            return None;
        };
        Some((kind.as_str(), name.as_str(), owner.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::ledger::Kind;

    fn entry(name: &str, owner: &str) -> Entry {
        Entry {
            kind: Kind::Mount,
            name: name.to_owned(),
            place: String::from("w1"),
            owner: owner.to_owned(),
            volume: String::new(),
        }
    }

    fn left(entries: &[(&str, &str)]) -> Diff {
        Diff {
            left: entries.iter().map(|(name, owner)| entry(name, owner)).collect(),
            ..Diff::default()
        }
    }

    fn plant(name: &str) -> Event {
        Event {
            at_ms: 1,
            scenario: Some(String::from("s")),
            what: What::Planted {
                kind: String::from("mount"),
                name: name.to_owned(),
                owner: String::from("volume 1"),
            },
        }
    }

    #[test]
    fn one_entry_that_outlived_is_a_leak() {
        let findings = check(&[], &left(&[("/m", "volume 1")]));
        assert_eq!(findings[0].outcome, Outcome::Leaked);
        assert!(findings[0].seen.contains("/m") && findings[0].seen.contains("volume 1"));
        assert!(check(&[], &Diff::default()).is_empty());
    }

    #[rstest]
    #[case::each_named(&[("/a/m", "volume 1, claim x"), ("/a/n", "volume 1")], true)]
    #[case::one_overlooked(&[("/a/m", "volume 1")], false)]
    #[case::one_too_many(&[("/a/m", "volume 1"), ("/a/n", "volume 1"), ("/a/o", "volume 1")], false)]
    #[case::another_owner(&[("/a/m", "volume 1"), ("/a/n", "kubelet")], false)]
    #[case::nothing_named(&[], false)]
    fn the_ledger_must_name_exactly_what_was_planted(#[case] seen: &[(&str, &str)], #[case] holds: bool) {
        let events = [plant("/m"), plant("/n")];
        let findings = check(&events, &left(seen));
        assert_eq!(findings.is_empty(), holds, "{findings:?}");
        assert!(findings.iter().all(|f| f.outcome == Outcome::Failed));
    }
}
