//! Programs that are called: from PATH at a fitting version, else built from the pinned Go module into the cache.
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::versions::{Tool, Versions};
use super::{ClusterError, at, cache_root, call, workspace_root};
use crate::command::{self, Command};
use crate::progress::Progress;

/// The Go module that pins every tool.
pub const MODULE: &str = "kind/node-image";
/// A cold build of Kubernetes on two cores takes ten minutes when nothing else runs.
const LIMIT_BUILD: Duration = Duration::from_secs(40 * 60);

/// Where `name` is, built if need be.
///
/// # Errors
/// If it is not listed, or cannot be built.
pub async fn tool(name: &str, progress: &Progress) -> Result<PathBuf, ClusterError> {
    let versions = Versions::load()?;
    let tool = versions.tool(name)?;
    match fitting(tool).await {
        Some(path) => Ok(path),
        None => built(tool, progress).await,
    }
}

/// The tool from PATH, if it says that its version fits.
pub async fn fitting(tool: &Tool) -> Option<PathBuf> {
    let path = command::find(&tool.name)?;
    if tool.version_args.is_empty() {
        return None;
    }
    let spec = Command::new(&path)
        .args(&tool.version_args)
        .timeout(Duration::from_secs(5));
    let said = command::run(&spec).await.ok()?;
    let whole = format!("{} {}", said.stdout, said.stderr);
    whole
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '.'))
        .any(|word| {
            word.trim_start_matches('v')
                .starts_with(tool.fits.trim_start_matches('v'))
        })
        .then_some(path)
}

/// Where the built tool is in the cache, whether it is there or not.
pub fn cached(tool: &Tool) -> PathBuf {
    cache_root()
        .join("tools")
        .join(format!("{}-{}", tool.name, tool.version))
        .join(&tool.name)
}

async fn built(tool: &Tool, progress: &Progress) -> Result<PathBuf, ClusterError> {
    let path = cached(tool);
    if path.is_file() {
        return Ok(path);
    }
    let step = progress.step(&format!("build {} {}", tool.name, tool.version));
    let folder = path.parent().unwrap_or(Path::new("/"));
    let module = workspace_root().join(MODULE);
    go_build(&module, folder, std::slice::from_ref(&tool.package), "-s -w").await?;
    // The binary is called by the last element of its package, which is the tool's name for all of ours.
    if !path.is_file() {
        let path = path.display();
        return Err(ClusterError::Setup(format!(
            "go build of {} did not make {path}",
            tool.package
        )));
    }
    step.done();
    Ok(path)
}

/// Builds Go packages of one module into `folder`; a folder that is there is complete.
///
/// # Errors
/// The compiler's.
pub async fn go_build(
    module: &Path,
    folder: &Path,
    packages: &[String],
    ldflags: &str,
) -> Result<(), ClusterError> {
    if command::find("go").is_none() {
        return Err(ClusterError::Setup(String::from(
            "go is not installed; install Go 1.26 or newer",
        )));
    }
    let fresh = folder.with_extension(format!("new-{}", std::process::id()));
    std::fs::create_dir_all(&fresh).map_err(at(&fresh, "create"))?;
    let spec = Command::new("go")
        .args(["build", "-trimpath", "-ldflags", ldflags, "-o"])
        .arg(format!("{}/", fresh.display()))
        .args(packages)
        .current_dir(module)
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", cache_root().join("go-build"))
        .timeout(LIMIT_BUILD);
    let made = call("go build", &spec).await;
    if made.is_err() {
        super::label::remove_tree(&fresh)?;
    }
    made?;
    if folder.exists() {
        super::label::remove_tree(folder)?;
    }
    std::fs::rename(&fresh, folder).map_err(at(folder, "rename"))
}

/// Twelve hex digits over texts: the name under which what is made of them is cached.
pub fn key(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_where_a_part_ends() {
        assert_ne!(key(&[b"ab", b"c"]), key(&[b"a", b"bc"]));
        assert_eq!(key(&[b"ab"]).len(), 12);
    }
}
