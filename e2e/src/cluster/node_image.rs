//! Which image the nodes run: pulled by digest where a registry answers, else built from source packages, and cached.
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use super::docker::Docker;
use super::label::remove_tree;
use super::node_rootfs as rootfs;
use super::tools::{go_build, key};
use super::versions::{Image, Kubernetes, Source, Versions};
use super::{ClusterError, at, cache_root, call, node_pods, node_store, workspace_root};
use crate::command::{self, Command};
use crate::progress::Progress;
use crate::retry::retry;

/// Repository of the images that are built here.
pub const REPOSITORY: &str = "holdfast.local/node";
/// To be raised when the recipe itself changes what it makes.
const RECIPE: &str = "2";
const LIMIT_STEP: Duration = Duration::from_secs(600);

/// How the node image is had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
pub enum Way {
    /// From a registry.
    Pull,
    /// Built on this machine.
    Source,
}

/// The image for one minor, on the daemon.
#[derive(Clone, Debug)]
pub struct NodeImage {
    /// Name and tag, or digest.
    pub name: String,
    /// How it was had.
    pub way: Way,
    /// Kubernetes as it is.
    pub version: String,
}

/// Finds, pulls or builds the image.
///
/// # Errors
/// With the step that failed.
pub async fn ensure(
    versions: &Versions,
    minor: &Kubernetes,
    way: Option<Way>,
    docker: &Docker,
    progress: &Progress,
) -> Result<NodeImage, ClusterError> {
    match (way, &minor.source) {
        (Some(Way::Pull), _) => pull(&minor.pull, docker, progress).await,
        (Some(Way::Source), Some(source)) => build(versions, minor, source, docker, progress).await,
        (Some(Way::Source), None) => Err(ClusterError::Setup(format!(
            "Kubernetes {} has no source version in kind/versions.yaml; take 1.37, or --node-image pull",
            minor.minor
        ))),
        (None, Some(source)) => {
            // What is built already costs nothing, and is not asked of a network.
            if let Some(found) = cached(versions, minor, source, docker).await? {
                return Ok(found);
            }
            if registry_answers().await {
                pull(&minor.pull, docker, progress).await
            } else {
                build(versions, minor, source, docker, progress).await
            }
        }
        (None, None) if registry_answers().await => pull(&minor.pull, docker, progress).await,
        (None, None) => Err(ClusterError::Setup(format!(
            "Kubernetes {} can only be pulled, and no registry answers here; take 1.37, which is built from source",
            minor.minor
        ))),
    }
}

/// Asked once in a process, for at most 3 s.
pub async fn registry_answers() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    if let Some(known) = ANSWER.get() {
        return *known;
    }
    let connect = tokio::net::TcpStream::connect(("registry-1.docker.io", 443));
    let found = matches!(
        tokio::time::timeout(Duration::from_secs(3), connect).await,
        Ok(Ok(_))
    );
    *ANSWER.get_or_init(|| found)
}

async fn pull(image: &Image, docker: &Docker, progress: &Progress) -> Result<NodeImage, ClusterError> {
    let name = if image.digest.starts_with("sha256:") {
        format!("{}@{}", image.image, image.digest)
    } else {
        image.image.clone()
    };
    let version = image.image.rsplit(':').next().unwrap_or_default().to_owned();
    if !present(docker, &name).await {
        let step = progress.step(&format!("pull {name}"));
        let spec = docker
            .command()
            .args(["pull", "--quiet", &name])
            .timeout(LIMIT_STEP);
        // A registry that cannot be reached for a moment is asked again, one that says no is not.
        let again = |error: &ClusterError| {
            std::error::Error::source(error).is_some_and(|said| !said.to_string().contains("not found"))
        };
        retry(Duration::from_secs(15), again, || call("docker pull", &spec)).await?;
        step.done();
    }
    Ok(NodeImage {
        name,
        way: Way::Pull,
        version,
    })
}

