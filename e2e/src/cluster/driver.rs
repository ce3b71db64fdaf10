//! The driver under test as a cluster has it: a file of manifests/drivers.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ClusterError, at, workspace_root};
use crate::yaml;

/// What a scenario asks of a StorageClass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// ext4, bound at once, deleted with its claim.
    #[default]
    Ext4,
    /// XFS, else the same.
    Xfs,
    /// Bound when the first pod comes.
    FirstConsumer,
    /// The same, and then usable on that pod's node only.
    Pinned,
    /// Kept when its claim goes.
    Retain,
}

impl Class {
    /// The filesystem that it promises, if it promises one.
    pub fn filesystem(self) -> Option<&'static str> {
        match self {
            Self::Ext4 => Some("ext4"),
            Self::Xfs => Some("xfs"),
            Self::FirstConsumer | Self::Pinned | Self::Retain => None,
        }
    }

    /// As scenarios and driver files write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::FirstConsumer => "first-consumer",
            Self::Pinned => "pinned",
            Self::Retain => "retain",
        }
    }
}

/// A driver under test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Driver {
    /// Its CSI name.
    pub name: String,
    /// The namespace of its pods and of its sidecars' leases.
    pub namespace: String,
    /// How it is installed, for somebody whose cluster lacks it.
    pub install: String,
    /// The folder on its nodes whose files it makes loop devices of, if it does.
    #[serde(default, rename = "data-dir")]
    pub data_dir: Option<String>,
    /// Its StorageClasses by what scenarios ask for.
    pub classes: BTreeMap<Class, String>,
}

impl Driver {
    /// Reads `manifests/drivers/<given>.yaml`, or the file `given` if it is one.
    ///
    /// # Errors
    /// With file, line and field; for a name that no file has, with those there are.
    pub fn load(given: &str) -> Result<Self, ClusterError> {
        let path = Self::named(given).unwrap_or_else(|| PathBuf::from(given));
        if !path.is_file() {
            return Err(ClusterError::Setup(format!(
                "--driver {given}: no such file, and manifests/drivers has {}",
                known(&folder()).join(", ")
            )));
        }
        let text = std::fs::read_to_string(&path).map_err(at(&path, "read"))?;
        Ok(yaml::parse(&path, &text)?)
    }

    /// The file of manifests/drivers that has this name, if one has.
    pub fn named(name: &str) -> Option<PathBuf> {
        let path = folder().join(format!("{name}.yaml"));
        path.is_file().then_some(path)
    }

    /// The driver of this repository, which every cluster of ours gets.
    ///
    /// # Errors
    /// Those of [`Driver::load`].
    pub fn own() -> Result<Self, ClusterError> {
        Self::load("holdfast")
    }
}

fn folder() -> PathBuf {
    workspace_root().join("manifests/drivers")
}

fn known(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::chart;

    #[test]
    fn the_own_driver_is_what_the_chart_installs() {
        let own = Driver::own().unwrap();
        assert_eq!(own.name, chart::DRIVER_NAME);
        assert_eq!(own.namespace, chart::NAMESPACE);
        assert_eq!(own.data_dir.as_deref(), Some(chart::DATA_DIR));
        for class in [
            Class::Ext4,
            Class::Xfs,
            Class::FirstConsumer,
            Class::Pinned,
            Class::Retain,
        ] {
            let name = &own.classes[&class];
            let chart = std::fs::read_to_string(chart::chart_dir().join("templates/classes.yaml")).unwrap();
            assert!(chart.contains(&format!("{name:?}")), "{name}");
        }
    }

    #[test]
    fn an_unknown_driver_is_named_with_those_there_are() {
        let said = Driver::load("ceph").unwrap_err().to_string();
        assert!(said.contains("ceph") && said.contains("holdfast"), "{said}");
    }
}
