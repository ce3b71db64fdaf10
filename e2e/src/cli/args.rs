//! The command line as it is typed.
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::cluster::driver::Driver;
use crate::cluster::kind::Timers;
use crate::cluster::node_image::Way;

/// On two cores more at once are no faster: each takes longer.
pub const JOBS: u32 = 4;

/// Proves on real clusters that a CSI driver loses nothing and leaks nothing across failover.
#[derive(Debug, Parser)]
#[command(
    name = "holdfast",
    version,
    about,
    propagate_version = true,
    max_term_width = 110
)]
#[command(
    after_help = "Exit codes: 0 passed, 4 nothing selected, 96 usage or set-up, 100 assertion, \
    102 infrastructure, 103 leak, 130 interrupted after cleaning up"
)]
pub struct Cli {
    /// How much the suite says beside its events: off, error, warn, info, debug or trace
    #[arg(
        long,
        global = true,
        env = "HOLDFAST_LOG_LEVEL",
        default_value = "off",
        value_name = "LEVEL"
    )]
    pub log_level: tracing::level_filters::LevelFilter,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what this machine has, lacks, and how to get it
    Doctor(DoctorArgs),
    /// List the scenarios
    List(ListArgs),
    /// Bring clusters up and down, look at them, load images into them
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Run scenarios on a cluster: the main job
    Run(RunArgs),
    /// Run one scenario again as a run folder describes it
    Replay(ReplayArgs),
    /// Count what is left of volumes on a cluster
    Leaks(LeaksArgs),
    /// Write the suite's image into a file that `docker load`, `ctr import` and `kind load image-archive` take
    Image {
        /// The file
        file: PathBuf,
    },
    /// Manage what is kept between runs
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Print the completions of a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write or verify numbered blocks; runs inside pods
    #[command(subcommand, hide = true)]
    Io(IoCommand),
}

/// What `holdfast doctor` takes.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Install the Debian packages of these programs of the list, where they are missing, and say nothing else
    #[arg(long, value_name = "PROGRAM", num_args = 1..)]
    pub install: Vec<String>,
    /// Consent to install them
    #[arg(long, requires = "install")]
    pub yes: bool,
}

/// Options that choose a cluster.
#[derive(Args, Clone, Debug)]
pub struct ClusterArgs {
    /// Minor of Kubernetes, such as 1.37; the newest that can be had by default
    #[arg(long, value_name = "MINOR")]
    pub kubernetes: Option<String>,
    /// Workers beside the control plane
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=20))]
    pub nodes: u32,
    /// fast: timers that only slow tests down are short; real: as shipped
    #[arg(long, value_enum, default_value = "fast")]
    pub timers: Timers,
    /// How the node image is had; by default pulled where a registry answers, else built
    #[arg(long, value_enum, value_name = "WAY")]
    pub node_image: Option<Way>,
    /// Consent to what would be asked
    #[arg(long, short)]
    pub yes: bool,
}

/// `cluster ...`
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Bring a cluster up; it stays until `cluster down`
    Up {
        /// Its name
        #[arg(long, default_value = "holdfast")]
        name: String,
        /// Which cluster
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Remove a cluster with everything that is its own
    Down {
        /// Its name
        #[arg(default_value = "holdfast", conflicts_with = "all")]
        name: String,
        /// Every cluster, whole or not
        #[arg(long)]
        all: bool,
    },
    /// Show clusters and whether they answer
    Status,
    /// Load images of the local Docker into every node
    Load {
        /// The cluster's name
        #[arg(long, default_value = "holdfast")]
        name: String,
        /// Images
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Write the logs of every node into a folder
    Logs {
        /// The cluster's name
        #[arg(long, default_value = "holdfast")]
        name: String,
        /// The folder
        #[arg(long, default_value = "logs")]
        output: PathBuf,
    },
}

/// `cache ...`
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Show how large each part is
    Show,
    /// Remove everything that can be made again; clusters stay
    Prune,
}

/// `list`
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Names, or parts of them
    pub names: Vec<String>,
    /// Only those with this label; may be repeated
    #[arg(long = "label", value_name = "LABEL")]
    pub labels: Vec<String>,
}

/// When a cluster stays after a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Keep {
    /// Never
    #[default]
    Never,
    /// If something failed
    Failed,
    /// Always
    Always,
}

