//! What these tests need of the machine, and how they get it.
use std::path::Path;
use std::process::Command;

/// A program, and the one by which `holdfast doctor` knows its package.
pub type Tool = (&'static str, &'static str);

/// What every test of volumes needs.
pub const FILESYSTEMS: &[Tool] = &[
    ("mke2fs", "mke2fs"),
    ("e2fsck", "mke2fs"),
    ("resize2fs", "mke2fs"),
    ("mkfs.xfs", "mkfs.xfs"),
    ("xfs_growfs", "mkfs.xfs"),
];
/// What shows the driver's system calls.
pub const STRACE: Tool = ("strace", "strace");

/// Whether the tests of this binary are to be ignored, because of something that this machine cannot have; the reason is
/// printed. With CI=true, which is the consent, missing programs are installed first, and nothing may be ignored.
pub fn are_ignored(tools: &[Tool]) -> bool {
    let is_ci = std::env::var("CI").as_deref() == Ok("true");
    if is_ci && nix::unistd::geteuid().is_root() && !absent(tools).is_empty() {
        install(tools);
    }
    let reason = missing(tools);
    if let Some(reason) = &reason {
        assert!(!is_ci, "CI must not skip these: {reason}");
        eprintln!("ignored: {reason}");
    }
    reason.is_some()
}

fn missing(tools: &[Tool]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some(String::from("root is needed for loop devices and mounts"));
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some(String::from("there is no /dev/loop-control"));
    }
    let absent = absent(tools);
    let fix = format!("`cargo e2e doctor --install {}`", packages(tools).join(" "));
    (!absent.is_empty()).then(|| format!("{absent:?} are missing: {fix} installs them, and CI=true says yes"))
}

fn is_absent(program: &str) -> bool {
    let folders = [
        "/usr/local/sbin",
        "/usr/sbin",
        "/sbin",
        "/usr/local/bin",
        "/usr/bin",
    ];
    !folders
        .iter()
        .any(|folder| Path::new(folder).join(program).exists())
}

fn absent(tools: &[Tool]) -> Vec<&'static str> {
    let names = tools.iter().map(|(program, _)| *program);
    names.filter(|program| is_absent(program)).collect()
}

fn packages(tools: &[Tool]) -> Vec<&'static str> {
    let absent = tools.iter().filter(|(program, _)| is_absent(program));
    let mut names: Vec<_> = absent.map(|(_, package)| *package).collect();
    names.dedup();
    names
}

/// By the tool of the other crate, as a run of it does; built beside these tests, or now.
fn install(tools: &[Tool]) {
    let test = std::env::current_exe().unwrap();
    let beside = test.ancestors().nth(2).unwrap().join("holdfast");
    let mut command = Command::new(&beside);
    if !beside.exists() {
        command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .args([
                "run",
                "--quiet",
                "--package",
                "holdfast-e2e",
                "--bin",
                "holdfast",
                "--",
            ])
            .current_dir(env!("CARGO_MANIFEST_DIR"));
    }
    let status = command
        .args(["doctor", "--install"])
        .args(packages(tools))
        .status();
    assert!(
        status.is_ok_and(|s| s.success()),
        "{:?} not installed",
        packages(tools)
    );
}
