//! docs/conformance.md names only tests that exist, and every method of the API.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn document() -> String {
    std::fs::read_to_string(root().join("../docs/conformance.md")).unwrap()
}

/// Every `place::test` of the document.
fn named(document: &str) -> BTreeSet<(String, String)> {
    document
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|word| word.split_once("::"))
        .filter(|(place, _)| *place != "file" && *place != "file.rs")
        .map(|(place, test)| (place.to_owned(), test.to_owned()))
        .collect()
}

/// The text of a file of tests with what lies in its folder, or of a source file.
fn text(place: &str) -> Option<String> {
    if place.ends_with(".rs") {
        return std::fs::read_to_string(root().join("src").join(place)).ok();
    }
    ["privileged", "unprivileged"].iter().find_map(|program| {
        let file = root().join("tests").join(program).join(place);
        let mut text = std::fs::read_to_string(file.with_extension("rs")).ok()?;
        for part in std::fs::read_dir(file).into_iter().flatten().flatten() {
            text.push_str(&std::fs::read_to_string(part.path()).unwrap());
        }
        Some(text)
    })
}

/// A test is a function with an attribute of one, or a name in a list of cases.
fn has(text: &str, test: &str) -> bool {
    let case = text
        .split("fn cases()")
        .skip(1)
        .any(|cases| cases.contains(&format!("\"{test}\"")));
    let function = text.match_indices(&format!("fn {test}(")).any(|(at, _)| {
        let item = text[..at].rsplit("\n\n").next().unwrap_or("");
        ["#[test]", "#[tokio::test", "#[rstest]"]
            .iter()
            .any(|attribute| item.contains(attribute))
    });
    case || function
}

#[test]
fn every_test_that_is_named_exists() {
    let named = named(&document());
    assert!(named.len() > 60, "only {} tests are named", named.len());
    let missing: Vec<_> = named
        .iter()
        .filter(|(place, test)| !text(place).is_some_and(|text| has(&text, test)))
        .collect();
    assert!(missing.is_empty(), "named, and not there: {missing:#?}");
    assert!(!has(&text("controller").unwrap(), "a_test_that_nobody_wrote"));
}

#[test]
fn every_row_names_a_test_and_every_method_has_a_row() {
    let document = document();
    let rows: Vec<_> = document
        .lines()
        .filter(|line| line.starts_with("| ") && !line.contains("| Tests |"))
        .collect();
    for row in &rows {
        let tests = row.trim_end_matches(" |").rsplit("| ").next().unwrap();
        assert!(
            tests.contains("::") || tests.contains("driver/tests/crash"),
            "a row without a test: {row}"
        );
    }
    let pool = prost_reflect::DescriptorPool::decode(holdfast_proto::DESCRIPTORS).unwrap();
    let services = pool.services().filter(|s| s.full_name().starts_with("csi.v1."));
    let methods: Vec<_> = services
        .flat_map(|service| service.methods().map(|m| m.name().to_owned()).collect::<Vec<_>>())
        .collect();
    let words: BTreeSet<_> = rows
        .iter()
        .flat_map(|row| row.split(|c: char| !c.is_alphanumeric()))
        .collect();
    let missing: Vec<_> = methods.iter().filter(|m| !words.contains(m.as_str())).collect();
    assert!(missing.is_empty(), "in no row: {missing:?}");
}