/// Options that name a cluster that is there already.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
pub struct TargetArgs {
    /// A cluster of `cluster up`, by its name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["kubeconfig", "context"])]
    pub on: Option<String>,
    /// An existing cluster, by its kubeconfig; it is only read
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// An existing cluster, by its context
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// The driver on an existing cluster: a file, or a name of manifests/drivers
    #[arg(long, value_name = "NAME|FILE", default_value = "holdfast")]
    pub driver: String,
    /// The suite's image, as the nodes of an existing cluster can have it
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// Of an existing cluster only the API is looked at: no pod of ours looks at its nodes
    #[arg(long)]
    pub api_only: bool,
}

impl TargetArgs {
    /// The same cluster again, from whatever folder and whatever context is current by then.
    ///
    /// # Errors
    /// If there is no current folder.
    pub fn again(&self, context: &str) -> std::io::Result<Self> {
        let absolute = |path: &Path| std::path::absolute(path);
        Ok(Self {
            kubeconfig: self.kubeconfig.as_deref().map(absolute).transpose()?,
            context: Some(context.to_owned()),
            driver: match Driver::named(&self.driver) {
                Some(_) => self.driver.clone(),
                None => absolute(Path::new(&self.driver))?.display().to_string(),
            },
            ..self.clone()
        })
    }
}

/// `run`
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Scenarios by name; all by default
    pub names: Vec<String>,
    /// Only those with this label; may be repeated
    #[arg(long = "label", value_name = "LABEL")]
    pub labels: Vec<String>,
    /// Which cluster
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Where, if not on a cluster of its own
    #[command(flatten)]
    pub target: TargetArgs,
    /// Number that all chance comes from: the order of the scenarios (0: the catalogue's), and the nodes that they begin on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// When the cluster stays
    #[arg(long, value_enum, default_value = "never")]
    pub keep: Keep,
    /// Where the run folder goes; ./runs/<id> by default
    #[arg(long, short, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Scenarios at once
    #[arg(long, short, value_name = "N", default_value_t = JOBS, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub jobs: u32,
    /// How often each scenario runs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
}

/// `replay`
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// The run folder
    pub folder: PathBuf,
    /// The scenario; the first that did not pass by default
    #[arg(long, value_name = "NAME")]
    pub scenario: Option<String>,
    /// Where, if not on a cluster of its own
    #[command(flatten)]
    pub target: TargetArgs,
    /// Consent to what would be asked
    #[arg(long, short)]
    pub yes: bool,
}

/// `leaks`
#[derive(Args, Clone, Debug)]
pub struct LeaksArgs {
    /// Which cluster; `holdfast`, of `cluster up`, if none is named
    #[command(flatten)]
    pub target: TargetArgs,
    /// Consent to what would be asked
    #[arg(long, short)]
    pub yes: bool,
}

/// `io ...`
#[derive(Debug, Subcommand)]
pub enum IoCommand {
    /// Write blocks until told to stop
    Write(IoArgs),
    /// Check the blocks that are there
    Verify(IoArgs),
    /// Show what the node shows of volumes
    Look,
    /// Do nothing until told to stop
    Stay,
}

/// `io write|verify`
#[derive(Args, Clone, Debug)]
pub struct IoArgs {
    /// File or block device
    #[arg(long)]
    pub path: PathBuf,
    /// Who writes
    #[arg(long, default_value = "writer")]
    pub writer: String,
    /// Blocks to write; without end by default
    #[arg(long)]
    pub blocks: Option<u64>,
    /// Milliseconds between blocks
    #[arg(long, default_value_t = 20)]
    pub interval_ms: u64,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_name_and_all_exclude_each_other() {
        assert!(Cli::try_parse_from(["holdfast", "cluster", "down", "a", "--all"]).is_err());
    }

    #[test]
    fn a_cluster_is_found_again_from_another_folder() {
        let words = [
            "holdfast",
            "leaks",
            "--kubeconfig",
            "k.yaml",
            "--driver",
            "holdfast",
        ];
        let Command::Leaks(given) = Cli::try_parse_from(words).unwrap().command else {
            panic!("another command");
        };
        let again = given.target.again("mine").unwrap();
        assert!(again.kubeconfig.unwrap().is_absolute());
        assert_eq!(
            (again.context.as_deref(), again.driver.as_str()),
            (Some("mine"), "holdfast")
        );
    }
}
