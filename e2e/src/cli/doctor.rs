//! `holdfast doctor`: one line for each thing that a run needs.
use super::args::DoctorArgs;
use super::exit::Exit;
use crate::cluster::packages::Needed;
use crate::cluster::versions::Versions;
use crate::cluster::{ClusterError, cache_root, docker, host, node_image, packages, tools};
use crate::command;
use crate::progress::Progress;

/// Everything that a package of the system holds.
fn of_packages() -> impl Iterator<Item = &'static Needed> {
    packages::NEEDED.iter().chain(packages::FOR_TESTS)
}

/// Installs the packages of the named programs, by the function and the consent of every run.
///
/// # Errors
/// A program that is not of the list, or what [`packages::ensure`] says.
pub async fn install(args: &DoctorArgs) -> anyhow::Result<Exit> {
    let mut wanted = Vec::new();
    for program in &args.install {
        match of_packages().find(|needed| needed.program == program) {
            Some(needed) => wanted.push(*needed),
            None => {
                let known: Vec<_> = of_packages().map(|needed| needed.program).collect();
                return Err(ClusterError::Setup(format!(
                    "{program} is no program that is installed here; these are: {}",
                    known.join(", ")
                ))
                .into());
            }
        }
    }
    packages::ensure(&wanted, args.yes, &Progress::default()).await?;
    Ok(Exit::Passed)
}

/// Prints the list; it changes nothing.
///
/// # Errors
/// If kind/versions.yaml cannot be read.
pub async fn doctor() -> anyhow::Result<Exit> {
    let versions = Versions::load()?;
    let mut missing = 0;
    let mut line = |state: &str, what: &str, how: &str| {
        missing += u32::from(state == "missing");
        println!("{state:8} {what:22} {how}");
    };
    let root = nix::unistd::geteuid().is_root();
    match root {
        true => line("ok", "root", ""),
        false => line("missing", "root", "run as root: mounts and loop devices need it"),
    }
    match command::find("go") {
        Some(path) => line("ok", "go", &path.display().to_string()),
        None => line(
            "missing",
            "go",
            "install Go 1.26 or newer; it builds the tools and the node image",
        ),
    }
    for needed in of_packages() {
        match command::find(needed.program) {
            Some(path) => line("ok", needed.program, &path.display().to_string()),
            None if root && command::find("apt-get").is_some() => {
                line(
                    "fix",
                    needed.program,
                    &format!("installed on consent: {} ({})", needed.package, needed.why),
                );
            }
            None => line(
                "missing",
                needed.program,
                &format!("apt-get install {} ({})", needed.package, needed.why),
            ),
        }
    }
    match docker::existing().await {
        Some(found) => line("ok", "docker daemon", &found.host),
        None if root => line("fix", "docker daemon", "a private one is started by a run"),
        None => line(
            "missing",
            "docker daemon",
            "start one, set DOCKER_HOST, or run as root",
        ),
    }
    for tool in &versions.tools {
        let cached = tools::cached(tool);
        match tools::fitting(tool).await {
            Some(path) => line("ok", &tool.name, &path.display().to_string()),
            None if cached.exists() => line("ok", &tool.name, &cached.display().to_string()),
            None => line(
                "fix",
                &tool.name,
                &format!("{} is built on first use", tool.version),
            ),
        }
    }
    match node_image::registry_answers().await {
        true => line("ok", "image registry", "node images are pulled"),
        false => line(
            "fix",
            "image registry",
            "none answers: the node image is built from source (about 12 min once)",
        ),
    }
    if !docker::may_set_limits() {
        line(
            "ok",
            "CAP_SYS_RESOURCE",
            "absent: a wrapper of runc is used, a mounted ext4 cannot grow here",
        );
    }
    match host::inotify_fits() {
        true => line("ok", "inotify", ""),
        false => line(
            "fix",
            "inotify",
            "fs.inotify.max_user_instances is raised by a run, until the next boot",
        ),
    }
    if let Some(free) = host::free_gib() {
        let state = if free >= 15 { "ok" } else { "missing" };
        line(
            state,
            "space",
            &format!("{free} GiB free at {}; 15 are wanted", cache_root().display()),
        );
    }
    Ok(if missing == 0 { Exit::Passed } else { Exit::Usage })
}
