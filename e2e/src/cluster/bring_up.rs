//! Brings a cluster up by kind: network, nodes, what they need before the first pod; what a failure leaves is removed.
use std::path::Path;
use std::time::Duration;

use super::docker::{self, Docker};
use super::kind::{
    Cluster, ClusterSpec, DATA_DIR, Timers, check_name, description_file, kind_command, network, state,
};
use super::node_image::{self, Way};
use super::versions::Versions;
use super::{ClusterError, at, call, host, label, node_logs, packages, tear_down, tools, workspace_root};
use crate::progress::Progress;

/// Loop device nodes that each node gets.
pub const LOOPS: u32 = 256;
/// Group of everything in the data folder.
const STORAGE_GROUP: u32 = 2770;
const LIMIT_CREATE: Duration = Duration::from_secs(240);
const LIMIT_READY: Duration = Duration::from_secs(120);

/// Brings a whole cluster up; what a failure leaves is removed.
///
/// # Errors
/// With the step that failed, or if the name is taken.
pub async fn up(spec: &ClusterSpec, progress: &Progress) -> Result<Cluster, ClusterError> {
    let docker = ground(spec, progress).await?;
    let cluster = nodes(spec, docker, progress).await?;
    or_remove(&cluster, pods(&cluster, progress).await, progress).await?;
    Ok(cluster)
}

/// Checks that such a cluster can be made, and sets up what the machine lacks for it; the daemon that is to run it.
///
/// # Errors
/// With what is wrong or missing.
pub async fn ground(spec: &ClusterSpec, progress: &Progress) -> Result<Docker, ClusterError> {
    check_name(&spec.name)?;
    Versions::load()?.minor(spec.kubernetes.as_deref())?;
    if state(&spec.name).exists() {
        let name = &spec.name;
        return Err(ClusterError::Setup(format!(
            "a cluster {name} is there already; remove it with: holdfast cluster down {name}"
        )));
    }
    packages::ensure(packages::NEEDED, spec.yes, progress).await?;
    host::ensure_space()?;
    host::ensure_limits(progress)?;
    docker::ensure(progress).await
}

/// Makes a cluster's nodes and waits until they are ready; what a failure leaves is removed. [`pods`] makes it whole.
///
/// # Errors
/// With the step that failed.
pub async fn nodes(spec: &ClusterSpec, docker: Docker, progress: &Progress) -> Result<Cluster, ClusterError> {
    let versions = Versions::load()?;
    let minor = versions.minor(spec.kubernetes.as_deref())?;
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
    let folder = state(&spec.name);
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
    let made = or_keep_logs(&cluster, create(&cluster, progress).await).await;
    or_remove(&cluster, made, progress).await?;
    Ok(cluster)
}

/// Removes a cluster that did not come up.
async fn or_remove(
    cluster: &Cluster,
    made: Result<(), ClusterError>,
    progress: &Progress,
) -> Result<(), ClusterError> {
    if made.is_err() {
        tear_down::remove(&cluster.name, &cluster.docker, &cluster.kind, progress).await?;
    }
    made
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

async fn create(cluster: &Cluster, progress: &Progress) -> Result<(), ClusterError> {
    let config = description_file(&cluster.name);
    std::fs::write(&config, description(cluster)?).map_err(at(&config, "write"))?;
    make_network(cluster).await?;
    let step = progress.step(&format!(
        "create cluster {} ({} nodes, {})",
        cluster.name,
        cluster.nodes.len(),
        cluster.kubernetes
    ));
    let spec = kind_command(&cluster.kind, &cluster.docker, &cluster.name)
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
    tokio::try_join!(
        loop_devices(cluster),
        wait_for(cluster, "wait --for=condition=Ready nodes --all"),
        async {
            let words = ["delete", "storageclass", "standard", "--ignore-not-found"];
            cluster.kubectl(&words, LIMIT_READY).await.map(drop)
        },
    )?;
    step.done();
    Ok(())
}

/// Waits until every pod of kube-system is ready, and then makes the cluster known; what a failure leaves is the caller's to
/// remove.
///
/// # Errors
/// With what was not ready in its bound.
pub async fn pods(cluster: &Cluster, progress: &Progress) -> Result<(), ClusterError> {
    or_keep_logs(cluster, settle(cluster, progress).await).await
}

async fn settle(cluster: &Cluster, progress: &Progress) -> Result<(), ClusterError> {
    let step = progress.step("pods of kube-system Ready");
    tokio::try_join!(
        wait_for(cluster, "-n kube-system rollout status deployment/coredns"),
        wait_for(cluster, "-n kube-system rollout status daemonset/kube-proxy"),
    )?;
    wait_for(cluster, "-n kube-system wait --for=condition=Ready pods --all").await?;
    step.done();
    let folder = state(&cluster.name);
    let path = folder.join("cluster.json");
    let text = serde_json::to_string_pretty(cluster).map_err(|e| ClusterError::Setup(e.to_string()))?;
    // Renamed into place: who sees the file sees a whole cluster.
    let fresh = folder.join("cluster.json.tmp");
    std::fs::write(&fresh, text).map_err(at(&fresh, "write"))?;
    std::fs::rename(&fresh, &path).map_err(at(&path, "rename"))
}

/// A call of kubectl that waits.
async fn wait_for(cluster: &Cluster, what: &str) -> Result<(), ClusterError> {
    let bound = format!("--timeout={}s", LIMIT_READY.as_secs());
    let words: Vec<&str> = what.split(' ').chain([bound.as_str()]).collect();
    // Kubectl's own bound comes first, for it says what it waits for.
    let limit = LIMIT_READY + Duration::from_secs(10);
    cluster.kubectl(&words, limit).await.map(drop)
}

/// The network of the cluster's nodes, with our label; IPv4 only, so that a fault cuts off a node by one family.
async fn make_network(cluster: &Cluster) -> Result<(), ClusterError> {
    let label = format!("{}=network", label::LABEL);
    let make = cluster
        .docker
        .command()
        .args(["network", "create", "--driver", "bridge", "--label", &label])
        .arg(network(&cluster.name));
    call("docker network create", &make).await.map(drop)
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

/// Keeps the logs of a cluster that does not come up.
async fn or_keep_logs(cluster: &Cluster, made: Result<(), ClusterError>) -> Result<(), ClusterError> {
    if made.is_err() {
        let into = super::cache_root().join("failed").join(&cluster.name);
        // It may have no logs; the error of its creation is what counts.
        let _ = node_logs::write(cluster, &into).await;
    }
    made
}
