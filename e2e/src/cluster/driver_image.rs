//! Container images made FROM scratch on this machine: the driver's, and the suite's own for pods that do verified I/O.
//!
//! An image is a program and what the dynamic linker would load for it, no more: no shell, no package manager, nothing
//! to pull. Its tag is made of its content, so an image is imported once and a changed driver is never mistaken for it.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::docker::Docker;
use super::images::{self, ImageSpec};
use crate::command::{self, Command, CommandError};
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
const IMAGE_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

const LIMIT_BUILD: Duration = Duration::from_secs(20 * 60);
const LIMIT_STEP: Duration = Duration::from_secs(120);

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A program that belongs into the image is not on this machine.
    #[error("{program} is not on this machine; install {package}")]
    Missing {
        /// What was looked for.
        program: String,
        /// Debian's package that holds it.
        package: &'static str,
    },
    /// The dynamic linker would not find a library either.
    #[error("{program} needs {library}, which is not on this machine")]
    Library {
        /// Whose library.
        program: PathBuf,
        /// The name as the linker knows it.
        library: String,
    },
    /// Cargo ended well but named no program.
    #[error("cargo built no holdfast-driver program")]
    NoDriver,
    /// The compiler did not say what it builds for.
    #[error("rustc -vV names no host")]
    NoHost,
    /// A file of the image could not be read or written.
    #[error("{path}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The archive could not be written.
    #[error("the image's archive cannot be written")]
    Archive {
        /// Why.
        source: Box<super::ClusterError>,
    },
    /// A command of the build failed.
    #[error("{step} failed")]
    Command {
        /// What was being done.
        step: &'static str,
        /// How the command ended.
        source: CommandError,
    },
}

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

/// Where one file of an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Link(String),
}

/// What an image will hold, by absolute path inside it.
#[derive(Debug)]
struct Contents {
    entrypoint: String,
    entries: BTreeMap<PathBuf, Source>,
}

impl Contents {
    fn new(entrypoint: &str) -> Self {
        Self {
            entrypoint: entrypoint.to_owned(),
            entries: BTreeMap::new(),
        }
    }

    fn add_file(&mut self, at: &Path, from: &Path) {
        self.entries.insert(at.to_owned(), Source::File(from.to_owned()));
    }

    fn add_link(&mut self, at: &Path, target: &str) {
        self.entries
            .insert(at.to_owned(), Source::Link(target.to_owned()));
    }

    /// A program with every library that the dynamic linker would load for it, each at the path where it will look.
    async fn add_program(&mut self, at: &Path, program: &Path) -> Result<(), ImageError> {
        self.add_file(at, program);
        for library in libraries(program).await? {
            self.add_file(&library, &library);
        }
        Ok(())
    }

    /// A digest of every path, mode and byte, and of how the image is started.
    fn digest(&self) -> Result<String, ImageError> {
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
    fn write(&self, root: &Path) -> Result<(), ImageError> {
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
    async fn import(
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
            "--release",
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

/// Every library of `program`, the dynamic linker included; none for a static one.
async fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>, ImageError> {
    let ldd = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .timeout(LIMIT_STEP);
    match command::run(&ldd).await {
        Ok(output) => parse_ldd(program, &output.stdout),
        // A static program is no error to us, but one to ldd.
        Err(error) if error.to_string().contains("not a dynamic executable") || is_static(program) => {
            drop(error);
            Ok(BTreeSet::new())
        }
        Err(source) => Err(ImageError::Command {
            step: "listing libraries",
            source,
        }),
    }
}

/// Whether an ELF program names no interpreter: its program headers hold no PT_INTERP.
fn is_static(program: &Path) -> bool {
    const PT_INTERP: u32 = 3;
    let Ok(bytes) = fs::read(program) else {
        return false;
    };
    let word = |at: usize, len: usize| -> Option<u64> {
        let slice = bytes.get(at..at.checked_add(len)?)?;
        Some(
            slice
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    // 64-bit little-endian only, as every platform that we support is.
    if bytes.get(..6) != Some(&[0x7f, b'E', b'L', b'F', 2, 1]) {
        return false;
    }
    let (Some(offset), Some(size), Some(count)) = (word(32, 8), word(54, 2), word(56, 2)) else {
        return false;
    };
    (0..count).all(|index| {
        let at = usize::try_from(offset + index * size).unwrap_or(usize::MAX);
        word(at, 4).is_some_and(|kind| kind != u64::from(PT_INTERP))
    })
}

/// Paths from ldd's lines: `name => /path (0x…)` and `/path (0x…)`; the kernel's vdso has no file.
fn parse_ldd(program: &Path, text: &str) -> Result<BTreeSet<PathBuf>, ImageError> {
    let mut found = BTreeSet::new();
    for line in text.lines().map(str::trim) {
        let target = line.split_once(" => ").map_or(line, |(_, target)| target);
        if target == "not found" {
            let library = line.split(' ').next().unwrap_or(line).to_owned();
            return Err(ImageError::Library {
                program: program.to_owned(),
                library,
            });
        }
        if target.starts_with('/') {
            found.insert(PathBuf::from(target.split(" (0x").next().unwrap_or(target)));
        }
    }
    Ok(found)
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

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::File { path, source }
}

async fn run(step: &'static str, spec: &Command) -> Result<String, ImageError> {
    let output = command::run(spec)
        .await
        .map_err(|source| ImageError::Command { step, source })?;
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LDD: &str = "\tlinux-vdso.so.1 (0x00007ffe)\n\
        \tlibext2fs.so.2 => /lib/x86_64-linux-gnu/libext2fs.so.2 (0x00007f1)\n\
        \t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n";

    #[test]
    fn ldd_gives_libraries_and_the_linker_but_not_the_vdso() {
        let found = parse_ldd(Path::new("/sbin/mke2fs"), LDD).unwrap();
        let expected = [
            "/lib/x86_64-linux-gnu/libext2fs.so.2",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(found, expected.iter().map(PathBuf::from).collect());
    }

    #[test]
    fn a_library_that_is_missing_is_named() {
        let error = parse_ldd(Path::new("/sbin/mke2fs"), "\tlibfoo.so.1 => not found\n").unwrap_err();
        assert!(matches!(error, ImageError::Library { library, .. } if library == "libfoo.so.1"));
    }

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

    #[test]
    fn the_last_program_in_cargos_messages_counts() {
        let messages = "{\"target\":{\"name\":\"holdfast-proto\"},\"executable\":null}\nnot json\n\
            {\"target\":{\"name\":\"holdfast-driver\"},\"executable\":null}\n\
            {\"target\":{\"name\":\"holdfast-driver\"},\"executable\":\"/t/holdfast-driver\"}\n";
        assert_eq!(built_program(messages), Some(PathBuf::from("/t/holdfast-driver")));
        assert_eq!(built_program(""), None);
    }
}
