//! `holdfast cluster ...` and `holdfast cache ...`.
use std::path::Path;
use std::time::Duration;

use super::args::{CacheCommand, ClusterCommand};
use super::exit::Exit;
use super::job::{sweep_clusters, told_to_stop};
use crate::cluster::kind::{self, ClusterSpec};
use crate::cluster::{bring_up, cache_root, docker, images, label, node_logs, tear_down};
use crate::progress::Progress;

/// Runs one of them.
///
/// # Errors
/// What the user is told.
pub async fn cluster(command: ClusterCommand) -> anyhow::Result<Exit> {
    let progress = Progress::default();
    match command {
        ClusterCommand::Up { name, cluster } => {
            let spec = ClusterSpec {
                name,
                kubernetes: cluster.kubernetes,
                workers: cluster.nodes,
                timers: cluster.timers,
                node_image: cluster.node_image,
                yes: cluster.yes,
            };
            up(&spec, &progress).await
        }
        ClusterCommand::Down { name, all: false } => tear_down::down(&name)
            .await
            .map(|()| Exit::Passed)
            .map_err(Into::into),
        ClusterCommand::Down { all: true, .. } => {
            for name in kind::known()? {
                tear_down::down(&name).await?;
            }
            // A process that was killed could not let go of the private daemon; one that is in use stays.
            if let Some(docker) = docker::existing().await {
                docker.release().await?;
            }
            Ok(Exit::Passed)
        }
        ClusterCommand::Status => status().await,
        ClusterCommand::Load { name, images } => {
            let step = progress.step("load images");
            images::load(&kind::find(&name)?, &images).await?;
            step.done();
            Ok(Exit::Passed)
        }
        ClusterCommand::Logs { name, output } => {
            node_logs::write(&kind::find(&name)?, &output).await?;
            println!("{}", output.display());
            Ok(Exit::Passed)
        }
    }
}

async fn up(spec: &ClusterSpec, progress: &Progress) -> anyhow::Result<Exit> {
    sweep_clusters(progress).await?;
    let known = kind::state(&spec.name).exists();
    tokio::select! {
        made = bring_up::up(spec, progress) => {
            let cluster = match made {
                Ok(cluster) => cluster,
                Err(error) => {
                    if let Some(docker) = docker::existing().await {
                        docker.release().await?;
                    }
                    return Err(error.into());
                }
            };
            println!("export KUBECONFIG={}", cluster.kubeconfig.display());
            println!("export DOCKER_HOST={}", cluster.docker.host);
            Ok(Exit::Passed)
        }
        told = told_to_stop() => {
            told?;
            progress.note("interrupted; cleaning up");
            if !known && kind::state(&spec.name).exists() {
                tear_down::down(&spec.name).await?;
            } else if let Some(docker) = docker::existing().await {
                docker.release().await?;
            }
            Ok(Exit::Interrupted)
        }
    }
}

async fn status() -> anyhow::Result<Exit> {
    for name in kind::known()? {
        let Ok(cluster) = kind::find(&name) else {
            println!("{name:20} half made; remove it with: holdfast cluster down {name}");
            continue;
        };
        let nodes = cluster
            .kubectl(&["get", "nodes", "--no-headers"], Duration::from_secs(10))
            .await;
        let state = match nodes {
            Ok(list) => {
                let ready = list
                    .lines()
                    .filter(|line| line.split_whitespace().nth(1) == Some("Ready"))
                    .count();
                format!("{ready}/{} nodes Ready", cluster.nodes.len())
            }
            Err(_) => String::from("does not answer"),
        };
        println!(
            "{name:20} {:10} {state:20} {}",
            cluster.kubernetes,
            cluster.kubeconfig.display()
        );
    }
    Ok(Exit::Passed)
}

/// Shows or empties the cache.
///
/// # Errors
/// What the user is told.
pub async fn cache(command: CacheCommand) -> anyhow::Result<Exit> {
    let root = cache_root();
    let parts = [
        "go-build", "bin", "tools", "rootfs", "work", "docker", "failed", "state", "target",
    ];
    match command {
        CacheCommand::Show => {
            for part in parts {
                println!(
                    "{:8.1} MiB  {}",
                    size(&root.join(part)) as f64 / f64::from(1 << 20),
                    root.join(part).display()
                );
            }
        }
        CacheCommand::Prune => {
            let clusters = kind::known()?;
            if !clusters.is_empty() {
                anyhow::bail!(
                    "clusters are up ({}); first: holdfast cluster down --all",
                    clusters.join(", ")
                );
            }
            if let Some(docker) = docker::existing().await {
                docker.release().await?;
                if docker::existing().await.is_some_and(|docker| docker.private) {
                    anyhow::bail!("the private Docker daemon is in use by another process");
                }
            }
            for part in parts {
                label::release(&root.join(part)).await?;
                label::remove_tree(&root.join(part))?;
            }
        }
    }
    Ok(Exit::Passed)
}

/// Bytes on disk, not following links.
fn size(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = std::fs::symlink_metadata(path) else {
        return 0;
    };
    let below = meta
        .is_dir()
        .then(|| std::fs::read_dir(path).into_iter().flatten().flatten());
    meta.blocks() * 512
        + below
            .into_iter()
            .flatten()
            .map(|entry| size(&entry.path()))
            .sum::<u64>()
}
