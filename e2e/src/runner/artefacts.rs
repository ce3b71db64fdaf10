//! What of a scenario stays in the run folder: objects, logs, mountinfo, loops, the ledger's difference.
use std::fs;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, LogParams};
use kube::{Api, ResourceExt};

use super::execute::{Run, Runner};
use crate::cluster::wait;
use crate::id::scenario_folder;
use crate::ledger::Diff;

/// Lines of a container's log that are kept.
const TAIL: i64 = 2000;
/// Logs that are read at the same time.
const AT_ONCE: usize = 8;

/// Writes them; the difference and the facts always, the logs where they can be read: all of them, or what was logged
/// `since` so long ago.
pub(super) async fn write(
    runner: &Runner,
    run: &Run,
    diff: &Diff,
    since: Option<Duration>,
) -> std::io::Result<()> {
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
        let pods = wait::api(&runner.site.client, namespace);
        logs(&pods, since, &folder.join("logs")).await?;
    }
    Ok(())
}

/// The log of every container in `pods`, that before its last restart too; what cannot be read is left out.
async fn logs(pods: &Api<Pod>, since: Option<Duration>, folder: &Path) -> std::io::Result<()> {
    let list = pods.list(&ListParams::default()).await.map(|list| list.items);
    let wanted = list.iter().flatten().flat_map(lives);
    let read = |(pod, container, previous): (String, String, bool)| async move {
        let parameters = LogParams {
            container: Some(container.clone()),
            previous,
            since_seconds: since.and_then(|since| i64::try_from(since.as_secs() + 1).ok()),
            tail_lines: Some(TAIL),
            timestamps: true,
            ..LogParams::default()
        };
        let suffix = if previous { ".previous" } else { "" };
        let text = pods.logs(&pod, &parameters).await;
        text.ok()
            .map(|text| (format!("{pod}.{container}{suffix}.log"), text))
    };
    let read: Vec<_> = stream::iter(wanted.map(read))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    for (name, text) in read.into_iter().flatten() {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}

/// Pod, container, and whether it is the life before the last restart, of each that has a log.
fn lives(pod: &Pod) -> Vec<(String, String, bool)> {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    let name = pod.name_any();
    statuses
        .into_iter()
        .flatten()
        .flat_map(|status| {
            let life = |previous| (name.clone(), status.name.clone(), previous);
            let before = (status.restart_count > 0).then(|| life(true));
            [life(false)].into_iter().chain(before)
        })
        .collect()
}
