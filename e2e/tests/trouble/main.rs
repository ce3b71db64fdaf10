//! Trouble that only a machine can make: no space, no Docker, a signal at any moment, a run that was killed. One clear
//! message, the right exit code, nothing left behind. Clusters here are real ones, in a state folder of their own.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking
mod desk;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use desk::{Desk, LIMIT, Running};
use holdfast_e2e::cluster::docker;
use holdfast_e2e::cluster::kind::Cluster;
use holdfast_e2e::cluster::tear_down::NODE_LABEL;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;
use nix::sys::statvfs::statvfs;
use support::{Found, check, is_root, trial};

/// The node image may have to be built first.
const LIMIT_COLD: Duration = Duration::from_secs(40 * 60);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let root: Found<()> = if is_root() {
        Ok(())
    } else {
        Err("needs root for nodes, mounts and loop devices".into())
    };
    let cases: Vec<Trial> = vec![
        trial("a_full_disk_is_told_before_anything_is_made", &root, |()| {
            no_space()
        }),
        trial(
            "what_docker_lacks_is_named_with_the_way_to_have_it",
            &root,
            |()| no_docker(),
        ),
        trial("stopped_at_any_moment_nothing_stays", &root, |()| stopped()),
    ];
    libtest_mimic::run(&arguments, cases).exit_code()
}

/// Nothing of `name` is on this machine: no folder, no container, no loop device, no mount.
fn is_gone(desk: &Desk, name: &str) -> Result<(), Failed> {
    check(!desk.state().join(name).exists(), || {
        format!("the folder of {name} stays")
    })?;
    let holdfast = desk.command(&["cluster", "status"]).output()?;
    let said = String::from_utf8_lossy(&holdfast.stdout).into_owned();
    check(!said.contains(name), || said.clone())?;
    let path = format!("{}/", desk.state().join(name).display());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    check(!mounts.contains(&path), || format!("a mount below {path} stays"))?;
    let loops = Command::new("losetup")
        .args(["--list", "--noheadings", "--output", "BACK-FILE"])
        .output()?;
    let loops = String::from_utf8_lossy(&loops.stdout).into_owned();
    check(!loops.contains(&path), || format!("a loop device stays: {loops}"))?;
    let node = format!("--hostname {name}-");
    check(!processes()?.contains(&node), || {
        String::from("a node is still being made")
    })?;
    let containers = containers(name)?;
    check(containers.is_empty(), || {
        format!("containers of {name} stay: {containers}")
    })
}

/// The command lines of every process.
fn processes() -> Result<String, Failed> {
    let mut lines = String::new();
    for process in std::fs::read_dir("/proc")? {
        // Not every entry is a process, and one may end while we look.
        let words = std::fs::read(process?.path().join("cmdline")).unwrap_or_default();
        lines.push_str(&String::from_utf8_lossy(&words).replace('\0', " "));
        lines.push('\n');
    }
    Ok(lines)
}

