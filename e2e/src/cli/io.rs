//! `holdfast io`: the writer and the verifier, inside pods.
use std::io::Write;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::args::{IoArgs, IoCommand};
use super::exit::Exit;
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
    }
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
