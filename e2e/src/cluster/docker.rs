//! The Docker daemon: the one that answers, else a private one with everything of its own.
//!
//! Everyone who uses the private daemon holds a shared lock; who lets go last, with no container running, stops it.
use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{ClusterError, at, cache_root, call};
use crate::command::{self, Command};
use crate::progress::Progress;

const BRIDGE: &str = "holdfast0";
const BRIDGE_ADDRESS: &str = "172.29.255.1/24";
const POOL: &str = "172.28.0.0/16";
const LIMIT_START: Duration = Duration::from_secs(40);
/// As long as somebody else's cold build.
const LIMIT_LOCK: Duration = Duration::from_secs(40 * 60);
const LIMIT_STOP: Duration = Duration::from_secs(40);

/// A daemon that answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Docker {
    /// The socket's URI.
    pub host: String,
    /// Whether it is the private one.
    pub private: bool,
    /// Held, not read: as long as it is there nobody stops the daemon.
    #[serde(skip)]
    #[allow(dead_code)]
    lock: Option<Arc<Flock<File>>>,
}

impl Docker {
    /// A call of the docker program that talks to this daemon.
    pub fn command(&self) -> Command {
        Command::new("docker").env("DOCKER_HOST", &self.host)
    }

    /// Lets go of the daemon; a private one that nobody uses is stopped. Other copies of this value are users too.
    ///
    /// # Errors
    /// If it does not stop.
    pub async fn release(self) -> Result<(), ClusterError> {
        drop(self);
        stop_unused().await
    }
}

/// Stops a private daemon that nobody uses: no process holds it, no container runs in it. Left by a killed run or not.
///
/// # Errors
/// If it does not stop.
pub async fn stop_unused() -> Result<(), ClusterError> {
    let home = home();
    if !runtime().exists() || !home.exists() {
        return Ok(());
    }
    let Some(_alone) = exclusive(&home)? else {
        return Ok(());
    };
    let private = Docker {
        host: host(),
        private: true,
        lock: None,
    };
    let running = private
        .command()
        .args(["ps", "--quiet"])
        .timeout(Duration::from_secs(20));
    let busy = answers(&private).await && !call("docker ps", &running).await?.trim().is_empty();
    if busy { Ok(()) } else { stop(&home).await }
}

/// The daemon that answers, else a private one, started if need be.
///
/// # Errors
/// With the end of its log, if it does not start.
pub async fn ensure(progress: &Progress) -> Result<Docker, ClusterError> {
    if let Some(found) = existing().await {
        return Ok(found);
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(ClusterError::Setup(String::from(
            "no Docker daemon answers; start one, set DOCKER_HOST, or run as root so that a private one can be started",
        )));
    }
    let home = home();
    std::fs::create_dir_all(&home).map_err(at(&home, "create"))?;
    // Shared from the first moment on, so that nobody stops what somebody else is about to use.
    let lock = shared(&home)?;
    let docker = Docker {
        host: host(),
        private: true,
        lock: Some(Arc::new(lock)),
    };
    let start = home.join("start.lock");
    let _one = flock(&start, FlockArg::LockExclusive)?;
    if answers(&docker).await {
        return Ok(docker);
    }
    let step = progress.step("start a private Docker daemon");
    if let Err(error) = start_daemon(&home, &docker).await {
        // Nobody uses what did not start: its process, its bridge and its folder go.
        drop(docker);
        return Err(match stop_unused().await {
            Ok(()) => error,
            Err(left) => ClusterError::Setup(format!("{error}\n{left}")),
        });
    }
    step.done();
    Ok(docker)
}

