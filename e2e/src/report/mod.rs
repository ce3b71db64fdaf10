//! What is told of a run: made of its events alone.
mod fold;
mod github;
mod junit;
mod terminal;

pub use fold::{Row, Summary, fold};
pub use github::markdown;
pub use junit::junit;
pub use terminal::{CLUSTER_STEP, DRIVER_STEP, failure, line, total};
