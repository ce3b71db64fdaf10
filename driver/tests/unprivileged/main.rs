//! What every user can test: the rules that need no mount, on the real process behind its socket, and what is written of it.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm
)]
#[allow(dead_code)] // each program uses its part
#[path = "../common/mod.rs"]
mod common;
mod conformance;
mod controller;
mod release;
mod requests;
