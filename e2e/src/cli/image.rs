//! `holdfast image`: the suite's image, for clusters that are not ours.
use std::path::Path;

use anyhow::Context as _;

use super::exit::Exit;
use crate::cluster::driver_image;
use crate::progress::Progress;

/// Writes the suite's image for a cluster that is not ours.
///
/// # Errors
/// If it cannot be written.
pub async fn image(file: &Path) -> anyhow::Result<Exit> {
    let executable = std::env::current_exe().context("this program's own file cannot be found")?;
    println!(
        "{}",
        driver_image::save_e2e(&executable, file, &Progress::default()).await?
    );
    Ok(Exit::Passed)
}
