//! How an image that is made here fails, and the calls that fail so.
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command::{self, Command, CommandError};

/// The bound of one step that builds nothing.
pub(super) const LIMIT_STEP: Duration = Duration::from_secs(120);

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A program that belongs into the image is not on this machine.
    #[error("{program} is not on this machine; install {package}")]
    Missing {
        /// What was looked for.
        program: String,
        /// Debian's package that holds it.
        package: &'static str,
    },
    /// The dynamic linker would not find a library either.
    #[error("{program} needs {library}, which is not on this machine")]
    Library {
        /// Whose library.
        program: PathBuf,
        /// The name as the linker knows it.
        library: String,
    },
    /// Cargo ended well but named no program.
    #[error("cargo built no holdfast-driver program")]
    NoDriver,
    /// The compiler did not say what it builds for.
    #[error("rustc -vV names no host")]
    NoHost,
    /// A file of the image could not be read or written.
    #[error("{path}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The archive could not be written.
    #[error("the image's archive cannot be written")]
    Archive {
        /// Why.
        source: Box<super::ClusterError>,
    },
    /// A command of the build failed.
    #[error("{step} failed")]
    Command {
        /// What was being done.
        step: &'static str,
        /// How the command ended.
        source: CommandError,
    },
}

pub(super) fn file_error(path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::File { path, source }
}

pub(super) async fn run(step: &'static str, spec: &Command) -> Result<String, ImageError> {
    let output = command::run(spec)
        .await
        .map_err(|source| ImageError::Command { step, source })?;
    Ok(output.stdout)
}
