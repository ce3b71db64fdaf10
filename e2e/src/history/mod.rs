//! What happened: one stream of events, on disk before anything is made of it.
mod event;
mod query;
mod reader;
mod writer;

pub use event::{Change, Event, Outcome, What};
pub use query::{Owned, Seen, Step, Transition, objects, owned_by, transitions};
pub use reader::{HistoryError, read};
pub use writer::Recorder;
