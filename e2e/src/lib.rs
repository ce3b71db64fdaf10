//! Boots real clusters, injects failovers, and counts what is left.
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod command;
pub mod fault;
pub mod history;
pub mod id;
pub mod invariant;
pub mod ledger;
pub mod progress;
pub mod report;
pub mod retry;
pub mod runner;
pub mod scenario;
pub mod workload;
pub mod yaml;
