//! Appends events, each flushed before the next thing happens, and hands them to whoever shows them.
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::event::{Event, What};
use super::reader::HistoryError;
use crate::clock::Clock;

type Show = Box<dyn Fn(&Event) + Send + Sync>;

/// The one writer of a run's `events.jsonl`.
#[derive(Clone)]
pub struct Recorder {
    clock: Clock,
    file: Arc<Mutex<File>>,
    show: Arc<Show>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder")
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

impl Recorder {
    /// Begins `path`; every event also goes to `show`.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn create(
        path: &Path,
        clock: Clock,
        show: impl Fn(&Event) + Send + Sync + 'static,
    ) -> Result<Self, HistoryError> {
        let file = File::create(path).map_err(|source| HistoryError::File {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            clock,
            file: Arc::new(Mutex::new(file)),
            show: Arc::new(Box::new(show)),
        })
    }

    /// The run's clock.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Records what happened now.
    pub fn record(&self, scenario: Option<&str>, what: What) {
        let event = Event {
            at_ms: self.clock.now_ms(),
            scenario: scenario.map(str::to_owned),
            what,
        };
        if let (Ok(mut line), Ok(mut file)) = (serde_json::to_vec(&event), self.file.lock()) {
            line.push(b'\n');
            if let Err(error) = file.write_all(&line) {
                eprintln!("error: an event is lost, the disk may be full: {error}");
            }
        }
        (self.show)(&event);
    }
}
