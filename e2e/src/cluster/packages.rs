//! Debian packages that a cluster needs on this machine, and the one consent to install them.
use std::time::Duration;

use super::{ClusterError, call};
use crate::command::{self, Command};
use crate::progress::{Progress, consents};

/// A program and the package that holds it.
#[derive(Clone, Copy, Debug)]
pub struct Needed {
    /// Found in PATH or sbin.
    pub program: &'static str,
    /// Debian's name.
    pub package: &'static str,
    /// What it is for.
    pub why: &'static str,
}

/// What is called on the host.
pub const NEEDED: &[Needed] = &[
    Needed {
        program: "dockerd",
        package: "docker.io",
        why: "runs the nodes",
    },
    Needed {
        program: "docker",
        package: "docker.io",
        why: "talks to the daemon",
    },
    Needed {
        program: "runc",
        package: "runc",
        why: "runs containers",
    },
    Needed {
        program: "iptables",
        package: "iptables",
        why: "networks of containers",
    },
    Needed {
        program: "conntrack",
        package: "conntrack",
        why: "networks of nodes",
    },
    Needed {
        program: "mmdebstrap",
        package: "mmdebstrap",
        why: "root filesystem of the node image",
    },
    Needed {
        program: "mkfs.xfs",
        package: "xfsprogs",
        why: "volumes with xfs",
    },
    Needed {
        program: "mke2fs",
        package: "e2fsprogs",
        why: "volumes with ext4",
    },
    Needed {
        program: "busybox",
        package: "busybox-static",
        why: "small test images",
    },
    Needed {
        program: "ip",
        package: "iproute2",
        why: "bridge of the private Docker",
    },
    Needed {
        program: "gcc",
        package: "gcc",
        why: "the pause program",
    },
];

/// What only tests call, beside what a run needs.
pub const FOR_TESTS: &[Needed] = &[Needed {
    program: "strace",
    package: "strace",
    why: "shows tests the order of the driver's system calls",
}];

/// What of `needed` is missing.
pub fn missing(needed: &[Needed]) -> Vec<Needed> {
    needed
        .iter()
        .copied()
        .filter(|needed| command::find(needed.program).is_none())
        .collect()
}

/// Installs what of `needed` is missing, after one consent: `yes`, CI=true, or an answer on the terminal.
///
/// # Errors
/// If it is refused or not possible here; the message has the command for somebody who may.
pub async fn ensure(needed: &[Needed], yes: bool, progress: &Progress) -> Result<(), ClusterError> {
    let mut names: Vec<&str> = missing(needed).iter().map(|needed| needed.package).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return Ok(());
    }
    let list = names.join(" ");
    let fix = format!("apt-get install --no-install-recommends {list}");
    let root = nix::unistd::geteuid().is_root();
    if !root || command::find("apt-get").is_none() {
        return Err(ClusterError::Setup(format!(
            "missing on this machine: {list}; as root: {fix}"
        )));
    }
    let question = format!("holdfast needs these Debian packages: {list}. Install them now?");
    if !(yes || std::env::var("CI").is_ok_and(|v| v == "true") || consents(&question)) {
        return Err(ClusterError::Setup(format!(
            "missing on this machine: {list}; run again with --yes, or: {fix}"
        )));
    }
    let step = progress.step(&format!("install {list}"));
    let limit = Duration::from_secs(600);
    let apt = || {
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .timeout(limit)
    };
    call("apt-get update", &apt().args(["-q", "update"])).await?;
    // Debian starts a daemon on installation; ours is private, so policy-rc.d's answer is "not now".
    let install = apt()
        .env("RUNLEVEL", "1")
        .args(["-qy", "--no-install-recommends", "install"])
        .args(&names);
    call("apt-get install", &install).await?;
    step.done();
    Ok(())
}
