//! Reads a run's events back.
use std::path::{Path, PathBuf};

use super::event::Event;

/// Why a history cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file is missing or cannot be read.
    #[error("{path} cannot be read or written")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is no event.
    #[error("{path}:{line}: no event")]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
}

/// Every event of `path`, in order. The last line may be cut where the tool was killed; it is left out then.
///
/// # Errors
/// Those of [`HistoryError`].
pub fn read(path: &Path) -> Result<Vec<Event>, HistoryError> {
    let text = std::fs::read_to_string(path).map_err(|source| HistoryError::File {
        path: path.to_owned(),
        source,
    })?;
    let whole = text.ends_with('\n');
    let lines: Vec<_> = text.lines().collect();
    let mut events = Vec::with_capacity(lines.len());
    for (index, line) in lines.iter().enumerate() {
        match serde_json::from_str(line) {
            Ok(event) => events.push(event),
            Err(_) if !whole && index + 1 == lines.len() => {}
            Err(source) => {
                return Err(HistoryError::Line {
                    path: path.to_owned(),
                    line: index + 1,
                    source,
                });
            }
        }
    }
    Ok(events)
}
