//! A volume's id: made of its name, so that whoever is asked again for the name finds the same volume.
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const HEX: usize = 32;
const LEN: usize = 1 + HEX;

/// `v` and 32 hexadecimal digits: the only form that ever becomes a part of a path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId([u8; LEN]);

/// A text that names no volume of this driver.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no volume id")]
pub struct NoVolumeId(String);

impl VolumeId {
    /// The id of the volume called `name`.
    pub fn of_name(name: &str) -> Self {
        let mut text = [b'v'; LEN];
        let digest = Sha256::digest(name.as_bytes());
        for (pair, byte) in text[1..].chunks_exact_mut(2).zip(digest) {
            for (digit, half) in pair.iter_mut().zip([byte >> 4, byte & 0xf]) {
                *digit = if half < 10 { b'0' + half } else { b'a' + half - 10 };
            }
        }
        Self(text)
    }

    /// The id in `text`, if it has the form of one; any other text names no volume of this driver.
    pub fn parse(text: &str) -> Option<Self> {
        let text: [u8; LEN] = text.as_bytes().try_into().ok()?;
        let hex = |digit: &u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
        (text[0] == b'v' && text[1..].iter().all(hex)).then_some(Self(text))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        // Made of ASCII only, so this never falls back.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl TryFrom<String> for VolumeId {
    type Error = NoVolumeId;

    fn try_from(text: String) -> Result<Self, NoVolumeId> {
        Self::parse(&text).ok_or(NoVolumeId(text))
    }
}

impl From<VolumeId> for String {
    fn from(id: VolumeId) -> Self {
        id.as_str().to_owned()
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
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
