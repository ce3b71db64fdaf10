//! The driver's Helm chart: installed, upgraded and removed by the helm program, with values that the schema checks.
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::kind::Timers;
use super::versions::Sidecars;
use crate::command::{self, Command, CommandError};
use crate::progress::Progress;

/// Name of the Helm release.
pub const RELEASE: &str = "holdfast";
/// Namespace of the driver's pods and leases.
pub const NAMESPACE: &str = "holdfast-system";
/// The driver's container in each of its pods.
pub const DRIVER_CONTAINER: &str = "driver";
/// The CSI driver's name.
pub const DRIVER_NAME: &str = "holdfast.csi";
/// The topology segment that every node has for itself.
pub const NODE_SEGMENT: &str = "topology.holdfast.csi/node";
/// Where the data folder is mounted on every node, and in the driver's pods.
pub const DATA_DIR: &str = super::kind::DATA_DIR;
/// User and group of the controller; the group of everything in the data folder.
pub const STORAGE_ID: u32 = 2770;

/// What all volumes of a test cluster may claim together: more than all scenarios of a run want at once, less than two
/// of those that try the limit.
const CAPACITY: u64 = 32 << 30;
/// What a node of a test cluster takes: more than parallel scenarios attach to one node, and soon reached by the one that
/// tries the limit.
const VOLUMES_PER_NODE: u32 = 16;

/// Bound of an installation: images are on the nodes already, so only starts and probes take time.
const LIMIT_INSTALL: Duration = Duration::from_secs(180);
/// Bound of a removal: the longest grace period and the clean-up by the garbage collector.
const LIMIT_UNINSTALL: Duration = Duration::from_secs(90);

/// What an installation chooses; everything else is the chart's default.
#[derive(Clone, Debug)]
pub struct Values {
    /// Name and tag of the driver's image.
    pub driver_image: String,
    /// Images of csi-provisioner, csi-attacher and csi-resizer.
    pub sidecars: Sidecars,
    /// Timers of sidecars and leases.
    pub timers: Timers,
    /// Bytes that all volumes together may claim.
    pub capacity_bytes: u64,
    /// Volumes that one node takes.
    pub volumes_per_node: u32,
    /// Replicas of the controller.
    pub replicas: u32,
    /// Nodes, each of which is a segment of its own within one zone.
    pub nodes: Vec<String>,
}

