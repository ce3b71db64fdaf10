//! Runs scenarios: prepare, arm, act, settle, judge, clean.
mod act;
mod artefacts;
mod execute;
pub mod interrupt;
mod phase;
mod schedule;
mod settle;

pub use execute::Runner;
pub use schedule::run_all;
