//! What an image made FROM scratch holds: programs with their libraries, under a tag made of every byte.
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::docker::Docker;
use super::image_error::{ImageError, LIMIT_STEP, file_error, run};
use super::libraries::libraries;
use crate::command::{self, Command};
use crate::progress::Progress;

pub(super) const IMAGE_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Where one file of an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Link(String),
}

/// What an image will hold, by absolute path inside it.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) entrypoint: String,
    entries: BTreeMap<PathBuf, Source>,
}

impl Contents {
    pub(super) fn new(entrypoint: &str) -> Self {
        Self {
            entrypoint: entrypoint.to_owned(),
            entries: BTreeMap::new(),
        }
    }

    pub(super) fn add_file(&mut self, at: &Path, from: &Path) {
        self.entries.insert(at.to_owned(), Source::File(from.to_owned()));
    }

    pub(super) fn add_link(&mut self, at: &Path, target: &str) {
        self.entries
            .insert(at.to_owned(), Source::Link(target.to_owned()));
    }

    /// A program with every library that the dynamic linker would load for it, each at the path where it will look.
    pub(super) async fn add_program(&mut self, at: &Path, program: &Path) -> Result<(), ImageError> {
        self.add_file(at, program);
        for library in libraries(program).await? {
            self.add_file(&library, &library);
        }
        Ok(())
    }

    /// A digest of every path, mode and byte, and of how the image is started.
    pub(super) fn digest(&self) -> Result<String, ImageError> {
        let mut hash = Sha256::new();
        hash.update(self.entrypoint.as_bytes());
        for (at, source) in &self.entries {
            hash.update(b"\0");
            hash.update(at.as_os_str().as_encoded_bytes());
            hash.update(b"\0");
            match source {
                Source::Link(target) => hash.update(target.as_bytes()),
                Source::File(from) => hash_file(&mut hash, from).map_err(file_error(from))?,
            }
        }
        Ok(hash
            .finalize()
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }

    /// Writes the image's tree below `root`.
    pub(super) fn write(&self, root: &Path) -> Result<(), ImageError> {
        for (at, source) in &self.entries {
            let target = root.join(at.strip_prefix("/").unwrap_or(at));
            if let Some(folder) = target.parent() {
                fs::create_dir_all(folder).map_err(file_error(folder))?;
            }
            match source {
                Source::Link(to) => std::os::unix::fs::symlink(to, &target).map_err(file_error(&target))?,
                Source::File(from) => {
                    fs::copy(from, &target).map_err(file_error(from))?;
                    let mode = if is_executable(from).map_err(file_error(from))? {
                        0o755
                    } else {
                        0o644
                    };
                    fs::set_permissions(&target, fs::Permissions::from_mode(mode))
                        .map_err(file_error(&target))?;
                }
            }
        }
        Ok(())
    }

    /// Imports the image under a tag made of its content; an image of that tag is not made again.
    pub(super) async fn import(
        &self,
        docker: &Docker,
        repository: &str,
        progress: &Progress,
    ) -> Result<String, ImageError> {
        let name = format!("{repository}:{}", self.digest()?);
        let known = docker
            .command()
            .args(["image", "inspect", "--format", "{{.Id}}", &name])
            .timeout(LIMIT_STEP);
        if command::run(&known).await.is_ok() {
            return Ok(name);
        }
        let step = progress.step(&format!("make image {name}"));
        let work = tempfile::tempdir().map_err(file_error(&std::env::temp_dir()))?;
        let tree = work.path().join("tree");
        self.write(&tree)?;
        let tar = work.path().join("image.tar");
        // Nothing of this machine or of the hour goes in: equal content makes an equal image.
        let pack = Command::new("tar")
            .args([
                "--create",
                "--sort=name",
                "--mtime=@0",
                "--owner=0",
                "--group=0",
                "--numeric-owner",
            ])
            .arg("--file")
            .arg(&tar)
            .arg("--directory")
            .arg(&tree)
            .arg(".")
            .timeout(LIMIT_STEP);
        run("packing the image", &pack).await?;
        let import = docker
            .command()
            .arg("import")
            .arg("--change")
            .arg(format!("ENTRYPOINT [\"{}\"]", self.entrypoint))
            .arg("--change")
            .arg(format!("ENV PATH={IMAGE_PATH}"))
            .arg(&tar)
            .arg(&name)
            .timeout(LIMIT_STEP);
        run("importing the image", &import).await?;
        step.done();
        Ok(name)
    }
}

fn is_executable(path: &Path) -> io::Result<bool> {
    let metadata = fs::metadata(path)?;
    Ok(metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn hash_file(hash: &mut Sha256, path: &Path) -> io::Result<()> {
    hash.update([u8::from(is_executable(path)?)]);
    let mut file = fs::File::open(path)?;
    let mut chunk = vec![0; 1 << 16];
    loop {
        let count = file.read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        hash.update(chunk.get(..count).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_changes_with_content_mode_and_path() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        let digest = |at: &str| {
            let mut contents = Contents::new("/a");
            contents.add_file(Path::new(at), &file);
            contents.digest().unwrap()
        };
        fs::write(&file, "one").unwrap();
        let first = digest("/a");
        assert_eq!(first, digest("/a"));
        assert_ne!(first, digest("/b"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        let executable = digest("/a");
        assert_ne!(first, executable);
        fs::write(&file, "two").unwrap();
        assert_ne!(executable, digest("/a"));
    }

    #[test]
    fn a_tree_keeps_links_and_modes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tool");
        fs::write(&file, "#!").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o700)).unwrap();
        let mut contents = Contents::new("/usr/sbin/tool");
        contents.add_file(Path::new("/usr/sbin/tool"), &file);
        contents.add_link(Path::new("/usr/sbin/mkfs.tool"), "tool");
        let root = folder.path().join("root");
        contents.write(&root).unwrap();
        let link = root.join("usr/sbin/mkfs.tool");
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("tool"));
        assert_eq!(fs::metadata(&link).unwrap().permissions().mode() & 0o777, 0o755);
    }
}
