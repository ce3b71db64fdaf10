//! From text to a scenario.
use std::path::{Path, PathBuf};

use super::spec::Scenario;
use crate::yaml::{self, YamlError};

/// Why the catalogue cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The text is wrong.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// The file or folder cannot be read.
    #[error("{path} cannot be read")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The name in the file is not the file's.
    #[error(
        "{path}: the name is {name:?}; a scenario is called as its file is, or cannot be found by its name"
    )]
    Name {
        /// Which.
        path: PathBuf,
        /// The name.
        name: String,
    },
}

/// One scenario.
///
/// # Errors
/// Those of [`ScenarioError`]; a wrong text names line, field and the nearest valid name.
pub fn load(path: &Path) -> Result<Scenario, ScenarioError> {
    let text = std::fs::read_to_string(path).map_err(|source| ScenarioError::File {
        path: path.to_owned(),
        source,
    })?;
    let scenario: Scenario = yaml::parse(path, &text)?;
    if path.file_stem().and_then(|s| s.to_str()) != Some(scenario.name.as_str()) {
        return Err(ScenarioError::Name {
            path: path.to_owned(),
            name: scenario.name,
        });
    }
    Ok(scenario)
}

/// Every scenario of `folder`, by name.
///
/// # Errors
/// Those of [`load`].
pub fn catalogue(folder: &Path) -> Result<Vec<Scenario>, ScenarioError> {
    let file = |source| ScenarioError::File {
        path: folder.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(file)? {
        let path = entry.map_err(file)?.path();
        if path.extension().is_some_and(|e| e == "yaml") {
            paths.push(path);
        }
    }
    paths.sort();
    paths.iter().map(|path| load(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Scenario, YamlError> {
        yaml::parse(Path::new("x.yaml"), text)
    }

    #[test]
    fn a_misspelt_field_names_its_line_and_the_nearest() {
        let error = parse("name: x\nwhy: y\nworkload: { kind: lifecycle }\nlables: [a]\n").unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains("x.yaml:4") && said.contains("lables") && said.contains("labels"),
            "{said}"
        );
    }

    #[test]
    fn an_unknown_workload_is_an_error() {
        assert!(parse("name: x\nwhy: y\nworkload: { kind: lifecicle }\n").is_err());
    }
}
