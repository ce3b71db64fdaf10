//! Command line tools, by the same function that the tool itself uses.
use std::path::PathBuf;

use holdfast_e2e::cluster::tools;
use holdfast_e2e::progress::Progress;

use super::Found;

/// The program of `name`: from PATH at a fitting version, else built from its pinned module into the cache.
pub fn find(name: &str) -> Found<PathBuf> {
    let runtime = tokio::runtime::Runtime::new().map_err(super::chain)?;
    runtime
        .block_on(tools::tool(name, &Progress::default()))
        .map_err(super::chain)
}