/// A daemon that answers already: DOCKER_HOST, the usual socket, or the private one.
pub async fn existing() -> Option<Docker> {
    let given = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
    let usual = given.unwrap_or_else(|| String::from("unix:///var/run/docker.sock"));
    if usual != host() {
        let docker = Docker {
            host: usual,
            private: false,
            lock: None,
        };
        if answers(&docker).await {
            return Some(docker);
        }
    }
    let private = Docker {
        host: host(),
        private: true,
        lock: None,
    };
    if !answers(&private).await {
        return None;
    }
    let lock = shared(&home()).ok()?;
    // Looked at again: it may have been stopped between the look and the lock.
    let docker = Docker {
        lock: Some(Arc::new(lock)),
        ..private
    };
    answers(&docker).await.then_some(docker)
}

fn home() -> PathBuf {
    cache_root().join("docker")
}

/// A socket's path may have about 100 bytes, and those below the exec root are long: so they live in /run.
fn runtime() -> PathBuf {
    let name = super::tools::key(&[home().as_os_str().as_encoded_bytes()]);
    Path::new("/run/holdfast").join(name)
}

fn host() -> String {
    format!("unix://{}/docker.sock", runtime().display())
}

async fn answers(docker: &Docker) -> bool {
    if let Some(path) = docker.host.strip_prefix("unix://")
        && !Path::new(path).exists()
    {
        return false;
    }
    let spec = docker
        .command()
        .args(["version", "--format", "{{.Server.Version}}"])
        .timeout(Duration::from_secs(5));
    command::run(&spec).await.is_ok()
}

async fn start_daemon(home: &Path, docker: &Docker) -> Result<(), ClusterError> {
    let run = runtime();
    std::fs::create_dir_all(&run).map_err(at(&run, "create"))?;
    let pid_file = run.join("docker.pid");
    // What a killed machine or daemon left: a pid file of nobody keeps a new one from starting.
    if pid_file.exists() && !alive(&pid_file) {
        std::fs::remove_file(&pid_file).map_err(at(&pid_file, "remove"))?;
    }
    let config = config(home)?;
    bridge().await?;
    let log = home.join("dockerd.log");
    let out = File::create(&log).map_err(at(&log, "create"))?;
    let err = out.try_clone().map_err(at(&log, "open"))?;
    // A session of its own: the daemon must not end with the terminal or the job that started it.
    let mut daemon = std::process::Command::new("setsid")
        .args(["dockerd", "--config-file"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(at(Path::new("dockerd"), "start"))?;
    let since = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    while !answers(docker).await {
        tick.tick().await;
        // The program that makes the session becomes the daemon, so that its end is the daemon's.
        let ended = daemon.try_wait().map_err(at(Path::new("dockerd"), "wait for"))?;
        let what = match ended {
            Some(status) => format!("dockerd ended with {status}"),
            None if since.elapsed() > LIMIT_START => {
                format!("dockerd does not answer in {} s", LIMIT_START.as_secs())
            }
            None => continue,
        };
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = said.lines().rev().take(5).collect();
        let last = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
        return Err(ClusterError::Setup(format!("{what}; its log ends:\n{last}")));
    }
    Ok(())
}

/// The daemon's configuration; everything in it is a place of our own.
fn config(home: &Path) -> Result<PathBuf, ClusterError> {
    let run = runtime();
    let mut config = serde_json::json!({
        "hosts": [host()],
        "data-root": home.join("data"),
        "exec-root": run.join("exec"),
        "pidfile": run.join("docker.pid"),
        "bridge": BRIDGE,
        "default-address-pools": [{ "base": POOL, "size": 24 }],
        "storage-driver": "overlay2",
        "log-driver": "json-file",
        "log-opts": { "max-size": "20m", "max-file": "2" },
        "live-restore": false,
    });
    if !may_set_limits() {
        let wrapper = home.join("runc");
        let runc = command::find("runc").unwrap_or_else(|| PathBuf::from("/usr/sbin/runc"));
        let text = format!(
            "#!/bin/sh\n# This machine may not grant CAP_SYS_RESOURCE: containers are started without asking for it.\n\
             for word; do\n  case $before in\n    --bundle|-b) file=$word/config.json ;;\n    --process|-p) file=$word ;;\n  esac\n  \
             before=$word\ndone\n[ -z \"$file\" ] || sed -i 's/\"CAP_SYS_RESOURCE\",//g' \"$file\"\nexec {} \"$@\"\n",
            runc.display()
        );
        std::fs::write(&wrapper, text).map_err(at(&wrapper, "write"))?;
        std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755))
            .map_err(at(&wrapper, "chmod"))?;
        config["runtimes"] = serde_json::json!({ "holdfast": { "path": wrapper } });
        config["default-runtime"] = "holdfast".into();
    }
    let path = home.join("config.json");
    std::fs::write(&path, config.to_string()).map_err(at(&path, "write"))?;
    Ok(path)
}

