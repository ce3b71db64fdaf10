//! `holdfast run` and `holdfast replay`: the main job.
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::{Deserialize, Serialize};

use super::args::{ClusterArgs, Keep, ReplayArgs, RunArgs};
use super::exit::Exit;
use crate::clock::Clock;
use crate::cluster::facts::Gatherer;
use crate::cluster::kind::{self, Cluster, ClusterSpec, Timers};
use crate::cluster::{deploy, workspace_root};
use crate::fault::{Site, driver_ready};
use crate::history::{self, Outcome, Recorder, What};
use crate::id::RunId;
use crate::progress::Progress;
use crate::report;
use crate::runner::{Runner, run_all};
use crate::scenario::{Scenario, Selection, catalogue, select};

/// What a run folder keeps, so that the run can be made again.
#[derive(Debug, Serialize, Deserialize)]
struct RunFile {
    run: String,
    kubernetes: String,
    timers: Timers,
    nodes: u32,
    seed: u64,
    scenarios: Vec<Scenario>,
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
    if args.kubeconfig.is_some() || args.context.is_some() {
        bail!(
            "scenarios need the nodes of a kind cluster on this host so far; bring one up by `holdfast cluster up` and name it by --on"
        );
    }
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
    let bare = name.split('#').next().unwrap_or(&name);
    let Some(scenario) = run.scenarios.iter().find(|s| s.name == bare) else {
        let names: Vec<_> = run.scenarios.iter().map(|s| s.name.as_str()).collect();
        bail!("the run has no scenario `{name}`; it has {}", names.join(", "));
    };
    let minor = run
        .kubernetes
        .trim_start_matches('v')
        .split('.')
        .take(2)
        .collect::<Vec<_>>()
        .join(".");
    let again = RunArgs {
        names: vec![scenario.name.clone()],
        labels: Vec::new(),
        cluster: ClusterArgs {
            kubernetes: Some(minor),
            nodes: run.nodes,
            timers: run.timers,
            node_image: None,
            yes: args.yes,
        },
        on: args.on,
        seed: Some(run.seed),
        keep: Keep::Never,
        kubeconfig: None,
        context: None,
        output: None,
        jobs: None,
        repeat: 1,
    };
    start(&again, std::slice::from_ref(scenario)).await
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
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("{} cannot be made; choose another by --output", folder.display()))?;
    let progress = Progress::default();
    let name = args.on.clone().unwrap_or_else(|| format!("hf-{id}"));
    let job = job(args, chosen, &id, &folder, &name, &progress);
    let ended = tokio::select! {
        ended = job => ended,
        signal = tokio::signal::ctrl_c() => {
            signal.context("Ctrl-C cannot be listened for")?;
            progress.note("interrupted; cleaning up");
            if args.on.is_none() {
                kind::down(&name).await?;
            }
            return Ok(Exit::Interrupted);
        }
    };
    let keep = match (&ended, args.keep) {
        (_, Keep::Always) => true,
        (Ok(exit), Keep::Failed) => *exit != Exit::Passed,
        (Err(_), Keep::Failed) => true,
        (_, Keep::Never) => false,
    };
    if args.on.is_none() && !keep {
        let step = progress.step("remove the cluster");
        let removed = kind::down(&name).await;
        match (removed, ended) {
            (Ok(()), ended) => {
                step.done();
                return infrastructure(ended);
            }
            (Err(error), Ok(Exit::Passed)) => return Err(error.into()),
            (Err(error), ended) => {
                progress.note(&format!(
                    "error: the cluster is not removed: {error}; `holdfast cluster down {name}` tries again"
                ));
                return infrastructure(ended);
            }
        }
    }
    if args.on.is_none() {
        progress.note(&format!(
            "the cluster stays: `holdfast cluster down {name}` removes it"
        ));
    }
    infrastructure(ended)
}

/// A cluster that does not come up is no fault of the command line.
fn infrastructure(ended: anyhow::Result<Exit>) -> anyhow::Result<Exit> {
    match ended {
        Ok(exit) => Ok(exit),
        Err(error) => {
            eprintln!("error: {error:#}");
            Ok(Exit::Infrastructure)
        }
    }
}

async fn job(
    args: &RunArgs,
    chosen: &[Scenario],
    id: &str,
    folder: &Path,
    name: &str,
    progress: &Progress,
) -> anyhow::Result<Exit> {
    let since = Instant::now();
    let executable = std::env::current_exe().context("this program's own file cannot be found")?;
    let clock = Clock::start();
    let show = progress.clone();
    let recorder = Recorder::create(&folder.join("events.jsonl"), clock, move |event| {
        if let Some(line) = report::line(event) {
            show.note(&line);
        }
    })?;

    let (cluster, images) = if let Some(on) = &args.on {
        let cluster = kind::find(on)?;
        let images = deploy::make_images(&cluster.docker, &executable, progress).await?;
        (cluster, images)
    } else {
        let spec = ClusterSpec {
            name: name.to_owned(),
            kubernetes: args.cluster.kubernetes.clone(),
            workers: args.cluster.nodes,
            timers: args.cluster.timers,
            node_image: args.cluster.node_image,
            yes: args.cluster.yes,
        };
        let step = progress.step("cluster");
        let cluster = kind::up(&spec, progress).await?;
        step.done();
        let images = deploy::make_images(&cluster.docker, &executable, progress).await?;
        (cluster, images)
    };
    deploy::install(&cluster, &images, progress).await?;
    let client = client(&cluster).await?;
    let cluster = Arc::new(cluster);
    let site = Site {
        client: client.clone(),
        cluster: Arc::clone(&cluster),
    };
    driver_ready(&site).await?;

    let seed = args.seed.unwrap_or(0);
    let file = RunFile {
        run: id.to_owned(),
        kubernetes: cluster.kubernetes.clone(),
        timers: cluster.timers,
        nodes: args.cluster.nodes,
        seed,
        scenarios: chosen.to_vec(),
    };
    std::fs::write(folder.join("run.json"), serde_json::to_vec_pretty(&file)?)?;
    let timers = match cluster.timers {
        Timers::Fast => "fast",
        Timers::Real => "real",
    };
    let started = What::RunStarted {
        run: id.to_owned(),
        kubernetes: cluster.kubernetes.clone(),
        timers: timers.to_owned(),
        scenarios: chosen.len(),
        seed,
    };
    recorder.record(None, started);
    for (name, took) in progress.times() {
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        recorder.record(None, What::Step { name, took_ms });
    }

    let runner = Runner {
        facts: Arc::new(Gatherer::new(&cluster, &client, clock)),
        client,
        cluster: Arc::clone(&cluster),
        recorder: recorder.clone(),
        folder: folder.to_owned(),
        image: images.e2e,
    };
    let jobs = usize::try_from(args.jobs.unwrap_or(4)).unwrap_or(4);
    run_all(&runner, chosen, jobs, args.repeat).await;
    if args.on.is_some() {
        deploy::remove(&cluster, progress).await?;
    }
    let took_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    recorder.record(None, What::RunEnded { took_ms });
    tell(folder)
}

/// A client for the cluster's own kubeconfig; the user's is never read.
pub(super) async fn client(cluster: &Cluster) -> anyhow::Result<Client> {
    let kubeconfig = Kubeconfig::read_from(&cluster.kubeconfig)
        .with_context(|| format!("{} cannot be read", cluster.kubeconfig.display()))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Makes every report from the events, prints the last lines, and chooses the exit code.
fn tell(folder: &Path) -> anyhow::Result<Exit> {
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
