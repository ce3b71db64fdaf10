//! The driver's system calls in their order, as strace shows them: the kernel's own view.
use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Driver;

/// Within this time strace has attached, and has written what it saw.
const LIMIT: Duration = Duration::from_secs(20);
const CALLS: &str = "trace=fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,write,writev,sendto,sendmsg,execve,\
                     mount,move_mount,umount2,ioctl";

/// A system call of the driver that ended well; files by the last name of their path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// fsync or fdatasync.
    Synced(String),
    Renamed(String, String),
    Removed(String),
    /// A program that the driver ran has ended.
    Ran(String),
    Mounted,
    Unmounted(String),
    /// A request to a loop device.
    Device(String),
    /// Something was written to a client.
    Replied,
}

/// The driver under strace, from the moment at which it is attached.
pub struct Traced {
    pub driver: Driver,
    strace: Child,
    seen: usize,
}

impl Traced {
    pub fn start() -> Self {
        let driver = Driver::start();
        let strace = Command::new("strace")
            .args(["-f", "-y", "-q", "-e", CALLS, "-o", &driver.path("trace"), "-p"])
            .arg(driver.process.id().to_string())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let tasks = format!("/proc/{}/task", driver.process.id());
        let since = Instant::now();
        let traced = |task: &Path| {
            let text = std::fs::read_to_string(task.join("status")).unwrap_or_default();
            text.lines()
                .any(|l| l.starts_with("TracerPid:") && !l.ends_with("\t0"))
        };
        while !std::fs::read_dir(&tasks)
            .unwrap()
            .flatten()
            .all(|t| traced(&t.path()))
        {
            assert!(since.elapsed() < LIMIT, "strace is not attached");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Self {
            driver,
            strace,
            seen: 0,
        }
    }

    /// What the driver did since the last time, up to its reply.
    pub fn steps(&mut self) -> Vec<Step> {
        let since = Instant::now();
        loop {
            let text = std::fs::read_to_string(self.driver.path("trace")).unwrap_or_default();
            let all = parse(&text);
            let new = &all[self.seen.min(all.len())..];
            if let Some(reply) = new.iter().position(|s| *s == Step::Replied) {
                let steps = new[..=reply].to_vec();
                // The reply's other frames belong to it.
                self.seen = all.len();
                return steps;
            }
            assert!(since.elapsed() < LIMIT, "no reply was seen; {new:?}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

/// The calls in the order in which they ended: an fsync counts when it has returned, not when it began. What a program does
/// that the driver runs is not the driver's; only that it has ended is.
fn parse(text: &str) -> Vec<Step> {
    let mut begun = HashMap::new();
    let mut programs: HashMap<&str, String> = HashMap::new();
    let mut steps = Vec::new();
    for line in text.lines() {
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let rest = rest.trim_start();
        if rest.starts_with("+++") {
            steps.extend(programs.remove(thread).map(Step::Ran));
            continue;
        }
        if let Some(call) = rest.strip_suffix(" <unfinished ...>") {
            // What is sent may be read before the call has returned.
            if step(call) == Some(Step::Replied) {
                steps.push(Step::Replied);
            }
            begun.insert(thread, call.to_owned());
            continue;
        }
        let whole = match rest.strip_prefix("<... ") {
            Some(end) => {
                let call = begun.remove(thread).unwrap_or_default();
                if step(&call) == Some(Step::Replied) {
                    continue;
                }
                call + end.split_once("resumed>").map_or("", |(_, tail)| tail)
            }
            None => rest.to_owned(),
        };
        if whole.contains("= -1 ") {
            continue;
        }
        if whole.starts_with("execve(") {
            programs.insert(thread, whole.split('"').nth(1).and_then(last).unwrap_or_default());
        } else if !programs.contains_key(thread) {
            steps.extend(step(&whole));
        }
    }
    steps
}

fn last(path: &str) -> Option<String> {
    path.rsplit('/').next().map(str::to_owned)
}

fn step(call: &str) -> Option<Step> {
    let (name, arguments) = call.split_once('(')?;
    let opened = || Some(arguments.split_once('<')?.1.split_once('>')?.0);
    match name {
        // A device's name is followed by its numbers.
        "fsync" | "fdatasync" => Some(Step::Synced(last(opened()?.split('<').next()?)?)),
        "rename" | "renameat" | "renameat2" => {
            let mut names = arguments.split('"').skip(1).step_by(2);
            Some(Step::Renamed(last(names.next()?)?, last(names.next()?)?))
        }
        "unlink" | "unlinkat" => Some(Step::Removed(last(arguments.split('"').nth(1)?)?)),
        "mount" | "move_mount" => Some(Step::Mounted),
        "umount2" => Some(Step::Unmounted(last(arguments.split('"').nth(1)?)?)),
        "ioctl" => {
            let request = arguments.split(", ").nth(1)?.split(')').next()?;
            request
                .starts_with("LOOP_")
                .then(|| Step::Device(request.to_owned()))
        }
        // A client's connection; the log is a file.
        "write" | "writev" | "sendto" | "sendmsg" => {
            let to = arguments.split_once('<')?.1;
            (to.starts_with("UNIX") || to.starts_with("socket:")).then_some(Step::Replied)
        }
        _ => None,
    }
}

/// Asserts that `wanted` happened in this order, whatever happened in between.
pub fn in_order(steps: &[Step], wanted: &[Step]) {
    let mut rest = steps.iter();
    for step in wanted {
        assert!(
            rest.any(|s| s == step),
            "{step:?} is not in its place of {wanted:#?}\nin {steps:#?}"
        );
    }
}
