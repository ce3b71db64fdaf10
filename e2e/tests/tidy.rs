//! What decays unseen: the directions of imports, verdicts without I/O, and the places that own a dangerous thing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms of the suite, highest first; a room may use what stands in a lower row, never its own row or a higher one.
const E2E_ROWS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["runner"],
    &["scenario"],
    &["workload", "fault"],
    &["cluster", "subject", "co_model"],
    &["interposer"],
    &["history", "ledger"],
    &["command", "progress", "retry"],
    &["id", "clock", "yaml"],
];

/// Rooms beside the rows: a verdict or a report can be made again from a run folder alone.
const VERDICTS: &[&str] = &["invariant", "report"];
const VERDICTS_MAY_USE: &[&str] = &["history", "ledger", "id", "clock"];
/// Who may call them.
const VERDICT_CALLERS: &[(&str, &[&str])] = &[("invariant", &["runner"]), ("report", &["cli"])];

/// Rooms of the driver, highest first.
const DRIVER_ROWS: &[&[&str]] = &[
    &["main"],
    &["server"],
    &[
        "identity",
        "controller",
        "group_controller",
        "snapshot_metadata",
        "node",
        "registration",
    ],
    &["inspect"],
    &["health", "recover"],
    &["volume", "guard", "request"],
    &["error"],
    &["kernel", "socket"],
    &["config", "redact", "id", "failpoint", "metrics"],
];

/// What reaches outside the process; no verdict may name it.
const IO_WORDS: &[&str] = &[
    "std::fs",
    "tokio::fs",
    "std::net",
    "tokio::net",
    "std::process",
    "tokio::process",
    "std::env::",
    "kube::",
    "bollard",
    "File::open",
    "File::create",
    "OpenOptions",
    "println!",
    "eprintln!",
    "print!",
    "stdout()",
    "stderr()",
];