/// The nodes of a cluster that Docker has, running or not; a private daemon that is gone with its last user has none.
fn containers(name: &str) -> Result<String, Failed> {
    let runtime = tokio::runtime::Runtime::new()?;
    let Some(docker) = runtime.block_on(docker::existing()) else {
        return Ok(String::new());
    };
    let filter = format!("label={NODE_LABEL}={name}");
    let output = Command::new("docker")
        .args(["ps", "--all", "--quiet", "--filter", &filter])
        .env("DOCKER_HOST", &docker.host)
        .output()?;
    check(output.status.success(), || {
        String::from_utf8_lossy(&output.stderr).into_owned()
    })?;
    runtime.block_on(docker.release())?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn no_space() -> Result<(), Failed> {
    let desk = Desk::new();
    let full = desk.folder.path().join("full");
    std::fs::create_dir(&full)?;
    mount(
        Some("holdfast-test"),
        &full,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=16m"),
    )?;
    let output = desk
        .command(&["cluster", "up", "--name", "full", "--yes"])
        .env("XDG_CACHE_HOME", &full)
        .output();
    // Asked by path: a folder that is open here is open in every child of another case until it executes, and keeps the mount busy.
    let space = statvfs(&full)?;
    umount(&full)?;
    let output = output?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    check(output.status.code() == Some(96), || said.clone())?;
    check(
        said.contains("GiB are free") && said.contains("cache prune"),
        || said.clone(),
    )?;
    let made = space.files() - space.files_free() - 1; // the root has an inode, too
    check(made == 0 && desk.left().is_empty(), || {
        format!("{made} entries were made")
    })
}

fn no_docker() -> Result<(), Failed> {
    let desk = Desk::new();
    let output = desk
        .command(&["cluster", "up", "--name", "none"])
        .env("XDG_CACHE_HOME", desk.folder.path().join("cache"))
        .env("PATH", desk.folder.path())
        .env_remove("CI")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    check(output.status.code() == Some(96), || said.clone())?;
    check(
        said.contains("docker.io") && said.contains("apt-get install"),
        || said.clone(),
    )?;
    check(desk.left().is_empty(), || {
        String::from("a cluster's folder was made")
    })
}

fn stopped() -> Result<(), Failed> {
    let desk = Desk::new();
    let ended = moments(&desk);
    // Whatever a failed case left.
    let _ = desk.command(&["cluster", "down", "--all"]).output();
    ended
}

fn moments(desk: &Desk) -> Result<(), Failed> {
    let cluster = up(desk, "lasting", LIMIT_COLD)?;
    killed_amid(desk, &cluster)?;
    let mut closed = never_starts(desk, &cluster)?;
    closed.says("remove what a killed run has left", LIMIT)?;
    // Its pod's bound is long enough for what only needs the machine.
    coming_up(desk)?;
    interrupted(desk)?;
    let line = told_how(closed)?;
    untouched(&cluster, &desk.state())?;

    let replay = desk.start(&line.split_whitespace().skip(1).collect::<Vec<_>>());
    replay.ends_with(0)?;
    check(desk.left() == ["lasting"], || format!("{:?}", desk.left()))?;
    down(desk, "lasting")
}

fn up(desk: &Desk, name: &str, limit: Duration) -> Result<Cluster, Failed> {
    let mut up = desk.start(&["cluster", "up", "--name", name, "--yes"]);
    up.says(&format!("create cluster {name}"), limit)?;
    up.ends_with(0)?;
    Ok(desk.cluster(name))
}

fn down(desk: &Desk, name: &str) -> Result<(), Failed> {
    desk.start(&["cluster", "down", name]).ends_with(0)?;
    is_gone(desk, name)
}

/// The words of a run on a cluster that stays.
fn on<'a>(cluster: &'a str, scenario: &'a str, folder: &'a str) -> [&'a str; 7] {
    ["run", scenario, "--on", cluster, "--yes", "--output", folder]
}

/// A run is killed amid its scenario.
fn killed_amid(desk: &Desk, cluster: &Cluster) -> Result<(), Failed> {
    let mut run = desk.start(&on(&cluster.name, "lifecycle-ext4", "amid"));
    run.says("RUN ", LIMIT_COLD)?;
    let selector = "holdfast.run/run";
    let namespaces = || {
        kubectl(
            cluster,
            &["get", "namespaces", "--selector", selector, "--output", "name"],
        )
    };
    until("a namespace of the run", || Ok(!namespaces()?.is_empty()))?;
    run.tell(Signal::SIGKILL);
    run.ends().map(drop)
}

/// A pod that no node takes. The driver is there already, as the run before was killed.
fn never_starts(desk: &Desk, cluster: &Cluster) -> Result<Running, Failed> {
    let closed = [
        "taint",
        "nodes",
        "--selector",
        "!node-role.kubernetes.io/control-plane",
        "holdfast.test/closed=:NoSchedule",
    ];
    kubectl(cluster, &closed)?;
    Ok(desk.start(&on(&cluster.name, "lifecycle-ext4", "closed")))
}

/// It says what is wrong; the command that it prints to be run again.
fn told_how(closed: Running) -> Result<String, Failed> {
    let told = closed.ends_with(100)?;
    for word in [
        "pod data-pod runs not in 120s",
        "not scheduled: 0/3 nodes are available",
        "event: Pod data-pod: FailedScheduling",
    ] {
        check(told.contains(word), || format!("no {word:?} in:\n{told}"))?;
    }
    let line = told.lines().find_map(|line| line.trim().strip_prefix("replay "));
    let line = line.unwrap_or_default().trim();
    check(line.starts_with("holdfast replay "), || told.clone())?;
    Ok(line.to_owned())
}

