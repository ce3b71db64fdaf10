//! Container images as archives that both Docker and containerd read, made without either; and loading into nodes.
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::kind::{Cluster, kind_command};
use super::{ClusterError, at, call};
use crate::command::Command;

/// An image: a folder with its files, its names, how it starts.
#[derive(Clone, Debug)]
pub struct ImageSpec<'a> {
    /// What it holds.
    pub tree: &'a Path,
    /// Names with tags.
    pub names: Vec<String>,
    /// Docker's words for how it starts (`Entrypoint`, `Env`, `User`, `StopSignal`).
    pub config: serde_json::Value,
}

const LIMIT: Duration = Duration::from_secs(300);

/// Writes images into one archive; `work` is an empty folder on the same disk.
///
/// # Errors
/// If a file cannot be written.
pub async fn archive(images: &[ImageSpec<'_>], work: &Path, out: &Path) -> Result<(), ClusterError> {
    std::fs::create_dir_all(work).map_err(at(work, "create"))?;
    let mut manifest = Vec::new();
    for (number, image) in images.iter().enumerate() {
        let layer = format!("layer{number}.tar");
        let tar = Command::new("tar")
            .args([
                "--sort=name",
                "--mtime=@0",
                "--numeric-owner",
                "--owner=0",
                "--group=0",
            ])
            .arg("-C")
            .arg(image.tree)
            .args(["-cf", &layer, "."])
            .current_dir(work)
            .timeout(LIMIT);
        call("tar of an image", &tar).await?;
        let sum = Command::new("sha256sum")
            .arg(&layer)
            .current_dir(work)
            .timeout(LIMIT);
        let sum = call("sha256sum of an image", &sum).await?;
        let digest = sum.split(' ').next().unwrap_or_default();
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:00Z",
            "config": image.config,
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
            "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "holdfast" }],
        });
        let name = format!("config{number}.json");
        let path = work.join(&name);
        std::fs::write(&path, config.to_string()).map_err(at(&path, "write"))?;
        manifest.push(json!({ "Config": name, "RepoTags": image.names, "Layers": [layer] }));
    }
    let path = work.join("manifest.json");
    std::fs::write(&path, serde_json::Value::from(manifest).to_string()).map_err(at(&path, "write"))?;
    let whole = Command::new("tar")
        .arg("-C")
        .arg(work)
        .arg("-cf")
        .arg(out)
        .arg(".")
        .timeout(LIMIT);
    call("tar of images", &whole).await?;
    super::label::remove_tree(work)
}

/// Loads images of the cluster's Docker into every node.
///
/// # Errors
/// Kind's, if an image is not there.
pub async fn load<S: AsRef<str>>(cluster: &Cluster, images: &[S]) -> Result<(), ClusterError> {
    if images.is_empty() {
        return Ok(());
    }
    let spec = kind_command(&cluster.kind, &cluster.docker, &cluster.name)
        .args(["load", "docker-image", "--name", &cluster.name])
        .args(images.iter().map(AsRef::as_ref))
        .timeout(LIMIT);
    call("kind load docker-image", &spec).await.map(drop)
}
