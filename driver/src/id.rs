//! A volume's id: made of its name, so that whoever is asked again for the name finds the same volume.
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const HEX: usize = 32;

/// `v` and 32 hexadecimal digits: the only form that ever becomes a part of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VolumeId(String);

impl VolumeId {
    /// The id of the volume called `name`.
    pub fn of_name(name: &str) -> Self {
        let digest = Sha256::digest(name.as_bytes());
        let hex: String = digest
            .iter()
            .take(HEX / 2)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self(format!("v{hex}"))
    }

    /// The id in `text`, if it has the form of one; any other text names no volume of this driver.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix('v')?;
        let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        (digits.len() == HEX && digits.chars().all(hex)).then(|| Self(text.to_owned()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::path("../../etc/passwd", false)]
    #[case::upper("v0123456789ABCDEF0123456789ABCDEF", false)]
    #[case::short("v01", false)]
    #[case::good("v0123456789abcdef0123456789abcdef", true)]
    fn forms(#[case] text: &str, #[case] valid: bool) {
        assert_eq!(VolumeId::parse(text).is_some(), valid);
    }

    #[test]
    fn a_name_always_gives_the_same_id() {
        let id = VolumeId::of_name("pvc-1");
        assert_eq!(id, VolumeId::of_name("pvc-1"));
        assert_ne!(id, VolumeId::of_name("pvc-2"));
        assert_eq!(VolumeId::parse(id.as_str()), Some(id));
    }
}
