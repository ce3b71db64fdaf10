//! Lines for a person: verb, name, facts; their meaning is whole without colour and without a terminal.
use super::fold::{Row, Summary};
use crate::history::{Event, Outcome, What};
use crate::id::scenario_folder;

/// The step that makes a cluster of its own for the run.
pub const CLUSTER_STEP: &str = "cluster";
/// The step that brings the driver onto it.
pub const DRIVER_STEP: &str = "driver";

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

fn verb(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "PASS",
        Outcome::Skipped => "SKIP",
        Outcome::Broken => "BROKEN",
        Outcome::Leaked => "LEAK",
        Outcome::Failed => "FAIL",
    }
}

/// The line that an event deserves, if any.
pub fn line(event: &Event) -> Option<String> {
    let name = event.scenario.as_deref().unwrap_or("");
    match &event.what {
        What::ScenarioStarted => Some(format!("RUN     {name}")),
        What::Fault { fault, step, seen } => Some(format!("FAULT   {name:<40} {fault}: {step}: {seen}")),
        What::ScenarioEnded {
            outcome,
            message,
            took_ms,
        } => {
            let why = message.lines().next().unwrap_or("");
            Some(
                format!("{:<7} {name:<40} {:>8}  {why}", verb(*outcome), seconds(*took_ms))
                    .trim_end()
                    .to_owned(),
            )
        }
        What::RunStarted { .. }
        | What::Step { .. }
        | What::Phase { .. }
        | What::Waited { .. }
        | What::Object { .. }
        | What::Mount { .. }
        | What::Loop { .. }
        | What::Blocks { .. }
        | What::Planted { .. }
        | What::Difference { .. }
        | What::RunEnded { .. } => None,
    }
}

/// The block of a scenario that did not pass; its last line is the command that runs it again.
pub fn failure(row: &Row, folder: &str) -> String {
    let mut block = format!("{}  {}\n", verb(row.outcome), row.name);
    for line in row.message.lines() {
        block.push_str("  ");
        block.push_str(line);
        block.push('\n');
    }
    block.push_str(&format!("  folder    {folder}/{}\n", scenario_folder(&row.name)));
    block.push_str(&format!(
        "  replay    holdfast replay {folder} --scenario {}\n",
        row.name
    ));
    block
}

/// The last lines: counts, and where the time went.
pub fn total(summary: &Summary) -> String {
    let step = |name: &str| -> u64 {
        summary
            .steps
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, ms)| ms)
            .sum()
    };
    let scenarios: u64 = summary.rows.iter().map(|r| r.took_ms).sum();
    let waited: u64 = summary.rows.iter().map(|r| r.waited_ms).sum();
    format!(
        "{} passed, {} failed, {} leaked, {} broken, {} skipped in {}  (Kubernetes {}, timers {})\n\
         time: cluster {}, driver {}, scenarios {} added up, of which waiting {}",
        summary.count(Outcome::Passed),
        summary.count(Outcome::Failed),
        summary.count(Outcome::Leaked),
        summary.count(Outcome::Broken),
        summary.count(Outcome::Skipped),
        seconds(summary.took_ms),
        summary.kubernetes,
        summary.timers,
        seconds(step(CLUSTER_STEP)),
        seconds(step(DRIVER_STEP)),
        seconds(scenarios),
        seconds(waited),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_ends_in_the_command_that_replays_it() {
        let row = Row {
            name: String::from("detach-controller-killed"),
            outcome: Outcome::Leaked,
            message: String::from("expected  nothing left\nseen      a mount"),
            took_ms: 1,
            waited_ms: 0,
        };
        let shown = failure(&row, "runs/1");
        assert_eq!(
            shown,
            "LEAK  detach-controller-killed\n  expected  nothing left\n  seen      a mount\n  folder    runs/1/detach-controller-killed\n  \
             replay    holdfast replay runs/1 --scenario detach-controller-killed\n"
        );
    }

    #[test]
    fn a_repetition_is_found_where_its_folder_is() {
        let row = Row {
            name: String::from("retain#3"),
            outcome: Outcome::Failed,
            message: String::new(),
            took_ms: 1,
            waited_ms: 0,
        };
        let shown = failure(&row, "runs/1");
        assert!(shown.contains("  folder    runs/1/retain-3\n"), "{shown}");
        assert!(shown.ends_with(" --scenario retain#3\n"), "{shown}");
    }
}