/// Whether this process could hand CAP_SYS_RESOURCE (24) to a container.
pub fn may_set_limits() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bounds = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    bounds
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|set| set & (1 << 24) != 0)
}

async fn bridge() -> Result<(), ClusterError> {
    let ip = |words: &[&str]| Command::new("ip").args(words).timeout(Duration::from_secs(10));
    if !Path::new("/sys/class/net").join(BRIDGE).exists() {
        call("ip link add", &ip(&["link", "add", BRIDGE, "type", "bridge"])).await?;
    }
    call(
        "ip address replace",
        &ip(&["address", "replace", BRIDGE_ADDRESS, "dev", BRIDGE]),
    )
    .await?;
    call("ip link set up", &ip(&["link", "set", BRIDGE, "up"]))
        .await
        .map(drop)
}

async fn stop(home: &Path) -> Result<(), ClusterError> {
    let pid_file = runtime().join("docker.pid");
    if let Some(pid) = pid(&pid_file).filter(|_| alive(&pid_file)) {
        // A pid that is gone meanwhile is what we want.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let since = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        while alive(&pid_file) {
            tick.tick().await;
            if since.elapsed() > LIMIT_STOP {
                let bound = LIMIT_STOP.as_secs();
                return Err(ClusterError::Setup(format!(
                    "dockerd ({pid}) does not stop in {bound} s"
                )));
            }
        }
    }
    if Path::new("/sys/class/net").join(BRIDGE).exists() {
        call(
            "ip link delete",
            &Command::new("ip").args(["link", "delete", BRIDGE]),
        )
        .await?;
    }
    super::label::release(&home.join("data")).await?;
    super::label::remove_tree(&runtime())
}

fn pid(file: &Path) -> Option<nix::unistd::Pid> {
    let text = std::fs::read_to_string(file).ok()?;
    text.trim().parse().ok().map(nix::unistd::Pid::from_raw)
}

/// Whether the pid file names a dockerd that runs: a number alone may be anybody's by now.
fn alive(file: &Path) -> bool {
    let Some(pid) = pid(file) else { return false };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.contains("(dockerd)") && !stat.contains("(dockerd) Z")
}

/// One process at a time does what `what` names; waits for the others, who may build for long.
///
/// # Errors
/// If the others do not end.
pub(super) async fn lock(what: &str) -> Result<Flock<File>, ClusterError> {
    let folder = cache_root();
    std::fs::create_dir_all(&folder).map_err(at(&folder, "create"))?;
    let path = folder.join(format!("{what}.lock"));
    let since = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tick.tick().await;
        match flock(&path, FlockArg::LockExclusiveNonblock) {
            Err(ClusterError::File { source, .. })
                if source.kind() == io::ErrorKind::WouldBlock && since.elapsed() < LIMIT_LOCK => {}
            ended => return ended,
        }
    }
}

fn shared(home: &Path) -> Result<Flock<File>, ClusterError> {
    flock(&home.join("users.lock"), FlockArg::LockShared)
}

fn exclusive(home: &Path) -> Result<Option<Flock<File>>, ClusterError> {
    match flock(&home.join("users.lock"), FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err(ClusterError::File { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

fn flock(path: &Path, how: FlockArg) -> Result<Flock<File>, ClusterError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(at(path, "open"))?;
    Flock::lock(file, how).map_err(|(_, errno)| at(path, "lock")(errno.into()))
}
