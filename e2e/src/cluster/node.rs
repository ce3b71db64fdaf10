//! One node of a kind cluster: commands inside it, its units, its container.
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::docker::Docker;
use super::{ClusterError, at, call};
use crate::command::{self, Output};

/// How a node is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Every process of it stands still, and goes on later: its kernel still has everything open.
    Paused,
    /// Every process of it ends at once, as when the power fails, and it boots later.
    SwitchedOff,
}

/// One node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name, in Kubernetes and as a container.
    pub name: String,
    docker: Docker,
}

impl Node {
    /// The node called `name`.
    pub fn new(name: &str, docker: &Docker) -> Self {
        Self {
            name: name.to_owned(),
            docker: docker.clone(),
        }
    }

    /// Runs a program in the node, within a minute.
    ///
    /// # Errors
    /// If it cannot run, or fails.
    pub async fn exec(&self, words: &[&str]) -> Result<Output, ClusterError> {
        self.exec_within(words, Duration::from_secs(60)).await
    }

    /// Runs a program in the node.
    ///
    /// # Errors
    /// If it cannot run, fails, or runs out of time.
    pub async fn exec_within(&self, words: &[&str], limit: Duration) -> Result<Output, ClusterError> {
        let spec = self
            .docker
            .command()
            .args(["exec", "--privileged", &self.name])
            .args(words)
            .timeout(limit);
        command::run(&spec).await.map_err(|source| ClusterError::Command {
            doing: format!("{} on {}", words.first().unwrap_or(&""), self.name),
            source,
        })
    }

    /// start, stop, kill, is-active ... of a unit.
    ///
    /// # Errors
    /// Those of systemctl.
    pub async fn systemctl(&self, verb: &str, unit: &str) -> Result<Output, ClusterError> {
        self.exec(&["systemctl", verb, unit]).await
    }

    /// Whether a unit is active.
    ///
    /// # Errors
    /// If the node does not answer.
    pub async fn is_active(&self, unit: &str) -> Result<bool, ClusterError> {
        let shown = self
            .exec(&["systemctl", "show", "--property=ActiveState", unit])
            .await?;
        Ok(shown.stdout.trim() == "ActiveState=active")
    }

    /// What is mounted in the node.
    ///
    /// # Errors
    /// If it is off, or cannot be read.
    pub async fn mountinfo(&self) -> Result<String, ClusterError> {
        let pid = self.pid().await?;
        let pid = pid.ok_or_else(|| ClusterError::Setup(format!("node {} is off", self.name)))?;
        mountinfo(pid)
    }

    /// running, paused, exited, ...: the state of the node's container.
    ///
    /// # Errors
    /// Docker's.
    pub async fn state(&self) -> Result<String, ClusterError> {
        let spec = self
            .docker
            .command()
            .args(["inspect", "--format", "{{.State.Status}}", &self.name]);
        let shown = call(&format!("docker inspect {}", self.name), &spec).await?;
        Ok(shown.trim().to_owned())
    }

    /// The node's first process on this host; none while it is off.
    ///
    /// # Errors
    /// Docker's.
    pub async fn pid(&self) -> Result<Option<u32>, ClusterError> {
        let pids = pids(&self.docker, std::slice::from_ref(&self.name)).await?;
        Ok(pids.first().copied().flatten())
    }

    /// pause, unpause, kill, start, stop of the node's container.
    ///
    /// # Errors
    /// Docker's.
    pub async fn container(&self, verb: &str) -> Result<(), ClusterError> {
        let spec = self.docker.command().args([verb, &self.name]);
        call(&format!("docker {verb} {}", self.name), &spec)
            .await
            .map(drop)
    }
}

/// The first process of each of these nodes on this host; none of one that is off.
///
/// # Errors
/// Docker's.
pub async fn pids(docker: &Docker, nodes: &[String]) -> Result<Vec<Option<u32>>, ClusterError> {
    let spec = docker
        .command()
        .args(["inspect", "--format", "{{.State.Pid}}"])
        .args(nodes);
    let shown = call(&format!("docker inspect {}", nodes.join(" ")), &spec).await?;
    let pid = |line: &str| line.trim().parse().ok().filter(|pid| *pid > 0);
    Ok(shown.lines().map(pid).collect())
}

/// The mounts that a process on this host sees.
///
/// # Errors
/// If it is over, or is not ours to look at.
pub fn mountinfo(pid: u32) -> Result<String, ClusterError> {
    let path = format!("/proc/{pid}/mountinfo");
    std::fs::read_to_string(&path).map_err(at(Path::new(&path), "read"))
}
