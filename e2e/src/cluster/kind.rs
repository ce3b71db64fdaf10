//! Clusters by kind: up, found again, down.
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::docker::{self, Docker};
use super::node::Node;
use super::node_image::{self, Way};
use super::versions::Versions;
use super::{ClusterError, at, call, host, label, packages, state_root, tools, workspace_root};
use crate::command::{self, Command};
use crate::progress::Progress;

/// Docker network of our nodes; kind's own would be shared with clusters that are not ours.
pub const NETWORK: &str = "holdfast";
/// Loop device nodes that each node gets.
pub const LOOPS: u32 = 256;
/// Where the data folder is mounted in every node.
pub const DATA_DIR: &str = "/var/lib/holdfast";
/// Group of everything in the data folder.
const STORAGE_GROUP: u32 = 2770;

const LIMIT_CREATE: Duration = Duration::from_secs(240);
const LIMIT_READY: Duration = Duration::from_secs(120);
const LIMIT_DELETE: Duration = Duration::from_secs(120);

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

/// Brings a cluster up; what a failure leaves is removed.
///
/// # Errors
/// With the step that failed, or if the name is taken.
pub async fn up(spec: &ClusterSpec, progress: &Progress) -> Result<Cluster, ClusterError> {
    check_name(&spec.name)?;
    let versions = Versions::load()?;
    let minor = versions.minor(spec.kubernetes.as_deref())?;
    let folder = state(&spec.name);
    if folder.exists() {
        let name = &spec.name;
        return Err(ClusterError::Setup(format!(
            "a cluster {name} is there already; remove it with: holdfast cluster down {name}"
        )));
    }
    packages::ensure(spec.yes, progress).await?;
    host::ensure_space()?;
    host::ensure_limits(progress)?;
    let docker = docker::ensure(progress).await?;
    let kind = tools::tool("kind", progress).await?;
    let image = node_image::ensure(&versions, minor, spec.node_image, &docker, progress).await?;
    let workers = (1..=spec.workers).map(|n| {
        if n == 1 {
            "worker".into()
        } else {
            format!("worker{n}")
        }
    });
    let roles = std::iter::once(String::from("control-plane")).chain(workers);
    let cluster = Cluster {
        name: spec.name.clone(),
        kubeconfig: folder.join("kubeconfig"),
        nodes: roles.map(|role| format!("{}-{role}", spec.name)).collect(),
        data_dir: folder.join("data"),
        docker,
        kubernetes: image.version,
        timers: spec.timers,
        way: image.way,
        image: image.name,
        kind,
    };
    // The folder is made first: whatever happens from here on, `cluster down` knows what to look for.
    data_folder(&cluster.data_dir)?;
    match create(&cluster, &folder, progress).await {
        Ok(()) => Ok(cluster),
        Err(error) => {
            keep_logs(&cluster).await;
            remove(&cluster.name, Some(&cluster.docker), &cluster.kind, progress).await?;
            Err(error)
        }
    }
}

fn data_folder(path: &Path) -> Result<(), ClusterError> {
    use std::os::unix::fs::{PermissionsExt, chown};
    std::fs::create_dir_all(path).map_err(at(path, "create"))?;
    chown(path, None, Some(STORAGE_GROUP)).map_err(at(path, "change the group of"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o2770)).map_err(at(path, "chmod"))
}

/// Kind's description of the cluster.
fn description(cluster: &Cluster) -> Result<String, ClusterError> {
    let read = |name: &str| {
        let path = workspace_root().join("kind").join(name);
        std::fs::read_to_string(&path).map_err(at(&path, "read"))
    };
    let mut nodes = String::new();
    for (number, _) in cluster.nodes.iter().enumerate() {
        let role = if number == 0 { "control-plane" } else { "worker" };
        let host = cluster.data_dir.display();
        nodes += &format!(
            "- role: {role}\n  extraMounts:\n  - {{hostPath: \"{host}\", containerPath: {DATA_DIR}}}\n"
        );
    }
    let timers = if cluster.timers == Timers::Fast {
        read("timers-fast.yaml")?
    } else {
        String::new()
    };
    let own_cni = if cluster.way == Way::Source {
        "true"
    } else {
        "false"
    };
    let text = read("cluster.yaml")?;
    // Above its first key the template talks about itself.
    let body: Vec<&str> = text.lines().skip_while(|line| line.starts_with('#')).collect();
    Ok(body
        .join("\n")
        .replace("@NAME@", &cluster.name)
        .replace("@OWN_CNI@", own_cni)
        .replace("@NODES@", nodes.trim_end())
        .replace("@TIMERS@", timers.trim_end()))
}

