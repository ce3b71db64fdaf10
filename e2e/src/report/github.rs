//! The summary page of a GitHub Actions job.
use super::fold::Summary;
use crate::history::Outcome;

/// The summary as Markdown.
pub fn markdown(summary: &Summary) -> String {
    let mut page = format!(
        "## holdfast {} on Kubernetes {}\n\n| scenario | outcome | seconds | |\n|---|---|---:|---|\n",
        summary.run, summary.kubernetes
    );
    for row in &summary.rows {
        let why = if row.outcome == Outcome::Passed {
            ""
        } else {
            row.message.lines().next().unwrap_or("")
        };
        page.push_str(&format!(
            "| {} | {:?} | {}.{} | {} |\n",
            row.name,
            row.outcome,
            row.took_ms / 1000,
            row.took_ms % 1000 / 100,
            why.replace('|', "\\|")
        ));
    }
    page
}
