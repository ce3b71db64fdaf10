//! Command line tools, by the same function that the tool itself uses.
use std::path::PathBuf;

use super::Found;

/// The program of `name`: from PATH at a fitting version, else built from its pinned module into the cache.
pub fn find(name: &str) -> Found<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .ok_or_else(|| format!("no {name}"))
}
