//! The workflows: valid for actionlint, pinned, bounded, with the least permissions, and one gate that needs every job.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking
mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;
use support::{check, root, trial};

fn main() {
    let arguments = Arguments::from_args();
    let actionlint = if arguments.list {
        Err("not looked for".to_owned())
    } else {
        support::tools::find("actionlint")
    };
    let cases = vec![
        trial("actionlint_has_no_complaint", &actionlint, |program| {
            lint(&program)
        }),
        Trial::test("every_action_is_pinned_or_says_why_not", pinned),
        Trial::test("every_job_has_a_bound_and_the_least_permissions", bounded),
        Trial::test("the_gate_needs_every_other_job", gate),
    ];
    libtest_mimic::run(&arguments, cases).exit();
}

fn files() -> Vec<(PathBuf, String)> {
    let mut found: Vec<_> = std::fs::read_dir(root().join(".github/workflows"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read_to_string(path).unwrap()))
        .collect();
    found.sort();
    assert!(!found.is_empty());
    found
}

fn workflow(text: &str) -> Value {
    serde_yaml::from_str(text).unwrap()
}

fn lint(program: &std::path::Path) -> Result<(), Failed> {
    // Other linters are not ours to install, and must not make a difference between two machines.
    let output = Command::new(program)
        .args(["-shellcheck=", "-pyflakes="])
        .current_dir(root())
        .output()?;
    check(output.status.success(), || {
        String::from_utf8_lossy(&output.stdout).into_owned()
    })
}

fn pinned() -> Result<(), Failed> {
    for (path, text) in files() {
        for line in text
            .lines()
            .filter(|line| line.trim_start().trim_start_matches("- ").starts_with("uses:"))
        {
            let (action, comment) = line.split_once('#').unwrap_or((line, ""));
            let reference = action.trim().rsplit('@').next().unwrap();
            let by_sha = reference.len() == 40 && reference.chars().all(|c| c.is_ascii_hexdigit());
            let version_named = comment.trim().starts_with('v');
            let excused = comment
                .trim()
                .strip_prefix("unpinned: ")
                .is_some_and(|why| why.len() > 10);
            check((by_sha && version_named) || excused, || {
                format!("{}: {}", path.display(), line.trim())
            })?;
        }
    }
    Ok(())
}

fn bounded() -> Result<(), Failed> {
    for (path, text) in files() {
        let workflow = workflow(&text);
        let top = &workflow["permissions"];
        check(top == &serde_json::json!({ "contents": "read" }), || {
            format!("{}: permissions {top}", path.display())
        })?;
        for (name, job) in workflow["jobs"].as_object().unwrap() {
            let minutes = job["timeout-minutes"].as_u64();
            check(minutes.is_some_and(|m| m <= 60), || {
                format!("{}: {name} has no bound", path.display())
            })?;
            let write = job["permissions"].to_string().contains("write");
            check(!write, || format!("{}: {name} may write", path.display()))?;
        }
    }
    Ok(())
}

fn gate() -> Result<(), Failed> {
    for (path, text) in files() {
        let workflow = workflow(&text);
        // What no change starts can stop none.
        let starts = workflow["on"].as_object().unwrap();
        if !["push", "pull_request", "merge_group"]
            .iter()
            .any(|event| starts.contains_key(*event))
        {
            continue;
        }
        let jobs = workflow["jobs"].as_object().unwrap();
        let needed: BTreeSet<_> = jobs["required"]["needs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_str().unwrap())
            .collect();
        let others: BTreeSet<_> = jobs
            .keys()
            .map(String::as_str)
            .filter(|name| *name != "required")
            .collect();
        check(needed == others, || {
            format!("{}: needs {needed:?}, has {others:?}", path.display())
        })?;
        let expected = vec!["success"; others.len()].join(" ");
        check(text.contains(&format!("= \"{expected}\"")), || {
            format!("{}: the gate counts wrong", path.display())
        })?;
    }
    Ok(())
}
