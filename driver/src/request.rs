//! What every call checks before it does anything.
use std::collections::{BTreeMap, HashMap};
use std::path::{Component, PathBuf};

use crate::error::Error;
use crate::id::VolumeId;

/// Longest string of the specification where no other limit is given, in bytes.
const STRING_BYTES: usize = 128;
/// Longest id of a node.
const NODE_BYTES: usize = 256;
/// Longest map, in bytes.
const MAP_BYTES: usize = 4096;
/// Linux's own limit of a path.
const PATH_BYTES: usize = 4095;

fn invalid(field: &'static str, value: &str, reason: &str) -> Error {
    let shown: String = value.chars().take(STRING_BYTES).collect();
    Error::Invalid {
        field,
        value: shown,
        reason: reason.to_owned(),
    }
}

fn text(field: &'static str, value: &str, limit: usize) -> Result<(), Error> {
    if value.is_empty() {
        return Err(Error::Missing { field });
    }
    if value.len() > limit {
        return Err(invalid(field, value, &format!("is longer than {limit} bytes")));
    }
    if value.chars().any(char::is_control) {
        return Err(invalid(field, value, "has control characters"));
    }
    Ok(())
}

/// The name of a volume that is to be made.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn name(value: &str) -> Result<(), Error> {
    text("name", value, STRING_BYTES)
}

/// A volume's id; one of another form is no volume of ours, and nothing of it touches a path.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn volume_id(value: &str) -> Result<Option<VolumeId>, Error> {
    text("volume_id", value, STRING_BYTES)?;
    Ok(VolumeId::parse(value))
}

/// A volume that must exist.
///
/// # Errors
/// INVALID_ARGUMENT, or NOT_FOUND for an id of another form.
pub fn known_id(value: &str) -> Result<VolumeId, Error> {
    volume_id(value)?.ok_or_else(|| Error::VolumeNotFound { id: value.to_owned() })
}

/// A node's id.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn node_id(value: &str) -> Result<(), Error> {
    text("node_id", value, NODE_BYTES)
}

/// An absolute path without `..`.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn path(field: &'static str, value: &str) -> Result<PathBuf, Error> {
    text(field, value, PATH_BYTES)?;
    let path = PathBuf::from(value);
    // The root has no name; nothing of ours may ever touch it.
    let names_nothing = path.file_name().is_none();
    if !path.is_absolute() || names_nothing || path.components().any(|c| c == Component::ParentDir) {
        return Err(invalid(field, value, "is no absolute path without .."));
    }
    Ok(path)
}

/// A path where a volume is looked for: whatever is given, nothing is made there, so what cannot hold a volume simply does not.
///
/// # Errors
/// INVALID_ARGUMENT if it is missing.
pub fn place(field: &'static str, value: &str) -> Result<PathBuf, Error> {
    text(field, value, PATH_BYTES)?;
    Ok(PathBuf::from(value))
}

/// The parameters of a StorageClass; Kubernetes' own, which it adds by itself, are kept, others are unknown.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn parameters(given: HashMap<String, String>) -> Result<BTreeMap<String, String>, Error> {
    let bytes: usize = given.iter().map(|(k, v)| k.len() + v.len()).sum();
    if bytes > MAP_BYTES {
        return Err(invalid("parameters", "", "are longer than 4096 bytes"));
    }
    if let Some(key) = given.keys().find(|key| !key.starts_with("csi.storage.k8s.io/")) {
        return Err(invalid("parameters", key, "is no parameter of this driver"));
    }
    Ok(given.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tonic::Code;

    use super::*;

    #[rstest]
    #[case::empty("", Err(Code::InvalidArgument))]
    #[case::too_long(&"x".repeat(129), Err(Code::InvalidArgument))]
    #[case::control("a\nb", Err(Code::InvalidArgument))]
    #[case::foreign("other", Ok(false))]
    #[case::ours("v0123456789abcdef0123456789abcdef", Ok(true))]
    fn ids(#[case] value: &str, #[case] expected: Result<bool, Code>) {
        assert_eq!(
            volume_id(value).map(|id| id.is_some()).map_err(|e| e.code()),
            expected
        );
    }

    #[rstest]
    #[case::relative("a/b")]
    #[case::dots("/a/../b")]
    fn bad_paths(#[case] value: &str) {
        assert_eq!(
            path("target_path", value).unwrap_err().code(),
            Code::InvalidArgument
        );
    }
}
