//! Every step of every volume's life ends within its limit, by what was observed.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::check::Finding;
use crate::clock::Limit;
use crate::history::{Event, Outcome, Owned, Step, What, objects, owned_by, transitions};

/// After a fault the callers try again, each pause at most as long as all before it: what a fault of some length delays is
/// over when that length has passed once more.
const FAULT_FACTOR: u32 = 2;

/// A step on its way, or done.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    /// Which step, of what.
    step: String,
    from_ms: u64,
    /// None where it was not over when the history was read.
    to_ms: Option<u64>,
    limit: Duration,
}

/// `events` are those of the scenario, for its faults; `observed` are all.
pub(super) fn check(events: &[Event], observed: &[Event], namespace: &str) -> Vec<Finding> {
    let faults = faults(events);
    let now_ms = observed.last().map_or(0, |event| event.at_ms);
    let mut spans = bound(observed, namespace);
    // Nobody watches the mounts of a cluster elsewhere: there a volume that is published shows no end of it.
    let watched = observed
        .iter()
        .any(|event| matches!(event.what, What::Mount { .. }));
    for volume in owned_by(observed, namespace) {
        spans.extend(attachments(observed, &volume));
        if watched {
            spans.extend(published(observed, &volume));
        }
        spans.extend(unpublished(observed, &volume, namespace));
        spans.extend(unstaged(observed, &volume));
        spans.extend(deleted(observed, &volume));
    }
    spans
        .iter()
        .filter_map(|span| late(span, &faults, now_ms))
        .collect()
}

fn late(span: &Span, faults: &[(u64, u64)], now_ms: u64) -> Option<Finding> {
    let to_ms = span.to_ms.unwrap_or(now_ms);
    let faulty_ms: u64 = faults
        .iter()
        .filter(|(from, to)| *from <= to_ms && *to >= span.from_ms)
        .map(|(from, to)| to - from)
        .sum();
    let allowed = span.limit + Duration::from_millis(faulty_ms) * FAULT_FACTOR;
    let took = Duration::from_millis(to_ms.saturating_sub(span.from_ms));
    let seconds = |d: Duration| format!("{:.1} s", d.as_secs_f64());
    (took > allowed).then(|| Finding {
        invariant: "bounded-time",
        outcome: Outcome::Failed,
        expected: if faulty_ms == 0 {
            format!("{} within {}", span.step, seconds(span.limit))
        } else {
            let faulty = seconds(Duration::from_millis(faulty_ms));
            format!(
                "{} within {}: {}, and {FAULT_FACTOR} times the {faulty} that faults lasted",
                span.step,
                seconds(allowed),
                seconds(span.limit)
            )
        },
        seen: format!(
            "{} {} from +{}.{:03} s on",
            if span.to_ms.is_some() {
                "it took"
            } else {
                "not over after"
            },
            seconds(took),
            span.from_ms / 1000,
            span.from_ms % 1000
        ),
    })
}

/// From the first to the last that was seen of each fault.
fn faults(events: &[Event]) -> Vec<(u64, u64)> {
    let mut spans: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for event in events {
        if let What::Fault { fault, .. } = &event.what {
            spans.entry(fault).or_insert((event.at_ms, event.at_ms)).1 = event.at_ms;
        }
    }
    spans.into_values().collect()
}

/// Steps that began, by what they are of, until they end or are given up.
#[derive(Default)]
struct Open {
    from: BTreeMap<String, u64>,
    spans: Vec<Span>,
    limit: Duration,
}

impl Open {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    fn begin(&mut self, step: String, at_ms: u64) {
        self.from.entry(step).or_insert(at_ms);
    }

    fn give_up(&mut self, step: &str) {
        self.from.remove(step);
    }

    fn end(&mut self, step: String, at_ms: u64) {
        if let Some(from_ms) = self.from.remove(&step) {
            self.spans.push(Span {
                step,
                from_ms,
                to_ms: Some(at_ms),
                limit: self.limit,
            });
        }
    }

    fn spans(mut self) -> Vec<Span> {
        let open = self.from.into_iter().map(|(step, from_ms)| Span {
            step,
            from_ms,
            to_ms: None,
            limit: self.limit,
        });
        self.spans.extend(open);
        self.spans
    }
}

