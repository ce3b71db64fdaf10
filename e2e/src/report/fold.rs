//! From events to a summary.
use std::collections::BTreeMap;

use crate::history::{Event, Outcome, What};

/// One scenario.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, where it did not pass.
    pub message: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// How long it waited meanwhile, for one thing or for several at once.
    pub waited_ms: u64,
}

/// A run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Its name.
    pub run: String,
    /// Version of Kubernetes.
    pub kubernetes: String,
    /// `fast` or `real`.
    pub timers: String,
    /// Scenarios, in the order of their ends.
    pub rows: Vec<Row>,
    /// Steps of set-up and clean-up.
    pub steps: Vec<(String, u64)>,
    /// How long all of it took.
    pub took_ms: u64,
}

impl Summary {
    /// The worst of all outcomes, in the order Failed, Leaked, Broken, Passed; a skip is no worse than a pass.
    pub fn worst(&self) -> Outcome {
        let counted = self
            .rows
            .iter()
            .map(|row| row.outcome)
            .filter(|o| *o != Outcome::Skipped);
        counted.max().unwrap_or(Outcome::Passed)
    }

    /// How many ended so.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.rows.iter().filter(|row| row.outcome == outcome).count()
    }
}

/// Folds events into a summary; an event stream that was cut gives what it has.
pub fn fold(events: &[Event]) -> Summary {
    let mut summary = Summary::default();
    let mut waits: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
    for event in events {
        let scenario = event.scenario.clone().unwrap_or_default();
        // Of a run that was interrupted nothing tells its end.
        summary.took_ms = summary.took_ms.max(event.at_ms);
        match &event.what {
            What::RunStarted {
                run,
                kubernetes,
                timers,
                ..
            } => {
                summary.run.clone_from(run);
                summary.kubernetes.clone_from(kubernetes);
                summary.timers.clone_from(timers);
            }
            What::Step { name, took_ms } => summary.steps.push((name.clone(), *took_ms)),
            What::Waited { took_ms, .. } => {
                let span = (event.at_ms.saturating_sub(*took_ms), event.at_ms);
                waits.entry(scenario).or_default().push(span);
            }
            What::ScenarioEnded {
                outcome,
                message,
                took_ms,
            } => summary.rows.push(Row {
                waited_ms: covered(waits.remove(&scenario).unwrap_or_default()),
                name: scenario,
                outcome: *outcome,
                message: message.clone(),
                took_ms: *took_ms,
            }),
            What::RunEnded { took_ms } => summary.took_ms = *took_ms,
            What::ScenarioStarted
            | What::Phase { .. }
            | What::Object { .. }
            | What::Mount { .. }
            | What::Loop { .. }
            | What::Fault { .. }
            | What::Blocks { .. }
            | What::Planted { .. }
            | What::Difference { .. } => {}
        }
    }
    summary
}

/// How long at least one of the spans lasted.
fn covered(mut spans: Vec<(u64, u64)>) -> u64 {
    spans.sort_unstable();
    let mut until = 0;
    let mut sum = 0;
    for (from, to) in spans {
        sum += to.saturating_sub(from.max(until));
        until = until.max(to);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(name: &str, outcome: Outcome) -> Event {
        Event {
            at_ms: 1,
            scenario: Some(name.to_owned()),
            what: What::ScenarioEnded {
                outcome,
                message: String::new(),
                took_ms: 5,
            },
        }
    }

    #[test]
    fn the_worst_outcome_is_the_run_s() {
        let of =
            |outcomes: &[Outcome]| fold(&outcomes.iter().map(|o| ended("s", *o)).collect::<Vec<_>>()).worst();
        assert_eq!(of(&[Outcome::Passed, Outcome::Skipped]), Outcome::Passed);
        assert_eq!(of(&[Outcome::Broken, Outcome::Passed]), Outcome::Broken);
        assert_eq!(of(&[Outcome::Leaked, Outcome::Broken]), Outcome::Leaked);
        assert_eq!(of(&[Outcome::Leaked, Outcome::Failed]), Outcome::Failed);
    }

    #[test]
    fn waits_side_by_side_count_once() {
        let waited = |at_ms, took_ms| Event {
            at_ms,
            scenario: Some(String::from("s")),
            what: What::Waited {
                what: String::new(),
                took_ms,
            },
        };
        // From 0 to 4, 1 to 3, 3 to 6, and 8 to 9.
        let events = [
            waited(3, 2),
            waited(4, 4),
            waited(6, 3),
            waited(9, 1),
            ended("s", Outcome::Passed),
        ];
        assert_eq!(fold(&events).rows[0].waited_ms, 7);
    }
}
