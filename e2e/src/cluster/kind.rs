//! Clusters of kind as they are described: what is wanted, what there is, where it keeps its state.
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::docker::Docker;
use super::node::Node;
use super::node_image::Way;
use super::{ClusterError, at, state_root};
use crate::command::Command;

/// Where the data folder is mounted in every node.
pub const DATA_DIR: &str = "/var/lib/holdfast";

/// Timers that only slow tests down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum Timers {
    /// Short.
    #[default]
    Fast,
    /// As Kubernetes ships them.
    Real,
}

/// What cluster is wanted.
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    /// Its name.
    pub name: String,
    /// The minor, or the newest that can be built here.
    pub kubernetes: Option<String>,
    /// Nodes beside the control plane.
    pub workers: u32,
    /// Timers.
    pub timers: Timers,
    /// How the node image is had, or whichever works.
    pub node_image: Option<Way>,
    /// Consent to install Debian packages.
    pub yes: bool,
}

impl ClusterSpec {
    /// One control plane and two workers, fast.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            kubernetes: None,
            workers: 2,
            timers: Timers::Fast,
            node_image: None,
            yes: false,
        }
    }
}

/// A cluster that runs; saved in its state folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Its own kubeconfig; the user's is never touched.
    pub kubeconfig: PathBuf,
    /// Nodes, control plane first.
    pub nodes: Vec<String>,
    /// The data folder, on the host.
    pub data_dir: PathBuf,
    /// The daemon that runs the nodes.
    pub docker: Docker,
    /// Version of Kubernetes.
    pub kubernetes: String,
    /// Timers.
    pub timers: Timers,
    /// How the node image was had.
    pub way: Way,
    /// The node image.
    pub image: String,
    /// The kind program.
    pub kind: PathBuf,
}

impl Cluster {
    /// One of its nodes.
    pub fn node(&self, name: &str) -> Node {
        Node::new(name, &self.docker)
    }

    /// The control plane.
    pub fn control_plane(&self) -> Node {
        self.node(self.nodes.first().map_or("", String::as_str))
    }

    /// kubectl inside the control plane.
    ///
    /// # Errors
    /// Its own.
    pub async fn kubectl(&self, words: &[&str], limit: Duration) -> Result<String, ClusterError> {
        let mut all = vec!["kubectl", "--kubeconfig=/etc/kubernetes/admin.conf"];
        all.extend(words);
        Ok(self.control_plane().exec_within(&all, limit).await?.stdout)
    }
}

/// The state folder of a cluster.
pub fn state(name: &str) -> PathBuf {
    state_root().join(name)
}

/// Kind's description of a cluster, in its state folder.
pub(super) fn description_file(name: &str) -> PathBuf {
    state(name).join("kind.yaml")
}

/// A name that kind, Docker and a folder take.
///
/// # Errors
/// With what is allowed.
pub fn check_name(name: &str) -> Result<(), ClusterError> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fits = (1..=40).contains(&name.len())
        && name.chars().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if fits {
        Ok(())
    } else {
        Err(ClusterError::Setup(format!(
            "cluster name {name:?}: up to 40 of a-z, 0-9 and - (not at an end)"
        )))
    }
}

/// Every cluster that has a state folder, whole or not.
///
/// # Errors
/// If the folder cannot be listed.
pub fn known() -> Result<Vec<String>, ClusterError> {
    let root = state_root();
    if !root.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&root).map_err(at(&root, "list"))? {
        let entry = entry.map_err(at(&root, "list"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Hidden files are locks of runs.
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// A cluster that was brought up whole.
///
/// # Errors
/// If there is none, with the ones there are.
pub fn find(name: &str) -> Result<Cluster, ClusterError> {
    check_name(name)?;
    let path = state(name).join("cluster.json");
    if !path.exists() {
        let all = known()?.join(", ");
        let all = if all.is_empty() {
            String::from("there is none")
        } else {
            format!("there is: {all}")
        };
        return Err(ClusterError::Setup(format!("no cluster is called {name}; {all}")));
    }
    let text = std::fs::read_to_string(&path).map_err(at(&path, "read"))?;
    serde_json::from_str(&text).map_err(|e| ClusterError::Setup(format!("{}: {e}", path.display())))
}

/// The Docker network of a cluster's nodes, for itself: on a shared one a node that is off loses its address to the next
/// container that comes, and is another one to Kubernetes when it is back.
pub(super) fn network(cluster: &str) -> String {
    format!("holdfast-{cluster}")
}

/// A call of kind that finds our daemon and the cluster's network.
pub(super) fn kind_command(kind: &Path, docker: &Docker, cluster: &str) -> Command {
    Command::new(kind)
        .env("DOCKER_HOST", &docker.host)
        .env("KIND_EXPERIMENTAL_PROVIDER", "docker")
        .env("KIND_EXPERIMENTAL_DOCKER_NETWORK", network(cluster))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_docker_would_refuse_is_refused_first() {
        for bad in ["", "-a", "a-", "A", "a b", "a/../b", &"x".repeat(41)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_name("dev-e").is_ok());
    }
}
