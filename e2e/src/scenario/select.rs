//! Chooses scenarios by names and labels.
use super::spec::Scenario;
use crate::yaml::nearest;

/// What was chosen.
#[derive(Clone, Debug, PartialEq)]
pub enum Selection {
    /// These.
    Some(Vec<Scenario>),
    /// No scenario has every label.
    Nothing,
    /// A name that no scenario has; the nearest one.
    Unknown {
        /// As given.
        name: String,
        /// The nearest.
        nearest: Option<String>,
    },
}

/// Those whose name is among `names` (all, if there are none) and that have every one of `labels`.
pub fn select(all: &[Scenario], names: &[String], labels: &[String]) -> Selection {
    if let Some(name) = names.iter().find(|name| all.iter().all(|s| s.name != **name)) {
        return Selection::Unknown {
            name: name.clone(),
            nearest: nearest(name, all.iter().map(|s| s.name.as_str())).map(str::to_owned),
        };
    }
    let chosen: Vec<_> = all
        .iter()
        .filter(|s| names.is_empty() || names.contains(&s.name))
        .filter(|s| labels.iter().all(|label| s.labels.contains(label)))
        .cloned()
        .collect();
    if chosen.is_empty() {
        Selection::Nothing
    } else {
        Selection::Some(chosen)
    }
}
