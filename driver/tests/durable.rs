//! T1: what a reply promises is on disk before the reply. The kernel's own view, by strace, where it is installed; CI has it.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]
mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_client::ControllerClient;

/// Within this time strace has attached, and has written what it saw.
const LIMIT: Duration = Duration::from_secs(20);

/// A system call of the driver that ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// fsync or fdatasync of a file, by its name.
    Synced(String),
    Renamed(String, String),
    Removed(String),
    /// Something was written to a client.
    Replied,
}

/// The driver under strace, from the moment at which it is attached.
struct Traced {
    driver: Driver,
    strace: Child,
    seen: usize,
}

impl Traced {
    fn start() -> Self {
        let driver = Driver::start();
        let strace = Command::new("strace")
            .args(["-f", "-y", "-qq", "-e"])
            .arg(
                "trace=fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,write,writev,sendto,sendmsg",
            )
            .args([
                "-o",
                &driver.path("trace"),
                "-p",
                &driver.process.id().to_string(),
            ])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let status = format!("/proc/{}/task", driver.process.id());
        let since = Instant::now();
        let traced = |task: &Path| {
            let text = std::fs::read_to_string(task.join("status")).unwrap_or_default();
            text.lines()
                .any(|l| l.starts_with("TracerPid:") && !l.ends_with("\t0"))
        };
        while !std::fs::read_dir(&status)
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
    fn steps(&mut self) -> Vec<Step> {
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

/// The calls in the order in which they ended: an fsync counts when it has returned, not when it began.
fn parse(text: &str) -> Vec<Step> {
    let mut begun = std::collections::HashMap::new();
    let mut steps = Vec::new();
    for line in text.lines() {
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let rest = rest.trim_start();
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
        if !whole.contains("= -1 ") {
            steps.extend(step(&whole));
        }
    }
    steps
}

fn step(call: &str) -> Option<Step> {
    let (name, arguments) = call.split_once('(')?;
    let file = |text: &str| text.rsplit('/').next().map(str::to_owned);
    match name {
        "fsync" | "fdatasync" => {
            let path = arguments.split_once('<')?.1.split_once('>')?.0;
            Some(Step::Synced(file(path)?))
        }
        "rename" | "renameat" | "renameat2" => {
            let mut names = arguments.split('"').skip(1).step_by(2);
            Some(Step::Renamed(file(names.next()?)?, file(names.next()?)?))
        }
        "unlink" | "unlinkat" => Some(Step::Removed(file(arguments.split('"').nth(1)?)?)),
        // A client's connection; the log is a file.
        "write" | "writev" | "sendto" | "sendmsg" => {
            let to = arguments.split_once('<')?.1;
            (to.starts_with("UNIX") || to.starts_with("socket:")).then_some(Step::Replied)
        }
        _ => None,
    }
}

/// Asserts that `wanted` happened in this order, whatever happened in between.
fn in_order(steps: &[Step], wanted: &[Step]) {
    let mut rest = steps.iter();
    for step in wanted {
        assert!(
            rest.any(|s| s == step),
            "{step:?} is not in its place of {wanted:#?}\nin {steps:#?}"
        );
    }
}

fn synced(name: &str) -> Step {
    Step::Synced(name.to_owned())
}

async fn replies_come_after_their_fsyncs() {
    let mut traced = Traced::start();
    let mut controller = ControllerClient::new(traced.driver.channel().await);
    // The connection's own greeting is no reply.
    controller
        .get_capacity(pb::GetCapacityRequest::default())
        .await
        .unwrap();
    traced.steps();
    let id = controller
        .create_volume(create("a", None, MIB, 0))
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap()
        .volume_id;
    let (record, image) = (format!("{id}.json"), format!("{id}.img"));
    let temporary = format!("{record}.tmp");
    let written = [
        synced(&temporary),
        Step::Renamed(temporary.clone(), record.clone()),
        synced("volumes"),
        Step::Replied,
    ];
    // The intent and the image, with their names, before the record says ready.
    let mut expected = vec![
        Step::Renamed(temporary.clone(), record.clone()),
        synced(&record),
        synced(&image),
        synced("volumes"),
    ];
    expected.extend(written.clone());
    in_order(&traced.steps(), &expected);

    let publish = pb::ControllerPublishVolumeRequest {
        volume_id: id.clone(),
        node_id: String::from("n1"),
        volume_capability: Some(capability(None)),
        ..Default::default()
    };
    controller.controller_publish_volume(publish).await.unwrap();
    in_order(&traced.steps(), &written);

    let expand = pb::ControllerExpandVolumeRequest {
        volume_id: id.clone(),
        capacity_range: Some(pb::CapacityRange {
            required_bytes: 2 * MIB,
            limit_bytes: 0,
        }),
        ..Default::default()
    };
    controller.controller_expand_volume(expand).await.unwrap();
    let mut expected = written[..3].to_vec();
    expected.extend([synced(&image), Step::Replied]);
    in_order(&traced.steps(), &expected);

    let unpublish = pb::ControllerUnpublishVolumeRequest {
        volume_id: id.clone(),
        node_id: String::from("n1"),
        ..Default::default()
    };
    controller.controller_unpublish_volume(unpublish).await.unwrap();
    in_order(&traced.steps(), &written);

    let delete = pb::DeleteVolumeRequest {
        volume_id: id,
        ..Default::default()
    };
    controller.delete_volume(delete).await.unwrap();
    let mut expected = written[..3].to_vec();
    expected.extend([
        Step::Removed(image),
        synced("volumes"),
        Step::Removed(record),
        synced("volumes"),
        Step::Replied,
    ]);
    in_order(&traced.steps(), &expected);
}

fn main() {
    let has_strace = Command::new("strace")
        .arg("-V")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success());
    if !has_strace {
        eprintln!("ignored: strace is not installed, and nothing else shows the kernel's view");
    }
    let arguments = libtest_mimic::Arguments::from_args();
    let trial = libtest_mimic::Trial::test("replies_come_after_their_fsyncs", || {
        run(replies_come_after_their_fsyncs())
    });
    libtest_mimic::run(&arguments, vec![trial.with_ignored_flag(!has_strace)]).exit();
}
