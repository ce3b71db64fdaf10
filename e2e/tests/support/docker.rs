//! A Docker daemon, by the same function that the tool itself uses.
use holdfast_e2e::cluster::docker::{self, Docker};
use holdfast_e2e::cluster::packages;
use holdfast_e2e::progress::Progress;

/// A daemon to use, and the progress that its making was shown on.
pub struct TestDocker {
    pub docker: Docker,
    pub progress: Progress,
}

/// Finds a daemon, or starts a private one; what it needs is installed where that is consented to.
pub async fn ensure() -> Result<TestDocker, String> {
    let progress = Progress::default();
    packages::ensure(packages::NEEDED, false, &progress)
        .await
        .map_err(super::chain)?;
    let docker = docker::ensure(&progress).await.map_err(super::chain)?;
    Ok(TestDocker { docker, progress })
}

impl TestDocker {
    /// Lets go of the daemon; one that was started here stops with its last user.
    pub async fn release(self) -> Result<(), String> {
        self.docker.release().await.map_err(super::chain)
    }
}