/// Clusters that are cut off while they come up, beside one that is in use.
fn coming_up(desk: &Desk) -> Result<(), Failed> {
    // A run is killed as it calls kind: the next run finds what it left, whatever its children still have open.
    let mut run = desk.start(&["run", "retain", "--yes", "--output", "killed"]);
    run.says("create cluster hf-", LIMIT)?;
    let first = killed(desk, run)?;

    // The next one is killed while Docker makes its nodes, which nobody can call back: `cluster up` finds what it left.
    let mut run = desk.start(&["run", "retain", "--yes", "--output", "again"]);
    run.says("a run was killed", LIMIT)?;
    run.says("create cluster hf-", LIMIT)?;
    is_gone(desk, &first)?;
    until("a node is made", || Ok(processes()?.contains("--hostname hf-")))?;
    let orphan = killed(desk, run)?;

    // Ctrl-C while a cluster comes up.
    let mut up = desk.start(&["cluster", "up", "--name", "early", "--yes"]);
    up.says("a run was killed", LIMIT)?;
    up.says("create cluster early", LIMIT)?;
    is_gone(desk, &orphan)?;
    up.tell(Signal::SIGINT);
    up.ends_with(130)?;
    is_gone(desk, "early")
}

/// Ctrl-C while kubelet is stopped and the driver held: both go on, nothing of the run stays, and the next one passes.
fn interrupted(desk: &Desk) -> Result<(), Failed> {
    let cluster = up(desk, "second", LIMIT)?;
    let mut run = desk.start(&on("second", "mount-kubelet-restarted", "stopped"));
    run.says("held:", LIMIT)?;
    run.tell(Signal::SIGTERM);
    run.ends_with(130)?;
    untouched(&cluster, &desk.state())?;
    desk.start(&on("second", "retain", "next")).ends_with(0)?;
    untouched(&cluster, &desk.state())?;
    down(desk, "second")
}

/// Kills a run whose cluster comes up; the cluster's name.
fn killed(desk: &Desk, run: Running) -> Result<String, Failed> {
    let orphan = desk
        .left()
        .into_iter()
        .find(|name| name.starts_with("hf-"))
        .unwrap_or_default();
    run.tell(Signal::SIGKILL);
    check(run.ends()?.is_none(), || {
        String::from("killed, and yet it ended by itself")
    })?;
    check(desk.state().join(&orphan).exists(), || {
        String::from("it left nothing to find")
    })?;
    Ok(orphan)
}

/// The cluster is as it was before the run: no namespace, volume or driver of it, and every kubelet active.
fn untouched(cluster: &Cluster, state: &Path) -> Result<(), Failed> {
    for kind in [
        "namespaces --selector holdfast.run/run",
        "persistentvolumes",
        "volumeattachments",
        "csidrivers",
    ] {
        let mut words = vec!["get"];
        words.extend(kind.split(' '));
        words.extend(["--output", "name"]);
        let left = kubectl(cluster, &words)?;
        check(left.is_empty(), || format!("{kind}: {left}"))?;
    }
    for node in &cluster.nodes {
        let output = Command::new("docker")
            .args(["exec", node, "systemctl", "is-active", "kubelet"])
            .env("DOCKER_HOST", &cluster.docker.host)
            .output()?;
        check(output.status.success(), || {
            format!("kubelet of {node} is not active")
        })?;
    }
    let images = state.join(&cluster.name).join("data/volumes");
    let images = std::fs::read_dir(images).into_iter().flatten().count();
    check(images == 0, || format!("{images} files of volumes stay"))
}

fn kubectl(cluster: &Cluster, words: &[&str]) -> Result<String, Failed> {
    let node = cluster.nodes.first().unwrap();
    let output = Command::new("docker")
        .args(["exec", node, "kubectl", "--kubeconfig=/etc/kubernetes/admin.conf"])
        .args(words)
        .env("DOCKER_HOST", &cluster.docker.host)
        .output()?;
    check(output.status.success(), || {
        String::from_utf8_lossy(&output.stderr).into_owned()
    })?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Looks until it holds; each look is a call that takes its time, so nothing spins.
fn until(what: &str, holds: impl Fn() -> Result<bool, Failed>) -> Result<(), Failed> {
    let since = Instant::now();
    while !holds()? {
        check(since.elapsed() < LIMIT, || format!("{what}: not in {LIMIT:?}"))?;
    }
    Ok(())
}
