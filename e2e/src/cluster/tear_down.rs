//! Removes a cluster with everything that is its own, whole or not.
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use super::docker::{self, Docker};
use super::kind::{check_name, description_file, find, kind_command, network, state};
use super::wait::{self, Look};
use super::{ClusterError, call, label, process, tools};
use crate::progress::Progress;

const LIMIT_DELETE: Duration = Duration::from_secs(120);
/// The label, with its cluster's name, that kind puts on every node it makes.
pub const NODE_LABEL: &str = "io.x-k8s.kind.cluster";

/// Removes a cluster with everything that is its own; a private Docker that nobody uses then is stopped.
///
/// # Errors
/// With what would not go.
pub async fn down(name: &str) -> Result<(), ClusterError> {
    let progress = Progress::default();
    check_name(name)?;
    let saved = find(name).ok();
    let folder = state(name);
    if saved.is_none() && !folder.exists() {
        // For the list of those that are there.
        return find(name).map(drop);
    }
    // A daemon that is gone (a reboot, a kill) still has the containers on its disk: it is started to remove them.
    let docker = docker::ensure(&progress).await?;
    let kind = match &saved {
        Some(cluster) if cluster.kind.exists() => cluster.kind.clone(),
        _ => tools::tool("kind", &progress).await?,
    };
    let removed = remove(name, &docker, &kind, &progress).await;
    // Not if the caller still holds a Cluster: then its daemon stops when the program ends.
    docker.release().await?;
    removed
}

/// Removes what is there of the cluster, by its name alone.
///
/// # Errors
/// With what would not go.
pub(super) async fn remove(
    name: &str,
    docker: &Docker,
    kind: &Path,
    progress: &Progress,
) -> Result<(), ClusterError> {
    let step = progress.step(&format!("remove cluster {name}"));
    let folder = state(name);
    end_makers(name).await?;
    let spec = kind_command(kind, docker, name)
        .args(["delete", "cluster", "--name", name, "--kubeconfig"])
        .arg(folder.join("kubeconfig"));
    call("kind delete cluster", &spec.timeout(LIMIT_DELETE)).await?;
    let network = network(name);
    let found = docker.command().args([
        "network",
        "ls",
        "--quiet",
        "--filter",
        &format!("name=^{network}$"),
    ]);
    if !call("docker network ls", &found).await?.trim().is_empty() {
        call(
            "docker network rm",
            &docker.command().args(["network", "rm", &network]),
        )
        .await?;
    }
    label::release(&folder).await?;
    label::remove_tree(&folder)?;
    step.done();
    Ok(())
}

/// Waits until nobody makes nodes of the cluster any more. Kind lives on where the program that called it was killed, and
/// what it asked of Docker goes on without it: a node that comes after the removal would be nobody's.
async fn end_makers(name: &str) -> Result<(), ClusterError> {
    let description = description_file(name).display().to_string();
    let of_cluster = format!("{NODE_LABEL}={name}");
    let look = || async {
        let kinds = process::with_word(&description);
        for pid in &kinds {
            // It ended by itself.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        let callers = process::with_word(&of_cluster);
        if kinds.is_empty() && callers.is_empty() {
            Look::Holds(())
        } else {
            Look::NotYet(format!("kind {kinds:?}, docker {callers:?}"))
        }
    };
    Ok(wait::until(&format!("nobody makes nodes of {name}"), LIMIT_DELETE, look).await?)
}
