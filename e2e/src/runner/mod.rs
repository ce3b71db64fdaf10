//! Runs scenarios: prepare, arm, act, settle, judge, clean.
mod act;
mod artefacts;
mod clone;
mod execute;
mod fencing;
pub mod interrupt;
mod leaders;
mod limits;
mod modify;
mod phase;
mod pinned;
mod read_only;
mod schedule;
mod second;
mod settle;

pub use execute::Runner;
pub use schedule::{WHOLE, run_all};
