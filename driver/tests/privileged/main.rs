//! T1: the real driver process behind its socket, with real files, loop devices and mounts. One program, since each takes seconds
//! to link, and most cases wait, which they do beside each other.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]
mod clone;
#[allow(dead_code)] // each program uses its part
#[path = "../common/mod.rs"]
mod common;
mod concurrency;
mod durable;
mod expand_and_stats;
mod fencing;
mod node;
mod operations;
mod publish;
mod safety;
mod stage;
mod torn;

use common::{Case, needs};
use libtest_mimic::{Arguments, Trial};

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(4);
    let no_volumes = needs::are_ignored(needs::FILESYSTEMS);
    let no_trace = needs::are_ignored(&[needs::STRACE]);
    let files: [(&str, bool, Vec<Case>); 11] = [
        ("clone", no_volumes, clone::cases()),
        ("concurrency", no_volumes, concurrency::cases()),
        ("durable", no_volumes || no_trace, durable::cases()),
        ("expand_and_stats", no_volumes, expand_and_stats::cases()),
        ("fencing", no_volumes, fencing::cases()),
        ("node", no_volumes, node::cases()),
        ("operations", no_volumes, operations::cases()),
        ("publish", no_volumes, publish::cases()),
        ("safety", no_volumes, safety::cases()),
        ("stage", no_volumes, stage::cases()),
        ("torn", no_volumes, torn::cases()),
    ];
    let mut trials = Vec::new();
    for (file, ignored, cases) in files {
        for (name, body) in cases {
            trials.push(Trial::test(format!("{file}::{name}"), body).with_ignored_flag(ignored));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}