/// Pending to Bound. With WaitForFirstConsumer nothing begins before a node is chosen.
fn bound(observed: &[Event], namespace: &str) -> Vec<Span> {
    let mut open = Open::new(Limit::PROVISION);
    let mut waits: BTreeMap<String, bool> = BTreeMap::new();
    for claim in objects(observed, "PersistentVolumeClaim").filter(|c| c.namespace == namespace) {
        let step = format!("claim {namespace}/{} goes from Pending to Bound", claim.name);
        let chosen = !claim.fact("node").is_empty();
        let was_chosen = waits.insert(step.clone(), chosen);
        if claim.gone || claim.is("deleting") {
            open.give_up(&step);
        } else if claim.fact("phase") == "Bound" {
            open.end(step, claim.at_ms);
        } else {
            if chosen && was_chosen == Some(false) {
                open.give_up(&step);
            }
            open.begin(step, claim.at_ms);
        }
    }
    open.spans()
}

/// Attach and detach: from the attachment, or its deletion, to what the attacher confirms.
fn attachments(observed: &[Event], volume: &Owned) -> Vec<Span> {
    let (mut up, mut down) = (Open::new(Limit::ATTACH), Open::new(Limit::ATTACH));
    for attachment in objects(observed, "VolumeAttachment").filter(|a| a.fact("pv") == volume.pv) {
        let node = attachment.fact("node");
        // Its name is the same each time the volume is attached to the node again.
        let attach = format!("{} is attached to {node}", volume.pv);
        let detach = format!("{} is detached from {node}", volume.pv);
        if attachment.gone {
            up.give_up(&attach);
            down.end(detach, attachment.at_ms);
        } else if attachment.is("deleting") {
            up.give_up(&attach);
            down.begin(detach, attachment.at_ms);
        } else if attachment.is("attached") {
            up.end(attach, attachment.at_ms);
        } else {
            up.begin(attach, attachment.at_ms);
        }
    }
    let mut spans = up.spans();
    spans.extend(down.spans());
    spans
}

/// From the attachment to the first pod that has the volume there.
fn published(observed: &[Event], volume: &Owned) -> Vec<Span> {
    let mut open = Open::new(Limit::POD);
    let step = |node: &str| format!("{} is published on {node}", volume.pv);
    for transition in transitions(observed, volume) {
        match transition.step {
            Step::Attached(node) => open.begin(step(&node), transition.at_ms),
            Step::Published(node, _) => open.end(step(&node), transition.at_ms),
            Step::Detached(node) => open.give_up(&step(&node)),
            Step::Created | Step::Staged(_) | Step::Unpublished(..) | Step::Unstaged(_) | Step::Deleted => {}
        }
    }
    open.spans()
}

/// From a pod's deletion to the end of its mount or device.
fn unpublished(observed: &[Event], volume: &Owned, namespace: &str) -> Vec<Span> {
    let moves = transitions(observed, volume);
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    for pod in objects(observed, "Pod").filter(|pod| pod.namespace == namespace) {
        if pod.gone || pod.is("deleting") {
            ends.entry(pod.fact("uid")).or_insert(pod.at_ms);
        }
    }
    let mut spans = Vec::new();
    for (uid, from_ms) in ends.into_iter().filter(|(uid, _)| !uid.is_empty()) {
        // The folder, or for a device the file, of the pod's UID.
        let of_pod = |path: &str| path.split('/').any(|part| part == uid);
        let last = moves.iter().rfind(|m| match &m.step {
            Step::Published(_, path) | Step::Unpublished(_, path) => of_pod(path),
            Step::Created
            | Step::Attached(_)
            | Step::Staged(_)
            | Step::Unstaged(_)
            | Step::Detached(_)
            | Step::Deleted => false,
        });
        if let Some(last) = last {
            let over = matches!(last.step, Step::Unpublished(..));
            spans.push(Span {
                step: format!("{} is unpublished after the deletion of pod {uid}", volume.pv),
                from_ms,
                to_ms: over.then_some(last.at_ms),
                limit: Limit::DELETE,
            });
        }
    }
    spans
}