/// Files in which `unsafe` may stand, because a kernel call has no safe wrapper.
const UNSAFE_FILES: &[&str] = &[
    "driver/src/kernel/linux.rs",
    "e2e/src/subject/tracer.rs",
    "e2e/src/subject/namespace.rs",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every Rust file below `crate_dir`/src as (path from the repository's root, room, code without comments and tests).
fn sources(crate_dir: &str) -> Vec<(String, String, String)> {
    let src = root().join(crate_dir).join("src");
    let mut found = Vec::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let inside = path.strip_prefix(&src).unwrap();
                let room = inside
                    .components()
                    .next()
                    .unwrap()
                    .as_os_str()
                    .to_string_lossy()
                    .replace(".rs", "");
                let name = format!("{crate_dir}/src/{}", inside.display());
                found.push((name, room, code(&fs::read_to_string(&path).unwrap())));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no source below {}", src.display());
    found
}

/// The text without line comments and without the test module that ends a file.
fn code(text: &str) -> String {
    let body = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    body.lines()
        .map(|line| line.split("//").next().unwrap_or(""))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The rooms that `code` names: `crate::room`, `crate::{room, room::x}`, and the crate's own name from main.rs.
fn rooms_used(code: &str, crate_name: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for prefix in ["crate::", &format!("{crate_name}::")] {
        for (at, _) in code.match_indices(prefix) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let rest = &code[at + prefix.len()..];
            if let Some(group) = rest.strip_prefix('{') {
                rooms.extend(heads_of_group(group));
            } else {
                rooms.insert(identifier(rest));
            }
        }
    }
    rooms.remove("");
    rooms
}

/// First words of a use group whose opening brace is already eaten.
fn heads_of_group(group: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let mut depth = 1;
    let mut expect = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => expect = true,
            c if expect && (c.is_alphabetic() || c == '_') => {
                heads.push(identifier(&group[at..]));
                expect = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

fn identifier(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

fn row(rows: &[&[&str]], room: &str) -> Option<usize> {
    rows.iter().position(|r| r.contains(&room))
}

/// Edges of a crate that its rows do not allow, as sentences.
fn wrong_edges(crate_dir: &str, crate_name: &str, rows: &[&[&str]]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (file, room, code) in sources(crate_dir) {
        if room == "lib" {
            continue;
        }
        let known = row(rows, &room).is_some() || VERDICTS.contains(&room.as_str());
        if !known {
            wrong.push(format!(
                "{file}: room {room} has no row; give it one here and in docs/architecture.md"
            ));
            continue;
        }
        for used in rooms_used(&code, crate_name) {
            if !allowed(rows, &room, &used) {
                wrong.push(format!("{file}: {room} may not use {used}"));
            }
        }
    }
    wrong
}

fn allowed(rows: &[&[&str]], room: &str, used: &str) -> bool {
    if used == room {
        return true;
    }
    if VERDICTS.contains(&room) {
        return VERDICTS_MAY_USE.contains(&used);
    }
    if let Some((_, callers)) = VERDICT_CALLERS.iter().find(|(verdict, _)| *verdict == used) {
        return callers.contains(&room);
    }
    match (row(rows, room), row(rows, used)) {
        (Some(from), Some(to)) => to > from,
        // An item of the crate's root, such as a constant, is no room.
        (_, None) => true,
        (None, Some(_)) => false,
    }
}

fn assert_none(what: &str, lines: Vec<String>) {
    assert!(lines.is_empty(), "{what}:\n  {}", lines.join("\n  "));
}

#[test]
fn rooms_of_the_suite_import_downwards_only() {
    assert_none("wrong imports", wrong_edges("e2e", "holdfast_e2e", E2E_ROWS));
}

#[test]
fn rooms_of_the_driver_import_downwards_only() {
    assert_none(
        "wrong imports",
        wrong_edges("driver", "holdfast_driver", DRIVER_ROWS),
    );
}

#[test]
fn driver_and_suite_share_proto_only() {
    let e2e = fs::read_to_string(root().join("e2e/Cargo.toml")).unwrap();
    let driver = fs::read_to_string(root().join("driver/Cargo.toml")).unwrap();
    assert!(!e2e.contains("holdfast-driver"), "e2e must not link the driver");
    assert!(
        !driver.contains("holdfast-e2e"),
        "the driver must not link the suite"
    );
}

#[test]
fn verdicts_and_reports_do_no_io() {
    let mut wrong = Vec::new();
    for (file, room, code) in sources("e2e") {
        if VERDICTS.contains(&room.as_str()) {
            wrong.extend(
                IO_WORDS
                    .iter()
                    .filter(|w| code.contains(*w))
                    .map(|w| format!("{file}: {w}")),
            );
        }
    }
    assert_none("I/O in a verdict", wrong);
}

#[test]
fn unsafe_stands_only_where_the_kernel_is_called() {
    let mut wrong = Vec::new();
    for (file, _, code) in sources("driver")
        .into_iter()
        .chain(sources("e2e"))
        .chain(sources("proto"))
    {
        let used = code
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .any(|word| word == "unsafe");
        if used && !UNSAFE_FILES.contains(&file.as_str()) {
            wrong.push(file);
        }
    }
    assert_none("unsafe code", wrong);
}

#[test]
fn unmaintained_crates_stay_behind_one_module_each() {
    let mut wrong = Vec::new();
    for (file, _, code) in sources("e2e").into_iter().chain(sources("driver")) {
        for (word, owner) in [
            ("serde_yaml::", "e2e/src/yaml.rs"),
            ("backoff::", "e2e/src/retry.rs"),
        ] {
            if file != owner && code.contains(word) {
                wrong.push(format!("{file}: {word} belongs to {owner}"));
            }
        }
    }
    assert_none("crates out of their module", wrong);
}

#[test]
fn a_use_group_names_every_room_in_it() {
    let code = "use crate::{\n  cluster::{Cluster, wait},\n  id::RunId,\n};\nfn f() { crate::clock::now(); }";
    let rooms: Vec<_> = rooms_used(code, "holdfast_e2e").into_iter().collect();
    assert_eq!(rooms, ["clock", "cluster", "id"]);
}

#[test]
fn an_edge_upwards_or_sideways_is_refused() {
    assert!(allowed(E2E_ROWS, "runner", "scenario"));
    assert!(!allowed(E2E_ROWS, "scenario", "runner"), "upwards");
    assert!(!allowed(E2E_ROWS, "workload", "fault"), "sideways");
    assert!(
        !allowed(E2E_ROWS, "report", "cluster"),
        "a report reads history and ledger only"
    );
    assert!(
        !allowed(E2E_ROWS, "runner", "report"),
        "a report is made by the command line"
    );
}
