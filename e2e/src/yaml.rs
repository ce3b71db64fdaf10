//! The only user of the YAML library. An error names file, line and the nearest name that would have been right.
use std::path::Path;

use serde::de::DeserializeOwned;

/// Why a text is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("{file}:{line}: {message}{hint}")]
pub struct YamlError {
    /// The file as the user named it.
    pub file: String,
    /// The line, counted from 1; 0 if unknown.
    pub line: usize,
    /// What is wrong.
    pub message: String,
    hint: String,
}

/// Reads a text of the file `file`; unknown names are errors where `T` says so.
///
/// # Errors
/// With line and nearest name.
pub fn parse<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, YamlError> {
    serde_yaml::from_str(text).map_err(|error| {
        let whole = error.to_string();
        let line = error.location().map_or(0, |at| at.line());
        let message = whole.split(" at line ").next().unwrap_or(&whole).to_owned();
        let hint = hint(&message);
        YamlError {
            file: file.display().to_string(),
            line,
            message,
            hint,
        }
    })
}

/// Writes a value.
///
/// # Errors
/// If it cannot be said in YAML.
pub fn print<T: serde::Serialize>(value: &T) -> Result<String, YamlError> {
    serde_yaml::to_string(value).map_err(|error| YamlError {
        file: String::from("output"),
        line: 0,
        message: error.to_string(),
        hint: String::new(),
    })
}

/// Of "unknown field `x`, expected one of `a`, `b`": the one that looks most like `x`.
fn hint(message: &str) -> String {
    if !message.contains("unknown ") {
        return String::new();
    }
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match names.split_first() {
        Some((wrong, valid)) => nearest(wrong, valid.iter().copied())
            .map_or_else(String::new, |name| format!("; did you mean `{name}`?")),
        None => String::new(),
    }
}

/// The candidate that differs from `word` in the fewest letters, if it is near at all.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .min_by_key(|(far, _)| *far)
        .filter(|(far, candidate)| *far <= 1 + word.len().max(candidate.len()) / 3)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let best = (corner + usize::from(x != *y))
                .min(row[j] + 1)
                .min(row[j + 1] + 1);
            corner = row[j + 1];
            row[j + 1] = best;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[allow(dead_code)]
        digest: String,
        #[allow(dead_code)]
        version: String,
    }

    #[test]
    fn an_unknown_name_is_shown_with_file_line_and_the_nearest_one() {
        let error = parse::<Sample>(Path::new("a.yaml"), "version: x\ndigets: y\n").unwrap_err();
        assert_eq!((error.file.as_str(), error.line), ("a.yaml", 2));
        assert!(error.to_string().contains("`digets`"), "{error}");
        assert!(error.to_string().ends_with("did you mean `digest`?"), "{error}");
    }

    #[test]
    fn a_missing_name_is_named() {
        let error = parse::<Sample>(Path::new("a.yaml"), "version: x\n").unwrap_err();
        assert!(error.to_string().contains("digest"), "{error}");
    }
}
