//! Nobody but the scenario's own pods wrote to its volumes, never two of them in turns, and none after another had begun.
use std::collections::BTreeMap;

use super::check::Finding;
use crate::history::{Event, Outcome, What, objects};

/// A pod by its UID, which is what its blocks carry.
type Pods<'a> = BTreeMap<&'a str, (&'a str, &'a str)>;

/// `events` are those of the scenario in `namespace`, for the blocks that it read; `observed` are all, for the pods.
pub(super) fn check(events: &[Event], observed: &[Event], namespace: &str) -> Vec<Finding> {
    let pods = pods(observed);
    let mut found: Vec<Finding> = events
        .iter()
        .filter_map(|event| foreign(event, &pods, namespace))
        .collect();
    found.extend(late(events));
    found
}

/// A writer whom another followed has written its last block: one that writes on shows in place of the other's blocks, though
/// perhaps to the next reader only, because the other one has its own cache.
fn late(events: &[Event]) -> Option<Finding> {
    let mut ended: BTreeMap<&str, (u64, &str)> = BTreeMap::new();
    for event in events {
        let What::Blocks {
            pod, writers, ends, ..
        } = &event.what
        else {
            continue;
        };
        for (index, (writer, end)) in writers.iter().zip(ends).enumerate() {
            if index + 1 < writers.len() {
                ended.entry(writer).or_insert((*end, pod));
            }
            if let Some((before, first)) = ended.get(writer.as_str())
                && before != end
            {
                return Some(Finding {
                    invariant: "single-writer",
                    outcome: Outcome::Failed,
                    expected: format!(
                        "block {before} is the last one of {writer}, after which {first} found another's"
                    ),
                    seen: format!(
                        "{pod} finds its blocks up to {end} at +{}.{:03} s: it wrote after another had begun, or its blocks are lost",
                        event.at_ms / 1000,
                        event.at_ms % 1000
                    ),
                });
            }
        }
    }
    None
}

fn pods(observed: &[Event]) -> Pods<'_> {
    objects(observed, "Pod")
        .filter(|pod| !pod.fact("uid").is_empty())
        .map(|pod| (pod.fact("uid"), (pod.namespace, pod.name)))
        .collect()
}

fn foreign(event: &Event, pods: &Pods<'_>, namespace: &str) -> Option<Finding> {
    let What::Blocks { pod, writers, .. } = &event.what else {
        return None;
    };
    let ours = |writer: &&String| pods.get(writer.as_str()).is_some_and(|(of, _)| *of == namespace);
    let again = |index: usize, writer: &String| writers.iter().take(index).any(|before| before == writer);
    let shown = |writer: &String| match pods.get(writer.as_str()) {
        Some((of, name)) => format!("pod {of}/{name} ({writer})"),
        None => format!("{writer:?}, which is no pod that was seen"),
    };
    let finding = |outcome, expected: String, seen: String| Finding {
        invariant: "single-writer",
        outcome,
        expected,
        seen,
    };
    if !writers.is_empty() && !pods.values().any(|(of, _)| *of == namespace) {
        // Without the pods' UIDs nothing can be told of who wrote.
        return Some(finding(
            Outcome::Broken,
            format!("the pods of {namespace} in the history"),
            String::from("none was observed"),
        ));
    }
    if let Some(other) = writers.iter().find(|writer| !ours(writer)) {
        return Some(finding(
            Outcome::Failed,
            format!("{pod} finds blocks of its own scenario's pods only"),
            format!("blocks by {}", shown(other)),
        ));
    }
    let returned = writers.iter().enumerate().find(|(index, w)| again(*index, w));
    returned.map(|(_, writer)| {
        finding(
            Outcome::Failed,
            format!("{pod} finds the blocks of one pod after those of another"),
            format!(
                "{} wrote again after another: {}",
                shown(writer),
                writers.iter().map(shown).collect::<Vec<_>>().join(", then ")
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::history::Change;

    fn pod(namespace: &str, name: &str, uid: &str) -> Event {
        Event {
            at_ms: 1,
            scenario: None,
            what: What::Object {
                change: Change::Present,
                kind: String::from("Pod"),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                facts: [(String::from("uid"), uid.to_owned())].into(),
            },
        }
    }

    fn read_to(writers: &[(&str, u64)]) -> Event {
        let mut event = read(&writers.iter().map(|(w, _)| *w).collect::<Vec<_>>());
        if let What::Blocks { ends, .. } = &mut event.what {
            ends.extend(writers.iter().map(|(_, end)| end));
        }
        event
    }

    fn read(writers: &[&str]) -> Event {
        Event {
            at_ms: 2,
            scenario: Some(String::from("mine")),
            what: What::Blocks {
                pod: String::from("second"),
                acknowledged: 1,
                found: 1,
                writers: writers.iter().map(|w| (*w).to_owned()).collect(),
                ends: Vec::new(),
            },
        }
    }

    #[rstest]
    #[case::one_pod(&["u-1"], None)]
    #[case::one_after_the_other(&["u-1", "u-2"], None)]
    #[case::another_scenario_s(&["u-1", "u-9"], Some("pod hf-other/x (u-9)"))]
    #[case::nobody_s(&["w"], Some("no pod that was seen"))]
    #[case::in_turns(&["u-1", "u-2", "u-1"], Some("pod hf-mine/first (u-1) wrote again after another"))]
    fn who_wrote_is_told_by_the_pods_uid(#[case] writers: &[&str], #[case] says: Option<&str>) {
        let observed = [
            pod("hf-mine", "first", "u-1"),
            pod("hf-mine", "second", "u-2"),
            pod("hf-other", "x", "u-9"),
        ];
        let found = check(&[read(writers)], &observed, "hf-mine");
        assert_eq!(found.len(), usize::from(says.is_some()), "{found:?}");
        if let (Some(says), Some(finding)) = (says, found.first()) {
            assert_eq!(finding.outcome, Outcome::Failed);
            assert!(finding.seen.contains(says), "{}", finding.seen);
        }
    }

    #[rstest]
    #[case::as_it_was(&[("u-1", 32), ("u-2", 80)], false)]
    #[case::over_those_of_the_other(&[("u-1", 50), ("u-2", 80)], true)]
    #[case::over_all_of_them(&[("u-1", 80)], true)]
    fn who_was_followed_writes_no_more(#[case] second: &[(&str, u64)], #[case] late: bool) {
        let observed = [pod("hf-mine", "first", "u-1"), pod("hf-mine", "second", "u-2")];
        let events = [
            read_to(&[("u-1", 20)]),
            read_to(&[("u-1", 32), ("u-2", 64)]),
            read_to(second),
        ];
        assert_eq!(!check(&events, &observed, "hf-mine").is_empty(), late);
    }

    #[test]
    fn without_any_pod_in_the_history_nothing_is_proved() {
        let found = check(&[read(&["u-1"])], &[pod("hf-other", "x", "u-9")], "hf-mine");
        assert_eq!(found[0].outcome, Outcome::Broken);
        assert!(check(&[read(&[])], &[], "hf-mine").is_empty());
    }
}
