//! The command line: what was typed, what each command does, how it ends.
pub mod args;
pub mod cluster;
pub mod doctor;
pub mod exit;
pub mod image;
pub mod io;
mod job;
pub mod leaks;
pub mod list;
pub mod run;
mod target;