async fn create(cluster: &Cluster, folder: &Path, progress: &Progress) -> Result<(), ClusterError> {
    let config = folder.join("kind.yaml");
    std::fs::write(&config, description(cluster)?).map_err(at(&config, "write"))?;
    network(&cluster.docker).await?;
    let step = progress.step(&format!(
        "create cluster {} ({} nodes, {})",
        cluster.name,
        cluster.nodes.len(),
        cluster.kubernetes
    ));
    let spec = kind_command(&cluster.kind, &cluster.docker)
        .args([
            "create",
            "cluster",
            "--retain",
            "--name",
            &cluster.name,
            "--image",
            &cluster.image,
            "--config",
        ])
        .arg(&config)
        .arg("--kubeconfig")
        .arg(&cluster.kubeconfig)
        .timeout(LIMIT_CREATE);
    call("kind create cluster", &spec).await?;
    step.done();
    let step = progress.step("nodes Ready");
    let wait = |words: &'static [&'static str]| cluster.kubectl(words, LIMIT_READY + Duration::from_secs(10));
    let (devices, ready, class) = tokio::join!(
        loop_devices(cluster),
        wait(&[
            "wait",
            "--for=condition=Ready",
            "nodes",
            "--all",
            "--timeout=120s"
        ]),
        wait(&["delete", "storageclass", "standard", "--ignore-not-found"]),
    );
    devices?;
    ready?;
    class?;
    step.done();
    let step = progress.step("pods of kube-system Ready");
    let (dns, proxy) = tokio::join!(
        wait(&[
            "-n",
            "kube-system",
            "rollout",
            "status",
            "deployment/coredns",
            "--timeout=120s"
        ]),
        wait(&[
            "-n",
            "kube-system",
            "rollout",
            "status",
            "daemonset/kube-proxy",
            "--timeout=120s"
        ]),
    );
    dns?;
    proxy?;
    wait(&[
        "-n",
        "kube-system",
        "wait",
        "--for=condition=Ready",
        "pods",
        "--all",
        "--timeout=120s",
    ])
    .await?;
    step.done();
    let path = folder.join("cluster.json");
    let text = serde_json::to_string_pretty(cluster).map_err(|e| ClusterError::Setup(e.to_string()))?;
    // Renamed into place: who sees the file sees a whole cluster.
    let fresh = folder.join("cluster.json.tmp");
    std::fs::write(&fresh, text).map_err(at(&fresh, "write"))?;
    std::fs::rename(&fresh, &path).map_err(at(&path, "rename"))
}

/// The network of our nodes, with our label; IPv4 only, so that a fault cuts off a node by one family.
async fn network(docker: &Docker) -> Result<(), ClusterError> {
    // Docker would make two of one name.
    let _one = docker::lock("network").await?;
    let found = docker.command().args([
        "network",
        "ls",
        "--quiet",
        "--filter",
        &format!("name=^{NETWORK}$"),
    ]);
    if call("docker network ls", &found).await?.trim().is_empty() {
        let label = format!("{}=network", label::LABEL);
        let make = docker.command().args([
            "network", "create", "--driver", "bridge", "--label", &label, NETWORK,
        ]);
        call("docker network create", &make).await?;
    }
    Ok(())
}

/// Makes the loop device nodes of every node: they are gone after its container was started again.
///
/// # Errors
/// If a node does not answer.
pub async fn loop_devices(cluster: &Cluster) -> Result<(), ClusterError> {
    let last = LOOPS - 1;
    let script =
        format!("for n in $(seq 0 {last}); do [ -e /dev/loop$n ] || mknod -m 0660 /dev/loop$n b 7 $n; done");
    for name in &cluster.nodes {
        cluster.node(name).exec(&["sh", "-c", &script]).await?;
    }
    Ok(())
}

fn kind_command(kind: &Path, docker: &Docker) -> Command {
    Command::new(kind)
        .env("DOCKER_HOST", &docker.host)
        .env("KIND_EXPERIMENTAL_PROVIDER", "docker")
        .env("KIND_EXPERIMENTAL_DOCKER_NETWORK", NETWORK)
}

/// Writes what every node and its pods have said into `into`, a folder per node.
///
/// # Errors
/// If a node does not answer.
pub async fn logs(cluster: &Cluster, into: &Path) -> Result<(), ClusterError> {
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

async fn keep_logs(cluster: &Cluster) {
    let into = super::cache_root().join("failed").join(&cluster.name);
    // A cluster that did not come up may have no logs; the error of its creation is what counts.
    let _ = logs(cluster, &into).await;
}

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
    let removed = remove(name, Some(&docker), &kind, &progress).await;
    // Not if the caller still holds a Cluster: then its daemon stops when the program ends.
    docker.release().await?;
    removed
}

async fn remove(
    name: &str,
    docker: Option<&Docker>,
    kind: &Path,
    progress: &Progress,
) -> Result<(), ClusterError> {
    let step = progress.step(&format!("remove cluster {name}"));
    let folder = state(name);
    if let Some(docker) = docker {
        let config = folder.join("kubeconfig");
        let spec = kind_command(kind, docker)
            .args(["delete", "cluster", "--name", name, "--kubeconfig"])
            .arg(&config);
        call("kind delete cluster", &spec.timeout(LIMIT_DELETE)).await?;
        // The network goes with its last cluster; one that is in use stays.
        let _ = command::run(&docker.command().args(["network", "rm", NETWORK])).await;
    }
    label::release(&folder).await?;
    label::remove_tree(&folder)?;
    step.done();
    Ok(())
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
