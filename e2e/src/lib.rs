//! Boots real clusters, injects failovers, and counts what is left.
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod command;
pub mod id;
pub mod progress;
pub mod retry;
pub mod yaml;