async fn present(docker: &Docker, name: &str) -> bool {
    command::run(
        &docker
            .command()
            .args(["image", "inspect", "--format", "{{.Id}}", name]),
    )
    .await
    .is_ok()
}

/// The names under which the parts are cached, each made of what the part is made of.
struct Keys {
    binaries: String,
    rootfs: String,
    image: String,
}

fn keys(versions: &Versions, source: &Source) -> Result<Keys, ClusterError> {
    let module = workspace_root().join(&source.module);
    let read =
        |name: &str| std::fs::read(module.join(name)).map_err(at(&module, "read a file of the recipe"));
    let (go_mod, go_sum, packages) = (read("go.mod")?, read("go.sum")?, read("binaries.txt")?);
    let mains = [read("hyperkube/main.go")?, read("coredns/main.go")?];
    let sidecars: Vec<&str> = versions.sidecars.all().map(|s| s.package.as_str()).to_vec();
    let binaries = key(&[
        &go_mod,
        &go_sum,
        &packages,
        &mains[0],
        &mains[1],
        sidecars.join(" ").as_bytes(),
    ]);
    let rootfs = key(&[versions.debian.as_bytes(), &read("packages.txt")?]);
    let mut parts = vec![
        RECIPE.as_bytes().to_vec(),
        binaries.clone().into(),
        rootfs.clone().into(),
        read("pause.c")?,
    ];
    for file in rootfs::files(&module.join("files"))? {
        parts.push(
            file.strip_prefix(&module)
                .unwrap_or(&file)
                .as_os_str()
                .as_encoded_bytes()
                .to_vec(),
        );
        parts.push(std::fs::read(&file).map_err(at(&file, "read"))?);
    }
    parts.push(format!("{source:?}{:?}", versions.sidecars).into_bytes());
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    Ok(Keys {
        binaries,
        rootfs,
        image: key(&parts),
    })
}

fn named(minor: &Kubernetes, source: &Source, keys: &Keys) -> NodeImage {
    let name = format!("{REPOSITORY}:{}-{}", minor.minor, keys.image);
    NodeImage {
        name,
        way: Way::Source,
        version: source.version.clone(),
    }
}

async fn cached(
    versions: &Versions,
    minor: &Kubernetes,
    source: &Source,
    docker: &Docker,
) -> Result<Option<NodeImage>, ClusterError> {
    let image = named(minor, source, &keys(versions, source)?);
    Ok(present(docker, &image.name).await.then_some(image))
}

async fn build(
    versions: &Versions,
    minor: &Kubernetes,
    source: &Source,
    docker: &Docker,
    progress: &Progress,
) -> Result<NodeImage, ClusterError> {
    let keys = keys(versions, source)?;
    let image = named(minor, source, &keys);
    if present(docker, &image.name).await {
        return Ok(image);
    }
    // Two processes would compile the same at once; who waited finds it done.
    let _one = super::docker::lock("node-image").await?;
    if present(docker, &image.name).await {
        return Ok(image);
    }
    super::host::sweep_builds().await?;
    let module = workspace_root().join(&source.module);
    // The compiler has both cores; the Debian packages come over the network meanwhile.
    let (bin, packed) = tokio::try_join!(
        binaries(versions, source, &module, &keys, progress),
        rootfs::packed(&versions.debian, &module, &keys.rootfs, progress)
    )?;
    let work = cache_root()
        .join("work")
        .join(format!("{}-{}", keys.image, std::process::id()));
    std::fs::create_dir_all(&work).map_err(at(&work, "create"))?;
    let parts = Parts {
        module,
        bin,
        packed,
        work,
    };
    let made = assemble(versions, source, &parts, &image, docker, progress).await;
    remove_tree(&parts.work)?;
    made.map(|()| image)
}

