//! Every volume goes CREATED, NODE_READY, VOL_READY, PUBLISHED and back, in this order, by what was observed.
use super::check::{Finding, SAME_MS};
use crate::history::{Event, Outcome, Owned, Step, Transition, owned_by, transitions};

/// The same for what is seen in two ways: the API by a watch for each kind, mounts by the kernel's word, loop devices by looking
/// again and again. On a loaded machine one comes later than another by half a second (measured: 0.46 s at a load of 22).
const SAME_ACROSS_MS: u64 = 2_000;

pub(super) fn check(observed: &[Event], namespace: &str) -> Vec<Finding> {
    owned_by(observed, namespace)
        .iter()
        .filter_map(|volume| {
            let seen = transitions(observed, volume);
            wrong(volume, &seen).map(|why| finding(volume, &why, &seen))
        })
        .collect()
}

/// The first thing that is out of order.
fn wrong(volume: &Owned, seen: &[Transition]) -> Option<String> {
    for (index, now) in seen.iter().enumerate() {
        // Staged and published are both read from one mountinfo, but for a raw volume's loop device.
        let is_mount = matches!(now.step, Step::Published(..) | Step::Unstaged(_));
        let same_ms = if is_mount && !volume.block {
            SAME_MS
        } else {
            SAME_ACROSS_MS
        };
        let near = |wanted: &dyn Fn(&Step) -> bool| {
            seen.iter()
                .any(|t| t.at_ms.abs_diff(now.at_ms) <= same_ms && wanted(&t.step))
        };
        let past = seen.get(..index).unwrap_or_default();
        // Whether `up` is there by now: it happened, and its opposite did not happen after it.
        let holds = |up: &dyn Fn(&Step) -> bool| {
            let done = past.iter().rposition(|t| up(&t.step));
            let undone = past.iter().rposition(|t| up(&t.step.opposite()));
            done.is_some() && done > undone
        };
        let needs = |up: &dyn Fn(&Step) -> bool, what: &str| {
            (!holds(up) && !near(up)).then(|| format!("{} without {what}", now.step))
        };
        let excludes = |up: &dyn Fn(&Step) -> bool, what: &str| {
            let undone_now = near(&|step| up(&step.opposite()));
            (holds(up) && !undone_now).then(|| format!("{} while {what}", now.step))
        };
        let staged_on = |node: &str| {
            let node = node.to_owned();
            move |step: &Step| matches!(step, Step::Staged(on) if *on == node || volume.block)
        };
        let problem = match &now.step {
            Step::Created => past
                .iter()
                .any(|t| t.step == Step::Deleted)
                .then(|| String::from("a volume that was gone came back")),
            Step::Attached(_) => needs(&|step| *step == Step::Created, "CREATED"),
            Step::Staged(node) => needs(
                &|step| matches!(step, Step::Attached(on) if on == node || volume.block),
                "NODE_READY",
            ),
            Step::Published(node, _) => needs(&staged_on(node), "VOL_READY"),
            Step::Unpublished(..) => None,
            Step::Unstaged(node) => excludes(
                &|step| matches!(step, Step::Published(on, _) if on == node || volume.block),
                "PUBLISHED",
            ),
            Step::Detached(node) => excludes(&staged_on(node), "VOL_READY"),
            Step::Deleted => excludes(&|step| matches!(step, Step::Attached(_)), "NODE_READY"),
        };
        if problem.is_some() {
            return problem;
        }
    }
    None
}

fn finding(volume: &Owned, why: &str, seen: &[Transition]) -> Finding {
    let steps: Vec<String> = seen
        .iter()
        .map(|t| format!("+{}.{:03} s {}", t.at_ms / 1000, t.at_ms % 1000, t.step))
        .collect();
    Finding {
        invariant: "lifecycle",
        outcome: Outcome::Failed,
        expected: format!(
            "{} goes CREATED, NODE_READY, VOL_READY, PUBLISHED and back, in order",
            volume.pv
        ),
        seen: format!("{why}: {}", steps.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn life(steps: &[Step]) -> Vec<Transition> {
        let at = |index: usize| 3000 * (index as u64 + 1);
        steps
            .iter()
            .enumerate()
            .map(|(i, step)| Transition {
                at_ms: at(i),
                step: step.clone(),
            })
            .collect()
    }

    fn whole() -> Vec<Step> {
        let (n, p) = (|| String::from("w1"), || String::from("/p"));
        vec![
            Step::Created,
            Step::Attached(n()),
            Step::Staged(n()),
            Step::Published(n(), p()),
            Step::Unpublished(n(), p()),
            Step::Unstaged(n()),
            Step::Detached(n()),
            Step::Deleted,
        ]
    }

    #[test]
    fn a_whole_life_is_in_order() {
        assert_eq!(wrong(&Owned::default(), &life(&whole())), None);
    }

    #[rstest]
    #[case::never_attached(1, "VOL_READY(w1) without NODE_READY")]
    #[case::never_staged(2, "PUBLISHED(w1) without VOL_READY")]
    #[case::not_unpublished(4, "back to NODE_READY(w1) while PUBLISHED")]
    #[case::not_unstaged(5, "back to CREATED(w1) while VOL_READY")]
    #[case::not_detached(6, "gone while NODE_READY")]
    fn a_step_that_is_missing_is_named(#[case] missing: usize, #[case] says: &str) {
        let mut steps = whole();
        steps.remove(missing);
        assert_eq!(wrong(&Owned::default(), &life(&steps)).as_deref(), Some(says));
    }

    #[test]
    fn a_loop_device_that_was_seen_late_was_there_in_time() {
        let block = Owned {
            block: true,
            ..Owned::default()
        };
        let mut seen = life(&whole());
        seen.swap(2, 3);
        (seen[2].at_ms, seen[3].at_ms) = (9000, 9600);
        assert_eq!(wrong(&block, &seen), None);
        assert!(wrong(&Owned::default(), &seen).is_some());
        seen.remove(3);
        assert!(wrong(&block, &seen).is_some(), "it was never staged");
    }

    #[test]
    fn what_two_watches_show_at_once_has_no_order() {
        let mut seen = life(&whole());
        seen.swap(1, 2);
        assert!(wrong(&Owned::default(), &seen).is_some());
        (seen[1].at_ms, seen[2].at_ms) = (6000, 7900);
        assert_eq!(wrong(&Owned::default(), &seen), None);
    }

    #[test]
    fn what_one_watch_shows_has_its_order() {
        let mut seen = life(&whole());
        seen.swap(2, 3);
        (seen[2].at_ms, seen[3].at_ms) = (9000, 9600);
        let says = "PUBLISHED(w1) without VOL_READY";
        assert_eq!(wrong(&Owned::default(), &seen).as_deref(), Some(says));
    }
}
