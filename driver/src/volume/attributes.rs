//! What can be changed during a volume's life: the parameters of a VolumeAttributesClass, also taken from a StorageClass.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Key: whether nodes may write.
const ACCESS: &str = "access";
/// Key: whether reading a file writes its access time.
const ATIME: &str = "atime";
/// Every key.
pub const KEYS: [&str; 2] = [ACCESS, ATIME];

/// What the volume is like now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Nodes may only read, from their next attachment on.
    #[serde(default)]
    pub read_only: bool,
    /// Its filesystem is mounted with noatime, from its next staging on.
    #[serde(default)]
    pub no_atime: bool,
}

impl Attributes {
    /// These, with what `given` names changed and what it does not name untouched. Keys that are not attributes are left to
    /// whoever knows them.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a value that does not exist; nothing is changed then.
    pub fn with(self, field: &'static str, given: &BTreeMap<String, String>) -> Result<Self, Error> {
        let either = |key: &str, yes: &str, no: &str, now: bool| match given.get(key).map(String::as_str) {
            None => Ok(now),
            Some(value) if value == yes => Ok(true),
            Some(value) if value == no => Ok(false),
            Some(value) => Err(Error::Invalid {
                field,
                value: format!("{key}={}", value.chars().take(128).collect::<String>()),
                reason: format!("has a value that does not exist; {yes} and {no} do"),
            }),
        };
        Ok(Self {
            read_only: either(ACCESS, "read-only", "read-write", self.read_only)?,
            no_atime: either(ATIME, "noatime", "relatime", self.no_atime)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tonic::Code;

    use super::*;

    #[rstest]
    #[case::nothing(&[], Ok((true, false)))]
    #[case::one_of_two(&[("atime", "noatime")], Ok((true, true)))]
    #[case::both(&[("access", "read-write"), ("atime", "noatime")], Ok((false, true)))]
    #[case::a_key_of_others(&[("csi.storage.k8s.io/pvc/name", "x")], Ok((true, false)))]
    #[case::bad_value(&[("access", "read-write"), ("atime", "never")], Err(Code::InvalidArgument))]
    fn changes(#[case] given: &[(&str, &str)], #[case] expected: Result<(bool, bool), Code>) {
        let given = given
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let before = Attributes {
            read_only: true,
            no_atime: false,
        };
        let after = before.with("mutable_parameters", &given);
        assert_eq!(
            after.map(|a| (a.read_only, a.no_atime)).map_err(|e| e.code()),
            expected
        );
    }
}
