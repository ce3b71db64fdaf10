//! JUnit, for every CI system.
use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::fold::Summary;
use crate::history::Outcome;

/// The summary as JUnit XML.
///
/// # Errors
/// If a text cannot stand in XML.
pub fn junit(summary: &Summary) -> Result<String, quick_junit::SerializeError> {
    let mut suite = TestSuite::new(format!("holdfast on Kubernetes {}", summary.kubernetes));
    for row in &summary.rows {
        let mut status = match row.outcome {
            Outcome::Passed => TestCaseStatus::success(),
            Outcome::Skipped => TestCaseStatus::skipped(),
            Outcome::Broken => TestCaseStatus::non_success(NonSuccessKind::Error),
            Outcome::Leaked | Outcome::Failed => TestCaseStatus::non_success(NonSuccessKind::Failure),
        };
        if row.outcome != Outcome::Passed {
            status.set_message(row.message.lines().next().unwrap_or("").to_owned());
            status.set_description(row.message.clone());
        }
        let mut case = TestCase::new(row.name.clone(), status);
        case.set_classname("holdfast")
            .set_time(Duration::from_millis(row.took_ms));
        suite.add_test_case(case);
    }
    let mut report = Report::new("holdfast");
    report.set_time(Duration::from_millis(summary.took_ms));
    report.add_test_suite(suite);
    report.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::fold::Row;
    use super::*;

    #[test]
    fn a_leak_is_a_failure_and_a_broken_scenario_an_error() {
        let row = |name: &str, outcome| Row {
            name: String::from(name),
            outcome,
            message: String::from("why"),
            took_ms: 1,
            waited_ms: 0,
        };
        let summary = Summary {
            rows: vec![
                row("a", Outcome::Leaked),
                row("b", Outcome::Broken),
                row("c", Outcome::Passed),
            ],
            ..Summary::default()
        };
        let xml = junit(&summary).unwrap();
        assert!(
            xml.contains("failures=\"1\"") && xml.contains("errors=\"1\"") && xml.contains("tests=\"3\""),
            "{xml}"
        );
    }
}