/// Why the chart could not be installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum ChartError {
    /// The chart's folder is not where this program was built.
    #[error("no chart at {path}; run holdfast from the clone that it was built in")]
    NoChart {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The values or the data folder could not be written.
    #[error("{path}")]
    File {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Helm ended with an error.
    #[error("helm {verb} failed")]
    Helm {
        /// What it was to do.
        verb: &'static str,
        /// How it ended.
        source: CommandError,
    },
}

impl Values {
    /// An installation that is to be tested: two replicas of the controller, limits that a scenario can reach.
    pub fn new(driver_image: &str, sidecars: &Sidecars, timers: Timers, nodes: &[String]) -> Self {
        let driver_image = driver_image.to_owned();
        Self {
            driver_image,
            sidecars: sidecars.clone(),
            timers,
            capacity_bytes: CAPACITY,
            volumes_per_node: VOLUMES_PER_NODE,
            replicas: 2,
            nodes: nodes.to_vec(),
        }
    }

    /// The values as Helm reads them; JSON is YAML.
    fn document(&self) -> serde_json::Value {
        let zone = format!("topology.{DRIVER_NAME}/zone");
        let one_zone = json!({ zone: "default" });
        let node = |node: &String| (node.clone(), json!({ NODE_SEGMENT: node }));
        let by_node: serde_json::Map<_, _> = self.nodes.iter().map(node).collect();
        json!({
            "driverName": DRIVER_NAME,
            "topology": { "segments": one_zone, "byNode": by_node },
            "storageClasses": { "within": one_zone },
            "dataDir": DATA_DIR,
            "storageUser": STORAGE_ID,
            "storageGroup": STORAGE_ID,
            "timers": match self.timers {
                Timers::Fast => "fast",
                Timers::Real => "real",
            },
            "capacity": self.capacity_bytes,
            "node": { "maxVolumesPerNode": self.volumes_per_node },
            "image": { "driver": self.driver_image },
            "controller": { "replicas": self.replicas },
            "sidecars": {
                "provisioner": { "image": self.sidecars.provisioner.image },
                "attacher": { "image": self.sidecars.attacher.image },
                "resizer": { "image": self.sidecars.resizer.image },
            },
        })
    }
}

/// A cluster as Helm sees it: the program, and which cluster it is to talk to.
#[derive(Clone, Debug)]
pub struct Helm {
    /// The helm program.
    pub program: PathBuf,
    /// Its kubeconfig; the user's own is never read.
    pub kubeconfig: PathBuf,
    /// The context in it, if not the current one.
    pub context: Option<String>,
}

impl Helm {
    /// Installs the chart, or brings an installation to these values, and waits until every pod of it is ready.
    ///
    /// # Errors
    /// [`ChartError::Helm`] with helm's last lines when a pod is not ready within its bound or a value is refused.
    pub async fn install(&self, values: &Values, progress: &Progress) -> Result<(), ChartError> {
        let chart = chart_dir();
        if !chart.join("Chart.yaml").is_file() {
            return Err(ChartError::NoChart { path: chart });
        }
        let file = tempfile::Builder::new()
            .prefix("holdfast-values-")
            .suffix(".json")
            .tempfile()
            .map_err(|source| ChartError::File {
                path: std::env::temp_dir(),
                source,
            })?;
        std::fs::write(file.path(), values.document().to_string()).map_err(|source| ChartError::File {
            path: file.path().to_owned(),
            source,
        })?;
        let step = progress.step("install the driver");
        let install = self
            .command()
            .args(["upgrade", RELEASE])
            .arg(&chart)
            .args([
                "--install",
                "--namespace",
                NAMESPACE,
                "--create-namespace",
                "--reset-values",
            ])
            .args(["--wait", "--timeout", &format!("{}s", LIMIT_INSTALL.as_secs())])
            .arg("--values")
            .arg(file.path())
            .timeout(LIMIT_INSTALL + Duration::from_secs(15));
        command::run(&install).await.map_err(|source| ChartError::Helm {
            verb: "upgrade",
            source,
        })?;
        step.done();
        Ok(())
    }

    /// Removes the release and waits until its objects and their pods are gone; one that is not there is no error.
    ///
    /// # Errors
    /// [`ChartError::Helm`] when an object outlives the bound.
    pub async fn uninstall(&self, progress: &Progress) -> Result<(), ChartError> {
        let step = progress.step("remove the driver");
        let uninstall = self
            .command()
            .args([
                "uninstall",
                RELEASE,
                "--namespace",
                NAMESPACE,
                "--ignore-not-found",
            ])
            // In the background the objects go at once, and their pods live on beyond helm's wait.
            .args(["--cascade", "foreground", "--wait=watcher"])
            .args(["--timeout", &format!("{}s", LIMIT_UNINSTALL.as_secs())])
            .timeout(LIMIT_UNINSTALL + Duration::from_secs(15));
        command::run(&uninstall)
            .await
            .map_err(|source| ChartError::Helm {
                verb: "uninstall",
                source,
            })?;
        step.done();
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig);
        if let Some(context) = &self.context {
            command = command.arg("--kube-context").arg(context);
        }
        command
    }
}

/// The chart in the clone that this program was built in.
pub fn chart_dir() -> PathBuf {
    super::workspace_root().join("manifests/chart")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::versions::Versions;

    #[test]
    fn values_name_every_image_and_the_timers() {
        let sidecars = Versions::load().unwrap().sidecars;
        let values = Values::new(
            "holdfast.local/driver:1",
            &sidecars,
            Timers::Fast,
            &[String::from("n1")],
        );
        let document = values.document();
        assert_eq!(document["timers"], "fast");
        assert_eq!(document["image"]["driver"], "holdfast.local/driver:1");
        assert_eq!(document["sidecars"]["resizer"]["image"], sidecars.resizer.image);
        assert_eq!(document["capacity"], CAPACITY);
        assert_eq!(document["topology"]["byNode"]["n1"][NODE_SEGMENT], "n1");
        assert_eq!(document["node"]["maxVolumesPerNode"], VOLUMES_PER_NODE);
    }
}
