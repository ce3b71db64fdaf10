//! The one binary `holdfast`.
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use holdfast_e2e::cli::args::{Cli, Command};
use holdfast_e2e::cli::exit::Exit;
use holdfast_e2e::cli::{cluster, doctor, image, io, leaks, list, run};
use holdfast_e2e::cluster::{ClusterError, docker};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A reader that went away is no error.
            let _ = error.print();
            return if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Passed
            }
            .into();
        }
    };
    listen(cli.log_level);
    let ended = dispatch(cli.command).await;
    // By now nothing of this process uses the private daemon; in pods and for most commands there is none.
    let ended = match docker::stop_unused().await {
        Ok(()) => ended,
        Err(error) => ended.and(Err(error.into())),
    };
    match ended {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  because: {cause}");
            }
            exit_of(&error).into()
        }
    }
}

/// Lets this crate's own log be seen; what libraries say may hold what is secret.
fn listen(level: LevelFilter) {
    let own = Targets::new().with_target("holdfast_e2e", level);
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines.with_filter(own)).init();
}

async fn dispatch(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Doctor(args) if args.install.is_empty() => doctor::doctor().await,
        Command::Doctor(args) => doctor::install(&args).await,
        Command::Cluster(command) => cluster::cluster(command).await,
        Command::Cache(command) => cluster::cache(command).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "holdfast", &mut std::io::stdout());
            Ok(Exit::Passed)
        }
        Command::List(args) => list::list(&args),
        Command::Run(args) => run::run(args).await,
        Command::Replay(args) => run::replay(args).await,
        Command::Leaks(args) => leaks::leaks(&args).await,
        Command::Image { file } => image::image(&file).await,
        Command::Io(command) => io::io(command).await,
    }
}

/// What is wrong with the input or the machine is the user's to mend; a program that failed is not.
fn exit_of(error: &anyhow::Error) -> Exit {
    match error.downcast_ref::<ClusterError>() {
        Some(
            ClusterError::Command { .. }
            | ClusterError::Api { .. }
            | ClusterError::Unreachable { .. }
            | ClusterError::Wait(_),
        ) => Exit::Infrastructure,
        Some(ClusterError::File { .. } | ClusterError::Yaml(_) | ClusterError::Setup(_)) | None => {
            Exit::Usage
        }
    }
}
