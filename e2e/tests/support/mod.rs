//! What tests with requirements of their machine share.
//!
//! libtest cannot skip at run time, so these tests bring their own main by libtest-mimic. A case whose requirement is
//! absent is reported as ignored and its kind says why. With `CI=true` and root the suite installs what it needs, and an
//! absent requirement is a failure.
#![allow(dead_code, unreachable_pub)] // each test file uses its part

pub mod api_proxy;
pub mod array;
pub mod docker;
pub mod tools;

use std::path::PathBuf;

use libtest_mimic::{Failed, Trial};

/// A requirement that was looked for: what was found, or why it is not there.
pub type Found<T> = Result<T, String>;

/// A case that runs with what was found, or says why it cannot.
pub fn trial<T: Clone + Send + 'static>(
    name: &str,
    found: &Found<T>,
    run: impl FnOnce(T) -> Result<(), Failed> + Send + 'static,
) -> Trial {
    match found.clone() {
        Ok(value) => Trial::test(name, move || run(value)),
        Err(reason) if is_strict() => Trial::test(name, move || {
            Err(format!("must be here with CI=true and root: {reason}").into())
        }),
        Err(reason) => {
            let kind = reason.clone();
            Trial::test(name, move || Err(reason.into()))
                .with_kind(kind)
                .with_ignored_flag(true)
        }
    }
}

/// Whether an absent requirement is a failure.
pub fn is_strict() -> bool {
    std::env::var("CI").is_ok_and(|ci| ci == "true") && is_root()
}

/// Whether this process may mount and make devices.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The clone that these tests were built in.
pub fn root() -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Turns a failed check into the message of its case.
pub fn check(holds: bool, message: impl FnOnce() -> String) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(message().into()) }
}

/// An error with all its causes, on one line.
pub fn chain(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
