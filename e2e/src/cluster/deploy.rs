//! From a cluster to a cluster with the driver on it: images made, loaded into every node, chart installed.
use std::path::Path;

use super::ClusterError;
use super::chart::{ChartError, Helm, Values};
use super::docker::Docker;
use super::driver_image;
use super::image_error::ImageError;
use super::kind::Cluster;
use super::versions::Versions;
use super::{images, tools};
use crate::progress::Progress;

/// Images of ours that a cluster needs.
#[derive(Clone, Debug)]
pub struct Images {
    /// The driver, with its filesystem tools.
    pub driver: String,
    /// The suite itself, for pods that do verified I/O.
    pub e2e: String,
}

/// Why the driver is not on the cluster.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// An image could not be made.
    #[error("an image cannot be made")]
    Image(#[from] ImageError),
    /// The chart could not be installed or removed.
    #[error("the chart cannot be installed or removed")]
    Chart(#[from] ChartError),
    /// The cluster, or a tool for it, is at fault.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

/// Makes both images; needs no cluster yet, so it may run while one comes up.
///
/// # Errors
/// [`DeployError::Image`].
pub async fn make_images(
    docker: &Docker,
    executable: &Path,
    progress: &Progress,
) -> Result<Images, DeployError> {
    let driver = driver_image::driver(docker, progress).await?;
    let e2e = driver_image::e2e(docker, executable, progress).await?;
    Ok(Images { driver, e2e })
}

/// Loads the images into every node, and installs the chart with the cluster's own timers.
///
/// # Errors
/// Those of [`DeployError`]; what was installed so far stays, for whoever looks at it.
pub async fn install(cluster: &Cluster, made: &Images, progress: &Progress) -> Result<(), DeployError> {
    let helm = helm(cluster, progress).await?;
    let step = progress.step("load the images of the driver and the suite");
    images::load(cluster, &[made.driver.clone(), made.e2e.clone()]).await?;
    step.done();
    let values = Values::new(
        &made.driver,
        &Versions::load()?.sidecars,
        cluster.timers,
        &cluster.nodes,
    );
    Ok(helm.install(&values, progress).await?)
}

/// Removes the chart; a cluster without it is no error.
///
/// # Errors
/// Those of [`DeployError`].
pub async fn remove(cluster: &Cluster, progress: &Progress) -> Result<(), DeployError> {
    Ok(helm(cluster, progress).await?.uninstall(progress).await?)
}

async fn helm(cluster: &Cluster, progress: &Progress) -> Result<Helm, DeployError> {
    let program = tools::tool("helm", progress).await?;
    Ok(Helm {
        program,
        kubeconfig: cluster.kubeconfig.clone(),
        context: None,
    })
}
