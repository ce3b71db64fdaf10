//! The command lines of `inspect` and `repair`, and what they print.
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Parser, Subcommand};

use super::odd::Repair;
use super::report::Report;
use crate::volume::store::Store;

/// The command line of the tools beside the services.
#[derive(Clone, Debug, Parser)]
#[command(name = "holdfast-driver", version)]
pub struct Args {
    #[command(subcommand)]
    tool: Tool,
}

#[derive(Clone, Debug, Subcommand)]
enum Tool {
    /// Show what exists, what is in flight and what is odd; changes nothing
    Inspect {
        /// Folder that holds volumes
        #[arg(long, env = "HOLDFAST_DATA_DIR")]
        data_dir: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Finish or undo what crashes left; a volume that somebody works on is left to him
    #[command(group(ArgGroup::new("how").required(true)))]
    Repair {
        /// Folder that holds volumes
        #[arg(long, env = "HOLDFAST_DATA_DIR")]
        data_dir: PathBuf,
        /// Only say what would be done
        #[arg(long, group = "how")]
        dry_run: bool,
        /// Do it
        #[arg(long, group = "how")]
        apply: bool,
    },
}

/// Does what the command line says, and returns what is to be printed.
///
/// # Errors
/// If the folder cannot be read.
pub fn run(args: Args) -> anyhow::Result<String> {
    match args.tool {
        Tool::Inspect { data_dir, json } => {
            let report = Report::of(&open(&data_dir)?)?;
            Ok(if json {
                serde_json::to_string_pretty(&report)?
            } else {
                report.text()
            })
        }
        Tool::Repair { data_dir, apply, .. } => {
            let store = open(&data_dir)?;
            let report = Report::of(&store)?;
            let mut lines = Vec::new();
            for odd in &report.odd {
                let done = match (odd.repair, apply) {
                    (Repair::Nothing, _) => String::from("left alone"),
                    (repair, false) => format!("would {}", repair.verb()),
                    (repair, true) => match odd.repair(&store) {
                        Ok(true) => format!("done: {}", repair.verb()),
                        Ok(false) => String::from("left alone: somebody works on it now"),
                        Err(error) => format!("failed: {}", error.message()),
                    },
                };
                lines.push(format!("{}: {}: {done}", odd.file, odd.what));
            }
            if lines.is_empty() {
                lines.push(String::from("nothing is odd"));
            }
            Ok(lines.join("\n"))
        }
    }
}

/// A folder that is there: to look at one must not make it.
fn open(data_dir: &Path) -> anyhow::Result<Store> {
    anyhow::ensure!(
        data_dir.join("volumes").is_dir(),
        "{} is no data folder: it has no volumes in it",
        data_dir.display()
    );
    Ok(Store::open(data_dir)?)
}