async fn binaries(
    versions: &Versions,
    source: &Source,
    module: &Path,
    keys: &Keys,
    progress: &Progress,
) -> Result<PathBuf, ClusterError> {
    let folder = cache_root().join("bin").join(&keys.binaries);
    if folder.exists() {
        return Ok(folder);
    }
    let list = module.join("binaries.txt");
    let text = std::fs::read_to_string(&list).map_err(at(&list, "read"))?;
    let mut packages: Vec<String> = text
        .lines()
        .filter(|l| !l.is_empty())
        .map(str::to_owned)
        .collect();
    packages.extend(versions.sidecars.all().map(|sidecar| sidecar.package.clone()));
    let stamp = "k8s.io/component-base/version";
    let mut numbers = source.version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or("1"), numbers.next().unwrap_or("0"));
    let ldflags = format!(
        "-s -w -X {stamp}.gitVersion={} -X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor} -X {stamp}.gitTreeState=clean",
        source.version
    );
    let step = progress.step(&format!(
        "build Kubernetes {}, containerd, etcd, CoreDNS, sidecars",
        source.version
    ));
    go_build(module, &folder, &packages, &ldflags).await?;
    step.done();
    Ok(folder)
}

struct Parts {
    module: PathBuf,
    bin: PathBuf,
    packed: PathBuf,
    work: PathBuf,
}

async fn assemble(
    versions: &Versions,
    source: &Source,
    parts: &Parts,
    image: &NodeImage,
    docker: &Docker,
    progress: &Progress,
) -> Result<(), ClusterError> {
    let root = parts.work.join("root");
    let step = progress.step("node image: unpack the root filesystem");
    std::fs::create_dir_all(&root).map_err(at(&root, "create"))?;
    let tar = Command::new("tar")
        .args(["--numeric-owner", "-xpf"])
        .arg(&parts.packed)
        .arg("-C")
        .arg(&root);
    call("tar -x of the root filesystem", &tar.timeout(LIMIT_STEP)).await?;
    step.done();
    let step = progress.step("node image: make the pods' images");
    let archive =
        node_pods::pod_images(versions, source, &parts.module, &parts.bin, &root, &parts.work).await?;
    step.done();
    let step = progress.step("node image: put them into containerd's store");
    node_store::bake(&parts.bin, &root, &parts.work, &archive).await?;
    step.done();
    let step = progress.step("node image: import into Docker");
    rootfs::install(source, &parts.module, &parts.bin, &root)?;
    let out = parts.work.join("node.tar");
    let tar = Command::new("tar")
        .args(["--numeric-owner", "-C"])
        .arg(&root)
        .arg("-cf")
        .arg(&out)
        .arg(".");
    call("tar of the node image", &tar.timeout(LIMIT_STEP)).await?;
    let import = docker.command().arg("import").arg(&out).timeout(LIMIT_STEP);
    let id = call("docker import", &import).await?;
    // `docker import --change` knows no STOPSIGNAL: a second step adds what starts and stops a node.
    let label = super::label::LABEL;
    let file = format!(
        "FROM {}\nENTRYPOINT [\"/usr/local/bin/entrypoint\", \"/sbin/init\"]\nENV container=docker\n\
         STOPSIGNAL SIGRTMIN+3\nLABEL {label}=cache\n",
        id.trim()
    );
    let finish =
        docker
            .command()
            .env("DOCKER_BUILDKIT", "0")
            .args(["build", "--quiet", "--tag", &image.name, "-"]);
    call("docker build", &finish.stdin(file).timeout(LIMIT_STEP)).await?;
    drop_older(docker, &image.name).await;
    step.done();
    Ok(())
}

/// Removes images of the same minor that were built before; one that a cluster runs on stays.
async fn drop_older(docker: &Docker, current: &str) {
    let minor = current.split('-').next().unwrap_or(current);
    let list = docker
        .command()
        .args(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}", REPOSITORY]);
    let Ok(said) = command::run(&list).await else {
        return;
    };
    for old in said
        .stdout
        .lines()
        .filter(|name| *name != current && name.split('-').next() == Some(minor))
    {
        // Refused while it is used: the next build tries again.
        let _ = command::run(&docker.command().args(["image", "rm", old])).await;
    }
}
