//! Chooses scenarios by names and labels.
use super::spec::{SELFTEST, Scenario};
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

/// Those whose name is among `names` (all, if there are none) and that have every one of `labels`. Tests of the suite itself
/// are left out unless their name or their label is given.
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
        .filter(|s| !s.is_selftest() || !names.is_empty() || labels.iter().any(|l| l == SELFTEST))
        .filter(|s| labels.iter().all(|label| s.labels.contains(label)))
        .cloned()
        .collect();
    if chosen.is_empty() {
        Selection::Nothing
    } else {
        Selection::Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::workload::{VolumeSpec, Workload};

    fn scenario(name: &str, labels: &[&str]) -> Scenario {
        Scenario {
            name: name.to_owned(),
            why: String::from("a test"),
            workload: Workload::Retain {
                volume: VolumeSpec::default(),
            },
            faults: Vec::new(),
            except: Vec::new(),
            labels: labels.iter().map(|l| (*l).to_owned()).collect(),
        }
    }

    #[rstest]
    #[case::nothing_given(&[], &[], &["a", "b"])]
    #[case::a_label(&[], &["x"], &["b"])]
    #[case::the_label_of_self_tests(&[], &["selftest"], &["s"])]
    #[case::its_name(&["s"], &[], &["s"])]
    fn self_tests_run_only_if_they_are_asked_for(
        #[case] names: &[&str],
        #[case] labels: &[&str],
        #[case] chosen: &[&str],
    ) {
        let all = [
            scenario("a", &[]),
            scenario("b", &["x"]),
            scenario("s", &["x", "selftest"]),
        ];
        let owned = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let Selection::Some(found) = select(&all, &owned(names), &owned(labels)) else {
            panic!("nothing was chosen");
        };
        assert_eq!(found.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), chosen);
    }
}
