//! Wrong input and trouble: one clear message, the right exit code, nothing left behind.
#![allow(clippy::unwrap_used)] // a test may end where it stands
use std::path::Path;
use std::process::{Command, Output};

/// The program with a cache of its own, and without a terminal.
fn holdfast(cache: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(words)
        .env("XDG_CACHE_HOME", cache)
        .env_remove("CI")
        .env_remove("HOLDFAST_STATE_DIR")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap()
}

/// Runs it, checks the exit code, gives what was said on stderr.
fn refused(cache: &Path, words: &[&str]) -> String {
    let output = holdfast(cache, words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let heard = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(96), "{words:?}\n{heard}\n{said}");
    assert!(output.stdout.is_empty(), "an error belongs to stderr: {heard}");
    said
}

#[test]
fn a_wrong_flag_is_named_with_the_nearest_one() {
    let cache = tempfile::tempdir().unwrap();
    let said = refused(cache.path(), &["run", "--kubernets", "1.37"]);
    assert!(
        said.contains("--kubernets") && said.contains("--kubernetes"),
        "{said}"
    );
}

#[test]
fn a_wrong_command_is_named_with_the_nearest_one() {
    let cache = tempfile::tempdir().unwrap();
    let said = refused(cache.path(), &["clustr"]);
    assert!(said.contains("cluster"), "{said}");
}

#[test]
fn a_wrong_value_is_named_with_those_that_are_right() {
    let cache = tempfile::tempdir().unwrap();
    let said = refused(cache.path(), &["cluster", "up", "--timers", "slow"]);
    assert!(said.contains("fast") && said.contains("real"), "{said}");
    let said = refused(cache.path(), &["list", "--log-level", "loud"]);
    assert!(said.contains("loud") && said.contains("\"debug\""), "{said}");
}

#[test]
fn a_wrong_minor_is_named_before_anything_is_made() {
    let cache = tempfile::tempdir().unwrap();
    let said = refused(cache.path(), &["cluster", "up", "--kubernetes", "1.73"]);
    assert!(said.contains("1.73") && said.contains("did you mean"), "{said}");
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn a_wrong_cluster_name_is_refused() {
    let cache = tempfile::tempdir().unwrap();
    let said = refused(cache.path(), &["cluster", "up", "--name", "../etc"]);
    assert!(said.contains("../etc"), "{said}");
    refused(cache.path(), &["cluster", "down", "../etc"]);
}

#[test]
fn a_name_that_is_taken_is_refused_with_the_way_out() {
    let cache = tempfile::tempdir().unwrap();
    let state = cache.path().join("holdfast/state/mine");
    std::fs::create_dir_all(&state).unwrap();
    let said = refused(cache.path(), &["cluster", "up", "--name", "mine"]);
    assert!(
        said.contains("already") && said.contains("holdfast cluster down mine"),
        "{said}"
    );
    assert!(state.exists(), "what is there stays");
}

#[test]
fn an_unknown_cluster_is_named_with_those_there_are() {
    let cache = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(cache.path().join("holdfast/state/mine")).unwrap();
    for words in [
        ["cluster", "load", "--name", "other", "image"].as_slice(),
        &["cluster", "down", "other"],
        &["cluster", "logs", "--name", "other"],
    ] {
        let said = refused(cache.path(), words);
        assert!(said.contains("other") && said.contains("mine"), "{said}");
    }
}

#[test]
fn a_half_made_cluster_is_shown_with_the_way_out() {
    let cache = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(cache.path().join("holdfast/state/mine")).unwrap();
    let output = holdfast(cache.path(), &["cluster", "status"]);
    let heard = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && heard.contains("holdfast cluster down mine"),
        "{heard}"
    );
}

#[test]
fn the_cache_is_not_pruned_below_a_cluster() {
    let cache = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(cache.path().join("holdfast/state/mine")).unwrap();
    std::fs::create_dir_all(cache.path().join("holdfast/bin")).unwrap();
    let said = refused(cache.path(), &["cache", "prune"]);
    assert!(said.contains("mine"), "{said}");
    std::fs::remove_dir(cache.path().join("holdfast/state/mine")).unwrap();
    assert!(holdfast(cache.path(), &["cache", "prune"]).status.success());
    assert!(!cache.path().join("holdfast/bin").exists());
}

#[test]
fn help_version_and_completions_are_no_errors() {
    let cache = tempfile::tempdir().unwrap();
    for words in [
        ["--help"].as_slice(),
        &["--version"],
        &["run", "--help"],
        &["completions", "bash"],
    ] {
        let output = holdfast(cache.path(), words);
        assert!(output.status.success() && !output.stdout.is_empty(), "{words:?}");
    }
}

#[test]
fn an_unknown_scenario_is_named_with_the_nearest_one() {
    let cache = tempfile::tempdir().unwrap();
    let said = refused(cache.path(), &["run", "lifecycle-ext5"]);
    assert!(
        said.contains("lifecycle-ext5") && said.contains("lifecycle-ext4"),
        "{said}"
    );
}

#[test]
fn labels_that_no_scenario_has_select_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let output = holdfast(cache.path(), &["run", "--label", "no-such-label"]);
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn a_folder_without_a_run_cannot_be_replayed() {
    let cache = tempfile::tempdir().unwrap();
    let said = refused(cache.path(), &["replay", "/nowhere", "--scenario", "x"]);
    assert!(said.contains("/nowhere/run.json"), "{said}");
}

#[test]
fn leaks_are_counted_only_on_a_cluster_that_is_there() {
    let cache = tempfile::tempdir().unwrap();
    let said = refused(cache.path(), &["leaks"]);
    assert!(said.contains("no cluster is called holdfast"), "{said}");
    let said = refused(cache.path(), &["leaks", "--on", "mine"]);
    assert!(said.contains("no cluster is called mine"), "{said}");
    let said = refused(cache.path(), &["leaks", "--kubeconfig", "/nowhere/config"]);
    assert!(said.contains("--kubeconfig /nowhere/config"), "{said}");
    refused(cache.path(), &["leaks", "--on", "mine", "--context", "other"]);
}

#[test]
fn every_scenario_is_listed_with_its_purpose() {
    let cache = tempfile::tempdir().unwrap();
    let output = holdfast(cache.path(), &["list"]);
    let heard = String::from_utf8_lossy(&output.stdout).into_owned();
    let files = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios"))
        .unwrap()
        .count();
    assert_eq!(
        (output.status.code(), heard.lines().count()),
        (Some(0), files),
        "{heard}"
    );
}
