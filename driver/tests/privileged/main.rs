//! T1: the real driver process behind its socket, with real files, loop devices and mounts. One program, since each takes its
//! time to link, and cases wait for each other's processes rather than for nothing.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]
mod clone;
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
    // Most of them wait, for a disk or for a bound.
    arguments.test_threads.get_or_insert(4);
    let on = |tools| needs::are_ignored(tools);
    let (volumes, traced) = (on(needs::FILESYSTEMS), on(&[needs::STRACE]));
    let files: [(&str, bool, Vec<Case>); 11] = [
        ("clone", volumes, clone::cases()),
        ("concurrency", volumes, concurrency::cases()),
        ("durable", volumes || traced, durable::cases()),
        ("expand_and_stats", volumes, expand_and_stats::cases()),
        ("fencing", volumes, fencing::cases()),
        ("node", volumes, node::cases()),
        ("operations", volumes, operations::cases()),
        ("publish", volumes, publish::cases()),
        ("safety", volumes, safety::cases()),
        ("stage", volumes, stage::cases()),
        ("torn", volumes, torn::cases()),
    ];
    let mut trials = Vec::new();
    for (file, ignored, cases) in files {
        for (name, body) in cases {
            trials.push(Trial::test(format!("{file}::{name}"), body).with_ignored_flag(ignored));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}
