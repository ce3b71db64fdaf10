//! What happened: one stream of events, on disk before anything is made of it.
mod event;
mod reader;
mod writer;

pub use event::{Event, Outcome, VolumeState, What};
pub use reader::{HistoryError, read};
pub use writer::Recorder;
