//! Real clusters: what they need on the machine, how they come up, how nothing of them stays.
pub mod bring_up;
pub mod chart;
pub mod condition;
pub mod deploy;
pub mod docker;
pub mod driver;
pub mod driver_image;
pub mod existing;
pub mod facts;
pub mod host;
mod image_contents;
pub mod image_error;
pub mod images;
pub mod kind;
pub mod kubelet;
pub mod label;
mod libraries;
pub mod lookout;
pub mod news;
pub mod node;
pub mod node_image;
pub mod node_logs;
mod node_pods;
mod node_rootfs;
mod node_store;
pub mod objects;
pub mod observe;
pub mod packages;
pub mod process;
pub mod run_lock;
pub mod saying;
pub mod shared;
pub mod site;
pub mod tear_down;
pub mod tools;
pub mod versions;
pub mod wait;

use std::path::{Path, PathBuf};

/// The clone that this program was built in: charts, versions and scenarios are read from it.
pub fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"))
        .to_owned()
}

/// Where everything lives that may be made again: builds, images, the private Docker, the state of clusters.
pub fn cache_root() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
    base.unwrap_or_else(home).join("holdfast")
}

/// Where clusters keep their state, one folder each; HOLDFAST_STATE_DIR sets one job's clusters apart from all others.
pub fn state_root() -> PathBuf {
    let given = std::env::var_os("HOLDFAST_STATE_DIR").filter(|v| !v.is_empty());
    given.map_or_else(|| cache_root().join("state"), PathBuf::from)
}

/// Why a cluster, or what it needs, could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A program failed.
    #[error("{doing} failed")]
    Command {
        /// What it was to do.
        doing: String,
        /// How it ended.
        source: crate::command::CommandError,
    },
    /// A file or folder could not be read or written.
    #[error("{path}: {doing} failed")]
    File {
        /// Which one.
        path: PathBuf,
        /// What was done.
        doing: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A description is wrong.
    #[error(transparent)]
    Yaml(#[from] crate::yaml::YamlError),
    /// The API server refused, or did not answer.
    #[error("{doing} failed")]
    Api {
        /// What was asked.
        doing: &'static str,
        /// Why.
        source: Box<kube::Error>,
    },
    /// The API server of an existing cluster does not answer.
    #[error(
        "the API server of context {context}, {server}, does not answer; is the cluster up, and this the right context?"
    )]
    Unreachable {
        /// The context.
        context: String,
        /// Where it should be.
        server: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// Something did not come about in its bound.
    #[error(transparent)]
    Wait(#[from] wait::WaitError),
    /// Something is missing or in the way, and the message says what to do.
    #[error("{0}")]
    Setup(String),
}

/// Names what was being done when a program failed.
pub(crate) async fn call(doing: &str, spec: &crate::command::Command) -> Result<String, ClusterError> {
    crate::command::run(spec)
        .await
        .map(|output| output.stdout)
        .map_err(|source| ClusterError::Command {
            doing: doing.to_owned(),
            source,
        })
}

/// Names the file of an error.
pub(crate) fn at<'a>(
    path: &'a Path,
    doing: &'static str,
) -> impl FnOnce(std::io::Error) -> ClusterError + 'a {
    move |source| ClusterError::File {
        path: path.to_owned(),
        doing,
        source,
    }
}
