//! `holdfast io`: the writer, the verifier and the lookout, inside pods.
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::args::{IoArgs, IoCommand};
use super::exit::Exit;
use crate::cluster::facts;
use crate::cluster::kubelet::{self, KUBELET};
use crate::cluster::lookout::Sight;
use crate::workload::blocks::{self, Writer};

/// Runs one of them.
///
/// # Errors
/// If the file or device cannot be read or written.
pub async fn io(command: IoCommand) -> anyhow::Result<Exit> {
    match command {
        IoCommand::Write(args) => write(&args).await,
        IoCommand::Verify(args) => {
            let report = blocks::verify(&args.path)
                .with_context(|| format!("{} cannot be read", args.path.display()))?;
            println!("{}", serde_json::to_string(&report)?);
            Ok(Exit::Passed)
        }
        IoCommand::Look => {
            println!("{}", serde_json::to_string(&look()?)?);
            Ok(Exit::Passed)
        }
        IoCommand::Stay => {
            signal(SignalKind::terminate())?.recv().await;
            Ok(Exit::Passed)
        }
    }
}

/// What the node that this runs on shows, from a pod that has the node's processes and kubelet's folder.
fn look() -> anyhow::Result<Sight> {
    let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("{path} cannot be read"));
    let used =
        |(number, backing, read_only): (u32, Option<String>, bool)| Some((number, backing?, read_only));
    Ok(Sight {
        kernel: read("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
        mountinfo: read("/proc/1/mountinfo")?,
        kubelet: kubelet::list(Path::new("/"), Path::new(KUBELET))
            .with_context(|| format!("{KUBELET} cannot be read"))?,
        loops: facts::sysfs()?.into_iter().filter_map(used).collect(),
    })
}

/// Writes until enough is written, then stays until it is told to end.
async fn write(args: &IoArgs) -> anyhow::Result<Exit> {
    let mut end = signal(SignalKind::terminate())?;
    if args.blocks == Some(0) {
        // Whoever only reads opens nothing: a volume that may only be read could not be opened for writing.
        end.recv().await;
        return Ok(Exit::Passed);
    }
    let mut writer = Writer::open(&args.path, &args.writer)
        .with_context(|| format!("{} cannot be opened", args.path.display()))?;
    // The reader of the log may be gone; the blocks are on disk all the same.
    let say = |line: String| drop(writeln!(std::io::stdout(), "{line}"));
    say(blocks::beginning(writer.blocks()));
    let mut ticks = tokio::time::interval(Duration::from_millis(args.interval_ms.max(1)));
    let mut left = args.blocks.unwrap_or(u64::MAX);
    loop {
        tokio::select! {
            _ = end.recv() => return Ok(Exit::Passed),
            _ = ticks.tick(), if left > 0 => {
                let number = writer.append().with_context(|| format!("{} cannot be written", args.path.display()))?;
                left -= 1;
                say(blocks::acknowledgement(number));
            }
        }
    }
}
