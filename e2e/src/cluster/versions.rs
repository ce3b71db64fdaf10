//! kind/versions.yaml: the single list of what a cluster is made of.
use std::path::Path;

use serde::Deserialize;

use super::{ClusterError, at, workspace_root};
use crate::yaml::{self, nearest};

/// Everything that has a version.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    /// Debian release of the node image that is built here.
    pub debian: String,
    /// The minors, newest first.
    pub kubernetes: Vec<Kubernetes>,
    /// Images of the official sidecars.
    pub sidecars: Sidecars,
    /// Programs that are called.
    pub tools: Vec<Tool>,
}

/// One minor of Kubernetes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kubernetes {
    /// Such as 1.37.
    pub minor: String,
    /// Kind's image for it.
    pub pull: Image,
    /// What it is built of, where this project can build it.
    pub source: Option<Source>,
}

/// An image in a registry.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Name and tag.
    pub image: String,
    /// sha256:..., or "unpinned: " and the reason.
    pub digest: String,
}

/// A minor that is built from source packages.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Such as v1.37.2, the version of the Go module.
    pub version: String,
    /// Folder of the Go module, from the repository's root.
    pub module: String,
    /// Tag that kubeadm wants for etcd's image.
    pub etcd_tag: String,
    /// Tag that kubeadm wants for CoreDNS's image.
    pub coredns_tag: String,
    /// Tag that kubeadm wants for the pause image.
    pub pause_tag: String,
}

/// Images of the official sidecars, and the Go packages that they are built of.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sidecars {
    /// csi-provisioner.
    pub provisioner: Sidecar,
    /// csi-attacher.
    pub attacher: Sidecar,
    /// csi-resizer.
    pub resizer: Sidecar,
}

impl Sidecars {
    /// All of them.
    pub fn all(&self) -> [&Sidecar; 3] {
        [&self.provisioner, &self.attacher, &self.resizer]
    }
}

/// One sidecar.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sidecar {
    /// Name and tag under which the chart asks for it.
    pub image: String,
    /// sha256:..., or "unpinned: " and the reason.
    pub digest: String,
    /// Its main package.
    pub package: String,
}

/// A program that is called: from PATH if its version fits, else built.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its main package.
    pub package: String,
    /// Arguments that make it print its version; empty if it cannot, then it is always built.
    pub version_args: Vec<String>,
    /// How its version must begin to fit.
    pub fits: String,
}

impl Versions {
    /// The list of this clone.
    ///
    /// # Errors
    /// With file, line and field.
    pub fn load() -> Result<Self, ClusterError> {
        let path = workspace_root().join("kind/versions.yaml");
        let text = std::fs::read_to_string(&path).map_err(at(&path, "read"))?;
        Self::parse(Path::new("kind/versions.yaml"), &text)
    }

    /// Reads a list.
    ///
    /// # Errors
    /// With file, line and field.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ClusterError> {
        let versions: Self = yaml::parse(file, text)?;
        if versions.kubernetes.is_empty() {
            return Err(ClusterError::Setup(format!(
                "{}: kubernetes: the list is empty",
                file.display()
            )));
        }
        for digest in versions
            .kubernetes
            .iter()
            .map(|k| &k.pull.digest)
            .chain(versions.sidecars.all().map(|s| &s.digest))
        {
            let hex = digest.strip_prefix("sha256:");
            let pinned = hex.is_some_and(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit()));
            if !pinned && !digest.starts_with("unpinned: ") {
                let file = file.display();
                return Err(ClusterError::Setup(format!(
                    "{file}: digest: `{digest}` is neither sha256:<64 hex digits> nor `unpinned: <reason>`"
                )));
            }
        }
        Ok(versions)
    }

    /// The minor that was asked for (1.37, v1.37 or v1.37.2), else the first that can be built here.
    ///
    /// # Errors
    /// With the nearest minor of the list.
    pub fn minor(&self, wanted: Option<&str>) -> Result<&Kubernetes, ClusterError> {
        let Some(wanted) = wanted else {
            let first = self
                .kubernetes
                .iter()
                .find(|k| k.source.is_some())
                .or(self.kubernetes.first());
            return first.ok_or_else(|| ClusterError::Setup(String::from("no Kubernetes version is listed")));
        };
        let bare = wanted.trim_start_matches('v');
        let short = bare.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
        self.kubernetes.iter().find(|k| k.minor == short).ok_or_else(|| {
            let minors: Vec<&str> = self.kubernetes.iter().map(|k| k.minor.as_str()).collect();
            let near = nearest(&short, minors.iter().copied())
                .map_or_else(String::new, |n| format!("; did you mean {n}?"));
            ClusterError::Setup(format!(
                "Kubernetes {wanted} is not one of {} (kind/versions.yaml){near}",
                minors.join(", ")
            ))
        })
    }

    /// The program called `name`.
    ///
    /// # Errors
    /// If the list lacks it.
    pub fn tool(&self, name: &str) -> Result<&Tool, ClusterError> {
        self.tools
            .iter()
            .find(|tool| tool.name == name)
            .ok_or_else(|| ClusterError::Setup(format!("kind/versions.yaml: tools: {name} is not listed")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_this_clone_is_right() {
        let versions = Versions::load().unwrap();
        assert_eq!(versions.minor(None).unwrap().minor, "1.37");
        assert_eq!(versions.minor(Some("v1.36.3")).unwrap().minor, "1.36");
        assert!(versions.tool("kind").is_ok());
    }

    #[test]
    fn a_wrong_name_is_shown_with_line_and_nearest_name() {
        let text = std::fs::read_to_string(workspace_root().join("kind/versions.yaml")).unwrap();
        let wrong = text.replacen("etcd_tag", "etcd_tags", 1);
        let line = 1 + wrong.lines().position(|l| l.contains("etcd_tags")).unwrap();
        let said = Versions::parse(Path::new("v.yaml"), &wrong)
            .unwrap_err()
            .to_string();
        assert!(
            said.starts_with(&format!("v.yaml:{line}:")) || said.starts_with("v.yaml:"),
            "{said}"
        );
        assert!(
            said.contains("`etcd_tags`") && said.ends_with("did you mean `etcd_tag`?"),
            "{said}"
        );
    }

    #[test]
    fn a_digest_is_never_invented() {
        let text = std::fs::read_to_string(workspace_root().join("kind/versions.yaml")).unwrap();
        let wrong = text.replacen("digest: \"unpinned: ", "digest: \"latest ", 1);
        let said = Versions::parse(Path::new("v.yaml"), &wrong)
            .unwrap_err()
            .to_string();
        assert!(said.contains("neither sha256"), "{said}");
    }

    #[test]
    fn an_unknown_minor_names_the_nearest() {
        let said = Versions::load()
            .unwrap()
            .minor(Some("1.73"))
            .unwrap_err()
            .to_string();
        assert!(said.contains("did you mean 1.3"), "{said}");
    }
}
