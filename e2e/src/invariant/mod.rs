//! What must hold: verdicts over history and ledger, without any I/O.
mod acknowledged_data;
mod bounded_time;
mod check;
mod lifecycle;
mod no_leak;
mod one_node;
mod single_writer;

pub use check::{Finding, NAMES, judge};
pub use no_leak::as_planted;
