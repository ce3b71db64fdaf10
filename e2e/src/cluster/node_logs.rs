//! What nodes and their pods have said, written into a folder.
use std::path::Path;
use std::time::Duration;

use super::kind::Cluster;
use super::{ClusterError, at, call};

/// Writes what every node and its pods have said into `into`, a folder per node.
///
/// # Errors
/// If a node does not answer.
pub async fn write(cluster: &Cluster, into: &Path) -> Result<(), ClusterError> {
    for name in &cluster.nodes {
        let folder = into.join(name);
        std::fs::create_dir_all(&folder).map_err(at(&folder, "create"))?;
        let console = cluster.docker.command().args(["logs", name]);
        let journal =
            cluster
                .docker
                .command()
                .args(["exec", name, "journalctl", "--no-pager", "--output=short-iso"]);
        for (file, spec) in [("console.log", console), ("journal.log", journal)] {
            // A node that is down still has a console; that it has no journal is told in the journal's place.
            let text = call(file, &spec.timeout(Duration::from_secs(60)))
                .await
                .unwrap_or_else(|e| format!("{e}\n"));
            let path = folder.join(file);
            std::fs::write(&path, text).map_err(at(&path, "write"))?;
        }
        let pods = cluster
            .docker
            .command()
            .args(["cp", &format!("{name}:/var/log/pods")])
            .arg(folder.join("pods"));
        call("docker cp of the pods' logs", &pods).await?;
    }
    Ok(())
}
