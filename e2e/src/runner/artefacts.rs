//! What of a scenario stays in the run folder: objects, logs, mountinfo, loops, the ledger's difference.
use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, LogParams};
use kube::{Api, ResourceExt};

use super::execute::{Run, Runner};
use crate::cluster::wait;
use crate::id::scenario_folder;
use crate::ledger::Diff;

/// Lines of a container's log that are kept.
const TAIL: i64 = 2000;

/// Writes them; the difference and the facts always, the logs where they can be read.
pub(super) async fn write(runner: &Runner, run: &Run, diff: &Diff) -> std::io::Result<()> {
    let folder = runner.folder.join(scenario_folder(&run.context.scenario));
    fs::create_dir_all(folder.join("logs"))?;
    fs::write(folder.join("ledger-diff.txt"), diff.lines().join("\n") + "\n")?;
    fs::write(
        folder.join("scenario.json"),
        serde_json::to_vec_pretty(&run.scenario)?,
    )?;
    match runner.facts.gather().await {
        Ok(facts) => {
            for (node, text) in &facts.mountinfo {
                fs::write(folder.join(format!("mountinfo-{node}.txt")), text)?;
            }
            fs::write(
                folder.join("loops.json"),
                serde_json::to_vec_pretty(&facts.loops)?,
            )?;
            fs::write(
                folder.join("objects.json"),
                serde_json::to_vec_pretty(&facts.objects)?,
            )?;
        }
        Err(error) => fs::write(folder.join("facts-missing.txt"), error.to_string())?,
    }
    for namespace in [
        runner.site.driver.namespace.as_str(),
        run.context.namespace.as_str(),
    ] {
        logs(&wait::api(&runner.site.client, namespace), &folder.join("logs")).await?;
    }
    Ok(())
}

async fn logs(pods: &Api<Pod>, folder: &Path) -> std::io::Result<()> {
    let Ok(list) = pods.list(&ListParams::default()).await else {
        return Ok(());
    };
    for pod in &list.items {
        let name = pod.name_any();
        let containers = pod
            .spec
            .iter()
            .flat_map(|s| &s.containers)
            .map(|c| c.name.clone());
        for container in containers {
            for previous in [false, true] {
                let parameters = LogParams {
                    container: Some(container.clone()),
                    previous,
                    tail_lines: Some(TAIL),
                    timestamps: true,
                    ..LogParams::default()
                };
                // A container without an earlier life has no earlier log.
                if let Ok(text) = pods.logs(&name, &parameters).await {
                    let suffix = if previous { ".previous" } else { "" };
                    fs::write(folder.join(format!("{name}.{container}{suffix}.log")), text)?;
                }
            }
        }
    }
    Ok(())
}
