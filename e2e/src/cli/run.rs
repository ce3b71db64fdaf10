//! `holdfast run` and `holdfast replay`: the main job.
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::args::{ClusterArgs, JOBS, Keep, ReplayArgs, RunArgs, TargetArgs};
use super::exit::Exit;
use super::job::{Run, sweep, told_to_stop};
use super::target::{self, Target};
use crate::cluster::kind::Timers;
use crate::cluster::run_lock::RunLock;
use crate::cluster::workspace_root;
use crate::history::{self, Outcome};
use crate::id::RunId;
use crate::progress::Progress;
use crate::report;
use crate::runner::WHOLE;
use crate::scenario::{Scenario, Selection, catalogue, select};

/// What a run folder keeps, so that the run can be made again.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RunFile {
    pub(super) run: String,
    pub(super) kubernetes: String,
    /// None for a cluster that was there: its timers are its own.
    pub(super) timers: Option<Timers>,
    pub(super) nodes: u32,
    pub(super) seed: u64,
    /// Where it was, if on a cluster that is not ours.
    pub(super) existing: Option<TargetArgs>,
    pub(super) driver: String,
    pub(super) scenarios: Vec<Scenario>,
}

/// Where the scenarios lie.
pub(super) fn scenarios_folder() -> PathBuf {
    workspace_root().join("e2e/scenarios")
}

/// Runs the scenarios that were chosen.
///
/// # Errors
/// What the user is told before a run begins.
pub async fn run(args: RunArgs) -> anyhow::Result<Exit> {
    let all = catalogue(&scenarios_folder())?;
    let chosen = match select(&all, &args.names, &args.labels) {
        Selection::Some(chosen) => chosen,
        Selection::Nothing => {
            eprintln!("error: no scenario has these labels; `holdfast list` shows what there is");
            return Ok(Exit::NothingSelected);
        }
        Selection::Unknown { name, nearest } => {
            let hint = nearest.map_or_else(String::new, |n| format!("; did you mean `{n}`?"));
            bail!("there is no scenario `{name}`{hint}; `holdfast list` shows what there is");
        }
    };
    start(&args, &chosen).await
}

/// Runs one scenario again, as its run folder describes it.
///
/// # Errors
/// What the user is told before a run begins.
pub async fn replay(args: ReplayArgs) -> anyhow::Result<Exit> {
    let file = args.folder.join("run.json");
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("{} cannot be read; name a run folder", file.display()))?;
    let run: RunFile = serde_json::from_str(&text)
        .with_context(|| format!("{} is no description of a run", file.display()))?;
    let name = match args.scenario {
        Some(name) => name,
        None => first_failure(&args.folder)?,
    };
    let chosen = again(&run.scenarios, &name)?;
    let named = args.target.on.is_some() || args.target.kubeconfig.is_some() || args.target.context.is_some();
    let target = match run.existing {
        Some(existing) if !named => existing,
        Some(_) | None => args.target,
    };
    let minor = run
        .kubernetes
        .trim_start_matches('v')
        .split('.')
        .take(2)
        .collect::<Vec<_>>()
        .join(".");
    let args = RunArgs {
        names: chosen.iter().map(|s| s.name.clone()).collect(),
        labels: Vec::new(),
        cluster: ClusterArgs {
            kubernetes: Some(minor),
            nodes: run.nodes,
            timers: run.timers.unwrap_or_default(),
            node_image: None,
            yes: args.yes,
        },
        target,
        seed: run.seed,
        keep: Keep::Never,
        output: None,
        jobs: JOBS,
        repeat: 1,
    };
    start(&args, &chosen).await
}

/// What a row of a report is made of again: its scenario, whichever round of it, or all of them for what no single one explains.
fn again(all: &[Scenario], row: &str) -> anyhow::Result<Vec<Scenario>> {
    if row == WHOLE {
        return Ok(all.to_vec());
    }
    let bare = row.split('#').next().unwrap_or(row);
    match all.iter().find(|s| s.name == bare) {
        Some(scenario) => Ok(vec![scenario.clone()]),
        None => {
            let names: Vec<_> = all.iter().map(|s| s.name.as_str()).collect();
            bail!("the run has no scenario `{row}`; it has {}", names.join(", "))
        }
    }
}

fn first_failure(folder: &Path) -> anyhow::Result<String> {
    let summary = report::fold(&history::read(&folder.join("events.jsonl"))?);
    let bad = |row: &&report::Row| !matches!(row.outcome, Outcome::Passed | Outcome::Skipped);
    match summary.rows.iter().find(bad) {
        Some(row) => Ok(row.name.clone()),
        None => bail!(
            "everything passed in {}; name a scenario by --scenario",
            folder.display()
        ),
    }
}

async fn start(args: &RunArgs, chosen: &[Scenario]) -> anyhow::Result<Exit> {
    let id = RunId::new().to_string();
    let folder = args
        .output
        .clone()
        .unwrap_or_else(|| PathBuf::from("runs").join(&id));
    if folder.join("events.jsonl").exists() {
        bail!(
            "{} holds a run already; name another folder by --output",
            folder.display()
        );
    }
    let progress = Progress::default();
    let target = target::resolve(&args.target, args.cluster.yes, format!("hf-{id}"), &progress).await?;
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("{} cannot be made; choose another by --output", folder.display()))?;
    let lock = match &target {
        Target::Fresh(name) => Some(RunLock::of(name, true).await?),
        Target::Own(name) => Some(RunLock::of(name, false).await?),
        Target::Existing(_) => None,
    };
    sweep(&target, &progress).await?;
    let run = Run {
        args,
        chosen,
        id: &id,
        folder: &folder,
        target: &target,
        progress: &progress,
    };
    let ended = tokio::select! {
        ended = run.job() => ended,
        told = told_to_stop() => {
            told?;
            return run.interrupted(lock).await;
        }
    };
    run.end(ended, lock).await
}

/// Makes every report from the events, prints the last lines, and chooses the exit code.
pub(super) fn tell(folder: &Path) -> anyhow::Result<Exit> {
    let summary = report::fold(&history::read(&folder.join("events.jsonl"))?);
    std::fs::write(folder.join("junit.xml"), report::junit(&summary)?)?;
    std::fs::write(folder.join("summary.md"), report::markdown(&summary))?;
    if let Some(page) = std::env::var_os("GITHUB_STEP_SUMMARY").filter(|p| !p.is_empty()) {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&page)?;
        file.write_all(report::markdown(&summary).as_bytes())?;
    }
    let shown = folder.display().to_string();
    for row in &summary.rows {
        if !matches!(row.outcome, Outcome::Passed | Outcome::Skipped) {
            println!("\n{}", report::failure(row, &shown));
        }
    }
    println!("\n{}", report::total(&summary));
    println!("run folder: {shown}");
    if std::io::stdout().is_terminal() {
        println!();
    }
    Ok(match summary.worst() {
        Outcome::Passed | Outcome::Skipped => Exit::Passed,
        Outcome::Broken => Exit::Infrastructure,
        Outcome::Leaked => Exit::Leaked,
        Outcome::Failed => Exit::Failed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_a_report_can_be_made_again() {
        let all = catalogue(&scenarios_folder()).unwrap();
        let two = all.get(..2).unwrap();
        assert_eq!(again(two, WHOLE).unwrap(), two);
        let round = format!("{}#3", two[1].name);
        assert_eq!(again(two, &round).unwrap(), two[1..]);
        let said = again(two, "other").unwrap_err().to_string();
        assert!(said.contains(&two[0].name), "{said}");
    }
}
