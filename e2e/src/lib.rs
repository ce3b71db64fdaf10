//! Boots real clusters, injects failovers, and counts what is left.
pub mod cli;
pub mod cluster;
pub mod command;
pub mod progress;
pub mod yaml;
