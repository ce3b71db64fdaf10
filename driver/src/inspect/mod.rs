//! `holdfast-driver inspect` and `repair`: what is in a data folder, what is odd about it, and what can be done.
mod command;
mod odd;
mod report;

pub use command::{Args, run};
