//! Container images made FROM scratch on this machine: the driver's, and the suite's own for pods that do verified I/O.
//!
//! An image is a program and what the dynamic linker would load for it, no more: no shell, no package manager, nothing
//! to pull. Its tag is made of its content, so an image is imported once and a changed driver is never mistaken for it.
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::docker::Docker;
use super::image_contents::{Contents, IMAGE_PATH};
use super::image_error::{ImageError, LIMIT_STEP, file_error, run};
use super::images::{self, ImageSpec};
use crate::command::{self, Command};
use crate::progress::Progress;

/// Repository of the driver's image.
pub const DRIVER_REPOSITORY: &str = "holdfast.local/driver";
/// Repository of the suite's own image.
pub const E2E_REPOSITORY: &str = "holdfast.local/e2e";
/// A static driver built elsewhere, used instead of building one here.
pub const DRIVER_BINARY_ENV: &str = "HOLDFAST_DRIVER_BINARY";

/// Every filesystem tool that the driver calls, with the packages that hold them on Debian.
const TOOLS: &[&str] = &[
    "mke2fs",
    "e2fsck",
    "resize2fs",
    "mkfs.xfs",
    "xfs_repair",
    "xfs_growfs",
];
/// Other names under which a tool is called.
const TOOL_LINKS: &[(&str, &str)] = &[("mkfs.ext4", "mke2fs"), ("fsck.ext4", "e2fsck")];
/// Without it mke2fs makes a filesystem of the features of twenty years ago.
const TOOL_FILES: &[&str] = &["/etc/mke2fs.conf"];

const LIMIT_BUILD: Duration = Duration::from_secs(20 * 60);

/// Builds the driver static, makes its image unless it is there already, and returns the image's name and tag.
///
/// # Errors
/// Those of [`ImageError`]: a tool that is not installed, a build that fails, a daemon that refuses the image.
pub async fn driver(docker: &Docker, progress: &Progress) -> Result<String, ImageError> {
    let program = match std::env::var_os(DRIVER_BINARY_ENV) {
        Some(path) => PathBuf::from(path),
        None => {
            let step = progress.step("build the driver");
            let built = build_static_driver().await?;
            step.done();
            built
        }
    };
    let mut contents = Contents::new("/holdfast-driver");
    contents
        .add_program(Path::new("/holdfast-driver"), &program)
        .await?;
    for tool in TOOLS {
        let from = find_tool(tool)?;
        contents
            .add_program(&Path::new("/usr/sbin").join(tool), &from)
            .await?;
    }
    for (link, tool) in TOOL_LINKS {
        contents.add_link(&Path::new("/usr/sbin").join(link), tool);
    }
    for file in TOOL_FILES {
        contents.add_file(Path::new(file), Path::new(file));
    }
    contents.import(docker, DRIVER_REPOSITORY, progress).await
}

/// Makes the image of `executable`, the running `holdfast`, unless it is there already, and returns its name and tag.
///
/// # Errors
/// Those of [`ImageError`].
pub async fn e2e(docker: &Docker, executable: &Path, progress: &Progress) -> Result<String, ImageError> {
    let mut contents = Contents::new("/holdfast");
    contents.add_program(Path::new("/holdfast"), executable).await?;
    contents.import(docker, E2E_REPOSITORY, progress).await
}

/// Writes the image of `executable` into `file`, as an archive that Docker, containerd and kind load, and returns its name and tag.
///
/// # Errors
/// Those of [`ImageError`].
pub async fn save_e2e(executable: &Path, file: &Path, progress: &Progress) -> Result<String, ImageError> {
    let mut contents = Contents::new("/holdfast");
    contents.add_program(Path::new("/holdfast"), executable).await?;
    let name = format!("{E2E_REPOSITORY}:{}", contents.digest()?);
    let step = progress.step(&format!("write image {name}"));
    let work = tempfile::tempdir().map_err(file_error(&std::env::temp_dir()))?;
    let tree = work.path().join("tree");
    contents.write(&tree)?;
    let spec = ImageSpec {
        tree: &tree,
        names: vec![name.clone()],
        config: serde_json::json!({"Entrypoint": [contents.entrypoint], "Env": [format!("PATH={IMAGE_PATH}")]}),
    };
    // Loaders resolve nothing: the file is named as this process sees it.
    let file = std::path::absolute(file).map_err(file_error(file))?;
    images::archive(&[spec], &work.path().join("archive"), &file)
        .await
        .map_err(|source| ImageError::Archive {
            source: Box::new(source),
        })?;
    step.done();
    Ok(name)
}

/// Builds the driver for this machine, linked static, and returns the program.
///
/// `--target` is what keeps the flag away from procedural macros, which cannot be static.
async fn build_static_driver() -> Result<PathBuf, ImageError> {
    let rustc = Command::new("rustc").arg("-vV").timeout(LIMIT_STEP);
    let version = run("asking rustc for its host", &rustc).await?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .ok_or(ImageError::NoHost)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = Command::new(cargo)
        .args([
            "build",
            "--profile",
            "image",
            "--locked",
            "--package",
            "holdfast-driver",
            "--bin",
            "holdfast-driver",
        ])
        .args([
            "--target",
            host.trim(),
            "--message-format",
            "json-render-diagnostics",
        ])
        .arg("--manifest-path")
        .arg(super::workspace_root().join("Cargo.toml"))
        // Wins over RUSTFLAGS, so that what the caller exported for its own build does not reach this one.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .timeout(LIMIT_BUILD);
    let messages = run("building the driver", &build).await?;
    built_program(&messages).ok_or(ImageError::NoDriver)
}

/// The program that cargo's messages name; the last one, if several.
fn built_program(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "holdfast-driver")
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
}

fn find_tool(name: &str) -> Result<PathBuf, ImageError> {
    command::find(name).ok_or_else(|| ImageError::Missing {
        program: name.to_owned(),
        package: if name.contains("xfs") {
            "xfsprogs"
        } else {
            "e2fsprogs"
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_program_in_cargos_messages_counts() {
        let messages = "{\"target\":{\"name\":\"holdfast-proto\"},\"executable\":null}\nnot json\n\
            {\"target\":{\"name\":\"holdfast-driver\"},\"executable\":null}\n\
            {\"target\":{\"name\":\"holdfast-driver\"},\"executable\":\"/t/holdfast-driver\"}\n";
        assert_eq!(built_program(messages), Some(PathBuf::from("/t/holdfast-driver")));
        assert_eq!(built_program(""), None);
    }
}
