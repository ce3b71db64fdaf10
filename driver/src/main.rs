//! The driver binary: arguments, logs, runtime, exit code.
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use holdfast_driver::config::{Args, Config};
use holdfast_driver::kernel::share_memory;
use holdfast_driver::{inspect, server};

/// Threads for calls; work that blocks has threads of its own.
const THREADS: usize = 2;

fn main() -> ExitCode {
    // The first word is a role or a tool.
    if std::env::args()
        .nth(1)
        .is_some_and(|word| word == "inspect" || word == "repair")
    {
        return ended(inspect::run(inspect::Args::parse()).map(|text| println!("{text}")));
    }
    share_memory();
    let args = Args::parse();
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_span_list(false)
        .with_max_level(args.log_level)
        .with_writer(std::io::stderr)
        .init();
    ended(run(args))
}

fn ended(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let config = Config::try_from(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("runtime")?;
    let result = runtime.block_on(server::serve(config));
    // Work that blocks on a device must not hold up the end: what it began, the next start finds.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(result?)
}