/// From the end of the last mount of a pod on a node to the end of the staging there. The loop device of a raw volume does not
/// tell its node.
fn unstaged(observed: &[Event], volume: &Owned) -> Vec<Span> {
    let mut open = Open::new(Limit::ATTACH);
    let (mut staged, mut published) = (BTreeSet::new(), BTreeSet::new());
    let step = |node: &str| format!("{} is unstaged on {node}", volume.pv);
    for transition in transitions(observed, volume) {
        match transition.step {
            Step::Staged(node) => {
                staged.insert(node);
            }
            Step::Published(node, path) => {
                open.give_up(&step(&node));
                published.insert((node, path));
            }
            Step::Unpublished(node, path) => {
                published.remove(&(node.clone(), path));
                if staged.contains(&node) && published.iter().all(|(on, _)| *on != node) {
                    open.begin(step(&node), transition.at_ms);
                }
            }
            Step::Unstaged(node) => {
                open.end(step(&node), transition.at_ms);
                staged.remove(&node);
            }
            Step::Created | Step::Attached(_) | Step::Detached(_) | Step::Deleted => {}
        }
    }
    if volume.block { Vec::new() } else { open.spans() }
}

/// From Released, with the policy Delete, to the PV's end.
fn deleted(observed: &[Event], volume: &Owned) -> Vec<Span> {
    let mut open = Open::new(Limit::DELETE);
    for pv in objects(observed, "PersistentVolume").filter(|pv| pv.name == volume.pv) {
        let step = format!("{} is deleted", volume.pv);
        if pv.gone {
            open.end(step, pv.at_ms);
        } else if pv.is("deleting") || (pv.fact("phase") == "Released" && pv.fact("policy") == "Delete") {
            open.begin(step, pv.at_ms);
        }
    }
    open.spans()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::history::Change;

    const NODE: &str = "w1";
    const MOUNT: &str = "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~csi/pvc-1/mount";

    fn object(at_s: u64, kind: &str, change: Change, facts: &[(&str, &str)]) -> Event {
        let (namespace, name) = match kind {
            "PersistentVolume" => ("", "pvc-1"),
            "VolumeAttachment" => ("", "csi-1"),
            _ => ("hf-a", "data"),
        };
        Event {
            at_ms: at_s * 1000,
            scenario: None,
            what: What::Object {
                change,
                kind: kind.to_owned(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                facts: facts
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect(),
            },
        }
    }

    fn mount(at_s: u64, change: Change) -> Event {
        mount_at(at_s, change, MOUNT)
    }

    fn mount_at(at_s: u64, change: Change, path: &str) -> Event {
        Event {
            at_ms: at_s * 1000,
            scenario: None,
            what: What::Mount {
                change,
                node: NODE.to_owned(),
                path: path.to_owned(),
                source: String::from("/dev/loop0"),
            },
        }
    }

    /// A whole life, a step every second; from `slow` on everything is `by` seconds later.
    fn life(slow: usize, by: u64) -> Vec<Event> {
        use Change::{Gone, Present};
        let pv = |phase| {
            [
                ("claim", "hf-a/data"),
                ("handle", "3f9c"),
                ("phase", phase),
                ("policy", "Delete"),
            ]
        };
        let va = |attached| [("pv", "pvc-1"), ("node", NODE), ("attached", attached)];
        let deleting = [
            ("pv", "pvc-1"),
            ("node", NODE),
            ("attached", "true"),
            ("deleting", "true"),
        ];
        let pod = [("uid", "u-1"), ("deleting", "true")];
        let at = |index: usize| index as u64 + 1 + if index >= slow { by } else { 0 };
        vec![
            object(at(0), "PersistentVolumeClaim", Present, &[("phase", "Pending")]),
            object(at(1), "PersistentVolumeClaim", Present, &[("phase", "Bound")]),
            object(at(1), "PersistentVolume", Present, &pv("Bound")),
            object(at(2), "VolumeAttachment", Present, &va("false")),
            object(at(3), "VolumeAttachment", Present, &va("true")),
            mount(at(4), Present),
            object(at(5), "Pod", Present, &pod),
            mount(at(6), Gone),
            object(at(7), "VolumeAttachment", Present, &deleting),
            object(at(8), "VolumeAttachment", Gone, &deleting),
            object(at(9), "PersistentVolume", Present, &pv("Released")),
            object(at(10), "PersistentVolume", Gone, &pv("Released")),
        ]
    }

    fn fault(at_s: u64, step: &str) -> Event {
        Event {
            at_ms: at_s * 1000,
            scenario: Some(String::from("a")),
            what: What::Fault {
                fault: String::from("controller at provisioning"),
                step: step.to_owned(),
                seen: String::new(),
            },
        }
    }

    #[rstest]
    #[case::bound(1, 60, "Pending to Bound")]
    #[case::attach(3, 60, "attached to w1")]
    #[case::publish(4, 120, "published on w1")]
    #[case::unpublish(6, 90, "unpublished")]
    #[case::detach(8, 60, "detached from w1")]
    #[case::delete(10, 90, "deleted")]
    fn a_step_that_takes_longer_than_its_limit_is_found(
        #[case] step: usize,
        #[case] limit_s: u64,
        #[case] says: &str,
    ) {
        // The step itself takes a second.
        assert_eq!(check(&[], &life(step, limit_s - 1), "hf-a"), []);
        let found = check(&[], &life(step, limit_s), "hf-a");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].expected.contains(says), "{}", found[0].expected);
    }

    #[rstest]
    #[case::in_time(60, 0)]
    #[case::hung(61, 1)]
    fn a_staging_that_outlives_its_last_pod_for_long_is_found(#[case] took_s: u64, #[case] found: usize) {
        let staging = format!("/k/{}/globalmount", crate::id::folder_of("3f9c"));
        let mut events = life(99, 0);
        events.insert(5, mount_at(5, Change::Present, &staging));
        events.push(mount_at(7 + took_s, Change::Gone, &staging));
        let seen = check(&[], &events, "hf-a");
        assert_eq!(seen.len(), found, "{seen:?}");
        assert!(
            seen.iter()
                .all(|f| f.expected.contains("pvc-1 is unstaged on w1"))
        );
    }

    #[test]
    fn a_step_that_is_never_over_is_found() {
        let mut events = life(99, 0);
        events.pop();
        events.push(object(200, "Node", Change::Present, &[]));
        let found = check(&[], &events, "hf-a");
        assert!(
            found.len() == 1 && found[0].seen.starts_with("not over after 190.0 s"),
            "{found:?}"
        );
    }

    #[test]
    fn where_no_mount_is_watched_publishing_is_not_timed() {
        let mut events = life(99, 0);
        events.truncate(5);
        events.push(object(200, "Node", Change::Present, &[]));
        assert_eq!(check(&[], &events, "hf-a"), []);
        events.insert(0, mount_at(0, Change::Present, "/elsewhere"));
        assert_eq!(check(&[], &events, "hf-a").len(), 1);
    }

    #[test]
    fn a_fault_gives_twice_its_own_time() {
        let slow = life(1, 80);
        assert_eq!(check(&[], &slow, "hf-a").len(), 1);
        assert_eq!(
            check(&[fault(2, "held"), fault(13, "took effect")], &slow, "hf-a"),
            []
        );
        assert_eq!(
            check(&[fault(2, "held"), fault(9, "took effect")], &slow, "hf-a").len(),
            1
        );
        // One that was over before the step began gives nothing.
        assert_eq!(
            check(&[fault(0, "held"), fault(0, "took effect")], &slow, "hf-a").len(),
            1
        );
    }

    #[test]
    fn a_claim_that_waits_for_its_first_consumer_is_timed_from_the_choice_of_a_node() {
        let claim = |at, facts: &[(&str, &str)]| object(at, "PersistentVolumeClaim", Change::Present, facts);
        let pending = [("phase", "Pending")];
        let chosen = [("phase", "Pending"), ("node", NODE)];
        let bound = [("phase", "Bound"), ("node", NODE)];
        let life = |bound_at| vec![claim(1, &pending), claim(100, &chosen), claim(bound_at, &bound)];
        assert_eq!(check(&[], &life(150), "hf-a"), []);
        assert_eq!(check(&[], &life(161), "hf-a").len(), 1);
    }

    #[test]
    fn what_was_given_up_is_not_timed() {
        let claim = |at, change| object(at, "PersistentVolumeClaim", change, &[("phase", "Pending")]);
        let events = vec![
            claim(1, Change::Present),
            claim(3, Change::Gone),
            object(500, "Node", Change::Present, &[]),
        ];
        assert_eq!(check(&[], &events, "hf-a"), []);
        assert_eq!(check(&[], &life(99, 0), "hf-b"), []);
    }
}
